"""The exercises: `check` says at once whether a function is right, and names the mistake if not.

    bradley_terry_loss = exercises.check("bradley_terry_loss", bradley_terry_loss)

One file a notebook has the tasks, the cases on which an answer is judged, and the known mistakes;
`grading.py` judges. The answer key is the package itself: `solution` shows it.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable

from rlhf_toy.course.exercises import (
    nb01_preferences_not_ratings,
    nb02_bradley_terry,
    nb03_two_views,
    nb04_reward_model,
    nb05_gibbs_optimum,
    nb06_ppo,
    nb07_reward_hacking,
    nb08_dpo,
    nb09_dpo_or_ppo,
    nb10_no_free_lunch,
)
from rlhf_toy.course.exercises.grading import NOT_ATTEMPTED, RIGHT, WRONG, Exercise, Verdict
from rlhf_toy.course.exercises.grading import grade as _grade

__all__ = ["Verdict", "check", "grade", "hint", "names", "progress", "solution"]

_NOTEBOOKS = (
    nb01_preferences_not_ratings,
    nb02_bradley_terry,
    nb03_two_views,
    nb04_reward_model,
    nb05_gibbs_optimum,
    nb06_ppo,
    nb07_reward_hacking,
    nb08_dpo,
    nb09_dpo_or_ppo,
    nb10_no_free_lunch,
)
_EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise for notebook in _NOTEBOOKS for exercise in notebook.EXERCISES
}
_verdicts: dict[str, str] = {}  # of this session: the last status of each exercise
_hints_shown: dict[str, int] = {}


def names() -> list[str]:
    """The names of all exercises, in the course's order."""
    return list(_EXERCISES)


def grade(name: str, fn: Callable) -> Verdict:
    """Judges a student's function.

    Args:
        name: of the exercise.
        fn: the function. It is called with copies of the inputs; whatever it does, nothing is
            raised, and neither the caller's tensors nor global random states change.

    Returns:
        The verdict: "right"; "wrong" with a hint and the smallest counterexample that was found;
        or "not attempted" where the function returns None or `...`, or raises NotImplementedError.

    Raises:
        ValueError: no exercise has this name.
    """
    return _grade(_exercise(name), fn)


def check(name: str, fn: Callable) -> Callable:
    """Judges a student's function, prints the verdict, and returns a right one to go on with.

    Args:
        name: of the exercise.
        fn: the function.

    Returns:
        `fn` if it is right, else the package's own function, so that the notebook runs on.

    Raises:
        ValueError: no exercise has this name.
    """
    exercise = _exercise(name)
    verdict = _grade(exercise, fn)
    if _verdicts.get(name) != RIGHT:
        _verdicts[name] = verdict.status
    print(f"{name}: {verdict.status}")
    if verdict.counterexample:
        print(textwrap.indent(str(verdict.counterexample), "    "))
    if verdict.hint:
        print(textwrap.fill(verdict.hint, 90, initial_indent="  ", subsequent_indent="  "))
    return fn if verdict.status == RIGHT else exercise.solution


def hint(name: str) -> None:
    """Prints a hint for an exercise, and at each further call one more.

    Raises:
        ValueError: no exercise has this name.
    """
    hints = _exercise(name).hints
    shown = _hints_shown[name] = min(_hints_shown.get(name, 0) + 1, len(hints))
    for number, text in enumerate(hints[:shown], 1):
        print(textwrap.fill(f"{number}. {text}", 90, subsequent_indent="   "))
    if shown == len(hints):
        print(f'That is all; exercises.solution("{name}") shows the answer.')


def solution(name: str) -> None:
    """Prints the source of the package's own answer.

    Raises:
        ValueError: no exercise has this name.
    """
    function = _exercise(name).solution
    print(f"# {function.__module__}.{function.__name__}")
    print(inspect.getsource(function))


def progress() -> None:
    """Prints which exercises are done, tried and open in this session, a line for each notebook."""
    labels = {RIGHT: "done", WRONG: "tried", NOT_ATTEMPTED: "open"}
    for notebook in dict.fromkeys(exercise.notebook for exercise in _EXERCISES.values()):
        states = [
            f"{name}: {labels[_verdicts.get(name, NOT_ATTEMPTED)]}"
            for name, exercise in _EXERCISES.items()
            if exercise.notebook == notebook
        ]
        print(f"{notebook}   {'   '.join(states)}")


def _exercise(name: str) -> Exercise:
    if name not in _EXERCISES:
        close = difflib.get_close_matches(str(name), _EXERCISES, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no exercise is called {name!r}.{guess} There are {names()}")
    return _EXERCISES[name]
