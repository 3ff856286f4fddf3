"""Losses on pairs of responses: Bradley–Terry, and the DPO family.

`weights` are optional weights of the pairs [B], at least 0 and not all 0, for the mean. In the DPO
family, h is the log-ratio of the chosen minus that of the rejected, where a log-ratio is
log π_θ(y|x) − log π_ref(y|x). Log-probabilities are sums over the tokens of a response.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy.checks import check_number, check_positive, check_same_shape, check_type, shown
from rlhf_toy.losses.policy import weighted_mean

__all__ = [
    "PairLogps", "bradley_terry_loss", "cdpo_loss", "chi_po_loss", "dpo_loss", "implicit_reward",
    "ipo_loss", "kto_loss", "orpo_loss", "preference_accuracy", "preference_probability",
    "rdpo_loss", "simpo_loss",
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

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """Lengths [B] of the chosen and of the rejected responses."""
        return self.chosen_lengths, self.rejected_lengths

    def kl(self, weights: Tensor | None = None) -> Tensor:
        """Estimate KL(π_θ ‖ π_ref) from the responses as draws from π_ref: a scalar, no gradient.

        Σ ρ log ρ / Σ ρ with ρ = π_θ/π_ref (self-normalised importance sampling), at least 0.
        """
        chosen, rejected = self.implicit_rewards(1.0)
        weighted_mean(chosen, weights)  # raises for bad weights
        log_ratios = torch.stack([chosen, rejected]).detach()
        shares = log_ratios if weights is None else log_ratios + weights.log()
        shares = shares.flatten().softmax(0)
        return (shares * log_ratios.flatten()).nansum().clamp(min=0)

    def implicit_rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """The implicit rewards [B] of the chosen and of the rejected responses, in logits."""
        return _implicit_rewards(self.logps, beta)


def _implicit_rewards(logps: tuple[Tensor, ...], beta: float) -> tuple[Tensor, Tensor]:
    """The implicit rewards [B] of both responses, of one shape, from `PairLogps.logps`."""
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps = logps
    chosen = implicit_reward(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, ref_rejected_logps, beta)
    check_same_shape(chosen_logps=chosen, rejected_logps=rejected)
    return chosen, rejected


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
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    return bradley_terry_loss(*_implicit_rewards(logps, beta), weights)


def _smoothed(
    rewards: tuple[Tensor, Tensor], kept: float, flipped: float, weights: Tensor | None
) -> Tensor:
    """The Bradley–Terry loss of the answers as given and turned round, times a factor for each."""
    loss = kept * bradley_terry_loss(*rewards, weights)
    if flipped == 0:  # 0 · ∞ at an infinite margin would be NaN
        return loss
    return loss + flipped * bradley_terry_loss(*rewards[::-1], weights)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """mean (h − 1/(2β))², from Azar et al. 2023, whose τ is β here; 1/(4β²) at the reference.

    Asks for one margin between the log-ratios, where DPO asks for ever more. Arguments and errors
    as for `dpo_loss`; returns a scalar.
    """
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    chosen, rejected = _implicit_rewards(logps, beta)
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
    """Conservative DPO: −mean ((1 − ε) log σ(βh) + ε log σ(−βh)), in nats (Mitchell 2023).

    DPO for labels of which a share ε is taken to be wrong. Lowest at βh = log((1 − ε)/ε), which is
    finite.

    Args:
        label_smoothing: ε, in [0, 1/2); 0 gives `dpo_loss`.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_number("label_smoothing", label_smoothing, low=0, below=0.5)
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    return _smoothed(_implicit_rewards(logps, beta), 1 - label_smoothing, label_smoothing, weights)


def rdpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Robust DPO: −mean ((1 − ε) log σ(βh) − ε log σ(−βh)) / (1 − 2ε), in nats.

    If each label was flipped with probability ε, its expectation is DPO's loss on the labels
    before the flips (Chowdhury et al. 2024). It has no lower bound.

    Args:
        label_smoothing: ε, in [0, 1/2); 0 gives `dpo_loss`.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_number("label_smoothing", label_smoothing, low=0, below=0.5)
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    shares = (1 - label_smoothing, -label_smoothing)
    kept, flipped = (share / (1 - 2 * label_smoothing) for share in shares)
    return _smoothed(_implicit_rewards(logps, beta), kept, flipped, weights)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    gamma: float,
    weights: Tensor | None = None,
) -> Tensor:
    """−mean log σ(β (log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ), in nats (Meng et al. 2024).

    Has no reference; lengths divide the log-probabilities.

    Args:
        chosen_lengths, rejected_lengths: [B] numbers of tokens, the end token included.
        gamma: γ, the margin that is asked for, in logits; at least 0.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_number("gamma", gamma, low=0)
    check_positive(beta=beta)
    logps = policy_chosen_logps, policy_rejected_logps
    chosen, rejected = _means(*logps, chosen_lengths, rejected_lengths)
    return bradley_terry_loss(beta * chosen - gamma, beta * rejected, weights)


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """mean (−ℓ_w − β log σ(log odds_w − log odds_l)), in nats (Hong et al. 2024, whose λ is β).

    ℓ = log π(y)/|y| and odds = e^ℓ / (1 − e^ℓ): supervised learning on the chosen responses plus a
    preference for their odds. Has no reference.

    Args:
        chosen_lengths, rejected_lengths: [B] numbers of tokens, the end token included.
        beta: weight of the preference term.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_positive(beta=beta)
    logps = policy_chosen_logps, policy_rejected_logps
    chosen, rejected = _means(*logps, chosen_lengths, rejected_lengths)
    log_odds = [mean - torch.log(-torch.expm1(mean)) for mean in (chosen, rejected)]
    return weighted_mean(-chosen, weights) + beta * bradley_terry_loss(*log_odds, weights)


def _means(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean log-probability of a token, [B] for both responses."""
    logps = {"policy_chosen_logps": chosen_logps, "policy_rejected_logps": rejected_logps}
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    check_same_shape(**logps, **lengths)
    for name, length in lengths.items():
        if not (length >= 1).all():
            raise ValueError(f"{name} must be at least 1, got {length.min()}")
    return chosen_logps / chosen_lengths, rejected_logps / rejected_lengths


def chi_po_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    max_reward: float,
    weights: Tensor | None = None,
) -> Tensor:
    """−mean log σ(clip(β φ(z_w) − β φ(z_l), ±2 R)), φ(z) = z + log z, z = π_θ/π_ref, in nats.

    DPO with a link that adds a χ² penalty to the KL, so that rare responses cannot gain much
    (Huang et al. 2024, algorithm 1).

    Args:
        max_reward: R, the largest reward in logits; without the clip a large z has no gradient.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_positive(max_reward=max_reward)
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    log_ratios = (reward / beta for reward in _implicit_rewards(logps, beta))
    # Beyond e^80 a ratio would overflow; it is clipped long before.
    chosen, rejected = (beta * (h.clamp(max=80.0).exp() + h) for h in log_ratios)
    margin = (chosen - rejected).clamp(-2 * max_reward, 2 * max_reward)
    return bradley_terry_loss(margin, torch.zeros_like(margin), weights)


def kto_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    kl: Tensor,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """mean over all responses of λ (1 − v), v = σ(±β (log-ratio − KL)) (Ethayarajh et al. 2024).

    Chosen responses count as desirable (λ_D, +), rejected ones as undesirable (λ_U, −); which two
    were compared does not matter.

    Args:
        kl: scalar, KL(π_θ ‖ π_ref) in nats, the point of reference; no gradient flows through it.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
        others: as for `dpo_loss`, whose errors this raises too.
    """
    check_positive(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    check_type("kl", kl, Tensor, "a scalar tensor, the KL in nats")
    if kl.dim() != 0 or not kl >= 0:
        got = f"{float(kl):.4g}" if kl.dim() == 0 else shown(kl)
        raise ValueError(f"kl must be one number of at least 0, got {got}")
    logps = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    chosen, rejected = _implicit_rewards(logps, beta)
    kl = beta * kl.detach()
    # Not σ(kl − chosen): near 1 it rounds, and its gradient with it.
    desirable = weighted_mean(desirable_weight * (1 - torch.sigmoid(chosen - kl)), weights)
    undesirable = weighted_mean(undesirable_weight * torch.sigmoid(rejected - kl), weights)
    return (desirable + undesirable) / 2
