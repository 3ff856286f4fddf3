"""The exercises of notebook 05: the best policy, its normaliser, its worth (L16 – L19)."""

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
        (_log(0.5, 0.5), _log(1.0, 0.0)),  # q misses something that p has
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
        (_log(1.0, 0.0), float64(0.0, 5.0), 1.0),  # the reference never says it
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
        (_log(0.5, 0.5), _log(1.0, 0.0), float64(1.0, 5.0), 1.0),  # infinitely far away
    ]
    return make_cases(("logps", "ref_logps", "rewards", "beta"), plain, corners)


def _naive_kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


_KL = Exercise(
    name="kl_divergence",
    notebook="05",
    hints=(
        "A KL is an expectation under p, of how many nats p gives a response more than q does.",
        "Probabilities are logp.exp(); the sum runs over the last dimension only.",
        "Where p is 0 a response counts for nothing, but 0 times infinity is NaN: fill first.",
    ),
    solution=exact.kl_divergence,
    cases=_kl_cases,
    mistakes=(
        Mistake(
            "sign",
            "A KL divergence is never negative. Which of the two is subtracted from which?",
            lambda logp, logq: -exact.kl_divergence(logp, logq),
        ),
        Mistake(
            "swapped",
            "This is KL(q ‖ p). Which of the two distributions is the expectation under?",
            lambda logp, logq: exact.kl_divergence(logq, logp),
        ),
        Mistake(
            "not weighted",
            "Every response counts the same here. An expectation weighs each by its probability.",
            lambda logp, logq: (logp - logq).sum(-1),
        ),
        Mistake(
            "mean for sum",
            "An expectation is a weighted sum, and the weights add up to 1 already. What does "
            "dividing by the number of responses do?",
            lambda logp, logq: _naive_kl(logp, logq) / logp.shape[-1],
        ),
        Mistake(
            "log-probabilities as weights",
            "The weights are log-probabilities here. What turns them into probabilities?",
            lambda logp, logq: (logp * (logp - logq)).sum(-1),
        ),
        Mistake(
            "summed over prompts",
            "Every prompt has a KL of its own: sum over the last dimension, not over all.",
            lambda logp, logq: (logp.exp() * (logp - logq)).sum(),
        ),
        Mistake(
            "averaged over prompts",
            "Every prompt has a KL of its own: keep the prompts' dimensions.",
            lambda logp, logq: _naive_kl(logp, logq).mean(),
        ),
        Mistake(
            "bits",
            "This KL is in bits. The course's unit is the nat, from the natural logarithm.",
            lambda logp, logq: _naive_kl(logp, logq) / math.log(2),
        ),
        Mistake(
            "zero probability",
            "A response that p never gives should count as 0, but 0 · (−∞ − …) is NaN in floating "
            "point. Fill these entries before you multiply.",
            _naive_kl,
        ),
        Mistake(
            "q misses p",
            "Where q gives no probability to what p can say, the KL is infinite. Replacing "
            "every infinity or NaN by 0 hides that.",
            lambda logp, logq: (logp.exp() * (logp - logq)).nan_to_num(0.0, 0.0, 0.0).sum(-1),
        ),
    ),
)


def _log_z(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    return exact.log_partition(ref_logps, rewards, beta)


_LOG_PARTITION = Exercise(
    name="log_partition",
    notebook="05",
    hints=(
        "Z is an expectation under the reference: how is it written with log-probabilities?",
        "log Σ exp of something is one call in torch, and it does not overflow.",
    ),
    solution=exact.log_partition,
    cases=_tilt_cases,
    mistakes=(
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What stands under the reward in the exponent?",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, 1.0),
        ),
        Mistake(
            "times beta",
            "A small β should make the rewards weigh more, not less.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, 1 / beta),
        ),
        Mistake(
            "reference forgotten",
            "Z sums π_ref(y|x) exp(r/β). Your responses all count the same.",
            lambda ref_logps, rewards, beta: (rewards / beta).logsumexp(-1),
        ),
        Mistake(
            "Z, not log Z",
            "This is Z itself. Its logarithm is asked for, which cannot overflow.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, rewards, beta).exp(),
        ),
        Mistake(
            "beta log Z",
            "This is β log Z, the highest objective. Here log Z alone is asked for.",
            lambda ref_logps, rewards, beta: beta * _log_z(ref_logps, rewards, beta),
        ),
        Mistake(
            "probabilities in the exponent",
            "Inside the exponential the reference stands as a log-probability; you turned it "
            "into a probability first.",
            lambda ref_logps, rewards, beta: (ref_logps.exp() + rewards / beta).logsumexp(-1),
        ),
        Mistake(
            "sign",
            "The sign of the reward is turned round: good responses should add more to Z.",
            lambda ref_logps, rewards, beta: _log_z(ref_logps, -rewards, beta),
        ),
        Mistake(
            "summed over prompts",
            "Each prompt has its own Z(x): sum over the last dimension only.",
            lambda ref_logps, rewards, beta: (ref_logps + rewards / beta).flatten().logsumexp(0),
        ),
        Mistake(
            "overflow",
            "The formula is right, but exp(1000) is infinite and exp(−1000) is 0 in floating "
            "point. Stay in logarithms.",
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
    notebook="05",
    hints=(
        "Take the logarithm of π* = π_ref exp(r/β) / Z: products become sums.",
        "You have log_partition. Its result [...] needs a last dimension to be subtracted.",
    ),
    solution=exact.gibbs_policy,
    cases=_tilt_cases,
    mistakes=(
        Mistake(
            "not normalised",
            "The probabilities do not sum to 1. What divides by Z becomes a subtraction here.",
            lambda ref_logps, rewards, beta: ref_logps + rewards / beta,
        ),
        Mistake(
            "probabilities",
            "These are probabilities; log-probabilities are asked for.",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, beta).exp(),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What stands under the reward in the exponent?",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, 1.0),
        ),
        Mistake(
            "times beta",
            "A small β should follow the reward more, not less.",
            lambda ref_logps, rewards, beta: _star(ref_logps, rewards, 1 / beta),
        ),
        Mistake(
            "reference forgotten",
            "With equal rewards this is uniform. The optimum is the reference then.",
            lambda ref_logps, rewards, beta: (rewards / beta).log_softmax(-1),
        ),
        Mistake(
            "sign",
            "Bad responses become likelier here. Look at the sign of the reward.",
            lambda ref_logps, rewards, beta: _star(ref_logps, -rewards, beta),
        ),
        Mistake(
            "normalised over prompts",
            "Each prompt has its own Z(x), so that each row sums to 1, not the whole table.",
            lambda ref_logps, rewards, beta: (
                (ref_logps + rewards / beta).flatten().log_softmax(0).view(rewards.shape)
            ),
        ),
        Mistake(
            "overflow",
            "The formula is right, but exp(1000) is infinite and a probability of e^−2000 is 0 "
            "in floating point. Stay in logarithms from beginning to end.",
            lambda ref_logps, rewards, beta: (
                (ref_logps.exp() * (rewards / beta).exp())
                / (ref_logps.exp() * (rewards / beta).exp()).sum(-1, keepdim=True)
            ).log(),
        ),
        Mistake(
            "underflow",
            "The formula is right, but a probability of e^−2000 is 0 in floating point, and its "
            "logarithm −∞. Stay in logarithms to the end.",
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
    notebook="05",
    hints=(
        "Two terms: what the policy earns, and β times what it pays for leaving the reference.",
        "Both are expectations under the policy π. You have kl_divergence.",
    ),
    solution=exact.objective,
    cases=_objective_cases,
    mistakes=(
        Mistake(
            "sign of the KL",
            "Leaving the reference is rewarded here. It should cost something.",
            lambda logps, ref_logps, rewards, beta: _objective(logps, ref_logps, rewards, -beta),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. How dear is a nat of KL?",
            lambda logps, ref_logps, rewards, beta: _objective(logps, ref_logps, rewards, 1.0),
        ),
        Mistake(
            "KL forgotten",
            "This is the expected reward alone. What keeps the policy near the reference?",
            lambda logps, ref_logps, rewards, beta: exact.expected_reward(logps, rewards),
        ),
        Mistake(
            "swapped KL",
            "The KL is taken the wrong way round: the objective has KL(π ‖ π_ref).",
            lambda logps, ref_logps, rewards, beta: _objective(
                logps, ref_logps, rewards, beta, exact.kl_divergence(ref_logps, logps)
            ),
        ),
        Mistake(
            "reward of the reference",
            "The reward is averaged over the reference's responses. Whose responses does J judge?",
            lambda logps, ref_logps, rewards, beta: (
                exact.expected_reward(ref_logps, rewards)
                - beta * exact.kl_divergence(logps, ref_logps)
            ),
        ),
        Mistake(
            "beta on the reward",
            "β multiplies the reward here. Which of the two terms does it belong to?",
            lambda logps, ref_logps, rewards, beta: (
                beta * exact.expected_reward(logps, rewards) - exact.kl_divergence(logps, ref_logps)
            ),
        ),
        Mistake(
            "averaged over prompts",
            "J is asked for per prompt: sum over the last dimension, and keep the others.",
            lambda logps, ref_logps, rewards, beta: _objective(
                logps, ref_logps, rewards, beta
            ).mean(),
        ),
        Mistake(
            "zero probability",
            "A response that the policy never gives should count as 0, but 0 · ∞ is NaN in "
            "floating point. kl_divergence takes care of that.",
            lambda logps, ref_logps, rewards, beta: (
                logps.exp() * (rewards - beta * (logps - ref_logps))
            ).sum(-1),
        ),
    ),
)

EXERCISES = (_KL, _OBJECTIVE, _LOG_PARTITION, _GIBBS)
