"""The losses: values by hand, gradients in closed form, and all that must not matter."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_toy.exact import kl_divergence, response_logps
from rlhf_toy.losses import (
    aggregate_loss,
    approx_kl,
    bradley_terry_loss,
    dpo_loss,
    gae,
    implicit_reward,
    masked_mean,
    ppo_clip_loss,
    preference_accuracy,
    preference_probability,
    sequence_logps,
    token_logps,
    token_rewards,
    value_loss,
    weighted_mean,
    whiten,
)
from rlhf_toy.models import GPTConfig, PolicyModel

random_inputs = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
betas = st.floats(1e-3, 1e3)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(seed, *shape, n=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator).unbind()


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


@st.composite
def masks(draw):
    """[B, T], one or more real tokens in each row, then pads."""
    length = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, length), min_size=1, max_size=4))
    return torch.arange(length) < torch.tensor(lengths)[:, None]


# Everything that has a mask: how many [B, T] arguments it takes, and how it is called.
MASKED = {
    "masked_mean": (1, masked_mean),
    "whiten": (1, whiten),
    "token_logps": (2, lambda a, b, m: token_logps(torch.stack([a, b], -1), m.long(), m)),
    "sequence_logps": (2, lambda a, b, m: sequence_logps(torch.stack([a, b], -1), m.long(), m)),
    "token_rewards": (2, lambda a, b, mask: token_rewards(torch.ones(len(a)), a, b, mask, 0.3)),
    "advantages": (2, lambda a, b, mask: gae(a, b, mask, 0.9, 0.8)[0]),
    "returns": (2, lambda a, b, mask: gae(a, b, mask, 0.9, 0.8)[1]),
    "ppo_clip_loss": (3, ppo_clip_loss),
    "value_loss": (3, value_loss),
    "value_loss, clipped": (3, lambda a, b, c, mask: value_loss(a, b, c, mask, 0.2)),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("garbage", [1e30, math.inf, -math.inf, math.nan])
def test_what_stands_in_masked_places_changes_no_result_and_gets_no_gradient(name, garbage):
    n, function = MASKED[name]
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    clean = normal(0, 3, 4, n=n)
    dirty = [tensor.masked_fill(~mask, garbage) for tensor in clean]
    results = []
    for tensors in (clean, dirty):
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        result = function(*tensors, mask)
        weights = torch.arange(1.0, result.numel() + 1).view(result.shape)
        results.append((result, gradients((result * weights).sum(), *tensors)))
    (expected, expected_grads), (result, grads) = results
    assert_close(result, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        if grad is not None:  # None for what the loss does not depend on
            assert_close(grad, expected_grad)
            assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("name", MASKED)
def test_columns_of_padding_change_nothing(name):
    n, function = MASKED[name]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    tensors = normal(1, 2, 3, n=n)
    result = function(*tensors, mask)
    padding = torch.full((2, 2), 7.0, dtype=torch.float64)
    padded = [torch.cat([tensor, padding], 1) for tensor in tensors]
    with_padding = function(*padded, torch.cat([mask, torch.zeros(2, 2).bool()], 1))
    if result.dim() == 2:
        assert (with_padding[:, 3:] == 0).all()
        with_padding = with_padding[:, :3]
    assert_close(with_padding, result)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_may_be_numbers(name):
    n, function = MASKED[name]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tensors = normal(1, 2, 3, n=n)
    assert_close(function(*tensors, mask.float()), function(*tensors, mask.bool()))


@pytest.mark.parametrize("name", MASKED)
def test_losses_leave_their_inputs_and_the_global_random_state_alone(name):
    n, function = MASKED[name]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    tensors = normal(2, 2, 3, n=n)
    copies = [tensor.clone() for tensor in (*tensors, mask)]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = function(*tensors, mask)
    assert_close(function(*tensors, mask), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    for tensor, copy in zip((*tensors, mask), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_masked_mean_by_hand():
    values, mask = float64([1.0, 2.0, 9.0], [4.0, 9.0, 9.0]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(values, mask).item() == pytest.approx(7 / 3)


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


# Log-probabilities


def test_sequence_log_probability_is_a_sum_over_tokens_not_a_mean():
    logits = float64([[0, 0], [0, math.log(3)], [0, 0], [5, 0]])
    responses, mask = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[1, 1, 1, 0]])
    expected = [math.log(0.5), math.log(0.75), math.log(0.5), 0]
    assert_close(token_logps(logits, responses, mask), float64(expected))
    assert_close(sequence_logps(logits, responses, mask), float64(sum(expected)))


def test_the_pad_token_needs_no_logit():
    logits = torch.zeros(1, 2, 3)
    logps = token_logps(logits, torch.tensor([[1, 99]]), torch.tensor([[1, 0]]))
    assert_close(logps, torch.tensor([[-math.log(3), 0.0]]))


def test_a_single_action_has_probability_1_and_can_be_followed_by_pads():
    logps = token_logps(torch.ones(1, 2, 1), torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))
    assert_close(logps, torch.zeros(1, 2))


# Preferences and reward learning


def test_bradley_terry_by_hand():
    chosen, rejected = float64(2.0, 0.0), float64(0.0, 1.0)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected)
    probabilities = float64(1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)))
    assert_close(preference_probability(chosen, rejected), probabilities)


@given(seeds)
@random_inputs
def test_bradley_terry_gradient_is_minus_the_probability_of_the_other_answer(seed):
    chosen, rejected = (r.requires_grad_() for r in normal(seed, 6, n=2))
    surprise = preference_probability(rejected, chosen).detach() / 6
    got = gradients(bradley_terry_loss(chosen, rejected), chosen, rejected)
    assert_close(got, (-surprise, surprise))


@given(seeds, st.floats(-100, 100))
@random_inputs
def test_a_reward_of_the_prompt_alone_moves_no_preference(seed, shift):
    chosen, rejected, offsets = normal(seed, 6, n=3)
    c = shift * offsets  # another c(x) for each prompt
    moved = bradley_terry_loss(chosen + c, rejected + c)
    assert_close(moved, bradley_terry_loss(chosen, rejected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bradley_terry_does_not_overflow(dtype):
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    losses = [bradley_terry_loss(r, torch.zeros_like(r)) for r in chosen.split(1)]
    assert losses[0].item() == 0
    assert losses[1].item() == pytest.approx(1e4)
    assert_close(gradients(sum(losses), chosen)[0], torch.tensor([0, -1], dtype=dtype))


def test_a_tie_counts_half_for_accuracy():
    chosen, rejected = float64(1.0, 0.0, 2.0, 5.0), float64(0.0, 3.0, 2.0, 5.0)
    assert preference_accuracy(chosen, rejected).item() == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)


# KL estimators, against the exact KL


def distribution_and_reference(seed, size=5):
    theta, ref = normal(seed, size, n=2)
    theta.requires_grad_()
    return theta, theta.log_softmax(-1), ref.log_softmax(-1)


def expectation(logps, values):
    """The mean over samples, whose number does not depend on θ: that of a loss on samples."""
    return (logps.detach().exp() * values).sum()


@given(seeds)
@random_inputs
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(seed):
    _, logps, ref_logps = distribution_and_reference(seed)
    kl = kl_divergence(logps, ref_logps)
    assert_close(expectation(logps, approx_kl(logps, ref_logps)), kl)
    assert_close(expectation(logps, approx_kl(logps, ref_logps, "k1")), kl)
    assert_close(expectation(logps, approx_kl(logps, ref_logps, "k3")), kl)
    assert (approx_kl(logps, ref_logps, "k3") >= 0).all()


def test_k2_is_biased_but_right_to_second_order():
    logps, ref_logps = float64(0.5, 0.5).log(), float64(0.25, 0.75).log()
    expected = (math.log(2) ** 2 + math.log(2 / 3) ** 2) / 4
    got = expectation(logps, approx_kl(logps, ref_logps, "k2")).item()
    assert got == pytest.approx(expected)
    assert got > 1.1 * kl_divergence(logps, ref_logps).item()
    near = float64(0.5 + 1e-4, 0.5 - 1e-4).log()
    ratio = expectation(logps, approx_kl(logps, near, "k2")) / kl_divergence(logps, near)
    assert ratio.item() == pytest.approx(1, abs=1e-6)


@given(seeds)
@random_inputs
def test_gradients_of_the_estimators_as_losses(seed):
    theta, logps, ref_logps = distribution_and_reference(seed)

    def grad(loss):
        return torch.autograd.grad(loss, theta, retain_graph=True)[0]

    def grad_as_a_loss(name):
        return grad(expectation(logps, approx_kl(logps, ref_logps, name)))

    assert_close(grad_as_a_loss("k1"), torch.zeros_like(theta))
    assert_close(grad_as_a_loss("k2"), grad(kl_divergence(logps, ref_logps)))
    assert_close(grad_as_a_loss("k3"), grad(kl_divergence(ref_logps, logps)))
    in_the_reward = expectation(logps, approx_kl(logps, ref_logps, "k1").detach() * logps)
    assert_close(grad(in_the_reward), grad(kl_divergence(logps, ref_logps)))


def test_k3_keeps_its_digits_where_the_policies_almost_agree():
    k3 = approx_kl(float64(-1.0 + 1e-8), float64(-1.0), "k3").item()
    assert k3 == pytest.approx(0.5e-16, rel=1e-3, abs=0)


# The token problem and PPO


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


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # clipped: already more likely by enough
        (0.5, 1.0, -0.5, -0.5),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),  # clipped: already less likely by enough
        (1.1, 2.0, -2.2, -2.2),
        (1.0, -3.0, 3.0, 3.0),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, loss, slope):
    logps = float64([math.log(ratio) - 1.0, 0.0]).requires_grad_()
    arguments = float64([-1.0, 0.0]), float64([advantage, 0.0]), torch.ones(1, 2)
    got = ppo_clip_loss(logps, *arguments)  # ε = 0.2
    assert got.item() == pytest.approx(loss / 2)
    (grad,) = gradients(got, logps)
    assert grad[0, 0].item() == (0 if slope == 0 else pytest.approx(slope / 2))


@given(masks(), seeds)
@random_inputs
def test_ppo_at_ratio_1_is_the_policy_gradient(mask, seed):
    logps, advantages = normal(seed, *mask.shape, n=2)
    logps.requires_grad_()
    loss = ppo_clip_loss(logps, logps.detach(), advantages, mask)
    assert_close(loss, -advantages[mask].mean())
    assert_close(gradients(loss, logps)[0], -advantages * mask / mask.sum())


@given(seeds, st.floats(0.01, 0.9))
@random_inputs
def test_ppo_gives_exactly_no_gradient_to_clipped_tokens(seed, cliprange):
    logps, old_logps, advantages = normal(seed, 3, 4, n=3)
    logps.requires_grad_()
    loss = ppo_clip_loss(logps, old_logps, advantages, torch.ones(3, 4), cliprange)
    ratio = (logps - old_logps).exp().detach()
    above, below = ratio > 1 + cliprange, ratio < 1 - cliprange
    clipped = (above & (advantages > 0)) | (below & (advantages < 0))
    (grad,) = gradients(loss, logps)
    assert (grad[clipped] == 0).all()
    assert_close(grad[~clipped], (-ratio * advantages / 12)[~clipped])


def test_value_loss_by_hand():
    values = float64([2.0, 0.0, 1.0, 9.0]).requires_grad_()
    old_values, returns = float64([1.0, 2.0, 1.2, 9.0]), float64([0.0, 0.0, 3.0, 0.0])
    mask = torch.tensor([[1, 1, 1, 0]])
    unclipped = value_loss(values, old_values, returns, mask)
    assert unclipped.item() == pytest.approx((4 + 0 + 4) / 3 / 2)
    assert_close(gradients(unclipped, values)[0], float64([2 / 3, 0, -2 / 3, 0]))
    # Held within 0.5 of the old values they are 1.5, 1.5 and 1; the larger error counts.
    clipped = value_loss(values, old_values, returns, mask, cliprange_value=0.5)
    assert clipped.item() == pytest.approx((4 + 2.25 + 4) / 3 / 2)


def test_value_loss_gives_no_gradient_to_a_value_that_was_clipped():
    values = float64([0.0]).requires_grad_()
    loss = value_loss(values, float64([2.0]), float64([0.0]), torch.ones(1, 1), 0.5)
    assert loss.item() == pytest.approx(1.5**2 / 2)
    assert gradients(loss, values)[0].item() == 0


# DPO


@given(seeds, betas)
@random_inputs
def test_dpo_is_log_2_at_the_reference(seed, beta):
    chosen, rejected = normal(seed, 5, n=2)
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta)
    assert loss.item() == pytest.approx(math.log(2))


def test_dpo_by_hand():
    # Implicit rewards 0.5 · (−1 − −3) = 1 and 0.5 · (−4 − −2) = −1: a margin of 2.
    arguments = [float64(number) for number in (-1.0, -4.0, -3.0, -2.0)]
    assert dpo_loss(*arguments, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert_close(implicit_reward(arguments[0], arguments[2], 0.5), float64(1.0))
    assert_close(implicit_reward(arguments[1], arguments[3], 0.5), float64(-1.0))


@given(seeds, betas)
@random_inputs
def test_swapping_chosen_and_rejected_flips_the_margin(seed, beta):
    chosen, rejected, ref_chosen, ref_rejected = normal(seed, 5, n=4)
    margin = implicit_reward(chosen, ref_chosen, beta) - implicit_reward(
        rejected, ref_rejected, beta
    )
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    swapped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta)
    assert_close(swapped - loss, margin.mean())  # log σ(m) − log σ(−m) = m


@given(seeds, betas)
@random_inputs
def test_dpo_gradient_weighs_a_pair_by_how_wrong_the_implicit_reward_is(seed, beta):
    chosen, rejected, ref_chosen, ref_rejected = normal(seed, 5, n=4)
    chosen.requires_grad_(), rejected.requires_grad_()
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    wrong = torch.sigmoid(
        implicit_reward(rejected, ref_rejected, beta) - implicit_reward(chosen, ref_chosen, beta)
    )
    weight = beta * wrong.detach() / 5
    assert_close(gradients(loss, chosen, rejected), (-weight, weight))


def test_dpo_on_a_policy_sums_over_the_words_of_a_response(world):
    policy, reference = (
        PolicyModel(
            GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=16),
            torch.Generator().manual_seed(seed),
        ).double()
        for seed in (0, 1)
    )
    prompts = torch.tensor([0, 3])
    pairs = [["good and great", "loud good loud"], ["bad", ""]]
    responses = [torch.stack([world.encode(text) for text in texts]) for texts in pairs]
    logps, exact = [], []
    for model in (policy, reference):
        table = response_logps(model, world)
        for side in responses:
            mask = world.response_mask(side)
            logps.append(sequence_logps(model(prompts, side), side, mask))
            exact.append(table[prompts, world.response_index(side)])
    assert len({int(world.response_mask(side).sum()) for side in responses}) == 2
    assert_close(dpo_loss(*logps, 0.7), dpo_loss(*exact, 0.7))
    margin = 0.7 * (exact[0] - exact[2] - exact[1] + exact[3])
    assert_close(dpo_loss(*logps, 0.7), torch.log1p(torch.exp(-margin)).mean())


# What cannot be computed is refused


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (masked_mean, [(2, 3), (2, 2)]),
        (whiten, [(2, 3), (2,)]),
        (preference_probability, [(3,), (2,)]),
        (bradley_terry_loss, [(3,), (1,)]),
        (bradley_terry_loss, [(3, 1), (3,)]),
        (preference_accuracy, [(3,), (1,)]),
        (approx_kl, [(3,), (1,)]),
        (lambda *a: token_rewards(*a, 0.1), [(3,), (2, 3), (2, 3), (2, 3)]),
        (lambda *a: token_rewards(*a, 0.1), [(2, 1), (2, 3), (2, 3), (2, 3)]),
        (lambda *a: token_rewards(*a, 0.1), [(2,), (2, 3), (1, 3), (2, 3)]),
        (gae, [(2, 3), (2, 4), (2, 3)]),
        (gae, [(2, 3), (2, 3), (1, 3)]),
        (ppo_clip_loss, [(2, 3), (2, 3), (2, 1), (2, 3)]),
        (value_loss, [(2, 3), (2, 3), (2, 3), (3,)]),
        (lambda *a: implicit_reward(*a, 0.1), [(3,), (1,)]),
        (lambda *a: dpo_loss(*a, 0.1), [(3,), (3,), (3,), (1,)]),
        (lambda *a: dpo_loss(*a, 0.1), [(3,), (2,), (3,), (2,)]),
    ],
)
def test_shapes_that_would_broadcast_silently_are_refused(function, shapes):
    with pytest.raises(ValueError, match=r"must have one shape, got .*\["):
        function(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize("function", [token_logps, sequence_logps])
def test_logits_must_fit_the_responses(function):
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(2, 4, 5), tokens, tokens)
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(2, 3, 5), tokens, tokens[:1])


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_must_be_a_finite_number_above_0(beta):
    one = torch.ones(2)
    for call in (
        lambda: dpo_loss(one, one, one, one, beta),
        lambda: implicit_reward(one, one, beta),
        lambda: token_rewards(one, one[:, None], one[:, None], one[:, None], beta),
    ):
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            call()


@pytest.mark.parametrize("cliprange", [0.0, -0.2, math.nan])
def test_clip_ranges_must_be_above_0(cliprange):
    ones = torch.ones(2, 2)
    with pytest.raises(ValueError, match="cliprange must be a finite number above 0"):
        ppo_clip_loss(ones, ones, ones, ones, cliprange)
    with pytest.raises(ValueError, match="cliprange_value must be a finite number above 0"):
        value_loss(ones, ones, ones, ones, cliprange)


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 0.5), (-0.1, 0.5), (1, 1.1), (1, math.nan)])
def test_discounts_must_be_between_0_and_1(gamma, lam):
    with pytest.raises(ValueError, match=r"(gamma|lam) must be .* at least 0 and at most 1"):
        gae(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), gamma, lam)


def test_nothing_real_means_nothing_to_average():
    ones, nothing = torch.ones(1, 2), torch.zeros(1, 2)
    for call in (
        lambda: masked_mean(ones, nothing),
        lambda: whiten(ones, nothing),
        lambda: ppo_clip_loss(ones, ones, ones, nothing),
        lambda: value_loss(ones, ones, ones, nothing),
    ):
        with pytest.raises(ValueError, match="no real token"):
            call()
    with pytest.raises(ValueError, match="no real token"):
        token_rewards(torch.ones(2), torch.ones(2, 2), torch.ones(2, 2), torch.eye(2) * 0, 0.1)


@pytest.mark.parametrize("row", [[0, 0], [0, 1]])
def test_every_row_needs_real_tokens_from_the_left(row):
    ones, mask = torch.ones(2, 2), torch.tensor([[1, 1], row])
    with pytest.raises(ValueError, match="without gaps"):
        token_rewards(torch.ones(2), ones, ones, mask, 0.1)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'k1', 'k2', 'k3', got 'k4'"):
        approx_kl(torch.ones(1), torch.ones(1), "k4")


def test_a_ratio_that_would_overflow_leaves_loss_and_gradient_finite():
    logps = torch.tensor([[200.0, -1.0]], requires_grad=True)
    old_logps, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    loss = ppo_clip_loss(logps, old_logps, torch.ones(1, 2), mask)
    loss.backward()
    assert loss.isfinite()
    assert logps.grad[0, 0] == 0.0
    assert logps.grad[0, 1] == pytest.approx(-np.exp(-1) / 2)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
COUNTS = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda v, m, w: masked_mean(v, m, w),
        lambda v, m, w: aggregate_loss(v, m, "token", w),
        lambda v, m, w: aggregate_loss(v, m, "sequence", w),
        lambda v, m, w: aggregate_loss(v, m, "response_mean", w),
        lambda v, m, w: ppo_clip_loss(v / 9, v / 8, v, m, 0.2, "sequence", w),
        lambda v, m, w: value_loss(v, v + 1, 2 * v, m, 0.5, w),
        lambda v, m, w: weighted_mean(v[:, 0], w),
        lambda v, m, w: whiten(v, m, w)[-1],
    ],
)
def test_a_weight_of_two_counts_like_a_row_that_is_there_twice(function):
    values, weights = rows(3, 3), torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    twice = torch.tensor([0, 0, 1, 2])
    weighted = function(values, MASK, weights)
    assert torch.allclose(weighted, function(values[twice], MASK[twice], None))
    assert not torch.allclose(weighted, function(values, MASK, None))


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("token", lambda sums: sums.sum() / 6),
        ("sequence", lambda sums: sums.mean()),
        ("response_mean", lambda sums: (sums / COUNTS).mean()),
    ],
)
def test_losses_are_aggregated_as_named(aggregate, expected):
    values = rows(3, 3)
    sums = torch.where(MASK.bool(), values, 0.0).sum(1)
    assert torch.allclose(aggregate_loss(values, MASK, aggregate), expected(sums))
    with_nan = values.masked_fill(MASK == 0, torch.nan)
    assert torch.equal(
        aggregate_loss(with_nan, MASK, aggregate), aggregate_loss(values, MASK, aggregate)
    )


def test_bad_weights_and_aggregates_are_refused():
    ones = torch.ones(3)
    for weights in (-ones, 0 * ones, ones * torch.nan, ones * torch.inf):
        with pytest.raises(ValueError, match="weights must be finite, at least 0 and not all 0"):
            weighted_mean(ones, weights)
    with pytest.raises(ValueError, match="one shape"):
        weighted_mean(ones, torch.ones(2))
    with pytest.raises(ValueError, match="aggregate must be one of 'token'"):
        aggregate_loss(rows(3, 3), MASK, "mean")
    with pytest.raises(ValueError, match="no mean over its tokens"):
        aggregate_loss(rows(2, 2), torch.tensor([[1, 1], [0, 0]]), "response_mean")
