"""Robust DPO: an unbiased loss undoes random flips of the labels, if their rate is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.exact import all_pairs, fixed_point
from rlhf_toy.losses import cdpo_loss, dpo_loss, rdpo_loss

MARGIN = 2.0  # logits by which the better response leads
FLIPPED = 0.2  # share of labels


def experiment(assumed: float = FLIPPED) -> Measurements:
    """Train with endless flipped pairs of two responses; measure the margin of the optimum, β = 1.

    Args:
        assumed: the flip rate that cDPO and rDPO are told.
    """
    rewards = torch.tensor([[MARGIN, 0.0]], dtype=torch.float64)
    ref_logps = torch.full_like(rewards, 0.5).log()

    def margin(loss: Callable, *rate: float) -> Tensor:
        def expected(logps: Tensor) -> Tensor:
            pairs, weights = all_pairs(logps, ref_logps, rewards, noise=FLIPPED)
            return loss(*pairs.logps, 1.0, *rate, weights)

        logps = fixed_point(expected, ref_logps, rewards, 1.0).logps
        return logps[0, 0] - logps[0, 1]

    return {
        "margin of DPO": margin(dpo_loss),
        "margin of cDPO": margin(cdpo_loss, assumed),
        "margin of rDPO": margin(rdpo_loss, assumed),
    }


def judge(measured: Measurements) -> str:
    """The rule as code."""
    others = max(measured["margin of DPO"], measured["margin of cDPO"])
    return verdict(abs(measured["margin of rDPO"] - MARGIN) < 0.01, others < 1.5)


CLAIM = Claim(
    name="robust_dpo",
    paper="Chowdhury et al. 2024, arXiv:2403.00409",
    claim="If labels are flipped at random, rDPO's loss removes the bias on average, so that the "
    "policy is that of clean labels; DPO and the cDPO heuristic do not reach it.",
    read="the abstract and a summary",
    world="In this world there are two responses, a true margin of 2 logits, a flat reference, β "
    "= 1, endless pairs, and 20 % of the labels flipped.",
    predicted="margins of 0.99 for DPO, 0.56 for cDPO and 2.00 for rDPO (notebook 11 shows them).",
    rule="unbiased: rDPO's margin within 0.01 of 2; biased: DPO's and cDPO's below 1.5. Holds: "
    "both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"assumed": 0.1},
    perturbed="cDPO and rDPO are told a flip rate of 10 %, half of the true one",
    not_tested="finite data, for which the paper bounds the error; flips that depend on the pair; "
    "networks, for which rDPO's loss has no lower bound",
    found="as predicted. cDPO is further away than DPO: it adds the flips that it expects.",
)
