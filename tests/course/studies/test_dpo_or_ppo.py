"""The study of DPO and PPO: its conditions, its pairs, and its counts."""

from dataclasses import replace

import pytest
import torch

from rlhf_toy.course.studies import dpo_or_ppo
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import make_generator


@pytest.fixture
def world(monkeypatch):
    """A smaller world, with an untrained reference, in place of the study's."""
    world = WordMDP(max_length=2)
    reference = PolicyModel(GPTConfig.for_world(world), make_generator(0))
    monkeypatch.setattr(dpo_or_ppo, "word_world", lambda: world)
    monkeypatch.setattr(dpo_or_ppo, "reference", lambda seed: reference)
    return world


def test_both_methods_run_in_every_condition_with_the_same_seeds():
    tasks = dpo_or_ppo.tasks()
    seeds = {
        (method, condition): [
            task["seed"]
            for task in tasks
            if (task["method"], task["condition"]) == (method, condition)
        ]
        for method in dpo_or_ppo.METHODS
        for condition in dpo_or_ppo.CONDITIONS
    }
    assert sum(map(len, seeds.values())) == len(tasks)
    for condition in dpo_or_ppo.CONDITIONS:
        n = dpo_or_ppo.STANDARD_SEEDS if condition == "standard" else dpo_or_ppo.SEEDS
        assert seeds["ppo", condition] == seeds["dpo", condition] == list(range(n))


def test_pairs_can_leave_out_long_responses(world):
    pairs = dpo_or_ppo._pairs(0, 50, max_words=1)
    assert 0 < len(pairs) <= 50
    for responses in (pairs.chosen, pairs.rejected):
        words = (world.response_mask(responses) & (responses < world.n_words)).sum(1)
        assert words.max() <= 1
    longer = dpo_or_ppo._pairs(0, 50, max_words=None)
    assert (longer.chosen < world.n_words).sum(1).max() == 2


def test_unseen_mass_is_the_probability_of_responses_in_no_pair(world):
    responses = world.all_responses
    pairs = PreferenceDataset(world, torch.tensor([0]), responses[[3]], responses[[5]])
    n_prompts = len(world.prompts)
    logps = torch.full((n_prompts, len(responses)), -torch.inf)
    logps[:, 3], logps[:, 7] = torch.tensor([0.25, 0.75]).log()
    expected = 1 - 0.25 / n_prompts
    assert dpo_or_ppo.unseen_mass(logps, pairs) == pytest.approx(expected)


def test_training_bytes_count_weights_four_times_where_they_are_trained():
    trained, held = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(5, 1, bias=False)
    assert dpo_or_ppo.training_bytes([trained], [held]) == 4 * (4 * 6) + 4 * 5


def test_values_are_selected_and_ordered_by_seed():
    results = [{"seed": s, "method": m, "gap": s + 0.5} for s in (1, 0) for m in ("dpo", "ppo")]
    assert dpo_or_ppo.values(results, "gap", method="ppo").tolist() == [0.5, 1.5]


@pytest.mark.parametrize("method", dpo_or_ppo.METHODS)
def test_a_run_measures_both_rounds(world, monkeypatch, method):
    monkeypatch.setattr(dpo_or_ppo, "PAIRS", 60)
    short = {"measure_every": 1}
    monkeypatch.setattr(dpo_or_ppo, "DPO", replace(dpo_or_ppo.DPO, steps=2, **short))
    ppo = replace(dpo_or_ppo.PPO, iterations=2, batch_size=16, **short)
    monkeypatch.setattr(dpo_or_ppo, "PPO", ppo)
    fit = replace(dpo_or_ppo.REWARD_MODEL, steps=2)
    monkeypatch.setattr(dpo_or_ppo, "REWARD_MODEL", fit)
    one, two = (
        dpo_or_ppo.run({"method": method, "condition": condition, "seed": 0})
        for condition in ("standard", "second round")
    )
    samples = {"ppo": 32, "dpo": 0}[method]
    assert (one["samples"], two["samples"]) == (samples, 2 * samples)
    assert two["reference_unseen"] < one["reference_unseen"]
    assert one["lowest_gap"] <= one["gap"] and one["kl"] >= 0
    assert ("reward_model_gap" in one) == (method == "ppo")
