"""Where a larger network helps in the long world: as many iterations, or as many seconds.

It is made for a GPU, and one process: the time of each run counts. The device's name is part of the
result. Every network starts at the reference, see `long_world`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from rlhf_toy.course.studies import parts
from rlhf_toy.course.studies.long_world import BETA, long_world
from rlhf_toy.exact import AutomatonYardstick, table_reference
from rlhf_toy.models import GPTConfig, ResidualPolicy
from rlhf_toy.plots import COLOUR
from rlhf_toy.ppo import train_ppo
from rlhf_toy.training import make_generator, pick_device

SEEDS = 2
SAMPLES = 8_192  # of the final measurement
ITERATIONS = 120  # where all sizes have as many
SECONDS = 15.0  # where all sizes have as many
PILOT = 8  # iterations by which the speed is measured, of which the first half does not count
LENGTH = 32
# Width, layers and heads; wider networks learn at smaller rates.
NETWORKS: dict[str, dict[str, Any]] = {
    "64 × 2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "128 × 3": {"n_embd": 128, "n_layer": 3, "n_head": 4},
    "256 × 4": {"n_embd": 256, "n_layer": 4, "n_head": 4},
    "384 × 6": {"n_embd": 384, "n_layer": 6, "n_head": 6},
}
RATE = 0.2  # learning rate times width
PPO = replace(
    parts.PPO, beta=BETA, lam=1.0, batch_size=1_024, num_mini_batches=8, measure_every=10_000
)
BUDGETS = ("iterations", "seconds")


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of a network, a budget and a seed."""
    return [
        {"network": network, "budget": budget, "seed": seed}
        for budget in BUDGETS
        for network in NETWORKS
        for seed in range(SEEDS)
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train once, on a GPU where there is one.

    Returns:
        `gap` to J*, its standard `error`, true `reward` (logits) and `kl` (nats), the number of
        `iterations` and of `parameters`, the `training_seconds`, and the name of the `device`.
    """
    device, seed = pick_device(), task["seed"]
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    iterations = ITERATIONS
    if task["budget"] == "seconds":
        _, pilot = train(task["network"], PILOT, seed, device)
        first, last = PILOT // 2, PILOT - 1  # the last iteration's time includes a measurement
        each = (pilot[last] - pilot[first]) / (last - first)
        iterations = max(2, round(SECONDS / each))
    policy, times = train(task["network"], iterations, seed, device)
    measure = AutomatonYardstick(long_world(LENGTH), BETA, SAMPLES).measure(policy)
    return {
        "gap": measure.gap,
        "error": measure.standard_error,
        "reward": measure.reward,
        "kl": measure.kl,
        "iterations": iterations,
        "parameters": sum(p.numel() for p in policy.net.parameters()),
        "training_seconds": times[-1] - times[0],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }


def train(
    network: str, iterations: int, seed: int, device: torch.device
) -> tuple[ResidualPolicy, list[float]]:
    """Return the policy, and the time at the start of the training and after each iteration."""
    world, sizes = long_world(LENGTH), NETWORKS[network]
    reference, config = table_reference(world), GPTConfig.for_world(world, **sizes)
    start = ResidualPolicy(reference, config, make_generator(seed))
    settings = replace(PPO, iterations=iterations, learning_rate=RATE / sizes["n_embd"])
    times: list[float] = []

    def watch(*_: Any) -> None:  # the iteration's metrics have been read, so the GPU is done
        times.append(time.perf_counter())

    # The trainer measures after the last iteration: by few samples, to cost no time.
    options = {"device": device, "start": start, "watch": watch}
    options["yardstick"] = AutomatonYardstick(world, BETA, 2 * world.n_prompts)
    times.append(time.perf_counter())
    policy, _ = train_ppo(world, reference, world.response_rewards, settings, seed, **options)
    return policy, times


def values(results: list[dict[str, Any]], name: str, network: str, budget: str) -> np.ndarray:
    """Return one result of a network with a budget, by seed."""
    runs = [run for run in results if (run["network"], run["budget"]) == (network, budget)]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of each network by its size: dots are runs, lines their means."""
    drawn, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, budget in zip(axes, BUDGETS, strict=True):
        gaps = [100 * values(results, "gap", network, budget) for network in NETWORKS]
        sizes = [values(results, "parameters", network, budget)[0] for network in NETWORKS]
        for size, some in zip(sizes, gaps, strict=True):
            ax.plot([size] * len(some), some, "o", color=COLOUR["ppo, true reward"], alpha=0.6)
        ax.plot(sizes, [some.mean() for some in gaps], "-", color=COLOUR["ppo, true reward"])
        equal = ITERATIONS if budget == "iterations" else f"{SECONDS:g}"
        ax.set(xscale="log", yscale="log", xlabel="parameters of the policy (log scale)")
        ax.set_title(f"{equal} {budget} of training each")
    axes[0].set_ylabel("gap to J*, % (log scale)")
    return drawn
