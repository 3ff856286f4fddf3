"""KL estimators: where k1, k2 and k3 lead, in the reward and in the loss."""

from __future__ import annotations

from torch import Tensor

from rlhf_toy.course.claims.board import Claim, Measurements, verdict
from rlhf_toy.course.studies.fixed_points import world_tables
from rlhf_toy.exact import fixed_point, response_token_logps
from rlhf_toy.losses import approx_kl

RIGHT = "k1 in the reward", "k2 in the loss"
WRONG = "k1 in the loss", "k3 in the loss", "k3 in the reward"
PER_TOKEN = "k2 in the loss, per token"


def experiment(scale: float = 1.0) -> Measurements:
    """Follow each exact expected gradient to its end, and measure the gap there, at β = 1.

    Args:
        scale: of the rewards; a small one is like a large β.
    """
    tree = world_tables("tree")
    ref_logps, rewards = tree.ref_logps, scale * tree.rewards
    ref_tokens = response_token_logps(ref_logps, tree.responses)

    def gap(placement: str) -> float:
        estimator = placement[:2]

        def loss(logps: Tensor) -> Tensor:
            p, net, penalty = logps.detach().exp(), rewards, 0.0
            if "reward" in placement:
                net = rewards - approx_kl(logps.detach(), ref_logps, estimator)
            elif placement == PER_TOKEN:
                tokens = response_token_logps(logps, tree.responses)
                penalty = approx_kl(tokens, ref_tokens, estimator).sum(-1)
            else:
                penalty = approx_kl(logps, ref_logps, estimator)
            return (p * (penalty - net * logps)).sum()

        return 100 * fixed_point(loss, ref_logps, rewards, beta=1.0).gap

    return {f"gap of {name}, %": gap(name) for name in (*RIGHT, *WRONG, PER_TOKEN)}


def judge(measured: Measurements) -> str:
    """The rule as code."""
    right, wrong = ([measured[f"gap of {name}, %"] for name in names] for names in (RIGHT, WRONG))
    return verdict(max(right) < 0.1, min(wrong) > 1)


CLAIM = Claim(
    name="kl_estimators",
    paper="Shah et al. 2025, arXiv:2512.21852",
    claim="An unbiased KL gradient, as from k1 in the reward, leads to the KL-regularised "
    "optimum; common placements such as k3 in the loss or in the reward, and k1 in the loss, do "
    "not.",
    read="the abstract and a summary; also the abstract of Liu et al., arXiv:2510.01555, for k2",
    world="In this world there are 13 responses of one or two tokens with random rewards, one "
    "softmax over them, and exact expected gradients, followed to where they vanish.",
    predicted="a gap of 0 for k1 in the reward and k2 in the loss of the whole response; about 10 "
    "% for k3 in the loss, more for the others; not 0 for k2 of each token (see notebook 08).",
    rule="right: k1 in the reward and k2 in the loss end below 0.1 %. Wrong: k1 and k3 in the "
    "loss and k3 in the reward end above 1 %. Holds: both; in part: one; not here: none.",
    experiment=experiment,
    judge=judge,
    perturbation={"scale": 0.02},
    perturbed="rewards are a fiftieth, as if β were 50: the optimum is close to the reference",
    not_tested="the effect on accuracy that the paper reports, samples, networks, off-policy data",
    found="as predicted: 721 % for k1 in the loss, which ends where training without a KL does, "
    "97 % for k3 in the reward, 10.6 % for k3 in the loss, 3.6 % for k2 of each token. Near the "
    "reference k3 in the loss is harmless (0.005 %), and the other two are worse than ever.",
)
