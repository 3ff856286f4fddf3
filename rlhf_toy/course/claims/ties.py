"""Ties: what answers of "about equal" do to DPO's optimum, with and without a model of ties."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.exact import fixed_point, kl_divergence

REWARDS, REFERENCE = (2.0, 1.0, 0.5, 0.0, -1.5), (0.1, 0.3, 0.3, 0.2, 0.1)
NU, THETA = 0.5, 1.5  # with both models, equally good responses tie in 20 % of the comparisons


def outcomes(model: str, d: Tensor) -> Tensor:
    """Return the log-probabilities of win, tie and loss [..., 3] at a lead of d logits."""
    if model == "Davidson":
        return torch.stack([d / 2, torch.full_like(d, math.log(NU)), -d / 2], -1).log_softmax(-1)
    if model == "Rao–Kupper":
        win, loss = (F.logsigmoid(lead - math.log(THETA)) for lead in (d, -d))
        return torch.stack([win, win + loss + math.log(THETA**2 - 1), loss], -1)
    win, loss = F.logsigmoid(d), F.logsigmoid(-d)  # DPO has no ties: drop them, or halve them
    tie = {"DPO with ties": (win + loss) / 2, "DPO without ties": 0 * d}
    return torch.stack([win, tie[model], loss], -1)


def experiment(close: float = 0.0) -> Measurements:
    """Find each loss's optimum for endless answers, at β = 1; a lead of up to `close` is a tie."""
    ref_logps = torch.tensor([REFERENCE], dtype=torch.float64).log()
    rewards = torch.tensor([REWARDS], dtype=torch.float64)
    asked, lead = ref_logps.exp() * ref_logps.exp().T, rewards.T - rewards
    answers = outcomes("Davidson", lead).exp()
    if close:
        clear = torch.stack([lead.sigmoid(), 0 * lead, (-lead).sigmoid()], -1)
        tie = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        answers = torch.where((lead.abs() <= close)[..., None], tie, clear)
    found = {}
    for model in ("DPO without ties", "DPO with ties", "Davidson", "Rao–Kupper"):

        def loss(logps: Tensor, model: str = model) -> Tensor:
            h = logps - ref_logps
            return -(asked * (answers * outcomes(model, h.T - h)).sum(-1)).sum()

        end = fixed_point(loss, ref_logps, rewards, 1.0)
        found[f"KL, {model}"] = kl_divergence(end.logps, ref_logps)
        found[f"gap, {model}, %"] = 100 * end.gap
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    most = 0.99 * measured["KL, DPO without ties"]
    return verdict(
        *(measured[f"KL, {m}"] < most for m in ("DPO with ties", "Davidson", "Rao–Kupper"))
    )


CLAIM = Claim(
    name="ties",
    paper="Chen et al. 2024, arXiv:2409.17431",
    claim="Keeping tied pairs holds the policy closer to the reference, in KL, both with DPO's "
    "own loss and with the losses for ties after Davidson and after Rao and Kupper.",
    read="the abstract and the introduction",
    world="In this world there are five responses, and people answer endless pairs of them by "
    "Davidson's model. The optimum of each loss is computed, with the true share of ties.",
    predicted="DPO with ties is closer to the reference than DPO without. Davidson's loss is not: "
    "dropping ties is exact if people follow his model. Rao–Kupper's: unknown.",
    rule="closer: a KL below 99 % of that of DPO without ties. Holds: all three losses with ties; "
    "in part: some; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"close": 1.0},
    perturbed="a lead of at most one logit is always called a tie, and a larger one never",
    not_tested="finite data, task performance, networks, the paper's own way of choosing ties",
    found="as predicted: the KL is 0.283 without ties and with Davidson's loss, 0.183 for DPO "
    "with ties, 0.187 with Rao and Kupper's. But the closer two have gaps of 3.8 and 3.4 %.",
)
