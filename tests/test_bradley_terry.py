"""Bradley–Terry on a table: against an independent library, and errors that are as stated."""

import choix
import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from scipy.optimize import brentq
from scipy.special import expit

from rlhf_toy.bradley_terry import fit_bradley_terry
from rlhf_toy.losses import bradley_terry_loss

TRUE_REWARDS = np.array([1.0, 0.3, 0.0, -0.4, -0.9])


def comparisons(seed, n=400, rewards=TRUE_REWARDS):
    """Winners and losers [n] of random pairs, answered as Bradley–Terry says."""
    rng = np.random.default_rng(seed)
    first = rng.integers(len(rewards), size=n)
    second = (first + rng.integers(1, len(rewards), size=n)) % len(rewards)
    first_wins = rng.random(n) < expit(rewards[first] - rewards[second])
    return np.where(first_wins, first, second), np.where(first_wins, second, first)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maximum_likelihood_agrees_with_choix(seed):
    winners, losers = comparisons(seed)
    rewards, _ = fit_bradley_terry(winners, losers, 5)
    pairs = list(zip(winners.tolist(), losers.tolist(), strict=True))
    by_hessian = choix.opt_pairwise(5, pairs, alpha=0, tol=1e-10)
    by_spectrum = choix.ilsr_pairwise(5, pairs, alpha=0)
    np.testing.assert_allclose(rewards, by_hessian - by_hessian.mean(), atol=1e-6)
    np.testing.assert_allclose(rewards, by_spectrum - by_spectrum.mean(), atol=1e-6)
    assert abs(rewards.mean()) < 1e-12


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_penalised_likelihood_agrees_with_choix(l2):
    winners, losers = comparisons(3, n=60)
    rewards, _ = fit_bradley_terry(winners, losers, 5, l2=l2)
    pairs = list(zip(winners.tolist(), losers.tolist(), strict=True))
    expected = choix.opt_pairwise(5, pairs, alpha=l2, tol=1e-12)  # alpha · Σ r², like ours
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    assert abs(rewards.mean()) < 1e-12


def test_two_items_have_the_log_odds_between_them():
    rewards, errors = fit_bradley_terry([1] * 30 + [0] * 10, [0] * 30 + [1] * 10, 2)
    np.testing.assert_allclose(rewards, [-np.log(3) / 2, np.log(3) / 2])
    # The log-odds of 30 : 10 has variance 1/30 + 1/10; each reward is half of it.
    np.testing.assert_allclose(errors, np.sqrt(1 / 30 + 1 / 10) / 2)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_standard_errors_come_from_the_curvature_within_mean_zero(l2):
    winners, losers = comparisons(4)
    rewards, errors = fit_bradley_terry(winners, losers, 5, l2=l2)
    winners, losers = torch.from_numpy(winners), torch.from_numpy(losers)

    def loss(r):
        return len(winners) * bradley_terry_loss(r[winners], r[losers]) + l2 * (r**2).sum()

    hessian = torch.autograd.functional.hessian(loss, torch.from_numpy(rewards)).numpy()
    basis = null_space(np.ones((1, 5)))
    covariance = basis @ np.linalg.inv(basis.T @ hessian @ basis) @ basis.T
    np.testing.assert_allclose(errors, np.sqrt(np.diag(covariance)), rtol=1e-6)


def test_standard_errors_are_the_spread_over_many_data_sets():
    fits = [fit_bradley_terry(*comparisons(seed, n=1000), 5) for seed in range(200)]
    rewards, errors = (np.array(part) for part in zip(*fits, strict=True))
    np.testing.assert_allclose(rewards.std(0), errors.mean(0), rtol=0.25)  # five sigma
    z = (rewards.mean(0) - (TRUE_REWARDS - TRUE_REWARDS.mean())) / (errors.mean(0) / 200**0.5)
    assert np.abs(z).max() < 5


def test_errors_fall_with_the_square_root_of_the_number_of_comparisons():
    winners, losers = comparisons(5)
    rewards, errors = fit_bradley_terry(winners, losers, 5)
    again, halved = fit_bradley_terry(np.tile(winners, 4), np.tile(losers, 4), 5)
    np.testing.assert_allclose(again, rewards, atol=1e-8)
    np.testing.assert_allclose(halved, errors / 2)


def test_many_comparisons_of_many_items_converge():
    truth = np.linspace(-3, 3, 40)
    rewards, errors = fit_bradley_terry(*comparisons(6, n=200_000, rewards=truth), 40)
    assert np.abs((rewards - truth) / errors).max() < 5


@pytest.mark.parametrize("l2", [1e-100, 1e-14, 1e-3, 1e6])
@pytest.mark.parametrize("n", [1, 1_000_000])
def test_two_items_of_which_one_always_wins_meet_their_equation(n, l2):
    rewards, errors = fit_bradley_terry([0] * n, [1] * n, 2, l2)
    # With rewards ±d/2: n σ(−d) = l2 d, whose two sides differ by hundreds of powers of ten.
    d = brentq(lambda d: np.log(n) - np.logaddexp(0, d) - np.log(l2 * d), 1e-12, 700, xtol=1e-15)
    np.testing.assert_allclose(rewards, [d / 2, -d / 2], rtol=1e-6)
    curvature = n * expit(d) * expit(-d) + l2  # of the difference d: Var(d) = 1 / curvature
    np.testing.assert_allclose(errors, 1 / np.sqrt(4 * curvature), rtol=1e-5)


def test_a_chain_that_only_a_small_penalty_holds_together_is_solved():
    winners, losers, l2 = np.arange(40), np.arange(40) + 1, 1e-6
    rewards, _ = fit_bradley_terry(np.tile(winners, 100), np.tile(losers, 100), 41, l2)
    pull = 100 * expit(rewards[losers] - rewards[winners])
    gradient = 2 * l2 * rewards
    gradient[:-1] -= pull
    gradient[1:] += pull
    assert np.ptp(rewards) > 400
    assert np.abs(gradient).max() < 1e-12


def test_a_penalty_that_float64_cannot_resolve_is_refused():
    winners = np.repeat([0, 1, 0], [10**6, 10**6, 1])  # two of equal skill, and one that lost once
    losers = np.repeat([1, 0, 2], [10**6, 10**6, 1])
    with pytest.raises(ValueError, match="need a larger l2 than 1e-16 to be fitted"):
        fit_bradley_terry(winners, losers, 3, l2=1e-16)
    fit_bradley_terry(winners, losers, 3, l2=1e-6)


@pytest.mark.parametrize(
    ("winners", "losers", "n_items"),
    [
        ([0], [1], 2),  # one always wins
        ([0, 1, 0, 1, 1], [1, 0, 2, 2, 2], 3),  # one never wins
        ([0, 1, 2, 3], [1, 0, 3, 2], 4),  # two islands
        ([0, 1], [1, 0], 3),  # one was never compared
        ([0, 1, 2, 3, 0], [1, 0, 3, 2, 2], 4),  # a bridge that is crossed one way only
    ],
)
def test_data_without_a_finite_maximum_are_refused_unless_penalised(winners, losers, n_items):
    with pytest.raises(ValueError, match="no finite maximum-likelihood value"):
        fit_bradley_terry(winners, losers, n_items)
    rewards, errors = fit_bradley_terry(winners, losers, n_items, l2=0.1)
    assert np.isfinite(rewards).all() and (errors > 0).all()
    assert rewards.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("winners", "losers", "got"),
    [([0, 3], [1, 0], "from 0 to 3"), ([0, 1], [1, -1], "from -1 to 1")],
)
def test_indices_that_are_no_items_are_refused(winners, losers, got):
    with pytest.raises(ValueError, match=f"must be ids from 0 to 2, got ids {got}"):
        fit_bradley_terry(winners, losers, 3)


@pytest.mark.parametrize("winners", [[0.0, 1.0], ["a", "b"], [True, False], [None, 1]])
def test_indices_that_are_no_integers_are_refused(winners):
    with pytest.raises(TypeError, match="winners and losers must be integers"):
        fit_bradley_terry(winners, [1, 0], 3)


def test_integers_of_any_kind_will_do():
    winners, losers = comparisons(7)
    expected = fit_bradley_terry(winners, losers, 5)
    for dtype in (np.int8, np.uint64):
        got = fit_bradley_terry(winners.astype(dtype), torch.from_numpy(losers), 5)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("winners", "losers"), [([], []), ([0, 1], [1]), ([[0, 1]], [[1, 0]]), (0, 1)]
)
def test_lists_that_are_no_comparisons_are_refused(winners, losers):
    with pytest.raises(ValueError, match="lists of one length, at least 1"):
        fit_bradley_terry(winners, losers, 2)


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError, match="winners and losers must be lists of item indices"):
        fit_bradley_terry([[0, 1], [1]], [1, 0], 2)


@pytest.mark.parametrize("l2", [-1.0, np.nan, np.inf])
def test_a_penalty_must_be_a_finite_number_of_at_least_0(l2):
    with pytest.raises(ValueError, match="l2 must be a finite number"):
        fit_bradley_terry([0, 1], [1, 0], 2, l2=l2)
