"""Where each method ends with endless data or exact gradients, in three worlds.

Nothing is sampled and no network is trained: the policy is a table, and the loss or its gradient is
an exact expectation. So a gap to the optimum comes from the method alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy import dpo, losses, policy_gradient
from rlhf_toy.course.studies import parts
from rlhf_toy.course.studies.parts import REFERENCE
from rlhf_toy.dpo import DPOSettings
from rlhf_toy.envs import REVIEWS, WordMDP
from rlhf_toy.envs.prompt_bandit import QUESTIONS
from rlhf_toy.exact import (
    all_pairs,
    expected_advantages,
    fixed_point,
    response_logps,
    response_rewards,
    response_token_logps,
)
from rlhf_toy.plots import COLOURS, MARKERS
from rlhf_toy.sft import train_reference
from rlhf_toy.training import make_generator

BETA = 1.0
NOISE = 0.1  # share of flipped answers, for the methods that expect some
GROUPS = {"bandit": 8, "tree": 4, "words": 2}  # the largest that is enumerated, in each world
PROMPT = 1  # of the word world: "concert"
FEW_WORDS = replace(
    REVIEWS,
    adjectives={"good": 0.5, "bad": -1.0, "long": 0.0},
    prompt_taste={"concert": {"long": 0.6}},
    corpus_weights={"good": 4},
)
DPO = replace(parts.DPO, beta=BETA)
# How the KL enters: estimator and place; whether a negative one counts as 0; whether it is taken of
# each token and summed; and what the loss averages over.
POLICY_GRADIENTS: dict[str, dict[str, Any]] = {
    "no KL": {"kl": "none"},
    "k1 in the reward": {"kl": "k1_reward"},
    "max(k1, 0) in the reward": {"kl": "k1_reward", "positive": True},
    "k2 in the reward": {"kl": "k2_reward"},
    "k3 in the reward": {"kl": "k3_reward"},
    "k1 in the loss": {"kl": "k1_loss"},
    "k2 in the loss": {"kl": "k2_loss"},
    "k3 in the loss": {"kl": "k3_loss"},
    "k2 in the loss, per token": {"kl": "k2_loss", "per_token": True},
    "k3 in the loss, per token": {"kl": "k3_loss", "per_token": True},
    "k3 per token, mean per response": {
        "kl": "k3_loss",
        "per_token": True,
        "aggregate": "response_mean",
    },
    **{
        f"{name}, G = {G}, {kl} in the {place}": {
            "advantage": advantage,
            "group_size": G,
            "kl": f"{kl}_{place}",
        }
        for name, advantage in (("GRPO", "grpo"), ("Dr. GRPO", "dr_grpo"))
        for kl, place in (("k1", "reward"), ("k2", "loss"), ("k3", "loss"))
        for G in ((2, 4) if kl == "k1" else (2, 4, 8))
    },
}
# Loss, its settings, the share of flipped answers, and whether the policy writes the pairs.
PREFERENCES: dict[str, tuple[DPOSettings, float, bool]] = {
    "DPO": (DPO, 0.0, False),
    "online DPO": (DPO, 0.0, True),
    "IPO": (replace(DPO, loss="ipo"), 0.0, False),
    "online IPO": (replace(DPO, loss="ipo"), 0.0, True),
    "DPO, flips": (DPO, NOISE, False),
    "cDPO, flips": (replace(DPO, loss="cdpo", label_smoothing=NOISE), NOISE, False),
    "rDPO, flips": (replace(DPO, loss="rdpo", label_smoothing=NOISE), NOISE, False),
    "rDPO, half the flips": (replace(DPO, loss="rdpo", label_smoothing=NOISE / 2), NOISE, False),
    "rDPO, twice the flips": (replace(DPO, loss="rdpo", label_smoothing=2 * NOISE), NOISE, False),
    "SimPO, γ = 0": (replace(DPO, loss="simpo", simpo_gamma=0.0), 0.0, False),
    "SimPO, γ = 0.5": (replace(DPO, loss="simpo"), 0.0, False),
    "ORPO": (replace(DPO, loss="orpo"), 0.0, False),
    "χPO": (replace(DPO, loss="chi_po"), 0.0, False),
    "KTO": (replace(DPO, loss="kto"), 0.0, False),
    "KTO, λ_D = 3": (replace(DPO, loss="kto", desirable_weight=3.0), 0.0, False),
}


@dataclass(frozen=True)
class Tables:
    """A world as tables."""

    ref_logps: Tensor  # [X, Y]
    rewards: Tensor  # [X, Y]
    responses: Tensor  # [Y, T] token ids
    mask: Tensor  # [Y, T] real tokens


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of a world and a method that can be enumerated in it."""
    names = [*POLICY_GRADIENTS, *PREFERENCES]
    return [
        {"world": world, "method": name}
        for world in GROUPS
        for name in names
        if _applies(name, world)
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Find the fixed point from two starts.

    Returns:
        `gibbs_kl` (nats), `gap`, `boundary`, `residual` of the limit from the reference, and
        `starts_differ`, the largest difference of a probability between the two limits. Without a
        limit only `problem`, which says what happened.
    """
    tables = world_tables(task["world"])
    loss = method_loss(task["method"], tables)
    try:
        found, other = (
            fixed_point(loss, tables.ref_logps, tables.rewards, BETA, start)
            for start in (None, _elsewhere(tables.ref_logps))
        )
    except RuntimeError as error:
        return {"problem": str(error)}
    difference = (found.logps.exp() - other.logps.exp()).abs().max()
    return {
        "gibbs_kl": round(found.gibbs_kl, 7) + 0.0,  # not −0
        "gap": round(found.gap, 7) + 0.0,
        "boundary": found.boundary,
        "residual": float(f"{found.residual:.1e}"),
        "starts_differ": round(float(difference), 6),
    }


def method_loss(method: str, tables: Tables) -> Callable[[Tensor], Tensor]:
    """Return the exact loss of a method, or the function whose gradient it follows."""
    if method in POLICY_GRADIENTS:
        return _policy_gradient(tables, **POLICY_GRADIENTS[method])
    settings, noise, online = PREFERENCES[method]
    lengths = tables.mask.sum(1).double()

    def loss(logps: Tensor) -> Tensor:
        sampler = logps if online else None
        pairs, weights = all_pairs(logps, tables.ref_logps, tables.rewards, lengths, sampler, noise)
        return dpo.LOSSES[settings.loss](pairs, settings, weights)

    return loss


def _policy_gradient(
    tables: Tables,
    kl: str,
    advantage: str = "reinforce",
    group_size: int = 1,
    positive: bool = False,
    per_token: bool = False,
    aggregate: str = "sequence",
) -> Callable[[Tensor], Tensor]:
    ref_logps, rewards = tables.ref_logps, tables.rewards
    ref_tokens = response_token_logps(ref_logps, tables.responses).flatten(0, 1)
    mask = tables.mask.repeat(len(ref_logps), 1)
    estimator, place = kl[:2], kl.partition("_")[2]

    def loss(logps: Tensor) -> Tensor:
        weights = logps.detach().exp().flatten()
        tokens = response_token_logps(logps, tables.responses).flatten(0, 1)
        net = rewards
        if place == "reward":
            paid = losses.approx_kl(logps.detach(), ref_logps, estimator)
            net = rewards - BETA * (paid.clamp(min=0) if positive else paid)
        credit = net
        if advantage != "reinforce":
            credit = expected_advantages(
                policy_gradient.ADVANTAGES[advantage], logps, net, group_size
            )
        total = losses.policy_gradient_loss(
            tokens, credit.detach().flatten()[:, None], mask, aggregate, weights
        )
        if place == "loss" and per_token:
            each = losses.approx_kl(tokens, ref_tokens, estimator)
            total = total + BETA * losses.aggregate_loss(each, mask, aggregate, weights)
        elif place == "loss":
            each = losses.approx_kl(logps, ref_logps, estimator).flatten()
            total = total + BETA * losses.weighted_mean(each, weights)
        return total

    return loss


@cache
def world_tables(world: str) -> Tables:
    """Return a world's tables.

    "bandit": the four questions with eight answers. "tree": three words and an end, at most two of
    them, with random rewards. "words": the 57 reviews of at most two of seven words for one prompt,
    with a trained reference.
    """
    if world == "bandit":
        ref_logps = torch.tensor(QUESTIONS.habits, dtype=torch.float64).log_softmax(-1)
        rewards = torch.tensor(QUESTIONS.taste, dtype=torch.float64)
        responses = torch.arange(rewards.shape[1])[:, None]
        return Tables(ref_logps, rewards, responses, torch.ones_like(responses).bool())
    if world == "tree":
        rows = [[3, -1], *([w, t] for w in range(3) for t in range(4))]
        responses = torch.tensor(rows)
        logits, rewards = torch.randn(
            2, 1, len(rows), generator=make_generator(0), dtype=torch.float64
        )
        return Tables(logits.log_softmax(-1), rewards, responses, responses >= 0)
    text_world = WordMDP(FEW_WORDS, max_length=2)
    reference, _ = train_reference(text_world, REFERENCE, 0, device="cpu")
    responses = text_world.all_responses
    return Tables(
        response_logps(reference, text_world)[[PROMPT]],
        response_rewards(text_world)[[PROMPT]],
        responses,
        text_world.written_mask(None, responses),
    )


def _applies(method: str, world: str) -> bool:
    """Whether a method can be enumerated in a world, and differs there from every other one."""
    settings = POLICY_GRADIENTS.get(method, {})
    if world == "bandit" and "per_token" in settings:  # a response is one token
        return False
    if world != "tree" and method.startswith("GRPO") and settings["kl"] == "k1_reward":
        return False  # near its limit the deviation it divides by is 0, and the flow very slow
    return settings.get("group_size", 1) <= GROUPS[world]


def _elsewhere(ref_logps: Tensor) -> Tensor:
    """Return another policy to start from: the reference with noise of one nat on each logit."""
    noise = torch.randn(ref_logps.shape, generator=make_generator(1), dtype=torch.float64)
    return (ref_logps + noise).log_softmax(-1)


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw the gap of each method's fixed point; hollow markers lie on the boundary."""
    methods = [*POLICY_GRADIENTS, *PREFERENCES]
    drawn, axes = plt.subplots(figsize=(8.0, 10.5))
    for k, world in enumerate(GROUPS):
        for row in (row for row in results if row["world"] == world):
            y = methods.index(row["method"]) + 0.22 * (k - 1)
            colour, filled = COLOURS[k], not row.get("boundary", False)
            style = {"color": colour, "markerfacecolor": colour if filled else "white"}
            found = "gap" in row
            axes.plot(
                max(100 * row["gap"], 0.0) if found else 0.0, y,
                MARKERS[k] if found else "x", markersize=6, **style,
            )  # fmt: skip
    labels = [
        f"RLOO, {name}"
        if "advantage" not in POLICY_GRADIENTS.get(name, {"advantage": ""})
        else name
        for name in methods
    ]
    axes.set_yticks(range(len(methods)), labels, fontsize=9)
    axes.set_ylim(len(methods) - 0.3, -0.7)
    axes.axhline(len(POLICY_GRADIENTS) - 0.5, color="0.6", linewidth=1.0)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks([0, 0.1, 1, 10, 100, 1000], ["0", "0.1", "1", "10", "100", "1000"])
    axes.set_xlabel(f"gap of the fixed point to the optimum at β = {BETA:g}, %")
    for k, world in enumerate(GROUPS):
        axes.plot([], [], MARKERS[k], color=COLOURS[k], label=world)
    axes.plot([], [], "o", color="0.3", markerfacecolor="white", label="on the boundary")
    axes.plot([], [], "x", color="0.3", label="no fixed point found")
    drawn.legend(loc="outside lower center", ncols=5, fontsize=9)
    return drawn
