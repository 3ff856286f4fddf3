"""Backward induction: against sums over whole responses, over trajectories, and stepping."""

import math

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import float64, random_inputs, seeds
from torch.testing import assert_close

from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import (
    gibbs_policy,
    log_partition,
    n_states,
    objective,
    response_logps,
    response_rewards,
    soft_policy_evaluation,
    soft_value_iteration,
    state_logps,
    tabular_mdp,
)
from rlhf_toy.models import PolicyModel
from rlhf_toy.sampling import sample


@pytest.fixture
def word_problem(make_model):
    """A function that gives the tables of a word world and of a reference policy in it."""

    def tables(env, beta=0.5, seed=0):
        ref_logps = state_logps(make_model(PolicyModel, env, seed), env)
        return (*tabular_mdp(env), ref_logps, beta)

    return tables


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
def test_soft_value_iteration_gives_the_gibbs_policy_on_whole_responses(
    world, beta, make_model, word_problem
):
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


def test_the_same_holds_in_the_whole_word_world(make_model, word_problem):
    env = WordMDP()
    problem = word_problem(env, beta=0.5)
    _, V, logps = soft_value_iteration(*problem, horizon=env.max_length)
    (whole,) = along_responses(env, problem[0], logps)
    ref_logps = response_logps(make_model(PolicyModel, env), env)
    assert_close(whole, gibbs_policy(ref_logps, response_rewards(env), 0.5), rtol=0, atol=1e-6)
    log_z = log_partition(ref_logps, response_rewards(env), 0.5)
    assert_close(V[0, starts(env)], 0.5 * log_z, rtol=0, atol=1e-6)


def test_the_same_holds_for_the_bandit(bandit, make_model, word_problem):
    problem = word_problem(bandit)
    _, V, logps = soft_value_iteration(*problem, horizon=1)
    ref_logps = response_logps(make_model(PolicyModel, bandit), bandit)
    expected = gibbs_policy(ref_logps, response_rewards(bandit), 0.5)
    assert_close(logps[0, starts(bandit)], expected)
    assert_close(V[0, :-1], 0.5 * log_partition(ref_logps, response_rewards(bandit), 0.5))


def test_the_log_ratio_of_the_optimum_is_its_advantage_and_telescopes_to_the_reward(
    world, word_problem
):
    problem = word_problem(world)
    successors, _, rewards, ref_logps, beta = problem
    Q, V, logps = soft_value_iteration(*problem, horizon=3)
    log_ratios = beta * (logps - ref_logps)
    assert_close(log_ratios, Q - V[:3, :, None], rtol=0, atol=1e-9)
    assert_close(Q[1], rewards + V[2][successors[..., 0]])
    (total,) = along_responses(world, successors, log_ratios)
    expected = response_rewards(world) - V[0, starts(world)][:, None]
    assert_close(total, expected, rtol=0, atol=1e-9)


def test_policy_evaluation_agrees_with_the_objective_over_responses(
    world, make_model, word_problem
):
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


def test_a_pen_that_never_slips_changes_nothing(world, make_model):
    steady = SlipperyWordMDP(slip=0.0, max_length=3)
    policy = make_model(PolicyModel, world)
    results = [
        soft_value_iteration(*tabular_mdp(env), state_logps(policy, env), 0.5, horizon=3)
        for env in (world, steady)
    ]
    for expected, got in zip(*results, strict=True):
        assert_close(got, expected, rtol=0, atol=1e-6)


def test_slips_cost_something(world, make_model):
    ref_logps = state_logps(make_model(PolicyModel, world), world)
    values = [
        soft_value_iteration(
            *tabular_mdp(SlipperyWordMDP(slip, max_length=3)), ref_logps, 0.1, horizon=3
        )[1][0, starts(world)]
        for slip in (0.0, 0.1, 0.3)
    ]
    assert (values[0] > values[1]).all() and (values[1] > values[2]).all()


def test_sampled_returns_in_the_slippery_world_agree_with_policy_evaluation(
    make_model, word_problem
):
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


def test_an_environment_without_tables_is_refused():
    for env in (gym.make("CartPole-v1"), None):
        with pytest.raises(TypeError, match="expected an rlhf_toy/ world or a Gymnasium toy text"):
            tabular_mdp(env)


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
    below_0 = torch.tensor([1.5, -0.5], dtype=torch.float64).expand(3, 2, 2)
    assert "at least 0" in message(1, below_0) and "-0.5" in message(1, below_0)
    assert "sum to 1" in message(3, ref_logps - 0.1)
    assert "ids from 0 to 2, got ids from -1 to" in message(0, successors.clamp(max=1) - 1)
    assert "ids from 0 to 2, got ids from" in message(0, successors + 1)
    assert "rewards must be finite, got NaN" in message(2, rewards * math.nan)
    assert "horizon must be an integer of at least 1" in message(0, successors, horizon=0)
    assert "beta must be" in message(0, successors, beta=0.0)
    for wrong in (logps, logps.expand(2, 3, 2)[..., :1], logps.expand(2, 3, 2)[:, :1]):
        with pytest.raises(ValueError, match=r"\[H, S, A\]"):
            soft_policy_evaluation(*good, wrong, 1.0)
    with pytest.raises(ValueError, match="logps must hold log-probabilities"):
        soft_policy_evaluation(*good, logps.exp().expand(2, 3, 2), 1.0)
