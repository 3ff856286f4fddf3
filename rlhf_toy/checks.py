"""Argument checks: each says what was given, what was expected, and raises before any work is done.

A wrong kind of thing is a TypeError, a wrong value of the right kind a ValueError.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


def shown(value: Any) -> str:
    """A value for an error message: tensors by shape, everything else by a short repr."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises a TypeError unless the value is of this kind; `expected` describes it in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")


def check_number(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises a TypeError or ValueError unless low ≤ value ≤ high and above < value < below.

    NaN and infinities are always refused, and so are booleans.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if math.isfinite(value) and low <= value <= high and above < value < below:
        return
    limits = [f"at least {low:g}"] if low > -math.inf else []
    limits += [f"above {above:g}"] if above > -math.inf else []
    limits += [f"at most {high:g}"] if high < math.inf else []
    limits += [f"below {below:g}"] if below < math.inf else []
    wanted = " ".join(["a finite number", " and ".join(limits)]).strip()
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def check_positive(**values: float) -> None:
    """Raises unless every value is a finite number above 0."""
    for name, value in values.items():
        check_number(name, value, above=0)


def check_count(name: str, value: int, low: int = 1, high: float = math.inf) -> None:
    """Raises a TypeError or ValueError unless the value is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        limit = f"at least {low}" if high == math.inf else f"an integer from {low} to {high}"
        raise ValueError(f"{name} must be {limit}, got {value!r}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a ValueError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {shown(value)}")


def check_texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the texts as a tuple; raises unless they are one or more, different, not empty."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a tuple or list of texts, got {shown(texts)}")
    if not texts:
        raise ValueError(f"{name} must hold at least one text")
    for text in texts:
        if not text.strip() or texts.count(text) > 1:
            raise ValueError(f"{name} must be different texts; {text!r} is empty or given twice")
    return tuple(texts)


def check_tensors(**tensors: Tensor) -> None:
    """Raises a TypeError unless every value is a tensor."""
    for name, tensor in tensors.items():
        check_type(name, tensor, Tensor, "a tensor")


def check_same_shape(**tensors: Tensor) -> None:
    """Raises a TypeError or ValueError unless all are tensors of one shape, and not empty."""
    check_tensors(**tensors)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        raise ValueError(f"these must have one shape, got {shapes}")
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        raise ValueError(f"there must be at least one entry, got {shapes}")


def check_ids(name: str, ids: Tensor, limit: int, dim: int) -> None:
    """Raises unless `ids` is a nonempty int64 tensor of `dim` dimensions with ids below `limit`."""
    check_tensors(**{name: ids})
    if ids.dtype != torch.long or ids.dim() != dim or ids.numel() == 0:
        raise ValueError(
            f"{name} must be a nonempty int64 tensor of {dim} dimension(s), got {shown(ids)}"
        )
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must be ids from 0 to {limit - 1}, got ids from {low} to {high}")


def check_distribution(name: str, logps: Tensor) -> None:
    """Raises unless each row (the last dimension) holds log-probabilities that sum to 1."""
    check_tensors(**{name: logps})
    if not logps.is_floating_point() or logps.dim() == 0:
        raise ValueError(f"{name} must hold log-probabilities, got {shown(logps)}")
    total = logps.double().logsumexp(-1)
    if not (total.abs() < 1e-4).all():  # NaN fails as well
        raise ValueError(
            f"{name} must be log-probabilities whose exponentials sum to 1 in every row; the "
            f"largest deviation of log-sums from 0 is {float(total.abs().max()):.3g}"
        )


def check_generator(generator: torch.Generator) -> None:
    """Raises a TypeError unless this is a torch generator: chance never comes from elsewhere."""
    check_type("generator", generator, torch.Generator, "a torch.Generator, see make_generator")
