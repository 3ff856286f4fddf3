"""The losses beside DPO's: where each is lowest, and what must not matter to it."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_toy.losses import cdpo_loss, dpo_loss, ipo_loss, kto_loss, preference_accuracy

LOSSES = {
    "ipo": ipo_loss,
    "cdpo": lambda *arguments: cdpo_loss(*arguments, label_smoothing=0.1),
}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def four(seed, n=5):
    generator = torch.Generator().manual_seed(seed)
    return (-3 * torch.rand(4, n, generator=generator, dtype=torch.float64)).unbind()


def test_ipo_by_hand():
    # h = (−1 − −1.5) − (−2 − −1.8) = 0.7, and the target is 1/(2 · 0.5) = 1.
    arguments = float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8)
    assert ipo_loss(*arguments, beta=0.5).item() == pytest.approx(0.09)


def test_cdpo_by_hand():
    arguments = float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8)
    probability = 1 / (1 + math.exp(-0.5 * 0.7))
    expected = -0.9 * math.log(probability) - 0.1 * math.log(1 - probability)
    assert cdpo_loss(*arguments, 0.5, 0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_at_the_reference(beta):
    chosen, rejected, *_ = four(0)
    assert ipo_loss(chosen, rejected, chosen, rejected, beta).item() == pytest.approx(
        1 / (4 * beta**2)
    )
    assert cdpo_loss(chosen, rejected, chosen, rejected, beta, 0.2).item() == pytest.approx(
        math.log(2)
    )


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_ipo_is_lowest_where_the_log_ratios_differ_by_half_of_one_over_beta(beta):
    ref_chosen, ref_rejected = float64(-1.2), float64(-0.7)
    chosen = (ref_chosen + 1 / (2 * beta)).requires_grad_()
    loss = ipo_loss(chosen, ref_rejected, ref_chosen, ref_rejected, beta)
    loss.backward()
    assert_close(loss.detach(), torch.zeros_like(loss))
    assert_close(chosen.grad, float64(0.0), atol=1e-10, rtol=0)
    for step in (-0.1, 0.1):
        assert ipo_loss(chosen + step, ref_rejected, ref_chosen, ref_rejected, beta) > loss


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.4])
def test_cdpo_is_lowest_at_a_finite_margin(beta, smoothing):
    ref_chosen, ref_rejected = float64(-1.2), float64(-0.7)
    margin = math.log((1 - smoothing) / smoothing)
    chosen = (ref_chosen + margin / beta).requires_grad_()
    loss = cdpo_loss(chosen, ref_rejected, ref_chosen, ref_rejected, beta, smoothing)
    loss.backward()
    assert_close(chosen.grad, float64(0.0), atol=1e-10, rtol=0)
    for step in (-0.1, 0.1):
        further = chosen + step / beta
        assert cdpo_loss(further, ref_rejected, ref_chosen, ref_rejected, beta, smoothing) > loss


@pytest.mark.parametrize("beta", [1e-3, 0.5, 10.0])
def test_cdpo_without_smoothing_is_dpo(beta):
    one, other = ([tensor.clone().requires_grad_() for tensor in four(1)] for _ in ("cDPO", "DPO"))
    losses = cdpo_loss(*one, beta, 0.0), dpo_loss(*other, beta)
    for loss in losses:
        loss.backward()
    assert_close(*losses)
    for a, b in zip(one, other, strict=True):
        assert_close(a.grad, b.grad)


def test_cdpo_without_smoothing_bears_a_probability_of_zero():
    never = float64(-math.inf)
    half = float64(math.log(0.5))
    assert cdpo_loss(half, never, half, half, 0.5, 0.0).item() == 0
    assert cdpo_loss(half, never, half, half, 0.5, 0.1).item() == math.inf
    assert ipo_loss(half, never, half, half, 0.5).item() == math.inf


@both
def test_only_log_ratios_of_a_pair_count(loss):
    chosen, rejected, ref_chosen, ref_rejected = four(2)
    value = loss(chosen, rejected, ref_chosen, ref_rejected, 0.5)
    assert_close(loss(chosen - 2, rejected, ref_chosen - 2, ref_rejected, 0.5), value)
    assert_close(loss(chosen - 1, rejected - 1, ref_chosen, ref_rejected, 0.5), value)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(
        loss(*(t[order] for t in (chosen, rejected, ref_chosen, ref_rejected)), 0.5), value
    )


@both
def test_gradients_agree_with_finite_differences(loss):
    arguments = [tensor.requires_grad_() for tensor in four(3)]
    assert torch.autograd.gradcheck(lambda *tensors: loss(*tensors, 0.7), arguments)


@both
def test_a_huge_margin_does_not_overflow(loss):
    far = float64(-1e4), float64(0.0), float64(0.0), float64(0.0)
    assert loss(*far, 1.0).isfinite()
    assert loss(far[1], far[0], *far[2:], 1.0).isfinite()


@both
@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_beta_is_refused(loss, beta):
    with pytest.raises(ValueError, match="beta"):
        loss(*four(4), beta)


@both
@pytest.mark.parametrize("i", range(4))
def test_shapes_that_differ_are_refused(loss, i):
    arguments = list(four(5))
    arguments[i] = arguments[i][:1]
    with pytest.raises(ValueError, match="one shape"):
        loss(*arguments, 0.5)


@both
def test_pairs_that_would_broadcast_are_refused(loss):
    chosen, rejected, ref_chosen, ref_rejected = four(6)
    with pytest.raises(ValueError, match="one shape"):
        loss(chosen, rejected[:1], ref_chosen, ref_rejected[:1], 0.5)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_a_bad_label_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        cdpo_loss(*four(7), 0.5, smoothing)


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss, lambda *a: cdpo_loss(*a[:-1], 0.2, a[-1])])
def test_a_weight_of_two_counts_like_a_pair_that_is_there_twice(loss):
    logps = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    weighted = loss(*logps, 0.5, weights)
    assert torch.allclose(weighted, loss(*logps[:, [0, 0, 1, 2]], 0.5, None))
    assert not torch.allclose(weighted, loss(*logps, 0.5, None))


def test_nan_is_no_tie():
    rewards = torch.tensor([torch.nan, 1.0])
    assert preference_accuracy(rewards, torch.zeros(2)).isnan()


def test_kto_still_pulls_at_a_response_that_has_become_very_rare():
    chosen, rejected = (float64(-60.0).requires_grad_() for _ in range(2))
    zero = float64(0.0)
    kto_loss(chosen, rejected, zero, zero, 1.0, torch.tensor(0.0).double(), 3.0, 2.0).backward()
    slope = math.exp(-60)  # of σ there
    assert chosen.grad.item() == pytest.approx(-3.0 * slope / 2)
    assert rejected.grad.item() == pytest.approx(2.0 * slope / 2)
