"""The exercises of notebook 02: who wins how often, and the loss of it (L7, L9)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def _pair_cases(first: str, second: str) -> list[Case]:
    plain = [
        (float64(0.5), float64(0.0)),
        (float64(0.5, -1.0), float64(1.5, -1.5)),
        (random_numbers(4, seed=1), random_numbers(4, seed=2)),
        (random_numbers(7, seed=3).float(), random_numbers(7, seed=4).float()),
    ]
    corners = [
        (float64(2.0, 2.0), float64(2.0, 1.0)),  # a tie
        (float64(0.0, 0.0), float64(0.0, 0.0)),
        (float64(1e4, -1e4), float64(-1e4, 1e4)),
        (float64(1000.0, 999.0), float64(999.0, 1000.0)),
    ]
    return make_cases((first, second), plain, corners)


_PROBABILITY = Exercise(
    name="preference_probability",
    notebook="02",
    hints=(
        "Only the difference of the two rewards counts.",
        "Divide numerator and denominator of e^r₁ / (e^r₁ + e^r₂) by e^r₁. What remains?",
    ),
    solution=losses.preference_probability,
    cases=lambda: _pair_cases("first_rewards", "second_rewards"),
    mistakes=(
        Mistake(
            "swapped",
            "The first response should become likelier to win as its own reward rises.",
            lambda first, second: torch.sigmoid(second - first),
        ),
        Mistake(
            "ratio of the rewards",
            "Rewards are logits and may be negative: they are not shares yet. What makes them "
            "positive?",
            lambda first, second: first / (first + second),
        ),
        Mistake(
            "difference only",
            "This is the log-odds, any number. A probability lies between 0 and 1.",
            lambda first, second: first - second,
        ),
        Mistake(
            "odds",
            "These are the odds, e^(difference). How does one get a probability from odds?",
            lambda first, second: torch.exp(first - second),
        ),
        Mistake(
            "tanh",
            "The curve has the right kind of shape, but runs from −1 to 1.",
            lambda first, second: torch.tanh(first - second),
        ),
        Mistake(
            "softmax over the batch",
            "The pairs of the batch compete with each other here. Each pair is a contest of its "
            "own.",
            lambda first, second: torch.softmax(first - second, 0),
        ),
        Mistake(
            "sum",
            "Adding a constant to both rewards must not change anything.",
            lambda first, second: torch.sigmoid(first + second),
        ),
        Mistake(
            "sigmoid of the first",
            "The second response has no say here.",
            lambda first, second: torch.sigmoid(first),
        ),
        Mistake(
            "always the better one",
            "This annotator never errs. Bradley–Terry's does, the more the closer the two are.",
            lambda first, second: (first > second).to(first.dtype),
        ),
        Mistake(
            "overflow",
            "The formula is right, but e^1000 is infinite in floating point, and ∞/∞ is NaN. Write "
            "it with the difference.",
            lambda first, second: first.exp() / (first.exp() + second.exp()),
        ),
    ),
)

_LOSS = Exercise(
    name="bradley_terry_loss",
    notebook="02",
    hints=(
        "The likelihood of one answer is σ(chosen − rejected). Take −log, then the mean.",
        "log σ in one step does not overflow: torch.nn.functional.logsigmoid.",
    ),
    solution=losses.bradley_terry_loss,
    cases=lambda: _pair_cases("chosen_rewards", "rejected_rewards"),
    differentiable=("chosen_rewards", "rejected_rewards"),
    mistakes=(
        Mistake(
            "sign",
            "This is the log-likelihood, to be maximised. An optimiser minimises its loss.",
            lambda chosen, rejected: F.logsigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "swapped",
            "The loss falls when the rejected response gets more reward.",
            lambda chosen, rejected: -F.logsigmoid(rejected - chosen).mean(),
        ),
        Mistake(
            "sum for mean",
            "This is a sum over the pairs. With the mean, the step does not depend on the batch.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected).sum(),
        ),
        Mistake(
            "log forgotten",
            "This is minus the mean probability. The likelihood of many answers is a product, and "
            "its logarithm a sum of logarithms.",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "log of the mean",
            "The mean stands inside the logarithm. Which of the two comes first?",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean().log(),
        ),
        Mistake(
            "sigmoid forgotten",
            "This falls without limit as the margin grows. Where is the probability?",
            lambda chosen, rejected: -(chosen - rejected).mean(),
        ),
        Mistake(
            "two separate sigmoids",
            "Each response is judged alone here. Adding a constant to both must not change the "
            "loss.",
            lambda chosen, rejected: -(F.logsigmoid(chosen) + F.logsigmoid(-rejected)).mean(),
        ),
        Mistake(
            "bits",
            "This loss is in bits. The course's unit is the nat, from the natural logarithm.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected).mean() / math.log(2),
        ),
        Mistake(
            "hinge",
            "This is a hinge loss. It asks for a margin; Bradley–Terry asks for a likelihood.",
            lambda chosen, rejected: F.relu(1 - (chosen - rejected)).mean(),
        ),
        Mistake(
            "one loss a pair",
            "One number is asked for: the mean over the pairs.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected),
        ),
        Mistake(
            "overflow",
            "The formula is right, but for a large margin the wrong way σ is 0 in floating point "
            "and its logarithm −∞. There is a function for log σ in one step.",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).log().mean(),
        ),
    ),
)

EXERCISES = (_PROBABILITY, _LOSS)
