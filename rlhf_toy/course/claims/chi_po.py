"""χPO: a χ² penalty against over-optimisation of few comparisons."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import wrightomega
from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.course.claims.parts import comparison_loss, draw_wins, interval, lowest
from rlhf_toy.exact import gibbs_policy

BETAS = np.geomspace(2.0, 0.02, 15)
WORLDS, RESPONSES, PAIRS = 100, 20, 100


def chi_policy(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """Return χPO's optimum [Y]: z + log z = (r + c)/β with z = π/π_ref; c makes the sum 1."""

    def excess(c: float) -> float:
        return reference @ wrightomega((rewards + c) / beta) - 1

    c = brentq(excess, -rewards.max() - 10, -rewards.min() + 2 * beta)  # there all z are above 1
    return reference * wrightomega((rewards + c) / beta)


def experiment(skill: float = 1.0) -> Measurements:
    """Follow the true reward of both optima as β falls; likely responses are better by `skill`."""
    rng = np.random.default_rng(0)
    curves = np.zeros((2, WORLDS, len(BETAS)))  # the true reward of DPO and of χPO
    for world in range(WORLDS):
        truth, logits = torch.from_numpy(rng.normal(size=(2, RESPONSES)))
        truth += skill * logits
        ref = (2 * logits).log_softmax(0)
        wins = draw_wins(truth, ref.exp(), PAIRS, rng)

        def loss(scores: Tensor, wins: Tensor = wins) -> Tensor:
            return comparison_loss(scores, wins, ridge=1e-3)

        learned = lowest(torch.eye(RESPONSES, dtype=torch.float64), loss)  # one weight each
        for k, beta in enumerate(BETAS):
            curves[0, world, k] = gibbs_policy(ref, learned, beta).exp() @ truth
            policy = chi_policy(ref.exp().numpy(), learned.numpy(), beta)
            curves[1, world, k] = policy @ truth.numpy()
    peaks = [curve[:, curve.mean(0).argmax()] for curve in curves]  # [worlds], at the best β
    falls = [peak - curve[:, -1] for peak, curve in zip(peaks, curves, strict=True)]
    found = {"peak, DPO": peaks[0].mean(), "peak, χPO": peaks[1].mean()}
    found |= {"fall, DPO": falls[0].mean(), "fall, χPO": falls[1].mean()}
    found["fall avoided"], found["fall avoided, ±"] = interval(falls[0] - falls[1])
    found["peak gained"], found["peak gained, ±"] = interval(peaks[1] - peaks[0])
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(*(measured[k] > measured[f"{k}, ±"] for k in ("fall avoided", "peak gained")))


CLAIM = Claim(
    name="chi_po",
    paper="Huang et al. 2024, arXiv:2407.13399",
    claim="KL is too weak against over-optimisation of finite preference data; χPO, which adds a "
    "χ² penalty to DPO, is robust to it.",
    read="the abstract and a summary",
    world="In this world 100 tables of 20 rewards, higher for likely responses, are learned from "
    "100 noisy pairs each, ridge 0.001; DPO's and χPO's optima are exact, for β from 2 to 0.02.",
    predicted="DPO's true reward peaks and falls as β falls, χPO's falls less; the peaks: unknown.",
    rule="(1) χPO falls less from its peak to β = 0.02; (2) its peak is higher. Each with a 95 % "
    "interval above 0. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"skill": 0.0},
    perturbed="rare responses are as good as likely ones, so an error in their rewards costs less",
    not_tested="networks, the clip in the paper's loss, how much data is needed, other links",
    found="χPO's best β gains 0.23 ± 0.04 of reward over DPO's, but as β goes on falling both "
    "lose about 0.3. The third world: in the first two DPO lost next to nothing (not here).",
)
