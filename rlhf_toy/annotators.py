"""Who answers: Bradley–Terry annotators, noisy ones, raters with their own scales, and crowds.

An annotator knows the true rewards of two responses and says which one it prefers. Rewards are in
logits; randomness comes from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.losses import preference_probability


class Annotator(Protocol):
    """Anyone or anything that can be asked which of two responses is better.

    Subclasses implement `preference_probability`.
    """

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Return P(first ≻ second), exactly: [B], [B] → [B]; raises what `prefer` does."""

    def prefer(
        self, first_rewards: Tensor, second_rewards: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return one sampled answer for each pair.

        Args:
            first_rewards: [B] true rewards in logits.
            second_rewards: [B].
            generator: the source of randomness, on the rewards' device.

        Returns:
            bool [B], True where the first response is preferred.

        Raises:
            TypeError: rewards that are not tensors, or a generator that is not torch's.
            ValueError: shapes that differ, no pair, or rewards that are not finite.
        """
        checks.check_generator(generator)
        p = self.preference_probability(first_rewards, second_rewards)
        return torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device) < p


def _check_rewards(first_rewards: Tensor, second_rewards: Tensor) -> None:
    checks.check_same_shape(first_rewards=first_rewards, second_rewards=second_rewards)
    checks.check_finite(first_rewards=first_rewards, second_rewards=second_rewards)


def check_annotator(annotator: Annotator) -> None:
    """Raise a TypeError unless this is an annotator; its class alone is not one."""
    if isinstance(annotator, type) or not hasattr(annotator, "preference_probability"):
        got = checks.shown(annotator)
        raise TypeError(f"annotator must be one such as BradleyTerryAnnotator(), got {got}")


@dataclass(frozen=True)
class BradleyTerryAnnotator(Annotator):
    """Prefers the first with probability σ((r_1 − r_2) / temperature); Bradley & Terry 1952.

    Args:
        temperature: 1 is the usual model. Near 0 the better response always wins; a large value
            turns every answer into a coin toss.

    Raises:
        TypeError, ValueError: the temperature is not a finite number above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks.check_positive(temperature=self.temperature)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Return P(first ≻ second): [B], [B] → [B]; raises what `prefer` does."""
        _check_rewards(first_rewards, second_rewards)
        # Subtract before dividing: with a tiny temperature the quotients overflow to inf − inf.
        difference = (first_rewards - second_rewards) / self.temperature
        return preference_probability(difference, torch.zeros_like(difference))


@dataclass(frozen=True)
class NoisyAnnotator(Annotator):
    """Another annotator whose answer is reversed with a fixed probability, whatever the pair.

    Args:
        annotator: the one who answers.
        flip_probability: how often the answer is reversed, in [0, 1].

    Raises:
        TypeError, ValueError: not an annotator, or the probability is not a number in [0, 1].
    """

    annotator: Annotator
    flip_probability: float

    def __post_init__(self) -> None:
        check_annotator(self.annotator)
        checks.check_number("flip_probability", self.flip_probability, low=0, high=1)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Return p (1 − flip) + (1 − p) flip: [B], [B] → [B]; raises what `prefer` does."""
        p = self.annotator.preference_probability(first_rewards, second_rewards)
        return p + self.flip_probability * (1 - 2 * p)


@dataclass(frozen=True)
class Rater(Annotator):
    """A person with their own rating scale (Goffin & Olson 2011).

    Asked for a rating from 0 to 10, they give offset + gain · (reward + noise · ε), ε ~ N(0, 1),
    rounded to their grid and clipped to 0 … 10. Asked to compare, they compare two such
    impressions; offset, gain and rounding do not matter then, because no scale is needed.

    Args:
        offset: the rating of a response of reward 0.
        gain: rating points per logit, above 0.
        noise: standard deviation of an impression, in logits, at least 0.
        rounding: spacing of the rating grid, from 0 (no rounding) to 10; 1 for whole points.

    Raises:
        TypeError, ValueError: a field that is not a number or is out of range.
    """

    offset: float = 5.0
    gain: float = 1.0
    noise: float = 1.0
    rounding: float = 1.0

    def __post_init__(self) -> None:
        checks.check_settings(self, offset={}, noise={"low": 0}, rounding={"low": 0, "high": 10})

    def rate(self, rewards: Tensor, generator: torch.Generator) -> Tensor:
        """Return ratings from 0 to 10 of responses with true rewards [B], in logits: [B].

        Raises:
            TypeError: rewards that are not a tensor, or a generator that is not torch's.
            ValueError: rewards that are not finite.
        """
        checks.check_finite(rewards=rewards)
        checks.check_generator(generator)
        noise = torch.randn(
            rewards.shape, generator=generator, dtype=rewards.dtype, device=rewards.device
        )
        rating = self.offset + self.gain * (rewards + self.noise * noise)
        if self.rounding > 0:
            rating = (rating / self.rounding).round() * self.rounding
        return rating.clamp(0, 10)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Return Φ((r_1 − r_2) / (√2 noise)), 1/2 at a tie: [B], [B] → [B]; raises as `prefer`."""
        _check_rewards(first_rewards, second_rewards)
        difference = first_rewards - second_rewards
        if self.noise == 0:
            return difference.sign() / 2 + 0.5
        return torch.special.ndtr(difference / (math.sqrt(2) * self.noise))


class Population(Annotator):
    """Several annotators; each question is answered by one of them, drawn at random.

    Args:
        annotators: the members.
        weights: how often each is drawn, relative to the others; equally often by default.

    Raises:
        TypeError: a member that is not an annotator, or a weight that is not a number.
        ValueError: no member, not one weight for each, negative weights, or none above 0.
    """

    def __init__(
        self, annotators: Iterable[Annotator], weights: Iterable[float] | None = None
    ) -> None:
        checks.check_type("annotators", annotators, Iterable, "a list of annotators")
        self.annotators = tuple(annotators)
        if not self.annotators:
            raise ValueError("annotators must have at least one member, got an empty list")
        for annotator in self.annotators:
            check_annotator(annotator)
        weights = [1.0] * len(self.annotators) if weights is None else weights
        checks.check_type("weights", weights, Iterable, "a list of numbers or None")
        weights = list(weights)
        for weight in weights:
            checks.check_number("every weight", weight, low=0)
        if len(weights) != len(self.annotators) or sum(weights) == 0:
            wanted = f"{len(self.annotators)} numbers, one for each annotator, and not all 0"
            raise ValueError(f"weights must be {wanted}, got {checks.shown(weights)}")
        self.weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def preference_probability(self, first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
        """Return the members' weighted mean: [B], [B] → [B]; raises what `prefer` does."""
        probabilities = torch.stack(
            [a.preference_probability(first_rewards, second_rewards) for a in self.annotators]
        )
        weights = self.weights.to(probabilities)
        return torch.einsum("m,m...->...", weights, probabilities)

    def rate(self, rewards: Tensor, generator: torch.Generator) -> Tensor:
        """Return ratings of responses with true rewards [B], each by a random member: [B].

        Raises:
            TypeError: a member that is not a `Rater`; otherwise as for `Rater.rate`.
            ValueError: no rewards, or as for `Rater.rate`.
        """
        for annotator in self.annotators:
            checks.check_type("every member", annotator, Rater, "a Rater, as only raters can rate")
        checks.check_same_shape(rewards=rewards)
        checks.check_generator(generator)
        weights, n = self.weights.to(rewards.device), rewards.numel()
        member = torch.multinomial(weights, n, True, generator=generator).view(rewards.shape)
        ratings = torch.stack([a.rate(rewards, generator) for a in self.annotators])
        return ratings.gather(0, member[None])[0]


def preference_ceiling(
    annotator: Annotator, first_rewards: Tensor, second_rewards: Tensor
) -> Tensor:
    """Return the highest expected accuracy any predictor can reach on these pairs.

    It is mean max(p, 1 − p), where p = P(first ≻ second).

    Args:
        annotator: the one who answers.
        first_rewards: [B] true rewards in logits.
        second_rewards: [B].

    Returns:
        scalar in [1/2, 1].

    Raises:
        TypeError: not an annotator, or rewards that are not tensors.
        ValueError: shapes that differ, no pair, or rewards that are not finite.
    """
    check_annotator(annotator)
    p = annotator.preference_probability(first_rewards, second_rewards)
    return torch.maximum(p, 1 - p).mean()
