"""Call a student's function on a test case, and keep as plain data what it did.

Nothing that the function does gets out of `run_case`, except that `TimeIsOver` ends it. An outcome
can be written as JSON, so that it can come from a process that is not trusted.
"""

from __future__ import annotations

import copy
import dis
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlhf_toy.checks import shown

if TYPE_CHECKING:
    from rlhf_toy.course.exercises.grading import Case, Exercise

MOST_NUMBERS = 10_000  # in a result; the right ones have at most a few dozen
LONGEST_TEXT = 2_000  # characters of a value or a message
DEEPEST_LIST = 20


class TimeIsOver(BaseException):
    """Raised in a student's function that never ends; `except Exception` does not catch it."""


@dataclass(frozen=True)
class Outcome:
    """What a function did with a test case: its results and their gradients, or how it failed.

    Attributes:
        parts: the results, float64 on the CPU.
        gradients: of the first result, one for each differentiable argument.
        is_empty: None, `...` or `raise NotImplementedError`: not attempted.
        failure: why there is no result to compare.
        raised: the type of the exception.
        changed: the argument that was changed in place.
        lost_gradient: whether no gradient flows through the result.
        used_solution: whether the package's own solution was called.
        text: the result as a student would write it.
    """

    parts: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    is_empty: bool = False
    failure: str = ""
    raised: str = ""
    changed: str = ""
    lost_gradient: bool = False
    used_solution: bool = False
    text: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as data that `json` can write."""
        tensors = {
            name: [[list(x.shape), x.flatten().tolist()] for x in getattr(self, name)]
            for name in ("parts", "gradients")
        }
        return self.__dict__ | tensors

    @classmethod
    def from_json(cls, data: Any) -> Outcome:
        """Return the outcome that `to_json` described.

        Raises:
            ValueError: it is something else; the data may come from a student's code.
        """
        kinds = {name: type(value) for name, value in cls().__dict__.items()}
        if not isinstance(data, dict) or data.keys() != kinds.keys():
            raise ValueError(f"expected the fields of an outcome, got {shown(data)}")
        fields = dict(data)
        for name in ("parts", "gradients"):
            try:
                fields[name] = tuple(
                    torch.tensor(numbers, dtype=torch.float64).reshape(shape)
                    for shape, numbers in data[name]
                )
            except (TypeError, ValueError, RuntimeError, OverflowError):
                raise ValueError(f"{name} are no tensors: {shown(data[name])}") from None
        for name, value in fields.items():
            if type(value) is not kinds[name]:
                raise ValueError(f"{name} must be a {kinds[name].__name__}, got {shown(value)}")
            if isinstance(value, str):
                fields[name] = value[:LONGEST_TEXT]
        return cls(**fields)


def same(one: Outcome, other: Outcome) -> bool:
    """Return whether two functions did the same, in values, shapes, gradients and failures."""
    alike = (
        one.is_empty == other.is_empty
        and bool(one.failure) == bool(other.failure)
        and one.raised == other.raised
        and one.changed == other.changed
        and one.lost_gradient == other.lost_gradient
        and len(one.parts) == len(other.parts)
        and len(one.gradients) == len(other.gradients)
    )
    return alike and all(map(close, one.parts + one.gradients, other.parts + other.gradients))


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape and almost the same values; NaN equals NaN.

    The tolerance lets float32 pass.
    """
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def run_case(exercise: Exercise, fn: Callable, case: Case) -> Outcome:
    """Call a function on copies of a case's arguments.

    Raises:
        TimeIsOver: raised in this thread from outside, to stop the function.
    """
    arguments = {name: _copy(value) for name, value in case.arguments.items()}
    tracked = [arguments[name].requires_grad_() for name in exercise.differentiable]
    try:
        with _calls_of(exercise.solution.__code__) as calls, torch.enable_grad():
            # By position, because students may rename the arguments.
            result = fn(*arguments.values())
    except TimeIsOver:
        raise
    except BaseException as error:  # such as SystemExit or KeyboardInterrupt, raised by the student
        if isinstance(error, NotImplementedError) and _is_raised_in_python(error):
            return Outcome(is_empty=True, text="NotImplementedError")
        kind = type(error).__name__[:LONGEST_TEXT]
        return Outcome(failure=where(error), raised=kind, text=_message(error))
    if result is None or result is ...:
        return Outcome(is_empty=True, text=repr(result))
    try:
        fields = _read(exercise, case, arguments, tracked, result)
    except TimeIsOver:
        raise
    except BaseException as error:  # an object of the student's may raise anything when it is read
        failure = f"Your result cannot be read: {_message(error)}"
        fields = {"failure": failure, "text": f"an object of type {type(result).__name__}"}
    return Outcome(**fields, used_solution=bool(calls))


def _read(
    exercise: Exercise, case: Case, arguments: dict[str, Any], tracked: list[Tensor], result: Any
) -> dict[str, Any]:
    """Return the fields of the outcome that describe a result."""
    text = text_of(result)
    for name, value in case.arguments.items():
        if isinstance(value, Tensor) and not close(arguments[name].detach(), value):
            return {"changed": name, "text": text}
    several = len(exercise.returns) > 1
    if several and not (isinstance(result, tuple | list) and len(result) == len(exercise.returns)):
        wanted = ", ".join(exercise.returns)
        failure = f"Expected {len(exercise.returns)} results ({wanted}), got {text}."
        return {"failure": failure, "text": text}
    try:
        parts = tuple(_tensor(part) for part in (result if several else [result]))
    except (TypeError, ValueError, RuntimeError, RecursionError):
        return {"failure": f"Expected numbers or a tensor, got {text}.", "text": text}
    for name, part in zip(exercise.returns, parts, strict=True):
        if part.is_meta or part.layout is not torch.strided or part.is_complex():
            failure = f"Expected real numbers in an ordinary tensor, got {_kind(part)}."
            return {"failure": failure, "text": _kind(part)}
        if part.numel() > MOST_NUMBERS:
            failure = f"The {name} has the shape {list(part.shape)}, far more numbers than expected"
            return {"failure": f"{failure}: {part.numel():,}.", "text": text}
    found: dict[str, Any] = {"parts": tuple(p.detach().double().cpu() for p in parts), "text": text}
    if not tracked:
        return found
    if not parts[0].requires_grad:
        return {**found, "lost_gradient": True}
    # Different weights: errors in two entries cannot cancel.
    weights = torch.arange(1, parts[0].numel() + 1).to(parts[0]).view(parts[0].shape)
    try:
        gradients = torch.autograd.grad(
            (parts[0] * weights).sum(), tracked, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        return {"failure": f"The gradient could not be computed: {_message(error)}", "text": text}
    return {**found, "gradients": tuple(g.double().cpu() for g in gradients)}


def text_of(value: Any) -> str:
    """Format a value as a student would write it, with 4 digits; cut it where it gets long."""
    text = ""
    for piece in _pieces(value, depth=0):
        text += piece
        if len(text) > LONGEST_TEXT:
            return f"{text[:LONGEST_TEXT]} …"
    return text


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """Yield the text of a value piece by piece; a list may contain itself."""
    if isinstance(value, Tensor):
        is_ordinary = value.layout is torch.strided and not value.is_meta
        short = is_ordinary and value.numel() <= MOST_NUMBERS
        value = value.detach().cpu().tolist() if short else _kind(value)
        yield from _pieces(value, depth) if short else [value]
    elif isinstance(value, np.ndarray):
        yield from _pieces(
            torch.as_tensor(value) if value.size > MOST_NUMBERS else value.tolist(), 0
        )
    elif isinstance(value, bool | int):
        yield repr(value)
    elif isinstance(value, str):
        yield repr(value[:LONGEST_TEXT])
    elif isinstance(value, float):
        yield f"{value:.4g}"
    elif isinstance(value, list | tuple):
        start, end = "()" if isinstance(value, tuple) and len(value) != 1 else "[]"
        yield start
        for i, item in enumerate(value if depth < DEEPEST_LIST else ["…"]):
            yield ", " if i else ""
            yield from _pieces(item, depth + 1)
        yield end
    else:
        yield str(value)


def _kind(tensor: Tensor) -> str:
    """Describe a tensor whose values are not shown, such as a sparse or a very large one."""
    where = " on the meta device, without values" if tensor.is_meta else ""
    layout = "" if tensor.layout is torch.strided else f", {str(tensor.layout)[6:]}"
    return f"{shown(tensor)}{layout}{where}"


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _tensor(part: Any) -> Tensor:
    """Return a part of the result as a tensor; stacking a list of tensors keeps gradients."""
    if isinstance(part, tuple | list) and part and isinstance(part[0], Tensor):
        return torch.stack(list(part))
    return torch.as_tensor(part)


@contextmanager
def _calls_of(code: CodeType) -> Iterator[list[bool]]:
    """Add True to the list for each call of this code in this thread, under whatever name."""
    calls: list[bool] = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code is code:
            calls.append(True)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def _is_raised_in_python(error: BaseException) -> bool:
    """Return whether a `raise` raised it; torch's C code raises NotImplementedError too."""
    last = error.__traceback__
    if last is None:  # its class may be the student's
        return False
    while last.tb_next:
        last = last.tb_next
    return last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _message(error: BaseException) -> str:
    try:
        said = str(error)
    except BaseException:  # its class may be the student's
        said = "(its message cannot be shown)"
    return f"{type(error).__name__}: {said}"[:LONGEST_TEXT]


def where(error: BaseException) -> str:
    """Describe an error with the line of the student's code that raised it.

    The error must have been caught in the function that called this code.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own
    said = _message(error)
    if not frames:
        return f"The call failed with {said}. Does your function take the arguments of the example?"
    theirs = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    line = (theirs.line or linecache.getline(theirs.filename, theirs.lineno)).strip()
    return f"Line {theirs.lineno} of your code, `{line:.200}`, raised {said}"
