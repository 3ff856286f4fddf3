"""What several claims share: random comparisons, classes of linear scores, and intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor


def draw_wins(rewards: Tensor, reference: Tensor, n_pairs: int, rng: np.random.Generator) -> Tensor:
    """Return how often each response beats each other one, [Y] and [Y] → [Y, Y].

    Pairs of two different responses are drawn from the reference, answers by Bradley–Terry.
    """
    expected = expected_wins(rewards, reference)
    wins = rng.multinomial(n_pairs, expected.flatten().numpy())
    return torch.from_numpy(wins).view_as(expected).double()


def expected_wins(rewards: Tensor, reference: Tensor) -> Tensor:
    """Return the probabilities [Y, Y] of winner and loser of one pair; they sum to 1."""
    asked = torch.outer(reference, reference).fill_diagonal_(0)
    return 2 * asked / asked.sum() * (rewards[:, None] - rewards).sigmoid()


def comparison_loss(scores: Tensor, wins: Tensor, ridge: float = 0.0) -> Tensor:
    """Return −Σ wins log σ(lead of the winner) + ridge · Σ (score − mean)², a scalar."""
    penalty = ridge * ((scores - scores.mean()) ** 2).sum()
    return penalty - (wins * F.logsigmoid(scores[:, None] - scores)).sum()


def lowest(
    features: Tensor, loss: Callable[[Tensor], Tensor], start: Tensor | None = None
) -> Tensor:
    """Return the weights w [d] for which a smooth loss of the scores features @ w is lowest.

    Args:
        features: [Y, d].
        loss: scores [Y] → scalar.
        start: [d] weights to start from (default: zeros). With several minima it decides which one
            is found.
    """

    def evaluate(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(weights.copy()).requires_grad_()
        value = loss(features @ w)
        (gradient,) = torch.autograd.grad(value, w)
        return value.item(), gradient.numpy()

    start = torch.zeros_like(features[0]) if start is None else start
    options = {"gtol": 1e-7, "ftol": 0.0, "maxiter": 5000, "maxfun": 5000, "maxcor": 40}
    found = minimize(evaluate, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences [N] and half the width of its 95 % interval."""
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean()), 1.96 * float(error)
