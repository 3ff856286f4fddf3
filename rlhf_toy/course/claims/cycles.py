"""Cycles: a reward cannot express them, and what it says depends on who was compared with whom."""

from __future__ import annotations

import math

import torch

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.course.claims.parts import comparison_loss, lowest
from rlhf_toy.exact import gibbs_policy

WIN = 0.8  # rock beats scissors, scissors beat paper, paper beats rock
OFTEN = 0.8  # share of the uneven pairs that are rock against scissors


def experiment(win_of_rock_over_paper: float = 1 - WIN) -> Measurements:
    """Fit rewards to endless games of three items, played evenly and unevenly.

    Args:
        win_of_rock_over_paper: the chance in the one pair that closes the cycle.
    """
    beats = torch.zeros(3, 3, dtype=torch.float64)  # rock, scissors, paper
    for i, j, chance in ((0, 1, WIN), (1, 2, WIN), (0, 2, win_of_rock_over_paper)):
        beats[i, j], beats[j, i] = chance, 1 - chance
    entropy = -(beats * beats.clamp(min=1e-300).log()).sum() / 3
    even = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    uneven = torch.full((3, 3), (1 - OFTEN) / 2, dtype=torch.float64)
    uneven[0, 1] = uneven[1, 0] = OFTEN
    table = torch.eye(3, dtype=torch.float64)
    found = {"lowest possible loss": entropy}
    flat = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    for name, asked in (("even", even), ("uneven", uneven)):
        rewards = lowest(table, lambda r, w=asked * beats: comparison_loss(r, w))
        found[f"loss, {name} pairs"] = comparison_loss(rewards, asked * beats)
        found[f"π(rock), {name} pairs"] = gibbs_policy(flat, rewards, 1.0)[0].exp()
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(
        measured["loss, even pairs"] - measured["lowest possible loss"] > 0.1,
        abs(measured["π(rock), uneven pairs"] - measured["π(rock), even pairs"]) > 0.1,
    )


CLAIM = Claim(
    name="cycles",
    paper="Munos et al. 2023 (Nash learning), arXiv:2312.00886",
    claim="A reward model cannot represent all preferences, and what it learns depends on the "
    "distribution of the pairs; a model of preferences has neither limit.",
    read="the abstract of its first version",
    world="In this world rock beats scissors, scissors paper and paper rock, each in 80 % of the "
    "games. Rewards are fitted to endless games; π* is for a flat reference and β = 1.",
    predicted="even pairs: all rewards 0, loss log 2 = 0.693 where 0.500 is possible, π* = π_ref; "
    "uneven pairs: rock ahead, far from 1/3.",
    rule="(1) the loss with even pairs is more than 0.1 above the lowest possible; (2) π*(rock) "
    "changes by more than 0.1 with uneven pairs. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"win_of_rock_over_paper": 1 / (1 + math.exp(-2 * math.log(4)))},
    perturbed="rock beats paper too, as Bradley–Terry rewards would have it: no cycle",
    not_tested="how a Nash equilibrium is found, learned preference models, real cycles",
    found="as predicted: 0.693 where 0.500 is possible, and π*(rock) = 0.52 if 80 % of the pairs "
    "are rock against scissors. Without the cycle, uneven pairs change nothing.",
)
