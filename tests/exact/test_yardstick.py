"""The yardstick: 0 at the optimum, 1 at the reference, and the distance between in KL."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_toy.envs import LongReview, SlipperyWordMDP, WordMDP
from rlhf_toy.exact import (
    AutomatonYardstick,
    Yardstick,
    automaton_evaluation,
    automaton_frontier,
    automaton_optimum,
    gibbs_policy,
    kl_divergence,
    make_yardstick,
    response_logps,
    state_logps,
    table_reference,
)
from rlhf_toy.exact.yardstick import with_least_variance
from rlhf_toy.models import GPTConfig, PolicyModel, TablePolicy
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator


def test_the_yardstick_reads_0_at_the_optimum_and_1_at_the_reference(world, make_model):
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


def test_the_gap_is_beta_kl_to_the_optimum_in_units_of_the_references(world, make_model):
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


def test_a_hard_policy_can_be_measured(world, make_model):
    yardstick = Yardstick(world, make_model(PolicyModel, world), beta=0.5)
    one_hot = torch.full_like(yardstick.ref_logps, -math.inf)
    one_hot[:, 5] = 0.0
    measure = yardstick.measure(one_hot)
    assert measure.reward == pytest.approx(yardstick.rewards[:, 5].mean().item())
    assert measure.kl == pytest.approx(-yardstick.ref_logps[:, 5].mean().item())
    assert measure.gap > 0


def test_a_stochastic_world_measures_tables_of_one_policy_or_one_a_step():
    world = SlipperyWordMDP(max_length=2)
    reference, policy = (
        PolicyModel(GPTConfig.for_world(world, n_embd=16), make_generator(seed)) for seed in (0, 1)
    )
    yardstick = make_yardstick(world, reference, beta=0.5)
    table = state_logps(policy, world)
    measure = yardstick.measure(policy)
    assert yardstick.measure(table) == measure == yardstick.measure(torch.stack([table, table]))
    for bad in (table[:-1], table[:, :-1], table[None], table[0]):
        with pytest.raises(ValueError, match="expected nonempty tensors log_probabilities"):
            yardstick.measure(bad)
    with pytest.raises(ValueError, match="the policy's table must hold log-probabilities"):
        yardstick.measure(table + 1)


# Measuring by samples, where the world has an automaton.


@pytest.fixture(scope="module")
def long_world(short_spec):
    """Ten words, sixteen to a review: too many to enumerate."""
    return LongReview(short_spec)


def coverage(policy, world, beta, seeds, samples):
    """How often the interval of 1.96 standard errors has the enumerated gap in it."""
    exact = Yardstick(world, table_reference(world), beta).measure(policy)
    yardstick, hits, measures = AutomatonYardstick(world, beta, samples), 0, []
    for seed in range(seeds):
        yardstick.seed = seed
        measure = yardstick.measure(policy)
        hits += abs(measure.gap - exact.gap) < 1.96 * measure.standard_error
        measures.append(measure)
    for name in ("gap", "kl", "reward", "objective"):  # unbiased, within what chance allows
        values = torch.tensor([getattr(measure, name) for measure in measures]).double()
        error = float(values.std()) / seeds**0.5
        assert abs(float(values.mean()) - getattr(exact, name)) < 4 * error, name
    return hits / seeds


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_the_interval_of_a_sampled_measure_has_the_exact_gap_in_it(short_world, make_model, scale):
    policy = make_model(PolicyModel, short_world, seed=3, scale=scale)
    assert 0.9 < coverage(policy, short_world, 0.3, seeds=150, samples=400) < 0.99


def test_both_yardsticks_have_one_face(short_world, make_model):
    policy, reference = make_model(PolicyModel, short_world), table_reference(short_world)
    exact = make_yardstick(short_world, reference, 0.3)
    sampled = AutomatonYardstick(short_world, 0.3, samples=2_000)
    assert type(exact) is Yardstick
    assert sampled.optimum == pytest.approx(exact.optimum, abs=1e-9)
    assert sampled.reference_objective == pytest.approx(exact.reference_objective, abs=1e-9)
    measure = sampled.measure(policy)
    assert measure == sampled.measure(policy)  # the same samples every time
    assert measure.reward - 0.3 * measure.kl == pytest.approx(measure.objective)
    found = {f"exact/{name}" for name in ("reward", "kl", "objective", "gap", "standard_error")}
    assert set(sampled.metrics(policy)) == found
    assert sampled.metrics(policy)["exact/gap"] == measure.gap
    at_reference = sampled.measure(reference)
    assert at_reference.kl == pytest.approx(0, abs=1e-12)
    assert abs(at_reference.gap - 1) < 4 * at_reference.standard_error


def test_every_yardstick_knows_the_frontier(short_world, make_model):
    slippery = SlipperyWordMDP(max_length=2)
    exact = make_yardstick(short_world, table_reference(short_world), 0.3)
    chance = make_yardstick(slippery, make_model(PolicyModel, slippery), 0.3)
    sampled = AutomatonYardstick(short_world, 0.3, samples=100)
    for yardstick in (exact, chance, sampled):
        reward, kl = yardstick.best_at(0.3)
        assert reward - 0.3 * kl == pytest.approx(yardstick.optimum, abs=1e-9)
        steps = [yardstick.best_at(beta) for beta in (0.6, 0.3, 0.15)]
        assert steps == sorted(steps)  # with less penalty both are higher
        for beta in (0.6, 0.15):  # no other optimum is better for 0.3
            reward, kl = yardstick.best_at(beta)
            assert reward - 0.3 * kl < yardstick.optimum
        with pytest.raises(ValueError, match="above 0"):
            yardstick.best_at(-1.0)
        with pytest.raises(TypeError, match="beta"):
            yardstick.best_at("0.5")
    assert exact.best_at(0.5) == pytest.approx(sampled.best_at(0.5), abs=1e-9)


def test_a_table_is_measured_exactly(long_world):
    yardstick = AutomatonYardstick(long_world, 0.5)
    automaton = long_world.automaton()
    assert yardstick.measure(automaton.ref_logps).gap == pytest.approx(1)
    optimum = automaton_optimum(automaton, 0.5)
    best = yardstick.measure(torch.stack([optimum.table(t) for t in range(16)]))
    assert best.gap == pytest.approx(0, abs=1e-9) and best.standard_error == 0
    reward, kl = automaton_frontier(automaton, [0.5])
    assert (best.reward, best.kl) == pytest.approx((float(reward[0]), float(kl[0])))
    assert best.objective == pytest.approx(yardstick.optimum)
    for bad in (automaton.ref_logps[:-1], automaton.ref_logps[None, None], automaton.ref_logps[0]):
        with pytest.raises(ValueError, match="expected nonempty tensors logps"):
            yardstick.measure(bad)


def test_samples_agree_with_the_exact_measure_of_a_long_table(long_world):
    automaton = long_world.automaton()
    table = automaton_optimum(automaton, 0.3).table(3).contiguous()  # near the optimum
    yardstick = AutomatonYardstick(long_world, 0.3, samples=4_000)
    policy = TablePolicy(long_world, table, automaton.successors)
    sampled, exact = yardstick.measure(policy), yardstick.measure(table)
    assert abs(sampled.gap - exact.gap) < 4 * sampled.standard_error < 0.03
    reward, kl = (float(x.mean()) for x in automaton_evaluation(automaton, table))
    assert (exact.reward, exact.kl) == pytest.approx((reward, kl))
    assert sampled.kl == pytest.approx(kl, rel=0.02)


def test_the_mix_of_two_estimates_varies_less_than_either(long_world, make_model):
    a, b = torch.randn(2, 3, 400, generator=make_generator(0)).double()
    for first, second in ((a + b, b - 2 * a), (a, 0.01 * b), (b, b)):
        mix = with_least_variance(first, second)
        spread = lambda x: float((x - x.mean(1, keepdim=True)).square().sum())  # noqa: E731
        assert spread(mix) < 1.05 * min(spread(first), spread(second))
        assert_close(with_least_variance(1e-3 * first, 1e-3 * second), 1e-3 * mix)
    policy = make_model(PolicyModel, long_world)
    yardstick = AutomatonYardstick(long_world, 0.3, samples=1_000)
    prompts = torch.arange(2).repeat_interleave(500)
    optimum = yardstick.optimum_on(torch.device("cpu"))
    with torch.no_grad():
        (ratio, kl), _ = yardstick._kls(policy, prompts, make_generator(0))
        # Written out once more: log π and log π* of the tokens that were drawn.
        rollout = sample(policy, long_world, prompts, make_generator(0))
        states = optimum.automaton.walk(prompts, rollout.responses)
        expected = rollout.logps.sum(1).clone()
        for t in range(16):
            logps = optimum.logps_at(t, prompts, states[:, t])
            token = rollout.responses[:, t].clamp(max=long_world.end_token)
            expected -= logps[range(1_000), token] * rollout.mask[:, t]
    assert torch.allclose(ratio, expected, atol=1e-9)
    assert (kl >= 0).all()
    assert abs(float((ratio - kl).mean())) < 4 * float((ratio - kl).std()) / 1_000**0.5


def test_the_yardstick_of_a_long_world_needs_its_table(long_world, make_model):
    reference = table_reference(long_world)
    found = make_yardstick(long_world, reference, 0.5)
    assert type(found) is AutomatonYardstick and found.world is long_world
    assert type(make_yardstick(long_world, reference.float(), 0.5)) is AutomatonYardstick
    automaton = long_world.automaton()
    other = TablePolicy(long_world, automaton.ref_logps * 1.01, automaton.successors)
    for bad in (make_model(PolicyModel, long_world), other):
        with pytest.raises(ValueError, match=r"must be table_reference\(world\)"):
            make_yardstick(long_world, bad, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda w: AutomatonYardstick(w, 0.5, samples=3), ValueError, "integer of at least 4"),
        (lambda w: AutomatonYardstick(w, 0.5, seed=-1), ValueError, "seed must be an integer"),
        (lambda w: AutomatonYardstick(w, 0.0), ValueError, "beta must be a finite number above 0"),
        (lambda w: AutomatonYardstick(WordMDP(), 0.5), TypeError, "world with an automaton, got a"),
        (
            lambda w: AutomatonYardstick(w, 0.5).measure(table_reference(LongReview(max_length=3))),
            ValueError,
            "was made for another world",
        ),
        (lambda w: AutomatonYardstick(w, 0.5).measure("best"), TypeError, "expected a model"),
    ],
)
def test_bad_calls_of_the_sampled_yardstick_are_refused(long_world, call, error, words):
    with pytest.raises(error, match=words):
        call(long_world)
