"""Sampling: the policy's own probabilities, word by word, and what is kept of them."""

import copy
import random

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.testing import assert_close

from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import response_logps
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.sampling import Rollout, sample
from rlhf_toy.training import make_generator


def sharp_policy(world, scale=1.0):
    """A small float64 policy; a larger `scale` gives the sharp distributions of a trained one."""
    config = GPTConfig.for_world(world, n_layer=2, n_head=2, n_embd=16)
    policy = PolicyModel(config, make_generator(0)).double()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(scale)
    return policy


def sample_without_cache(policy, world, prompts, generator):
    """What `sample` does, reading everything again for each word."""
    responses = torch.full((len(prompts), world.max_length), world.pad_token)
    actions, over = responses.clone(), torch.zeros(len(prompts), dtype=torch.bool)
    for t in range(world.max_length):
        probabilities = policy(prompts, responses)[:, t].softmax(-1)
        action = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        token = world.transition(action, torch.rand(len(prompts), generator=generator))
        actions[:, t] = torch.where(over, world.pad_token, action)
        responses[:, t] = torch.where(over, world.pad_token, token)
        over |= token == world.end_token if world.end_token is not None else False
    return actions, responses


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["world", "bandit", "slippery", "long"])
def test_sampling_with_a_cache_equals_sampling_without(world, bandit, name, scale):
    slippery, long = SlipperyWordMDP(0.3, max_length=4), WordMDP(max_length=9)
    env = {"world": world, "bandit": bandit, "slippery": slippery, "long": long}[name]
    policy = sharp_policy(env, scale=scale)
    prompts = env.sample_prompts(300, torch.Generator().manual_seed(1))
    rollout = sample(policy, env, prompts, torch.Generator().manual_seed(2))
    with torch.no_grad():
        actions, responses = sample_without_cache(
            policy, env, prompts, torch.Generator().manual_seed(2)
        )
        logps = policy(prompts, responses).log_softmax(-1)
    assert torch.equal(rollout.actions, actions)
    assert torch.equal(rollout.responses, responses)
    assert torch.equal(rollout.mask, env.response_mask(responses))
    taken = logps.gather(-1, actions.clamp(max=env.n_actions - 1)[..., None])[..., 0]
    assert_close(rollout.logps, taken * rollout.mask, rtol=0, atol=1e-10)
    if name == "slippery":
        slips = (rollout.actions != rollout.responses)[rollout.mask].double().mean()
        assert 0.2 < slips < 0.4
    else:
        assert torch.equal(rollout.actions, rollout.responses)
        exact = policy.token_logps(prompts, responses)
        assert_close(rollout.logps, exact.detach(), rtol=0, atol=1e-10)


def test_float32_samples_have_the_log_probabilities_of_one_forward_pass(world):
    policy = sharp_policy(world).float()
    prompts = world.sample_prompts(300, torch.Generator().manual_seed(1))
    rollout = sample(policy, world, prompts, torch.Generator().manual_seed(2))
    exact = policy.token_logps(prompts, rollout.responses).detach()
    assert_close(rollout.logps, exact, rtol=0, atol=1e-5)


def test_after_the_end_there_are_only_pads_of_log_probability_0(world):
    policy = sharp_policy(world)
    prompts = world.sample_prompts(300, torch.Generator().manual_seed(1))
    rollout = sample(policy, world, prompts, torch.Generator().manual_seed(2))
    lengths = rollout.mask.sum(1)
    assert lengths.unique().tolist() == [1, 2, 3]
    assert (rollout.responses[~rollout.mask] == world.pad_token).all()
    assert (rollout.responses[rollout.mask] < world.n_actions).all()
    assert (rollout.logps[~rollout.mask] == 0).all()
    assert (rollout.logps[rollout.mask] < 0).all()


def test_samples_can_be_trained_on_and_touch_no_global_random_state(world):
    policy = sharp_policy(world)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    prompts = torch.zeros(5, dtype=torch.long)
    rollout = sample(policy, world, prompts, torch.Generator().manual_seed(0))
    again = sample(policy, world, prompts, torch.Generator().manual_seed(0))
    other = sample(policy, world, prompts, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.equal(rollout.responses, again.responses)
    assert not torch.equal(rollout.responses, other.responses)
    assert not rollout.logps.requires_grad
    loss = (policy.token_logps(prompts, rollout.responses) * rollout.logps).sum()
    loss.backward()
    assert policy.body.wte.weight.grad.any()


@pytest.mark.parametrize("name", ["world", "bandit"])
def test_samples_are_as_frequent_as_their_exact_probabilities_say(world, bandit, name):
    env = world if name == "world" else bandit
    policy = sharp_policy(env, scale=1.5)
    n = 20_000
    prompts = torch.full((n,), 1)
    responses = sample(policy, env, prompts, torch.Generator().manual_seed(3)).responses
    counts = torch.bincount(env.response_index(responses), minlength=len(env.all_responses))
    expected = n * response_logps(policy, env)[1].exp()
    common = expected >= 10  # the rare ones are one cell together
    cells = [[*x[common].tolist(), float(x[~common].sum())] for x in (counts, expected)]
    cells = [row if cells[1][-1] > 0 else row[:-1] for row in cells]
    assert len(cells[0]) > 5
    assert chisquare(*cells).pvalue > 6e-7  # five sigma


def a_rollout():
    """Three rows with random log-probabilities, and those of a reference and of a later policy."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    logps = -3 * torch.rand(3, 3, 3, generator=make_generator(0), dtype=torch.float64) * mask
    tokens = torch.zeros(3, 3, dtype=torch.long)
    return Rollout(tokens[:, 0], tokens, tokens, logps[0], mask), logps[1], logps[2]


def test_the_metrics_of_samples_are_means_over_responses():
    rollout, ref_logps, _ = a_rollout()
    scores = torch.tensor([1.0, -2.0, 0.5])
    logps, refs = rollout.logps.numpy().sum(1), ref_logps.numpy().sum(1)
    kl, score = np.mean(logps - refs), np.mean(scores.numpy())
    found = rollout.metrics(scores, ref_logps, 0.4)
    right = {
        "objective/kl": kl,
        "objective/entropy": -np.mean(logps),
        "objective/scores": score,
        "objective/non_score_reward": -0.4 * kl,
        "objective/rlhf_reward": score - 0.4 * kl,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(right)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 1.0, 3.0])])
def test_the_metrics_of_ratios_are_means_over_tokens(weights):
    rollout, _, later = a_rollout()
    w = np.repeat(np.ones(3) if weights is None else weights.numpy(), [2, 1, 3])
    ratio = np.exp((later - rollout.logps).numpy()[rollout.mask.numpy()])
    found = rollout.ratio_metrics(later, 0.9, weights)
    right = {
        "val/ratio": np.average(ratio, weights=w),
        # KL(π_old ‖ π) from samples of π_old: k3 with the policies in this order.
        "policy/approxkl": np.average(ratio - 1 - np.log(ratio), weights=w),
        "policy/clipfrac": np.average(np.abs(ratio - 1) > 0.9, weights=w),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(right)
    assert 0 < right["policy/clipfrac"] < 1


def test_a_generator_on_another_device_than_the_policy_is_refused(world, policy):
    elsewhere = copy.deepcopy(policy).to("meta")
    prompts = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"on cpu and the policy on meta.*policy\.device"):
        sample(elsewhere, world, prompts, make_generator(0))
