"""The worlds that the command line knows by name: different, and small enough to enumerate."""

import pytest

from rlhf_toy.course.worlds import DISHES, WORLDS
from rlhf_toy.envs import REVIEWS, WordMDP


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_can_be_enumerated_and_has_a_corpus(name):
    world = WordMDP(WORLDS[name])
    assert sum(world.n_words**length for length in range(world.max_length + 1)) <= 200_000
    reviews, _ = world.fluent_reviews
    assert len(reviews) >= 100 and len(set(world.prompts)) >= 3
    assert {len(world.decode(review).split()) for review in reviews} >= {1, 2, 3, 4}


def test_the_second_world_differs_in_subject_and_in_every_size():
    assert WORLDS["reviews"] == REVIEWS and WORLDS["dishes"] == DISHES
    assert not {*DISHES.prompts, *DISHES.adjectives} & {*REVIEWS.prompts, *REVIEWS.adjectives}
    for field in ("prompts", "adjectives", "intensifiers"):
        assert len(getattr(DISHES, field)) != len(getattr(REVIEWS, field))
    assert DISHES.max_length != REVIEWS.max_length
