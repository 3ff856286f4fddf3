"""An unseen response: DPO's loss may give it everything, reward model + RL may not."""

from __future__ import annotations

import torch

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.exact import gibbs_policy
from rlhf_toy.losses import dpo_loss

DPO_POLICY = (0.1, 1e-9, 0.9)
OVERRATED = (0.0, 1.0, 5.0, 10.0)  # logits by which the reward model puts y₃ above y₁


def experiment(share: float = 0.0, beta: float = 1.0) -> Measurements:
    """Compare DPO's loss of two policies, and the optimum of reward models of the pair y₁ ≻ y₂.

    Args:
        share: π_ref(y₃); y₁ and y₂ share the rest.
        beta: of DPO and of the KL penalty.
    """
    ref_logps = torch.tensor([(1 - share) / 2, (1 - share) / 2, share], dtype=torch.float64).log()
    policy = torch.tensor(DPO_POLICY, dtype=torch.float64).log()
    y1, y2 = [0], [1]
    loss = dpo_loss(policy[y1], policy[y2], ref_logps[y1], ref_logps[y2], beta)
    found = {f"DPO's loss of {DPO_POLICY}": loss}
    for lead in OVERRATED:
        learned = torch.tensor([0.0, -20.0, lead], dtype=torch.float64)  # fits y₁ ≻ y₂ perfectly
        optimum = gibbs_policy(ref_logps, learned, beta).exp()
        found[f"π(y₃) of RL, overrated by {lead:g}"] = optimum[2]
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    rl = [x for name, x in measured.items() if "RL" in name]
    return verdict(measured[f"DPO's loss of {DPO_POLICY}"] < 1e-6, max(rl) < 1e-6)


CLAIM = Claim(
    name="unseen_response",
    paper="Xu et al. 2024, arXiv:2404.10719",
    claim="DPO can move mass to a response that no pair contains and the reference never writes; "
    "RL on a reward model cannot, because of its KL penalty.",
    read="the abstract and summaries of the example",
    world="In this world π_ref = (½, ½, 0) and the data is one pair, y₁ ≻ y₂; β = 1. DPO's loss "
    "of the policy (0.1, 0, 0.9), and exact optima for reward models that overrate y₃ by 0 to 10.",
    predicted="the loss is as good as 0, so this policy is a minimiser; RL gives y₃ nothing at "
    "all.",
    rule="(1) DPO's loss of that policy is below 1e-6; (2) RL gives y₃ less than 1e-6 for all "
    "four reward models. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"share": 0.01},
    perturbed="the reference writes y₃ in 1 % of the cases, as a network would with some chance",
    not_tested="networks, the policies that training finds, the paper's benchmarks",
    found="as predicted, and only for π_ref(y₃) = 0: if the reference writes y₃ in 1 % of the "
    "cases, a reward model that overrates it by 5 logits makes RL write it in 75 %.",
)
