"""What each part of PPO contributes: train without it and measure the exact gap.

The world is the word world with at most three words, so that a run takes seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rlhf_toy.course.studies.parts import BETA, PPO, half_width, reference, word_world
from rlhf_toy.exact import Yardstick
from rlhf_toy.plots import COLOURS
from rlhf_toy.ppo import train_ppo

SEEDS = 10
COMPLETE = replace(PPO, measure_every=PPO.iterations)
# What is switched off, and how. "no KL term" has a β so small that the KL costs nothing.
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
    """Return all combinations of a part that is switched off and a seed."""
    return [{"part": part, "seed": seed} for part in PARTS for seed in range(SEEDS)]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train once; return the exact `gap`, `reward` (logits) and `kl` (nats) of the policy."""
    world, seed = word_world(), task["seed"]
    settings = replace(COMPLETE, **PARTS[task["part"]])
    policy, _ = train_ppo(
        world, reference(seed), world.response_rewards, settings, seed, device="cpu"
    )
    measure = Yardstick(world, reference(seed), BETA).measure(policy)
    return {"gap": measure.gap, "reward": measure.reward, "kl": measure.kl}


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of each variant: a dot for each seed, the mean, and its 95 % interval."""
    drawn, axes = plt.subplots(figsize=(8.0, 3.8))
    for row, part in enumerate(PARTS):
        gaps = np.array([100 * result["gap"] for result in results if result["part"] == part])
        axes.plot(gaps, np.full(len(gaps), row) + 0.18, "o", color=COLOURS[5], markersize=4)
        axes.errorbar(gaps.mean(), row, xerr=half_width(gaps), fmt="D", color=COLOURS[0], capsize=4)
    axes.set_yticks(range(len(PARTS)), PARTS)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="gap to the optimum, % (log scale)")
    return drawn
