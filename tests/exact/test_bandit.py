"""The bandit's formulas: each theorem in numbers, and against an independent way to compute it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import betas, float64, random_inputs, seeds
from scipy.optimize import minimize
from torch.testing import assert_close

from rlhf_toy.exact import (
    expected_reward,
    gibbs_policy,
    kl_divergence,
    log_partition,
    objective,
)


def random_problem(seed, shape=(3, 6), scale=1.0):
    """log π_ref, rewards and an arbitrary log π, each [X, Y]."""
    generator = torch.Generator().manual_seed(seed)
    ref, rewards, other = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    return ref.log_softmax(-1), scale * rewards, (3 * other).log_softmax(-1)


# KL


def test_kl_by_hand():
    p, q = float64([0.5, 0.5], [1.0, 0.0]).log(), float64([0.25, 0.75], [0.5, 0.5]).log()
    assert_close(kl_divergence(p, q), float64(0.5 * math.log(4 / 3), math.log(2)))


def test_kl_is_infinite_where_q_misses_what_p_has_and_only_there():
    p = float64([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]).log()
    q = float64([1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]).log()
    assert kl_divergence(p, q).tolist() == [math.inf, math.log(2), 0.0]


@given(seeds)
@random_inputs
def test_kl_is_above_0_between_different_distributions_and_0_between_equal_ones(seed):
    p, _, q = random_problem(seed)
    assert (kl_divergence(p, q) > 0).all()
    assert (kl_divergence(p, p) == 0).all()
    assert_close(kl_divergence(p[0], q), torch.stack([kl_divergence(p[0], row) for row in q]))


def test_kl_has_finite_gradients_beside_zero_probabilities():
    logp = float64(0.5, 0.5, 0.0).log().requires_grad_()
    logq = float64(0.2, 0.8, 0.0).log()
    (grad,) = torch.autograd.grad(kl_divergence(logp, logq), logp)
    assert grad.isfinite().all()


# The Gibbs optimum


@given(seeds, betas)
@random_inputs
def test_the_distance_to_the_optimum_is_beta_kl(seed, beta):
    ref_logps, rewards, logps = random_problem(seed)
    best = gibbs_policy(ref_logps, rewards, beta)
    for policy in (logps, ref_logps):
        gap = objective(best, ref_logps, rewards, beta) - objective(
            policy, ref_logps, rewards, beta
        )
        expected = beta * kl_divergence(policy, best)
        assert_close(gap, expected, rtol=1e-9, atol=1e-10 * (1 + beta))


@given(seeds, betas)
@random_inputs
def test_the_largest_objective_is_beta_log_z(seed, beta):
    ref_logps, rewards, _ = random_problem(seed)
    best = gibbs_policy(ref_logps, rewards, beta)
    log_z = log_partition(ref_logps, rewards, beta)
    assert_close(best.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert_close(objective(best, ref_logps, rewards, beta), beta * log_z, atol=1e-9, rtol=1e-9)


def test_gibbs_by_hand():
    ref_logps, rewards = float64(0.75, 0.25).log(), float64(0.0, math.log(3))
    # At β = 1, Z = 3/4 + 3/4; at β = 1/2 the rewards count double, and Z = 3/4 + 9/4.
    assert log_partition(ref_logps, rewards, 1).item() == pytest.approx(math.log(1.5))
    assert_close(gibbs_policy(ref_logps, rewards, 1).exp(), float64(0.5, 0.5))
    assert log_partition(ref_logps, rewards, 0.5).item() == pytest.approx(math.log(3))
    assert_close(gibbs_policy(ref_logps, rewards, 0.5).exp(), float64(0.25, 0.75))
    assert objective(ref_logps, ref_logps, rewards, 7).item() == pytest.approx(math.log(3) / 4)


@given(seeds, betas)
@random_inputs
def test_the_optimum_is_stationary_with_the_multiplier_of_the_proof(seed, beta):
    ref_logps, rewards, _ = random_problem(seed)
    logps = gibbs_policy(ref_logps, rewards, beta)
    multiplier = beta - beta * log_partition(ref_logps, rewards, beta)
    stationary = rewards - beta * (logps - ref_logps + 1) + multiplier[:, None]
    assert stationary.abs().max() < 1e-9 * (1 + beta)


@given(seeds, st.floats(0.1, 1e3))
@random_inputs
def test_the_multiplier_cancels_the_gradient_of_the_objective_at_the_optimum(seed, beta):
    ref_logps, rewards, _ = random_problem(seed)
    logps = gibbs_policy(ref_logps, rewards, beta)
    multiplier = beta - beta * log_partition(ref_logps, rewards, beta)
    probabilities = logps.exp().requires_grad_()
    J = objective(probabilities.log(), ref_logps, rewards, beta).sum()
    (slope,) = torch.autograd.grad(J, probabilities)
    assert (slope + multiplier[:, None]).abs().max() < 1e-8 * (1 + beta)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_independent_optimiser_finds_the_same_optimum(seed, beta):
    ref_logps, rewards, _ = random_problem(seed, shape=(5,))

    def loss(theta):
        theta = torch.from_numpy(theta).requires_grad_()
        p = theta.softmax(-1)
        J = (p * rewards).sum() - beta * (p * (p / ref_logps.exp()).log()).sum()
        (-J / beta).backward()
        return -J.item() / beta, theta.grad.numpy()

    found = minimize(loss, torch.zeros(5).double().numpy(), jac=True, method="BFGS", tol=1e-9)
    best = gibbs_policy(ref_logps, rewards, beta)
    assert_close(torch.from_numpy(found.x).softmax(-1), best.exp(), rtol=0, atol=1e-5)
    assert -found.fun == pytest.approx(log_partition(ref_logps, rewards, beta).item())


def test_an_optimiser_over_the_simplex_finds_the_same_optimum():
    ref_logps, rewards, _ = random_problem(2, shape=(4,))
    ref = ref_logps.exp().numpy()
    found = minimize(
        lambda p: (
            -(p @ rewards.numpy()) + 0.5 * (p * torch.from_numpy(p / ref).log().numpy()).sum()
        ),
        ref,
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-14},
    )
    best = gibbs_policy(ref_logps, rewards, 0.5)
    assert_close(torch.from_numpy(found.x), best.exp(), rtol=0, atol=1e-5)
    assert -found.fun == pytest.approx(0.5 * log_partition(ref_logps, rewards, 0.5).item())


@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rewards", [[1e3, -1e3, 0.0], [-1e3, -1e3, -1e3], [1e3, 1e3, 1e3]])
def test_extreme_rewards_and_betas_neither_overflow_nor_lose_the_sum(rewards, beta):
    ref_logps, rewards = float64(0.2, 0.5, 0.3).log(), float64(*rewards)
    best = gibbs_policy(ref_logps, rewards, beta)
    values = [
        log_partition(ref_logps, rewards, beta),
        objective(best, ref_logps, rewards, beta),
    ]
    assert best.isfinite().all() and all(value.isfinite() for value in values)
    assert best.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert values[1].item() == pytest.approx(beta * values[0].item(), rel=1e-9)


def test_what_the_reference_never_writes_the_optimum_never_writes():
    ref_logps, rewards = float64(0.5, 0.5, 0.0).log(), float64(0.0, 1.0, 1e3)
    best = gibbs_policy(ref_logps, rewards, 0.5)
    assert_close(best[:2], gibbs_policy(ref_logps[:2], rewards[:2], 0.5))
    assert best[2] == -math.inf
    log_z = log_partition(ref_logps, rewards, 0.5)
    assert_close(objective(best, ref_logps, rewards, 0.5), 0.5 * log_z)
    assert objective(float64(0.0, 0.5, 0.5).log(), ref_logps, rewards, 0.5) == -math.inf
    assert expected_reward(best, rewards) < 1


def test_large_beta_stays_at_the_reference_and_small_beta_takes_the_best():
    ref_logps, rewards, _ = random_problem(0)
    assert_close(gibbs_policy(ref_logps, rewards, 1e9), ref_logps, rtol=0, atol=1e-8)
    greedy = torch.nn.functional.one_hot(rewards.argmax(-1), 6).double()
    assert_close(gibbs_policy(ref_logps, rewards, 1e-3).exp(), greedy)
    kls = [kl_divergence(gibbs_policy(ref_logps, rewards, b), ref_logps) for b in (4, 2, 1, 0.5)]
    assert (torch.stack(kls).diff(dim=0) > 0).all()


@pytest.mark.parametrize("function", [log_partition, gibbs_policy])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_must_be_a_finite_number_above_0(function, beta):
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        function(torch.zeros(3), torch.zeros(3), beta)
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        objective(torch.zeros(3), torch.zeros(3), torch.zeros(3), beta)


@pytest.mark.parametrize("wrong", [(2, 1), (2, 4), (3, 3), ()])
def test_shapes_must_fit(wrong):
    right, wrong = torch.zeros(2, 3), torch.zeros(wrong)
    for call in (
        lambda: kl_divergence(right, wrong),
        lambda: log_partition(wrong, right, 1.0),
        lambda: gibbs_policy(right, wrong, 1.0),
        lambda: expected_reward(wrong, right),
        lambda: objective(right, right, wrong, 1.0),
    ):
        with pytest.raises(ValueError, match="have the same last dimension"):
            call()
