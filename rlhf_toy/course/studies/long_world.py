"""Methods in the long world: what critic, λ, group size, length and network change.

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
from rlhf_toy.models import GPTConfig, ResidualPolicy, RewardModel
from rlhf_toy.plots import COLOUR
from rlhf_toy.policy_gradient import PolicyGradientSettings, train_policy_gradient
from rlhf_toy.ppo import train_ppo
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.sampling import sample
from rlhf_toy.training import Reward, make_generator

SEEDS = 4
BETA = 0.1
SIZES = {"n_layer": 1, "n_head": 4, "n_embd": 64}
SAMPLES = 1_800  # of the final measurement
PAIRS = 20_000  # comparisons of the reference's responses
NO_KL = 1e-6  # a β so small that the KL costs nothing
ONLINE = {"beta": BETA, "iterations": 60, "batch_size": 256, "learning_rate": 3e-3}
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
    parts.REWARD_MODEL, steps=100, batch_size=256, ema_decay=0.99, measure_every=50
)
DPO = replace(
    parts.DPO,
    beta=BETA,
    steps=100,
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
    "PPO, no KL": {},
}
# GRPO as in its paper, and RLOO with one or another part of it. The mean over the tokens of each
# response is the field's 1/|o|.
GROUP_ARMS: dict[str, dict[str, Any]] = {
    **{f"RLOO, G = {G}": {"num_generations": G} for G in (2, 4, 16)},
    "RLOO, G = 4, mean per response": {"aggregate": "response_mean"},
    "RLOO, G = 4, k3 in the loss": {"kl": "k3_loss", "kl_level": "token"},
    "GRPO, G = 4, KL in the reward": {"advantage": "grpo"},
    "GRPO, G = 4": {
        "advantage": "grpo",
        "kl": "k3_loss",
        "kl_level": "token",
        "aggregate": "response_mean",
    },
}
NETWORK_ARMS: dict[str, dict[str, int]] = {
    "PPO, 16 wide": {"n_embd": 16},
    "PPO, 128 wide": {"n_embd": 128},
    "PPO, rate 0.01": {},
    "PPO, 16 wide, rate 0.01": {"n_embd": 16},
}
PAIR_ARMS = ("DPO", "PPO, learned reward", "PPO, learned reward, no KL")
TICKS = (2, 5, 10, 20, 50, 100)  # of the figure, in %
SOME = ("PPO", "PPO, λ = 0.9", "PPO, no critic")
LENGTH = 16  # the most words of a response where all arms are run
LENGTHS: dict[int, tuple[str, ...]] = {
    LENGTH: (*PPO_ARMS, *GROUP_ARMS, *PAIR_ARMS, *NETWORK_ARMS),
    32: SOME,
    8: SOME,
}


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of an arm, a length and a seed."""
    return [
        {"arm": arm, "length": length, "seed": seed}
        for seed in range(SEEDS)
        for length, arms in LENGTHS.items()
        for arm in arms
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train once.

    Returns:
        `gap` to J* and its standard `error`, true `reward` (logits), `kl` (nats) and mean number of
        `words` of the policy, the same of the optimum (`best_reward`, `best_kl`, `best_words`), and
        the `seconds` of processor time of the training, without pairs and reward model.
    """
    arm, seed, world = task["arm"], task["seed"], long_world(task["length"])
    reward = learned_reward(seed) if "learned" in arm else world.response_rewards
    comparisons = pairs(seed) if arm == "DPO" else None
    started = time.process_time()
    policy = train(arm, world, seed, reward, comparisons)
    seconds = time.process_time() - started
    ruler, generator = yardstick(task["length"], SAMPLES), make_generator(3_000 + seed)
    measure, (best_reward, best_kl) = ruler.measure(policy), best(task["length"])
    prompts = world.sample_prompts(1_024, generator)
    optimum = ruler.optimum_on(prompts.device)
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


def train(
    arm: str, world: LongReview, seed: int, reward: Reward, comparisons: PreferenceDataset | None
) -> ResidualPolicy:
    """Return the policy of an arm, trained on a reward or, by DPO, on compared pairs."""
    reference = table_reference(world)
    config = GPTConfig.for_world(world, **SIZES | NETWORK_ARMS.get(arm, {}))
    start = ResidualPolicy(reference, config, make_generator(seed))
    # The trainers measure too, by few samples; the measurement that counts is `run`'s.
    few = yardstick(world.max_length, 2 * world.n_prompts)
    common = {"device": "cpu", "start": start, "yardstick": few}
    if arm == "DPO":
        return train_dpo(comparisons, reference, DPO, seed, **common)[0]
    if arm in GROUP_ARMS:
        trainer, settings = train_policy_gradient, replace(GROUPS, **GROUP_ARMS[arm])
    else:
        trainer, settings = train_ppo, replace(PPO, **PPO_ARMS.get(arm, {}))
    if arm.endswith("rate 0.01"):
        settings = replace(settings, learning_rate=0.01)
    if arm.endswith("no KL"):
        settings = replace(settings, beta=NO_KL)
    return trainer(world, reference, reward, settings, seed, **common)[0]


@cache
def long_world(length: int) -> LongReview:
    """Return the long world with at most so many words."""
    return LongReview(STAYS, max_length=length)


@cache
def yardstick(length: int, samples: int) -> AutomatonYardstick:
    """Return the yardstick of the world of this length."""
    return AutomatonYardstick(long_world(length), BETA, samples)


@cache
def best(length: int) -> tuple[float, float]:
    """Return the optimum's reward and KL."""
    return yardstick(length, SAMPLES).best_at(BETA)


@cache
def pairs(seed: int) -> PreferenceDataset:
    """Return compared pairs of the reference's responses."""
    world, generator = long_world(LENGTH), make_generator(1_000 + seed)
    return collect_preferences(
        table_reference(world), world, BradleyTerryAnnotator(), PAIRS, generator
    )


@cache
def learned_reward(seed: int) -> RewardModel:
    """Return a reward model of these pairs."""
    return train_reward_model(pairs(seed), REWARD_MODEL, seed, device="cpu")[0]


def words(world: LongReview, responses: Tensor) -> float:
    """Return the mean number of words, the end token not counted, of responses [B, T]."""
    return float((responses < world.n_words).sum(1).double().mean())


def values(results: list[dict[str, Any]], name: str, arm: str, length: int = LENGTH) -> np.ndarray:
    """Return one result of an arm, by seed."""
    runs = [run for run in results if (run["arm"], run["length"]) == (arm, length)]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def colour(arm: str) -> str:
    """Return the course's colour of an arm's method."""
    method = arm.split(",")[0].lower()
    is_true = method == "ppo" and "learned" not in arm
    return COLOUR["ppo, true reward" if is_true else method]


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of every arm at one length, and of some arms against the length."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 6), width_ratios=(3, 2))
    for row, arm in enumerate(LENGTHS[LENGTH]):
        gaps = 100 * values(results, "gap", arm)
        left.plot(gaps, np.full(len(gaps), row + 0.2), ".", color=colour(arm), alpha=0.5)
        line = {"xerr": half_width(gaps), "fmt": "D", "color": colour(arm), "capsize": 4}
        left.errorbar(gaps.mean(), row, **line)
    left.set_yticks(range(len(LENGTHS[LENGTH])), LENGTHS[LENGTH])
    left.invert_yaxis()
    left.axvline(100, color=COLOUR["reference"], linestyle=":")
    left.set(
        xlabel="gap to J*, % (log scale; dotted: the reference)",
        xscale="log",
        title=f"{LENGTH} words",
    )
    left.set_xticks(TICKS[2:], TICKS[2:])
    lengths = sorted(LENGTHS)
    for arm, style in zip(SOME, ("-", "--", ":"), strict=True):
        gaps = np.stack([100 * values(results, "gap", arm, n) for n in lengths], axis=1)
        line = {"linestyle": style, "color": colour(arm), "label": arm, "capsize": 4, "marker": "o"}
        right.errorbar(lengths, gaps.mean(0), yerr=half_width(gaps), **line)
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, lengths)
    right.set(xlabel="most words in a response", ylabel="gap to J*, % (log scale)", yscale="log")
    right.set_yticks(TICKS[:-2], TICKS[:-2])
    for ax in (left, right):
        ax.minorticks_off()
    right.legend(fontsize=9)
    return drawn
