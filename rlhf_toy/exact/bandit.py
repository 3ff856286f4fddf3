"""The bandit over whole responses: objective, optimum and frontier as formulas on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.checks import check_last_dimension, check_positive

__all__ = ["expected_reward", "gibbs_policy", "kl_divergence", "log_partition", "objective"]


def kl_divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ_y p(y) (log p(y) − log q(y)) in nats.

    Args:
        logp: [..., Y] log-probabilities; −inf where p is 0.
        logq: [..., Y].

    Returns:
        [...]; 0 · log 0 counts as 0, and the result is inf where q is 0 but p is not.

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: the last dimensions differ, or there are no entries.
    """
    check_last_dimension(logp=logp, logq=logq)
    logp, logq = torch.broadcast_tensors(logp, logq)
    has_mass = logp > -torch.inf
    missed = has_mass & (logq == -torch.inf)
    counts = has_mass & ~missed
    difference = logp.masked_fill(~counts, 0.0) - logq.masked_fill(~counts, 0.0)
    terms = logp.exp() * difference
    return terms.masked_fill(missed, torch.inf).sum(-1)


def log_partition(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β).

    Args:
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: strength of the KL penalty.

    Returns:
        [...] in nats, without overflow for any β.

    Raises:
        TypeError: an argument that is not a tensor, or a β that is not a number.
        ValueError: the last dimensions differ, there are no entries, or β is not finite and
            above 0.
    """
    check_last_dimension(ref_logps=ref_logps, rewards=rewards)
    check_positive(beta=beta)
    return torch.logsumexp(ref_logps + rewards / beta, dim=-1)


def gibbs_policy(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return log π*(y|x) = log π_ref(y|x) + r(x, y)/β − log Z(x), which maximises `objective`.

    Takes and raises what `log_partition` does; returns log-probabilities [..., Y]. Rafailov et al.
    2023, equation 4.
    """
    log_z = log_partition(ref_logps, rewards, beta)
    return ref_logps + rewards / beta - log_z[..., None]


def expected_reward(logps: Tensor, rewards: Tensor) -> Tensor:
    """Return E_{y ~ π}[r(x, y)] in logits; a response of probability 0 counts as 0.

    Args:
        logps: [..., Y] log π(y|x).
        rewards: [..., Y] in logits.

    Returns:
        [...].

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: the last dimensions differ, or there are no entries.
    """
    check_last_dimension(logps=logps, rewards=rewards)
    return (logps.exp() * rewards).sum(-1)


def objective(logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return J(π) for each prompt: E_{y ~ π}[r(x, y)] − β KL(π ‖ π_ref).

    Args:
        logps: [..., Y] log π(y|x).
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: strength of the KL penalty.

    Returns:
        [...] in logits; J(π) of the whole problem is its mean over the prompts.

    Raises:
        TypeError, ValueError: as for `log_partition`.
    """
    check_positive(beta=beta)
    return expected_reward(logps, rewards) - beta * kl_divergence(logps, ref_logps)
