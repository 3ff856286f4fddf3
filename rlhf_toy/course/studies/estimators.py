"""Bias and variance of each policy-gradient estimator, exactly: every group is enumerated.

The world is the bandit. The estimates are of ∇J with the KL in the reward, at the reference and
half of the way from there to the optimum (the geometric mean of the two policies).
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy import policy_gradient
from rlhf_toy.envs.prompt_bandit import QUESTIONS
from rlhf_toy.exact import expected_reward, gibbs_policy, gradient_moments
from rlhf_toy.plots import COLOURS, MARKERS

BETA = 0.5
GROUP_SIZES = (2, 4, 8)
PLACES = {"at the reference": 0.0, "half of the way": 0.5}
NAMES = {
    "reinforce": "REINFORCE",
    "baseline": "baseline",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dr_grpo": "Dr. GRPO",
}


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of a place, an estimator and a group size."""
    return [
        {"place": place, "advantage": advantage, "group_size": G}
        for place in PLACES
        for advantage in NAMES
        for G in GROUP_SIZES
    ]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Enumerate all groups of one size.

    Returns:
        lists with a number for each prompt: `cosine` of the expected estimate and ∇J; `bias`,
        their distance, and `variance`, that of an estimate from one response (G times that of a
        group), summed over the components; both in units of |∇J| or its square.
    """
    rewards = torch.tensor(QUESTIONS.taste, dtype=torch.float64)
    ref_logps = torch.tensor(QUESTIONS.habits, dtype=torch.float64).log_softmax(-1)
    optimum = gibbs_policy(ref_logps, rewards, BETA)
    step = PLACES[task["place"]]
    logps = ((1 - step) * ref_logps + step * optimum).log_softmax(-1)
    returns = rewards - BETA * (logps - ref_logps)
    mean = expected_reward(logps, returns)

    def advantage(groups: Tensor) -> Tensor:
        if task["advantage"] == "baseline":  # the limit of a large batch
            return groups - mean.mean()
        return policy_gradient.ADVANTAGES[task["advantage"]](groups)

    found = gradient_moments(advantage, logps, returns, task["group_size"])
    gradient = logps.exp() * (returns - mean[:, None])  # ∇J in the logits of a prompt
    length = gradient.norm(dim=1)
    return {
        "cosine": found.cosine.tolist(),
        "bias": ((found.mean - gradient).norm(dim=1) / length).tolist(),
        "variance": (task["group_size"] * found.variance / length**2).tolist(),
    }


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw bias and variance against the group size: a dot for each prompt, and their means."""
    drawn, axes = plt.subplots(2, len(PLACES), figsize=(9.0, 6.0), sharex=True, sharey="row")
    for row, name in enumerate(("bias", "variance")):
        for column, place in enumerate(PLACES):
            for i, (advantage, label) in enumerate(NAMES.items()):
                runs = [r for r in results if (r["place"], r["advantage"]) == (place, advantage)]
                means = [torch.tensor(run[name]).mean().item() for run in runs]
                shift = 1 + 0.03 * (i - 2)  # curves that fall together stay visible
                sizes = [shift * run["group_size"] for run in runs]
                style = {"color": COLOURS[i], "marker": MARKERS[i]}
                axes[row, column].plot(sizes, means, label=label, **style)
                for size, run in zip(sizes, runs, strict=True):
                    prompts = run[name]
                    dots = {"color": COLOURS[i], "markersize": 3, "alpha": 0.5}
                    axes[row, column].plot([size] * len(prompts), prompts, "o", **dots)
    for column, place in enumerate(PLACES):
        axes[0, column].set(title=place, xscale="log", xticks=GROUP_SIZES)
        axes[0, column].set_xticks(GROUP_SIZES, [str(G) for G in GROUP_SIZES])
        axes[0, column].minorticks_off()
        axes[1, column].set(xlabel="responses in a group", yscale="log")
    axes[0, 0].set_ylabel("bias, in units of |∇J|")
    axes[1, 0].set_ylabel("variance per response, |∇J|²")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return drawn
