"""The exercises: `check` tells you whether your function is right, and if not, what is wrong.

    newton_step = exercises.check("newton_step", newton_step)

There is one file for each notebook, with its exercises, their test cases and common mistakes;
`grading.py` grades. The solutions are functions of the package; `solution` shows their source.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from rlhf_toy.checks import check_type, shown
from rlhf_toy.course import record
from rlhf_toy.course.exercises.grading import NOT_ATTEMPTED, RIGHT, Exercise, Verdict
from rlhf_toy.course.exercises.grading import grade as _grade

if TYPE_CHECKING:
    from rlhf_toy.course.widgets.prediction import Prediction, Reminder

__all__ = [
    "Verdict", "check", "grade", "hint", "names", "predict", "predicted", "progress", "solution",
]  # fmt: skip

_NOTEBOOKS = [
    import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)  # by name
    if module.name.startswith("nb")
]
_EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise for notebook in _NOTEBOOKS for exercise in notebook.EXERCISES
}
_STATES = ("open", "tried", "done")  # the later ones stay
_states: dict[str, str] = {}  # reached in this session
_hints_shown: dict[str, int] = {}


def names() -> list[str]:
    """Return the names of all exercises, in the order of the course."""
    return list(_EXERCISES)


def all_exercises() -> dict[str, Exercise]:
    """Return all exercises by name, in the order of the course."""
    return dict(_EXERCISES)


def grade(name: str, fn: Callable) -> Verdict:
    """Grade a student's function.

    Args:
        name: name of the exercise.
        fn: the function. It is called with copies of the inputs. An exception in it becomes a
            verdict. What it changes in the process, such as random states, the working folder or
            the default dtype, is restored. If it has not returned after 1.5 s, it is stopped;
            C code such as sum(range(10**12)) cannot be stopped, and the call waits for it.

    Returns:
        The verdict: "right"; "wrong" with a hint and the smallest test case that fails; "not
        attempted" if the function always returns None or `...`, or raises NotImplementedError; or
        "the package's own" if it is right because it calls the solution.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is no exercise with this name.
    """
    return _grade(_exercise(name), fn)


def check(name: str, fn: Callable) -> Callable:
    """Grade a student's function, print the verdict, and return a right function.

    Args:
        name: name of the exercise.
        fn: the function, see `grade`.

    Returns:
        `fn` if it is right, otherwise the solution, which lets the rest of the notebook run.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is no exercise with this name.
    """
    exercise = _exercise(name)
    verdict = _grade(exercise, fn)
    if verdict.status != NOT_ATTEMPTED:
        _note(name, "done" if verdict.status == RIGHT else "tried")
    print(f"{name}: {verdict.status}")
    if verdict.counterexample:
        print(textwrap.indent(str(verdict.counterexample), "    "))
    if verdict.hint:
        print(textwrap.fill(verdict.hint, 90, initial_indent="  ", subsequent_indent="  "))
    return fn if verdict.status == RIGHT else exercise.solution


def hint(name: str) -> None:
    """Print a hint for an exercise, and one more at each further call.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is no exercise with this name.
    """
    hints = _exercise(name).hints
    shown = _hints_shown[name] = min(_hints_shown.get(name, 0) + 1, len(hints))
    for number, text in enumerate(hints[:shown], 1):
        print(textwrap.fill(f"{number}. {text}", 90, subsequent_indent="   "))
    if shown == len(hints):
        print(f'That was the last hint. exercises.solution("{name}") shows the answer.')


def solution(name: str) -> None:
    """Print the source of the solution.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is no exercise with this name.
    """
    function = _exercise(name).solution
    print(f"# {function.__module__}.{function.__name__}")
    print(inspect.getsource(function))


def progress() -> None:
    """Print which exercises are done, tried and open, one line per notebook.

    What was done before a restart of the kernel is in `my_progress.json`, beside the notebooks.
    """
    saved = record.recall(record.EXERCISES)
    for notebook in dict.fromkeys(exercise.notebook for exercise in _EXERCISES.values()):
        states = [
            f"{name}: {_state(name, saved)}"
            for name, exercise in _EXERCISES.items()
            if exercise.notebook == notebook
        ]
        print(f"{notebook}   {'   '.join(states)}")


def predict(name: str, question: str) -> Prediction:
    """Ask for a prediction in a cell of its own; an empty one is fine.

    Args:
        name: under which the prediction is kept, such as "06 best beta".
        question: what to predict.
    """
    from rlhf_toy.course.widgets.prediction import Prediction

    return Prediction(name, question)


def predicted(name: str) -> Reminder:
    """Show what was predicted under this name, beside the result."""
    from rlhf_toy.course.widgets.prediction import Reminder

    return Reminder(name)


def _state(name: str, saved: dict[str, str]) -> str:
    """Return the best that was reached, in this session or before."""
    return max({_states.get(name), saved.get(name), "open"} & {*_STATES}, key=_STATES.index)


def _note(name: str, state: str) -> None:
    best = _state(name, record.recall(record.EXERCISES))
    if _STATES.index(state) > _STATES.index(best):
        _states[name] = state
        record.keep(record.EXERCISES, name, state)


def _exercise(name: str) -> Exercise:
    check_type("name", name, str, "the name of an exercise, a string")
    if name not in _EXERCISES:
        close = difflib.get_close_matches(name, _EXERCISES, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no exercise called {shown(name)}.{guess} The exercises are "
            f"{', '.join(_EXERCISES)}."
        )
    return _EXERCISES[name]
