"""Catastrophic Goodhart: a KL penalty does not help where the reward's error has a heavy tail."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

from rlhf_toy.course.claims.board import Claim, Measurements, verdict

KL = 2.0  # nats that the policy may spend
LEVELS = (10**3, 10**4, 10**5, 10**6)  # of the true reward, and of its error


def tilted(values: np.ndarray, strength: float) -> tuple[float, float]:
    """Return mean and KL to uniform of the Gibbs policy ∝ exp(strength · values)."""
    highest = values[-1]  # they ascend
    weights = np.exp(strength * (values - highest))
    mean = weights @ values / weights.sum()
    return mean, strength * (mean - highest) - np.log(weights.mean())


def best(true: np.ndarray, error: np.ndarray, kl: float) -> tuple[float, float]:
    """Return E[true] and E[proxy] of the optimum for the proxy, true + error, that spends `kl`."""

    def missing(log_strength: float) -> float:
        return sum(tilted(part, np.exp(log_strength))[1] for part in (true, error)) - kl

    # True reward and error are independent, so the optimum is a product and its KL a sum.
    strength = np.exp(brentq(missing, -12.0, 3.0, xtol=1e-9))
    gains = tilted(true, strength)[0], tilted(error, strength)[0]
    return gains[0], sum(gains)


def experiment(degrees: float = 2.0) -> Measurements:
    """Solve for normal errors at several KLs, and for Student's t with more and more responses."""
    found = {}
    for n in LEVELS:
        ranks = (np.arange(n) + 0.5) / n
        true = ndtri(ranks)
        gains = best(true, stdtrit(degrees, ranks), KL)
        found[f"true gain, t error, n = {n}"], found[f"proxy gain, t error, n = {n}"] = gains
    for kl in (KL / 2, KL, 2 * KL):
        found[f"true gain, normal error, KL {kl:g}"] = best(true, true, kl)[0]
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    names = "true gain, normal", "true gain, t", "proxy gain, t"
    normal, true, proxy = ([x for k, x in measured.items() if k.startswith(n)] for n in names)
    light = normal[1] > 1 and normal == sorted(normal)
    heavy = true[-1] < 0.1 * normal[1] and true[::-1] == sorted(true) and proxy == sorted(proxy)
    return verdict(light, heavy)


CLAIM = Claim(
    name="catastrophic_goodhart",
    paper="Kwa et al. 2024, arXiv:2407.14503",
    claim="With a light-tailed error in the reward, a weaker KL penalty gains true reward without "
    "limit; with a heavy-tailed one the proxy can rise without limit while nothing is gained.",
    read="the abstract, and the opening of the authors' post of May 2024",
    world="In this world the true reward takes n equally likely values (normal quantiles), and so "
    "does its error, independently: n² responses. The optimum for their sum at KL 2 is exact.",
    predicted="true gain √2 with a normal error, more at a higher KL; with t₂ errors it falls "
    "towards 0 as n grows from 10³ to 10⁶, and the proxy's gain rises (a sketch with one draw had "
    "given 0.16 at n = 111,111).",
    rule="light: a gain above 1 at KL 2, rising with KL. Heavy: below a tenth of it at n = 10⁶, "
    "falling with n, and the proxy rising with n. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"degrees": 30.0},
    perturbed="the error has 30 degrees of freedom: still a power law, but no response is far out",
    not_tested="errors that depend on the true reward, learned reward models, optimisers that do "
    "not reach the optimum; and n is finite, so no reward is unbounded",
    found="as predicted: the gain with t₂ errors is 0.20, 0.083, 0.032, 0.012. How heavy the tail "
    "is matters, not whether it is: with 30 degrees of freedom the gain stays at 1.34.",
)
