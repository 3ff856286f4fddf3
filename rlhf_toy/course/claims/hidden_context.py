"""Hidden context: a reward model of pooled answers counts votes and does not weigh them."""

from __future__ import annotations

import numpy as np
from scipy.optimize import root
from scipy.special import expit

from rlhf_toy.course.claims.board import Claim, Measurements, verdict

EXAMPLE = np.array([[0.1, 0.0], [0.0, 3.0]]), np.array([0.6, 0.4])  # utilities, shares of people
CROWDS, PEOPLE, ITEMS = 200, 21, 4


def win_rates(utilities: np.ndarray, shares: np.ndarray, noisy: bool) -> np.ndarray:
    """Return the share of answers [Y, Y] for the first item, from utilities [people, Y]."""
    differences = utilities[:, :, None] - utilities[:, None, :]
    wins = expit(differences) if noisy else (np.sign(differences) + 1) / 2
    return np.einsum("g,gij->ij", shares, wins)


def fit(wins: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return Bradley–Terry's rewards [Y] from endless answers; `pairs` [Y, Y]: how often asked."""

    def gradient(rewards: np.ndarray) -> np.ndarray:
        missing = pairs * (wins - expit(rewards[:, None] - rewards))
        return missing.sum(1) - rewards.mean()  # the mean is free, so make it 0

    return root(gradient, np.zeros(len(wins)), tol=1e-12).x


def experiment(noisy: bool = False) -> Measurements:
    """Fit one example, and crowds whose tastes differ, also in how strong they are."""
    utilities, shares = EXAMPLE
    found = {"A over B, BT": fit(win_rates(utilities, shares, noisy), np.ones((2, 2))) @ [1, -1]}
    found["A over B, mean utility"] = shares @ utilities @ [1, -1]
    rng = np.random.default_rng(0)
    agree = []
    for _ in range(CROWDS):
        utilities = rng.normal(size=(PEOPLE, ITEMS)) * rng.lognormal(sigma=1, size=(PEOPLE, 1))
        shares, pairs = rng.dirichlet(np.ones(PEOPLE)), rng.uniform(size=(ITEMS, ITEMS))
        wins = win_rates(utilities, shares, noisy)
        even, uneven = fit(wins, np.ones((ITEMS, ITEMS))), fit(wins, pairs + pairs.T)
        borda, mean = wins.sum(1), shares @ utilities
        agree.append([
            (even.argsort() == borda.argsort()).all(), even.argmax() == mean.argmax(),
            (uneven.argsort() == borda.argsort()).all(),
        ])  # fmt: skip
    names = "Borda's order, share", "best by mean utility, share", "Borda's order, uneven pairs"
    return found | dict(zip(names, np.mean(agree, 0), strict=True))


def judge(measured: Measurements) -> str:
    """The rule as code."""
    contradicts = measured["A over B, BT"] > 0 > measured["A over B, mean utility"]
    return verdict(measured["Borda's order, share"] == 1, contradicts)


CLAIM = Claim(
    name="hidden_context",
    paper="Siththaranjan et al. 2023, arXiv:2312.08358",
    claim="If the annotators differ in what they want, preference learning orders the responses "
    "by Borda count, which can contradict their mean utility.",
    read="the abstract",
    world="In this world 60 % of the people prefer A by 0.1 and 40 % prefer B by 3; and 200 "
    "crowds of 21 people have random utilities for four items. All answer without noise, all "
    "pairs are asked equally often, and a Bradley–Terry table is fitted to endless answers.",
    predicted="BT puts A ahead by log(0.6/0.4) = 0.41, mean utility B by 1.14; in all crowds BT "
    "has Borda's order; in at least one of ten its best item is not the one of highest mean.",
    rule="holds: Borda's order in all crowds, and in the example BT prefers A and mean utility B; "
    "in part: one of the two; not here: neither.",
    experiment=experiment,
    judge=judge,
    perturbation={"noisy": True},
    perturbed="each person answers with Bradley–Terry noise, so a strong wish is heard more often",
    not_tested="reward models that see features of a response, finite data, real people, the "
    "paper's distributional remedy",
    found="as predicted; in 40 % of the crowds BT's best item is not the one of highest mean "
    "utility, and still in 26 % with noise. With uneven pairs the order is not always Borda's.",
)
