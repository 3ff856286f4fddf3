"""The yardstick: each theorem in numbers, and against an independent way to compute the same."""

import math

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.testing import assert_close

from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import (
    Yardstick,
    expected_reward,
    gibbs_policy,
    kl_divergence,
    lagrange_multiplier,
    log_partition,
    n_states,
    objective,
    response_logps,
    response_rewards,
    response_scores,
    soft_policy_evaluation,
    soft_value_iteration,
    state_logps,
    tabular_mdp,
)
from rlhf_toy.losses import token_rewards
from rlhf_toy.models import GPTConfig, PolicyModel, RewardModel, sample

random_inputs = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
betas = st.floats(1e-3, 1e3)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def make_model(kind, world, seed=0, scale=1.0):
    """A small float64 model; a larger `scale` gives the sharp distributions of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    config = GPTConfig.for_world(world, n_layer=2, n_head=2, n_embd=16)
    model = kind(config, generator).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or name.startswith("head"):  # zero in a fresh model
                weight.normal_(generator=generator)
            weight.mul_(scale)
    return model


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
    multiplier = lagrange_multiplier(ref_logps, rewards, beta)
    assert_close(multiplier, beta - beta * log_partition(ref_logps, rewards, beta))
    stationary = rewards - beta * (logps - ref_logps + 1) + multiplier[:, None]
    assert stationary.abs().max() < 1e-9 * (1 + beta)


@given(seeds, st.floats(0.1, 1e3))
@random_inputs
def test_the_multiplier_cancels_the_gradient_of_the_objective_at_the_optimum(seed, beta):
    ref_logps, rewards, _ = random_problem(seed)
    logps = gibbs_policy(ref_logps, rewards, beta)
    multiplier = lagrange_multiplier(ref_logps, rewards, beta)
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
        lagrange_multiplier(ref_logps, rewards, beta),
        objective(best, ref_logps, rewards, beta),
    ]
    assert best.isfinite().all() and all(value.isfinite() for value in values)
    assert best.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert values[2].item() == pytest.approx(beta * values[0].item(), rel=1e-9)


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


@pytest.mark.parametrize("function", [log_partition, gibbs_policy, lagrange_multiplier])
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
        with pytest.raises(ValueError, match="must agree"):
            call()


# Policies and reward models, enumerated


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ["world", "bandit"])
def test_probabilities_of_all_responses_sum_to_1_in_float32(world, bandit, name, scale):
    env = {"world": world, "bandit": bandit}[name]
    logps = response_logps(make_model(PolicyModel, env, scale=scale).float(), env)
    assert logps.shape == (env.n_prompts, len(env.all_responses))
    assert logps.dtype == torch.float64 and not logps.requires_grad
    assert (logps.exp().sum(1) - 1).abs().max() < 1e-10  # the softmax is taken in float64


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", ["world", "bandit"])
def test_response_log_probabilities_are_sums_over_tokens(world, bandit, name, scale):
    env = {"world": world, "bandit": bandit}[name]
    policy = make_model(PolicyModel, env, scale=scale)
    table = response_logps(policy, env)
    for x in range(env.n_prompts):
        prompts = torch.full((len(env.all_responses),), x)
        with torch.no_grad():
            expected = policy.token_logps(prompts, env.all_responses).sum(1)
        assert_close(table[x], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("at_once", [1_000, 7])
@pytest.mark.parametrize("name", ["world", "bandit"])
def test_response_scores_are_the_reward_models_own(world, bandit, name, at_once, monkeypatch):
    monkeypatch.setattr("rlhf_toy.exact.enumeration.NODES_AT_ONCE", at_once)
    env = {"world": world, "bandit": bandit}[name]
    reward_model = make_model(RewardModel, env)
    table = response_scores(reward_model, env)
    assert table.dtype == torch.float64 and not table.requires_grad
    for x in range(env.n_prompts):
        prompts = torch.full((len(env.all_responses),), x)
        with torch.no_grad():
            expected = reward_model(prompts, env.all_responses)
        assert_close(table[x], expected, rtol=0, atol=1e-10)


def test_response_rewards_are_the_worlds_own(world, bandit):
    for env in (world, bandit):
        table = response_rewards(env)
        rows = torch.arange(0, len(env.all_responses), 7)
        prompts = torch.arange(len(rows)) % env.n_prompts
        expected = env.response_rewards(prompts, env.all_responses[rows])
        assert_close(table[prompts, rows], expected)
        assert table.shape == (env.n_prompts, len(env.all_responses))


@pytest.mark.parametrize("name", ["world", "bandit"])
def test_token_log_ratios_sum_to_the_sequence_log_ratio_and_average_to_the_kl(world, bandit, name):
    env = {"world": world, "bandit": bandit}[name]
    policy, reference = (make_model(PolicyModel, env, seed) for seed in (0, 1))
    logps, ref_logps = response_logps(policy, env), response_logps(reference, env)
    mask = env.response_mask(env.all_responses)
    for x in range(env.n_prompts):
        prompts = torch.full((len(mask),), x)
        with torch.no_grad():
            ratios = policy.token_logps(prompts, env.all_responses)
            ratios -= reference.token_logps(prompts, env.all_responses)
        total = (ratios * mask).sum(1)
        assert_close(total, logps[x] - ref_logps[x], rtol=0, atol=1e-9)
        assert_close((logps[x].exp() * total).sum(), kl_divergence(logps[x], ref_logps[x]))


def test_the_token_problem_and_the_bandit_problem_have_one_objective(world):
    beta = 0.3
    policy, reference = (make_model(PolicyModel, world, seed) for seed in (0, 1))
    logps, ref_logps = response_logps(policy, world), response_logps(reference, world)
    rewards, responses = response_rewards(world), world.all_responses
    J = objective(logps, ref_logps, rewards, beta)
    for x in range(world.n_prompts):
        prompts = torch.full((len(responses),), x)
        with torch.no_grad():
            tokens = [m.token_logps(prompts, responses) for m in (policy, reference)]
        earned = token_rewards(rewards[x], *tokens, world.response_mask(responses), beta)
        assert_close((logps[x].exp() * earned.sum(1)).sum(), J[x])


def test_sampled_estimates_agree_with_the_exact_values(world):
    policy, reference = (make_model(PolicyModel, world, seed) for seed in (0, 1))
    n = 20_000
    prompts = torch.arange(n) % world.n_prompts  # each prompt equally often, as in d0
    rollout = sample(policy, world, prompts, torch.Generator().manual_seed(0))
    logps = response_logps(policy, world)
    index = world.response_index(rollout.responses)
    rewards, ref_logps = response_rewards(world), response_logps(reference, world)
    for estimates, value in (
        (rewards[prompts, index], expected_reward(logps, rewards).mean()),
        ((logps - ref_logps)[prompts, index], kl_divergence(logps, ref_logps).mean()),
        (-rollout.logps.sum(1), -(logps.exp() * logps).sum(1).mean()),
    ):
        assert abs(estimates.mean() - value) < 5 * estimates.std() / n**0.5


def test_wrapped_environments_are_measured_too(world):
    policy = make_model(PolicyModel, world)
    env = gym.make("rlhf_toy/WordMDP-v0", max_length=3)
    assert type(env) is not WordMDP
    assert_close(response_logps(policy, env), response_logps(policy, world))
    assert_close(response_rewards(env), response_rewards(world))


def test_a_model_of_another_world_is_refused(world, bandit):
    longer = WordMDP(max_length=4)
    for env, other in ((world, longer), (longer, world), (world, bandit)):
        with pytest.raises(ValueError, match="but this world needs"):
            response_logps(make_model(PolicyModel, other), env)
        with pytest.raises(ValueError, match="but this world needs"):
            response_scores(make_model(RewardModel, other), env)


def test_what_is_no_world_of_this_package_is_refused(world):
    lake = gym.make("FrozenLake-v1")
    for call in (
        lambda: response_logps(make_model(PolicyModel, world), lake),
        lambda: response_rewards(lake),
        lambda: response_scores(make_model(RewardModel, world), "WordMDP"),
        lambda: tabular_mdp(gym.make("CartPole-v1")),
        lambda: tabular_mdp(None),
    ):
        with pytest.raises(TypeError, match="expected"):
            call()


def test_responses_have_no_probability_of_the_policys_alone_where_the_pen_slips(world):
    policy = make_model(PolicyModel, world)
    with pytest.raises(ValueError, match="soft_policy_evaluation"):
        response_logps(policy, SlipperyWordMDP(slip=0.1, max_length=3))
    steady = SlipperyWordMDP(slip=0.0, max_length=3)
    assert_close(response_logps(policy, steady), response_logps(policy, world))


def test_state_log_probabilities_are_the_policys_own(world):
    policy = make_model(PolicyModel, world)
    table = state_logps(policy, world)
    assert table.shape == (n_states(world), world.n_actions) == (6 * 111 + 1, 11)
    assert_close(table.exp().sum(1), torch.ones(len(table)).double())
    # The 37th word string of two words after the third prompt: "3 7", number 1 + 10 + 37.
    logits = policy(torch.tensor([2]), torch.tensor([[3, 7, 0]]))[0, 2]
    assert_close(table[2 * 111 + 48], logits.log_softmax(-1).detach())


# The token problem


def word_problem(env, beta=0.5, seed=0):
    """Tables of a word world and of a reference policy in it."""
    ref_logps = state_logps(make_model(PolicyModel, env, seed), env)
    return (*tabular_mdp(env), ref_logps, beta)


def along_responses(env, successors, *tables):
    """Sums [X, Y] of tables [H, S, A] along every response, walking from state to state."""
    responses = env.all_responses
    mask = env.response_mask(responses)
    sums = torch.zeros(len(tables), env.n_prompts, len(responses), dtype=torch.float64)
    for x in range(env.n_prompts):
        state = torch.full((len(responses),), x * (n_states(env) - 1) // env.n_prompts)
        for t in range(env.max_length):
            action = torch.where(mask[:, t], responses[:, t], 0)
            for k, table in enumerate(tables):
                sums[k, x] += table[t, state, action] * mask[:, t]
            state = torch.where(mask[:, t], successors[state, action, 0], state)
        assert (state == n_states(env) - 1).all()
    return sums


def starts(env):
    return torch.arange(env.n_prompts) * ((n_states(env) - 1) // env.n_prompts)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_soft_value_iteration_gives_the_gibbs_policy_on_whole_responses(world, beta):
    policy = make_model(PolicyModel, world)
    ref_logps, rewards = response_logps(policy, world), response_rewards(world)
    problem = word_problem(world, beta)
    _, V, logps = soft_value_iteration(*problem, horizon=3)
    (whole,) = along_responses(world, problem[0], logps)
    expected = gibbs_policy(ref_logps, rewards, beta)
    assert_close(whole.exp(), expected.exp(), rtol=0, atol=1e-9)
    assert_close(whole, expected, rtol=0, atol=1e-6)
    log_z = log_partition(ref_logps, rewards, beta)
    assert_close(V[0, starts(world)], beta * log_z, rtol=0, atol=1e-9)
    assert (V[3] == 0).all()
    assert V.shape == (4, n_states(world)) and logps.shape == (3, n_states(world), 11)


def test_the_same_holds_in_the_whole_word_world():
    env = WordMDP()
    problem = word_problem(env, beta=0.5)
    _, V, logps = soft_value_iteration(*problem, horizon=env.max_length)
    (whole,) = along_responses(env, problem[0], logps)
    ref_logps = response_logps(make_model(PolicyModel, env), env)
    assert_close(whole, gibbs_policy(ref_logps, response_rewards(env), 0.5), rtol=0, atol=1e-6)
    log_z = log_partition(ref_logps, response_rewards(env), 0.5)
    assert_close(V[0, starts(env)], 0.5 * log_z, rtol=0, atol=1e-6)


def test_the_same_holds_for_the_bandit(bandit):
    problem = word_problem(bandit)
    _, V, logps = soft_value_iteration(*problem, horizon=1)
    ref_logps = response_logps(make_model(PolicyModel, bandit), bandit)
    expected = gibbs_policy(ref_logps, response_rewards(bandit), 0.5)
    assert_close(logps[0, starts(bandit)], expected)
    assert_close(V[0, :-1], 0.5 * log_partition(ref_logps, response_rewards(bandit), 0.5))


def test_the_log_ratio_of_the_optimum_is_its_advantage_and_telescopes_to_the_reward(world):
    problem = word_problem(world)
    successors, _, rewards, ref_logps, beta = problem
    Q, V, logps = soft_value_iteration(*problem, horizon=3)
    log_ratios = beta * (logps - ref_logps)
    assert_close(log_ratios, Q - V[:3, :, None], rtol=0, atol=1e-9)
    assert_close(Q[1], rewards + V[2][successors[..., 0]])
    (total,) = along_responses(world, successors, log_ratios)
    expected = response_rewards(world) - V[0, starts(world)][:, None]
    assert_close(total, expected, rtol=0, atol=1e-9)


def test_policy_evaluation_agrees_with_the_objective_over_responses(world):
    problem = word_problem(world)
    policy = make_model(PolicyModel, world, seed=1)
    V = soft_policy_evaluation(*problem[:4], state_logps(policy, world).expand(3, -1, -1), 0.5)
    ref_logps = response_logps(make_model(PolicyModel, world), world)
    J = objective(response_logps(policy, world), ref_logps, response_rewards(world), 0.5)
    assert_close(V[0, starts(world)], J)
    assert (V[3] == 0).all()


def random_mdp(seed, S=3, A=2, K=2):
    generator = torch.Generator().manual_seed(seed)
    successors = torch.randint(S, (S, A, K), generator=generator)
    probabilities = torch.rand(S, A, K, dtype=torch.float64, generator=generator)
    rewards, ref, other = torch.randn(3, S, A, dtype=torch.float64, generator=generator)
    probabilities /= probabilities.sum(-1, keepdim=True)
    return successors, probabilities, rewards, ref.log_softmax(-1), other.log_softmax(-1)


@given(seeds, st.floats(0.01, 10))
@random_inputs
def test_policy_evaluation_is_the_mean_over_all_trajectories(seed, beta):
    successors, probabilities, rewards, ref_logps, logps = random_mdp(seed)
    by_step = torch.stack([logps, ref_logps, logps.flip(1)])  # another policy at each step

    def mean_return(state, h):
        if h == 3:
            return 0.0
        total = 0.0
        for a in range(2):
            later = sum(
                float(probabilities[state, a, k]) * mean_return(int(successors[state, a, k]), h + 1)
                for k in range(2)
            )
            log_ratio = float(by_step[h, state, a] - ref_logps[state, a])
            earned = float(rewards[state, a]) - beta * log_ratio
            total += math.exp(by_step[h, state, a]) * (earned + later)
        return total

    V = soft_policy_evaluation(successors, probabilities, rewards, ref_logps, by_step, beta)
    assert_close(V[0], float64(*(mean_return(state, 0) for state in range(3))))


@given(seeds, st.floats(0.01, 10))
@random_inputs
def test_no_policy_beats_the_optimum_of_a_stochastic_mdp(seed, beta):
    *tables, ref_logps, logps = random_mdp(seed)
    _, V, best = soft_value_iteration(*tables, ref_logps, beta, horizon=4)
    assert_close(soft_policy_evaluation(*tables, ref_logps, best, beta), V)
    for policy in (ref_logps.expand(4, -1, -1), logps.expand(4, -1, -1)):
        assert (soft_policy_evaluation(*tables, ref_logps, policy, beta) <= V + 1e-9).all()


@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_on_slippery_frozen_lake_the_optimum_beats_perturbed_policies(beta):
    env = gym.make("FrozenLake-v1", is_slippery=True)
    tables = tabular_mdp(env)
    S, A, horizon = 16, 4, 30
    assert tables[0].shape == (S, A, 3)
    assert_close(tables[1].sum(-1), torch.ones(S, A).double())
    ref_logps = torch.full((S, A), -math.log(A), dtype=torch.float64)
    _, V, logps = soft_value_iteration(*tables, ref_logps, beta, horizon)
    assert_close(soft_policy_evaluation(*tables, ref_logps, logps, beta), V)
    uniform = soft_policy_evaluation(*tables, ref_logps, ref_logps.expand(horizon, -1, -1), beta)
    assert V[0, 0] > uniform[0, 0] > 0
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0, 10.0):
        noise = torch.randn(logps.shape, dtype=torch.float64, generator=generator)
        perturbed = (logps + size * noise).log_softmax(-1)
        value = soft_policy_evaluation(*tables, ref_logps, perturbed, beta)
        assert (value <= V + 1e-12).all()
        assert value[0, 0] < V[0, 0]


def test_frozen_lake_tables_agree_with_stepping_it():
    env = gym.make("FrozenLake-v1", is_slippery=True)
    successors, probabilities, rewards = tabular_mdp(env)
    assert rewards[14, 2].item() == pytest.approx(1 / 3)  # to the goal, or up, or into the wall
    env.reset(seed=0)
    n = 300
    for state in (0, 6, 14):
        for action in range(4):
            counts, earned = torch.zeros(16), 0.0
            for _ in range(n):
                env.reset()
                env.unwrapped.s = state
                observation, reward, *_ = env.step(action)
                counts[observation] += 1
                earned += reward
            expected = torch.zeros(16, dtype=torch.float64).scatter_add(
                0, successors[state, action], probabilities[state, action]
            )
            assert ((counts / n - expected).abs() < 5 * 0.5 / n**0.5).all()
            assert (counts[expected == 0] == 0).all()
            assert abs(earned / n - rewards[state, action]) < 5 * 0.5 / n**0.5


def test_a_toy_text_whose_actions_have_one_outcome_has_tables_too():
    successors, probabilities, rewards = tabular_mdp(gym.make("FrozenLake-v1", is_slippery=False))
    assert successors.shape == (16, 4, 1) and (probabilities == 1).all()
    assert successors[0, 2].item() == 1 and successors[0, 1].item() == 4
    assert rewards.nonzero().tolist() == [[14, 2]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["world", "bandit", "slippery"])
def test_tables_agree_with_stepping_the_worlds(world, bandit, name, seed):
    env = {"world": world, "bandit": bandit, "slippery": SlipperyWordMDP(0.5, max_length=3)}[name]
    successors, probabilities, rewards = tabular_mdp(env)
    assert_close(probabilities.sum(-1), torch.ones(rewards.shape).double())
    generator = torch.Generator().manual_seed(seed)
    env.reset(seed=seed)
    for _ in range(30):
        prompt = int(env.sample_prompts(1, generator))
        env.reset(options={"prompt": prompt})
        state, over = int(starts(env)[prompt]), False
        for t in range(env.max_length):
            action = int(torch.randint(env.n_actions, (1,), generator=generator))
            observation, reward, over, *_ = env.step(action)
            token = int(observation["response"][t])
            k = token if name == "slippery" else 0
            if name == "slippery":
                # What an action earns is a mean over the tokens that may be written.
                steady = tabular_mdp(world)[2][state]
                assert_close(rewards[state], env.transition_probabilities @ steady)
                assert reward == pytest.approx(steady[token].item())
                assert_close(probabilities[state, action], env.transition_probabilities[action])
            else:
                assert reward == pytest.approx(rewards[state, action].item())
            state = int(successors[state, action, k])
            assert over == (state == n_states(env) - 1)
            if over:
                break
        assert over
    end = n_states(env) - 1
    assert (successors[end] == end).all() and (rewards[end] == 0).all()


def test_a_pen_that_never_slips_changes_nothing(world):
    steady = SlipperyWordMDP(slip=0.0, max_length=3)
    policy = make_model(PolicyModel, world)
    results = [
        soft_value_iteration(*tabular_mdp(env), state_logps(policy, env), 0.5, horizon=3)
        for env in (world, steady)
    ]
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, rtol=0, atol=1e-6)


def test_slips_cost_something(world):
    ref_logps = state_logps(make_model(PolicyModel, world), world)
    values = [
        soft_value_iteration(
            *tabular_mdp(SlipperyWordMDP(slip, max_length=3)), ref_logps, 0.1, horizon=3
        )[1][0, starts(world)]
        for slip in (0.0, 0.1, 0.3)
    ]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()


def test_sampled_returns_in_the_slippery_world_agree_with_policy_evaluation():
    env = SlipperyWordMDP(slip=0.3, max_length=3)
    policy = make_model(PolicyModel, env, seed=1)
    problem = word_problem(env, beta=0.5)
    V = soft_policy_evaluation(*problem[:4], state_logps(policy, env).expand(3, -1, -1), 0.5)
    n = 20_000
    prompts = torch.arange(n) % env.n_prompts
    rollout = sample(policy, env, prompts, torch.Generator().manual_seed(0))
    reference = make_model(PolicyModel, env)
    with torch.no_grad():
        ref = reference(prompts, rollout.responses).log_softmax(-1)
    actions = rollout.actions.clamp(max=env.n_actions - 1)
    ref_logps = ref.gather(-1, actions[..., None])[..., 0] * rollout.mask
    returns = env.response_rewards(prompts, rollout.responses)
    returns = returns - 0.5 * (rollout.logps - ref_logps).sum(1)
    error = returns.mean() - V[0, starts(env)].mean()
    assert abs(error) < 5 * returns.std() / n**0.5


def test_tables_that_do_not_fit_are_refused():
    successors, probabilities, rewards, ref_logps, logps = random_mdp(0)
    good = [successors, probabilities, rewards, ref_logps]

    def message(position, tensor, beta=1.0, horizon=2):
        tables = [*good[:position], tensor, *good[position + 1 :]]
        with pytest.raises(ValueError) as error:
            soft_value_iteration(*tables, beta, horizon)
        return str(error.value)

    assert "[S, A, K]" in message(0, successors[..., 0])
    assert "[S, A, K]" in message(1, probabilities[..., :1])
    assert "sum to 1" in message(1, probabilities * 0.9)
    assert "[S, A]" in message(2, rewards[:, :1])
    assert "[S, A]" in message(3, ref_logps[:1])
    assert "horizon must be at least 1" in message(0, successors, horizon=0)
    assert "beta must be" in message(0, successors, beta=0.0)
    for wrong in (logps, logps.expand(2, 3, 2)[..., :1], logps.expand(2, 3, 2)[:, :1]):
        with pytest.raises(ValueError, match=r"\[H, S, A\]"):
            soft_policy_evaluation(*good, wrong, 1.0)


# Measuring


def test_the_yardstick_reads_0_at_the_optimum_and_1_at_the_reference(world):
    reference = make_model(PolicyModel, world)
    yardstick = Yardstick(world, reference, beta=0.5)
    at_reference = yardstick.measure(reference)
    assert at_reference.kl == pytest.approx(0, abs=1e-12)
    assert at_reference.gap == pytest.approx(1)
    assert at_reference.objective == at_reference.reward
    best = gibbs_policy(yardstick.ref_logps, yardstick.rewards, 0.5)
    at_best = yardstick.measure(best)
    assert at_best.gap == pytest.approx(0, abs=1e-12)
    assert at_best.objective == pytest.approx(yardstick.optimum)
    assert at_best.reward > at_reference.reward


def test_the_gap_is_beta_kl_to_the_optimum_in_units_of_the_references(world):
    reference, policy = (make_model(PolicyModel, world, seed) for seed in (0, 1))
    yardstick = Yardstick(world, reference, beta=0.5)
    best = gibbs_policy(yardstick.ref_logps, yardstick.rewards, 0.5)
    logps = response_logps(policy, world)
    distances = [0.5 * kl_divergence(p, best).mean() for p in (logps, yardstick.ref_logps)]
    measure = yardstick.measure(policy)
    assert measure.gap == pytest.approx((distances[0] / distances[1]).item())
    assert measure.kl == pytest.approx(kl_divergence(logps, yardstick.ref_logps).mean().item())
    assert measure.objective == pytest.approx(measure.reward - 0.5 * measure.kl)
    assert measure == yardstick.measure(logps)
    assert yardstick.metrics(policy) == {
        "exact/reward": measure.reward,
        "exact/kl": measure.kl,
        "exact/objective": measure.objective,
        "exact/gap": measure.gap,
    }


def test_a_hard_policy_can_be_measured(world):
    yardstick = Yardstick(world, make_model(PolicyModel, world), beta=0.5)
    one_hot = torch.full_like(yardstick.ref_logps, -math.inf)
    one_hot[:, 5] = 0.0
    measure = yardstick.measure(one_hot)
    assert measure.reward == pytest.approx(yardstick.rewards[:, 5].mean().item())
    assert measure.kl == pytest.approx(-yardstick.ref_logps[:, 5].mean().item())
    assert measure.gap > 0
