"""What a policy-gradient estimator does on average, and how much it varies, over every group.

A group is G responses to one prompt, drawn from the policy. Its order does not matter, so the
groups are the multisets of G of the Y responses, each with its multinomial probability. There are
(Y + G − 1)! / (G! (Y − 1)!) of them: 6,435 for eight responses and G = 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy import checks

__all__ = ["GradientMoments", "expected_advantages", "gradient_moments"]

MOST_GROUPS = 200_000  # to enumerate

Advantage = Callable[[Tensor], Tensor]  # rewards [N, G] of N groups → advantages [N, G]


@dataclass(frozen=True)
class GradientMoments:
    """Mean and spread of the gradient that one group gives, for each prompt."""

    mean: Tensor  # [X, Y] expected gradient with respect to the logits of the prompt's responses
    cosine: Tensor  # [X] of the angle between the mean and ∇E[r]; NaN where one of them is 0
    variance: Tensor  # [X] summed over the Y components; divide by n for a mean over n groups


def expected_advantages(
    advantage: Advantage, logps: Tensor, rewards: Tensor, group_size: int
) -> Tensor:
    """Return the mean advantage of each response, given that it is in the group: [X, Y].

    The policy gradient −E[A log π] of the estimator is that of −Σ_y π(y) Ā(y) log π(y) with this Ā.

    Args:
        advantage: rewards [N, G] of N groups → advantages [N, G], such as `rloo_advantages`.
        logps: [X, Y] log π(y|x), none of them −inf; no gradient flows through it.
        rewards: [X, Y] in logits, the KL term included where it is part of the reward.
        group_size: G.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit, `logps` that are no finite log-probabilities, rewards
            that are not finite, or more than 200,000 groups.
    """
    members, weights, advantages = _all_groups(advantage, logps, rewards, group_size)
    summed = torch.zeros_like(rewards).index_add(
        1, members.flatten(), (weights[..., None] * advantages).flatten(1)
    )
    return summed / (group_size * logps.detach().exp())


def gradient_moments(
    advantage: Advantage, logps: Tensor, rewards: Tensor, group_size: int
) -> GradientMoments:
    """Return mean, direction and variance of the gradient estimate (1/G) Σ_i A_i ∇ log π(y_i|x).

    Compared with ∇E[r]. With rewards r − β log π/π_ref that is ∇J, the gradient of the objective.

    Args:
        advantage, logps, rewards, group_size: as for `expected_advantages`.

    Returns:
        moments of the estimate from one group. To compare group sizes for the same number of
        responses, multiply the variance by G.

    Raises:
        TypeError, ValueError: as for `expected_advantages`.
    """
    members, weights, advantages = _all_groups(advantage, logps, rewards, group_size)
    p = logps.detach().exp()
    credit = torch.zeros(*weights.shape, p.shape[1], dtype=p.dtype)  # [X, M, Y]: Σ_i A_i at y_i = y
    credit.scatter_add_(2, members.expand(len(p), -1, -1), advantages)
    estimates = (credit - advantages.sum(2, keepdim=True) * p[:, None]) / group_size
    mean = (weights[..., None] * estimates).sum(1)
    spread = ((estimates - mean[:, None]) ** 2).sum(2)
    true = p * (rewards - (p * rewards).sum(1, keepdim=True))
    cosine = (mean * true).sum(1) / (mean.norm(dim=1) * true.norm(dim=1))
    return GradientMoments(mean, cosine, (weights * spread).sum(1))


def _all_groups(
    advantage: Advantage, logps: Tensor, rewards: Tensor, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Check, and return members [M, G], probabilities [X, M], advantages [X, M, G]."""
    checks.check_type("advantage", advantage, Callable, "a function such as rloo_advantages")
    checks.check_count("group_size", group_size)
    Y = checks.check_shapes(logps=(logps, "XY"), rewards=(rewards, "XY"))["Y"]
    checks.check_distribution("logps", logps.detach())
    checks.check_finite(logps=logps.detach(), rewards=rewards.detach())
    if (n := math.comb(Y + group_size - 1, group_size)) > MOST_GROUPS:
        raise ValueError(
            f"there are {n:,} groups of {group_size} of {Y} responses, at most {MOST_GROUPS:,} can "
            "be enumerated: take a smaller group_size or fewer responses"
        )
    members, counts, log_orders = _multisets(Y, group_size)
    weights = (log_orders + logps.detach() @ counts).exp()
    groups = rewards.detach()[:, members]
    advantages = advantage(groups.flatten(0, 1))
    checks.check_same_shape(advantages=advantages, rewards_of_groups=groups.flatten(0, 1))
    return members, weights, advantages.view_as(groups)


@lru_cache
def _multisets(Y: int, G: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return members [M, G], counts [Y, M] and the log number of orders [M] of each multiset."""
    members = torch.tensor(list(combinations_with_replacement(range(Y), G)))
    counts = F.one_hot(members, Y).sum(1).double()
    log_orders = math.lgamma(G + 1) - torch.lgamma(counts + 1).sum(1)
    return members, counts.T.contiguous(), log_orders
