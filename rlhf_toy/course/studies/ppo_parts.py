"""What each part of PPO is worth: train without it, and measure the exact gap (notebook 06).

The world is the word world with at most three words, so that a run takes seconds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick
from rlhf_toy.models import PolicyModel
from rlhf_toy.plots import COLOURS
from rlhf_toy.ppo import PPOSettings, train_ppo
from rlhf_toy.sft import SFTSettings, train_reference

SEEDS = 10
BETA = 0.5
COMMON = {"iterations": 60, "batch_size": 256, "num_mini_batches": 4, "measure_every": 60}
# What is switched off, and how. Without the KL term β is so small that nothing is charged.
PARTS: dict[str, dict[str, Any]] = {
    "complete": {},
    "no critic": {"use_critic": False},
    "no normalisation": {"whiten_advantages": False},
    "no clip": {"cliprange": 1e9},
    "4 epochs": {"num_ppo_epochs": 4},
    "4 epochs, no clip": {"num_ppo_epochs": 4, "cliprange": 1e9},
    "no KL term": {"beta": 1e-6},
}


def tasks() -> list[dict[str, Any]]:
    """Every part switched off, with every seed."""
    return [{"part": part, "seed": seed} for part in PARTS for seed in range(SEEDS)]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One training run; the exact reward, KL and gap of the policy that comes out."""
    world, reference = _reference(task["seed"])
    settings = PPOSettings(**{"beta": BETA, **COMMON, **PARTS[task["part"]]})
    policy, _ = train_ppo(
        world, reference, world.response_rewards, settings, task["seed"], device="cpu"
    )
    measure = Yardstick(world, reference, BETA).measure(policy)
    return {"gap": measure.gap, "reward": measure.reward, "kl": measure.kl}


def figure(results: list[dict[str, Any]]) -> Figure:
    """Gap of each variant: a dot for each seed, the mean, and its 95 % interval."""
    drawn, axes = plt.subplots(figsize=(8.0, 3.8))
    for row, part in enumerate(PARTS):
        gaps = np.array([100 * result["gap"] for result in results if result["part"] == part])
        axes.plot(gaps, np.full(len(gaps), row) + 0.18, "o", color=COLOURS[5], markersize=4)
        half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else 0.0
        axes.errorbar(gaps.mean(), row, xerr=half, fmt="D", color=COLOURS[0], capsize=4)
    axes.set_yticks(range(len(PARTS)), PARTS)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="gap to the optimum, % (log scale)")
    return drawn


@cache
def _reference(seed: int) -> tuple[WordMDP, PolicyModel]:
    world = WordMDP(max_length=3)
    reference, _ = train_reference(world, SFTSettings(steps=200), seed, device="cpu")
    return world, reference
