"""Advantages: values by hand, definitions in another form, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import betas, float64, masks, normal, random_inputs, seeds
from torch.testing import assert_close

from rlhf_toy.losses import gae, grpo_advantages, rloo_advantages, token_rewards, whiten

# Tokens


@given(masks(), seeds)
@random_inputs
def test_whitened_values_have_mean_0_and_variance_1_over_the_real_tokens(mask, seed):
    values = 3 + 5 * normal(seed, *mask.shape)[0]
    white = whiten(values, mask)
    assert (white[~mask] == 0).all()
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-9)
    if mask.sum() > 1:
        assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-4)
        order = values[mask].argsort()
        assert (white[mask][order].diff() >= 0).all()


def test_whitening_a_constant_gives_zeros():
    assert (whiten(torch.full((2, 3), 5.0), torch.ones(2, 3)) == 0).all()


def test_token_rewards_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    logps = float64([-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0], [-1.0, -1.0, -1.0])
    ref_logps = float64([-2.0, -1.0, 0.0], [-3.0, 0.0, 0.0], [-1.0, -1.0, -5.0])
    rewards = token_rewards(float64(10.0, 20.0, 30.0), logps, ref_logps, mask, 0.5)
    assert_close(rewards, float64([-0.5, 10.5, 0], [20, 0, 0], [0, 0, 28]))


@given(masks(), seeds, betas)
@random_inputs
def test_token_rewards_sum_to_reward_minus_beta_log_ratio(mask, seed, beta):
    logps, ref_logps, reward = normal(seed, *mask.shape, n=3)
    total = token_rewards(reward[:, 0], logps, ref_logps, mask, beta).sum(1)
    log_ratio = ((logps - ref_logps) * mask).sum(1)
    assert_close(total, reward[:, 0] - beta * log_ratio)


def test_gae_by_hand():
    rewards, values = float64([1.0, 2.0, 9.0]), float64([0.5, 1.0, 9.0])
    advantages, returns = gae(rewards, values, torch.tensor([[1, 1, 0]]), gamma=0.5, lam=0.5)
    # δ_1 = 2 − 1 = 1, and δ_0 = 1 + 0.5 · 1 − 0.5 = 1, to which 0.25 δ_1 comes.
    assert_close(advantages, float64([1.25, 1.0, 0.0]))
    assert_close(returns, float64([1.75, 2.0, 0.0]))


@given(masks(), seeds)
@random_inputs
def test_gae_with_lambda_1_is_reward_to_go_minus_value(mask, seed):
    rewards, values = normal(seed, *mask.shape, n=2)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert_close(advantages, to_go - values * mask)
    assert_close(returns, to_go)


@given(masks(), seeds, st.floats(0, 1), st.floats(0, 1))
@random_inputs
def test_gae_is_the_discounted_sum_of_td_errors(mask, seed, gamma, lam):
    rewards, values = normal(seed, *mask.shape, n=2)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(mask.sum(1).tolist()):
        following = [*values[b, 1:length].tolist(), 0.0]
        deltas = rewards[b, :length] + gamma * float64(*following) - values[b, :length]
        for t in range(length):
            powers = (gamma * lam) ** torch.arange(length - t, dtype=torch.float64)
            assert_close(advantages[b, t], (powers * deltas[t:]).sum())
        if lam == 0:
            assert_close(advantages[b, :length], deltas)
    assert_close(returns, (advantages + values) * mask)


def test_gae_with_lambda_0_is_the_td_error_and_is_not_the_default():
    rewards, values = normal(3, 2, 4, n=2)
    mask = torch.ones(2, 4)
    following = torch.cat([values[:, 1:], torch.zeros(2, 1)], 1)
    assert_close(gae(rewards, values, mask, lam=0.0)[0], rewards + following - values)
    assert_close(gae(rewards, values, mask), gae(rewards, values, mask, 1.0, 0.95))


def test_whitening_counts_a_weight_of_two_like_a_row_that_is_there_twice():
    (values,), mask = normal(0, 3, 3), torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    weights, twice = float64(2.0, 1.0, 1.0), torch.tensor([0, 0, 1, 2])
    weighted = whiten(values, mask, weights)
    assert_close(weighted[[0, 0, 1, 2]], whiten(values[twice], mask[twice]))
    assert not torch.allclose(weighted, whiten(values, mask))


# Groups


def test_group_advantages_by_hand():
    rewards = float64([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    # The others' means are 4, 3.5 and 1.5; the group's is 3, its deviation √(4 + 1 + 9)/√2 = √7.
    nothing = [0.0, 0.0, 0.0]
    assert_close(rloo_advantages(rewards), float64([-3.0, -1.5, 4.5], nothing))
    assert_close(grpo_advantages(rewards, scale=False), float64([-2.0, -1.0, 3.0], nothing))
    scaled = [a / (math.sqrt(7) + 1e-4) for a in (-2.0, -1.0, 3.0)]
    assert_close(grpo_advantages(rewards), float64(scaled, nothing))
    assert_close(grpo_advantages(rewards), grpo_advantages(rewards, scale=True))


@given(seeds, st.integers(1, 4), st.integers(2, 8))
@random_inputs
def test_group_advantages_are_their_definitions_in_numpy(seed, X, G):
    rewards = 3 * normal(seed, X, G)[0]
    r = rewards.numpy()
    others = np.array([[np.delete(row, i).mean() for i in range(G)] for row in r])
    np.testing.assert_allclose(rloo_advantages(rewards), r - others, atol=1e-10)
    centred = r - r.mean(1, keepdims=True)
    np.testing.assert_allclose(grpo_advantages(rewards, scale=False), centred, atol=1e-10)
    scaled = centred / (r.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(grpo_advantages(rewards), scaled, atol=1e-10)


@pytest.mark.parametrize("scale", [True, False])
@given(seeds, st.floats(-100, 100))
@random_inputs
def test_a_reward_of_the_prompt_alone_moves_no_group_advantage(scale, seed, shift):
    rewards, offsets = normal(seed, 3, 4, n=2)
    moved = rewards + shift * offsets[:, :1]
    assert_close(rloo_advantages(moved), rloo_advantages(rewards), rtol=1e-9, atol=1e-9)
    for advantages in (grpo_advantages(moved, scale), rloo_advantages(moved)):
        assert_close(advantages.sum(1), torch.zeros(3).double(), rtol=0, atol=1e-9)
    before = grpo_advantages(rewards, scale)
    assert_close(grpo_advantages(moved, scale), before, rtol=1e-9, atol=1e-9)


def test_only_grpo_forgets_the_scale_of_the_rewards():
    (rewards,) = normal(1, 3, 4)
    assert_close(rloo_advantages(9 * rewards), 9 * rloo_advantages(rewards))
    assert_close(grpo_advantages(9 * rewards, False), 9 * grpo_advantages(rewards, False))
    assert_close(grpo_advantages(9 * rewards), grpo_advantages(rewards), atol=0, rtol=1e-3)


@pytest.mark.parametrize("advantages", [rloo_advantages, grpo_advantages])
def test_a_group_of_one_has_nothing_to_compare_with(advantages):
    with pytest.raises(ValueError, match="at least two responses to each prompt, got 1"):
        advantages(torch.ones(3, 1))


# What cannot be computed is refused


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (whiten, [(2, 3), (2,)]),
        (lambda *a: token_rewards(*a, 0.1), [(3,), (2, 3), (2, 3), (2, 3)]),
        (lambda *a: token_rewards(*a, 0.1), [(2, 1), (2, 3), (2, 3), (2, 3)]),
        (lambda *a: token_rewards(*a, 0.1), [(2,), (2, 3), (1, 3), (2, 3)]),
        (gae, [(2, 3), (2, 4), (2, 3)]),
        (gae, [(2, 3), (2, 3), (1, 3)]),
    ],
)
def test_shapes_that_would_broadcast_silently_are_refused(function, shapes):
    with pytest.raises(ValueError, match=r"must have one shape, got .*\["):
        function(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_a_finite_number_above_0(beta):
    one = torch.ones(2)
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        token_rewards(one, one[:, None], one[:, None], one[:, None], beta)


def test_nothing_real_means_nothing_to_average():
    ones, nothing = torch.ones(2, 2), torch.zeros(2, 2)
    for call in (
        lambda: whiten(ones, nothing),
        lambda: gae(ones, ones, nothing),
        lambda: token_rewards(ones[0], ones, ones, nothing, 0.1),
    ):
        with pytest.raises(ValueError, match="no real token"):
            call()


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 0.5), (-0.1, 0.5), (1, 1.1), (1, math.nan)])
def test_discounts_must_be_between_0_and_1(gamma, lam):
    with pytest.raises(ValueError, match=r"(gamma|lam) must be .* at least 0 and at most 1"):
        gae(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), gamma, lam)


@pytest.mark.parametrize("row", [[0, 0], [0, 1]])
def test_every_row_needs_real_tokens_from_the_left(row):
    ones, mask = torch.ones(2, 2), torch.tensor([[1, 1], row])
    with pytest.raises(ValueError, match="without gaps"):
        token_rewards(torch.ones(2), ones, ones, mask, 0.1)
