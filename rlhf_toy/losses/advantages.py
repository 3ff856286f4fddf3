"""How much better than expected each response, or each token, was.

Rewards are in logits, log-probabilities in nats. G responses to one prompt are a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.losses.policy import masked, masked_mean

__all__ = ["gae", "grpo_advantages", "rloo_advantages", "token_rewards", "whiten"]


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
    mask, logps, ref_logps = masked(mask, logps=logps, ref_logps=ref_logps)
    checks.check_same_shape(reward=reward, rows_of_mask=mask[:, 0])
    checks.check_positive(beta=beta)
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
    checks.check_number("gamma", gamma, 0, 1)
    checks.check_number("lam", lam, 0, 1)
    _, rewards, values = masked(mask, rewards=rewards, values=values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * lam * following_advantage
        following_value = values[:, t]
        columns.append(following_advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


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


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Return r_i minus the mean reward of the other G − 1 responses (REINFORCE leave-one-out).

    The baseline does not depend on the response itself, so the expected gradient is unchanged; it
    is G/(G − 1) times the distance to the group's mean (Kool et al. 2019; Ahmadian et al. 2024).

    Args:
        rewards: [X, G] of G responses to each of X prompts, in logits.

    Returns:
        [X, G].

    Raises:
        TypeError: not a tensor.
        ValueError: another shape, fewer than two responses to a prompt, or NaN or infinity.
    """
    G = _group_size(rewards)
    return (rewards - rewards.mean(1, keepdim=True)) * (G / (G - 1))


def grpo_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """Return (r_i − mean)/(std + 1e-4) over each group (GRPO, Shao et al. 2024).

    The standard deviation has Bessel's correction, as in TRL.

    Args:
        rewards: [X, G] of G responses to each of X prompts, in logits.
        scale: False leaves out the division (Dr. GRPO, Liu et al. 2025).

    Returns:
        [X, G].

    Raises:
        TypeError, ValueError: as for `rloo_advantages`, or a `scale` that is not True or False.
    """
    _group_size(rewards)
    checks.check_type("scale", scale, bool, "True or False")
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def _group_size(rewards: Tensor) -> int:
    G = checks.check_shapes(rewards=(rewards, "XG"))["G"]
    checks.check_finite(rewards=rewards)
    if G < 2:
        raise ValueError("rewards must have at least two responses to each prompt, got 1")
    return G
