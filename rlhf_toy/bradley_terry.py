"""The Bradley–Terry model on a table of items, by maximum likelihood."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from rlhf_toy.checks import check_count, check_ids, check_number, shown


def fit_bradley_terry(
    winners: ArrayLike, losers: ArrayLike, n_items: int, l2: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum-likelihood rewards of items from comparisons (Bradley & Terry 1952).

    Minimises −Σ_k log σ(r_winner − r_loser) + l2 · Σ_i r_i² by Newton's method.

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
            the rest, or was never compared with it (Ford 1957).
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
    both = np.concatenate([winners, losers])
    check_ids("winners and losers", torch.from_numpy(both.astype(np.int64)), n_items, 1)
    ones = np.ones(len(winners))
    wins = coo_array((ones, (winners, losers)), shape=(n_items, n_items)).toarray()
    if l2 == 0:
        groups, _ = connected_components(wins, directed=True, connection="strong")
        if groups > 1:
            raise ValueError(
                "the rewards have no finite maximum-likelihood value: some items never lost to, or "
                "were never compared with, some others. Collect more comparisons, or give l2 > 0."
            )

    def loss(rewards: np.ndarray) -> tuple[float, np.ndarray]:
        differences = rewards[:, None] - rewards
        residuals = wins * expit(-differences)  # how surprising each win is
        value = (wins * np.logaddexp(0, -differences)).sum() + l2 * (rewards**2).sum()
        return value, residuals.sum(0) - residuals.sum(1) + 2 * l2 * rewards

    # The data say nothing about a constant shift; adding that direction makes the information
    # matrix invertible.
    shift = np.full((n_items, n_items), 1 / n_items)

    def information(rewards: np.ndarray) -> np.ndarray:
        differences = rewards[:, None] - rewards
        weights = (wins + wins.T) * expit(differences) * expit(-differences)
        return np.diag(weights.sum(1)) - weights + 2 * l2 * np.eye(n_items) + shift

    start = np.zeros(n_items)
    fit = minimize(loss, start, jac=True, hess=information, method="Newton-CG", tol=1e-12)
    rewards = fit.x - fit.x.mean()
    covariance = np.linalg.inv(information(rewards)) - shift / (1 + 2 * l2)
    return rewards, np.sqrt(np.diag(covariance).clip(min=0))
