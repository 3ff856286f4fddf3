"""PPO and DPO on the same preferences: gap, cost and sensitivity over seeds.

The world is the word world with at most three words, so that a run takes seconds. PPO's cost
includes its reward model. Both methods start from the same reference and are measured against the
same optimum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.studies.parts import (
    BETA,
    DPO,
    PPO,
    REWARD_MODEL,
    half_width,
    reference,
    word_world,
)
from rlhf_toy.dpo import train_dpo
from rlhf_toy.exact import Yardstick, gibbs_policy, response_logps, response_scores
from rlhf_toy.models import PolicyModel, ValueModel
from rlhf_toy.plots import COLOURS, MARKERS
from rlhf_toy.ppo import train_ppo
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.training import make_generator

SEEDS = 5
STANDARD_SEEDS = 10  # more in the standard condition, to compare the spread over seeds
PAIRS = 4_000  # comparisons in each round
METHODS = ("ppo", "dpo")
# What differs from the standard condition. `rate` multiplies the policy's learning rate, `pairs` is
# the number of comparisons, `max_words` removes pairs with a longer response. The second round
# samples new pairs from the policy of the first, and trains on the pairs of both rounds.
CONDITIONS: dict[str, dict[str, Any]] = {
    "standard": {},
    "lr/3": {"rate": 1 / 3},
    "lr*3": {"rate": 3.0},
    "beta=0.25": {"beta": 0.25},
    "beta=1": {"beta": 1.0},
    "little coverage": {"max_words": 2},
    "twice the pairs": {"pairs": 2 * PAIRS},
    "second round": {"rounds": 2},
}


def tasks() -> list[dict[str, Any]]:
    """Return both methods in every condition, with more seeds in the standard one."""
    settings = [(seed, name) for seed in range(SEEDS) for name in CONDITIONS]
    settings += [(seed, "standard") for seed in range(SEEDS, STANDARD_SEEDS)]
    return [
        {"method": method, "condition": condition, "seed": seed}
        for seed, condition in settings
        for method in METHODS
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Run one method in one condition, from the preferences to the policy.

    Returns:
        exact `gap`, `reward` (logits) and `kl` (nats) of the policy, and the `lowest_gap` measured
        during training; for PPO, `reward_model_gap`, the gap of the learned reward's own optimum;
        `unseen`, the probability (mean over prompts) of responses that are in none of the pairs,
        also for the reference and the optimum (`reference_unseen`, `optimum_unseen`); `seconds` of
        processor time, including the reward model's (`reward_model_seconds`); `samples`, the number
        of responses sampled during training; `parameters` of all networks in memory, and `bytes`
        for these and for the gradients and Adam's two moments of the trained ones.
    """
    method, seed, change = task["method"], task["seed"], CONDITIONS[task["condition"]]
    world, beta = word_world(), change.get("beta", BETA)
    yardstick = Yardstick(world, reference(seed), beta)
    preferences = _pairs(seed, change.get("pairs", PAIRS), change.get("max_words"))
    rate = change.get("rate", 1.0)
    policy, result = _train(method, seed, preferences, beta, rate)
    for _ in range(1, change.get("rounds", 1)):
        generator = make_generator(2_000 + seed)
        more = collect_preferences(policy, world, BradleyTerryAnnotator(), PAIRS, generator)
        preferences = preferences.join(more)
        policy, second = _train(method, seed, preferences, beta, rate)
        for name in ("seconds", "reward_model_seconds", "samples"):
            second[name] += result[name]
        result = second
    measure = yardstick.measure(policy)
    optimum = gibbs_policy(yardstick.ref_logps, yardstick.rewards, beta)
    return {
        "gap": measure.gap,
        "reward": measure.reward,
        "kl": measure.kl,
        **result,
        "unseen": unseen_mass(response_logps(policy, world), preferences),
        "reference_unseen": unseen_mass(yardstick.ref_logps, preferences),
        "optimum_unseen": unseen_mass(optimum, preferences),
    }


def unseen_mass(logps: Tensor, preferences: PreferenceDataset) -> float:
    """Return the probability of responses in no pair, mean over prompts, from logps [X, Y]."""
    seen = torch.zeros(logps.shape, dtype=torch.bool)
    for responses in (preferences.chosen, preferences.rejected):
        seen[preferences.prompts, preferences.world.response_index(responses)] = True
    return float((logps.exp() * ~seen).sum(1).mean())


def training_bytes(trained: Sequence[torch.nn.Module], held: Sequence[torch.nn.Module]) -> int:
    """Return the bytes of all weights, and of the trained ones' gradients and Adam moments."""

    def size(networks: Sequence[torch.nn.Module]) -> int:
        return sum(
            p.numel() * p.element_size() for network in networks for p in network.parameters()
        )

    return 4 * size(trained) + size(held)


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of both methods in every condition: seeds, means and 95 % intervals."""
    drawn, axes = plt.subplots(figsize=(9.0, 5.2))
    for i, method in enumerate(METHODS):
        for row, condition in enumerate(CONDITIONS):
            gaps = 100 * values(results, "gap", method=method, condition=condition)
            y = row + 0.3 * i - 0.15
            axes.plot(gaps, np.full(len(gaps), y), ".", color=COLOURS[i], alpha=0.5)
            axes.errorbar(
                gaps.mean(),
                y,
                xerr=half_width(gaps),
                fmt=MARKERS[i],
                color=COLOURS[i],
                capsize=4,
                label=method.upper() if row == 0 else None,
            )
    axes.set_yticks(range(len(CONDITIONS)), CONDITIONS)
    axes.invert_yaxis()
    axes.axvline(100, color="0.6", linestyle=":", label="the reference: nothing learned")
    axes.set(xlabel="gap to the optimum, %")
    drawn.legend(loc="outside upper center", ncols=3, fontsize=9)
    return drawn


def values(results: list[dict[str, Any]], name: str, **which: Any) -> np.ndarray:
    """Return one result of all runs with these settings, in the order of the seeds."""
    runs = [run for run in results if all(run[key] == value for key, value in which.items())]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def _train(
    method: str, seed: int, preferences: PreferenceDataset, beta: float, rate: float
) -> tuple[PolicyModel, dict[str, Any]]:
    """Train a policy on preferences by one of the methods; return it with its costs."""
    world, start_policy = word_world(), reference(seed)
    if method == "dpo":
        settings = replace(DPO, beta=beta, learning_rate=rate * DPO.learning_rate)
        start = time.process_time()
        policy, history = train_dpo(
            preferences, start_policy, settings, seed, device="cpu", start=start_policy
        )
        seconds = time.process_time() - start
        networks, model_seconds, extra = ([policy], [start_policy]), 0.0, {}
        samples = 0  # train_dpo samples no response
    else:
        start = time.process_time()
        model, _ = train_reward_model(preferences, REWARD_MODEL, seed, device="cpu")
        model_seconds = time.process_time() - start
        settings = replace(PPO, beta=beta, learning_rate=rate * PPO.learning_rate)
        start = time.process_time()
        policy, history = train_ppo(world, start_policy, model, settings, seed, device="cpu")
        seconds = time.process_time() - start
        critic = ValueModel(policy.config, make_generator(seed))
        networks = ([policy, critic], [start_policy, model])
        samples = settings.iterations * settings.batch_size
        yardstick = Yardstick(world, start_policy, beta)
        limit = gibbs_policy(yardstick.ref_logps, response_scores(model, world), beta)
        extra = {"reward_model_gap": yardstick.measure(limit).gap}
    return policy, {
        "lowest_gap": min(history.series("exact/gap")[1]),
        "seconds": model_seconds + seconds,
        "reward_model_seconds": model_seconds,
        "samples": samples,
        "parameters": sum(p.numel() for group in networks for n in group for p in n.parameters()),
        "bytes": training_bytes(*networks),
        **extra,
    }


def _pairs(seed: int, n: int, max_words: int | None) -> PreferenceDataset:
    """Return n pairs of the reference's responses, none longer than `max_words`."""
    world, generator = word_world(), make_generator(1_000 + seed)
    # More than enough: two responses of at most two words are about half of all pairs.
    ask = n if max_words is None else 4 * n
    annotator = BradleyTerryAnnotator()
    preferences = collect_preferences(reference(seed), world, annotator, ask, generator)
    if max_words is not None:
        lengths = [
            (world.response_mask(responses) & (responses < world.n_words)).sum(1)
            for responses in (preferences.chosen, preferences.rejected)
        ]
        preferences = preferences[torch.stack(lengths).amax(0) <= max_words]
    return preferences[:n]
