"""Best-of-n: log n − (n − 1)/n bounds its KL, and n/(n + 1) its win rate."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq

from rlhf_toy.best_of_n import best_of_n_kl_bound, best_of_n_logps
from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.exact import gibbs_policy, kl_divergence

NS = (2, 4, 16, 64)
WORLDS, ARMS = 200, 8
MANY = 10_000  # equally likely responses, so that two draws are hardly ever the same


def win_rate(logps: torch.Tensor, ref_logps: torch.Tensor, tie: float) -> float:
    """Return the chance [1, Y] × 2 → scalar to beat a draw of the reference; scores ascend."""
    ref = ref_logps.exp()
    return float((logps.exp() * (ref.cumsum(1) - ref + tie * ref)).sum())


def experiment(tie: float = 0.5) -> Measurements:
    """Compare exact KL and win rate with the formulas; a tie counts as `tie` wins."""
    rng = np.random.default_rng(0)
    kl_ratios, win_excess = [], []
    for _ in range(WORLDS):
        ref_logps = torch.from_numpy(rng.dirichlet(np.ones(ARMS))).log()[None]
        for n in NS:
            logps = best_of_n_logps(ref_logps, torch.arange(float(ARMS))[None], n)
            kl_ratios.append(float(kl_divergence(logps, ref_logps)) / best_of_n_kl_bound(n))
            win_excess.append(win_rate(logps, ref_logps, tie) - n / (n + 1))
    even = torch.full((1, MANY), -np.log(MANY), dtype=torch.float64)
    scores = torch.arange(MANY, dtype=torch.float64)[None] / MANY
    two = best_of_n_logps(even, scores, 2)
    spent = float(kl_divergence(two, even))
    beta = brentq(
        lambda b: float(kl_divergence(gibbs_policy(even, scores, b), even)) - spent, 0.1, 9
    )
    return {
        "largest KL / formula": max(kl_ratios),
        "smallest KL / formula": min(kl_ratios),
        "largest win rate − n/(n+1)": max(win_excess),
        "win rate of best-of-2, many responses": win_rate(two, even, tie),
        "best win rate at its KL": win_rate(gibbs_policy(even, scores, beta), even, tie),
    }


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(
        measured["largest KL / formula"] <= 1 + 1e-9 and measured["smallest KL / formula"] < 0.9,
        measured["largest win rate − n/(n+1)"] <= 1e-9,
    )


CLAIM = Claim(
    name="best_of_n",
    paper="Beirami et al. 2024, arXiv:2401.01879",
    claim="log n − (n − 1)/n is no formula for best-of-n's KL but an upper bound; its win rate "
    "against the reference is at most n/(n + 1).",
    read="the abstract and the section titles",
    world="In this world the law of best-of-n is exact: 200 references over 8 responses with "
    "different scores, n from 2 to 64, and one over 10,000 responses. A tie counts as half a win.",
    predicted="never above either bound; the KL far below it where n = 64 > 8; with many "
    "responses best-of-2 wins 2/3, and the best policy at its KL 0.676.",
    rule="KL: never above the formula, and somewhere below 90 % of it. Wins: never above n/(n + "
    "1). Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"tie": 1.0},
    perturbed="a tie counts as a win, although a copy of the reference would then win too often",
    not_tested="wrong reward models, the paper's estimator of the KL, text of any length",
    found="as predicted: the KL is 10 to 98 % of the formula. Best-of-2 wins 66.7 % of the time, "
    "and no policy with its KL can win more than 67.6 %.",
)
