"""Log-probabilities, token rewards, advantages, KL estimates, and the losses of PPO."""

from __future__ import annotations

import torch
from torch import Tensor


def _same_shape(**tensors: Tensor) -> None:
    """Raises a ValueError unless all tensors have one shape."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these must have one shape, got {shapes}")


def _positive(**numbers: float) -> None:
    """Raises a ValueError unless all numbers are above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, got {number}")


def _check_beta(beta: float) -> None:
    """Raises a ValueError unless β is a finite number above 0."""
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be a finite number above 0, got {beta}")


def _nonempty(mask: Tensor) -> Tensor:
    """The mask as booleans; a ValueError if no token is real, since a mean would be 0/0."""
    mask = mask.bool()
    if not mask.any():
        raise ValueError("the mask has no real token, so there is nothing to average over")
    return mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens, [B, T] × 2 → scalar.

    Raises:
        ValueError: shapes differ, or no token is real.
    """
    _same_shape(values=values, mask=mask)
    mask = _nonempty(mask)
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shifts and scales to mean 0 and variance 1 over the real tokens, [B, T] × 2 → [B, T].

    Masked entries are 0. The variance is the biased one, and is kept away from 0.

    Raises:
        ValueError: shapes differ, or no token is real.
    """
    mean = masked_mean(values, mask)
    mask = mask.bool()
    values = values.masked_fill(~mask, 0.0)
    variance = masked_mean((values - mean) ** 2, mask)
    return ((values - mean) * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def token_logps(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    """log π(y_{t+1} | x, y_≤t) of the tokens that were written (L4).

    Args:
        logits: [B, T, A] of the action at each position.
        responses: [B, T] token ids.
        mask: [B, T] real tokens.

    Returns:
        [B, T] log-probabilities, 0 on masked tokens.

    Raises:
        ValueError: shapes that do not fit.
    """
    _same_shape(responses=responses, mask=mask, logits_without_actions=logits[..., 0])
    mask = mask.bool()
    actions = responses.masked_fill(~mask, 0)  # a pad token is no action
    logits = logits.masked_fill(~mask[..., None], 0.0)
    logps = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    return logps.masked_fill(~mask, 0.0)


def sequence_logps(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) = Σ_t log π(y_{t+1} | x, y_≤t), the chain rule of L4: a sum, not a mean.

    Arguments and errors as for `token_logps`; returns [B].
    """
    return token_logps(logits, responses, mask).sum(-1)


def approx_kl(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Estimates of KL(π ‖ π_ref), one per sample drawn from π, whose mean is the estimate.

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
        ValueError: shapes differ, or an unknown estimator.
    """
    _same_shape(logps=logps, ref_logps=ref_logps)
    log_ratio = logps - ref_logps
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def token_rewards(
    reward: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """The token MDP's rewards: −β log π/π_ref on every token, and r(x, y) on the last real one.

    They sum over a response to r − β log π(y|x)/π_ref(y|x), so that the token problem and the
    bandit problem have one objective (L10, L16). The last token carries its own KL term as well.

    Args:
        reward: [B] rewards of the whole responses.
        logps: [B, T] log π of each token.
        ref_logps: [B, T] log π_ref of each token.
        mask: [B, T] real tokens, one or more in each row, without gaps from the left.
        beta: KL weight.

    Returns:
        [B, T] rewards, 0 on masked tokens.

    Raises:
        ValueError: shapes that do not fit, β not a finite number above 0, or a row without a real
            token.
    """
    _same_shape(logps=logps, ref_logps=ref_logps, mask=mask)
    _same_shape(reward=reward, rows_of_mask=mask[:, 0])
    _check_beta(beta)
    mask = mask.bool()
    if not mask.any(1).all():
        raise ValueError("every row of the mask needs a real token to carry the reward")
    rewards = (-beta * (logps - ref_logps)).masked_fill(~mask, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, reward[:, None].to(rewards.dtype))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016), backwards over the tokens.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t) and A_t = δ_t + γ λ A_{t+1}; the value after the last real
    token is 0. With γ = λ = 1 this is reward-to-go minus value, the advantage of L13.

    Args:
        rewards: [B, T] token rewards.
        values: [B, T] V(s_t), before each token was written.
        mask: [B, T] real tokens.
        gamma: discount.
        lam: λ, between 0 (one step) and 1 (reward-to-go).

    Returns:
        advantages [B, T] and returns = advantages + values [B, T], both 0 on masked tokens.

    Raises:
        ValueError: shapes differ, or γ or λ outside [0, 1].
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must be in [0, 1], got {gamma} and {lam}")
    mask = mask.bool()
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
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
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, cliprange: float = 0.2
) -> Tensor:
    """−mean min{ρ A, clip(ρ, 1−ε, 1+ε) A}, PPO-Clip (L12; Schulman et al. 2017).

    Args:
        logps: [B, T] log-probabilities under the policy that is being updated.
        old_logps: [B, T] under the policy that sampled.
        advantages: [B, T].
        mask: [B, T] real tokens, over which the mean is taken.
        cliprange: ε.

    Returns:
        scalar. A clipped token has exactly zero gradient.

    Raises:
        ValueError: shapes differ, ε not above 0, or no token is real.
    """
    _same_shape(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    _positive(cliprange=cliprange)
    mask = _nonempty(mask)
    # Beyond e^80 the ratio would overflow, and a clipped token's gradient be 0 · ∞.
    ratio = torch.exp((logps - old_logps).masked_fill(~mask, 0.0).clamp(max=80.0))
    advantages = advantages.masked_fill(~mask, 0.0)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float | None = None,
) -> Tensor:
    """½ mean (V − return)², with PPO's optional clip of V around its old value (L13).

    Args:
        values: [B, T] of the critic that is being updated.
        old_values: [B, T] of the critic at sampling time.
        returns: [B, T] targets.
        mask: [B, T] real tokens.
        cliprange_value: how far V may move from its old value; None for no clip.

    Returns:
        scalar.

    Raises:
        ValueError: shapes differ, a clip range not above 0, or no token is real.
    """
    _same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    mask = _nonempty(mask)
    values, old_values, returns = (
        tensor.masked_fill(~mask, 0.0) for tensor in (values, old_values, returns)
    )
    errors = (values - returns) ** 2
    if cliprange_value is not None:
        _positive(cliprange_value=cliprange_value)
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        errors = torch.maximum(errors, (clipped - returns) ** 2)
    return masked_mean(errors, mask) / 2
