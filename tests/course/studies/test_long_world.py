"""The study of methods in the long world."""

from dataclasses import asdict, replace

import pytest
import torch

from rlhf_toy.course.studies import long_world
from rlhf_toy.exact import AutomatonYardstick, table_reference


@pytest.fixture
def small(monkeypatch):
    """Lets a run take a second: few words, pairs, samples and steps, and a small network."""
    few = {"iterations": 2, "batch_size": 32, "measure_every": 2}
    monkeypatch.setattr(long_world, "PPO", replace(long_world.PPO, **few))
    monkeypatch.setattr(long_world, "GROUPS", replace(long_world.GROUPS, **few))
    fit = {"steps": 2, "batch_size": 16, "measure_every": 2}
    monkeypatch.setattr(long_world, "REWARD_MODEL", replace(long_world.REWARD_MODEL, **fit))
    monkeypatch.setattr(long_world, "DPO", replace(long_world.DPO, **fit))
    monkeypatch.setattr(long_world, "PAIRS", 40)
    monkeypatch.setattr(long_world, "SAMPLES", 48)
    monkeypatch.setattr(long_world, "SIZES", {"n_layer": 1, "n_head": 2, "n_embd": 8})


def test_every_arm_has_all_seeds_at_its_lengths():
    tasks = long_world.tasks()
    assert len({tuple(task.values()) for task in tasks}) == len(tasks)
    for length, arms in long_world.LENGTHS.items():
        for arm in arms:
            seeds = [t["seed"] for t in tasks if (t["arm"], t["length"]) == (arm, length)]
            assert seeds == list(range(long_world.SEEDS))


@pytest.mark.parametrize("table", ["PPO_ARMS", "GROUP_ARMS"])
def test_an_arm_changes_what_it_names_and_all_draw_equally_many_responses(table):
    base = long_world.PPO if table == "PPO_ARMS" else long_world.GROUPS
    for change in getattr(long_world, table).values():
        settings = replace(base, **change)
        assert settings.iterations * settings.batch_size == 120 * 256
        changed = {name for name, value in asdict(settings).items() if asdict(base)[name] != value}
        assert changed <= set(change)


@pytest.mark.parametrize("arm", [*long_world.LENGTHS[32]])
def test_a_run_trains_every_arm_and_measures_it(small, arm):
    found = long_world.run({"arm": arm, "length": 4, "seed": 0})
    assert all(isinstance(value, float) for value in found.values())
    assert found["error"] > 0 and found["kl"] > 0 and found["best_kl"] > 0
    assert 0 < found["words"] <= 4 and 0 < found["best_words"] <= 4
    # J* − J_ref is exact, so the gap must fit reward and KL, which come from the same samples.
    yardstick = AutomatonYardstick(long_world.long_world(4), long_world.BETA)
    J = found["reward"] - long_world.BETA * found["kl"]
    most = yardstick.optimum - yardstick.reference_objective
    assert found["gap"] == pytest.approx((yardstick.optimum - J) / most, abs=1e-6)
    best = found["best_reward"] - long_world.BETA * found["best_kl"]
    assert best == pytest.approx(yardstick.optimum, abs=1e-9)


def test_arms_without_kl_have_none(small, monkeypatch):
    betas = {}

    def train(world, reference, reward, settings, seed, start, **_):
        betas[is_learned(reward)] = settings.beta
        return start, None

    def is_learned(reward):
        return isinstance(reward, torch.nn.Module)

    monkeypatch.setattr(long_world, "train_ppo", train)
    for arm in ("PPO", "PPO, no KL", "PPO, learned reward", "PPO, learned reward, no KL"):
        long_world.train(arm, long_world.long_world(4), 0)
        expected = long_world.NO_KL if arm.endswith("no KL") else long_world.BETA
        assert betas["learned" in arm] == expected


def test_a_run_starts_at_the_reference(small, monkeypatch):
    settings = replace(long_world.PPO, iterations=1, learning_rate=1e-30)
    monkeypatch.setattr(long_world, "PPO", settings)
    world = long_world.long_world(4)
    policy, reference = long_world.train("PPO", world, 0), table_reference(world)
    prompts, responses = world.sample_corpus(20, torch.Generator().manual_seed(0))
    found, expected = (p.token_logps(prompts, responses) for p in (policy, reference))
    assert torch.allclose(found, expected, atol=1e-6)


def test_words_do_not_count_the_end():
    world = long_world.long_world(4)
    responses = torch.stack([world.encode(text) for text in ("the room is clean", "the room")])
    assert long_world.words(world, responses) == 3.0


def test_values_are_selected_and_ordered_by_seed():
    rows = [{"arm": "PPO", "length": n, "seed": s, "gap": n + s} for n in (8, 32) for s in (1, 0)]
    assert long_world.values(rows, "gap", "PPO").tolist() == [32, 33]
    assert long_world.values(rows, "gap", "PPO", 8).tolist() == [8, 9]
