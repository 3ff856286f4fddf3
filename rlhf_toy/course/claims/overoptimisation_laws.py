"""Over-optimisation: the true reward as a function of √KL, for best-of-n and for RL's optimum."""

from __future__ import annotations

import numpy as np

from rlhf_toy.course.claims.board import Claim, Measurements, verdict

WORLDS, RESPONSES = 10, 100_000
MOST_KL = 8.0


def curve(weights: list[np.ndarray], proxy: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return √KL to the flat reference, E[proxy] and E[true] of policies [N, Y], as rows [3, N]."""
    rows = []
    for p in (w / w.sum() for w in weights):
        kl = np.log(len(p)) + np.sum(p * np.log(p.clip(1e-300)))
        rows.append((max(kl, 0.0) ** 0.5, p @ proxy, p @ true))
    return np.array(rows).T


def explained(d: np.ndarray, true: np.ndarray, shape: np.ndarray) -> float:
    """Return R² of the fit true = d (α − β shape), which has no constant."""
    X = np.stack([d, d * shape], 1)
    residuals = true - X @ np.linalg.lstsq(X, true)[0]
    return 1 - residuals.var() / true.var()


def experiment(error: float = 1.0) -> Measurements:
    """Average both exact curves over worlds with Student's t errors of 4 degrees of freedom."""
    rng = np.random.default_rng(0)
    ranks = np.arange(1, RESPONSES + 1) / RESPONSES
    curves = []
    for _ in range(WORLDS):
        true = rng.normal(size=RESPONSES)
        proxy = true + error * rng.standard_t(4, size=RESPONSES)
        order = proxy.argsort()
        true, proxy = true[order], proxy[order]
        best_of = [ranks**n - (ranks - 1 / RESPONSES) ** n for n in np.geomspace(1.2, 6_000, 30)]
        gibbs = [np.exp((proxy - proxy[-1]) * s) for s in np.geomspace(0.1, 3.0, 30)]
        both = [curve(weights, proxy, true) for weights in (best_of, gibbs)]
        grid = np.linspace(0.3, MOST_KL**0.5, 40)
        curves.append([[np.interp(grid, c[0], row) for row in c[1:]] for c in both])
    (bon_proxy, bon), (rl_proxy, rl) = np.mean(curves, 0)
    same = np.interp(bon_proxy[-1], rl_proxy, grid) ** 2
    return {
        "fall from the peak, best-of-n": 1 - bon[-1] / bon.max(),
        "fall from the peak, RL": 1 - rl[-1] / rl.max(),
        "R² of best-of-n's law": explained(grid, bon, grid),
        "R² of RL's law": explained(grid, rl, np.log(grid)),
        "KL of best-of-n": MOST_KL,
        "KL of RL at the same proxy": same,
    }


def judge(measured: Measurements) -> str:
    """The rule as code."""
    turns = min(x for name, x in measured.items() if "fall" in name) > 0.1
    fits = min(x for name, x in measured.items() if "R²" in name) > 0.95
    return verdict(
        turns and fits, measured["KL of RL at the same proxy"] > measured["KL of best-of-n"]
    )


CLAIM = Claim(
    name="overoptimisation_laws",
    paper="Gao et al. 2022, arXiv:2210.10760",
    claim="With d = √KL the true reward is d (α − β d) for best-of-n and d (α − β log d) for RL: "
    "it peaks and falls. RL spends far more KL than best-of-n for the same proxy reward.",
    read="the abstract, the authors' post, and summaries",
    world="In this world there are ten tables of 100,000 responses; the proxy is the true reward "
    "plus a t₄ error. Best-of-n's law and the optimum of RL are exact, up to a KL of 8 nats.",
    predicted="both turn; the fits are unknown; the optimum of RL spends least KL, by its "
    "definition.",
    rule="(1) both curves fall by 10 % from their peak, and both laws explain 95 % of the "
    "variance; (2) RL spends more KL. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"error": 0.0},
    perturbed="the proxy is the true reward",
    not_tested="reward models that were learned, sizes, RL that has not converged",
)
