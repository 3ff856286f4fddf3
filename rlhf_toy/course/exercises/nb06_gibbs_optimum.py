"""The exercises of notebook 06: KL divergence, stationarity, and the optimum with its log Z."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_toy import exact
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_logps, random_numbers


def _log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _kl_cases() -> list[Case]:
    plain = [
        (_log(0.5, 0.5), _log(0.25, 0.75)),
        (_log(0.9, 0.1), _log(0.2, 0.8)),
        (random_logps(3, seed=1), random_logps(3, seed=2)),
        (random_logps(1, 4, seed=5), random_logps(1, 4, seed=6)),
        (random_logps(2, 3, seed=3), random_logps(2, 3, seed=4)),
        (random_logps(2, 2, 3, seed=7).float(), random_logps(2, 2, 3, seed=8).float()),
    ]
    corners = [
        (_log(1.0, 0.0), _log(0.5, 0.5)),  # p is 0 somewhere
        (_log(1.0, 0.0), _log(1.0, 0.0)),  # both are
        (_log(0.5, 0.5), _log(1.0, 0.0)),  # q is 0 where p is not
        (float64(0.0, -900.0), float64(-900.0, 0.0)),
    ]
    return make_cases(("logp", "logq"), plain, corners)


def _tilt_cases() -> list[Case]:
    plain = [
        (_log(0.5, 0.5), float64(1.0, 0.0), 1.0),
        (_log(0.25, 0.75), float64(1.0, -0.5), 0.5),
        (random_logps(3, seed=1), random_numbers(3, seed=2), 2.0),
        (random_logps(1, 3, seed=3), random_numbers(1, 3, seed=4), 0.5),
        (random_logps(2, 4, seed=5), random_numbers(2, 4, seed=6), 0.7),
        (random_logps(2, 2, 3, seed=7).float(), random_numbers(2, 2, 3, seed=8).float(), 1.5),
    ]
    corners = [
        (_log(0.5, 0.5), float64(1000.0, -1000.0), 1.0),
        (_log(0.5, 0.5), float64(-1000.0, -999.0), 1.0),
        (_log(0.2, 0.8), float64(1.0, 0.9), 1e-3),
        (_log(0.2, 0.8), float64(1.0, 0.9), 1e3),
        (_log(1.0, 0.0), float64(0.0, 5.0), 1.0),  # the reference never gives the second response
    ]
    return make_cases(("ref_logps", "rewards", "beta"), plain, corners)


def _kkt_cases() -> list[Case]:
    plain = [
        (_log(0.5, 0.5), _log(0.25, 0.75), float64(1.0, 0.0), 1.0, _number(0.3)),
        (_log(0.9, 0.1), _log(0.5, 0.5), float64(1.0, -0.5), 0.5, _number(-0.2)),
        (*_policies(3, seed=1), random_numbers(3, seed=3), 2.0, _number(1.2)),
        (*_policies(1, 3, seed=4), random_numbers(1, 3, seed=6), 0.5, float64(0.7)),
        (*_policies(2, 4, seed=7), random_numbers(2, 4, seed=9), 0.7, float64(0.4, -1.1)),
        (*_policies(2, 2, 3, seed=10), random_numbers(2, 2, 3, seed=12), 1.5, _table()),
    ]
    corners = [
        (_log(1.0, 0.0), _log(0.5, 0.5), float64(1.0, 1000.0), 1.0, _number(0.0)),  # greedy
        (float64(0.0, -900.0), _log(0.5, 0.5), float64(1.0, 2.0), 1e-3, _number(0.5)),
    ]
    names = ("logps", "ref_logps", "rewards", "beta", "multiplier")
    return make_cases(names, plain, corners)


def _policies(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    return random_logps(*shape, seed=seed), random_logps(*shape, seed=seed + 1)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _table() -> Tensor:
    return float64([0.5, -0.3], [1.4, 0.2])


def _naive_kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


_KL = Exercise(
    name="kl_divergence",
    notebook="06",
    hints=(
        "KL(p ‖ q) is an expectation under p: the average of how far log p is above log q.",
        "logp.exp() gives the probabilities. Sum over the last dimension only.",
        "A response with p = 0 should contribute 0, but 0 · ∞ is NaN in floating point. Replace "
        "such entries before you multiply.",
    ),
    solution=exact.kl_divergence,
    cases=_kl_cases,
    mistakes=(
        Mistake(
            "sign",
            "A KL divergence is never negative. Which logarithm do you subtract from which?",
            lambda logp, logq: -exact.kl_divergence(logp, logq),
        ),
        Mistake(
            "swapped",
            "This is KL(q ‖ p). Under which of the two distributions is the expectation?",
            lambda logp, logq: exact.kl_divergence(logq, logp),
        ),
        Mistake(
            "not weighted",
            "You count every response equally. An expectation weights each one by its probability.",
            lambda logp, logq: (logp - logq).sum(-1),
        ),
        Mistake(
            "mean for sum",
            "An expectation is a weighted sum, and the weights already add up to 1. Why divide "
            "by the number of responses?",
            lambda logp, logq: _naive_kl(logp, logq) / logp.shape[-1],
        ),
        Mistake(
            "log-probabilities as weights",
            "Your weights are log-probabilities. How do you turn them into probabilities?",
            lambda logp, logq: (logp * (logp - logq)).sum(-1),
        ),
        Mistake(
            "summed over prompts",
            "You sum over the prompts too. Each prompt has its own KL, so sum over the last "
            "dimension only.",
            lambda logp, logq: (logp.exp() * (logp - logq)).sum(),
        ),
        Mistake(
            "averaged over prompts",
            "You average over the prompts. Each prompt has its own KL, so keep the prompt "
            "dimensions.",
            lambda logp, logq: _naive_kl(logp, logq).mean(),
        ),
        Mistake(
            "bits",
            "This KL is in bits. This course uses nats, which come from the natural logarithm.",
            lambda logp, logq: _naive_kl(logp, logq) / math.log(2),
        ),
        Mistake(
            "zero probability",
            "A response with p = 0 should contribute 0, but 0 · (−∞) is NaN in floating point. "
            "Replace such entries before you multiply.",
            _naive_kl,
        ),
        Mistake(
            "q misses p",
            "If p can give a response that q never gives, the KL is infinite. Replacing every "
            "infinity or NaN by 0 hides that.",
            lambda logp, logq: (logp.exp() * (logp - logq)).nan_to_num(0.0, 0.0, 0.0).sum(-1),
        ),
    ),
)


def _log_z(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return exact.log_partition(ref_logps, rewards, beta)


_LOG_PARTITION = Exercise(
    name="log_partition",
    notebook="06",
    hints=(
        "Z is an expectation under the reference. How do you write each of its terms as a single "
        "exponential?",
        "torch has one function for log Σ exp(…), and it does not overflow.",
    ),
    solution=exact.log_partition,
    cases=_tilt_cases,
    mistakes=(
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What is the reward divided by in the exponent?",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, 1.0),
        ),
        Mistake(
            "times beta",
            "A small β should give the rewards more weight, not less.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, 1 / beta),
        ),
        Mistake(
            "reference forgotten",
            "You count all responses equally. Z weights exp(r/β) by the reference's probability "
            "π_ref(y|x).",
            lambda ref_logps, rewards, beta: (rewards / beta).logsumexp(-1),
        ),
        Mistake(
            "Z, not log Z",
            "This is Z itself. Return its logarithm, which can be computed without overflow.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, beta).exp(),
        ),
        Mistake(
            "beta log Z",
            "This is β log Z, the highest possible objective. Return log Z alone.",
            lambda ref_logps, rewards, beta: beta * _log_z(ref_logps, rewards, beta),
        ),
        Mistake(
            "probabilities in the exponent",
            "You put the reference into the exponent as a probability. There it should be a "
            "log-probability.",
            lambda ref_logps, rewards, beta: (ref_logps.exp() + rewards / beta).logsumexp(-1),
        ),
        Mistake(
            "sign",
            "Your reward has the wrong sign. Good responses should add more to Z than bad ones.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, -rewards, beta),
        ),
        Mistake(
            "summed over prompts",
            "You sum over the prompts too. Each prompt has its own Z(x), so sum over the last "
            "dimension only.",
            lambda ref_logps, rewards, beta: (ref_logps + rewards / beta).flatten().logsumexp(0),
        ),
        Mistake(
            "overflow",
            "The formula is right, but exp(1000) is infinite and exp(−1000) is 0 in floating "
            "point. Work with logarithms throughout.",
            lambda ref_logps, rewards, beta: (
                (ref_logps.exp() * (rewards / beta).exp()).sum(-1).log()
            ),
        ),
    ),
)


def _star(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return exact.gibbs_policy(ref_logps, rewards, beta)


_GIBBS = Exercise(
    name="gibbs_policy",
    notebook="06",
    hints=(
        "Take the logarithm of π* = π_ref exp(r/β) / Z. Products become sums.",
        "Use log_partition. Its result has the shape [...], so add a last dimension before you "
        "subtract it.",
    ),
    solution=exact.gibbs_policy,
    cases=_tilt_cases,
    mistakes=(
        Mistake(
            "not normalised",
            "Your probabilities do not sum to 1. In logarithms, what does dividing by Z become?",
            lambda ref_logps, rewards, beta: ref_logps + rewards / beta,
        ),
        Mistake(
            "probabilities",
            "These are probabilities. Return log-probabilities.",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, beta).exp(),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What is the reward divided by in the exponent?",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, 1.0),
        ),
        Mistake(
            "times beta",
            "With a small β the policy should follow the reward more, not less.",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, 1 / beta),
        ),
        Mistake(
            "reference forgotten",
            "If all rewards are equal, your policy is uniform. The optimum is then the reference.",
            lambda ref_logps, rewards, beta: (rewards / beta).log_softmax(-1),
        ),
        Mistake(
            "sign",
            "You make bad responses more likely. Check the sign of the reward.",
            lambda ref_logps, rewards, beta: _star(ref_logps, -rewards, beta),
        ),
        Mistake(
            "normalised over prompts",
            "Your probabilities sum to 1 over the whole table. Each prompt has its own Z(x), so "
            "each row should sum to 1.",
            lambda ref_logps, rewards, beta: (
                (ref_logps + rewards / beta).flatten().log_softmax(0).view(rewards.shape)
            ),
        ),
        Mistake(
            "overflow",
            "The formula is right, but exp(1000) is infinite and a probability of e^−2000 is 0 "
            "in floating point. Work with logarithms from start to end.",
            lambda ref_logps, rewards, beta: (
                (ref_logps.exp() * (rewards / beta).exp())
                / (ref_logps.exp() * (rewards / beta).exp()).sum(-1, keepdim=True)
            ).log(),
        ),
        Mistake(
            "underflow",
            "The formula is right, but a probability of e^−2000 is 0 in floating point, and its "
            "logarithm is −∞. Keep logarithms to the end.",
            lambda ref_logps, rewards, beta: (ref_logps + rewards / beta).softmax(-1).log(),
        ),
    ),
)


def kkt_residual(
    logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float, multiplier: Tensor
) -> Tensor:
    """Return the Lagrangian's derivative r − β (log π − log π_ref + 1) + λ for each response.

    Args:
        logps: [..., Y] log π(y|x).
        ref_logps: [..., Y] log π_ref(y|x), finite.
        rewards: [..., Y] in logits.
        beta: strength of the KL penalty.
        multiplier: [...] λ(x) in logits.

    Returns:
        [..., Y] in logits: 0 everywhere at the optimum, inf where π is 0.
    """
    return rewards - beta * (logps - ref_logps + 1) + multiplier[..., None]


_KKT = Exercise(
    name="kkt_residual",
    notebook="06",
    hints=(
        "The derivative has three parts: the reward, the price of the KL, and the multiplier.",
        "The multiplier has one number for each prompt, shape [...]. Add a last dimension before "
        "you add it to [..., Y].",
        "The derivative of π log π is log π + 1, so the KL term is β (log π − log π_ref + 1).",
    ),
    solution=kkt_residual,
    cases=_kkt_cases,
    mistakes=(
        Mistake(
            "product rule",
            "You differentiate log π, but π in front of it depends on π too. What does the "
            "product rule give for π log π?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, beta, lam + beta),
        ),
        Mistake(
            "one without beta",
            "Your 1 is outside the bracket. Which factor does the whole KL term have?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, beta, lam + beta - 1),
        ),
        Mistake(
            "sign of the multiplier",
            "You subtract the multiplier. Which sign does λ have in the Lagrangian?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, beta, -lam),
        ),
        Mistake(
            "multiplier forgotten",
            "Your result does not depend on the multiplier. What does the constraint add to the "
            "derivative?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, beta, 0 * lam),
        ),
        Mistake(
            "swapped",
            "You have log π_ref − log π in the price. Which policy's divergence does J subtract?",
            lambda logps, ref, r, beta, lam: (
                r - beta * (ref - logps + 1) + lam.unsqueeze(-1).expand_as(r)
            ),
        ),
        Mistake(
            "sign of the KL",
            "You add the price of the KL instead of subtracting it. Does J reward a policy for "
            "leaving the reference?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, -beta, lam),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What does one nat of KL cost?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, 1.0, lam),
        ),
        Mistake(
            "reference forgotten",
            "Your result does not depend on π_ref. You differentiated the entropy of π; what else "
            "is in the KL?",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, 0 * ref, r, beta, lam),
        ),
        Mistake(
            "times the probability",
            "You multiply by π(y), which gives the terms of the Lagrangian's sum. What is left of "
            "a term π(y) r(y) when you differentiate it in π(y)?",
            lambda logps, ref, r, beta, lam: (
                logps.exp() * kkt_residual(logps, ref, r, beta, lam)
            ).nan_to_num(0.0),
        ),
        Mistake(
            "summed over responses",
            "You sum over the responses. There is one derivative for each response, so keep the "
            "last dimension.",
            lambda logps, ref, r, beta, lam: kkt_residual(logps, ref, r, beta, lam).sum(-1),
        ),
        Mistake(
            "clamped",
            "Your result is finite where π(y) = 0. What is log π(y) there?",
            lambda logps, ref, r, beta, lam: kkt_residual(
                logps.clamp(min=math.log(1e-12)), ref, r, beta, lam
            ),
        ),
    ),
)

EXERCISES = (_KL, _KKT, _LOG_PARTITION, _GIBBS)
