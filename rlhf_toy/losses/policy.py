"""Log-probabilities, token rewards, advantages, KL estimates, and the losses of PPO.

`weights` are optional weights of the rows [B], at least 0 and not all 0. They reach every mean and
standard deviation, so that weighting every response of a small world by its probability gives the
expectation over that policy exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.checks import (
    check_choice,
    check_ids,
    check_number,
    check_positive,
    check_same_shape,
    check_type,
)

__all__ = [
    "AGGREGATES", "ESTIMATORS", "aggregate_loss", "approx_kl", "gae", "masked_mean",
    "ppo_clip_loss", "sequence_logps", "token_logps", "token_rewards", "value_loss",
    "weighted_mean", "whiten",
]  # fmt: skip

AGGREGATES = ("token", "sequence", "response_mean")
ESTIMATORS = ("k1", "k2", "k3")


def _masked(mask: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Return the mask [B, T] as booleans, and the tensors [B, T] with 0 where it is False.

    Raises a ValueError if their shapes differ, the mask is not 2-D, or no token is real.
    """
    check_same_shape(**tensors, mask=mask)
    if mask.dim() != 2:
        raise ValueError(f"the mask must be [B, T], got {list(mask.shape)}")
    mask = mask.bool()
    if not mask.any():
        raise ValueError("the mask has no real token, so there is nothing to average over")
    return [mask, *(tensor.masked_fill(~mask, 0.0) for tensor in tensors.values())]


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of rows, [B] → scalar: Σ w v / Σ w, or the plain mean without weights.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: an empty batch, or weights of another shape, negative, or all 0.
    """
    check_same_shape(values=values)
    if weights is None:
        return values.mean()
    check_same_shape(values=values, weights=weights)
    if not ((weights >= 0).all() and 0 < weights.sum() < torch.inf):
        raise ValueError("weights must be finite, at least 0 and not all 0")
    return (weights * values).sum() / weights.sum()


def masked_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the real tokens, [B, T] × 2 → scalar.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, no token is real, or bad weights.
    """
    mask, values = _masked(mask, values=values)
    if weights is None:
        return values.sum() / mask.sum()
    return weighted_mean(values.sum(1), weights) / weighted_mean(mask.sum(1).to(values), weights)


def aggregate_loss(
    values: Tensor, mask: Tensor, aggregate: str = "token", weights: Tensor | None = None
) -> Tensor:
    """Return one number for the losses of tokens, [B, T] × 2 → scalar.

    Args:
        values: [B, T] loss of each token.
        mask: [B, T] real tokens.
        aggregate: "token", the mean over the real tokens of the batch; "sequence", the sum over
            each response and the mean over responses; "response_mean", the mean over the tokens of
            each response and then over responses.
        weights: [B] weights of the responses.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, no token is real, bad weights, an unknown `aggregate`, or a
            response without a real token for "response_mean".
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    if aggregate == "token":
        return masked_mean(values, mask, weights)
    mask, values = _masked(mask, values=values)
    sums = values.sum(1)
    if aggregate == "response_mean":
        if not mask.any(1).all():
            raise ValueError("a response without a real token has no mean over its tokens")
        sums = sums / mask.sum(1)
    return weighted_mean(sums, weights)


def whiten(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the real tokens, [B, T] × 2 → [B, T].

    Masked entries are 0. The variance is the biased one; 1e-8 is added to it.

    Raises:
        TypeError, ValueError: as for `masked_mean`.
    """
    mean = masked_mean(values, mask, weights)
    mask = mask.bool()
    values = values.masked_fill(~mask, 0.0)
    variance = masked_mean((values - mean) ** 2, mask, weights)
    return ((values - mean) * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def token_logps(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    """Return log π(y_{t+1} | x, y_≤t) of the tokens that were written.

    Args:
        logits: [B, T, A] of the action at each position.
        responses: [B, T] token ids.
        mask: [B, T] real tokens.

    Returns:
        [B, T] log-probabilities, 0 on masked tokens.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes that do not fit, or ids that are no actions.
    """
    check_type("logits", logits, Tensor, "a tensor [B, T, A]")
    if logits.dim() != 3:
        raise ValueError(f"logits must be [B, T, A], got {list(logits.shape)}")
    check_same_shape(responses=responses, mask=mask, logits_without_actions=logits[..., 0])
    mask = mask.bool()
    actions = responses.masked_fill(~mask, 0)  # a pad token is no action
    check_ids("responses on real tokens", actions, logits.shape[-1])
    logits = logits.masked_fill(~mask[..., None], 0.0)
    logps = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    return logps.masked_fill(~mask, 0.0)


def sequence_logps(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) = Σ_t log π(y_{t+1} | x, y_≤t) by the chain rule: a sum, not a mean.

    Arguments and errors as for `token_logps`; returns [B].
    """
    return token_logps(logits, responses, mask).sum(-1)


def approx_kl(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Return estimates of KL(π ‖ π_ref), one per sample drawn from π; their mean is the estimate.

    With log_ratio = log π − log π_ref: k1 = log_ratio (unbiased), k2 = log_ratio² / 2 (biased, but
    with the right gradient as a loss), k3 = exp(−log_ratio) − 1 + log_ratio (unbiased as a value,
    never negative; its gradient as a loss is that of KL(π_ref ‖ π)).

    Args:
        logps: [...] log-probabilities under π of tokens or responses sampled from π.
        ref_logps: [...] the same under π_ref.
        estimator: `"k1"`, `"k2"` or `"k3"`.

    Returns:
        [...] in nats.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, or an unknown estimator.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_same_shape(logps=logps, ref_logps=ref_logps)
    log_ratio = logps - ref_logps
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(
    reward: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Return −β log π/π_ref on every token, plus the reward r(x, y) on the last real one.

    They sum over a response to r − β log π(y|x)/π_ref(y|x), so the token problem and the bandit
    problem have the same objective. The last token carries its own KL term as well.

    Args:
        reward: [B] rewards of the whole responses.
        logps: [B, T] log π of each token.
        ref_logps: [B, T] log π_ref of each token.
        mask: [B, T] real tokens, one or more in each row, without gaps from the left.
        beta: KL weight.

    Returns:
        [B, T] rewards, 0 on masked tokens.

    Raises:
        TypeError: something that is not a tensor, or a β that is not a number.
        ValueError: shapes that do not fit, β not a finite number above 0, a row of the mask
            without a real token or with a gap.
    """
    mask, logps, ref_logps = _masked(mask, logps=logps, ref_logps=ref_logps)
    check_same_shape(reward=reward, rows_of_mask=mask[:, 0])
    check_positive(beta=beta)
    if not mask[:, 0].all() or (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("every row of the mask must be real tokens from the left, without gaps")
    rewards = beta * (ref_logps - logps)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, reward[:, None].to(rewards.dtype))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns by generalised advantage estimation (Schulman et al. 2016).

    δ_t = r_t + γ V(s_{t+1}) − V(s_t) and A_t = δ_t + γ λ A_{t+1}; the value after the last real
    token is 0. With γ = λ = 1 this is reward-to-go minus value.

    Args:
        rewards: [B, T] token rewards.
        values: [B, T] V(s_t), before each token was written.
        mask: [B, T] real tokens.
        gamma: discount.
        lam: λ, between 0 (one step) and 1 (reward-to-go).

    Returns:
        advantages [B, T] and returns = advantages + values [B, T], both 0 on masked tokens.

    Raises:
        TypeError: something that is not a tensor or a number.
        ValueError: shapes differ, no token is real, or γ or λ outside [0, 1].
    """
    check_number("gamma", gamma, 0, 1)
    check_number("lam", lam, 0, 1)
    _, rewards, values = _masked(mask, rewards=rewards, values=values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * lam * following_advantage
        following_value = values[:, t]
        columns.append(following_advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def ppo_clip_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float = 0.2,
    aggregate: str = "token",
    weights: Tensor | None = None,
) -> Tensor:
    """−mean min{ρ A, clip(ρ, 1−ε, 1+ε) A}, PPO-Clip (Schulman et al. 2017), ρ = π/π_old.

    Args:
        logps: [B, T] log-probabilities under the policy that is being updated.
        old_logps: [B, T] under the policy that sampled.
        advantages: [B, T].
        mask: [B, T] real tokens.
        cliprange: ε.
        aggregate: what the mean is taken over, see `aggregate_loss`.
        weights: [B] weights of the responses.

    Returns:
        scalar. A clipped token has exactly zero gradient.

    Raises:
        TypeError, ValueError: ε is not a finite number above 0, or as for `aggregate_loss`.
    """
    check_positive(cliprange=cliprange)
    tensors = {"logps": logps, "old_logps": old_logps, "advantages": advantages}
    mask, logps, old_logps, advantages = _masked(mask, **tensors)
    # Beyond e^80 the ratio would overflow, and a clipped token's gradient be 0 · ∞.
    ratio = torch.exp((logps - old_logps).clamp(max=80.0))
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    return aggregate_loss(losses, mask, aggregate, weights)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """½ mean (V − return)², with PPO's optional clip of V around its old value.

    Args:
        values: [B, T] of the critic that is being updated.
        old_values: [B, T] of the critic at sampling time.
        returns: [B, T] targets.
        mask: [B, T] real tokens.
        cliprange_value: how far V may move from its old value; None for no clip.
        weights: [B] weights of the responses.

    Returns:
        scalar; the mean is over the real tokens.

    Raises:
        TypeError, ValueError: a clip range that is not a finite number above 0, or as for
            `masked_mean`.
    """
    tensors = {"values": values, "old_values": old_values, "returns": returns}
    mask, values, old_values, returns = _masked(mask, **tensors)
    errors = (values - returns) ** 2
    if cliprange_value is not None:
        check_positive(cliprange_value=cliprange_value)
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        errors = torch.maximum(errors, (clipped - returns) ** 2)
    return masked_mean(errors, mask, weights) / 2
