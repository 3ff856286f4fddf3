"""Which pair of reviews to ask about next."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch

from rlhf_toy.checks import check_count, check_type, shown
from rlhf_toy.course.widgets.annotator_files import Pair
from rlhf_toy.course.widgets.taste import Taste, response_features
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import Policy
from rlhf_toy.sampling import sample

POOL_SIZE = 500  # pairs that are drawn ahead; the least certain one is chosen among them


def least_sure(taste: Taste, differences: np.ndarray) -> int:
    """Return the index of the pair for which the fit's 95 % interval is widest.

    That need not be where the fit predicts 50 %: a pair that is known to be a toss-up teaches
    little.

    Args:
        taste: the fit.
        differences: [N, F] features of the left minus those of the right, N at least 1.
    """
    _, low, high = taste.predict(differences)
    return int(np.argmax(high - low))


def sample_pairs(
    world: WordMDP, n: int, generator: torch.Generator, policy: Policy | None = None
) -> list[Pair]:
    """Sample n pairs of reviews of the same prompt, and leave out pairs of two equal reviews.

    Args:
        world: the world that the prompts come from.
        n: the number of pairs before equal reviews are left out.
        generator: the source of randomness, on the policy's device.
        policy: writes the reviews; None for the world's corpus of fluent reviews.

    Raises:
        TypeError, ValueError: n is not an integer of at least 1.
    """
    check_count("n", n)
    prompts = world.sample_prompts(n, generator)
    if policy is None:
        reviews, chances = world.fluent_reviews
        drawn = torch.multinomial(chances[prompts], 2, generator=generator)
        sides = reviews[drawn[:, 0]], reviews[drawn[:, 1]]
    else:
        both = sample(policy, world, prompts.repeat(2), generator).responses
        sides = both[:n].cpu(), both[n:].cpu()
    texts = [[world.decode(review) for review in side] for side in sides]
    names = [world.prompts[prompt] for prompt in prompts.tolist()]
    pairs = (Pair(*parts) for parts in zip(names, *texts, strict=True))
    return [pair for pair in pairs if pair.left != pair.right]


def pair_differences(world: WordMDP, pairs: Iterable[Pair]) -> np.ndarray:
    """Return the features of the left review minus those of the right: [N, F]."""
    pairs = list(pairs)
    texts = [pair.left for pair in pairs] + [pair.right for pair in pairs]
    # The empty text keeps the shape where there are no pairs.
    reviews = torch.stack([world.encode(text) for text in ["", *texts]])
    features = response_features(world, reviews)[1:]
    return features[: len(pairs)] - features[len(pairs) :]


def check_pairs(world: WordMDP, pairs: Iterable[tuple[str, str, str]]) -> list[Pair]:
    """Return the given pairs, each text as the world writes it.

    Raises:
        TypeError: one that is not three texts.
        ValueError: no pair, one that this world does not have, or one with two equal responses.
    """
    check_type("pairs", pairs, Iterable, "a list of (prompt, left, right)")
    checked = []
    for k, row in enumerate(pairs):
        is_row = isinstance(row, tuple | list) and len(row) == 3
        if not is_row or not all(isinstance(text, str) for text in row):
            raise TypeError(
                f"pairs[{k}] must be three texts, (prompt, left, right), got {shown(row)}"
            )
        try:
            world.prompt_index(row[0])
            texts = [world.decode(world.encode(text)) for text in row[1:]]
        except ValueError as error:
            raise ValueError(f"pairs[{k}]: {error}") from None
        if texts[0] == texts[1]:
            raise ValueError(f"pairs[{k}] has the same response twice, {texts[0]!r}: give two")
        checked.append(Pair(row[0], *texts))
    if not checked:
        raise ValueError("pairs is empty: give at least one (prompt, left, right)")
    return checked


class PairPool:
    """Pairs to ask about: given ones in random order, or sampled ones without end.

    Args:
        world: the world of the reviews.
        generator: the source of randomness, on the policy's device.
        policy: writes the reviews; None for the world's corpus of fluent reviews.
        pairs: (prompt, left, right) as texts, to be asked about instead.

    Attributes:
        pairs: those that are ready.
        differences: [N, F] their features, left minus right.

    Raises:
        TypeError, ValueError: pairs that `check_pairs` refuses.
    """

    def __init__(
        self,
        world: WordMDP,
        generator: torch.Generator,
        policy: Policy | None = None,
        pairs: Iterable[tuple[str, str, str]] | None = None,
    ) -> None:
        self._world, self._generator, self._policy = world, generator, policy
        self._is_sampled = pairs is None
        if pairs is None:
            self._sample()
        else:
            given = check_pairs(world, pairs)
            order = torch.randperm(len(given), generator=generator)
            self._fill([given[i] for i in order.tolist()])

    def choose(self, done: Collection[tuple], taste: Taste | None = None) -> Pair | None:
        """Return the next pair, or None if no pair is left.

        Args:
            done: keys of the pairs that were already asked about.
            taste: the fit; the pair is chosen where it is least sure. None: the first of the pool.
        """
        rows = self._left(done)
        if not rows and self._is_sampled:
            self._sample()
            rows = self._left(done)
        if not rows:
            return None
        best = 0 if taste is None else least_sure(taste, self.differences[rows])
        return self.pairs[rows[best]]

    def _left(self, done: Collection[tuple]) -> list[int]:
        return [i for i, pair in enumerate(self.pairs) if pair.key not in done]

    def _sample(self) -> None:
        self._fill(sample_pairs(self._world, POOL_SIZE, self._generator, self._policy))

    def _fill(self, pairs: list[Pair]) -> None:
        self.pairs, self.differences = pairs, pair_differences(self._world, pairs)
