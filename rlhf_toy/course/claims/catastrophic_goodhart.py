"""Catastrophic Goodhart: a KL penalty does not help where the reward's error has a heavy tail."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm, t

from rlhf_toy.course.claims.board import Claim, Measurements, verdict

KL = 2.0  # nats that the policy may spend
LEVELS = (1_000, 10_000, 100_000, 1_000_000)  # of the true reward, and of its error


def tilted(values: np.ndarray, strength: float) -> tuple[float, float]:
    """Return mean and KL to uniform of the Gibbs policy ∝ exp(strength · values)."""
    logits = strength * values
    log_z = logsumexp(logits)
    mean = np.exp(logits - log_z) @ values
    return mean, strength * mean - log_z + np.log(len(values))


def best(true: np.ndarray, error: np.ndarray, kl: float) -> tuple[float, float]:
    """Return E[true] and E[proxy] of the optimum for the proxy, true + error, that spends `kl`.

    True reward and error are independent, so the optimum is a product and its KL a sum.
    """

    def missing(log_strength: float) -> float:
        return sum(tilted(part, np.exp(log_strength))[1] for part in (true, error)) - kl

    strength = np.exp(brentq(missing, -20.0, 5.0))
    gains = tilted(true, strength)[0], tilted(error, strength)[0]
    return gains[0], sum(gains)


def experiment(degrees: float = 2.0) -> Measurements:
    """Solve for normal errors at several KLs, and for Student's t with more and more responses."""
    found = {}
    for kl in (KL / 2, KL, 2 * KL):
        true = norm.ppf((np.arange(LEVELS[-1]) + 0.5) / LEVELS[-1])
        found[f"true gain, normal error, KL {kl:g}"] = best(true, true, kl)[0]
    for n in LEVELS:
        ranks = (np.arange(n) + 0.5) / n
        gains = best(norm.ppf(ranks), t.ppf(ranks, degrees), KL)
        found[f"true gain, t error, n = {n}"], found[f"proxy gain, t error, n = {n}"] = gains
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    normal = [x for name, x in measured.items() if "normal" in name]
    true, proxy = (
        [x for k, x in measured.items() if f"{w} gain, t" in k] for w in ("true", "proxy")
    )
    light = normal[1] > 1 and all(a < b for a, b in pairwise(normal))
    heavy = true[-1] < 0.1 * normal[1] and all(a > b for a, b in pairwise(true))
    heavy = heavy and all(a < b for a, b in pairwise(proxy))
    return verdict(light, heavy)


CLAIM = Claim(
    name="catastrophic_goodhart",
    paper="Kwa et al. 2024, arXiv:2407.14503",
    claim="With a light-tailed error in the reward, a weaker KL penalty gains true reward without "
    "limit; with a heavy-tailed one the proxy can rise without limit while nothing is gained.",
    read="the abstract, and the authors' post of May 2024 with the theorems and a proof sketch",
    world="In this world the true reward takes n equally likely values (normal quantiles), and so "
    "does its error, independently: n² responses. The optimum for their sum at KL 2 is exact.",
    predicted="true gain √2 with a normal error, more at a higher KL; with t₂ errors it falls "
    "towards 0 as n grows from 10³ to 10⁶ (0.16 in an earlier draw), and the proxy's gain rises.",
    rule="light: a gain above 1 at KL 2, rising with KL. Heavy: below a tenth of it at n = 10⁶, "
    "falling with n, and the proxy rising with n. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"degrees": 30.0},
    perturbed="the error has 30 degrees of freedom: still a power law, but no response is far out",
    not_tested="errors that depend on the true reward, learned reward models, optimisers that do "
    "not reach the optimum; and n is finite, so no reward is unbounded",
)
