"""Difficulty bias: GRPO's division by the standard deviation favours very easy and hard prompts."""

from __future__ import annotations

import torch

from rlhf_toy.course.claims.board import HOLDS, IN_PART, NOT_HERE, Claim, Measurements
from rlhf_toy.exact import expected_advantages
from rlhf_toy.losses import grpo_advantages

CHANCES = (0.01, 0.1, 0.5, 0.9, 0.99)  # that a response is right


def gradients(chances: torch.Tensor, group_size: int, scale: bool) -> torch.Tensor:
    """Return the expected gradient [X] for the log-odds of a right response, reward 0 or 1."""
    logps = torch.stack([1 - chances, chances], 1).log()
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand_as(logps).contiguous()
    wrong, right = expected_advantages(
        lambda groups: grpo_advantages(groups, scale), logps, rewards, group_size
    ).T
    return chances * (1 - chances) * (right - wrong)


def experiment(group_size: int = 8) -> Measurements:
    """Divide GRPO's expected gradient by Dr. GRPO's, over all groups, for prompts by difficulty."""
    chances = torch.tensor(CHANCES, dtype=torch.float64)
    scaled, plain = (gradients(chances, group_size, scale) for scale in (True, False))
    weights = (scaled / plain).tolist()
    found = {f"weight at p = {p:g}": w for p, w in zip(CHANCES, weights, strict=True)}
    found["1/σ at p = 0.01 over 1/σ at 0.5"] = (0.25 / (0.01 * 0.99)) ** 0.5
    found["GRPO's gradient at p = 0.01 over that at 0.5"] = float(scaled[0] / scaled[2])
    found["groups without signal at p = 0.01"] = 0.99**group_size + 0.01**group_size
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    hard, rather_hard, middle, rather_easy, easy = (
        measured[f"weight at p = {p:g}"] for p in CHANCES
    )
    is_monotone = hard > rather_hard > middle < rather_easy < easy
    ratio = min(hard, easy) / middle
    return HOLDS if is_monotone and ratio >= 1.2 else IN_PART if ratio >= 1.02 else NOT_HERE


CLAIM = Claim(
    name="difficulty_bias",
    paper="Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783",
    claim="Because GRPO divides by the standard deviation of a group's rewards, prompts that are "
    "too easy or too hard get a higher weight in the update.",
    read="the abstract, and summaries of section 3",
    world="In this world a prompt has one right and one wrong response and the reward is 1 or 0. "
    "All groups of G = 8 are enumerated; the weight is GRPO's expected gradient over Dr. GRPO's.",
    predicted="weight 1.98 at p = 0.5 and 2.79 at p = 0.01: more, but by a factor of 1.4, where "
    "the standard deviation of one response would suggest 5.",
    rule="holds: the weight rises from p = 0.5 to both ends, by a factor of at least 1.2; in "
    "part: the smaller of the two factors is between 1.02 and 1.2, or it does not rise all the "
    "way; not here: below 1.02.",
    experiment=experiment,
    judge=judge,
    perturbation={"group_size": 2},
    perturbed="groups of two: a mixed pair always has the same standard deviation",
    not_tested="graded rewards, the length bias that the same paper reports, several prompts that "
    "share a network, clipping, real models",
    found="as predicted: 1.98 and 2.79. The bias is bounded, because a mixed group's deviation is "
    "never below 1/√G. It does not lead to large updates: at p = 0.01, 92 % of the groups give no "
    "gradient, and the expected one is 6 % of that at 0.5.",
)
