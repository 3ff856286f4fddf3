"""The bandit over whole responses: objective, optimum and frontier as formulas on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.checks import check_positive

__all__ = [
    "expected_reward",
    "gibbs_policy",
    "kl_divergence",
    "lagrange_multiplier",
    "log_partition",
    "objective",
]


def _check_shapes(**tensors: Tensor) -> None:
    """Raises a ValueError unless all have the same last dimension and can be broadcast."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({shape[-1] if shape else None for shape in shapes.values()}) > 1:
        raise ValueError(f"the last dimensions, over responses, must agree, got {shapes}")
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        raise ValueError(f"the shapes must agree or broadcast, got {shapes}") from None


def kl_divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_y p(y) (log p(y) − log q(y)) (L16), in nats.

    Args:
        logp: [..., Y] log-probabilities; −inf where p is 0.
        logq: [..., Y].

    Returns:
        [...]; 0 · log 0 counts as 0, and the result is inf where q misses something p has.

    Raises:
        ValueError: the last dimensions differ.
    """
    _check_shapes(logp=logp, logq=logq)
    logp, logq = torch.broadcast_tensors(logp, logq)
    has_mass = logp > -torch.inf
    missed = has_mass & (logq == -torch.inf)
    counts = has_mass & ~missed
    difference = logp.masked_fill(~counts, 0.0) - logq.masked_fill(~counts, 0.0)
    terms = logp.exp() * difference
    return terms.masked_fill(missed, torch.inf).sum(-1)


def log_partition(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β) (L17).

    Args:
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: KL weight.

    Returns:
        [...] in nats, without overflow for any β.

    Raises:
        ValueError: the last dimensions differ, or β is not a finite number above 0.
    """
    _check_shapes(ref_logps=ref_logps, rewards=rewards)
    check_positive(beta=beta)
    return torch.logsumexp(ref_logps + rewards / beta, dim=-1)


def gibbs_policy(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*(y|x) = log π_ref(y|x) + r(x, y)/β − log Z(x), the optimum of L16 (L17).

    Arguments and errors as for `log_partition`; returns log-probabilities [..., Y].
    """
    log_z = log_partition(ref_logps, rewards, beta)
    return ref_logps + rewards / beta - log_z[..., None]


def lagrange_multiplier(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """λ(x) = β − β log Z(x), the multiplier of Σ_y π(y|x) = 1 at the optimum (L18).

    Arguments and errors as for `log_partition`; returns [...].
    """
    return beta - beta * log_partition(ref_logps, rewards, beta)


def expected_reward(logps: Tensor, rewards: Tensor) -> Tensor:
    """E_{y ~ π}[r(x, y)]: [..., Y] × 2 → [...]; a response of probability 0 counts as 0.

    Raises:
        ValueError: the last dimensions differ.
    """
    _check_shapes(logps=logps, rewards=rewards)
    return (logps.exp() * rewards).sum(-1)


def objective(logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(π) per prompt: E_{y ~ π}[r(x, y)] − β KL(π ‖ π_ref) (L16).

    Args:
        logps: [..., Y] log π(y|x).
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: KL weight.

    Returns:
        [...]; the lecture's J is its mean over the prompts.

    Raises:
        ValueError: the last dimensions differ, or β is not a finite number above 0.
    """
    check_positive(beta=beta)
    return expected_reward(logps, rewards) - beta * kl_divergence(logps, ref_logps)
