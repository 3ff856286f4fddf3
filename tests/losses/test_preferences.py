"""Losses of pairs: values and gradients in numpy, where each is lowest, what must not matter."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import betas, float64, gradients, normal, random_inputs, seeds
from torch.testing import assert_close

from rlhf_toy.exact import kl_divergence, response_logps
from rlhf_toy.losses import (
    PairLogps,
    bradley_terry_loss,
    cdpo_loss,
    chi_po_loss,
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    orpo_loss,
    preference_accuracy,
    preference_probability,
    rdpo_loss,
    sequence_logps,
    simpo_loss,
)
from rlhf_toy.models import GPTConfig, PolicyModel

# Every loss of the DPO family as a function of four log-probabilities [5], β and weights.

CHOSEN_LENGTHS, REJECTED_LENGTHS = torch.tensor([1, 3, 2, 4, 1]), torch.tensor([2, 3, 1, 1, 5])
LENGTHS = CHOSEN_LENGTHS, REJECTED_LENGTHS
KL = torch.tensor(0.3, dtype=torch.float64)
LOSSES = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "cdpo": lambda *pair, beta, weights=None: cdpo_loss(*pair, beta, 0.1, weights),
    "rdpo": lambda *pair, beta, weights=None: rdpo_loss(*pair, beta, 0.2, weights),
    "simpo": lambda *pair, beta, weights=None: simpo_loss(*pair[:2], *LENGTHS, beta, 0.6, weights),
    "orpo": lambda *pair, beta, weights=None: orpo_loss(*pair[:2], *LENGTHS, beta, weights),
    "chi_po": lambda *pair, beta, weights=None: chi_po_loss(*pair, beta, 1.0, weights),
    "kto": lambda *pair, beta, weights=None: kto_loss(*pair, beta, KL, 1.5, 0.7, weights),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def some(*names):
    return pytest.mark.parametrize("loss", [LOSSES[name] for name in names], ids=names)


def four(seed, n=5):
    generator = torch.Generator().manual_seed(seed)
    return (-3 * torch.rand(4, n, generator=generator, dtype=torch.float64)).unbind()


# The same in numpy, from the papers: log-probabilities c and r, and the reference's c0 and r0.


def log_sigmoid(x):
    return -np.log(1 + np.exp(-x))


def simpo_in_numpy(c, r, c0, r0, beta):
    return -log_sigmoid(beta * (c / CHOSEN_LENGTHS.numpy() - r / REJECTED_LENGTHS.numpy()) - 0.6)


def orpo_in_numpy(c, r, c0, r0, beta):
    p, q = np.exp(c / CHOSEN_LENGTHS.numpy()), np.exp(r / REJECTED_LENGTHS.numpy())
    return -np.log(p) - beta * log_sigmoid(np.log(p / (1 - p)) - np.log(q / (1 - q)))


def chi_po_in_numpy(c, r, c0, r0, beta):
    def link(z):
        return z + np.log(z)

    margin = beta * (link(np.exp(c - c0)) - link(np.exp(r - r0)))
    margin = np.where(np.abs(margin.real) > 2, 2 * np.sign(margin.real), margin)
    return -log_sigmoid(margin)


def kto_in_numpy(c, r, c0, r0, beta):
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    desirable = 1.5 * (1 - sigmoid(beta * (c - c0 - 0.3)))
    undesirable = 0.7 * (1 - sigmoid(beta * (0.3 - (r - r0))))
    return (desirable + undesirable) / 2


IN_NUMPY = {
    "dpo": lambda c, r, c0, r0, beta: -log_sigmoid(beta * (c - c0 - r + r0)),
    "ipo": lambda c, r, c0, r0, beta: (c - c0 - r + r0 - 1 / (2 * beta)) ** 2,
    "cdpo": lambda c, r, c0, r0, beta: (
        -0.9 * log_sigmoid(beta * (c - c0 - r + r0)) - 0.1 * log_sigmoid(-beta * (c - c0 - r + r0))
    ),
    "rdpo": lambda c, r, c0, r0, beta: (
        -(
            0.8 * log_sigmoid(beta * (c - c0 - r + r0))
            - 0.2 * log_sigmoid(-beta * (c - c0 - r + r0))
        )
        / 0.6
    ),
    "simpo": simpo_in_numpy,
    "orpo": orpo_in_numpy,
    "chi_po": chi_po_in_numpy,
    "kto": kto_in_numpy,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_values_and_gradients_are_those_of_the_formula_in_numpy(name, beta):
    tensors = [tensor.requires_grad_() for tensor in four(3)]
    loss = LOSSES[name](*tensors, beta=beta)
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    numbers = [tensor.detach().numpy() for tensor in tensors]
    assert loss.item() == pytest.approx(IN_NUMPY[name](*numbers, beta).mean(), abs=1e-12)
    for place, gradient in enumerate(found):
        step = [number + 1e-30j * (place == p) for p, number in enumerate(numbers)]
        slopes = IN_NUMPY[name](*step, beta).imag / 1e-30 / 5  # exact: no difference is taken
        got = np.zeros(5) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(got, slopes, atol=1e-10)


# Bradley–Terry


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


# DPO, IPO and cDPO


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


def test_ipo_at_the_reference_is_the_square_of_half_of_one_over_beta():
    chosen, rejected, *_ = four(0)
    for beta in (0.1, 1.0, 10.0):
        loss = ipo_loss(chosen, rejected, chosen, rejected, beta)
        assert loss.item() == pytest.approx(1 / (4 * beta**2))


def test_ipo_by_hand():
    # h = (−1 − −1.5) − (−2 − −1.8) = 0.7, and the target is 1/(2 · 0.5) = 1.
    arguments = float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8)
    assert ipo_loss(*arguments, beta=0.5).item() == pytest.approx(0.09)


def test_cdpo_by_hand():
    arguments = float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8)
    probability = 1 / (1 + math.exp(-0.5 * 0.7))
    expected = -0.9 * math.log(probability) - 0.1 * math.log(1 - probability)
    assert cdpo_loss(*arguments, 0.5, 0.1).item() == pytest.approx(expected)


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
@pytest.mark.parametrize("smoothed", [cdpo_loss, rdpo_loss])
def test_without_smoothing_it_is_dpo(smoothed, beta):
    one, other = ([tensor.clone().requires_grad_() for tensor in four(1)] for _ in range(2))
    losses = smoothed(*one, beta, 0.0), dpo_loss(*other, beta)
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


# What counts, and what does not


@some("dpo", "ipo", "cdpo", "rdpo", "chi_po", "kto")
def test_only_log_ratios_of_a_pair_count(loss):
    chosen, rejected, ref_chosen, ref_rejected = four(2)
    value = loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    assert_close(loss(chosen - 2, rejected, ref_chosen - 2, ref_rejected, beta=0.5), value)
    assert_close(loss(chosen, rejected + 1, ref_chosen, ref_rejected + 1, beta=0.5), value)


@some("dpo", "ipo", "cdpo", "rdpo")
def test_what_both_responses_lose_alike_does_not_count(loss):
    chosen, rejected, *refs = four(2)
    value = loss(chosen, rejected, *refs, beta=0.5)
    assert_close(loss(chosen - 1, rejected - 1, *refs, beta=0.5), value)


@some("simpo", "orpo", "chi_po", "kto")
def test_for_others_it_does(loss):
    chosen, rejected, *refs = four(2)
    value = loss(chosen, rejected, *refs, beta=0.5)
    assert abs(loss(chosen - 1, rejected - 1, *refs, beta=0.5) - value) > 1e-3


@some("dpo", "ipo", "cdpo", "rdpo", "chi_po", "kto")
def test_the_order_of_the_pairs_does_not_count(loss):
    order = torch.tensor([3, 1, 4, 0, 2])
    value = loss(*four(2), beta=0.5)
    assert_close(loss(*(tensor[order] for tensor in four(2)), beta=0.5), value)


@some("simpo", "orpo")
def test_without_a_reference_only_means_over_tokens_count(loss):
    chosen, rejected, ref_chosen, ref_rejected = four(2)
    value = loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    assert_close(loss(chosen, rejected, 9 * ref_rejected, ref_chosen, beta=0.5), value)
    loss = partial(simpo_loss, gamma=0.6) if loss is LOSSES["simpo"] else orpo_loss
    lengths = 2 * CHOSEN_LENGTHS, 2 * REJECTED_LENGTHS
    assert_close(loss(2 * chosen, 2 * rejected, *lengths, beta=0.5), value)


@some("dpo", "cdpo", "rdpo", "chi_po")
@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_at_the_reference_the_loss_is_that_of_a_coin(loss, beta):
    chosen, rejected, *_ = four(0)
    assert loss(chosen, rejected, chosen, rejected, beta=beta).item() == pytest.approx(math.log(2))


# What is special about each


def test_the_expectation_of_rdpo_under_flips_is_dpo_without_them():
    results = []
    for robust in (True, False):
        chosen, rejected, *refs = [tensor.requires_grad_() for tensor in four(8)]
        if robust:
            right = rdpo_loss(chosen, rejected, *refs, 0.7, 0.2)
            flipped = rdpo_loss(rejected, chosen, *refs[::-1], 0.7, 0.2)
            loss = 0.8 * right + 0.2 * flipped
        else:
            loss = dpo_loss(chosen, rejected, *refs, 0.7)
        results.append([loss.detach(), *gradients(loss, chosen, rejected)])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)
    value, half = results[1][0], four(8)
    assert abs(cdpo_loss(*half, 0.7, 0.2) - value) > 0.01, "cDPO is not unbiased"


def test_rdpo_has_no_lower_bound():
    nothing = float64(0.0)
    values = [rdpo_loss(float64(m), nothing, nothing, nothing, 1.0, 0.2) for m in (10, 100, 1000)]
    assert values[0] > values[1] + 10 > values[2] + 100


def test_simpo_by_hand():
    # β · (−2/2 − −3/1) − γ = 0.5 · 2 − 0.3 = 0.7.
    loss = simpo_loss(
        float64(-2.0), float64(-3.0), torch.tensor([2]), torch.tensor([1]), beta=0.5, gamma=0.3
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.7)))


def test_simpo_of_single_tokens_is_dpo_against_a_uniform_reference():
    chosen, rejected, *_ = four(1)
    one, uniform = torch.ones(5), torch.full((5,), -2.0, dtype=torch.float64)
    loss = simpo_loss(chosen, rejected, one, one, 0.5, 0.0)
    assert_close(loss, dpo_loss(chosen, rejected, uniform, uniform, 0.5))


def test_simpo_wants_its_margin():
    equal, one = float64(-1.0), torch.ones(1)
    for gamma in (0.0, 0.5, 2.0):
        loss = simpo_loss(equal, equal, one, one, 1.0, gamma)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(gamma)))


def test_orpo_by_hand():
    # A token of the chosen has probability 1/2 and odds 1, one of the rejected 1/4 and odds 1/3.
    chosen, rejected = float64(3 * math.log(0.5)), float64(2 * math.log(0.25))
    loss = orpo_loss(chosen, rejected, torch.tensor([3]), torch.tensor([2]), beta=0.6)
    assert loss.item() == pytest.approx(math.log(2) + 0.6 * math.log(1 + 1 / 3))


@pytest.mark.parametrize("length", [0, -1])
@pytest.mark.parametrize("side", [0, 1])
def test_a_response_has_a_token(length, side):
    lengths = [torch.ones(5), torch.ones(5)]
    lengths[side] = torch.tensor([1, 1, length, 1, 1])
    name = ("chosen_lengths", "rejected_lengths")[side]
    for loss in (lambda *a: simpo_loss(*a, 0.5, 0.0), lambda *a: orpo_loss(*a, 0.5)):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got {length}"):
            loss(*four(1)[:2], *lengths)


def test_chi_po_by_hand():
    # z of the chosen is 2, that of the rejected 1: β (2 + log 2 − 1) = 0.5 · 1.6931.
    arguments = float64(math.log(0.5)), float64(-1.0), float64(math.log(0.25)), float64(-1.0)
    expected = math.log(1 + math.exp(-0.5 * (1 + math.log(2))))
    assert chi_po_loss(*arguments, beta=0.5, max_reward=10.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_chi_po_gives_no_gradient_beyond_twice_its_largest_reward(sign):
    reference, limit = float64(-2.0), 2 * 1.5
    for log_ratio, is_clipped in ((0.9, False), (1.0, True), (50.0, True), (1000.0, True)):
        # β (z + log z) − β (1 + 0), with β = 1.2, is 2.83 at a log-ratio of 0.9, and 3.26 at 1.
        high = (reference + log_ratio).requires_grad_()
        pair = (high, reference) if sign > 0 else (reference, high)
        loss = chi_po_loss(*pair, reference, reference, beta=1.2, max_reward=1.5)
        slope = gradients(loss, high)[0].item()
        if is_clipped:
            assert loss.item() == pytest.approx(math.log(1 + math.exp(-sign * limit)))
            assert slope == 0
        else:
            assert sign * slope < -0.01


def test_kto_at_the_reference_is_a_quarter_of_both_weights():
    chosen, rejected, *_ = four(0)
    loss = kto_loss(chosen, rejected, chosen, rejected, 0.5, torch.tensor(0.0), 1.5, 0.7)
    assert loss.item() == pytest.approx((1.5 + 0.7) / 4)


def test_kto_does_not_care_which_two_were_compared():
    chosen, rejected, ref_chosen, ref_rejected = four(2)
    order = torch.tensor([3, 1, 4, 0, 2])
    one = kto_loss(chosen, rejected, ref_chosen, ref_rejected, 0.5, KL, 1.5, 0.7)
    other = kto_loss(chosen, rejected[order], ref_chosen, ref_rejected[order], 0.5, KL, 1.5, 0.7)
    assert_close(one, other)
    swapped = kto_loss(rejected, chosen, ref_rejected, ref_chosen, 0.5, KL, 1.5, 0.7)
    assert abs(one - swapped) > 0.01


def test_kto_s_kl_is_a_point_of_reference_and_is_not_trained():
    kl = torch.tensor(0.3, requires_grad=True)
    pair = [tensor.requires_grad_() for tensor in four(2)]
    loss = kto_loss(*pair, 0.5, kl)
    assert gradients(loss, kl, pair[0])[0] is None
    for bad in (torch.tensor([0.3]), torch.tensor(-0.1), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match="kl must be one number of at least 0, got"):
            kto_loss(*four(2), 0.5, bad)


# The KL that a batch of pairs estimates


def a_batch(seed, X=6):
    """Every pair of X outcomes as two draws from a reference, their weights, and both policies."""
    policy, reference = (t.log_softmax(-1) for t in normal(seed, X, n=2))
    i, j = torch.cartesian_prod(torch.arange(X), torch.arange(X)).T
    lengths = torch.ones(X**2)
    pairs = PairLogps(policy[i], policy[j], reference[i], reference[j], lengths, lengths)
    return pairs, (reference[i] + reference[j]).exp(), policy, reference


def test_the_kl_of_all_pairs_of_the_reference_s_responses_is_exact():
    pairs, weights, policy, reference = a_batch(0)
    assert_close(pairs.kl(weights), kl_divergence(policy, reference))
    assert_close(pairs.kl(7 * weights), kl_divergence(policy, reference))
    assert abs(pairs.kl() - kl_divergence(policy, reference)) > 0.01


def test_without_weights_it_is_an_average_by_importance():
    pairs, _, _, _ = a_batch(1)
    log_ratios = np.concatenate([r.numpy() for r in pairs.implicit_rewards(1.0)])
    ratios = np.exp(log_ratios)
    expected = (ratios * log_ratios).sum() / ratios.sum()
    assert expected > 0.1
    assert pairs.kl().item() == pytest.approx(expected)


def test_it_is_never_negative_has_no_gradient_and_bears_a_probability_of_zero():
    reference, one = float64(-2.0, -1.0), torch.ones(2)
    logps = (reference - 1).requires_grad_()
    below = PairLogps(logps, logps, reference, reference, one, one)
    assert below.kl().item() == 0 and not below.kl().requires_grad
    never = float64(-math.inf, -1.0)
    some = PairLogps(never, reference, reference, reference, one, one)
    assert some.kl().item() == pytest.approx(0)
    assert PairLogps(*[reference] * 4, one, one).kl(float64(1.0, 0.0)).item() == 0


# What cannot be computed is refused, and what can must not overflow


@every
def test_a_huge_margin_does_not_overflow(loss):
    low, high = float64(*[-1e4] * 5).requires_grad_(), float64(*[-1e-3] * 5).requires_grad_()
    for pair in ((low, high), (high, low)):
        value = loss(*pair, high.detach(), high.detach(), beta=1.0)
        assert value.isfinite()
        assert all(slope.isfinite().all() for slope in gradients(value, *pair))


@every
@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_beta_is_refused(loss, beta):
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        loss(*four(4), beta=beta)


@every
@pytest.mark.parametrize("i", range(4))
def test_shapes_that_differ_are_refused(loss, i):
    arguments = list(four(5))
    arguments[i] = arguments[i][:1]
    if i > 1 and loss in (LOSSES["simpo"], LOSSES["orpo"]):
        return  # they take no reference
    with pytest.raises(ValueError, match="one shape"):
        loss(*arguments, beta=0.5)


@every
def test_pairs_that_would_broadcast_are_refused(loss):
    chosen, rejected, ref_chosen, ref_rejected = four(6)
    with pytest.raises(ValueError, match="one shape"):
        loss(chosen, rejected[:1], ref_chosen, ref_rejected[:1], beta=0.5)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (preference_probability, [(3,), (2,)]),
        (bradley_terry_loss, [(3,), (1,)]),
        (bradley_terry_loss, [(3, 1), (3,)]),
        (preference_accuracy, [(3,), (1,)]),
        (lambda *a: implicit_reward(*a, 0.1), [(3,), (1,)]),
    ],
)
def test_shapes_that_would_broadcast_silently_are_refused(function, shapes):
    with pytest.raises(ValueError, match=r"must have one shape, got .*\["):
        function(*(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_the_beta_of_an_implicit_reward_must_be_a_finite_number_above_0(beta):
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        implicit_reward(torch.ones(2), torch.ones(2), beta)


@pytest.mark.parametrize("loss", [cdpo_loss, rdpo_loss])
@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_a_bad_label_smoothing_is_refused(loss, smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        loss(*four(7), 0.5, smoothing)


@every
def test_a_weight_of_two_counts_like_a_pair_that_is_there_twice(loss):
    pair = four(0)
    weights = float64(2.0, 1.0, 1.0, 0.0, 1.0)
    rows = torch.tensor([0, 0, 1, 2, 4])
    # One pair at a time: the lengths of some losses belong to places.
    alone = torch.stack([loss(*pair, beta=0.5, weights=row) for row in torch.eye(5).double()])
    assert_close(loss(*pair, beta=0.5, weights=weights), alone[rows].mean())
    assert_close(loss(*pair, beta=0.5), alone.mean())
    assert not torch.allclose(alone[rows].mean(), alone.mean())


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
