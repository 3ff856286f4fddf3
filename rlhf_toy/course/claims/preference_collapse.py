"""Preference collapse: a KL penalty to the reference does not keep the shares of a preference."""

from __future__ import annotations

import torch

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.envs.prompt_bandit import QUESTIONS
from rlhf_toy.exact import fixed_point, gibbs_policy

SHARE = 0.7  # of the people prefer A to B


def experiment(reference: float = 0.9, weak_beta: float = 0.1, beta: float = 1.0) -> Measurements:
    """Compare the optimum's shares with the people's, for a KL penalty and for an entropy bonus.

    Args:
        reference: π_ref(A).
        weak_beta: β with which the collapse is looked for.
        beta: β with which the bias is looked for.
    """
    rewards = torch.tensor([[SHARE, 1 - SHARE]], dtype=torch.float64).log()
    ref_logps = torch.tensor([[reference, 1 - reference]], dtype=torch.float64).log()
    even = torch.full_like(ref_logps, 0.5).log()

    def negative_entropy_objective(logps: torch.Tensor) -> torch.Tensor:
        return -(logps.exp() * (rewards - logps)).sum()

    matched = fixed_point(negative_entropy_objective, ref_logps, rewards, beta).logps
    taste, habits = (
        torch.tensor(x, dtype=torch.float64) for x in (QUESTIONS.taste, QUESTIONS.habits)
    )
    optimum, people = gibbs_policy(habits.log_softmax(1), taste, beta).exp(), taste.softmax(1)
    return {
        "π(A), KL": gibbs_policy(ref_logps, rewards, beta)[0, 0].exp(),
        "π(B), weak KL, even reference": gibbs_policy(even, rewards, weak_beta)[0, 1].exp(),
        "π(A), entropy": matched[0, 0].exp(),
        "distance to the people's shares, four questions": (optimum - people).abs().sum(1).mean()
        / 2,
    }


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(
        abs(measured["π(A), KL"] - SHARE) > 0.1,
        measured["π(B), weak KL, even reference"] < 0.01,
        abs(measured["π(A), entropy"] - SHARE) < 0.001,
    )


CLAIM = Claim(
    name="preference_collapse",
    paper="Xiao et al. 2024, arXiv:2405.16455",
    claim="RLHF's KL penalty makes the optimum's shares differ from the people's, down to "
    "disregarding a minority; a penalty of log π without a reference makes them equal.",
    read="the abstract",
    world="In this world 70 % prefer A to B by Bradley–Terry, the reward is exact, and the "
    "optimum is computed; and there are four questions with eight answers each.",
    predicted="π(A) = 0.955 with π_ref(A) = 0.9 at β = 1; at β = 0.1 from an even reference the "
    "minority of 30 % gets 0.02 %; with the entropy π(A) = 0.7.",
    rule="biased: π(A) more than 0.1 from 0.7; collapsed: π(B) below 0.01 at the weak β; matched: "
    "with the entropy within 0.001 of 0.7. Holds: all three; in part: some; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"reference": 0.5, "weak_beta": 1.0},
    perturbed="an even reference and β = 1, for which the KL penalty is the entropy's",
    not_tested="learned rewards, whether people's shares are what a policy should have, the "
    "paper's conditional variant for text, real models",
    found="as predicted. The bias comes from β and from the reference: with β = 1 and an even "
    "reference there is none. On the four questions 12 % of the mass is elsewhere.",
)
