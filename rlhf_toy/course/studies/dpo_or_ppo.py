"""PPO and DPO on the same preferences: gap, cost and sensitivity over seeds (notebook 09).

The world is the word world with at most three words, so that a run takes seconds. PPO's part
contains its reward model. Both start from the same reference, and measure against the same optimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick, gibbs_policy, response_logps, response_scores
from rlhf_toy.models import PolicyModel, RewardModel, ValueModel
from rlhf_toy.plots import COLOURS, MARKERS
from rlhf_toy.ppo import PPOSettings, train_ppo
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import RewardModelSettings, train_reward_model
from rlhf_toy.sft import SFTSettings, train_reference
from rlhf_toy.training import make_generator

SEEDS = 5
STANDARD_SEEDS = 10  # of the standard condition, where the spread over seeds is the question
BETA = 0.5
PAIRS = 4_000  # comparisons that each round may ask for
REWARD_MODEL = {"steps": 100}
PPO = {"iterations": 60, "batch_size": 256, "num_mini_batches": 4, "measure_every": 20}
DPO = {"steps": 200, "measure_every": 25}
METHODS = ("ppo", "dpo")
# What differs from the standard. `rate` multiplies the policy's learning rate, `pairs` the number
# of comparisons, `max_words` leaves out pairs with a longer response; a second round asks for new
# pairs of responses of the policy that came out of the first, and trains on both rounds' pairs.
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
    """Both methods in every condition, and more seeds in the standard one."""
    settings = [(seed, name) for seed in range(SEEDS) for name in CONDITIONS]
    settings += [(seed, "standard") for seed in range(SEEDS, STANDARD_SEEDS)]
    return [
        {"method": method, "condition": condition, "seed": seed}
        for seed, condition in settings
        for method in METHODS
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One method in one condition, from the preferences to the policy.

    Returns:
        exact `gap`, `reward` and `kl` of the policy, and `lowest_gap` on the way; for PPO,
        `reward_model_gap`, the gap of the learned reward's own optimum; `unseen`, the probability
        (mean over prompts) of responses in none of the pairs, with `reference_unseen` and
        `optimum_unseen`; `seconds` of processor time, the reward model's among them
        (`reward_model_seconds`); `samples`, responses drawn during training; `parameters` of all
        networks held, and their `bytes` with the gradients and Adam's two moments of the trained.
    """
    method, seed, change = task["method"], task["seed"], CONDITIONS[task["condition"]]
    world, reference = _reference(seed)
    beta = change.get("beta", BETA)
    yardstick = Yardstick(world, reference, beta)
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
    """The probability of responses that stand in no pair, mean over prompts, from [X, Y] logps."""
    seen = torch.zeros(logps.shape, dtype=torch.bool)
    for responses in (preferences.chosen, preferences.rejected):
        seen[preferences.prompts, preferences.world.response_index(responses)] = True
    return float((logps.exp() * ~seen).sum(1).mean())


def training_bytes(trained: Sequence[torch.nn.Module], held: Sequence[torch.nn.Module]) -> int:
    """Bytes of the networks' weights, and for the trained ones of gradients and Adam's moments."""

    def size(networks: Sequence[torch.nn.Module]) -> int:
        return sum(
            p.numel() * p.element_size() for network in networks for p in network.parameters()
        )

    return 4 * size(trained) + size(held)


def figure(results: list[dict[str, Any]]) -> Figure:
    """Gap of both methods in every condition: a dot for each seed, the mean, its 95 % interval."""
    drawn, axes = plt.subplots(figsize=(9.0, 5.2))
    for i, method in enumerate(METHODS):
        for row, condition in enumerate(CONDITIONS):
            gaps = 100 * values(results, "gap", method=method, condition=condition)
            y = row + 0.3 * i - 0.15
            axes.plot(gaps, np.full(len(gaps), y), ".", color=COLOURS[i], alpha=0.5)
            half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else 0.0
            axes.errorbar(
                gaps.mean(),
                y,
                xerr=half,
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
    """One result of all the runs that have these settings, in the order of the seeds."""
    runs = [run for run in results if all(run[key] == value for key, value in which.items())]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def _train(
    method: str, seed: int, preferences: PreferenceDataset, beta: float, rate: float
) -> tuple[PolicyModel, dict[str, Any]]:
    """The preferences' policy by one of the methods, and what that took."""
    world, reference = _reference(seed)
    if method == "dpo":
        settings = DPOSettings(beta=beta, learning_rate=rate * DPOSettings.learning_rate, **DPO)
        start = time.process_time()
        policy, history = train_dpo(preferences, reference, settings, seed, device="cpu")
        seconds = time.process_time() - start
        networks, model_seconds, extra = ([policy], [reference]), 0.0, {}
        samples = 0  # nothing in train_dpo draws a response
    else:
        start = time.process_time()
        fit = RewardModelSettings(**REWARD_MODEL)
        model, _ = train_reward_model(preferences, fit, seed, device="cpu")
        model_seconds = time.process_time() - start
        reward, drawn = _counted(model)
        settings = PPOSettings(beta=beta, learning_rate=rate * PPOSettings.learning_rate, **PPO)
        start = time.process_time()
        policy, history = train_ppo(world, reference, reward, settings, seed, device="cpu")
        seconds = time.process_time() - start
        critic = ValueModel(policy.config, make_generator(seed))
        networks, samples = ([policy, critic], [reference, model]), sum(drawn)
        yardstick = Yardstick(world, reference, beta)
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


def _counted(model: RewardModel) -> tuple[Callable[[Tensor, Tensor], Tensor], list[int]]:
    """The model as a reward function, and a list that grows by the responses of each call."""
    drawn: list[int] = []

    def reward(prompts: Tensor, responses: Tensor) -> Tensor:
        drawn.append(len(responses))
        return model(prompts, responses)

    return reward, drawn


@cache
def _reference(seed: int) -> tuple[WordMDP, PolicyModel]:
    world = WordMDP(max_length=3)
    reference, _ = train_reference(world, SFTSettings(steps=200), seed, device="cpu")
    return world, reference


def _pairs(seed: int, n: int, max_words: int | None) -> PreferenceDataset:
    """n pairs of the reference's responses, none longer than `max_words`."""
    world, reference = _reference(seed)
    generator = make_generator(1_000 + seed)
    # More than enough: two responses of at most two words are about half of all pairs.
    ask = n if max_words is None else 4 * n
    preferences = collect_preferences(reference, world, BradleyTerryAnnotator(), ask, generator)
    if max_words is not None:
        lengths = [
            (world.response_mask(responses) & (responses < world.n_words)).sum(1)
            for responses in (preferences.chosen, preferences.rejected)
        ]
        preferences = preferences[torch.stack(lengths).amax(0) <= max_words]
    return preferences[:n]
