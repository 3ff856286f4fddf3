"""The Bradley–Terry model on a table of items, by maximum likelihood."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components

from rlhf_toy.checks import check_count, check_ids, check_number, shown

MOST_STEPS = 1_000  # of Newton's method; data that only a tiny penalty holds together need hundreds


def fit_bradley_terry(
    winners: ArrayLike, losers: ArrayLike, n_items: int, l2: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum-likelihood rewards of items from comparisons (Bradley & Terry 1952).

    Minimises −Σ_k log σ(r_winner − r_loser) + l2 · Σ_i r_i² by Newton's method, whose cost hardly
    depends on the number of comparisons: equal ones are counted first.

    Args:
        winners: [N] item indices, integers from 0 to n_items − 1.
        losers: [N] item indices.
        n_items: number of items.
        l2: weight of the penalty; 0 for plain maximum likelihood.

    Returns:
        rewards [n_items] in logits, of mean zero because only differences are identified, and their
        standard errors [n_items], from the inverse Fisher information within mean zero.

    Raises:
        TypeError: indices, a number of items or a penalty of the wrong kind.
        ValueError: indices that are not items, no comparison, a negative penalty; or, without a
            penalty, data whose likelihood has no finite maximum: some group of items never lost to
            the rest, or was never compared with it (Ford 1957); or a penalty so small beside the
            data that float64 cannot resolve what it decides.
    """
    check_count("n_items", n_items)
    check_number("l2", l2, low=0)
    try:
        winners, losers = np.asarray(winners), np.asarray(losers)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"winners and losers must be lists of item indices: {error}") from None
    if winners.ndim != 1 or winners.shape != losers.shape or len(winners) == 0:
        got = f"got shapes {winners.shape} and {losers.shape}"
        raise ValueError(f"winners and losers must be lists of one length, at least 1, {got}")
    if not all(np.issubdtype(items.dtype, np.integer) for items in (winners, losers)):
        got = f"{shown(winners.tolist())} and {shown(losers.tolist())}"
        raise TypeError(f"winners and losers must be integers, got {got}")
    winners, losers = winners.astype(np.int64), losers.astype(np.int64)
    both = torch.from_numpy(np.concatenate([winners, losers]))
    check_ids("winners and losers", both, n_items, 1)
    # wins[i, j]: how often i won against j.
    wins = np.bincount(winners * n_items + losers, minlength=n_items**2)
    wins = wins.reshape(n_items, n_items).astype(float)
    if l2 == 0:
        groups, _ = connected_components(wins, directed=True, connection="strong")
        if groups > 1:
            raise ValueError(
                "the rewards have no finite maximum-likelihood value: some items never lost to, or "
                "were never compared with, some others. Collect more comparisons, or give l2 > 0."
            )

    wins = torch.from_numpy(wins)
    games = wins + wins.T
    rewards = wins.sum(1).log1p() - wins.sum(0).log1p()  # a start: the log-odds of winning
    for _ in range(MOST_STEPS):
        p_lose = (rewards - rewards[:, None]).sigmoid()  # [i, j]: P(j ≻ i)
        surprises = wins * p_lose  # how unexpected the wins of i against j are
        gradient = surprises.sum(0) - surprises.sum(1) + 2 * l2 * rewards
        weights = games * p_lose * p_lose.T
        information = (weights.sum(1) + 2 * l2).diag() - weights
        # The data say nothing about a constant shift; adding that direction makes the information
        # matrix invertible. (That of a single item is 0.)
        shift = (float(information.trace()) or 1.0) / n_items**2
        factor, failed = torch.linalg.cholesky_ex(information + shift)
        if failed:
            break
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        # Along a step the curvature grows at most by e^spread, so this share of it never goes
        # beyond the lowest point on the way (Bach 2010): no line search is needed.
        spread = float(step.max() - step.min())
        rewards = rewards - (math.log1p(spread) / spread if spread > 0 else 1.0) * step
        if spread < 1e-6:  # the error left is of the order of its square
            variances = torch.cholesky_inverse(factor).diag()
            variances = variances - 1 / (n_items * (2 * l2 + n_items * shift))  # of the shift
            return (rewards - rewards.mean()).numpy(), variances.clamp(min=0).sqrt().numpy()
    raise ValueError(f"these comparisons need a larger l2 than {l2:g} to be fitted in float64")
