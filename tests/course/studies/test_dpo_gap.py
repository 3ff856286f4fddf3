"""The study of DPO's gap: every arm runs, and its shares sum to the gap."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from rlhf_toy.course.studies import dpo_gap
from rlhf_toy.exact import Yardstick, gibbs_policy
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.training import make_generator


@pytest.fixture
def short(monkeypatch, world):
    """The study in the tests' world, with few steps and pairs."""
    start = PolicyModel(GPTConfig.for_world(world, n_layer=1, n_embd=16), make_generator(0))
    monkeypatch.setattr(dpo_gap, "world", lambda: world)
    monkeypatch.setattr(dpo_gap, "reference", lambda seed: start)
    monkeypatch.setattr(dpo_gap, "PAIRS", 400)
    few = {"steps": 10, "measure_every": 5, "batch_size": 64}
    for name in ("RESIDUAL", "TUNING", "REWARD_MODEL"):
        monkeypatch.setattr(dpo_gap, name, replace(getattr(dpo_gap, name), **few))
    arms = {
        arm: {k: 10 if k == "steps" else 500 if k == "pairs" else v for k, v in change.items()}
        for arm, change in dpo_gap.ARMS.items()
    }
    monkeypatch.setattr(dpo_gap, "ARMS", arms)
    return world, start


def test_every_arm_has_every_seed():
    tasks = dpo_gap.tasks()
    assert len(tasks) == len(dpo_gap.ARMS) * dpo_gap.SEEDS
    assert {task["seed"] for task in tasks} == set(range(10))


def test_every_arm_learns_and_its_shares_sum_to_its_gap(short):
    results = []
    for arm in dpo_gap.ARMS:
        found = dpo_gap.run({"arm": arm, "seed": 0})
        assert sum(found["shares"]) == pytest.approx(found["gap"])
        assert sum(found["reference_shares"]) == pytest.approx(1)
        assert min(found["shares"]) >= 0
        assert found["kl"] > 1e-6  # it moved
        results.append({"arm": arm, "seed": 0, **found})
    assert len({result["gap"] for result in results}) > len(results) - 2  # the arms differ
    plt.close(dpo_gap.figure(results))


def test_shares_go_by_how_often_a_response_is_in_the_pairs(short):
    world, start = short
    annotator = dpo_gap.BradleyTerryAnnotator()
    pairs = collect_preferences(start, world, annotator, 400, make_generator(1))
    yardstick = Yardstick(world, start, dpo_gap.BETA)
    optimum = gibbs_policy(yardstick.ref_logps, yardstick.rewards, dpo_gap.BETA)
    assert dpo_gap.shares(optimum, yardstick, pairs) == pytest.approx([0] * 4, abs=1e-12)
    # A policy that is wrong only in responses without a pair has its whole gap there.
    seen = torch.zeros_like(optimum).bool()
    for responses in (pairs.chosen, pairs.rejected):
        seen[pairs.prompts, world.response_index(responses)] = True
    unseen = torch.where(seen, -torch.inf, optimum)
    other = torch.where(
        seen, optimum, unseen.logsumexp(1, keepdim=True) - (~seen).sum(1)[:, None].log()
    )
    found = dpo_gap.shares(other, yardstick, pairs)
    assert found[0] == pytest.approx(yardstick.measure(other).gap) and found[0] > 0.01
    assert found[1:] == pytest.approx([0] * 3, abs=1e-12)


def test_soft_labels_train_on_both_orders_of_a_pair(short):
    world, start = short
    pairs = collect_preferences(
        start, world, dpo_gap.BradleyTerryAnnotator(), 200, make_generator(2)
    )
    turned = type(pairs)(world, pairs.prompts, pairs.rejected, pairs.chosen)
    one, other = (dpo_gap.soft_labels(some, start, 0) for some in (pairs, turned))
    prompts, responses, _ = pairs.unique_responses()
    with torch.no_grad():
        found = [policy.token_logps(prompts, responses).sum(1) for policy in (one, other)]
        before = start.token_logps(prompts, responses).sum(1)
    # Turning all labels round changes what is held out and the order, not what is learned.
    learned = [logps - before for logps in found]
    assert (
        torch.corrcoef(torch.stack(learned))[0, 1] > 0.3
    )  # with the answers themselves it would be negative
