"""Online and offline methods in the long world: what critic, λ, group size and length change.

Every policy starts exactly at the reference, the world's table: it is a `ResidualPolicy`, whose
network says 0 at first. All arms of a seed start from the same weights, and all online arms draw
equally many responses. Gaps are estimated by samples, against the exact optimum.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.studies import parts
from rlhf_toy.course.studies.parts import half_width
from rlhf_toy.dpo import train_dpo
from rlhf_toy.envs import STAYS, LongReview
from rlhf_toy.exact import AutomatonYardstick, table_reference
from rlhf_toy.models import GPTConfig, ResidualPolicy
from rlhf_toy.plots import COLOUR
from rlhf_toy.policy_gradient import PolicyGradientSettings, train_policy_gradient
from rlhf_toy.ppo import train_ppo
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator

SEEDS = 5
BETA = 0.1
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64}
SAMPLES = 4_096  # of the final measurement
PAIRS = 20_000  # comparisons of the reference's responses
NO_KL = 1e-6  # a β so small that the KL costs nothing
ONLINE = {"beta": BETA, "iterations": 120, "batch_size": 256, "learning_rate": 3e-3}
PPO = replace(parts.PPO, **ONLINE, lam=1.0, measure_every=ONLINE["iterations"])
GROUPS = PolicyGradientSettings(
    **ONLINE,
    advantage="rloo",
    kl="k1_reward",
    kl_level="sequence",
    aggregate="sequence",
    num_generations=4,
    num_mini_batches=4,
    cliprange=0.2,
    max_grad_norm=1.0,
    measure_every=ONLINE["iterations"],
)
REWARD_MODEL = replace(
    parts.REWARD_MODEL, steps=200, batch_size=256, ema_decay=0.99, measure_every=50
)
DPO = replace(
    parts.DPO,
    beta=BETA,
    steps=200,
    batch_size=256,
    learning_rate=3e-3,
    warmup_steps=0,
    weight_decay=1.0,
    ema_decay=0.99,
    measure_every=50,
)
PPO_ARMS: dict[str, dict[str, Any]] = {
    "PPO": {},
    "PPO, λ = 0.95": {"lam": 0.95},
    "PPO, λ = 0.9": {"lam": 0.9},
    "PPO, no critic": {"use_critic": False},
    "PPO, no KL": {"beta": NO_KL},
}
# GRPO as in its paper. The mean over the tokens of each response is the field's 1/|o|.
GROUP_ARMS: dict[str, dict[str, Any]] = {
    **{f"RLOO, G = {G}": {"num_generations": G} for G in (2, 4, 8, 16)},
    "RLOO, G = 4, mean per response": {"aggregate": "response_mean"},
    "GRPO, G = 4": {
        "advantage": "grpo",
        "kl": "k3_loss",
        "kl_level": "token",
        "aggregate": "response_mean",
    },
}
PAIR_ARMS = ("DPO", "PPO, learned reward", "PPO, learned reward, no KL")
# The most words of a response, and the arms that are run there.
LENGTHS: dict[int, tuple[str, ...]] = {
    32: (*PAIR_ARMS, *PPO_ARMS, *GROUP_ARMS),
    16: ("PPO", "PPO, λ = 0.9", "PPO, no critic", "RLOO, G = 4"),
    8: ("PPO", "PPO, λ = 0.9", "PPO, no critic", "RLOO, G = 4"),
}


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of an arm, a length and a seed, the longest runs first."""
    return [
        {"arm": arm, "length": length, "seed": seed}
        for length, arms in LENGTHS.items()
        for arm in arms
        for seed in range(SEEDS)
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train once.

    Returns:
        `gap` to J* and its standard `error`, true `reward` (logits), `kl` (nats) and mean number of
        `words` of the policy, the same of the optimum (`best_reward`, `best_kl`, `best_words`), and
        the `seconds` of processor time of the training.
    """
    arm, seed, world = task["arm"], task["seed"], long_world(task["length"])
    yardstick, started = AutomatonYardstick(world, BETA, SAMPLES), time.process_time()
    policy, generator = train(arm, world, seed), make_generator(3_000 + seed)
    seconds = time.process_time() - started
    measure, (best_reward, best_kl) = yardstick.measure(policy), yardstick.best_at(BETA)
    prompts = world.sample_prompts(1_024, generator)
    optimum = yardstick.optimum_on(prompts.device)
    return {
        "gap": measure.gap,
        "error": measure.standard_error,
        "reward": measure.reward,
        "kl": measure.kl,
        "words": words(world, sample(policy, world, prompts, generator).responses),
        "best_reward": best_reward,
        "best_kl": best_kl,
        "best_words": words(world, optimum.sample(prompts, generator)),
        "seconds": seconds,
    }


@cache
def long_world(length: int) -> LongReview:
    """Return the long world with at most so many words."""
    return LongReview(STAYS, max_length=length)


def words(world: LongReview, responses: Tensor) -> float:
    """Return the mean number of words, the end token not counted, of responses [B, T]."""
    return float((responses < world.n_words).sum(1).double().mean())


def train(arm: str, world: LongReview, seed: int) -> ResidualPolicy:
    """Return the policy of an arm."""
    reference = table_reference(world)
    start = ResidualPolicy(reference, GPTConfig.for_world(world, **SIZES), make_generator(seed))
    # The trainers measure too. One sample of each prompt's would do; the last one is `run`'s.
    common = {"device": "cpu", "start": start}
    common["yardstick"] = AutomatonYardstick(world, BETA, 2 * world.n_prompts)
    if arm in GROUP_ARMS:
        settings = replace(GROUPS, **GROUP_ARMS[arm])
        arguments = (world, reference, world.response_rewards, settings, seed)
        return train_policy_gradient(*arguments, **common)[0]
    if arm == "DPO":
        return train_dpo(pairs(world, seed), reference, DPO, seed, **common)[0]
    reward = world.response_rewards
    if arm in PAIR_ARMS:
        reward, _ = train_reward_model(pairs(world, seed), REWARD_MODEL, seed, device="cpu")
    settings = replace(PPO, **PPO_ARMS.get(arm, {}))
    if arm.endswith("no KL"):
        settings = replace(settings, beta=NO_KL)
    return train_ppo(world, reference, reward, settings, seed, **common)[0]


def pairs(world: LongReview, seed: int) -> PreferenceDataset:
    """Return compared pairs of the reference's responses."""
    arguments = (BradleyTerryAnnotator(), PAIRS, make_generator(1_000 + seed))
    return collect_preferences(table_reference(world), world, *arguments)


def values(results: list[dict[str, Any]], name: str, arm: str, length: int = 32) -> np.ndarray:
    """Return one result of an arm, by seed."""
    runs = [run for run in results if (run["arm"], run["length"]) == (arm, length)]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def colour(arm: str) -> str:
    """Return the course's colour of an arm's method."""
    method = arm.split(",")[0].lower()
    is_true = method == "ppo" and "learned" not in arm
    return COLOUR["ppo, true reward" if is_true else method]


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of every arm at 32 words, and of some arms against the length."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=(3, 2))
    for row, arm in enumerate(LENGTHS[32]):
        gaps = 100 * values(results, "gap", arm)
        left.plot(gaps, np.full(len(gaps), row + 0.2), ".", color=colour(arm), alpha=0.5)
        line = {"xerr": half_width(gaps), "fmt": "D", "color": colour(arm), "capsize": 4}
        left.errorbar(gaps.mean(), row, **line)
    left.set_yticks(range(len(LENGTHS[32])), LENGTHS[32])
    left.invert_yaxis()
    left.axvline(100, color=COLOUR["reference"], linestyle=":")
    left.set(
        xlabel="gap to J*, % (log scale; dotted: the reference)", xscale="log", title="32 words"
    )
    lengths = sorted(LENGTHS)
    for arm, style in zip(LENGTHS[8], ("-", "--", ":", "-"), strict=True):
        gaps = np.stack([100 * values(results, "gap", arm, n) for n in lengths], axis=1)
        line = {"linestyle": style, "color": colour(arm), "label": arm, "capsize": 4, "marker": "o"}
        right.errorbar(lengths, gaps.mean(0), yerr=half_width(gaps), **line)
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, lengths)
    right.set(xlabel="most words in a response", ylabel="gap to J*, % (log scale)", yscale="log")
    right.legend(fontsize=9)
    return drawn
