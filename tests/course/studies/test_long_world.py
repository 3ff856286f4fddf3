"""The study of methods in the long world."""

from dataclasses import asdict, replace

import pytest
import torch

from rlhf_toy.course.studies import long_world
from rlhf_toy.exact import table_reference

CACHED = ("long_world", "yardstick", "best", "pairs", "learned_reward")


@pytest.fixture
def _small(monkeypatch):
    """Lets a run take a second: few words, pairs, samples and steps, and a small network."""
    few = {"iterations": 2, "batch_size": 32, "measure_every": 2}
    fit = {"steps": 2, "batch_size": 16, "measure_every": 2}
    for name, change in (("PPO", few), ("GROUPS", few), ("REWARD_MODEL", fit), ("DPO", fit)):
        monkeypatch.setattr(long_world, name, replace(getattr(long_world, name), **change))
    monkeypatch.setattr(long_world, "PAIRS", 40)
    monkeypatch.setattr(long_world, "SAMPLES", 48)
    monkeypatch.setattr(long_world, "SIZES", {"n_layer": 1, "n_head": 2, "n_embd": 8})
    world = long_world.LongReview(max_length=4)
    _forget()
    monkeypatch.setattr(long_world, "long_world", lambda length: world)
    yield
    monkeypatch.undo()
    _forget()


def _forget():
    for name in CACHED:
        getattr(long_world, name).cache_clear()


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
        assert settings.iterations * settings.batch_size == 60 * 256
        changed = {name for name, value in asdict(settings).items() if asdict(base)[name] != value}
        assert changed <= set(change)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("arm", [*long_world.LENGTHS[16]])
def test_a_run_trains_every_arm_and_measures_it(arm):
    found = long_world.run({"arm": arm, "length": 4, "seed": 0})
    assert all(isinstance(value, float) for value in found.values())
    assert found["error"] > 0 and found["kl"] > 0 and found["best_kl"] > 0
    assert 0 < found["words"] <= 4 and 0 < found["best_words"] <= 4
    ruler = long_world.yardstick(4, long_world.SAMPLES)
    J = found["reward"] - long_world.BETA * found["kl"]
    most = ruler.optimum - ruler.reference_objective
    assert found["gap"] == pytest.approx((ruler.optimum - J) / most, abs=1e-6)
    best = found["best_reward"] - long_world.BETA * found["best_kl"]
    assert best == pytest.approx(ruler.optimum, abs=1e-9)


@pytest.fixture
def trained(monkeypatch):
    """Notes what `train_ppo` is called with, and trains nothing."""
    calls = []

    def train(world, reference, reward, settings, seed, start, **_):
        calls.append({"reward": reward, "settings": settings, "start": start})
        return start, None

    monkeypatch.setattr(long_world, "train_ppo", train)
    return calls


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("arm", ["PPO", "PPO, no KL", *long_world.PAIR_ARMS[1:]])
def test_an_arm_has_its_reward_and_its_kl(trained, arm):
    long_world.run({"arm": arm, "length": 4, "seed": 0})
    is_free = arm.endswith("no KL")
    assert trained[0]["settings"].beta == (long_world.NO_KL if is_free else long_world.BETA)
    assert isinstance(trained[0]["reward"], torch.nn.Module) == ("learned" in arm)


@pytest.mark.usefixtures("_small")
def test_each_network_differs_in_one_size_and_all_start_at_the_reference(trained):
    world = long_world.long_world(4)
    prompts, responses = world.sample_corpus(20, torch.Generator().manual_seed(0))
    expected = table_reference(world).token_logps(prompts, responses)
    changes = {"PPO": {}, **long_world.NETWORK_ARMS}
    for arm in changes:
        long_world.train(arm, world, 0, world.response_rewards, None)
        found = trained[-1]["start"].token_logps(prompts, responses)
        assert torch.allclose(found, expected, atol=1e-6)
    first = trained[0]["start"].config
    for call, (arm, change) in zip(trained, changes.items(), strict=True):
        assert call["start"].config == replace(first, **change)
        assert call["settings"].learning_rate == (0.01 if "rate" in arm else 3e-3)


def test_words_do_not_count_the_end():
    world = long_world.LongReview(max_length=4)
    responses = torch.stack([world.encode(text) for text in ("the room is clean", "the room")])
    assert long_world.words(world, responses) == 3.0


def test_values_are_selected_and_ordered_by_seed():
    rows = [{"arm": "PPO", "length": n, "seed": s, "gap": n + s} for n in (8, 16) for s in (1, 0)]
    assert long_world.values(rows, "gap", "PPO").tolist() == [16, 17]
    assert long_world.values(rows, "gap", "PPO", 8).tolist() == [8, 9]


def test_a_colour_is_the_method_s():
    colours = {long_world.colour(arm) for arm in ("PPO", "PPO, no KL", "PPO, learned reward")}
    assert colours == {long_world.COLOUR["ppo, true reward"], long_world.COLOUR["ppo"]}
    assert long_world.colour("RLOO, G = 2") == long_world.COLOUR["rloo"]
