"""The study of network sizes in the long world."""

from dataclasses import replace

import pytest

from rlhf_toy.course.studies import long_network
from rlhf_toy.models import GPTConfig


@pytest.fixture
def _small(monkeypatch):
    few = {"batch_size": 16, "num_mini_batches": 2}
    monkeypatch.setattr(long_network, "PPO", replace(long_network.PPO, **few))
    monkeypatch.setattr(long_network, "LENGTH", 4)
    monkeypatch.setattr(long_network, "SAMPLES", 48)
    monkeypatch.setattr(long_network, "ITERATIONS", 3)
    monkeypatch.setattr(long_network, "PILOT", 4)
    monkeypatch.setattr(long_network, "SECONDS", 0.5)
    tiny = {"n_embd": 8, "n_layer": 1, "n_head": 2}
    monkeypatch.setattr(long_network, "NETWORKS", {"tiny": tiny})
    monkeypatch.setattr(long_network, "pick_device", lambda: long_network.torch.device("cpu"))


def test_networks_grow_and_each_has_all_seeds_with_both_budgets():
    sizes = [
        GPTConfig.for_world(long_network.long_world(4), **sizes)
        for sizes in long_network.NETWORKS.values()
    ]
    assert [f"{size.n_embd} × {size.n_layer}" for size in sizes] == [*long_network.NETWORKS]
    assert sorted(sizes, key=lambda size: size.n_embd) == sizes
    tasks = long_network.tasks()
    assert len({tuple(task.values()) for task in tasks}) == len(tasks)
    assert len(tasks) == 2 * len(sizes) * long_network.SEEDS


@pytest.mark.usefixtures("_small")
def test_a_run_takes_its_iterations():
    found = long_network.run({"network": "tiny", "budget": "iterations", "seed": 0})
    assert found["device"] == "CPU" and found["parameters"] > 0 and found["kl"] > 0
    assert found["gap"] == pytest.approx(1, abs=0.5) and found["error"] > 0
    assert found["iterations"] == 3 and found["training_seconds"] > 0


@pytest.mark.usefixtures("_small")
def test_a_run_takes_its_seconds_by_the_speed_after_the_warm_up(monkeypatch):
    train, asked = long_network.train, []

    def fake(network, iterations, seed, device):
        asked.append(iterations)
        policy, _ = train(network, 1, seed, device)
        times = [0.0, 9.0, 18.0, 18.1, 77.0]  # the first two warm up, the last measures
        return policy, times

    monkeypatch.setattr(long_network, "train", fake)
    found = long_network.run({"network": "tiny", "budget": "seconds", "seed": 0})
    assert asked == [4, 5] and found["iterations"] == 5
