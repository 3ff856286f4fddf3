"""Token credit: DPO on whole responses learns the optimal advantage of each token."""

from __future__ import annotations

import torch

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.exact import (
    enumerate_episodes,
    implicit_rewards,
    population_dpo,
    soft_value_iteration,
)
from rlhf_toy.training import make_generator

DEPTH, BETA = 3, 1.0
STATES = 2 ** (DEPTH + 1) - 1  # of a binary tree; node s leads to 2s + 1 and 2s + 2


def experiment(slip: float = 0.0) -> Measurements:
    """Compare DPO's log-ratios with backward induction, in a tree where a token slips by chance.

    Args:
        slip: probability that the other token is written than the one that was chosen.
    """
    inner = STATES // 2
    successors = torch.arange(STATES)[:, None, None].repeat(1, 2, 2)  # leaves lead to themselves
    children = 2 * torch.arange(inner)[:, None] + torch.tensor([1, 2])
    successors[:inner, 0], successors[:inner, 1] = children, children.flip(1)
    probabilities = torch.tensor([1 - slip, slip], dtype=torch.float64).expand(STATES, 2, 2)
    earned = 2 * torch.randn(STATES, generator=make_generator(0), dtype=torch.float64)
    rewards = earned[successors]
    rewards[inner:] = 0.0
    ref_logps = torch.randn(
        STATES, 2, generator=make_generator(1), dtype=torch.float64
    ).log_softmax(1)
    episodes = enumerate_episodes(successors, probabilities, rewards, ref_logps, 0, DEPTH)
    logps = population_dpo(episodes, ref_logps, BETA)
    expected = (probabilities * rewards).sum(-1)
    Q, V, _ = soft_value_iteration(successors, probabilities, expected, ref_logps, BETA, DEPTH)
    advantages = (Q - V[:-1, :, None]).flatten()
    log_ratios = BETA * (logps - ref_logps).flatten()
    visited = episodes.visits[episodes.visits >= 0].unique()
    sums = implicit_rewards(logps, ref_logps, episodes.visits, BETA)
    returns = episodes.chances @ episodes.returns / episodes.weights
    return {
        "largest advantage": advantages[visited].abs().max(),
        "largest error of a token": (log_ratios - advantages)[visited].abs().max(),
        "largest error of a response": (sums - (returns - V[0, 0])).abs().max(),
    }


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(*(measured[f"largest error of a {x}"] < 1e-3 for x in ("token", "response")))


CLAIM = Claim(
    name="token_credit",
    paper="Rafailov et al. 2024, arXiv:2404.12358",
    claim="A language model trained with DPO is a Q-function: β log π/π_ref of a token is its "
    "optimal advantage, although only whole responses were compared.",
    read="the abstract and summaries",
    world="In this world a response is three binary tokens, each of which earns a random reward. "
    "DPO's optimum for endless pairs is held against Q* − V* from backward induction; β = 1.",
    predicted="errors below 1e-5; over a response the log-ratios sum to r − V*(start).",
    rule="(1) every token's log-ratio is within 0.001 of Q* − V*; (2) every response's sum is "
    "within 0.001 of its reward minus V*(start). Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"slip": 0.2},
    perturbed="one token in five comes out as the other one, by chance",
    not_tested="finite data, networks, the paper's search with DPO policies, several turns",
    found="as predicted: errors of 4e-8, where advantages reach 4.3. With chance in the world "
    "errors reach 1.6 for a token, where advantages reach 2.1.",
)
