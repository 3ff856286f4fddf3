"""What happens to the true reward as a policy optimises a learned one harder, over seeds.

The world is the word world with at most three words. For each learned reward (the proxy) the study
computes the policies that follow it best: the Gibbs policies for the proxy at every β, and
best-of-n at every n. Both are exact, so no result here is due to an imperfect optimiser.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.best_of_n import best_of_n_logps
from rlhf_toy.course.studies.parts import REWARD_MODEL, half_width, reference, word_world
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick, expected_reward, gibbs_policy, kl_divergence, response_scores
from rlhf_toy.plots import COLOURS
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.training import make_generator

SEEDS = 10
PAIRS = 1_000
MEMBERS = 4  # reward models of an ensemble
FRESH_BETA = 0.1  # of the policy whose responses are compared in a fresh round
BETAS = tuple(float(f"{beta:.3g}") for beta in np.geomspace(4.0, 0.005, 20))
NS = tuple(2**k for k in range(15))
CONDITIONS = (
    "1,000 pairs",
    "2,000 pairs",
    "4,000 pairs",
    "16,000 pairs",
    "ensemble, mean",
    "ensemble, worst",
    "1,000 + 1,000 fresh",
)


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of a condition and a seed."""
    return [{"condition": name, "seed": seed} for seed in range(SEEDS) for name in CONDITIONS]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Learn one reward, and follow it further and further.

    Returns:
        `rl` and `bon`: dicts of lists over β and over n, with the policy's `kl` (nats), `proxy` and
        `true` reward (logits), each an exact mean over prompts.
    """
    seed, condition = task["seed"], task["condition"]
    yardstick = _yardstick(seed)
    if condition.startswith("ensemble"):
        members = torch.stack([_scores(seed, PAIRS, member) for member in range(MEMBERS)])
        combined = members.mean(0) if condition.endswith("mean") else members.amin(0)
        scores = anchored(combined, yardstick)  # [X, Y]
    elif condition.endswith("fresh"):
        scores = _scores(seed, PAIRS, fresh=True)
    else:
        scores = _scores(seed, int(condition.split()[0].replace(",", "")))
    return {
        "rl": follow(yardstick, scores, "rl"),
        "bon": follow(yardstick, scores, "bon"),
    }


def anchored(scores: Tensor, yardstick: Yardstick) -> Tensor:
    """Return scores [X, Y] shifted, per prompt, to the true reward's mean under the reference.

    A learned reward is only determined up to such a constant.
    """
    weight = yardstick.ref_logps.exp()
    constant = (weight * (yardstick.rewards - scores)).sum(1, keepdim=True)
    return scores + constant


def follow(yardstick: Yardstick, scores: Tensor, how: str) -> dict[str, list[float]]:
    """Return KL, proxy and true reward of the policies that follow scores, from near to far.

    Args:
        yardstick: world and reference.
        scores: [X, Y] the proxy, see `anchored`.
        how: "rl", the Gibbs policies for `BETAS`, or "bon", best-of-n for `NS`.
    """
    ref_logps = yardstick.ref_logps
    if how == "rl":
        policies = (gibbs_policy(ref_logps, scores, beta) for beta in BETAS)
    else:
        policies = (best_of_n_logps(ref_logps, scores, n) for n in NS)
    found: dict[str, list[float]] = {"kl": [], "proxy": [], "true": []}
    for logps in policies:
        means = {
            "kl": kl_divergence(logps, ref_logps).mean(),
            "proxy": expected_reward(logps, scores).mean(),
            "true": expected_reward(logps, yardstick.rewards).mean(),
        }
        for name, mean in means.items():
            found[name].append(round(float(mean), 5))
    return found


def compare(world: WordMDP, logps: Tensor, n: int, generator: torch.Generator) -> PreferenceDataset:
    """Return n compared pairs of responses of a policy, given as log-probabilities [X, Y]."""
    prompts = world.sample_prompts(n, generator)
    drawn = torch.multinomial(logps[prompts].exp(), 2, replacement=True, generator=generator)
    first, second = world.all_responses[drawn].unbind(1)
    rewards = [world.response_rewards(prompts, responses) for responses in (first, second)]
    wins = BradleyTerryAnnotator().prefer(*rewards, generator)[:, None]
    return PreferenceDataset(
        world, prompts, torch.where(wins, first, second), torch.where(wins, second, first)
    )


def fit(kl: np.ndarray, gain: np.ndarray, how: str) -> tuple[np.ndarray, float]:
    """Fit the curves of Gao et al. (2023) to the true reward as a function of d = √KL.

    gain = d (α − β d) for "bon", and d (α − β log d) for "rl".

    Args:
        kl: [K] above 0.
        gain: [K] true reward minus that of the reference.
        how: "rl" or "bon".

    Returns:
        (α, β) by least squares, and the root-mean-square residual divided by the largest gain.
    """
    d = np.sqrt(kl)
    columns = np.stack([d, -d * (d if how == "bon" else np.log(d))], axis=1)
    found, *_ = np.linalg.lstsq(columns, gain, rcond=None)
    residual = np.sqrt(np.mean((columns @ found - gain) ** 2))
    return found, float(residual / gain.max())


def series(results: list[dict[str, Any]], condition: str, how: str, name: str) -> np.ndarray:
    """Return one quantity of a condition, [seeds, points]."""
    runs = sorted(
        (run for run in results if run["condition"] == condition), key=lambda run: run["seed"]
    )
    return np.array([run[how][name] for run in runs])


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the true reward against KL in every condition: means with 95 % intervals."""
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    styles = ("-", "--", "-.", ":", "-", "--", "-.")
    for ax, how, title in (
        (axes[0], "rl", "RL: Gibbs for the proxy"),
        (axes[1], "bon", "best of n"),
    ):
        for i, condition in enumerate(CONDITIONS):
            kl = series(results, condition, how, "kl").mean(0)
            true = series(results, condition, how, "true")
            half = half_width(true)
            ax.plot(kl, true.mean(0), styles[i], color=COLOURS[i], label=condition)
            ax.fill_between(
                kl, true.mean(0) - half, true.mean(0) + half, color=COLOURS[i], alpha=0.12
            )
        ax.set(xlabel="exact KL(π ‖ π_ref), nats", title=title)
    axes[0].set_ylabel("true reward (logits)")
    drawn.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    return drawn


@cache
def _yardstick(seed: int) -> Yardstick:
    return Yardstick(word_world(), reference(seed), FRESH_BETA)


@cache
def _scores(seed: int, pairs: int, member: int = 0, fresh: bool = False) -> Tensor:
    """Train a reward model, on a bootstrap sample if `member` > 0; return its scores [X, Y]."""
    world, yardstick = word_world(), _yardstick(seed)
    preferences = compare(world, yardstick.ref_logps, pairs, make_generator(1_000 + seed))
    if fresh:
        policy = gibbs_policy(yardstick.ref_logps, _scores(seed, pairs), FRESH_BETA)
        more = compare(world, policy, pairs, make_generator(2_000 + seed))
        preferences = preferences.join(more)
    if member:
        generator = make_generator(10 * seed + member)
        preferences = preferences[torch.randint(pairs, (pairs,), generator=generator)]
    model, _ = train_reward_model(preferences, REWARD_MODEL, 10 * seed + member, device="cpu")
    return anchored(response_scores(model, world).double(), yardstick)
