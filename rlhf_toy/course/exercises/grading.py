"""How an answer is graded: called on cases, compared with the right one and with known mistakes.

Nothing that a student's function does gets out of here: it is given copies of the inputs, the
global random states are put back, an exception becomes a verdict, and an endless loop is stopped.
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

SECONDS_AT_MOST = 1.5  # for a student's function, over all cases
RTOL, ATOL = 1e-4, 1e-5  # float32 passes
NOT_ATTEMPTED, WRONG, RIGHT = "not attempted", "wrong", "right"


@dataclass(frozen=True)
class Case:
    """One call of the student's function.

    Attributes:
        arguments: by name, in the order in which the function takes them.
        is_corner: whether the case is extreme (a tie, a huge value, probability 0), so that an
            answer which is wrong elsewhere may go wrong here in a second way.
    """

    arguments: dict[str, Any]
    is_corner: bool = False

    @property
    def size(self) -> int:
        """How much there is to read in a counterexample: numbers in all tensors."""
        return sum(value.numel() for value in self.arguments.values() if isinstance(value, Tensor))


def make_cases(
    names: Sequence[str], plain: Iterable[Sequence], corners: Iterable[Sequence] = ()
) -> list[Case]:
    """Cases from tuples of arguments, which are called `names`."""
    return [
        Case(dict(zip(names, arguments, strict=True)), is_corner)
        for kind, is_corner in ((plain, False), (corners, True))
        for arguments in kind
    ]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that students give.

    Attributes:
        name: what it is called, in a few words.
        hint: what to think about, without giving the answer away.
        answer: the wrong function, called like the right one.
    """

    name: str
    hint: str
    answer: Callable


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    Attributes:
        name: of the function.
        notebook: where it stands, "01" to "10".
        hints: what `hint` shows, one more each time.
        solution: the right function; its source is the answer key.
        cases: makes the calls on which an answer is judged, from a seed of its own.
        mistakes: the known ones; the first that fits is named.
        differentiable: arguments for which the gradient of the result must be right as well.
        returns: names of the parts of the result, where it has several.
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
    """A call with its right result and the student's, as texts."""

    arguments: dict[str, str]
    yours: str
    right: str

    def __str__(self) -> str:
        lines = [f"{name} = {value}" for name, value in self.arguments.items()]
        return "\n".join([*lines, f"yours: {self.yours}", f"right: {self.right}"])


@dataclass(frozen=True)
class Verdict:
    """What came of an answer: `status` is "not attempted", "wrong" or "right"."""

    status: str
    hint: str = ""
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class _Outcome:
    """What a function did with a case: its parts and their gradients, or how it failed."""

    parts: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    is_empty: bool = False  # None, ... or NotImplementedError: nothing was written
    failure: str = ""  # why there is no result that could be compared
    raised: type[BaseException] | None = None
    changed: str = ""  # the argument that was changed in place
    lost_gradient: bool = False
    text: str = field(default="", compare=False)


def grade(exercise: Exercise, fn: Callable) -> Verdict:
    """Judges a function; see `rlhf_toy.course.exercises.grade`."""
    if not callable(fn):
        return Verdict(WRONG, f"Expected a function called {exercise.name}, got {fn!r}.")
    cases = sorted(exercise.cases(), key=lambda case: case.size)
    with _random_states_kept():
        outcomes = _within_time(lambda found: _run_all(exercise, fn, cases, found))
        if len(outcomes) < len(cases):
            hint = (
                f"Your function had not returned after {SECONDS_AT_MOST} s. Is there a loop "
                "that does not end?"
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
    """The hint for a wrong answer: a known mistake's, or what can be said of any answer."""
    # Where an answer is wrong on plain cases, the extreme ones may show a second mistake.
    plain = [i for i, case in enumerate(cases) if not case.is_corner]
    compared = plain if not all(agrees[i] for i in plain) else range(len(cases))
    for mistake in exercise.mistakes:
        if all(_same(outcomes[i], _run(exercise, mistake.answer, cases[i])) for i in compared):
            return mistake.hint
    outcome, expected = next(
        (o, r) for o, r, same in zip(outcomes, right, agrees, strict=True) if not same
    )
    if outcome.is_empty:
        return "Here your function returns nothing. Does every branch have a return?"
    if outcome.failure:
        return outcome.failure
    if outcome.changed:
        return (
            f"Your function changes its argument {outcome.changed} in place, so the caller's "
            "tensor is spoilt. Work on a copy."
        )
    for name, mine, theirs in zip(exercise.returns, outcome.parts, expected.parts, strict=True):
        if mine.shape != theirs.shape:
            return f"The {name} has the shape {list(mine.shape)}, but it should be " + (
                f"{list(theirs.shape)}." if theirs.dim() else "a scalar."
            )
    if outcome.lost_gradient:
        return (
            "The numbers are right, but no gradient flows through them, so nothing could be "
            "trained. Stay in torch: no .item(), .detach(), float(), numpy or torch.tensor(...)."
        )
    if all(map(_close, outcome.parts, expected.parts)):
        return "The numbers are right here, but their gradient is not. Is anything detached?"
    return "This is none of the mistakes I know. Work the example out by hand, and compare."


def _run_all(
    exercise: Exercise, fn: Callable, cases: Sequence[Case], found: list[_Outcome]
) -> None:
    """Appends the outcome of each case to `found`, which the caller can read at any moment."""
    for case in cases:
        found.append(_run(exercise, fn, case))


def _run(exercise: Exercise, fn: Callable, case: Case) -> _Outcome:
    """Calls a function on copies of a case's arguments."""
    arguments = {name: _copy(value) for name, value in case.arguments.items()}
    tracked = [arguments[name].requires_grad_() for name in exercise.differentiable]
    try:
        with torch.enable_grad():
            # The positions count, not the names, which are the student's own.
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
    # Different weights, so that errors in two entries cannot cancel.
    weights = torch.arange(1, parts[0].numel() + 1).to(parts[0]).view(parts[0].shape)
    try:
        gradients = torch.autograd.grad(
            (parts[0] * weights).sum(), tracked, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        return _Outcome(failure=f"The gradient could not be taken: {error}", text=text)
    return _Outcome(parts=values, gradients=tuple(g.double().cpu() for g in gradients), text=text)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _tensor(part: Any) -> Tensor:
    """A part of the result as a tensor; a list of tensors is stacked, so that gradients stay."""
    if isinstance(part, tuple | list) and part and isinstance(part[0], Tensor):
        return torch.stack(list(part))
    return torch.as_tensor(part)


def _same(one: _Outcome, other: _Outcome) -> bool:
    """Whether two functions did the same: in value, shape, gradient or failure."""
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
    """The error with the line of the student's code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)][1:]  # less `_run`
    said = f"{type(error).__name__}: {error}"
    if not frames:
        return f"The call failed with {said}. Does your function take the arguments it is given?"
    theirs = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    line = (theirs.line or linecache.getline(theirs.filename, theirs.lineno)).strip()
    return f"Your line {theirs.lineno}, `{line}`, raised {said}"


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
    """A value as a student would write it down, to 4 digits."""
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
    """What `work` had found when it ended, or when its time was over."""
    found: list[_Outcome] = []
    thread = threading.Thread(target=_quietly, args=(work, found), daemon=True)
    thread.start()
    thread.join(SECONDS_AT_MOST)
    if thread.is_alive():  # a loop in Python notices this at its next line
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsOver)
        )
        thread.join(0.3)
    return list(found)


class _TimeIsOver(BaseException):
    """Raised in a student's function that does not end; no `except Exception` catches it."""


def _quietly(work: Callable[[list[_Outcome]], None], found: list[_Outcome]) -> None:
    with suppress(_TimeIsOver):
        work(found)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Puts the global random states back to what they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
