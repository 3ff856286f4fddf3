"""Grade an answer: call it on test cases, compare it with the solution and with known mistakes.

A student's function gets copies of the inputs, the global random states are restored after it, an
exception in it becomes a verdict, and an endless loop in Python is stopped. A call into C code that
never returns, such as sum(range(10**12)), cannot be stopped.
"""

from __future__ import annotations

import copy
import ctypes
import linecache
import random
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_toy.checks import shown

SECONDS_AT_MOST = 1.5  # for a student's function, over all cases
RTOL, ATOL = 1e-4, 1e-5  # float32 passes
NOT_ATTEMPTED, WRONG, RIGHT = "not attempted", "wrong", "right"


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
        name: a short name for tests; students do not see it.
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
        status: "not attempted", "wrong" or "right".
        hint: what the student should think about, if the answer is wrong.
        counterexample: the smallest test case that the answer gets wrong, if there is one.
    """

    status: str
    hint: str = ""
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class _Outcome:
    """What a function did with a test case: its results and their gradients, or how it failed."""

    parts: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    is_empty: bool = False  # None, ... or NotImplementedError: not attempted
    failure: str = ""  # why there is no result to compare
    raised: type[BaseException] | None = None
    changed: str = ""  # the argument that was changed in place
    lost_gradient: bool = False
    text: str = field(default="", compare=False)


def grade(exercise: Exercise, fn: Callable) -> Verdict:
    """Grade a function, see `rlhf_toy.course.exercises.grade`."""
    if not callable(fn):
        hint = (
            f"Expected a function called {exercise.name}, got {shown(fn)}. Pass the function "
            "itself, not its result."
        )
        return Verdict(WRONG, hint)
    cases = sorted(exercise.cases(), key=lambda case: case.size)
    with _random_states_kept():
        outcomes = _within_time(lambda found: _run_all(exercise, fn, cases, found))
        if len(outcomes) < len(cases):
            hint = (
                f"Your function did not return within {SECONDS_AT_MOST} s. Does it have a loop "
                "that never ends?"
            )
            return Verdict(WRONG, hint, _counterexample(exercise, cases[len(outcomes)], None))
        if all(outcome.is_empty for outcome in outcomes):
            return Verdict(NOT_ATTEMPTED)
        right = [_run(exercise, exercise.solution, case) for case in cases]
        agrees = [_same(a, b) for a, b in zip(outcomes, right, strict=True)]
        if all(agrees):
            return Verdict(RIGHT)
        first = agrees.index(False)
        hint = _hint(exercise, cases, outcomes, right, agrees)
    return Verdict(WRONG, hint, _counterexample(exercise, cases[first], outcomes[first]))


def _hint(
    exercise: Exercise,
    cases: Sequence[Case],
    outcomes: Sequence[_Outcome],
    right: Sequence[_Outcome],
    agrees: Sequence[bool],
) -> str:
    """Return the hint of the known mistake that fits, or one that is true for any wrong answer."""
    # If an answer is wrong on plain cases, the extreme ones may show a second mistake.
    plain = [i for i, case in enumerate(cases) if not case.is_corner]
    compared = plain if not all(agrees[i] for i in plain) else range(len(cases))
    for mistake in exercise.mistakes:
        if all(_same(outcomes[i], _run(exercise, mistake.answer, cases[i])) for i in compared):
            return mistake.hint
    outcome, expected = next(
        (o, r) for o, r, same in zip(outcomes, right, agrees, strict=True) if not same
    )
    if outcome.is_empty:
        return "Your function returns nothing for this input. Does every branch have a return?"
    if outcome.failure:
        return outcome.failure
    if outcome.changed:
        return (
            f"Your function changes its argument {outcome.changed} in place, so the caller's "
            "tensor changes too. Work on a copy."
        )
    for name, mine, theirs in zip(exercise.returns, outcome.parts, expected.parts, strict=True):
        if mine.shape != theirs.shape:
            return f"The {name} has the shape {list(mine.shape)}, but it should " + (
                f"have the shape {list(theirs.shape)}." if theirs.dim() else "be a scalar."
            )
    if outcome.lost_gradient:
        return (
            "The numbers are right, but no gradient flows through them, so a model could not learn "
            "from them. Use torch only: no .item(), .detach(), float(), numpy or torch.tensor(...)."
        )
    if all(map(_close, outcome.parts, expected.parts)):
        return "The numbers are right, but their gradient is not. Did you detach something?"
    return "This is none of the common mistakes. Work through the example by hand and compare."


def _run_all(
    exercise: Exercise, fn: Callable, cases: Sequence[Case], found: list[_Outcome]
) -> None:
    """Append the outcome of each case to `found`, which the caller can read at any time."""
    for case in cases:
        found.append(_run(exercise, fn, case))


def _run(exercise: Exercise, fn: Callable, case: Case) -> _Outcome:
    """Call a function on copies of a case's arguments."""
    arguments = {name: _copy(value) for name, value in case.arguments.items()}
    tracked = [arguments[name].requires_grad_() for name in exercise.differentiable]
    try:
        with torch.enable_grad():
            # By position, because students may rename the arguments.
            result = fn(*arguments.values())
    except NotImplementedError:
        return _Outcome(is_empty=True, text="NotImplementedError")
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        return _Outcome(failure=_where(error), raised=type(error), text=text)
    if result is None or result is ...:
        return _Outcome(is_empty=True, text=repr(result))
    text = _text(result)
    for name, value in case.arguments.items():
        if isinstance(value, Tensor) and not _close(arguments[name].detach(), value):
            return _Outcome(changed=name, text=text)
    several = len(exercise.returns) > 1
    if several and not (isinstance(result, tuple | list) and len(result) == len(exercise.returns)):
        wanted = ", ".join(exercise.returns)
        failure = f"Expected {len(exercise.returns)} results ({wanted}), got {text}."
        return _Outcome(failure=failure, text=text)
    try:
        parts = tuple(_tensor(part) for part in (result if several else [result]))
    except (TypeError, ValueError, RuntimeError):
        return _Outcome(failure=f"Expected numbers or a tensor, got {text}.", text=text)
    values = tuple(part.detach().double().cpu() for part in parts)
    if not tracked:
        return _Outcome(parts=values, text=text)
    if not parts[0].requires_grad:
        return _Outcome(parts=values, lost_gradient=True, text=text)
    # Different weights: errors in two entries cannot cancel.
    weights = torch.arange(1, parts[0].numel() + 1).to(parts[0]).view(parts[0].shape)
    try:
        gradients = torch.autograd.grad(
            (parts[0] * weights).sum(), tracked, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        return _Outcome(failure=f"The gradient could not be computed: {error}", text=text)
    return _Outcome(parts=values, gradients=tuple(g.double().cpu() for g in gradients), text=text)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _tensor(part: Any) -> Tensor:
    """Return a part of the result as a tensor; stacking a list of tensors keeps gradients."""
    if isinstance(part, tuple | list) and part and isinstance(part[0], Tensor):
        return torch.stack(list(part))
    return torch.as_tensor(part)


def _same(one: _Outcome, other: _Outcome) -> bool:
    """Return whether two functions did the same, in values, shapes, gradients and failures."""
    alike = (
        one.is_empty == other.is_empty
        and bool(one.failure) == bool(other.failure)
        and one.raised == other.raised
        and one.changed == other.changed
        and one.lost_gradient == other.lost_gradient
        and len(one.parts) == len(other.parts)
    )
    return alike and all(map(_close, one.parts + one.gradients, other.parts + other.gradients))


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), RTOL, ATOL, equal_nan=True
    )


def _where(error: BaseException) -> str:
    """Describe the error with the line of the student's code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)][1:]  # without `_run`
    said = f"{type(error).__name__}: {error}"
    if not frames:
        return f"The call failed with {said}. Does your function take the arguments of the example?"
    theirs = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    line = (theirs.line or linecache.getline(theirs.filename, theirs.lineno)).strip()
    return f"Line {theirs.lineno} of your code, `{line}`, raised {said}"


def _counterexample(exercise: Exercise, case: Case, outcome: _Outcome | None) -> Counterexample:
    right = _run(exercise, exercise.solution, case)
    yours = "no result" if outcome is None else outcome.text
    if outcome is not None and outcome.parts and all(map(_close, outcome.parts, right.parts)):
        yours, right_text = (
            f"{o.text}, with gradient {_text(o.gradients) if o.gradients else 'none'}"
            for o in (outcome, right)
        )
    else:
        right_text = right.text
    arguments = {name: _text(value) for name, value in case.arguments.items()}
    return Counterexample(arguments, yours, right_text)


def _text(value: Any) -> str:
    """Format a value as a student would write it, with 4 digits."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return _text(value.tolist())
    if isinstance(value, np.ndarray):
        return _text(value.tolist())
    if isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) != 1:
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _within_time(work: Callable[[list[_Outcome]], None]) -> list[_Outcome]:
    """Return what `work` had found when it ended or ran out of time."""
    found: list[_Outcome] = []
    thread = threading.Thread(target=_quietly, args=(work, found), daemon=True)
    thread.start()
    thread.join(SECONDS_AT_MOST)
    if thread.is_alive():  # a loop in Python stops at its next line
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsOver)
        )
        thread.join(0.3)
    return list(found)


class _TimeIsOver(BaseException):
    """Raised in a student's function that never ends; `except Exception` does not catch it."""


def _quietly(work: Callable[[list[_Outcome]], None], found: list[_Outcome]) -> None:
    with suppress(_TimeIsOver):
        work(found)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the global random states on leaving."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
