"""Likelihood displacement: DPO can make the chosen response rarer, and its opposite likely."""

from __future__ import annotations

import torch

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.losses import dpo_loss

NEVER, NO, YES = range(3)
RISE = 1.0  # nats by which the margin log π(No) − log π(Never) grows in training


def experiment(
    unembedding: tuple[float, ...] = (2.0, 1.0, -3.0), hidden: float = 0.5
) -> Measurements:
    """Train No ≻ Never with small steps, until the margin has grown by one nat.

    Args:
        unembedding: W, one number for each of Never, No, Yes; the logits are W h.
        hidden: h, the prompt's hidden state, at the start.
    """
    found = {}
    for trained in ("h alone", "h and W"):
        W = torch.tensor(unembedding, dtype=torch.float64, requires_grad=True)
        h = torch.tensor(hidden, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([h] if trained == "h alone" else [h, W], lr=0.01)
        ref = before = (W * h).log_softmax(0).detach()
        logps, highest = before, 0.0
        while logps[NO] - logps[NEVER] < before[NO] - before[NEVER] + RISE:
            logps = (W * h).log_softmax(0)
            highest = max(highest, logps[NO].detach().exp())
            loss = dpo_loss(logps[[NO]], logps[[NEVER]], ref[[NO]], ref[[NEVER]], beta=1.0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for name, y in (("No", NO), ("Yes", YES)):
            found[f"P({name}) before"] = before[y].exp()
            found[f"P({name}) after, {trained}"] = logps[y].detach().exp()
        found[f"highest P(No), {trained}"] = highest
    return found


def judge(measured: Measurements) -> str:
    """The rule as code."""
    return verdict(*(
        measured[f"P(No) after, {trained}"] < measured["P(No) before"]
        and measured[f"P(Yes) after, {trained}"] > 0.5
        for trained in ("h alone", "h and W")
    ))  # fmt: skip


CLAIM = Claim(
    name="likelihood_displacement",
    paper="Razin et al. 2024, arXiv:2410.08847",
    claim="Training a model to prefer No to Never can make No rarer and its opposite, Yes, "
    "likely, where No and Never have similar embeddings.",
    read="the abstract, and a summary of the introduction with figure 1",
    world="In this world a response is one of three tokens with logits W h, where h is one number "
    "and W = (2, 1, −3) for Never, No, Yes; DPO sees one pair, No ≻ Never, and small steps.",
    predicted="P(No) falls from 0.36 to 0.11 and P(Yes) rises from 0.05 to 0.82 if only h is "
    "trained; the same direction if W is trained too, but less.",
    rule="displaced: P(No) ends below its start and P(Yes) above 1/2. Holds: displaced both with "
    "h alone and with h and W trained; in part: with one of them; not here: with neither.",
    experiment=experiment,
    judge=judge,
    perturbation={"unembedding": (2.0, -4.0, -3.0)},
    perturbed="No's embedding is −4 instead of 1: far from Never's, and beyond that of Yes",
    not_tested="responses of several tokens, embeddings of more dimensions, the paper's CHES "
    "score for choosing pairs, W that learns faster than h, real models",
    found="as predicted for h alone, though P(No) first rises a little. With W trained too it is "
    "the same and not less: W moves towards No while h > 0, and back when h < 0.",
)
