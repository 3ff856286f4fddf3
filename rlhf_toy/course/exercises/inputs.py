"""Inputs for the exercises' test cases: few digits, which keeps counterexamples readable."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.training import make_generator


def float64(*numbers: float | list[float]) -> Tensor:
    """Return a float64 tensor of these numbers or rows."""
    return torch.tensor(numbers, dtype=torch.float64)


def random_numbers(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    """Return normal draws of standard deviation `scale`, float64, rounded to one decimal."""
    draws = torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)
    return (10 * scale * draws).round() / 10


def random_logps(*shape: int, seed: int) -> Tensor:
    """Return log-probabilities of random distributions over the last dimension, float64."""
    draws = torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)
    return draws.log_softmax(-1)
