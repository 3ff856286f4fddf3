"""The exercise of notebook 00: the score that PPO maximises, whose mean is the objective J."""

from __future__ import annotations

import math

from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def kl_penalised_score(rewards: Tensor, logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """Return the score of each sampled answer: its mean over samples of π estimates J(π).

    Args:
        rewards: [B] rewards of B answers that the policy wrote, in logits.
        logps: [B] log π(y|x) of these answers, in nats.
        ref_logps: [B] log π_ref(y|x) of the same answers.
        beta: price of one nat of KL.

    Returns:
        [B] r − β (log π − log π_ref), in logits.
    """
    return rewards - beta * (logps - ref_logps)


def _cases() -> list[Case]:
    def draw(n: int, seed: int, beta: float) -> tuple[Tensor, Tensor, Tensor, float]:
        logps, ref_logps = (-random_numbers(n, seed=seed + i).abs() - 0.1 for i in (1, 2))
        return random_numbers(n, seed=seed), logps, ref_logps, beta

    plain = [
        (float64(2.0, 1.0), float64(-0.5, -1.0), float64(-1.5, -0.5), 0.5),
        draw(3, seed=10, beta=0.1),
        draw(4, seed=20, beta=2.0),
        draw(6, seed=30, beta=0.25),
    ]
    corners = [
        (float64(1.0, -1.0), float64(-0.7, -0.7), float64(-0.7, -0.7), 0.5),  # π = π_ref
        (float64(3.0, 0.5), float64(-0.2, -1.7), float64(-40.0, -1.7), 0.5),  # the reference never
        (float64(3.0, 0.5), float64(-0.2, -1.7), float64(-math.inf, -1.7), 0.5),
        (float64(1.5), float64(-0.1), float64(-2.0), 0.5),  # a single answer
    ]
    return make_cases(("rewards", "logps", "ref_logps", "beta"), plain, corners)


_SCORE = Exercise(
    name="kl_penalised_score",
    notebook="00",
    hints=(
        "J has two terms, and each is an average over the policy's answers. What does one answer "
        "contribute to the first, and what to the second?",
        "The KL is the average of log π − log π_ref over answers of π. No sum over all answers "
        "is needed, because these answers were drawn from π.",
    ),
    solution=kl_penalised_score,
    cases=_cases,
    mistakes=(
        Mistake(
            "sign",
            "Your function pays the policy for leaving the reference. Should an answer that the "
            "policy gives more often than the reference score higher or lower than its reward?",
            lambda rewards, logps, ref_logps, beta: rewards + beta * (logps - ref_logps),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What does one nat of KL cost?",
            lambda rewards, logps, ref_logps, beta: rewards - (logps - ref_logps),
        ),
        Mistake(
            "KL forgotten",
            "You return the rewards alone. What keeps the policy close to the reference?",
            lambda rewards, logps, ref_logps, beta: rewards.clone(),
        ),
        Mistake(
            "beta on the reward",
            "You multiply the reward by β. Which of the two terms does β belong to?",
            lambda rewards, logps, ref_logps, beta: beta * rewards - (logps - ref_logps),
        ),
        Mistake(
            "reference forgotten",
            "You charge for log π alone. What is the charge if the policy is the reference?",
            lambda rewards, logps, ref_logps, beta: rewards - beta * logps,
        ),
        Mistake(
            "probabilities",
            "You subtract probabilities. Which difference is averaged in the KL?",
            lambda rewards, logps, ref_logps, beta: (
                rewards - beta * (logps.exp() - ref_logps.exp())
            ),
        ),
        Mistake(
            "ratio without its logarithm",
            "You charge for the ratio π/π_ref, which is 1 if the policy is the reference. What "
            "should the charge be then?",
            lambda rewards, logps, ref_logps, beta: rewards - beta * (logps - ref_logps).exp(),
        ),
        Mistake(
            "weighted by the probability",
            "You weight each log-ratio by π(y|x). The answers were drawn from π, so likely ones "
            "are there more often already. How often do you count the probability?",
            lambda rewards, logps, ref_logps, beta: (
                rewards - beta * logps.exp() * (logps - ref_logps)
            ),
        ),
        Mistake(
            "never below zero",
            "You set negative log-ratios to 0. The KL is never negative, but is each term of its "
            "average?",
            lambda rewards, logps, ref_logps, beta: rewards - beta * (logps - ref_logps).clamp(0),
        ),
        Mistake(
            "absolute value",
            "You charge an answer that became rarer as much as one that became more likely. Is "
            "that what the KL averages?",
            lambda rewards, logps, ref_logps, beta: rewards - beta * (logps - ref_logps).abs(),
        ),
        Mistake(
            "averaged",
            "You return one number, an estimate of J. Which shape does the docstring ask for?",
            lambda rewards, logps, ref_logps, beta: (rewards - beta * (logps - ref_logps)).mean(),
        ),
        Mistake(
            "the same charge for all",
            "You charge every answer the average log-ratio. Which answer should pay more, one that "
            "the reference often gives or one that it hardly ever gives?",
            lambda rewards, logps, ref_logps, beta: rewards - beta * (logps - ref_logps).mean(),
        ),
    ),
)

EXERCISES = (_SCORE,)
