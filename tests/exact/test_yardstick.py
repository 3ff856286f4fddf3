"""The yardstick: 0 at the optimum, 1 at the reference, and the distance between in KL."""

import math

import pytest
import torch

from rlhf_toy.envs import SlipperyWordMDP
from rlhf_toy.exact import (
    Yardstick,
    gibbs_policy,
    kl_divergence,
    make_yardstick,
    response_logps,
    state_logps,
)
from rlhf_toy.models import GPTConfig, PolicyModel
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
