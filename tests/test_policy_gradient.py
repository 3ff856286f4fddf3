"""REINFORCE, RLOO, GRPO and Dr. GRPO: what each one's update is in expectation, and its settings.

The first half reads as the specification: every group of responses of a tiny world is weighted by
its probability, so the gradient of the loss is the expected update, and it is held against formulas
written in numpy. Where it is not the policy gradient ∇J, the test shows by how much.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_toy import policy_gradient
from rlhf_toy.checkpoints import digest
from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import make_yardstick
from rlhf_toy.models import GPTConfig, PolicyModel, ResidualPolicy
from rlhf_toy.policy_gradient import (
    PolicyGradientSettings,
    PolicyGradientState,
    experience_loss,
    make_experience,
    policy_gradient_iteration,
    train_policy_gradient,
)
from rlhf_toy.training import make_generator

BETA = 0.4
# One minibatch and sums over tokens: with RLOO and k1 in the reward, the first step is ∇J.
PLAIN = PolicyGradientSettings(
    beta=BETA, batch_size=80, num_generations=2, num_mini_batches=1, max_grad_norm=1e9
)
THETA, REF = 0, 1  # seeds


def groups(world, theta, G):
    """All groups of G responses to one prompt, by row: [M, G]; and the probability of each [M].

    A group is a multiset, so its probability has a multinomial factor.
    """
    chances, found, weights = 2 * world.chances(theta), [], []  # π(y|x)
    per_prompt = len(world.rows) // 2
    for x in range(2):
        rows = range(x * per_prompt, (x + 1) * per_prompt)
        for group in itertools.combinations_with_replacement(rows, G):
            orders = math.factorial(G) / math.prod(map(math.factorial, Counter(group).values()))
            found.append(group)
            weights.append(0.5 * orders * chances[list(group)].prod())
    assert sum(weights) == pytest.approx(1)
    return np.array(found), np.array(weights)


def experience_of(world, rows, settings, old, ref):
    """The experience of some rows that the table θ_old sampled."""
    with torch.no_grad():
        rollout = world.rollout(world.table(old))[rows]
        ref_logps = world.table(ref).token_logps(world.prompts, world.responses)[rows]
        return make_experience(rollout, torch.from_numpy(world.rewards)[rows], ref_logps, settings)


def expected_update(world, settings, theta=None, ref=None, old=None):
    """Minus the gradient of the loss in θ, each group weighted by its probability under `old`."""
    theta = world.theta(THETA) if theta is None else theta
    ref = world.theta(REF) if ref is None else ref
    old = theta if old is None else old
    found, weights = groups(world, old, settings.num_generations)
    rows = torch.from_numpy(found.flatten())
    batch = experience_of(world, rows, settings, old, ref)
    policy = world.table(theta)
    logps = policy.token_logps(batch.prompts, batch.responses)
    weights = torch.from_numpy(weights.repeat(settings.num_generations))
    experience_loss(logps, batch, settings, weights).backward()
    return -policy.table.grad.numpy()


def along(world, per_response):
    """Coefficients of all tokens from one number for each response."""
    return [[c] * n for c, n in zip(per_response, world.lengths, strict=True)]


def log_ratios(world, theta, ref):
    """log π/π_ref of each token: a list of N arrays."""
    pairs = zip(world.token_logps(theta), world.token_logps(ref), strict=True)
    return [one - other for one, other in pairs]


def by_token(world, theta, function):
    """Coefficients π(row) · function(row, token's log-ratio) for the settings' policies."""
    chances = world.chances(theta)
    ratios = log_ratios(world, theta, world.theta(REF))
    return [[chances[n] * function(n, r) for r in row] for n, row in enumerate(ratios)]


def close(one, other):
    np.testing.assert_allclose(one, other, atol=1e-8, rtol=0)


def cosine(one, other):
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def grad_J(world, beta=BETA, theta=None):
    theta = world.theta(THETA) if theta is None else theta
    return world.policy_gradient(theta, world.theta(REF), beta)


# KL in the reward


@pytest.mark.parametrize("advantage", ["reinforce", "rloo"])
@pytest.mark.parametrize("beta", [0.4, 2.0])
def test_reinforce_and_rloo_with_k1_in_the_reward_follow_the_policy_gradient(tiny, advantage, beta):
    settings = replace(PLAIN, advantage=advantage, beta=beta)
    close(expected_update(tiny, settings), grad_J(tiny, beta))


@pytest.mark.parametrize("G", [2, 3, 4])
def test_rloo_follows_it_whatever_the_size_of_its_groups(small, G):
    close(expected_update(small, replace(PLAIN, batch_size=12, num_generations=G)), grad_J(small))


def test_reinforce_needs_no_group(tiny):
    settings = replace(PLAIN, advantage="reinforce", num_generations=1)
    close(expected_update(tiny, settings), grad_J(tiny))


def every_batch(world, theta):
    """All batches of two groups of two, as four rows and the probability of each batch."""
    found, weights = groups(world, theta, 2)
    pairs = np.ndindex((len(found),) * 2)
    return [([*found[i], *found[j]], weights[i] * weights[j]) for i, j in pairs]


def test_the_mean_of_all_other_responses_is_a_baseline_too(one_token):
    theta, settings = one_token.theta(THETA), replace(PLAIN, advantage="baseline")
    policy, loss = one_token.table(theta), 0.0
    for rows, chance in every_batch(one_token, theta):
        batch = experience_of(one_token, rows, settings, theta, one_token.theta(REF))
        logps = policy.token_logps(batch.prompts, batch.responses)
        loss = loss + chance * experience_loss(logps, batch, settings)
    loss.backward()
    close(-policy.table.grad.numpy(), grad_J(one_token))
    # In one batch: the reward minus the mean of the other three, two of which have another prompt.
    penalised = one_token.rewards - BETA * (
        one_token.logps(theta) - one_token.logps(one_token.theta(REF))
    )
    rows = [0, 2, 4, 5]
    batch = experience_of(one_token, rows, settings, theta, one_token.theta(REF))
    scores = penalised[rows]
    close(batch.advantages.numpy(), [s - np.delete(scores, i).mean() for i, s in enumerate(scores)])


@pytest.mark.parametrize("G", [2, 3, 4])
def test_dr_grpo_follows_the_gradient_of_the_reward_but_for_a_factor(small, G):
    settings = replace(PLAIN, advantage="dr_grpo", batch_size=12, num_generations=G)
    without_kl = expected_update(small, replace(settings, kl="none"))
    close(without_kl, (1 - 1 / G) * grad_J(small, beta=0))
    close(expected_update(small, settings), (1 - 1 / G) * grad_J(small))


def grpo_by_hand(world, theta, scores, G):
    """E of the mean over a group of (r − mean)/(std + 1e-4), by response: [N]."""
    coefficients = np.zeros(len(world.rows))
    for group, weight in zip(*groups(world, theta, G), strict=True):
        r = scores[group]
        np.add.at(coefficients, group, weight / G * (r - r.mean()) / (r.std(ddof=1) + 1e-4))
    return coefficients


@pytest.mark.parametrize(("G", "how_near"), [(2, 0.946), (4, 0.971)])
def test_grpo_follows_another_direction(small, G, how_near):
    theta = small.theta(THETA)
    settings = replace(PLAIN, advantage="grpo", num_generations=G, kl="none")
    update = expected_update(small, settings)
    coefficients = grpo_by_hand(small, theta, small.rewards, G)
    close(update, small.score(theta, along(small, coefficients)))
    assert cosine(update, grad_J(small, beta=0)) == pytest.approx(how_near, abs=1e-3)
    penalised = small.rewards - BETA * (small.logps(theta) - small.logps(small.theta(REF)))
    coefficients = grpo_by_hand(small, theta, penalised, G)
    with_kl = expected_update(small, replace(settings, kl="k1_reward"))
    close(with_kl, small.score(theta, along(small, coefficients)))


def test_grpo_of_two_counts_who_is_better_and_not_by_how_much(tiny):
    theta, settings = tiny.theta(THETA), replace(PLAIN, advantage="grpo", kl="none")
    update = expected_update(tiny, settings)
    chances, r = tiny.chances(theta), tiny.rewards
    # ½ √2 · (P(worse than it) − P(better than it)), but for the 1e-4 beside the deviation.
    same_prompt = np.arange(80)[:, None] // 40 == np.arange(80) // 40
    wins = (2 * chances * same_prompt * np.sign(r[:, None] - r)).sum(1)
    right = tiny.score(theta, along(tiny, chances * wins / math.sqrt(2)))
    np.testing.assert_allclose(update, right, atol=0.01 * np.abs(right).max())
    assert cosine(update, grad_J(tiny, beta=0)) == pytest.approx(0.951, abs=1e-3)


# KL in the loss


def test_k2_of_a_response_in_the_loss_is_the_gradient_of_the_kl(tiny):
    update = expected_update(tiny, replace(PLAIN, kl="k2_loss"))
    close(update, grad_J(tiny))


def test_k2_of_each_token_misses_the_kl_still_to_come(tiny):
    theta, ref = tiny.theta(THETA), tiny.theta(REF)
    update = expected_update(tiny, replace(PLAIN, kl="k2_loss", kl_level="token"))
    # β E Σ_t ∇log π_t log π_t/π_ref,t in place of β E Σ_t ∇log π_t Σ_{u ≥ t} log π_u/π_ref,u.
    own = by_token(tiny, theta, lambda n, log_ratio: -BETA * log_ratio)
    close(update, grad_J(tiny, beta=0) + tiny.score(theta, own))
    chances = tiny.chances(theta)
    missing = [
        [BETA * chances[n] * row[t + 1 :].sum() for t in range(len(row))]
        for n, row in enumerate(log_ratios(tiny, theta, ref))
    ]
    close(update, grad_J(tiny) + tiny.score(theta, missing))
    kl, whole = (u - grad_J(tiny, beta=0) for u in (update, grad_J(tiny)))
    assert cosine(kl, whole) == pytest.approx(0.828, abs=1e-3)


@pytest.mark.parametrize("kl_level", ["sequence", "token"])
@pytest.mark.parametrize("kl", ["k2_loss", "k3_loss"])
def test_of_a_single_token_both_levels_are_the_same(one_token, kl, kl_level):
    ref_chances = one_token.chances(one_token.theta(REF))
    update = expected_update(one_token, replace(PLAIN, kl=kl, kl_level=kl_level))
    forward = BETA * one_token.score(one_token.theta(THETA), along(one_token, ref_chances))
    k3 = grad_J(one_token, beta=0) + forward
    close(update, k3 if kl == "k3_loss" else grad_J(one_token))
    reverse = grad_J(one_token) - grad_J(one_token, beta=0)
    assert cosine(forward, reverse) == pytest.approx(0.917, abs=1e-3)


def test_k3_of_a_response_in_the_loss_is_the_gradient_of_the_other_kl(tiny):
    theta = tiny.theta(THETA)
    update = expected_update(tiny, replace(PLAIN, kl="k3_loss"))
    # −β ∇KL(π_ref ‖ π) = β E_ref[∇log π].
    ref_chances = tiny.chances(tiny.theta(REF))
    forward = BETA * tiny.score(theta, along(tiny, ref_chances))
    close(update, grad_J(tiny, beta=0) + forward)
    reverse = grad_J(tiny) - grad_J(tiny, beta=0)
    assert cosine(forward, reverse) == pytest.approx(0.628, abs=1e-3)


def test_k3_of_each_token_is_the_other_kl_in_the_states_of_the_policy(tiny):
    theta = tiny.theta(THETA)
    update = expected_update(tiny, replace(PLAIN, kl="k3_loss", kl_level="token"))
    # In a state: E_π[(1 − π_ref/π) ∇log π] = −E_ref[∇log π].
    own = by_token(tiny, theta, lambda n, log_ratio: -BETA * (1 - np.exp(-log_ratio)))
    close(update, grad_J(tiny, beta=0) + tiny.score(theta, own))
    reverse = grad_J(tiny) - grad_J(tiny, beta=0)
    assert cosine(tiny.score(theta, own), reverse) == pytest.approx(0.788, abs=1e-3)


@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss", "k3_loss"])
def test_without_the_kl_term_the_reference_does_not_count(tiny, kl):
    one = expected_update(tiny, replace(PLAIN, kl="none"))
    close(one, expected_update(tiny, replace(PLAIN, kl="none"), ref=tiny.theta(5)))
    close(one, grad_J(tiny, beta=0))
    other = expected_update(tiny, replace(PLAIN, kl=kl), ref=tiny.theta(5))
    assert np.abs(other - expected_update(tiny, replace(PLAIN, kl=kl))).max() > 1e-3


# Means over tokens and responses


def test_the_mean_over_tokens_divides_by_the_expected_length(tiny):
    length = (tiny.chances(tiny.theta(THETA)) * tiny.lengths).sum()
    settings = replace(PLAIN, aggregate="token")
    close(expected_update(tiny, settings), grad_J(tiny) / length)
    settings = replace(settings, kl="k2_loss", kl_level="token")
    theta = tiny.theta(THETA)
    own = by_token(tiny, theta, lambda n, log_ratio: -BETA * log_ratio)
    right = (grad_J(tiny, beta=0) + tiny.score(theta, own)) / length
    close(expected_update(tiny, settings), right)


def test_the_mean_over_each_response_follows_another_direction(tiny):
    theta, ref = tiny.theta(THETA), tiny.theta(REF)
    update = expected_update(tiny, replace(PLAIN, aggregate="response_mean"))
    penalised = tiny.rewards - BETA * (tiny.logps(theta) - tiny.logps(ref))
    chances = tiny.chances(theta)
    mean = np.repeat([2 * (chances * penalised)[x].sum() for x in np.arange(80).reshape(2, 40)], 40)
    right = tiny.score(theta, along(tiny, chances * (penalised - mean) / tiny.lengths))
    close(update, right)
    assert cosine(update, grad_J(tiny)) == pytest.approx(0.938, abs=1e-3)
    # Without a baseline even the mean reward pushes towards lengths.
    plain = expected_update(tiny, replace(PLAIN, aggregate="response_mean", advantage="reinforce"))
    close(plain, tiny.score(theta, along(tiny, chances * penalised / tiny.lengths)))
    assert np.abs(plain - update).max() > 1e-2


def test_of_single_tokens_all_means_are_the_same(one_token):
    updates = [
        expected_update(one_token, replace(PLAIN, aggregate=aggregate))
        for aggregate in ("sequence", "token", "response_mean")
    ]
    for update in updates:
        close(update, grad_J(one_token))


def test_grpo_as_in_its_paper(small):
    theta, lengths = small.theta(THETA), small.lengths
    settings = replace(
        PLAIN, advantage="grpo", num_generations=4, kl="k3_loss", kl_level="token",
        aggregate="response_mean",
    )  # fmt: skip
    advantages = grpo_by_hand(small, theta, small.rewards, 4) / lengths
    kl = by_token(small, theta, lambda n, lr: -BETA * (1 - np.exp(-lr)) / lengths[n])
    right = small.score(theta, along(small, advantages)) + small.score(theta, kl)
    close(expected_update(small, settings), right)
    assert cosine(right, grad_J(small)) == pytest.approx(0.942, abs=1e-3)


# Minibatches


@pytest.mark.parametrize("aggregate", ["sequence", "token", "response_mean"])
@pytest.mark.parametrize("kl", ["k1_reward", "k2_loss"])
def test_the_first_of_several_minibatches_is_the_only_one_of_one(tiny, kl, aggregate):
    settings = replace(PLAIN, kl=kl, aggregate=aggregate)
    one = expected_update(tiny, settings)
    close(expected_update(tiny, replace(settings, num_mini_batches=4)), one)
    assert np.abs(one).max() > 1e-3


@pytest.mark.parametrize("cliprange", [0.1, 0.25])
def test_later_minibatches_follow_the_tokens_that_are_not_clipped(small, cliprange):
    old, ref = small.theta(THETA), small.theta(REF)
    theta = old + 0.4 * small.theta(7)
    settings = replace(PLAIN, num_mini_batches=4, cliprange=cliprange)
    update = expected_update(small, settings, theta, old=old)
    penalised = small.rewards - BETA * (small.logps(old) - small.logps(ref))
    ratios = [
        np.exp(new - before)
        for new, before in zip(small.token_logps(theta), small.token_logps(old), strict=True)
    ]
    coefficients, clipped = [[0.0] * n for n in small.lengths], 0
    for (i, j), weight in zip(*groups(small, old, 2), strict=True):
        for row, other in ((i, j), (j, i)):
            advantage = penalised[row] - penalised[other]
            for t, ratio in enumerate(ratios[row]):
                is_clipped = ratio > 1 + cliprange if advantage > 0 else ratio < 1 - cliprange
                coefficients[row][t] += 0 if is_clipped else weight / 2 * ratio * advantage
                clipped += is_clipped
    close(update, small.score(theta, coefficients))
    assert 10 < clipped < 200


def test_a_gpt_gets_the_same_expected_update_by_the_chain_rule(tiny):
    policy, reference = tiny.gpt(3), tiny.gpt(4)
    chances = tiny.rollout(policy).logps.sum(1).exp()
    rows = torch.tensor([(i, j) for i in range(80) for j in range(80) if i // 40 == j // 40])
    weights = 0.5 * chances[rows].prod(1).repeat_interleave(2)
    rows = rows.flatten()
    with torch.no_grad():
        ref_logps = reference.token_logps(tiny.prompts, tiny.responses)
        scores = torch.from_numpy(tiny.rewards)[rows]
        batch = make_experience(tiny.rollout(policy)[rows], scores, ref_logps[rows], PLAIN)
    logps = policy.token_logps(tiny.prompts, tiny.responses)
    loss = experience_loss(logps[rows], batch, PLAIN, weights)
    parameters = list(policy.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    penalised = tiny.rewards - BETA * (logps - ref_logps).sum(1).detach().numpy()
    coefficients = torch.from_numpy(0.5 * chances.numpy() * penalised)
    right = torch.autograd.grad((coefficients * logps.sum(1)).sum(), parameters)
    for one, other in zip(found, right, strict=True):
        close(-one.numpy(), other.numpy())
    assert max(float(g.abs().max()) for g in right) > 1e-3


# What each setting does


def one_iteration(tiny, settings, updates, step=0):
    """The updates of one iteration, its metrics, and the sizes of the calls of the reward."""
    updates.clear()
    state = PolicyGradientState(tiny.gpt(3).float(), settings, make_generator(7))
    state.step = step
    calls = []

    def reward(prompts, responses):
        calls.append(len(prompts))
        return tiny.world.response_rewards(prompts, responses)

    metrics = policy_gradient_iteration(state, tiny.world, tiny.gpt(4).float(), reward, settings)
    assert state.step == step + 1
    return list(updates), metrics, calls


def flat(update):
    return torch.cat([g.flatten() for g in update[1]])


def spy(monkeypatch, name):
    """The (arguments, result) of every call of a function of the module from now on."""
    seen, real = [], getattr(policy_gradient, name)

    def spying(*arguments):
        seen.append((arguments, real(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(policy_gradient, name, spying)
    return seen


@pytest.mark.parametrize(("batch_size", "G"), [(8, 2), (24, 4), (24, 8)])
def test_batches_are_groups_of_responses_to_one_prompt(tiny, updates, monkeypatch, batch_size, G):
    drawn = spy(monkeypatch, "sample")
    settings = replace(PLAIN, batch_size=batch_size, num_generations=G)
    _, _, calls = one_iteration(tiny, settings, updates)
    ((_, rollout),) = drawn
    assert len(rollout) == batch_size and len(calls) == 1
    assert (rollout.prompts.view(-1, G) == rollout.prompts.view(-1, G)[:, :1]).all()


def test_num_mini_batches_is_how_many_updates_there_are_and_each_response_is_in_one(
    tiny, updates, monkeypatch
):
    seen = spy(monkeypatch, "experience_loss")
    made = spy(monkeypatch, "make_experience")
    for n in (1, 5):
        seen.clear()
        made.clear()
        some, _, _ = one_iteration(tiny, replace(PLAIN, num_mini_batches=n), updates)
        batches = [arguments[1] for arguments, _ in seen]
        assert len(some) == n and [len(batch) for batch in batches] == [80 // n] * n
        together = torch.cat([batch.logps.sum(1) + batch.advantages for batch in batches])
        whole = made[0][1].logps.sum(1) + made[0][1].advantages
        torch.testing.assert_close(together.sort().values, whole.sort().values)
        for (logps, batch, _), _ in seen[:1]:
            torch.testing.assert_close(logps.detach(), batch.logps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", [0, 3, 9])
def test_the_learning_rate_falls_linearly_over_the_iterations(tiny, updates, step):
    settings = replace(PLAIN, iterations=10, learning_rate=0.02, num_mini_batches=2)
    rates = {rate for rate, _ in one_iteration(tiny, settings, updates, step=step)[0]}
    assert rates == {0.02 * (1 - step / 10)}


def test_the_gradient_is_clipped_to_its_largest_norm(tiny, updates):
    whole = flat(one_iteration(tiny, PLAIN, updates)[0][0])
    clipped = flat(one_iteration(tiny, replace(PLAIN, max_grad_norm=0.1), updates)[0][0])
    assert whole.norm() > 0.5
    torch.testing.assert_close(clipped, whole / whole.norm() * 0.1, atol=1e-5, rtol=1e-4)


def test_cliprange_decides_which_tokens_count_as_clipped(tiny):
    old, rows = tiny.theta(THETA), torch.arange(80)
    theta = old + 0.3 * tiny.theta(7)
    batch = experience_of(tiny, rows, PLAIN, old, tiny.theta(REF))
    logps = tiny.table(theta).token_logps(tiny.prompts, tiny.responses).detach()
    ratios = np.exp(np.concatenate(tiny.token_logps(theta)) - np.concatenate(tiny.token_logps(old)))
    for cliprange in (0.1, 0.3):
        metrics = batch.ratio_metrics(logps, cliprange)
        outside = np.abs(ratios - 1) > cliprange
        assert float(metrics["policy/clipfrac"]) == pytest.approx(outside.mean(), abs=1e-6)


def test_the_metrics_are_means_over_the_samples(tiny, updates, monkeypatch):
    drawn = spy(monkeypatch, "sample")
    settings = replace(PLAIN, num_generations=4, num_mini_batches=2, learning_rate=0.05)
    _, metrics, _ = one_iteration(tiny, settings, updates)
    rollout, G = drawn[0][1], 4
    scores = tiny.world.response_rewards(rollout.prompts, rollout.responses).numpy()
    ref_logps = tiny.gpt(4).float().token_logps(rollout.prompts, rollout.responses).detach()
    kl = float((rollout.logps - ref_logps).sum(1).mean())
    same = [np.ptp(group) == 0 for group in scores.reshape(-1, G)]
    assert 0 < np.mean(same) < 1, "some groups must have one reward, or it shows nothing"
    for name, right in {
        "objective/kl": kl,
        "objective/entropy": -float(rollout.logps.sum(1).mean()),
        "objective/scores": scores.mean(),
        "objective/non_score_reward": -BETA * kl,
        "objective/rlhf_reward": scores.mean() - BETA * kl,
        "frac_reward_zero_std": np.mean(same),
        "val/ratio_first": 1.0,
    }.items():
        assert float(metrics[name]) == pytest.approx(right, abs=1e-5), name
    assert float(metrics["val/ratio"]) != pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantage": "ppo"}, "advantage must be one of 'reinforce', 'baseline', 'rloo', 'grpo'"),
        ({"kl": "k1_loss"}, "kl must be one of 'k1_reward', 'k2_loss', 'k3_loss', 'none'"),
        ({"kl_level": "word"}, "kl_level must be one of 'sequence', 'token'"),
        ({"aggregate": "mean"}, "aggregate must be one of 'token', 'sequence', 'response_mean'"),
        ({"num_generations": 3}, "batch_size 80 must be a multiple of num_generations 3"),
        ({"num_mini_batches": 3}, "batch_size 80 must be a multiple of num_mini_batches 3"),
        ({"num_generations": 1}, "at least two responses to each prompt, got 1"),
        ({"advantage": "grpo", "num_generations": 1}, "at least two responses to each prompt"),
        ({"beta": 0.0}, "beta must be a finite number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(PLAIN, **change)


# Training


WORLD = WordMDP(max_length=2)


def reference(seed=3):
    config = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(seed))


SHORT = PolicyGradientSettings(iterations=7, batch_size=32, num_mini_batches=4, measure_every=3)


def train(settings=SHORT, **run):
    arguments = {"reference": reference(), "reward": WORLD.response_rewards, "device": "cpu"} | run
    return train_policy_gradient(WORLD, settings=settings, **arguments)


def test_training_is_measured_as_often_as_asked_and_starts_at_the_reference():
    _, history = train()
    assert history.series("exact/gap")[0] == [3, 6, 7]
    assert history.series("objective/kl")[0] == list(range(1, 8))
    assert abs(history.rows[0]["objective/kl"]) < 1e-5
    assert max(abs(ratio - 1) for ratio in history.series("val/ratio_first")[1]) < 1e-5


@pytest.mark.parametrize("advantage", policy_gradient.ADVANTAGES)
def test_every_advantage_comes_closer_to_the_optimum(advantage):
    settings = replace(
        SHORT, advantage=advantage, iterations=60, batch_size=128, learning_rate=3e-3
    )
    _, history = train(settings)
    assert history.last("exact/gap") < 0.7


def test_training_starts_elsewhere_against_the_same_reference(tiny):
    start = reference(9)
    policy, history = train(start=start)
    yardstick = make_yardstick(WORLD, reference(), SHORT.beta)
    assert history.rows[0]["objective/kl"] > 0.1
    assert history.last("exact/gap") == pytest.approx(yardstick.measure(policy).gap)
    assert digest(start) == digest(reference(9))
    table = tiny.table(tiny.theta(REF))
    beside = ResidualPolicy(table, tiny.gpt(0).config, make_generator(0)).float()
    settings = replace(SHORT, iterations=60, batch_size=64, learning_rate=3e-3)
    run = {"reference": table, "reward": tiny.world.response_rewards, "device": "cpu"}
    _, history = train_policy_gradient(tiny.world, settings=settings, **run, start=beside)
    assert history.last("exact/gap") < 0.7
    with pytest.raises(TypeError, match="start must be a PolicyModel or ResidualPolicy, since a"):
        train_policy_gradient(tiny.world, settings=settings, **run)


def test_the_reference_stays_as_it_is_and_must_fit_the_world_whatever_measures():
    mine = reference()
    train(replace(SHORT, iterations=1), reference=mine)
    assert digest(mine) == digest(reference())
    assert all(p.requires_grad for p in mine.parameters())
    yardstick = make_yardstick(WORLD, mine, SHORT.beta)
    other = WordMDP(max_length=3)
    config = GPTConfig.for_world(other, n_layer=1, n_head=2, n_embd=16)
    with pytest.raises(ValueError, match="was made for another world"):
        train(reference=PolicyModel(config, make_generator(0)), start=mine, yardstick=yardstick)


def test_it_trains_in_a_stochastic_world():
    world = SlipperyWordMDP(slip=0.2, max_length=2)
    settings = replace(SHORT, iterations=40, batch_size=128, learning_rate=3e-3)
    _, history = train_policy_gradient(
        world, reference(), world.response_rewards, settings, device="cpu"
    )
    assert history.last("exact/gap") < 0.8


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda p, y: torch.full((len(p),), torch.nan), "returned NaN or inf"),
        (lambda p, y: torch.zeros(len(p), 1), r"one number for each of \d+ responses"),
    ],
)
def test_a_reward_that_cannot_be_used_stops_it_at_once(bad, words):
    with pytest.raises(ValueError, match=words):
        train(reward=bad)


def test_a_run_that_diverges_stops_and_a_checkpoint_of_another_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rloo stopped at step 1: .* \(it was 1e\+30"):
        train(replace(SHORT, learning_rate=1e30))
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run: reward is"):
        train(checkpoint=path, reward=lambda p, y: -WORLD.response_rewards(p, y))
    with pytest.raises(ValueError, match="run is 'rloo' there and 'grpo' here; advantage is"):
        train(replace(SHORT, advantage="grpo"), checkpoint=path)
