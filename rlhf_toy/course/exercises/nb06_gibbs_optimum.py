"""The exercises of notebook 06: the KL divergence, the objective, and its optimum."""

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


def _objective_cases() -> list[Case]:
    plain = [
        (_log(0.5, 0.5), _log(0.25, 0.75), float64(1.0, 0.0), 1.0),
        (_log(0.9, 0.1), _log(0.5, 0.5), float64(1.0, -0.5), 0.5),
        (*(random_logps(3, seed=seed) for seed in (1, 2)), random_numbers(3, seed=3), 2.0),
        (*(random_logps(1, 3, seed=seed) for seed in (4, 5)), random_numbers(1, 3, seed=6), 0.5),
        (*(random_logps(2, 4, seed=seed) for seed in (7, 8)), random_numbers(2, 4, seed=9), 0.7),
        (
            *(random_logps(2, 2, 3, seed=seed).float() for seed in (10, 11)),
            random_numbers(2, 2, 3, seed=12).float(),
            1.5,
        ),
    ]
    corners = [
        (_log(1.0, 0.0), _log(0.5, 0.5), float64(1.0, 1000.0), 1.0),  # greedy
        (_log(1.0, 0.0), _log(1.0, 0.0), float64(1.0, 5.0), 1.0),
        (_log(0.5, 0.5), _log(1.0, 0.0), float64(1.0, 5.0), 1.0),  # an infinite KL
    ]
    return make_cases(("logps", "ref_logps", "rewards", "beta"), plain, corners)


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


def _objective(
    logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float, kl: Tensor | None = None
) -> Tensor:
    kl = exact.kl_divergence(logps, ref_logps) if kl is None else kl
    return exact.expected_reward(logps, rewards) - beta * kl


_OBJECTIVE = Exercise(
    name="objective",
    notebook="06",
    hints=(
        "There are two terms: the policy's expected reward, and a penalty of β for each nat of "
        "KL from the reference.",
        "Both are expectations under the policy π. Use kl_divergence for the second.",
    ),
    solution=exact.objective,
    cases=_objective_cases,
    mistakes=(
        Mistake(
            "sign of the KL",
            "You reward the policy for moving away from the reference. That should cost something.",
            lambda logps, ref_logps, rewards, beta: _objective(logps, ref_logps, rewards, -beta),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What does one nat of KL cost?",
            lambda logps, ref_logps, rewards, beta: _objective(logps, ref_logps, rewards, 1.0),
        ),
        Mistake(
            "KL forgotten",
            "This is the expected reward alone. What keeps the policy close to the reference?",
            lambda logps, ref_logps, rewards, beta: exact.expected_reward(logps, rewards),
        ),
        Mistake(
            "swapped KL",
            "Your KL is the wrong way round. The objective contains KL(π ‖ π_ref).",
            lambda logps, ref_logps, rewards, beta: _objective(
                logps, ref_logps, rewards, beta, exact.kl_divergence(ref_logps, logps)
            ),
        ),
        Mistake(
            "reward of the reference",
            "You average the reward over the reference's responses. Whose responses does J judge?",
            lambda logps, ref_logps, rewards, beta: (
                exact.expected_reward(ref_logps, rewards)
                - beta * exact.kl_divergence(logps, ref_logps)
            ),
        ),
        Mistake(
            "beta on the reward",
            "You multiply the reward by β. Which of the two terms does β belong to?",
            lambda logps, ref_logps, rewards, beta: (
                beta * exact.expected_reward(logps, rewards) - exact.kl_divergence(logps, ref_logps)
            ),
        ),
        Mistake(
            "averaged over prompts",
            "You average over the prompts. Return J for each prompt: sum over the last "
            "dimension, and keep the others.",
            lambda logps, ref_logps, rewards, beta: _objective(
                logps, ref_logps, rewards, beta
            ).mean(),
        ),
        Mistake(
            "zero probability",
            "A response that the policy never gives should contribute 0, but 0 · ∞ is NaN in "
            "floating point. kl_divergence handles this case.",
            lambda logps, ref_logps, rewards, beta: (
                logps.exp() * (rewards - beta * (logps - ref_logps))
            ).sum(-1),
        ),
    ),
)

EXERCISES = (_KL, _OBJECTIVE, _LOG_PARTITION, _GIBBS)
