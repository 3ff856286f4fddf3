"""Deterministic preferences: DPO forgets the reference if nobody ever disagrees, IPO does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.course.claims.parts import lowest
from rlhf_toy.losses import dpo_loss, ipo_loss

TAUS = (0.1, 0.3, 1.0)
ONE, CHAIN, BOTH = [(0, 1)], [(0, 1), (1, 2), (0, 2)], [(0, 1), (1, 0)]  # (chosen, rejected)


def expected(loss: Callable, logps: Tensor, pairs: list, tau: float, agreement: float) -> Tensor:
    """Return a loss for a flat reference, if a share of the people disagrees with each pair."""
    chosen, rejected = torch.tensor(pairs + [pair[::-1] for pair in pairs]).T
    weights = torch.tensor([agreement] * len(pairs) + [1 - agreement] * len(pairs)).double()
    ref = torch.zeros_like(weights)
    return loss(logps[chosen], logps[rejected], ref, ref, tau, weights)


def experiment(agreement: float = 1.0) -> Measurements:
    """Minimise both losses for two and for three actions, until no gradient exceeds 1e-7."""
    found: dict[str, float] = {}
    for name, loss in (("DPO", dpo_loss), ("IPO", ipo_loss)):
        for data, pairs, actions in (("one pair", ONE, 2), ("three pairs", CHAIN, 3)):
            for tau in TAUS:
                table = torch.eye(actions, dtype=torch.float64)
                logits = lowest(
                    table,
                    lambda x, f=loss, p=pairs, t=tau: expected(
                        f, x.log_softmax(0), p, t, agreement
                    ),
                )
                found[f"π(a), {name}, {data}, τ = {tau:g}"] = logits.softmax(0)[0]
        shares = [torch.tensor([(1 - c) / 2, (1 - c) / 2, c]).double().log() for c in (0.01, 0.98)]
        losses = [float(expected(loss, logps, BOTH, 1.0, agreement)) for logps in shares]
        found[f"loss of π(c) = 0.01 − of 0.98, {name}, both ways"] = losses[0] - losses[1]
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    ipo = [
        abs(measured[f"π(a), IPO, one pair, τ = {t:g}"] - 1 / (1 + math.exp(-0.5 / t)))
        for t in TAUS
    ]
    return verdict(
        all(x > 0.999 for name, x in measured.items() if name.startswith("π(a), DPO")),
        max(ipo) < 0.001,
    )


CLAIM = Claim(
    name="deterministic_preferences",
    paper="Azar et al. 2023 (IPO), arXiv:2310.12036",
    claim="If every answer to a pair is the same, DPO's optimum is greedy whatever the strength τ "
    "of its regularisation, and IPO's stays close to the reference.",
    read="the abstract and summaries",
    world="In this world there are two or three actions and a flat reference. Data: a ≻ b; or a ≻ "
    "b, b ≻ c, a ≻ c; or a ≻ b and b ≻ a.",
    predicted="DPO: π(a) = 1 up to the optimiser; IPO: σ(1/(2τ)) = 0.993, 0.841, 0.622 from one "
    "pair; a ≻ b with b ≻ a leaves π(c) free in both losses.",
    rule="(1) DPO's π(a) is above 0.999 for all τ and both data sets; (2) IPO's from one pair is "
    "within 0.001 of σ(1/(2τ)). Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"agreement": 0.9},
    perturbed="one answer in ten disagrees",
    not_tested="networks, early stopping, other references, IPO with averages",
    found="as predicted. Even one disagreement in ten leaves DPO at π(a) = 1.000 for τ = 0.1. "
    "From a ≻ b and b ≻ a alone neither loss says anything about c.",
)
