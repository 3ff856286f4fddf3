"""What several claims share."""

import numpy as np
import pytest
import torch

from rlhf_toy.course.claims.parts import (
    comparison_loss,
    draw_wins,
    expected_wins,
    interval,
    lowest,
)
from rlhf_toy.losses import bradley_terry_loss, preference_probability

REWARDS = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_expected_wins_are_those_of_pairs_of_two_different_responses():
    wins = expected_wins(REWARDS, REFERENCE)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    total = sum(REFERENCE[i] * REFERENCE[j] for i, j in pairs)
    for i, j in pairs:
        asked = 2 * REFERENCE[i] * REFERENCE[j] / total
        assert wins[i, j] == pytest.approx(
            float(asked * preference_probability(REWARDS[[i]], REWARDS[[j]]))
        )
    assert wins.diag().sum() == 0 and float(wins.sum()) == pytest.approx(1.0)


def test_drawn_wins_are_as_many_as_asked_and_close_to_the_expected_ones():
    wins = draw_wins(REWARDS, REFERENCE, 100_000, np.random.default_rng(0))
    assert wins.sum() == 100_000
    torch.testing.assert_close(wins / 1e5, expected_wins(REWARDS, REFERENCE), atol=0.005, rtol=0)


def test_the_loss_of_comparisons_is_bradley_terry_s():
    wins = expected_wins(REWARDS, REFERENCE)
    i, j = torch.where(wins > 0)
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    expected = bradley_terry_loss(scores[i], scores[j], wins[i, j])
    torch.testing.assert_close(comparison_loss(scores, wins), expected)
    ridge = comparison_loss(scores, wins, ridge=2.0) - expected
    assert float(ridge) == pytest.approx(2 * 2 * float(scores.var(correction=0)) * 1.5)


def test_the_lowest_loss_of_endless_comparisons_is_at_the_true_rewards():
    wins = expected_wins(REWARDS, REFERENCE)
    fitted = lowest(torch.eye(3, dtype=torch.float64), lambda s: comparison_loss(s, wins))
    torch.testing.assert_close(fitted - fitted.mean(), REWARDS - REWARDS.mean(), atol=1e-5, rtol=0)


def test_the_start_decides_which_minimum_is_found():
    features = torch.ones(1, 1, dtype=torch.float64)

    def two_minima(scores):
        return ((scores**2 - 1) ** 2).sum()

    for side in (-0.5, 0.5):
        start = torch.tensor([side], dtype=torch.float64)
        found = lowest(features, two_minima, start)
        assert float(found) == pytest.approx(2 * side, abs=1e-5)


def test_the_interval_is_that_of_a_mean():
    mean, half = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(1.96 * np.sqrt(5 / 3 / 4))
