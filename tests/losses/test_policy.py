"""Losses of tokens: values by hand, gradients in closed form, and all that must not matter."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import float64, gradients, masks, normal, random_inputs, seeds
from torch.testing import assert_close

from rlhf_toy.exact import kl_divergence
from rlhf_toy.losses import (
    aggregate_loss,
    approx_kl,
    gae,
    masked_mean,
    policy_gradient_loss,
    ppo_clip_loss,
    sequence_logps,
    token_logps,
    token_rewards,
    value_loss,
    weighted_mean,
    whiten,
)

# Everything that has a mask: how many [B, T] arguments it takes, and how it is called.
MASKED = {
    "masked_mean": (1, masked_mean),
    "whiten": (1, whiten),
    "token_logps": (2, lambda a, b, m: token_logps(torch.stack([a, b], -1), m.long(), m)),
    "sequence_logps": (2, lambda a, b, m: sequence_logps(torch.stack([a, b], -1), m.long(), m)),
    "token_rewards": (2, lambda a, b, mask: token_rewards(torch.ones(len(a)), a, b, mask, 0.3)),
    "advantages": (2, lambda a, b, mask: gae(a, b, mask, 0.9, 0.8)[0]),
    "returns": (2, lambda a, b, mask: gae(a, b, mask, 0.9, 0.8)[1]),
    "policy_gradient_loss": (2, policy_gradient_loss),
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


# The policy's losses


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


@pytest.mark.parametrize(
    ("aggregate", "value", "slopes"),
    [
        ("sequence", 4.0, [[-1.0, 1.5, 0.0], [-2.0, 0.0, 0.0]]),
        ("token", 8 / 3, [[-2 / 3, 1.0, 0.0], [-4 / 3, 0.0, 0.0]]),
        ("response_mean", 5.0, [[-0.5, 0.75, 0.0], [-2.0, 0.0, 0.0]]),
    ],
)
def test_policy_gradient_loss_by_hand(aggregate, value, slopes):
    logps = float64([-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0]).requires_grad_()
    advantages = float64([2.0, -3.0, 9.0], [4.0, 9.0, 9.0]).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = policy_gradient_loss(logps, advantages, mask, aggregate)
    assert loss.item() == pytest.approx(value)
    slope, none = gradients(loss, logps, advantages)
    assert_close(slope, float64(*slopes))
    assert none is None, "an advantage is a number, not something to be trained"


def test_one_advantage_for_each_response_counts_for_all_its_tokens():
    logps, advantages = normal(4, 2, 3, n=2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    one = policy_gradient_loss(logps, advantages[:, :1], mask)
    assert_close(one, policy_gradient_loss(logps, advantages[:, :1].repeat(1, 3), mask))
    assert_close(one, -(advantages[:, 0] * (logps * mask).sum(1)).mean())


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


# What cannot be computed is refused


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (masked_mean, [(2, 3), (2, 2)]),
        (approx_kl, [(3,), (1,)]),
        (policy_gradient_loss, [(2, 3), (1, 3), (2, 3)]),
        (policy_gradient_loss, [(2, 3), (3, 1), (2, 3)]),
        (ppo_clip_loss, [(2, 3), (2, 3), (2, 1), (2, 3)]),
        (value_loss, [(2, 3), (2, 3), (2, 3), (3,)]),
    ],
)
def test_shapes_that_would_broadcast_silently_are_refused(function, shapes):
    with pytest.raises(ValueError, match=r"must have one shape, got .*\["):
        function(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize("function", [token_logps, sequence_logps])
def test_logits_must_fit_the_responses(function):
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="expected nonempty tensors logits"):
        function(torch.zeros(2, 4, 5), tokens, tokens)
    with pytest.raises(ValueError, match="expected nonempty tensors logits"):
        function(torch.zeros(2, 3, 5), tokens, tokens[:1])


@pytest.mark.parametrize("cliprange", [0.0, -0.2, math.nan])
def test_clip_ranges_must_be_above_0(cliprange):
    ones = torch.ones(2, 2)
    with pytest.raises(ValueError, match="cliprange must be a finite number above 0"):
        ppo_clip_loss(ones, ones, ones, ones, cliprange)
    with pytest.raises(ValueError, match="cliprange_value must be a finite number above 0"):
        value_loss(ones, ones, ones, ones, cliprange)


def test_nothing_real_means_nothing_to_average():
    ones, nothing = torch.ones(1, 2), torch.zeros(1, 2)
    for call in (
        lambda: masked_mean(ones, nothing),
        lambda: policy_gradient_loss(ones, ones, nothing),
        lambda: ppo_clip_loss(ones, ones, ones, nothing),
        lambda: value_loss(ones, ones, ones, nothing),
    ):
        with pytest.raises(ValueError, match="no real token"):
            call()


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
        lambda v, m, w: policy_gradient_loss(v, v[:, :1], m, "response_mean", w),
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
    one_negative = torch.cat([-ones[:1], 2 * ones[1:]])
    for weights in (-ones, one_negative, 0 * ones, ones * torch.nan, ones * torch.inf):
        with pytest.raises(ValueError, match="weights must be finite, at least 0 and not all 0"):
            weighted_mean(ones, weights)
    with pytest.raises(ValueError, match="one shape"):
        weighted_mean(ones, torch.ones(2))
    with pytest.raises(ValueError, match="aggregate must be one of 'token'"):
        aggregate_loss(rows(3, 3), MASK, "mean")
    with pytest.raises(ValueError, match="no mean over its tokens"):
        aggregate_loss(rows(2, 2), torch.tensor([[1, 1], [0, 0]]), "response_mean")
