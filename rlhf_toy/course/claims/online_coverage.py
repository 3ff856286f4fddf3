"""Online data: what DPO and reward model + RL know about a response that no pair contains."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.course.claims.parts import comparison_loss
from rlhf_toy.exact import fixed_point, gibbs_policy, objective

REWARDS = (1.0, 0.0, -1.0)  # of a, b and c; all rewards are known to be from −1 to 1
BETA = 0.5


def experiment(rare: float = 0.01) -> Measurements:
    """Search all minimisers of each loss for the largest gap, where π_ref(c) = `rare`."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    ref_logps = torch.tensor([(1 - rare) / 2, (1 - rare) / 2, rare], dtype=torch.float64).log()
    asked = ref_logps.exp()[:, None] * ref_logps.exp()
    asked[2, :] = asked[:, 2] = 0
    wins = asked * (rewards[:, None] - rewards).sigmoid()
    best = gibbs_policy(ref_logps, rewards, BETA)

    def loss(scores: Tensor) -> Tensor:
        return comparison_loss(scores, wins)

    def gap(logps: Tensor) -> float:
        J = objective(torch.stack([best, logps, ref_logps]), ref_logps, rewards, BETA)
        return float(100 * (J[0] - J[1]) / (J[0] - J[2]))

    worst = {"DPO": 0.0, "reward model + RL": 0.0}
    for unseen in torch.linspace(-1, 1, 201, dtype=torch.float64):  # the learned reward of c
        learned = torch.cat([rewards[:2], unseen[None]])
        if loss(learned) - loss(rewards) < 1e-9:
            found = gap(gibbs_policy(ref_logps, learned, BETA))
            worst["reward model + RL"] = max(worst["reward model + RL"], found)
    for share in torch.linspace(0.001, 0.999, 999, dtype=torch.float64):  # π(c)
        logps = torch.cat([best[:2].log_softmax(0) + (1 - share).log(), share.log()[None]])
        if loss(BETA * (logps - ref_logps)) - loss(rewards) < 1e-9:
            worst["DPO"] = max(worst["DPO"], gap(logps))
    start = fixed_point(
        lambda logps: loss(BETA * (logps - ref_logps)[0]), ref_logps[None], rewards[None], BETA
    )
    found = {f"largest gap, {name}, %": value for name, value in worst.items()}
    return found | {"gap of DPO from the reference, %": 100 * start.gap}


def judge(measured: Measurements) -> str:
    """The rule as code."""
    dpo, rl = (measured[f"largest gap, {name}, %"] for name in ("DPO", "reward model + RL"))
    return verdict(dpo > 100, rl < 10)


CLAIM = Claim(
    name="online_coverage",
    paper="Song et al. 2024, arXiv:2406.01462",
    claim="Offline losses such as DPO's need pairs that cover all responses; a reward model with "
    "online RL needs only those that a good policy uses.",
    read="the abstract and a summary",
    world="In this world pairs contain a and b but not c, which the reference writes in 1 % of "
    "the cases. We search all policies of the lowest DPO loss, and all rewards from −1 to 1 of "
    "the lowest reward-model loss with their exact optimum; β = 0.5.",
    predicted="DPO's loss does not see π(c): gaps far above 100 %; reward model + RL: a few %.",
    rule="(1) some minimiser of DPO's loss has a gap above 100 %; (2) no minimiser of the reward "
    "model's loss leads to one above 10 %. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"rare": 0.001},
    perturbed="the reference writes c in 0.1 % of the cases",
    found="the bound for RL is looser than predicted, 11.6 %: an unseen response that is "
    "overrated by 2 logits gets e⁴ times its share at β = 0.5, and 0.1 % is rare enough, 1 % is "
    "not. DPO's 1,765 % is the worst of all minimisers; descent from the reference ends at 5.4 %.",
    not_tested="networks, which generalise to unseen responses; finite data; the paper's HyPO",
)
