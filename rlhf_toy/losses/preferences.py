"""Losses on pairs of responses: Bradley–Terry, and the DPO family.

`weights` are optional weights of the pairs [B], at least 0 and not all 0, for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy.checks import check_number, check_positive, check_same_shape
from rlhf_toy.losses.policy import weighted_mean

__all__ = [
    "PairLogps", "bradley_terry_loss", "cdpo_loss", "dpo_loss", "implicit_reward", "ipo_loss",
    "preference_accuracy", "preference_probability",
]  # fmt: skip


def preference_probability(first_rewards: Tensor, second_rewards: Tensor) -> Tensor:
    """P(first ≻ second) = σ(r(first) − r(second)), Bradley & Terry 1952: [B], [B] → [B].

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, or an empty batch.
    """
    check_same_shape(first_rewards=first_rewards, second_rewards=second_rewards)
    return torch.sigmoid(first_rewards - second_rewards)


def bradley_terry_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, weights: Tensor | None = None
) -> Tensor:
    """−mean log σ(r̂(chosen) − r̂(rejected)), the reward model's loss (Christiano et al. 2017).

    Args:
        chosen_rewards: [B] rewards of the preferred responses, in logits.
        rejected_rewards: [B] rewards of the others.
        weights: [B] weights of the pairs.

    Returns:
        scalar, in nats; log 2 where the model cannot tell the two apart.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, or an empty batch.
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return weighted_mean(-F.logsigmoid(chosen_rewards - rejected_rewards), weights)


def preference_accuracy(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Return the share of pairs whose chosen response has the higher reward; a tie counts half.

    Args:
        chosen_rewards: [B]; rejected_rewards: [B].

    Returns:
        scalar in [0, 1]; NaN if a reward is NaN.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, or an empty batch.
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    difference = chosen_rewards - rejected_rewards
    # sign(NaN) is 0, which would count as a tie.
    return torch.where(difference.isnan(), difference, difference.sign() / 2 + 0.5).mean()


def implicit_reward(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """β log π(y|x)/π_ref(y|x): the reward that a policy is optimal for, up to c(x).

    Args:
        policy_logps: [...] log π(y|x), summed over tokens.
        ref_logps: [...] log π_ref(y|x).
        beta: KL weight.

    Returns:
        [...] in logits.

    Raises:
        TypeError, ValueError: shapes differ, an empty batch, or β is not a finite number above 0.
    """
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps)
    check_positive(beta=beta)
    return beta * (policy_logps - ref_logps)


@dataclass(frozen=True)
class PairLogps:
    """What a preference loss is a function of, for B pairs: log-probabilities in nats, and lengths.

    Log-probabilities are of whole responses, summed over their tokens.
    """

    policy_chosen_logps: Tensor  # [B] log π_θ(y|x) of the preferred responses
    policy_rejected_logps: Tensor  # [B] of the others
    ref_chosen_logps: Tensor  # [B] the same under π_ref
    ref_rejected_logps: Tensor  # [B]
    chosen_lengths: Tensor  # [B] tokens, the end token included
    rejected_lengths: Tensor  # [B]

    @property
    def logps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four log-probabilities, in the order in which the losses take them."""
        return tuple(vars(self).values())[:4]

    def implicit_rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """The implicit rewards [B] of the chosen and of the rejected responses, in logits."""
        chosen = implicit_reward(self.policy_chosen_logps, self.ref_chosen_logps, beta)
        return chosen, implicit_reward(self.policy_rejected_logps, self.ref_rejected_logps, beta)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """−mean log σ(β log-ratio of the chosen − β log-ratio of the rejected).

    The Bradley–Terry loss of the implicit rewards; Rafailov et al. 2023, equation 7.

    Args:
        policy_chosen_logps: [B] log π_θ(y|x) of the preferred responses, summed over tokens.
        policy_rejected_logps: [B] of the others.
        ref_chosen_logps: [B] the same under π_ref.
        ref_rejected_logps: [B].
        beta: KL weight.
        weights: [B] weights of the pairs.

    Returns:
        scalar, in nats; log 2 at the reference.

    Raises:
        TypeError, ValueError: shapes differ, an empty batch, or β is not a finite number above 0.
    """
    chosen = implicit_reward(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, ref_rejected_logps, beta)
    return bradley_terry_loss(chosen, rejected, weights)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """mean (h − 1/(2β))², h the log-ratio of the chosen − that of the rejected (Azar et al. 2023).

    Asks for one margin between the log-ratios, where DPO asks for ever more. Sums over tokens, as
    in the paper, whose τ is β here.

    Args:
        policy_chosen_logps: [B] log π_θ(y|x) of the preferred responses, summed over tokens.
        policy_rejected_logps: [B] of the others.
        ref_chosen_logps: [B] the same under π_ref.
        ref_rejected_logps: [B].
        beta: KL weight.
        weights: [B] weights of the pairs.

    Returns:
        scalar; 1/(4β²) at the reference.

    Raises:
        TypeError, ValueError: shapes differ, an empty batch, or β is not a finite number above 0.
    """
    chosen = implicit_reward(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, ref_rejected_logps, beta)
    check_same_shape(chosen_logps=chosen, rejected_logps=rejected)
    return weighted_mean(((chosen - rejected) / beta - 1 / (2 * beta)) ** 2, weights)


def cdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Conservative DPO: −mean ((1 − ε) log σ(m) + ε log σ(−m)), m the implicit margin.

    DPO for labels of which a share ε is taken to be wrong (Mitchell 2023). The loss is lowest at
    the finite margin m = log((1 − ε)/ε).

    Args:
        policy_chosen_logps: [B] log π_θ(y|x) of the preferred responses, summed over tokens.
        policy_rejected_logps: [B] of the others.
        ref_chosen_logps: [B] the same under π_ref.
        ref_rejected_logps: [B].
        beta: KL weight.
        label_smoothing: ε; 0 gives `dpo_loss`.
        weights: [B] weights of the pairs.

    Returns:
        scalar, in nats; log 2 at the reference.

    Raises:
        TypeError, ValueError: shapes differ, an empty batch, β is not a finite number above 0, or
            ε is outside [0, 1/2).
    """
    check_number("label_smoothing", label_smoothing, low=0, below=0.5)
    chosen = implicit_reward(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, ref_rejected_logps, beta)
    as_labelled = bradley_terry_loss(chosen, rejected, weights)
    if label_smoothing == 0:  # 0 · ∞ at an infinite margin would be NaN
        return as_labelled
    flipped = bradley_terry_loss(rejected, chosen, weights)
    return (1 - label_smoothing) * as_labelled + label_smoothing * flipped
