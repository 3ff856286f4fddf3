"""PPO: what its update is in expectation, and what each setting does to it.

The first half reads as the specification: every response of a tiny world is weighted by its
probability, so the gradient of the loss is the expected update of the first minibatch, and it is
held against formulas written in numpy.
"""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_toy.checkpoints import digest
from rlhf_toy.checks import check_scores
from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import make_yardstick
from rlhf_toy.models import GPTConfig, PolicyModel, RewardModel, ValueModel
from rlhf_toy.ppo import (
    PPOSettings,
    PPOState,
    make_experience,
    ppo_iteration,
    ppo_loss,
    train_ppo,
)
from rlhf_toy.sampling import Rollout, sample
from rlhf_toy.training import make_generator

BETA = 0.4
# Summed over tokens, not whitened, undiscounted: the setting in which PPO's first step is ∇J.
PLAIN = PPOSettings(
    beta=BETA, batch_size=80, num_mini_batches=4, lam=1.0, whiten_advantages=False,
    aggregate="sequence", max_grad_norm=1e9,
)  # fmt: skip
THETA, REF, VALUES = 0, 1, 2  # seeds


def expected_update(tiny, settings, theta, values, old=None, ref=None):
    """Minus the gradient of PPO's loss in θ, each response weighted by its chance under `old`."""
    ref = tiny.theta(REF) if ref is None else ref
    old = theta if old is None else old
    policy = tiny.table(theta)
    critic = tiny.critic(policy, values) if settings.use_critic else None
    weights = torch.from_numpy(tiny.chances(old))
    with torch.no_grad():
        ref_logps = tiny.table(ref).token_logps(tiny.prompts, tiny.responses)
        scores = torch.from_numpy(tiny.rewards)
        rollout = tiny.rollout(tiny.table(old))
        experience = make_experience(rollout, scores, ref_logps, critic, settings, weights)
    loss, _ = ppo_loss(policy, critic, experience, settings, weights)
    loss.backward()
    return -policy.table.grad.numpy(), experience


def gradients_of(number, model):
    """The gradient of a scalar in every parameter of a model; 0 where it does not matter."""
    parameters = list(model.parameters())
    return torch.autograd.grad(number, parameters, allow_unused=True, materialize_grads=True)


def close(one, other):
    np.testing.assert_allclose(one, other, atol=1e-8, rtol=0)


def cosine(one, other):
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def some_values(tiny, seed=VALUES):
    """Values of a critic that knows nothing [X, S]; 0 in the state after the end."""
    values = 3 * np.random.default_rng(seed).normal(size=(2, tiny.S))
    values[:, -1] = 0.0
    return values


def test_numpy_s_policy_gradient_is_the_derivative_of_the_objective(tiny):
    theta, ref = tiny.theta(THETA), tiny.theta(REF)
    gradient = tiny.policy_gradient(theta, ref, BETA)
    for place in [(0, 0, 1), (0, 2, 3), (1, 7, 0), (1, 0, 3)]:
        step = np.zeros_like(theta)
        step[place] = 1e-6
        J = [tiny.objective(theta + sign * step, ref, BETA) for sign in (1, -1)]
        assert gradient[place] == pytest.approx((J[0] - J[1]) / 2e-6, abs=1e-8)


def test_with_lambda_1_the_update_is_the_policy_gradient_whatever_the_critic_says(tiny):
    theta = tiny.theta(THETA)
    update, _ = expected_update(tiny, PLAIN, theta, some_values(tiny))
    close(update, tiny.policy_gradient(theta, tiny.theta(REF), BETA))


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_without_a_critic_the_update_is_the_policy_gradient_whatever_lambda_says(tiny, lam):
    theta, settings = tiny.theta(THETA), replace(PLAIN, use_critic=False, lam=lam)
    update, _ = expected_update(tiny, settings, theta, None)
    close(update, tiny.policy_gradient(theta, tiny.theta(REF), BETA))


def test_a_wrong_critic_bends_the_update_where_lambda_is_below_1(tiny):
    theta, ref, lam = tiny.theta(THETA), tiny.theta(REF), 0.7
    values, right = some_values(tiny), tiny.values(theta, ref, BETA)
    update, _ = expected_update(tiny, replace(PLAIN, lam=lam), theta, values)
    # ∇J + (1−λ) E Σ_t ∇log π_t Σ_k λ^k (V − V^π)(s_{t+k+1}), where both are 0 after the end.
    excess = values - right
    coefficients = []
    for n, (x, y) in enumerate(tiny.rows):
        along = [excess[x, s] for s in tiny.states[n]]
        chance = tiny.chances(theta)[n]
        coefficients.append(
            [
                chance * (1 - lam) * sum(lam**k * v for k, v in enumerate(along[t + 1 :]))
                for t in range(len(y))
            ]
        )
    gradient = tiny.policy_gradient(theta, ref, BETA)
    close(update, gradient + tiny.score(theta, coefficients))
    assert cosine(update, gradient) < 0.99, "the example must be bent, or it shows nothing"
    exact_critic, _ = expected_update(tiny, replace(PLAIN, lam=lam), theta, right)
    close(exact_critic, gradient)


def test_the_mean_over_tokens_divides_the_policy_gradient_by_the_expected_length(tiny):
    theta, settings = tiny.theta(THETA), replace(PLAIN, aggregate="token")
    update, _ = expected_update(tiny, settings, theta, some_values(tiny))
    length = (tiny.chances(theta) * tiny.lengths).sum()
    close(update, tiny.policy_gradient(theta, tiny.theta(REF), BETA) / length)


def test_whitening_divides_by_the_standard_deviation_as_well(tiny):
    theta, ref = tiny.theta(THETA), tiny.theta(REF)
    values, chances = some_values(tiny), tiny.chances(theta)
    settings = replace(PLAIN, aggregate="token", whiten_advantages=True)
    update, _ = expected_update(tiny, settings, theta, values)
    log_ratios = [
        a - b for a, b in zip(tiny.token_logps(theta), tiny.token_logps(ref), strict=True)
    ]
    advantages, weights = [], []
    for n, (x, y) in enumerate(tiny.rows):
        for t in range(len(y)):
            to_go = tiny.rewards[n] - BETA * log_ratios[n][t:].sum()
            advantages.append(to_go - values[x, tiny.states[n][t]])
            weights.append(chances[n])
    mean = np.average(advantages, weights=weights)
    sigma = np.sqrt(np.average((np.array(advantages) - mean) ** 2, weights=weights) + 1e-8)
    close(update, tiny.policy_gradient(theta, ref, BETA) / (sigma * (chances * tiny.lengths).sum()))


def test_in_a_finite_batch_whitening_and_the_mean_over_tokens_are_not_just_a_scale(tiny):
    theta, values = tiny.theta(THETA), some_values(tiny)
    policy, critic = tiny.table(theta), tiny.critic(tiny.table(theta), values)
    rows = torch.tensor([0, 5, 17, 33, 41, 60, 79])
    ref_logps = tiny.table(tiny.theta(REF)).token_logps(tiny.prompts, tiny.responses).detach()
    found = {}
    for name, change in {
        "sum": {},
        "mean": {"aggregate": "token"},
        "whitened": {"whiten_advantages": True},
    }.items():
        settings = replace(PLAIN, **change)
        scores = torch.from_numpy(tiny.rewards)[rows]
        rollout = tiny.rollout(policy)[rows]
        batch = make_experience(rollout, scores, ref_logps[rows], critic, settings)
        loss, _ = ppo_loss(policy, critic, batch, settings)
        (gradient,) = torch.autograd.grad(loss, policy.table)
        found[name] = gradient.numpy()
    # Over one batch the mean over tokens is a scale: all tokens share its length …
    assert cosine(found["sum"], found["mean"]) == pytest.approx(1)
    # … which is random, so over batches it is not: E[sum/|tokens|] ≠ E[sum]/E[|tokens|].
    weights = tiny.chances(theta) / tiny.chances(theta).sum()
    lengths = tiny.lengths
    assert np.average(1 / lengths, weights=weights) > 1.05 / np.average(lengths, weights=weights)
    assert cosine(found["sum"], found["whitened"]) < 0.99


def test_the_mean_per_response_follows_another_direction(tiny):
    theta, ref, values = tiny.theta(THETA), tiny.theta(REF), some_values(tiny)
    right = tiny.values(theta, ref, BETA)
    settings = replace(PLAIN, aggregate="response_mean")
    update, _ = expected_update(tiny, settings, theta, right)
    chances, ratios = tiny.chances(theta), []
    for one, other in zip(tiny.token_logps(theta), tiny.token_logps(ref), strict=True):
        ratios.append(one - other)

    def closed_form(baseline):
        return tiny.score(
            theta,
            [
                [
                    chances[n]
                    / len(y)
                    * (tiny.rewards[n] - BETA * ratios[n][t:].sum() - baseline[x, s])
                    for t, s in enumerate(tiny.states[n])
                ]
                for n, (x, y) in enumerate(tiny.rows)
            ],
        )

    close(update, closed_form(right))
    with_another_critic, _ = expected_update(tiny, settings, theta, values)
    close(with_another_critic, closed_form(values))
    gradient = tiny.policy_gradient(theta, ref, BETA)
    assert cosine(update, gradient) < 0.999
    assert cosine(update, with_another_critic) < 0.999, "the critic does not cancel"


def test_later_minibatches_follow_the_tokens_that_are_not_clipped(tiny):
    old, values = tiny.theta(THETA), some_values(tiny)
    theta = old + 0.3 * tiny.theta(7)
    settings = replace(PLAIN, cliprange=0.15)
    update, experience = expected_update(tiny, settings, theta, values, old=old)
    chances, clipped = tiny.chances(old), 0
    coefficients = []
    pairs = zip(tiny.token_logps(theta), tiny.token_logps(old), strict=True)
    for n, (new_logps, old_logps) in enumerate(pairs):
        row = []
        for t, ratio in enumerate(np.exp(new_logps - old_logps)):
            advantage = float(experience.advantages[n, t])
            is_clipped = ratio > 1.15 if advantage > 0 else ratio < 0.85
            row.append(0.0 if is_clipped else chances[n] * ratio * advantage)
            clipped += is_clipped
        coefficients.append(row)
    assert 20 < clipped < 150
    close(update, tiny.score(theta, coefficients))


def test_a_gpt_gets_the_same_expected_update_by_the_chain_rule(tiny):
    policy, reference = tiny.gpt(3), tiny.gpt(4)
    critic = ValueModel(policy.config, make_generator(5)).double()
    torch.nn.init.normal_(critic.head.weight, generator=make_generator(6))
    weights = tiny.rollout(policy).logps.sum(1).exp()
    with torch.no_grad():
        ref_logps = reference.token_logps(tiny.prompts, tiny.responses)
        scores = torch.from_numpy(tiny.rewards)
        batch = make_experience(tiny.rollout(policy), scores, ref_logps, critic, PLAIN, weights)
    loss, _ = ppo_loss(policy, critic, batch, PLAIN, weights)
    found = gradients_of(loss, policy)
    # ∇J = Σ_x d0(x) Σ_y π(y|x) (r − β log π/π_ref) ∇log π(y|x), the coefficients in numpy.
    log_ratio = (batch.logps - ref_logps).sum(1).numpy()
    coefficients = 0.5 * weights.numpy() * (tiny.rewards - BETA * log_ratio)
    logps = policy.token_logps(tiny.prompts, tiny.responses).sum(1)
    surrogate = (torch.from_numpy(coefficients) * logps).sum()
    right = gradients_of(surrogate, policy)
    for one, other in zip(found, right, strict=True):
        close(-one.numpy(), other.numpy())
    assert max(float(g.abs().max()) for g in right) > 1e-3


def test_in_a_stochastic_world_the_update_is_the_gradient_of_what_its_yardstick_measures():
    world = SlipperyWordMDP(slip=0.3, max_length=2)
    config = GPTConfig.for_world(world, n_layer=1, n_head=1, n_embd=4)
    policy, reference = (PolicyModel(config, make_generator(s)).double() for s in (0, 1))
    critic = ValueModel(config, make_generator(2)).double()
    # Every way an episode can go: what is meant and what is written, for one or two words.
    A, end, pad, chance = 11, world.end_token, world.pad_token, world.transition_probabilities
    rows, weights = [], []
    for x in range(world.n_prompts):
        for meant, written in np.ndindex(A, A):
            first = float(chance[meant, written])
            if written == end:
                rows.append((x, [meant, pad], [written, pad]))
                weights.append(first)
                continue
            for meant_next, written_next in np.ndindex(A, A):
                rows.append((x, [meant, meant_next], [written, written_next]))
                weights.append(first * float(chance[meant_next, written_next]))
    prompts, actions, responses = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = world.response_mask(responses)
    with torch.no_grad():
        logps = policy.token_logps(prompts, responses, actions)
        ref_logps = reference.token_logps(prompts, responses, actions)
    probabilities = torch.tensor(weights).double() * logps.sum(1).exp() / world.n_prompts
    assert float(probabilities.sum()) == pytest.approx(1)
    rollout = Rollout(prompts, actions, responses, logps, mask)
    scores = world.response_rewards(prompts, responses)
    with torch.no_grad():
        batch = make_experience(rollout, scores, ref_logps, critic, PLAIN, probabilities)
    loss, _ = ppo_loss(policy, critic, batch, PLAIN, probabilities)
    gradient = torch.autograd.grad(loss, policy.body.wte.weight)[0]
    yardstick = make_yardstick(world, reference, BETA)
    for place in [(0, 0), (3, 2), (10, 1)]:
        J = []
        for sign in (1, -1):
            moved = copy.deepcopy(policy)
            with torch.no_grad():
                moved.body.wte.weight[place] += sign * 1e-5
            J.append(yardstick.measure(moved).objective)
        assert -float(gradient[place]) == pytest.approx((J[0] - J[1]) / 2e-5, abs=1e-7)


# What each setting does


def a_state(tiny, settings, step=0):
    """The state of a run after some steps, with weights that are always the same."""
    policy, critic = tiny.gpt(3).float(), None
    if settings.use_critic:
        critic = ValueModel(policy.config, make_generator(5))
        torch.nn.init.normal_(critic.head.weight, generator=make_generator(6))
    state = PPOState(policy, critic, settings, make_generator(7))
    state.step = step
    return state


def one_iteration(tiny, settings, updates, step=0):
    """The updates of one iteration, and its metrics; the reference and the start are fixed."""
    updates.clear()
    state = a_state(tiny, settings, step)
    calls = []

    def reward(prompts, responses):
        calls.append(len(prompts))
        return tiny.world.response_rewards(prompts, responses)

    metrics = ppo_iteration(state, tiny.world, tiny.gpt(4).float(), reward, settings)
    assert state.step == step + 1
    return list(updates), metrics, calls


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def spy_on_ppo_loss(monkeypatch):
    """The batch of every call of `ppo_loss` from now on."""
    seen = []

    def spy(policy, critic, batch, settings):
        seen.append(batch)
        return ppo_loss(policy, critic, batch, settings)

    monkeypatch.setattr("rlhf_toy.ppo.ppo_loss", spy)
    return seen


def test_batch_size_is_how_many_responses_are_drawn(tiny, updates, monkeypatch):
    seen = spy_on_ppo_loss(monkeypatch)
    for batch_size in (8, 24):
        seen.clear()
        settings = replace(PLAIN, batch_size=batch_size, num_mini_batches=2)
        _, _, calls = one_iteration(tiny, settings, updates)
        assert sum(map(len, seen)) == calls[0] == batch_size
        assert len(calls) == 1


def test_epochs_and_minibatches_are_how_many_updates_there_are(tiny, updates):
    settings = replace(PLAIN, num_ppo_epochs=3, num_mini_batches=5)
    assert len(one_iteration(tiny, settings, updates)[0]) == 15
    assert len(one_iteration(tiny, PLAIN, updates)[0]) == 4


def test_an_epoch_takes_each_response_once_in_a_new_order(tiny, updates, monkeypatch):
    seen = spy_on_ppo_loss(monkeypatch)
    one_iteration(tiny, replace(PLAIN, num_ppo_epochs=2, num_mini_batches=2), updates)
    halves = [batch.logps.sum(1).sort().values for batch in seen]
    assert [len(half) for half in halves] == [40] * 4
    epochs = [torch.cat(halves[:2]), torch.cat(halves[2:])]
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(halves[0], halves[2])


@pytest.mark.parametrize("step", [0, 3, 9])
def test_the_learning_rate_falls_linearly_over_the_iterations(tiny, updates, step):
    settings = replace(PLAIN, iterations=10, learning_rate=0.02)
    rates = {rate for rate, _ in one_iteration(tiny, settings, updates, step=step)[0]}
    assert rates == {0.02 * (1 - step / 10)}


def test_the_gradient_is_clipped_to_its_largest_norm(tiny, updates):
    whole = flat(one_iteration(tiny, PLAIN, updates)[0][0][1])
    clipped = flat(one_iteration(tiny, replace(PLAIN, max_grad_norm=0.1), updates)[0][0][1])
    assert whole.norm() > 1
    assert clipped.norm() == pytest.approx(0.1, abs=1e-5)
    torch.testing.assert_close(clipped, whole / whole.norm() * 0.1, atol=1e-5, rtol=1e-4)


def test_vf_coef_scales_the_critic_s_gradient_and_nothing_else(tiny, updates):
    one = one_iteration(tiny, replace(PLAIN, vf_coef=0.5), updates)[0][0][1]
    two = one_iteration(tiny, replace(PLAIN, vf_coef=2.0), updates)[0][0][1]
    n = len(list(tiny.gpt(3).parameters()))
    torch.testing.assert_close(flat(two[n:]), 4 * flat(one[n:]))
    torch.testing.assert_close(flat(two[:n]), flat(one[:n]))
    assert flat(one[n:]).norm() > 0.1


def advantages(tiny, settings, values):
    return expected_update(tiny, settings, tiny.theta(THETA), values)[1]


def by_hand(tiny, beta, gamma, lam, values, n):
    """GAE of row n, forwards from its definition Σ_k (γλ)^k δ_{t+k}."""
    (x, y), theta, ref = tiny.rows[n], tiny.theta(THETA), tiny.theta(REF)
    rewards = -beta * (tiny.token_logps(theta)[n] - tiny.token_logps(ref)[n])
    rewards[-1] += tiny.rewards[n]
    V = [values[x, s] for s in tiny.states[n]] + [0.0]
    deltas = [rewards[t] + gamma * V[t + 1] - V[t] for t in range(len(y))]
    found = [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(y))]
    return found + [0.0] * (3 - len(y)), [a + v for a, v in zip(found, V, strict=False)]


@pytest.mark.parametrize(
    "change", [{}, {"beta": 2.0}, {"gamma": 0.8}, {"lam": 0.3}, {"gamma": 0.5, "lam": 0.0}]
)
def test_beta_gamma_and_lambda_make_the_advantages_that_they_define(tiny, change):
    settings, values = replace(PLAIN, **change), some_values(tiny)
    experience = advantages(tiny, settings, values)
    for n in (0, 2, 7, 30, 55, 79):
        found, returns = by_hand(tiny, settings.beta, settings.gamma, settings.lam, values, n)
        close(experience.advantages[n].numpy(), found)
        close(experience.returns[n, : len(returns)].numpy(), returns)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_without_a_critic_the_advantages_are_rewards_to_go_whatever_lambda_is(tiny, gamma):
    for lam in (1.0, 0.6):
        settings = replace(PLAIN, use_critic=False, gamma=gamma, lam=lam)
        experience = advantages(tiny, settings, None)
        for n in (0, 30, 55, 79):
            to_go, _ = by_hand(tiny, BETA, gamma, 1.0, 0 * some_values(tiny), n)
            close(experience.advantages[n].numpy(), to_go)


def test_without_a_critic_nothing_but_the_policy_is_trained(tiny, updates):
    some, metrics, _ = one_iteration(tiny, replace(PLAIN, use_critic=False), updates)
    n = len(list(tiny.gpt(3).parameters()))
    assert {len(gradients) for _, gradients in some} == {n}
    assert "loss/value" not in metrics
    assert "loss/value" in one_iteration(tiny, PLAIN, updates)[1]
    settings = replace(SHORT, use_critic=False)
    _, history = train_ppo(WORLD, reference(), WORLD.response_rewards, settings, device="cpu")
    assert "loss/value" not in history.rows[0]
    assert history.last("exact/gap") < 1


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_tokens(tiny):
    plain = advantages(tiny, PLAIN, some_values(tiny))
    settings = replace(PLAIN, whiten_advantages=True)
    rollout = tiny.rollout(tiny.table(tiny.theta(THETA)))
    ref_logps = tiny.table(tiny.theta(REF)).token_logps(tiny.prompts, tiny.responses).detach()
    critic = tiny.critic(tiny.table(tiny.theta(THETA)), some_values(tiny))
    scores = torch.from_numpy(tiny.rewards)
    whitened = make_experience(rollout, scores, ref_logps, critic, settings)
    on_tokens = whitened.advantages[tiny.mask].detach()
    assert on_tokens.mean() == pytest.approx(0, abs=1e-12)
    assert on_tokens.var(correction=0) == pytest.approx(1, abs=1e-6)
    assert plain.advantages[tiny.mask].var(correction=0) != pytest.approx(1, abs=0.1)
    torch.testing.assert_close(whitened.returns, plain.returns)


def test_the_value_clip_stops_values_that_have_moved_too_far(tiny):
    theta, values = tiny.theta(THETA), some_values(tiny)
    experience = advantages(tiny, PLAIN, values)
    policy = tiny.table(theta)
    gradients = {}
    for cliprange_value in (None, 0.2):
        critic = tiny.critic(policy, values + 0.5)  # every value has moved up by 0.5
        settings = replace(PLAIN, cliprange_value=cliprange_value, vf_coef=0.7)
        loss, _ = ppo_loss(policy, critic, experience, settings)
        loss.backward()
        gradients[cliprange_value] = critic.values.grad
    moved = experience.old_values + 0.5
    error = (moved - experience.returns)[tiny.mask].detach()
    assert gradients[None].sum() == pytest.approx(0.7 * float(error.mean()))
    # max((V − R)², (V_clipped − R)²) with V_clipped = V − 0.3: below 0.15 the clipped error counts.
    still = torch.where(error > 0.15, error, 0.0)
    assert gradients[0.2].sum() == pytest.approx(0.7 * float(still.mean()))
    assert gradients[0.2].sum() != pytest.approx(float(gradients[None].sum()), abs=1e-3)


def test_cliprange_decides_which_tokens_count_as_clipped(tiny):
    old = tiny.theta(THETA)
    experience = advantages(tiny, PLAIN, some_values(tiny))
    policy = tiny.table(old + 0.3 * tiny.theta(7))
    critic = tiny.critic(policy, some_values(tiny))
    ratios = np.exp(
        np.concatenate(tiny.token_logps(old + 0.3 * tiny.theta(7)))
        - np.concatenate(tiny.token_logps(old))
    )
    for cliprange in (0.1, 0.3):
        _, metrics = ppo_loss(policy, critic, experience, replace(PLAIN, cliprange=cliprange))
        outside = np.abs(ratios - 1) > cliprange
        assert float(metrics["policy/clipfrac"]) == pytest.approx(outside.mean(), abs=1e-6)
    assert float(metrics["val/ratio"]) == pytest.approx(ratios.mean())
    assert float(metrics["policy/approxkl"]) == pytest.approx((ratios - 1 - np.log(ratios)).mean())


def test_the_metrics_are_means_over_the_samples(tiny, updates):
    _, metrics, _ = one_iteration(tiny, PLAIN, updates)
    assert metrics["val/ratio_first"] == pytest.approx(1, abs=1e-6)
    assert metrics["objective/non_score_reward"] == pytest.approx(-BETA * metrics["objective/kl"])
    assert metrics["objective/rlhf_reward"] == pytest.approx(
        float(metrics["objective/scores"] + metrics["objective/non_score_reward"]), abs=1e-6
    )
    generator = make_generator(7)  # that of `one_iteration`
    prompts = tiny.world.sample_prompts(PLAIN.batch_size, generator)
    drawn = sample(tiny.gpt(3).float(), tiny.world, prompts, generator)
    with torch.no_grad():
        ref_logps = tiny.gpt(4).float().token_logps(drawn.prompts, drawn.responses)
    rewards = tiny.world.response_rewards(drawn.prompts, drawn.responses)
    for name, values in {
        "kl": (drawn.logps - ref_logps).sum(1),
        "entropy": -drawn.logps.sum(1),
        "scores": rewards,
    }.items():
        assert float(metrics[f"objective/{name}"]) == pytest.approx(values.mean().item(), abs=1e-5)


# The adaptive KL weight


def follow_the_kl(tiny, settings, iterations=6):
    """The KL weights of some iterations, the KL in each, and the weight after the last."""
    state, rows = a_state(tiny, settings), []
    for _ in range(iterations):
        rewards = tiny.world.response_rewards
        rows.append(ppo_iteration(state, tiny.world, tiny.gpt(4).float(), rewards, settings))
    return (
        [row["objective/kl_coef"] for row in rows],
        [float(row["objective/kl"]) for row in rows],
        state.kl_coef,
    )


@pytest.mark.parametrize(("target_kl", "sign"), [(0.05, 1), (20.0, -1)])
def test_the_kl_weight_moves_towards_its_target_by_the_formula(tiny, target_kl, sign):
    settings = replace(PLAIN, target_kl=target_kl, kl_horizon=400)
    weights, kls, last = follow_the_kl(tiny, settings)
    assert weights[0] == BETA
    for weight, kl, following in zip(weights, kls, [*weights[1:], last], strict=True):
        # Ziegler et al. 2019: β ← β (1 + clip(KL/target − 1, ±0.2) n/horizon) with n responses.
        error = np.clip(kl / target_kl - 1, -0.2, 0.2)
        assert following == pytest.approx(weight * (1 + error * 80 / 400), rel=1e-6)
        assert sign * (following - weight) > 0
    assert last == pytest.approx(BETA * (1 + sign * 0.2 * 80 / 400) ** 6)  # the KL is always far


def test_a_kl_near_its_target_moves_the_weight_in_proportion(tiny):
    _, (kl, *_), _ = follow_the_kl(tiny, PLAIN, 1)
    settings = replace(PLAIN, target_kl=kl / 1.1, kl_horizon=400)
    _, _, weight = follow_the_kl(tiny, settings, 1)
    assert weight == pytest.approx(BETA * (1 + 0.1 * 80 / 400), rel=1e-5)


def test_without_a_target_the_kl_weight_stays(tiny):
    weights, _, last = follow_the_kl(tiny, replace(PLAIN, kl_horizon=100), 3)
    assert [*weights, last] == [BETA] * 4


def test_the_kl_weight_is_the_one_in_the_reward_and_in_the_metrics(tiny, updates):
    theta, weights = tiny.theta(THETA), torch.from_numpy(tiny.chances(tiny.theta(THETA)))
    rollout = tiny.rollout(tiny.table(theta))
    ref_logps = tiny.table(tiny.theta(REF)).token_logps(tiny.prompts, tiny.responses).detach()
    scores = torch.from_numpy(tiny.rewards)
    moved, plain = (
        make_experience(rollout, scores, ref_logps, None, settings, weights, kl_coef)
        for settings, kl_coef in ((PLAIN, 1.3), (replace(PLAIN, beta=1.3), None))
    )
    assert torch.equal(moved.advantages, plain.advantages)

    settings, state = replace(PLAIN, target_kl=1.0), a_state(tiny, PLAIN)
    state.kl_coef = 1.3
    rewards = tiny.world.response_rewards
    updates.clear()
    metrics = ppo_iteration(state, tiny.world, tiny.gpt(4).float(), rewards, settings)
    assert metrics["objective/kl_coef"] == 1.3
    assert metrics["objective/non_score_reward"] == pytest.approx(-1.3 * metrics["objective/kl"])
    found = flat(updates[0][1])
    expected = flat(one_iteration(tiny, replace(PLAIN, beta=1.3), updates)[0][0][1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    plain = flat(one_iteration(tiny, PLAIN, updates)[0][0][1])
    assert (found - plain).norm() > 0.1


def test_the_kl_weight_is_saved_in_the_checkpoint(tmp_path):
    path, seen = tmp_path / "run.pt", []
    settings = replace(SHORT, iterations=30, target_kl=0.5, kl_horizon=100)
    run = {"settings": settings, "device": "cpu", "seed": 2}
    straight, history = train_ppo(WORLD, reference(), WORLD.response_rewards, **run)

    def halt(step, policy, so_far):
        seen.append(step)
        if step == 27:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_ppo(WORLD, reference(), WORLD.response_rewards, **run, checkpoint=path, watch=halt)
    again, resumed = train_ppo(
        WORLD, reference(), WORLD.response_rewards, **run, checkpoint=path, watch=halt
    )
    assert seen == list(range(1, 31))
    assert resumed.rows == history.rows and digest(again) == digest(straight)
    weights = history.series("objective/kl_coef")[1]
    assert len(set(weights)) == 30
    # The yardstick's β does not move.
    exact = history.rows[-1]
    expected = exact["exact/reward"] - settings.beta * exact["exact/kl"]
    assert exact["exact/objective"] == pytest.approx(expected)


# Training


WORLD = WordMDP(max_length=2)


def reference(seed=3):
    config = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(seed))


SHORT = PPOSettings(iterations=7, batch_size=32, num_mini_batches=4, measure_every=3)


def test_measure_every_is_how_often_the_policy_is_measured():
    _, history = train_ppo(WORLD, reference(), WORLD.response_rewards, SHORT, device="cpu")
    assert history.series("exact/gap")[0] == [3, 6, 7]
    assert history.series("objective/kl")[0] == list(range(1, 8))


def test_ppo_starts_at_ratio_one_and_the_reference():
    _, history = train_ppo(WORLD, reference(), WORLD.response_rewards, SHORT, device="cpu")
    ratios = history.series("val/ratio_first")[1]
    assert len(ratios) == 7
    assert max(abs(ratio - 1) for ratio in ratios) < 1e-5
    assert abs(history.rows[0]["objective/kl"]) < 1e-5


def test_ppos_estimates_stand_beside_exact_values_that_they_agree_with():
    settings = PPOSettings(iterations=5, batch_size=20_000, learning_rate=1e-2, measure_every=1)
    _, history = train_ppo(WORLD, reference(), WORLD.response_rewards, settings, seed=0)
    exact = history.series("exact/kl")[1], history.series("exact/reward")[1]
    sampled = history.series("objective/kl")[1], history.series("objective/scores")[1]
    assert exact[0][-1] > 0.05
    for i in range(4):  # what is sampled in an iteration is the policy measured in the one before
        assert sampled[0][i + 1] == pytest.approx(exact[0][i], abs=0.03)
        assert sampled[1][i + 1] == pytest.approx(exact[1][i], abs=0.08)


def test_ppo_starts_elsewhere_against_the_same_reference():
    start = reference(9)
    policy, history = train_ppo(
        WORLD, reference(), WORLD.response_rewards, SHORT, device="cpu", start=start
    )
    gap = make_yardstick(WORLD, reference(), SHORT.beta).measure(start).gap
    assert gap != pytest.approx(1.0, abs=0.1)
    assert history.rows[0]["objective/kl"] > 0.1
    expected = make_yardstick(WORLD, reference(), SHORT.beta).measure(policy).gap
    assert history.last("exact/gap") == pytest.approx(expected)


def test_a_reward_model_that_is_changed_during_a_run_does_not_change_the_run():
    model = RewardModel(reference().config, make_generator(1))
    torch.nn.init.normal_(model.head.weight, generator=make_generator(2))
    _, expected = train_ppo(WORLD, reference(), model, SHORT, device="cpu")

    def forget(step, policy, history):
        torch.nn.init.zeros_(model.head.weight)

    _, found = train_ppo(WORLD, reference(), model, SHORT, device="cpu", watch=forget)
    assert found.rows == expected.rows


def test_a_table_can_be_the_reference(tiny):
    table, start = tiny.table(tiny.theta(REF)), tiny.gpt(3).float()
    settings = replace(SHORT, iterations=60, batch_size=64, learning_rate=3e-3)
    rewards = tiny.world.response_rewards
    _, history = train_ppo(tiny.world, table, rewards, settings, device="cpu", start=start)
    gaps = history.series("exact/gap")[1]
    assert gaps[-1] < 0.5 * gaps[0]
    with pytest.raises(TypeError, match="start must be a PolicyModel or ResidualPolicy, since a"):
        train_ppo(tiny.world, table, rewards, settings, device="cpu")


def test_ppo_trains_in_a_stochastic_world():
    world = SlipperyWordMDP(slip=0.2, max_length=2)
    settings = PPOSettings(iterations=40, batch_size=128, num_mini_batches=4, learning_rate=3e-3)
    _, history = train_ppo(world, reference(), world.response_rewards, settings, device="cpu")
    assert history.last("exact/gap") < 0.7


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda p, y: torch.full((len(p),), torch.nan), "returned NaN or inf"),
        (lambda p, y: torch.zeros(len(p), 1), r"one number for each of \d+ responses"),
        (lambda p, y: 1.0, r"one number for each of \d+ responses"),
    ],
)
def test_a_reward_that_cannot_be_used_stops_ppo_at_once(bad, words):
    with pytest.raises(ValueError, match=words):
        train_ppo(WORLD, reference(), bad, SHORT, device="cpu")


def test_a_nan_reward_in_the_last_iteration_gives_no_policy_and_keeps_the_checkpoint(tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(len(prompts))
        scores = WORLD.response_rewards(prompts, responses)
        return scores * torch.nan if len(calls) == 31 else scores

    settings, path = replace(SHORT, iterations=30), tmp_path / "run.pt"
    with pytest.raises(ValueError, match="NaN or inf"):  # one call is the fingerprint's
        train_ppo(WORLD, reference(), reward, settings, device="cpu", checkpoint=path)
    resumed, _ = train_ppo(
        WORLD, reference(), WORLD.response_rewards, settings, device="cpu", checkpoint=path
    )
    assert len(calls) == 31
    assert all(p.isfinite().all() for p in resumed.parameters())


def test_a_run_that_diverges_stops_and_names_step_metric_and_cause():
    settings = replace(SHORT, learning_rate=1e30)
    with pytest.raises(
        ValueError, match=r"PPO stopped at step 1: .* learning rate .* \(it was 1e\+30"
    ):
        train_ppo(WORLD, reference(), WORLD.response_rewards, settings, device="cpu")


def test_a_run_that_ends_far_from_the_optimum_warns():
    settings = replace(SHORT, iterations=3, learning_rate=3.0, beta=5.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, history = train_ppo(WORLD, reference(), WORLD.response_rewards, settings, device="cpu")
    assert history.last("exact/gap") > 2
    assert "times as far from the optimum as the reference" in str(caught[-1].message)


def test_the_reward_of_a_checkpoint_must_be_the_same(tmp_path):
    path = tmp_path / "run.pt"
    rewards = WORLD.response_rewards
    train_ppo(WORLD, reference(), rewards, SHORT, device="cpu", checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run: reward is"):
        train_ppo(
            WORLD, reference(), lambda p, y: -rewards(p, y), SHORT, device="cpu", checkpoint=path
        )
    model = RewardModel(reference().config, make_generator(0))
    with pytest.raises(ValueError, match="belongs to another run: reward is"):
        train_ppo(WORLD, reference(), model, SHORT, device="cpu", checkpoint=path)


def test_scores_come_back_as_float32():
    scores = check_scores(torch.tensor([1.5], dtype=torch.float64), torch.tensor([0]))
    assert scores.dtype == torch.float32 and float(scores) == 1.5
