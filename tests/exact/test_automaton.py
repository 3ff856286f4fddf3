"""The automaton's optimum against enumeration, a slow recursion in numpy, and its own samples."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from rlhf_toy.envs import LongReview, WordMDP
from rlhf_toy.exact import (
    automaton_evaluation,
    automaton_frontier,
    automaton_optimum,
    gibbs_policy,
    kl_divergence,
    log_partition,
    response_logps,
    response_rewards,
    table_reference,
)
from rlhf_toy.training import make_generator

BETAS = (0.05, 0.5, 3.0)


def slow_values(automaton, beta):
    """V* [T + 1, X, S] and log π* [T, X, S, A], straight from the formulas, in numpy."""
    successors, rewards = automaton.successors.numpy(), automaton.rewards.numpy()
    reference = np.exp(automaton.ref_logps.numpy())
    values, logps = [automaton.final_rewards.numpy()], []
    for _ in range(automaton.horizon):
        Q = rewards + values[0][:, successors]
        top = Q.max(-1, keepdims=True)
        Z = (reference * np.exp((Q - top) / beta)).sum(-1)
        values.insert(0, top[..., 0] + beta * np.log(Z))
        logps.insert(0, np.log(reference) + (Q - values[0][..., None]) / beta)
    return np.stack(values), np.stack(logps)


@pytest.fixture(scope="module")
def long_short(short_spec):
    """Few words, but too many reviews to enumerate."""
    return LongReview(short_spec)


@pytest.fixture(scope="module")
def optimum(long_short):
    return automaton_optimum(long_short.automaton(), 0.3)


@pytest.fixture(scope="module", params=["three words of 48", "five words of 10"])
def enumerated(request, short_world):
    """A world, its reference and its rewards, all responses in a table."""
    world = LongReview(max_length=3) if request.param.startswith("three") else short_world
    reference = table_reference(world)
    assert reference.table.dtype == torch.float64
    return world, response_logps(reference, world), response_rewards(world)


def test_enumeration_gives_the_same_optimum_and_frontier(enumerated):
    world, ref_logps, rewards = enumerated
    frontier = automaton_frontier(world.automaton(), BETAS)
    for beta, reward, kl in zip(BETAS, *frontier, strict=True):
        found = automaton_optimum(world.automaton(), beta)
        log_z = log_partition(ref_logps, rewards, beta)
        assert torch.allclose(found.log_z, log_z, rtol=0, atol=1e-9)
        assert found.objective == pytest.approx(float(beta * log_z.mean()), abs=1e-9)
        best = gibbs_policy(ref_logps, rewards, beta)
        assert float(reward) == pytest.approx(float((best.exp() * rewards).sum(1).mean()), abs=1e-9)
        assert float(kl) == pytest.approx(float(kl_divergence(best, ref_logps).mean()), abs=1e-9)


def test_enumeration_gives_the_same_probability_of_every_response(enumerated):
    world, ref_logps, rewards = enumerated
    automaton, responses = world.automaton(), world.all_responses
    found = automaton_optimum(automaton, 0.2)
    best = gibbs_policy(ref_logps, rewards, 0.2)
    mask, tokens = world.response_mask(responses), responses.clamp(max=world.end_token)
    for prompt in (0, world.n_prompts - 1):
        prompts = torch.full((len(responses),), prompt)
        states = automaton.walk(prompts, responses)[:, :-1]
        total = torch.zeros(len(responses), dtype=torch.float64)
        for t in range(world.max_length):
            logps = found.logps_at(t, prompts, states[:, t])
            total += logps.gather(1, tokens[:, t : t + 1])[:, 0] * mask[:, t]
        assert torch.allclose(total, best[prompt], rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_a_slow_recursion_gives_the_same_values_and_policy(long_short, beta):
    automaton = long_short.automaton()
    found = automaton_optimum(automaton, beta)
    values, logps = slow_values(automaton, beta)
    assert np.allclose(found.values.numpy(), values, rtol=0, atol=1e-9)
    tables = torch.stack([found.table(t) for t in range(automaton.horizon)])
    assert np.allclose(tables.numpy(), logps, rtol=0, atol=1e-9)
    steps, prompts = torch.tensor([3, 7]), torch.tensor([1, 0])
    states = torch.tensor([5, 9])
    at = found.logps_at(steps, prompts, states).numpy()
    assert np.allclose(at, logps[[3, 7], [1, 0], [5, 9]], rtol=0, atol=1e-9)
    rewards, kls = automaton_evaluation(automaton, tables)
    assert float((rewards - beta * kls).mean()) == pytest.approx(found.objective, abs=1e-9)
    frontier = automaton_frontier(automaton, [beta])
    assert float(frontier[0][0]) == pytest.approx(float(rewards.mean()), abs=1e-9)
    assert float(frontier[1][0]) == pytest.approx(float(kls.mean()), abs=1e-9)


def test_a_tiny_beta_does_not_overflow(long_short):
    automaton = long_short.automaton()
    found = automaton_optimum(automaton, 1e-4)
    assert found.values.isfinite().all()
    assert np.allclose(found.values.numpy(), slow_values(automaton, 1e-4)[0], rtol=0, atol=1e-9)


def test_a_policy_on_the_automaton_is_evaluated_as_enumeration_does(short_world, short_spec):
    automaton = short_world.automaton()
    logits = torch.randn(2, *automaton.ref_logps.shape, generator=make_generator(1)).double()
    logps = (automaton.ref_logps + logits).log_softmax(-1)
    policy = table_reference(short_world)
    ref_table, rewards_table = response_logps(policy, short_world), response_rewards(short_world)
    for table in (logps, logps[0]):
        policy.table.data = table
        expected = response_logps(policy, short_world)
        rewards, kls = automaton_evaluation(automaton, table)
        assert torch.allclose(rewards, (expected.exp() * rewards_table).sum(1), atol=1e-9)
        assert torch.allclose(kls, kl_divergence(expected, ref_table), atol=1e-9)


def test_no_perturbed_policy_is_above_the_optimum(long_short, optimum):
    automaton = long_short.automaton()
    best = torch.stack([optimum.table(t) for t in range(automaton.horizon)])
    generator = make_generator(2)
    for scale in (1e-3, 0.1, 2.0):
        noise = torch.randn(best.shape, generator=generator, dtype=torch.float64)
        rewards, kls = automaton_evaluation(automaton, (best + scale * noise).log_softmax(-1))
        short_of = optimum.objective - float((rewards - 0.3 * kls).mean())
        assert short_of > 0, scale
        assert short_of < 1e-5 or scale > 1e-3  # the optimum is flat


def marginals(optimum, prompt):
    """The probability of each state after each number of tokens under π*, [T + 1, S]."""
    automaton = optimum.automaton
    chances = [np.eye(len(automaton.successors))[int(automaton.starts[prompt])]]
    for t in range(automaton.horizon):
        flow = chances[-1][:, None] * optimum.table(t)[prompt].exp().numpy()
        after = np.zeros_like(chances[-1])
        np.add.at(after, automaton.successors.numpy(), flow)
        chances.append(after)
    return np.stack(chances)


@pytest.mark.parametrize("prompt", [0, 1])
def test_samples_of_the_optimum_have_its_marginals(long_short, optimum, prompt):
    n = 20_000
    prompts = torch.full((n,), prompt)
    responses = optimum.sample(prompts, make_generator(3))
    assert torch.equal(responses, long_short.pad(responses))
    states = optimum.automaton.walk(prompts, responses).numpy()
    expected = n * marginals(optimum, prompt)
    for t in (1, 2, 4, 9, 16):
        counts = np.bincount(states[:, t], minlength=expected.shape[1])
        often = expected[t] >= 5
        seen, wanted = (np.append(x[often], x[~often].sum()) for x in (counts, expected[t]))
        seen, wanted = seen[wanted > 0], wanted[wanted > 0]
        statistic = ((seen - wanted) ** 2 / wanted).sum()
        assert statistic < chi2.ppf(1 - 1e-4, len(wanted) - 1), t


def test_the_optimum_of_every_prompt_may_start_elsewhere(long_short, optimum):
    automaton = long_short.automaton()
    start = torch.tensor([0, 3])
    moved = automaton_optimum(type(automaton)(**vars_of(automaton) | {"start": start}), 0.3)
    assert torch.equal(moved.values, optimum.values)
    assert torch.equal(moved.log_z, optimum.values[0, [0, 1], [0, 3]] / 0.3)


def vars_of(automaton):
    names = ("successors", "rewards", "ref_logps", "final_rewards", "start", "horizon")
    return {name: getattr(automaton, name) for name in names}


def test_the_full_world_is_solved_in_seconds():
    automaton = LongReview().automaton()
    found = automaton_optimum(automaton, 0.1)
    rewards, _ = automaton_evaluation(automaton, automaton.ref_logps)
    assert found.objective > float(rewards.mean()) + 5
    prompts = torch.arange(12).repeat_interleave(50)
    responses = found.sample(prompts, make_generator(0))
    assert (responses < 48).sum(1).double().mean() > 26
    earned = automaton.response_rewards(prompts, responses)
    reward = automaton_frontier(automaton, [0.1])[0]
    assert abs(float(earned.mean() - reward)) < 4 * float(earned.std()) / 600**0.5


def test_the_reference_is_a_table_policy(long_short):
    reference = table_reference(long_short)
    prompts, responses = long_short.sample_corpus(50, make_generator(0))
    automaton = long_short.automaton()
    states = automaton.walk(prompts, responses)[:, :-1]
    logps = automaton.ref_logps[states, responses.clamp(max=long_short.end_token)]
    expected = logps.masked_fill(~long_short.response_mask(responses), 0.0)
    assert torch.allclose(reference.token_logps(prompts, responses), expected, atol=1e-12)
    with pytest.raises(TypeError, match="expected a world with an automaton, got a WordMDP"):
        table_reference(WordMDP())
