"""Who answers: Bradley–Terry annotators, noisy ones, raters with scales of their own, and crowds.

An annotator knows the true rewards of two responses and says which it prefers. Rewards are in
logits; chance comes from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf_toy.losses import preference_probability


class Annotator(Protocol):
    """Whoever can be asked which of two responses is better."""

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """P(first ≻ second), exactly: [B], [B] → [B]."""

    def prefer(
        self, first_rewards: Tensor, second_rewards: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One answer for each pair: [B], [B] → bool [B], True where the first is preferred."""


class _Annotator:
    """Draws the answers of whoever knows their probability."""

    def prefer(
        self, first_rewards: Tensor, second_rewards: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One answer for each pair (L8).

        Args:
            first_rewards: [B] true rewards in logits.
            second_rewards: [B].
            generator: the source of chance, on the rewards' device.

        Returns:
            bool [B], True where the first response is preferred.

        Raises:
            ValueError: shapes differ, or rewards that are not finite.
        """
        probability = self.preference_probability(first_rewards, second_rewards)
        chance = torch.rand(
            probability.shape,
            generator=generator,
            dtype=probability.dtype,
            device=probability.device,
        )
        return chance < probability


def _check_rewards(first_rewards: Tensor, second_rewards: Tensor) -> None:
    """Raises a ValueError unless the rewards have one shape and are finite."""
    if first_rewards.shape != second_rewards.shape:
        raise ValueError(
            "first_rewards and second_rewards must have one shape, got "
            f"{list(first_rewards.shape)} and {list(second_rewards.shape)}"
        )
    if not (first_rewards.isfinite().all() and second_rewards.isfinite().all()):
        raise ValueError("rewards must be finite: nobody can compare inf or NaN")


def _check_annotator(annotator: Annotator) -> None:
    """Raises a TypeError unless this is somebody who can be asked."""
    if not hasattr(annotator, "preference_probability"):
        raise TypeError(f"expected an annotator such as BradleyTerryAnnotator(), got {annotator!r}")


def _check_number(name: str, number: float, low: float, high: float, open_low: bool) -> None:
    """Raises a TypeError or ValueError unless low ≤ number ≤ high (low < number if open)."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {number!r}")
    if not low <= number <= high or (open_low and number == low) or math.isinf(number):
        bracket = "above" if open_low else "at least"
        limit = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} must be finite, {bracket} {low:g}{limit}, got {number!r}")


@dataclass(frozen=True)
class BradleyTerryAnnotator(_Annotator):
    """Prefers the first with probability σ((r_1 − r_2) / temperature) (L7; Bradley & Terry 1952).

    Args:
        temperature: 1 for the lecture's annotator; near 0 it never errs, large it tosses a coin.

    Raises:
        TypeError, ValueError: the temperature is no finite number above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0, math.inf, open_low=True)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """P(first ≻ second): [B], [B] → [B]; a ValueError if the shapes differ."""
        _check_rewards(first_rewards, second_rewards)
        # The difference first: a reward over a tiny temperature overflows, and inf − inf is no tie.
        difference = (first_rewards - second_rewards) / self.temperature
        return preference_probability(difference, torch.zeros_like(difference))


@dataclass(frozen=True)
class NoisyAnnotator(_Annotator):
    """Another annotator whose answer is turned round with some probability, whatever the pair.

    Args:
        annotator: who answers.
        flip_probability: how often the answer is turned round, in [0, 1].

    Raises:
        TypeError, ValueError: no annotator, or the probability is no number in [0, 1].
    """

    annotator: Annotator
    flip_probability: float

    def __post_init__(self) -> None:
        _check_annotator(self.annotator)
        _check_number("flip_probability", self.flip_probability, 0, 1, open_low=False)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """p (1 − flip) + (1 − p) flip: [B], [B] → [B]; a ValueError if the shapes differ."""
        p = self.annotator.preference_probability(first_rewards, second_rewards)
        return p + self.flip_probability * (1 - 2 * p)


@dataclass(frozen=True)
class Rater(_Annotator):
    """A person with a scale of their own (L1; Goffin & Olson 2011).

    Asked for a rating from 0 to 10, they give offset + gain · (reward + noise · ε), ε ~ N(0, 1),
    rounded to their grid and kept within 0 … 10. Asked to compare, they hold two such impressions
    side by side; offset, gain and rounding play no part in that, since no scale is needed.

    Args:
        offset: the rating of a response of reward 0.
        gain: rating points per logit, above 0.
        noise: standard deviation of an impression, in logits, at least 0.
        rounding: distance of the grid's points, 1 for whole points, 0 for none.

    Raises:
        TypeError, ValueError: a number that is out of range.
    """

    offset: float = 5.0
    gain: float = 1.0
    noise: float = 1.0
    rounding: float = 1.0

    def __post_init__(self) -> None:
        _check_number("offset", self.offset, -math.inf, math.inf, open_low=False)
        _check_number("gain", self.gain, 0, math.inf, open_low=True)
        _check_number("noise", self.noise, 0, math.inf, open_low=False)
        _check_number("rounding", self.rounding, 0, 10, open_low=False)

    def rate(self, rewards: Tensor, generator: torch.Generator) -> Tensor:
        """Ratings from 0 to 10 of responses with true rewards [B]: [B]."""
        noise = torch.randn(
            rewards.shape, generator=generator, dtype=rewards.dtype, device=rewards.device
        )
        rating = self.offset + self.gain * (rewards + self.noise * noise)
        if self.rounding > 0:
            rating = (rating / self.rounding).round() * self.rounding
        return rating.clamp(0, 10)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Φ((r_1 − r_2) / (√2 noise)), 1/2 at a tie: [B], [B] → [B]; a ValueError on shapes."""
        _check_rewards(first_rewards, second_rewards)
        difference = first_rewards - second_rewards
        if self.noise == 0:
            return difference.sign() / 2 + 0.5
        return torch.special.ndtr(difference / (math.sqrt(2) * self.noise))


class Population(_Annotator):
    """Several annotators, of whom one drawn at random answers each question.

    Args:
        annotators: the members.
        weights: how often each is drawn, relative to the others; equally often by default.

    Raises:
        TypeError: a member that is no annotator.
        ValueError: nobody, or weights that are not as many, negative, or all zero.
    """

    def __init__(
        self, annotators: Sequence[Annotator], weights: Sequence[float] | None = None
    ) -> None:
        self.annotators = tuple(annotators)
        if not self.annotators:
            raise ValueError("a population needs at least one annotator")
        for annotator in self.annotators:
            _check_annotator(annotator)
        weights = [1.0] * len(self.annotators) if weights is None else list(weights)
        if len(weights) != len(self.annotators):
            raise ValueError(f"{len(self.annotators)} annotators need as many weights: {weights}")
        if not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
            raise ValueError(f"weights must be finite, at least 0 and not all 0, got {weights}")
        self.weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """The members' mixture: [B], [B] → [B]; a ValueError if the shapes differ."""
        probabilities = torch.stack(
            [a.preference_probability(first_rewards, second_rewards) for a in self.annotators]
        )
        weights = self.weights.to(probabilities)
        return torch.einsum("m,m...->...", weights, probabilities)

    def rate(self, rewards: Tensor, generator: torch.Generator) -> Tensor:
        """Ratings of responses with true rewards [B], each by a member drawn at random: [B].

        Raises:
            TypeError: some member is no `Rater`.
        """
        for annotator in self.annotators:
            if not isinstance(annotator, Rater):
                raise TypeError(f"only raters can rate, and {annotator!r} is none")
        weights = self.weights.to(rewards.device)
        member = torch.multinomial(
            weights, rewards.numel(), replacement=True, generator=generator
        ).view(rewards.shape)
        ratings = torch.stack([a.rate(rewards, generator) for a in self.annotators])
        return ratings.gather(0, member[None])[0]


def preference_ceiling(
    annotator: Annotator, first_rewards: Tensor, second_rewards: Tensor
) -> Tensor:
    """The best accuracy that anybody can reach on these pairs, in expectation: mean max(p, 1 − p).

    Args:
        annotator: who answers.
        first_rewards: [B] true rewards in logits.
        second_rewards: [B].

    Returns:
        scalar in [1/2, 1].

    Raises:
        ValueError: shapes differ.
    """
    p = annotator.preference_probability(first_rewards, second_rewards)
    return torch.maximum(p, 1 - p).mean()
