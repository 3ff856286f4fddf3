"""Fixed points: closed forms in numpy, plain gradient descent, and limits on the boundary."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from rlhf_toy import losses
from rlhf_toy.exact import (
    FixedPoint,
    all_pairs,
    expected_advantages,
    fixed_point,
    gibbs_policy,
    objective,
    response_token_logps,
)
from rlhf_toy.losses import approx_kl, grpo_advantages, rloo_advantages
from rlhf_toy.training import make_generator

BETA = 0.7
LENGTHS = torch.tensor([1.0, 3, 2, 2, 4], dtype=torch.float64)


def tables(X=2, Y=5, seed=0):
    """A reference and rewards [X, Y]."""
    logits, rewards = torch.randn(2, X, Y, generator=make_generator(seed), dtype=torch.float64)
    return logits.log_softmax(-1), rewards


REF, REWARDS = tables()


def preference(loss, **who):
    """The expectation of a loss of (pairs, weights) over all pairs, as a function of the policy."""
    return lambda logps: loss(*all_pairs(logps, REF, REWARDS, LENGTHS, **who))


def online(loss):
    return lambda logps: loss(*all_pairs(logps, REF, REWARDS, sampler_logps=logps))


def climb(credit, logps):
    """The policy-gradient loss of responses with these advantages [X, Y]."""
    return -(logps.detach().exp() * credit.detach() * logps).sum(-1).mean()


def penalty(estimator, logps, ref_logps=REF):
    """The mean of a KL estimator over the policy's own responses, as a term of the loss."""
    kl = approx_kl(logps, ref_logps.expand_as(logps), estimator)
    return (logps.detach().exp() * kl).sum(-1).mean()


def dpo(pairs, weights):
    return losses.dpo_loss(*pairs.logps, BETA, weights)


def ipo(pairs, weights):
    return losses.ipo_loss(*pairs.logps, BETA, weights)


def dr_grpo(rewards):
    return grpo_advantages(rewards, scale=False)


def normalised(unnormalised, low, high):
    """The policy Σ_y f(y, c) = 1 of each prompt, as a table; f grows with c."""
    rows = []
    for x in range(len(REF)):
        c = brentq(lambda c, x=x: unnormalised(x, c).sum() - 1, low, high, xtol=1e-14)
        rows.append(unnormalised(x, c))
    return np.array(rows)


def assert_policy(found, expected):
    assert isinstance(found, FixedPoint) and not found.boundary
    assert found.residual < 1e-9
    np.testing.assert_allclose(found.logps.exp().numpy(), expected, atol=1e-6, rtol=0)


# Closed forms

REF_P, R = REF.exp().numpy(), REWARDS.numpy()


def gibbs(beta):
    policy = REF_P * np.exp(R / beta)
    return policy / policy.sum(1, keepdims=True)


def win_rates(sampler):
    """P(y ≻ μ) for every y, [X, Y]."""
    wins = 1 / (1 + np.exp(R[:, None, :] - R[:, :, None]))
    return (wins * sampler[:, None, :]).sum(2)


@pytest.mark.parametrize(
    "loss",
    [
        preference(dpo),
        preference(dpo, sampler_logps=tables(seed=3)[0]),
        online(dpo),
        preference(lambda p, w: losses.rdpo_loss(*p.logps, BETA, 0.1, w), noise=0.1),
        lambda logps: climb(REWARDS - BETA * approx_kl(logps, REF), logps),
        lambda logps: climb(REWARDS, logps) + BETA * penalty("k2", logps),
        lambda logps: -objective(logps, REF, REWARDS, BETA).mean(),
    ],
    ids=["dpo", "another sampler", "online dpo", "rdpo", "k1 reward", "k2 loss", "J itself"],
)
def test_these_end_at_the_gibbs_policy(loss):
    found = fixed_point(loss, REF, REWARDS, BETA)
    assert_policy(found, gibbs(BETA))
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert found.gibbs_kl == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", [None, 3])
def test_ipo_is_tilted_by_the_win_rate(seed):
    sampler = REF if seed is None else tables(seed=seed)[0]
    found = fixed_point(preference(ipo, sampler_logps=sampler), REF, REWARDS, BETA)
    expected = REF_P * np.exp(win_rates(sampler.exp().numpy()) / BETA)
    assert_policy(found, expected / expected.sum(1, keepdims=True))


def test_online_ipo_is_tilted_by_the_win_rate_against_itself():
    found = fixed_point(online(ipo), REF, REWARDS, BETA)
    expected = REF_P * np.exp(win_rates(found.logps.exp().numpy()) / BETA)
    assert_policy(found, expected / expected.sum(1, keepdims=True))
    offline = fixed_point(preference(ipo), REF, REWARDS, BETA)
    assert (found.logps - offline.logps).abs().max() > 0.01


def test_chi_po_inverts_its_link():
    def chi_po(pairs, weights):
        return losses.chi_po_loss(*pairs.logps, BETA, 20.0, weights)

    found = fixed_point(preference(chi_po), REF, REWARDS, BETA)
    expected = normalised(lambda x, c: REF_P[x] * lambertw(np.exp((R[x] + c) / BETA)).real, -30, 30)
    assert_policy(found, expected)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_simpo_without_a_margin_forgets_the_reference(beta):
    def simpo(pairs, weights):
        return losses.simpo_loss(*pairs.logps[:2], *pairs.lengths, beta, 0.0, weights)

    found = fixed_point(preference(simpo), REF, REWARDS, BETA)
    expected = normalised(lambda x, c: np.exp(LENGTHS.numpy() * (R[x] + c) / beta), -60, 60)
    assert_policy(found, expected)


@pytest.mark.parametrize("G", [2, 4])
def test_with_k3_in_the_loss_dr_grpo_has_a_pole_at_the_multiplier(G):
    def loss(logps):
        credit = expected_advantages(dr_grpo, logps, REWARDS, G)
        return climb(credit, logps) + BETA * penalty("k3", logps)

    beta = BETA * G / (G - 1)
    expected = normalised(
        lambda x, c: beta * REF_P[x] / (np.exp(-c) + R[x].max() - R[x]), -30, 30
    )  # λ = max r + e^−c
    assert_policy(fixed_point(loss, REF, REWARDS, BETA), expected)


@pytest.mark.parametrize(("advantage", "factor"), [(rloo_advantages, 1.0), (dr_grpo, 4 / 3)])
def test_with_k2_in_the_loss_dr_grpo_pays_more_for_the_kl(advantage, factor):
    def loss(logps):
        credit = expected_advantages(advantage, logps, REWARDS, 4)
        return climb(credit, logps) + BETA * penalty("k2", logps)

    assert_policy(fixed_point(loss, REF, REWARDS, BETA), gibbs(factor * BETA))


@pytest.mark.parametrize("G", [2, 4])
def test_with_k1_in_the_reward_grpo_ends_at_the_gibbs_policy_too(G):
    def loss(logps):
        net = REWARDS - BETA * approx_kl(logps, REF)
        return climb(expected_advantages(grpo_advantages, logps, net, G), logps)

    assert_policy(fixed_point(loss, REF, REWARDS, BETA), gibbs(BETA))


# Against plain descent


def descend(loss, tables=(REF,), policy=lambda logits: logits.log_softmax(-1), rate=2.0):
    """Gradient descent with momentum on one or more tables of logits."""
    tables = [table.clone().requires_grad_() for table in tables]
    optimizer = torch.optim.SGD(tables, lr=rate, momentum=0.9)
    for _ in range(1_000):
        optimizer.zero_grad()
        loss(policy(*tables)).backward()
        optimizer.step()
    return policy(*tables).detach().exp().numpy()


def grpo_k3(logps):
    credit = expected_advantages(grpo_advantages, logps, REWARDS, 3)
    return climb(credit, logps) + BETA * penalty("k3", logps)


@pytest.mark.parametrize(
    "loss",
    [
        grpo_k3,
        preference(lambda p, w: losses.cdpo_loss(*p.logps, BETA, 0.1, w)),
        preference(lambda p, w: losses.rdpo_loss(*p.logps, BETA, 0.02, w), noise=0.1),
        preference(lambda p, w: losses.orpo_loss(*p.logps[:2], *p.lengths, BETA, w)),
    ],
    ids=["grpo", "cdpo", "rdpo with a wrong rate", "orpo"],
)
def test_plain_gradient_descent_ends_there_as_well(loss):
    found = fixed_point(loss, REF, REWARDS, BETA)
    assert_policy(found, descend(loss, rate=0.5 if loss is grpo_k3 else 5.0))
    for start in (tables(seed=5)[0], found.logps):
        again = fixed_point(loss, REF, REWARDS, BETA, start_logps=start)
        assert_policy(again, found.logps.exp().numpy())
    assert found.gap > 1e-3


def test_a_start_at_rest_is_the_answer_at_once(monkeypatch):
    monkeypatch.setattr("rlhf_toy.exact.fixed_points.MOST_CALLS", 1)
    best = torch.from_numpy(np.log(gibbs(BETA)))
    again = fixed_point(preference(dpo), REF, REWARDS, BETA, start_logps=best)
    assert_policy(again, gibbs(BETA))


def test_a_search_that_stops_before_it_rests_is_an_error(monkeypatch):
    monkeypatch.setattr("rlhf_toy.exact.fixed_points.LONGEST", 1e-3)
    with pytest.raises(RuntimeError, match=r"the flow stopped at a speed of \d"):
        fixed_point(preference(dpo), REF, REWARDS, BETA)


# The boundary


@pytest.mark.parametrize(
    "loss",
    [
        lambda logps: climb(REWARDS, logps),
        lambda logps: climb(REWARDS, logps) + 0.1 * penalty("k1", logps),
        lambda logps: climb(expected_advantages(grpo_advantages, logps, REWARDS, 3), logps),
    ],
    ids=["no kl", "k1 loss", "grpo"],
)
def test_without_a_kl_that_pulls_only_the_best_response_is_left(loss):
    found = fixed_point(loss, REF, REWARDS, BETA)
    assert found.boundary and found.residual < 1e-9
    best = np.eye(5)[R.argmax(1)]
    np.testing.assert_array_equal(found.logps.exp().numpy(), best)
    assert found.gibbs_kl == pytest.approx(np.log(1 / gibbs(BETA)[best == 1]).mean())


def test_dpo_follows_certain_answers_to_the_boundary():
    ref, rewards = torch.tensor([[0.9, 0.1]]).double().log(), torch.tensor([[0.0, 1e4]]).double()

    def loss(logps):
        return dpo(*all_pairs(logps, ref, rewards))

    assert fixed_point(loss, ref, rewards, BETA).logps.exp().tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize(("desirable", "undesirable"), [(1.0, 1.0), (3.0, 1.0), (1.0, 1.5)])
def test_kto_gives_up_what_wins_too_rarely(beta, desirable, undesirable):
    def kto(pairs, weights):
        kl = pairs.kl(weights)
        return losses.kto_loss(*pairs.logps, beta, kl, desirable, undesirable, weights)

    found = fixed_point(preference(kto), REF, REWARDS, beta)
    below = win_rates(REF_P) < undesirable / (desirable + undesirable)
    assert below.any() and found.boundary
    gone = (found.logps == -torch.inf).numpy()
    assert gone[below].all()
    if beta < 1:
        assert not gone[~below].any()


def test_a_small_but_finite_probability_is_not_the_boundary():
    found = fixed_point(lambda logps: -objective(logps, REF, REWARDS, 0.05).mean(),
                        REF, REWARDS, 0.05)  # fmt: skip
    assert not found.boundary
    log_gibbs = gibbs_policy(REF, REWARDS, 0.05)
    assert log_gibbs.min() < -30
    torch.testing.assert_close(found.logps, log_gibbs, atol=1e-3, rtol=0)


def test_of_two_limits_the_start_picks_one():
    def loss(logps):  # both certain policies are minima of −π²
        return -(logps.exp() ** 2).sum(-1).mean()

    ref = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for start, left in ((None, 0), (ref.flip(1), 1)):
        found = fixed_point(loss, ref, rewards, 1.0, start)
        assert found.logps.exp().tolist() == [[float(left == 0), float(left == 1)]]


# Trees

RESPONSES = torch.tensor([[a, b] for a in range(3) for b in range(3)])


def test_token_probabilities_multiply_to_those_of_the_responses():
    responses = torch.tensor([[0, 3, 3], [1, 0, 3], [1, 1, 3], [1, 2, 0], [1, 2, 1], [2, 3, 3]])
    p = np.array([0.1, 0.2, 0.05, 0.15, 0.3, 0.2])
    found = response_token_logps(torch.from_numpy(np.log(p))[None], responses)[0].exp()
    expected = [
        [0.1, 1, 1],
        [0.7, 0.2 / 0.7, 1],
        [0.7, 0.05 / 0.7, 1],
        [0.7, 0.45 / 0.7, 0.15 / 0.45],
        [0.7, 0.45 / 0.7, 0.3 / 0.45],
        [0.2, 1, 1],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def token_loss(estimator, tree_ref, rewards):
    """Policy gradient, and β times a KL estimator of each token, summed, in the loss."""
    ref_tokens = response_token_logps(tree_ref, RESPONSES)

    def loss(logps):
        tokens = response_token_logps(logps, RESPONSES)
        kl = approx_kl(tokens, ref_tokens, estimator).sum(-1)
        return climb(rewards, logps) + BETA * (logps.detach().exp() * kl).sum(-1).mean()

    return loss


def test_k2_of_each_token_misses_the_kl_that_is_still_to_come():
    ref, rewards = tables(1, 9)
    whole = fixed_point(
        lambda logps: climb(rewards, logps) + BETA * penalty("k2", logps, ref), ref, rewards, BETA
    )
    found = fixed_point(token_loss("k2", ref, rewards), ref, rewards, BETA)
    assert whole.gap < 1e-9 and found.gap > 0.01
    # At the last token it is Gibbs; the first token does not see the KL of the second.
    r, p = rewards.view(3, 3), ref.exp().view(3, 3)
    first = p.sum(1)
    last = p / first[:, None] * (r / BETA).exp()
    last = last / last.sum(1, keepdim=True)
    values = (last * r).sum(1)
    expected = first * (values / BETA).exp()
    expected = (expected / expected.sum())[:, None] * last
    assert_policy(found, expected.view(1, 9).numpy())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_softmax_for_each_token_ends_at_the_same_policy(estimator):
    ref, rewards = tables(1, 9, seed=2)
    loss = token_loss(estimator, ref, rewards)
    found = fixed_point(loss, ref, rewards, BETA)

    def policy(first, second):
        return (first.log_softmax(0)[:, None] + second.log_softmax(1)).view(1, 9)

    start = torch.zeros(3).double(), torch.zeros(3, 3).double()
    assert_policy(found, descend(loss, start, policy, rate=0.5))


# Pairs


def test_the_weights_of_the_pairs_are_their_probabilities():
    sampler = tables(seed=4)[0]
    pairs, weights = all_pairs(sampler, REF, REWARDS, LENGTHS, sampler, noise=0.2)
    mu, i = sampler.exp().numpy(), 0
    different = [(y, z) for y in range(5) for z in range(5) if y != z]
    for x in range(2):
        for y, z in [*different, *zip(range(5), range(5), strict=True)]:
            wins = 1 / (1 + np.exp(R[x, z] - R[x, y]))
            chance = mu[x, y] * mu[x, z] * (0.8 * wins + 0.2 * (1 - wins))
            assert float(weights[i]) == pytest.approx(chance)
            assert float(pairs.policy_rejected_logps[i]) == float(sampler[x, z])
            assert float(pairs.ref_chosen_logps[i]) == float(REF[x, y])
            assert float(pairs.chosen_lengths[i]) == float(LENGTHS[y])
            i += 1
    assert i == len(weights) and float(weights.sum()) == pytest.approx(1)
    assert all_pairs(REF, REF, REWARDS)[0].rejected_lengths.unique().tolist() == [1]


# No limit


def test_a_flow_that_turns_for_ever_is_no_fixed_point(monkeypatch):
    monkeypatch.setattr("rlhf_toy.exact.fixed_points.MOST_CALLS", 500)
    beats = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]]).double()  # rock, paper, scissors
    ref = torch.tensor([[0.5, 0.3, 0.2]]).double().log()
    with pytest.raises(RuntimeError, match="no fixed point found: still moving after 500 calls"):
        fixed_point(lambda logps: climb(logps.exp() @ beats.T, logps), ref, ref, 1.0)


def test_losses_that_are_none_are_refused():
    with pytest.raises(TypeError, match="the loss must return a scalar tensor that depends"):
        fixed_point(lambda logps: logps.sum(-1), REF, REWARDS, BETA)
    with pytest.raises(TypeError, match=r"got 3\.0"):
        fixed_point(lambda logps: 3.0, REF, REWARDS, BETA)
    with pytest.raises(TypeError, match="the loss must return"):
        fixed_point(lambda logps: logps.detach().sum(), REF, REWARDS, BETA)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        fixed_point(lambda logps: logps.sum() * torch.nan, REF, REWARDS, BETA)


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"start_logps \[X, Y\]"):
        fixed_point(torch.sum, REF, REWARDS, BETA, REF[:1])
    with pytest.raises(ValueError, match="ref_logps must hold log-probabilities"):
        fixed_point(torch.sum, REF + 1, REWARDS, BETA)
    with pytest.raises(ValueError, match="start_logps must be finite"):
        fixed_point(torch.sum, REF, REWARDS, BETA, torch.eye(5)[:2].double().log())
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        fixed_point(torch.sum, REF, REWARDS, 0.0)
    with pytest.raises(ValueError, match=r"lengths \[Y\]"):
        all_pairs(REF, REF, REWARDS, LENGTHS[:2])
    with pytest.raises(ValueError, match="noise must be"):
        all_pairs(REF, REF, REWARDS, noise=0.6)
    with pytest.raises(ValueError, match=r"responses \[Y, T\]"):
        response_token_logps(REF, RESPONSES)
