"""Policies and reward models, enumerated: against token-by-token sums and samples."""

import gymnasium as gym
import pytest
import torch
from torch.testing import assert_close

from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import (
    expected_reward,
    kl_divergence,
    n_states,
    objective,
    response_logps,
    response_rewards,
    response_scores,
    state_logps,
)
from rlhf_toy.losses import token_rewards
from rlhf_toy.models import PolicyModel, RewardModel
from rlhf_toy.sampling import sample


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ["world", "bandit"])
def test_probabilities_of_all_responses_sum_to_1_in_float32(world, bandit, name, scale, make_model):
    env = {"world": world, "bandit": bandit}[name]
    logps = response_logps(make_model(PolicyModel, env, scale=scale).float(), env)
    assert logps.shape == (env.n_prompts, len(env.all_responses))
    assert logps.dtype == torch.float64 and not logps.requires_grad
    assert (logps.exp().sum(1) - 1).abs().max() < 1e-10  # the softmax is taken in float64


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", ["world", "bandit"])
def test_response_log_probabilities_are_sums_over_tokens(world, bandit, name, scale, make_model):
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
def test_response_scores_are_the_reward_models_own(
    world, bandit, name, at_once, monkeypatch, make_model
):
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
def test_token_log_ratios_sum_to_the_sequence_log_ratio_and_average_to_the_kl(
    world, bandit, name, make_model
):
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


def test_the_token_problem_and_the_bandit_problem_have_one_objective(world, make_model):
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


def test_sampled_estimates_agree_with_the_exact_values(world, make_model):
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


def test_wrapped_environments_are_measured_too(world, make_model):
    policy = make_model(PolicyModel, world)
    env = gym.make("rlhf_toy/WordMDP-v0", max_length=3)
    assert type(env) is not WordMDP
    assert_close(response_logps(policy, env), response_logps(policy, world))
    assert_close(response_rewards(env), response_rewards(world))


def test_a_model_of_another_world_is_refused(world, bandit, make_model):
    longer = WordMDP(max_length=4)
    for env, other in ((world, longer), (longer, world), (world, bandit)):
        with pytest.raises(ValueError, match="was made for another world"):
            response_logps(make_model(PolicyModel, other), env)
        with pytest.raises(ValueError, match="was made for another world"):
            response_scores(make_model(RewardModel, other), env)


def test_what_is_no_world_of_this_package_is_refused(world, make_model):
    lake = gym.make("FrozenLake-v1")
    for call in (
        lambda: response_logps(make_model(PolicyModel, world), lake),
        lambda: response_rewards(lake),
        lambda: response_scores(make_model(RewardModel, world), "WordMDP"),
    ):
        with pytest.raises(TypeError, match="expected"):
            call()


def test_responses_have_no_probability_of_the_policys_alone_where_the_pen_slips(world, make_model):
    policy = make_model(PolicyModel, world)
    with pytest.raises(ValueError, match="soft_policy_evaluation"):
        response_logps(policy, SlipperyWordMDP(slip=0.1, max_length=3))
    steady = SlipperyWordMDP(slip=0.0, max_length=3)
    assert_close(response_logps(policy, steady), response_logps(policy, world))


def test_state_log_probabilities_are_the_policys_own(world, make_model):
    policy = make_model(PolicyModel, world)
    table = state_logps(policy, world)
    assert table.shape == (n_states(world), world.n_actions) == (6 * 111 + 1, 11)
    assert_close(table.exp().sum(1), torch.ones(len(table)).double())
    # The 37th word string of two words after the third prompt: "3 7", number 1 + 10 + 37.
    logits = policy(torch.tensor([2]), torch.tensor([[3, 7, 0]]))[0, 2]
    assert_close(table[2 * 111 + 48], logits.log_softmax(-1).detach())
    assert not table.is_inference(), "autograd refuses tensors of the inference mode"
