"""The exercises of notebook 02: the Bradley–Terry probability and its loss."""

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
        "The probability depends only on the difference between the two rewards.",
        "Divide the numerator and the denominator of e^r₁ / (e^r₁ + e^r₂) by e^r₁. Which "
        "function of the difference is left?",
    ),
    solution=losses.preference_probability,
    cases=lambda: _pair_cases("first_rewards", "second_rewards"),
    mistakes=(
        Mistake(
            "swapped",
            "The first response should be more likely to win when its own reward rises.",
            lambda first, second: torch.sigmoid(second - first),
        ),
        Mistake(
            "ratio of the rewards",
            "Rewards are logits and can be negative, so their ratio is not a probability. Which "
            "function makes them positive?",
            lambda first, second: first / (first + second),
        ),
        Mistake(
            "difference only",
            "This is the log-odds, which can be any number. A probability lies between 0 and 1.",
            lambda first, second: first - second,
        ),
        Mistake(
            "odds",
            "These are the odds, e^(difference). How do you turn odds into a probability?",
            lambda first, second: torch.exp(first - second),
        ),
        Mistake(
            "tanh",
            "Your curve has the right kind of shape, but it goes from −1 to 1.",
            lambda first, second: torch.tanh(first - second),
        ),
        Mistake(
            "softmax over the batch",
            "Your pairs compete with each other across the batch. Compute the probability of "
            "each pair on its own.",
            lambda first, second: torch.softmax(first - second, 0),
        ),
        Mistake(
            "sum",
            "Adding the same constant to both rewards should not change the probability.",
            lambda first, second: torch.sigmoid(first + second),
        ),
        Mistake(
            "sigmoid of the first",
            "Your result does not depend on the second reward.",
            lambda first, second: torch.sigmoid(first),
        ),
        Mistake(
            "always the better one",
            "This annotator is never wrong. A Bradley–Terry annotator sometimes is, and more "
            "often when the two rewards are close.",
            lambda first, second: (first > second).to(first.dtype),
        ),
        Mistake(
            "overflow",
            "The formula is right, but e^1000 is infinite in floating point, and ∞/∞ is NaN. "
            "Rewrite it as a function of the difference.",
            lambda first, second: first.exp() / (first.exp() + second.exp()),
        ),
    ),
)

_LOSS = Exercise(
    name="bradley_terry_loss",
    notebook="02",
    hints=(
        "The likelihood of one comparison is σ(chosen − rejected). Take −log of it, then the "
        "mean over the pairs.",
        "torch.nn.functional.logsigmoid computes log σ in one step and does not overflow.",
    ),
    solution=losses.bradley_terry_loss,
    cases=lambda: _pair_cases("chosen_rewards", "rejected_rewards"),
    differentiable=("chosen_rewards", "rejected_rewards"),
    mistakes=(
        Mistake(
            "sign",
            "This is the log-likelihood, which you want to maximise. An optimiser minimises its "
            "loss.",
            lambda chosen, rejected: F.logsigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "swapped",
            "Your loss falls when the rejected response gets a higher reward. It should rise.",
            lambda chosen, rejected: -F.logsigmoid(rejected - chosen).mean(),
        ),
        Mistake(
            "sum for mean",
            "This is the sum over the pairs. Take the mean, so that the gradient does not grow "
            "with the size of the batch.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected).sum(),
        ),
        Mistake(
            "log forgotten",
            "This is minus the mean probability. The likelihood of all comparisons is a product, "
            "so its logarithm is a sum of logarithms.",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "log of the mean",
            "You take the logarithm of a mean. Which of the two operations comes first?",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean().log(),
        ),
        Mistake(
            "sigmoid forgotten",
            "Your loss falls without limit as the margin grows. Where does a probability come in?",
            lambda chosen, rejected: -(chosen - rejected).mean(),
        ),
        Mistake(
            "two separate sigmoids",
            "You judge each response on its own. Adding the same constant to both rewards should "
            "not change the loss.",
            lambda chosen, rejected: -(F.logsigmoid(chosen) + F.logsigmoid(-rejected)).mean(),
        ),
        Mistake(
            "bits",
            "This loss is in bits. This course uses nats, which come from the natural logarithm.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected).mean() / math.log(2),
        ),
        Mistake(
            "hinge",
            "This is a hinge loss, which asks for a margin of 1. The Bradley–Terry loss comes "
            "from a likelihood.",
            lambda chosen, rejected: F.relu(1 - (chosen - rejected)).mean(),
        ),
        Mistake(
            "one loss a pair",
            "You return one loss for each pair. Return a single number, the mean over the pairs.",
            lambda chosen, rejected: -F.logsigmoid(chosen - rejected),
        ),
        Mistake(
            "overflow",
            "The formula is right, but if the rejected reward is far above the chosen one, σ is "
            "0 in floating point and its logarithm is −∞. Torch has a function that computes log "
            "σ in one step.",
            lambda chosen, rejected: -torch.sigmoid(chosen - rejected).log().mean(),
        ),
    ),
)

EXERCISES = (_PROBABILITY, _LOSS)
