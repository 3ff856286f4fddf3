"""Log-probabilities, KL estimates, and the losses of policy gradients and PPO.

`weights` are optional weights of the rows [B], at least 0 and not all 0. They reach every mean and
standard deviation, so that weighting every response of a small world by its probability gives the
expectation over that policy exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import checks

__all__ = [
    "AGGREGATES", "ESTIMATORS", "aggregate_loss", "approx_kl", "masked_mean",
    "policy_gradient_loss", "ppo_clip_loss", "sequence_logps", "token_logps", "value_loss",
    "weighted_mean",
]  # fmt: skip

AGGREGATES = ("token", "sequence", "response_mean")
ESTIMATORS = ("k1", "k2", "k3")


def masked(mask: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Return the mask [B, T] as booleans, and the tensors [B, T] with 0 where it is False.

    Raises a ValueError if their shapes differ, the mask is not 2-D, or no token is real.
    """
    checks.check_same_shape(**tensors, mask=mask)
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
    checks.check_same_shape(values=values)
    if weights is None:
        return values.mean()
    checks.check_same_shape(values=values, weights=weights)
    if not ((weights >= 0).all() and 0 < weights.sum() < torch.inf):
        raise ValueError("weights must be finite, at least 0 and not all 0")
    return (weights * values).sum() / weights.sum()


def masked_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the real tokens, [B, T] × 2 → scalar.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: shapes differ, no token is real, or bad weights.
    """
    mask, values = masked(mask, values=values)
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
    checks.check_choice("aggregate", aggregate, AGGREGATES)
    if aggregate == "token":
        return masked_mean(values, mask, weights)
    mask, values = masked(mask, values=values)
    sums = values.sum(1)
    if aggregate == "response_mean":
        if not mask.any(1).all():
            raise ValueError("a response without a real token has no mean over its tokens")
        sums = sums / mask.sum(1)
    return weighted_mean(sums, weights)


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
    checks.check_shapes(logits=(logits, "BTA"), responses=(responses, "BT"), mask=(mask, "BT"))
    mask = mask.bool()
    actions = responses.masked_fill(~mask, 0)  # a pad token is no action
    checks.check_ids("responses on real tokens", actions, logits.shape[-1])
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
    checks.check_choice("estimator", estimator, ESTIMATORS)
    checks.check_same_shape(logps=logps, ref_logps=ref_logps)
    log_ratio = logps - ref_logps
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    return torch.expm1(-log_ratio) + log_ratio


def policy_gradient_loss(
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    aggregate: str = "sequence",
    weights: Tensor | None = None,
) -> Tensor:
    """−mean A log π, whose gradient is minus the policy gradient (Williams 1992).

    Args:
        logps: [B, T] log-probabilities of the tokens under the policy that sampled them.
        advantages: [B, T], or [B, 1] where all tokens of a response share one.
        mask: [B, T] real tokens.
        aggregate: what the mean is taken over, see `aggregate_loss`.
        weights: [B] weights of the responses.

    Returns:
        scalar. Its value means nothing: only the gradient does.

    Raises:
        TypeError, ValueError: as for `aggregate_loss`.
    """
    checks.check_type("advantages", advantages, Tensor, "a tensor [B, T] or [B, 1]")
    mask, logps = masked(mask, logps=logps)
    if advantages.shape[1:] == (1,):
        advantages = advantages.expand(-1, mask.shape[1])
    mask, advantages = masked(mask, advantages=advantages)
    return aggregate_loss(-advantages.detach() * logps, mask, aggregate, weights)


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
    checks.check_positive(cliprange=cliprange)
    tensors = {"logps": logps, "old_logps": old_logps, "advantages": advantages}
    mask, logps, old_logps, advantages = masked(mask, **tensors)
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
    mask, values, old_values, returns = masked(mask, **tensors)
    errors = (values - returns) ** 2
    if cliprange_value is not None:
        checks.check_positive(cliprange_value=cliprange_value)
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        errors = torch.maximum(errors, (clipped - returns) ** 2)
    return masked_mean(errors, mask, weights) / 2
