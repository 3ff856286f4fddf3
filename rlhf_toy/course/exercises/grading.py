"""Grade an answer: compare what it did with the solution and with known mistakes.

`grade` calls a student's function in this process: it gets copies of the inputs, an exception in it
becomes a verdict, and an endless loop in Python is stopped, see `kernel`. `judge` compares outcomes
from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from rlhf_toy.checks import shown
from rlhf_toy.course.exercises.kernel import originals, states_kept, within_time
from rlhf_toy.course.exercises.outcomes import Outcome, close, run_case, same, text_of

NOT_ATTEMPTED, WRONG, RIGHT = "not attempted", "wrong", "right"
THE_PACKAGES = "the package's own"  # the numbers are right, but the solution was called for them


@dataclass(frozen=True)
class Case:
    """A test case: one call of the student's function.

    Attributes:
        arguments: by name, in the order in which the function takes them.
        is_corner: whether the case is extreme (a tie, a huge value, probability 0). An answer that
            is wrong on other cases may fail here in a second way.
    """

    arguments: dict[str, Any]
    is_corner: bool = False

    @property
    def size(self) -> int:
        """Count the numbers in all tensors: how much there is to read in a counterexample."""
        return sum(value.numel() for value in self.arguments.values() if isinstance(value, Tensor))


def make_cases(
    names: Sequence[str], plain: Iterable[Sequence], corners: Iterable[Sequence] = ()
) -> list[Case]:
    """Return test cases from tuples of arguments with these names."""
    return [
        Case(dict(zip(names, arguments, strict=True)), is_corner)
        for kind, is_corner in ((plain, False), (corners, True))
        for arguments in kind
    ]


@dataclass(frozen=True)
class Mistake:
    """A common wrong answer.

    Attributes:
        name: a short name for instructors and tests; students do not see it.
        hint: what the student should think about; it does not give the answer away.
        answer: the wrong function, with the same arguments as the right one.
    """

    name: str
    hint: str
    answer: Callable


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    Attributes:
        name: name of the function.
        notebook: number of its notebook, such as "01".
        hints: what `hint` shows, one more at each call.
        solution: the right function; `solution` shows its source.
        cases: returns the test cases, the same ones at each call.
        mistakes: common mistakes; the student gets the hint of the first that fits.
        differentiable: arguments for which the gradient of the result must be right too.
        returns: names of the parts of the result, if it has several.
    """

    name: str
    notebook: str
    hints: tuple[str, ...]
    solution: Callable
    cases: Callable[[], list[Case]]
    mistakes: tuple[Mistake, ...]
    differentiable: tuple[str, ...] = ()
    returns: tuple[str, ...] = ("result",)


@dataclass(frozen=True)
class Counterexample:
    """A call with the student's result and the right one, as text."""

    arguments: dict[str, str]
    yours: str
    right: str

    def __str__(self) -> str:
        lines = [f"{name} = {value}" for name, value in self.arguments.items()]
        return "\n".join([*lines, f"yours: {self.yours}", f"right: {self.right}"])


@dataclass(frozen=True)
class Verdict:
    """The result of grading an answer.

    Attributes:
        status: "not attempted", "wrong", "right", or "the package's own" for an answer that calls
            the solution.
        hint: what the student should think about, if the answer is wrong.
        counterexample: the smallest test case that the answer gets wrong, if there is one.
        mistake: the name of the known mistake, or of the kind of failure, if the answer is wrong.
    """

    status: str
    hint: str = ""
    counterexample: Counterexample | None = None
    mistake: str = ""


def grade(exercise: Exercise, fn: Callable) -> Verdict:
    """Grade a function, see `rlhf_toy.course.exercises.grade`."""
    if not callable(fn):
        return not_callable(exercise, shown(fn))
    with originals():
        cases = sorted_cases(exercise)
    with states_kept():
        timed = within_time(lambda found: _run_all(exercise, fn, cases, found))
    with states_kept(), originals():
        return judge(exercise, timed.outcomes, timed.why(), "does not return")


def not_callable(exercise: Exercise, found: str) -> Verdict:
    """Return the verdict on something that is no function, described in words."""
    hint = (
        f"Expected a function called {exercise.name}, got {found}. Pass the function itself, not "
        "its result."
    )
    return Verdict(WRONG, hint, mistake="no function")


def judge(
    exercise: Exercise, outcomes: Sequence[Outcome], why_unfinished: str = "", mistake: str = ""
) -> Verdict:
    """Return the verdict on what a function did with the cases of `sorted_cases`, in this order.

    Args:
        exercise: what the function should do.
        outcomes: of each case, or of the first ones if the function did not get further.
        why_unfinished: the hint if there are fewer outcomes than cases.
        mistake: the name of that failure.
    """
    cases = sorted_cases(exercise)
    right = _known(exercise, exercise.solution)
    if len(outcomes) < len(cases):
        example = _counterexample(cases[len(outcomes)], right[len(outcomes)], None)
        return Verdict(WRONG, why_unfinished, example, mistake)
    if all(outcome.is_empty for outcome in outcomes):
        return Verdict(NOT_ATTEMPTED)
    agrees = [same(a, b) for a, b in zip(outcomes, right, strict=True)]
    if all(agrees):
        if not any(outcome.used_solution for outcome in outcomes):
            return Verdict(RIGHT)
        name = f"{exercise.solution.__module__}.{exercise.solution.__name__}"
        return Verdict(
            THE_PACKAGES, f"Your function calls {name}. How would you write it yourself?"
        )
    first = agrees.index(False)
    # If an answer is wrong on plain cases, the extreme ones may show a second mistake.
    plain = [i for i, case in enumerate(cases) if not case.is_corner]
    compared = plain if not all(agrees[i] for i in plain) else range(len(cases))
    for known in exercise.mistakes:
        if all(same(outcomes[i], _known(exercise, known.answer)[i]) for i in compared):
            mistake, hint = known.name, known.hint
            break
    else:
        mistake, hint = _failure(exercise, outcomes[first], right[first])
    return Verdict(
        WRONG, hint, _counterexample(cases[first], right[first], outcomes[first]), mistake
    )


def _failure(exercise: Exercise, outcome: Outcome, right: Outcome) -> tuple[str, str]:
    """Return name and hint of what is wrong with an outcome that is no known mistake's."""
    if outcome.is_empty:
        hint = "Your function returns nothing for this input. Does every branch have a return?"
        return "no result", hint
    if outcome.failure:
        kind = outcome.raised if outcome.raised.isidentifier() else "an exception"
        return f"raises {kind}" if outcome.raised else "no numbers", outcome.failure
    if outcome.changed:
        return "changes an argument", (
            f"Your function changes its argument {outcome.changed} in place, so the caller's "
            "tensor changes too. Work on a copy."
        )
    for name, mine, theirs in zip(exercise.returns, outcome.parts, right.parts, strict=False):
        if mine.shape != theirs.shape:
            return "shape", f"The {name} has the shape {list(mine.shape)}, but it should " + (
                f"have the shape {list(theirs.shape)}." if theirs.dim() else "be a scalar."
            )
    if outcome.lost_gradient:
        return "no gradient", (
            "The numbers are right, but no gradient flows through them, so a model could not learn "
            "from them. Use torch only: no .item(), .detach(), float(), numpy or torch.tensor(...)."
        )
    if all(map(close, outcome.parts, right.parts)):
        hint = "The numbers are right, but their gradient is not. Did you detach something?"
        return "wrong gradient", hint
    hint = "This is none of the common mistakes. Work through the example by hand and compare."
    return "other", hint


@cache
def sorted_cases(exercise: Exercise) -> tuple[Case, ...]:
    """Return the test cases, the smallest first."""
    return tuple(sorted(exercise.cases(), key=lambda case: case.size))


@cache
def _known(exercise: Exercise, fn: Callable) -> tuple[Outcome, ...]:
    """Return what the solution or a known mistake does with each case."""
    return tuple(run_case(exercise, fn, case) for case in sorted_cases(exercise))


def prepare_to_judge(exercise: Exercise) -> None:
    """Compute what `judge` keeps: what the solution and the known mistakes do with each case."""
    for fn in (exercise.solution, *(mistake.answer for mistake in exercise.mistakes)):
        _known(exercise, fn)


def _run_all(exercise: Exercise, fn: Callable, cases: Sequence[Case], found: list[Outcome]) -> None:
    """Append the outcome of each case to `found`, which the caller can read at any time."""
    for case in cases:
        found.append(run_case(exercise, fn, case))


def _counterexample(case: Case, right: Outcome, outcome: Outcome | None) -> Counterexample:
    yours, right_text = "no result" if outcome is None else outcome.text, right.text
    if outcome is not None and outcome.parts and all(map(close, outcome.parts, right.parts)):
        yours, right_text = (
            f"{o.text}, with gradient {text_of(o.gradients) if o.gradients else 'none'}"
            for o in (outcome, right)
        )
    arguments = {name: text_of(value) for name, value in case.arguments.items()}
    return Counterexample(arguments, yours, right_text)
