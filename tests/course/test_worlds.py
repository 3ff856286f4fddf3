"""The worlds that the command line knows by name: different, and small enough to enumerate."""

from itertools import combinations

import pytest

from rlhf_toy.course.worlds import WORLDS
from rlhf_toy.envs import WordMDP, WordSpec

SHORT = {name: spec for name, spec in WORLDS.items() if isinstance(spec, WordSpec)}


@pytest.mark.parametrize("name", SHORT)
def test_every_world_can_be_enumerated_and_has_a_corpus(name):
    world = WordMDP(WORLDS[name])
    assert sum(world.n_words**length for length in range(world.max_length + 1)) <= 200_000
    reviews, _ = world.fluent_reviews
    assert len(reviews) >= 100 and world.n_prompts >= 3
    assert len({len(world.decode(review).split()) for review in reviews}) >= 2


def test_no_world_is_listed_under_two_names():
    fingerprints = [WordMDP(spec).fingerprint for spec in SHORT.values()]
    assert len(set(fingerprints)) == len(SHORT)


def differ_in_every_size(one: WordSpec, other: WordSpec) -> bool:
    kinds = ("prompts", "adjectives", "intensifiers")
    sizes = [(len(getattr(one, kind)), len(getattr(other, kind))) for kind in kinds]
    return all(a != b for a, b in [*sizes, (one.max_length, other.max_length)])


def test_some_two_worlds_differ_in_words_and_in_every_size():
    """Otherwise code could rely on the words or sizes of one world, and no test would notice."""
    assert any(
        differ_in_every_size(one, other)
        and not {*one.prompts, *one.adjectives} & {*other.prompts, *other.adjectives}
        for one, other in combinations(SHORT.values(), 2)
    )
