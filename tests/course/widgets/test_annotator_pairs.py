"""Which pair is asked about next: sampling, the least certain one, and pairs that are given."""

import numpy as np
import pytest
import torch

from rlhf_toy.course.widgets import annotator_pairs as module
from rlhf_toy.course.widgets.annotator_files import Pair
from rlhf_toy.course.widgets.annotator_pairs import (
    PairPool,
    check_pairs,
    least_sure,
    pair_differences,
    sample_pairs,
)
from rlhf_toy.course.widgets.taste import fit_taste, response_features
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator

WORLD = WordMDP()
PAIRS = [
    ("film", "very great", "dull"),
    ("nap", "good and loud", "not bad"),
    ("concert", "loud", "good but dull"),
]
POLICY = PolicyModel(GPTConfig.for_world(WORLD, n_embd=8, n_layer=1, n_head=1), make_generator(0))


def test_least_sure_is_where_the_interval_is_widest():
    d = np.array([[1.0, 0.0]] * 50)
    taste = fit_taste(d, [1, 0] * 25)  # the first weight is known to be about 0
    assert least_sure(taste, np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == 1


@pytest.mark.parametrize("policy", [None, POLICY])
def test_sampled_pairs_differ_and_the_global_random_state_stays(policy):
    state = torch.random.get_rng_state()
    pairs = sample_pairs(WORLD, 300, make_generator(0), policy)
    assert 250 < len(pairs) <= 300 and all(pair.left != pair.right for pair in pairs)
    assert {pair.prompt for pair in pairs} == set(WORLD.prompts)
    assert pairs == sample_pairs(WORLD, 300, make_generator(0), policy)
    assert pairs != sample_pairs(WORLD, 300, make_generator(1), policy)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_differences_are_left_minus_right_and_have_a_shape_without_pairs():
    left, right = (
        response_features(WORLD, torch.stack([WORLD.encode(row[side]) for row in PAIRS]))
        for side in (1, 2)
    )
    pairs = [Pair(*row) for row in PAIRS]
    np.testing.assert_array_equal(pair_differences(WORLD, pairs), left - right)
    assert pair_differences(WORLD, []).shape == (0, left.shape[1])


def test_given_pairs_are_asked_in_an_order_that_the_seed_decides():
    given = [("nap", a, b) for a in ("good", "bad", "dull") for b in ("great", "loud", "long")]
    orders = [PairPool(WORLD, make_generator(s), pairs=given).pairs for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert set(orders[0]) == {Pair(*row) for row in given}


def test_a_pool_is_used_up_or_filled_again(monkeypatch):
    monkeypatch.setattr(module, "POOL_SIZE", 3)
    for pool, ends in (
        (PairPool(WORLD, make_generator(0), pairs=PAIRS), True),
        (PairPool(WORLD, make_generator(0)), False),
    ):
        done = set()
        for _ in range(3):
            done.add(pool.choose(done).key)
        assert len(done) == 3
        assert (pool.choose(done) is None) is ends


def test_a_pool_chooses_where_the_fit_is_least_sure():
    pool = PairPool(WORLD, make_generator(0))
    taste = fit_taste(pool.differences[:20], [1.0] * 20)
    done = {pair.key for pair in pool.pairs[:20]}
    assert pool.choose(done) == pool.pairs[20]
    _, low, high = taste.predict(pool.differences)
    left = [i for i, pair in enumerate(pool.pairs) if pair.key not in done]
    assert pool.choose(done, taste) == pool.pairs[max(left, key=lambda i: (high - low)[i])]


def test_given_texts_are_written_as_the_world_writes_them():
    assert check_pairs(WORLD, [("nap", " good ", "")]) == [Pair("nap", "good", "")]


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (3, TypeError, "pairs must be a list"),
        ([], ValueError, "pairs is empty"),
        ([("nap", "good")], TypeError, r"pairs\[0\] must be three texts"),
        ([("nap", "good", 1)], TypeError, r"pairs\[0\] must be three texts"),
        ([PAIRS[0], ("weather", "good", "bad")], ValueError, r"pairs\[1\].*weather"),
        ([("nap", "sunny", "bad")], ValueError, "sunny"),
        ([("nap", "good", " good ")], ValueError, "twice"),
    ],
)
def test_pairs_that_cannot_be_asked_are_refused(pairs, error, message):
    with pytest.raises(error, match=message):
        check_pairs(WORLD, pairs)
