"""The study of DPO and PPO: its runs, its seeds, and its measurements."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from rlhf_toy.course.studies import dpo_or_ppo as study
from rlhf_toy.course.studies import load
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick, gibbs_policy, response_logps
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import make_generator

CACHED = ("_yardstick", "_pairs", "_reward_model")


@pytest.fixture
def world(monkeypatch):
    """A smaller world with an untrained reference, few pairs and two steps, for all methods."""
    world = WordMDP(max_length=2)
    reference = PolicyModel(GPTConfig.for_world(world), make_generator(0))
    short = {"iterations": 2, "batch_size": 16, "measure_every": 1}
    few = {"steps": 2, "measure_every": 1}
    settings = {
        name: [replace(one, **(short if name in ("ppo", "rloo", "grpo") else few)) for one in tried]
        for name, tried in study.SETTINGS.items()
        if name != "online dpo"
    }
    online = study.SETTINGS["online dpo"][0]
    settings["online dpo"] = [replace(online, pairs=20, dpo=replace(online.dpo, **few))]
    changes = {"PAIRS": 60, "SETTINGS": settings, "MINIBATCHES": 4, "MINIBATCH": 8}
    changes |= {"word_world": lambda: world, "reference": lambda seed: reference}
    changes["PICKED"] = dict.fromkeys(study.PICKED, 0)
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    for name in CACHED:
        getattr(study, name).cache_clear()
    yield world
    for name in CACHED:
        getattr(study, name).cache_clear()


def task(part, method, seed=0):
    return {"part": part, "method": method, "setting": 0, "seed": seed}


def test_every_pipeline_tries_four_settings_and_the_race_has_one_of_them():
    tasks = study.tasks()
    assert len({tuple(task.values()) for task in tasks}) == len(tasks)
    tried = {method: len(found) for method, found in study.SETTINGS.items()}
    model = tried.pop("gibbs")
    assert [tried.pop(method) + model for method in ("ppo", "rloo", "grpo")] == [4, 4, 4]
    assert set(tried.values()) == {4}
    for part, seeds in (("tuning", study.TUNING_SEEDS), ("race", range(study.SEEDS))):
        for method, found in study.SETTINGS.items():
            settings = range(len(found)) if part == "tuning" else [study.PICKED[method]]
            runs = [t for t in tasks if (t["part"], t["method"]) == (part, method)]
            expected = {(i, seed) for i in settings for seed in seeds}
            assert {(t["setting"], t["seed"]) for t in runs} == expected
    assert not set(study.TUNING_SEEDS) & set(range(study.SEEDS))


def test_the_settings_of_the_race_are_those_that_tuning_chose():
    results = load("dpo_or_ppo")
    assert {method: study.chosen(results, method) for method in study.SETTINGS} == study.PICKED


def test_the_part_with_one_reference_holds_fixed_what_it_says():
    repeats = study.DATA_SETS * study.REPEATS
    found = [study.seeds(task("one reference", "dpo", seed)) for seed in range(repeats)]
    assert {reference for reference, _, _ in found} == {0}
    assert len({pairs for _, pairs, _ in found}) == study.DATA_SETS
    assert len({training for _, _, training in found}) == repeats
    assert study.seeds(task("race", "dpo", 4)) == (4, 4, 4)


@pytest.mark.parametrize("method", study.SETTINGS)
def test_every_method_is_measured(world, method):
    result = study.run(task("tuning", method))
    assert result["kl"] >= 0 and 0 <= result["unseen"] <= 1 and 0 <= result["pair_accuracy"] <= 1
    at_one = study.POWERS.index(1.0)
    assert result["path_reward"][at_one] == pytest.approx(result["reward"], abs=1e-4)
    assert result["path_kl"] == sorted(result["path_kl"])
    assert "judged" not in study.run(task("race", method))


def test_all_kinds_of_dpo_start_at_the_reference(world):
    start = response_logps(study.reference(0), world)
    for method in ("dpo", "dpo, copied", "dpo, fine-tuned"):
        policy = study.first_policy(method, 0, make_generator(1))
        torch.testing.assert_close(response_logps(policy, world), start)
    copied = study.first_policy("dpo, copied", 0, make_generator(1))
    torch.testing.assert_close(copied.body.wte.weight, study.reference(0).body.wte.weight)


def test_the_path_of_an_optimum_is_the_frontier(world):
    yardstick = Yardstick(world, study.reference(0), study.BETA)
    found = study.path(gibbs_policy(yardstick.ref_logps, yardstick.rewards, study.BETA), yardstick)
    for t, kl, reward in zip(study.POWERS, found["path_kl"], found["path_reward"], strict=True):
        assert (reward, kl) == pytest.approx(yardstick.best_at(study.BETA / t), abs=1e-4)


def test_nothing_is_seen_of_the_reference_itself(world):
    found = study.visible(response_logps(study.reference(0), world), 0)
    assert found["pair_loss"] == pytest.approx(np.log(2))
    assert found["judged"] == pytest.approx(0, abs=1e-9) and found["pair_accuracy"] == 0.5


def test_unseen_mass_is_the_probability_of_responses_in_no_pair(world):
    responses = world.all_responses
    pairs = PreferenceDataset(world, torch.tensor([0]), responses[[3]], responses[[5]])
    n_prompts = len(world.prompts)
    logps = torch.full((n_prompts, len(responses)), -torch.inf)
    logps[:, 3], logps[:, 7] = torch.tensor([0.25, 0.75]).log()
    assert study.unseen_mass(logps, pairs) == pytest.approx(1 - 0.25 / n_prompts)


@pytest.mark.parametrize("method", study.NOISE)
def test_gradient_noise_is_measured_twice(world, method):
    found = study.run(task("noise", method))
    assert found["noise_start"] > 0 and found["noise_half"] > 0
    assert found["noise_start"] != found["noise_half"]


def test_gradient_noise_does_not_depend_on_the_size_of_the_minibatch(world, monkeypatch):
    monkeypatch.setattr(study, "MINIBATCHES", 64)
    found = []
    for size in (16, 64):
        monkeypatch.setattr(study, "MINIBATCH", size)
        found.append(study.gradient_noise("dpo", 0))
    assert found[0]["noise_start"] == pytest.approx(found[1]["noise_start"], rel=0.3)


def results():
    """Made-up results: each method has its own gap in the race, and tuning favours setting 1."""
    rows = []
    for t in study.tasks():
        gap = list(study.SETTINGS).index(t["method"]) + t["seed"] / 10
        best = t["setting"] == 1
        rows.append({**t, "gap": gap, "pair_loss": 0.5 - best, "judged": 0.1 * best})
    return rows


def test_the_choice_is_made_on_the_tuning_seeds():
    rows = results()
    assert {study.chosen(rows, method) for method in study.SETTINGS} == {1}
    for row in rows:
        if row["part"] == "tuning":
            row["judged"] = -row["judged"]
    assert study.chosen(rows, "ppo") != 1 and study.chosen(rows, "dpo") == 1
    assert study.chosen(rows, "dpo", by="judged") != 1
    np.testing.assert_allclose(study.race(rows, "dpo"), 1 + np.arange(10) / 10)


def test_the_figure_has_a_row_for_each_method():
    figure = study.figure(results())
    assert len(figure.axes[0].get_yticklabels()) == len(study.SETTINGS)
    means = [bar.lines[0].get_xdata()[0] for bar in figure.axes[1].containers]
    np.testing.assert_allclose(means, 100 * np.arange(8), atol=1e-9)
    plt.close(figure)
