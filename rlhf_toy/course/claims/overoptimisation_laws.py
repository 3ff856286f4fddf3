"""Over-optimisation: the true reward as a function of √KL, for best-of-n and for RL."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import entr, softmax

from rlhf_toy.course.claims.board import Claim, Measurements, verdict

WORLDS, RESPONSES = 10, 10_000
D = np.linspace(0.3, 8**0.5, 20)  # √KL
MOST = np.log(RESPONSES)  # nats: the KL to the flat reference is this minus the entropy
RANKS = np.linspace(0, 1, RESPONSES + 1)


def at_each_d(best_of_n: bool, rewards: np.ndarray) -> np.ndarray:
    """Return proxy and true reward [2, D] of best-of-n or of RL's optimum at each √KL."""

    def p(x: float) -> np.ndarray:
        return np.diff(RANKS ** (1 + np.exp(x))) if best_of_n else softmax(rewards[0] * np.exp(x))

    roots = [brentq(lambda x, d=d: MOST - entr(p(x)).sum() - d**2, -9.0, 12.0) for d in D]
    return np.stack([rewards @ p(x) for x in roots], 1)


def climb(rewards: np.ndarray) -> np.ndarray:
    """Return the same along exact policy-gradient steps on the proxy, rewards[0]."""
    logits, path = np.zeros(RESPONSES), [(0.0, 0.0, 0.0)]
    while path[-1][0] < D[-1]:
        p = softmax(logits)
        path.append((max(MOST - entr(p).sum(), 0.0) ** 0.5, *(rewards @ p)))
        step = p * (rewards[0] - p @ rewards[0])
        logits += 0.1 * step / np.abs(step).max()
    d, proxy, true = np.array(path).T
    return np.stack([np.interp(D, d, proxy), np.interp(D, d, true)])


def experiment(optimal: bool = True, degrees: float = 4.0) -> Measurements:
    """Average the curves over worlds; RL is the exact optimum or the path of policy gradients."""
    rng, curves = np.random.default_rng(0), []
    for _ in range(WORLDS):
        true = rng.normal(size=RESPONSES)
        proxy = true + rng.standard_t(degrees, size=RESPONSES)
        rewards = np.stack([proxy, true])[:, proxy.argsort()]
        rl = at_each_d(False, rewards) if optimal else climb(rewards)
        curves.append([at_each_d(True, rewards), rl])
    (bon_proxy, bon), (rl_proxy, rl) = np.mean(curves, 0)
    found = {"fall, best-of-n": 1 - bon[-1] / bon.max(), "fall, RL": 1 - rl[-1] / rl.max()}
    for name, y, shape in (("best-of-n", bon, D), ("RL", rl, np.log(D))):
        X = np.stack([D, D * shape], 1)  # the fit d (α − β shape)
        found[f"R², {name}"] = 1 - (y - X @ np.linalg.lstsq(X, y)[0]).var() / y.var()
    return found | {"proxy at KL 8, best-of-n": bon_proxy[-1], "proxy at KL 8, RL": rl_proxy[-1]}


def judge(measured: Measurements) -> str:
    """The rule as code."""
    *falls, bon_fit, rl_fit, bon_proxy, rl_proxy = measured.values()
    return verdict(min(falls) > 0.1 and min(bon_fit, rl_fit) > 0.95, rl_proxy < bon_proxy)


CLAIM = Claim(
    name="overoptimisation_laws",
    paper="Gao et al. 2022, arXiv:2210.10760",
    claim="With d = √KL the true reward is d (α − β d) for best-of-n and d (α − β log d) for RL: "
    "it peaks and falls. RL spends far more KL than best-of-n for the same proxy reward.",
    read="the abstract, the authors' post, and summaries",
    world="In this world there are ten tables of 10,000 responses; the proxy is the true reward "
    "plus a t₄ error. Best-of-n's law and the optimum of RL are exact, up to a KL of 8 nats.",
    predicted="both turn; the fits are unknown; the optimum of RL spends least KL by definition.",
    rule="(1) both curves fall by 10 % from their peak, and both laws explain 95 % of the "
    "variance; (2) RL spends more KL. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"optimal": False, "degrees": 30.0},
    perturbed="RL is the path of exact policy-gradient steps, not the optimum; errors are t₃₀",
    not_tested="learned reward models, sizes, sampling, KL penalties in training",
    found="both turn, but best-of-n's law explains only 93 %, and RL's optimum has more proxy at "
    "KL 8 (15.3 to 14.3). Policy gradients with light tails do need more KL.",
)
