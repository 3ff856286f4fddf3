"""Argument checks: each says what was given, what was expected, and raises before any work is done.

A wrong kind of thing is a TypeError, a wrong value of the right kind a ValueError.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


def shown(value: Any) -> str:
    """Return a value for an error message: a tensor by its shape, the rest by a short repr."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = repr(value[:80]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise a TypeError unless the value is of this kind; `expected` describes it in words."""
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
    """Raise a TypeError or ValueError unless low ≤ value ≤ high and above < value < below.

    NaN and infinities are always refused, and so are booleans.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    finite = value.bit_length() < 1024 if isinstance(value, int) else math.isfinite(value)
    if finite and low <= value <= high and above < value < below:
        return
    limits = {"at least": low, "above": above, "at most": high, "below": below}
    wanted = " and ".join(f"{word} {x:g}" for word, x in limits.items() if math.isfinite(x))
    wanted = f"a finite number {wanted}".strip()
    raise ValueError(f"{name} must be {wanted}, got {shown(value)}")


def check_positive(**values: float) -> None:
    """Raise unless every value is a finite number above 0."""
    for name, value in values.items():
        check_number(name, value, above=0)


def check_count(name: str, value: int, low: int = 1, high: float = math.inf) -> None:
    """Raise a TypeError or ValueError unless the value is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        limit = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {limit}, got {shown(value)}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise a TypeError or ValueError unless the value is one of the choices, which are strings."""
    expected = f"one of {', '.join(map(repr, choices))}"
    check_type(name, value, str, expected)
    if value not in choices:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def check_texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts as a tuple; raise unless they are one or more, different, not empty."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a tuple or list of texts, got {shown(texts)}")
    if not texts:
        raise ValueError(f"{name} must hold at least one text")
    for text in texts:
        if not text.strip() or texts.count(text) > 1:
            raise ValueError(f"{name} must be different texts; {text!r} is empty or given twice")
    return tuple(texts)


def check_tensors(**tensors: Tensor) -> None:
    """Raise a TypeError unless every value is a tensor."""
    for name, tensor in tensors.items():
        check_type(name, tensor, Tensor, "a tensor")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a TypeError or ValueError unless all are tensors of one shape, and not empty."""
    check_tensors(**tensors)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        raise ValueError(f"these must have one shape, got {shapes}")
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        raise ValueError(f"there must be at least one entry, got {shapes}")


def check_shapes(known: Mapping[str, int] = {}, /, **tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Raise unless tensors have the given shapes, where one letter means one size everywhere.

    Args:
        known: the sizes of letters that are given from outside.
        tensors: each with its shape, as in `rewards=(rewards, "SA"), logps=(logps, "HSA")`.

    Returns:
        the size of each letter, at least 1.

    Raises:
        TypeError: not a tensor.
        ValueError: another number of dimensions, sizes that differ, or a size of 0.
    """
    check_tensors(**{name: tensor for name, (tensor, _) in tensors.items()})
    sizes = dict(known)
    fits = [
        tensor.dim() == len(letters)
        and all(sizes.setdefault(x, n) == n > 0 for x, n in zip(letters, tensor.shape, strict=True))
        for tensor, letters in tensors.values()
    ]
    if not all(fits):
        wanted = ", ".join(f"{name} [{', '.join(x)}]" for name, (_, x) in tensors.items())
        got = ", ".join(f"{name} {list(tensor.shape)}" for name, (tensor, _) in tensors.items())
        wanted += "".join(f", {letter} = {size}" for letter, size in known.items())
        raise ValueError(f"expected nonempty tensors {wanted}, got {got}")
    return sizes


def check_last_dimension(**tensors: Tensor) -> None:
    """Raise unless all are nonempty tensors with one last dimension whose shapes broadcast."""
    check_tensors(**tensors)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    try:
        torch.broadcast_shapes(*shapes.values())
        fits = len({tuple(shape[-1:]) for shape in shapes.values()}) == 1
    except RuntimeError:
        fits = False
    if not fits or any(shape == [] or 0 in shape for shape in shapes.values()):
        wanted = "that are not empty, broadcast, and have the same last dimension"
        raise ValueError(f"expected shapes {wanted}, got {shapes}")


def check_finite(**tensors: Tensor) -> None:
    """Raise a TypeError or ValueError unless every value is a tensor without NaN and infinity."""
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if bad := int((~tensor.isfinite()).sum()):
            got = f"NaN or infinity in {bad} of {tensor.numel()} entries"
            raise ValueError(f"{name} must be finite, got {got}")


def check_ids(name: str, ids: Tensor, limit: int, dim: int | None = None, low: int = 0) -> None:
    """Raise unless `ids` is a nonempty int64 tensor of ids from `low` to `limit` − 1.

    It must have `dim` dimensions; with None, any number of them.
    """
    check_tensors(**{name: ids})
    if ids.dtype != torch.long or dim not in (None, ids.dim()) or ids.numel() == 0:
        shape = "" if dim is None else f" of {dim} dimension(s)"
        raise ValueError(f"{name} must be a nonempty int64 tensor{shape}, got {shown(ids)}")
    least, most = map(int, torch.aminmax(ids))
    if least < low or most >= limit:
        wanted = f"ids from {low} to {limit - 1}"
        raise ValueError(f"{name} must be {wanted}, got ids from {least} to {most}")


def check_distribution(name: str, values: Tensor, log: bool = True) -> None:
    """Raise unless each row (the last dimension) holds log-probabilities that sum to 1.

    With `log=False` the rows hold the probabilities themselves.
    """
    check_tensors(**{name: values})
    kind = "log-probabilities whose exponentials" if log else "probabilities, at least 0, that"
    expected = f"{name} must hold {kind} sum to 1 in every row, got"
    if not values.is_floating_point() or values.dim() == 0 or values.numel() == 0:
        raise ValueError(f"{expected} {shown(values)}")
    p = values.double().exp() if log else values.double()
    sums = p.sum(-1)
    if not ((p >= 0).all() and ((sums - 1).abs() < 1e-4).all()):  # NaN fails as well
        got = f"sums from {sums.min():.5g} to {sums.max():.5g} and a least entry of {p.min():.5g}"
        raise ValueError(f"{expected} {got}")


def check_generator(generator: torch.Generator, device: torch.device | None = None) -> None:
    """Raise unless this is a torch generator, on the policy's device if that is given.

    Nothing falls back on torch's global generator.
    """
    check_type("generator", generator, torch.Generator, "a torch.Generator, see make_generator")
    if device is not None and generator.device.type != device.type:
        advice = "create it with make_generator(seed, policy.device)"
        raise ValueError(f"generator is on {generator.device} and the policy on {device}: {advice}")


def check_scores(scores: Tensor, prompts: Tensor) -> Tensor:
    """Return rewards [B] as float32; raise unless there is one finite number for each response."""
    n = len(prompts)
    if not isinstance(scores, Tensor) or scores.shape != prompts.shape:
        wanted = f"one number for each of {n} responses, a tensor [{n}]"
        raise ValueError(f"the reward function must return {wanted}, got {shown(scores)}")
    if not scores.isfinite().all():
        kept = "training stops here, and a checkpoint keeps the last state that was saved"
        raise ValueError(f"the reward function returned NaN or inf; {kept}")
    return scores.float()


def check_settings(settings: Any, **limits: Mapping[str, float] | Collection[str]) -> None:
    """Raise a TypeError or ValueError unless the fields of a dataclass are valid.

    What a field may hold follows from its type: an `int` is at least 1 and a `float` finite and
    above 0, or within their `limits`; a `bool` is True or False; a `str` whose `limits` are given
    is one of them. Other types are not checked.

    Args:
        settings: a trainer's settings, or another dataclass.
        limits: for fields with other limits, the arguments of `check_count` or `check_number`; for
            texts, the choices.
    """
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        kind = getattr(field.type, "__name__", str(field.type))  # the annotation, or its text
        if kind == "int":
            check_count(name, value, **limits.get(name, {}))
        elif kind == "bool":
            check_type(name, value, bool, "True or False")
        elif kind == "str" and name in limits:
            check_choice(name, value, limits[name])
        elif kind == "float" or (kind == "float | None" and value is not None):
            check_number(name, value, **limits.get(name, {"above": 0}))


def freeze(settings: Any, check: Callable[..., Any], *names: str, **limits: Any) -> None:
    """Replace fields of a frozen dataclass by what `check` returns for their names and values."""
    for name in names:
        object.__setattr__(settings, name, check(name, getattr(settings, name), **limits))
