"""The study of PPO's parts."""

from dataclasses import asdict, replace

import pytest

from rlhf_toy.course.studies import ppo_parts
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator


def test_every_part_changes_what_it_names_and_nothing_else():
    complete = asdict(ppo_parts.COMPLETE)
    for change in ppo_parts.PARTS.values():
        changed = asdict(replace(ppo_parts.COMPLETE, **change))
        assert {name for name in complete if changed[name] != complete[name]} == set(change)


def test_there_is_one_task_for_each_part_and_seed():
    tasks = ppo_parts.tasks()
    assert len({(task["part"], task["seed"]) for task in tasks}) == len(tasks)
    assert len(tasks) == ppo_parts.SEEDS * len(ppo_parts.PARTS)


@pytest.mark.parametrize("part", ["complete", "no KL term"])
def test_a_run_trains_with_the_part_s_settings_and_measures_at_the_study_s_beta(monkeypatch, part):
    world, trained = WordMDP(max_length=1), []
    reference = PolicyModel(GPTConfig.for_world(world), make_generator(0))

    def train(world, policy, reward, settings, seed, device):
        trained.append((settings, seed))
        return policy, None

    monkeypatch.setattr(ppo_parts, "word_world", lambda: world)
    monkeypatch.setattr(ppo_parts, "reference", lambda seed: reference)
    monkeypatch.setattr(ppo_parts, "train_ppo", train)
    result = ppo_parts.run({"part": part, "seed": 5})
    assert trained == [(replace(ppo_parts.COMPLETE, **ppo_parts.PARTS[part]), 5)]
    assert result["gap"] == pytest.approx(1.0) and result["kl"] == pytest.approx(0.0, abs=1e-9)
