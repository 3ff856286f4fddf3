"""The exercises of notebook 04: how often a reward model is right, and what it learns from (L9)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def reward_gradient(chosen_rewards: Tensor, rejected_rewards: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the Bradley–Terry loss in the rewards, by hand (L9).

    With p = σ(chosen − rejected) it is −(1 − p)/B at the chosen and +(1 − p)/B at the rejected: the
    loss pulls where the model was surprised.

    Args:
        chosen_rewards: [B] in logits.
        rejected_rewards: [B].

    Returns:
        [B] and [B].
    """
    surprise = torch.sigmoid(rejected_rewards - chosen_rewards) / len(chosen_rewards)
    return -surprise, surprise


def _pair_cases() -> list[Case]:
    plain = [
        (float64(0.5, 2.0), float64(0.0, -1.0)),
        (float64(-0.5, 1.0, -2.0), float64(1.5, 0.5, -3.0)),
        (random_numbers(4, seed=1), random_numbers(4, seed=2)),
        (random_numbers(9, seed=3).float(), random_numbers(9, seed=4).float()),
    ]
    corners = [
        (float64(1.0), float64(0.0)),
        (float64(2.0, 2.0), float64(2.0, 1.0)),  # a tie
        (float64(0.0, 0.0), float64(0.0, 0.0)),
        (float64(1e4, -1e4), float64(-1e4, 1e4)),
    ]
    return make_cases(("chosen_rewards", "rejected_rewards"), plain, corners)


_ACCURACY = Exercise(
    name="preference_accuracy",
    notebook="04",
    hints=(
        "A pair is right if the chosen response has the higher reward. And if they are equal?",
        "torch.sign of the difference is 1, 0 or −1. Map that to 1, 1/2 and 0.",
    ),
    solution=losses.preference_accuracy,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "ties count as right",
            "A model that says 0 for everything would be right always. What should a tie count?",
            lambda chosen, rejected: (chosen >= rejected).double().mean(),
        ),
        Mistake(
            "ties count as wrong",
            "A tie is a coin toss, which is right half of the time.",
            lambda chosen, rejected: (chosen > rejected).double().mean(),
        ),
        Mistake(
            "swapped",
            "This counts the pairs that the model gets wrong.",
            lambda chosen, rejected: ((rejected - chosen).sign() / 2 + 0.5).mean(),
        ),
        Mistake(
            "count",
            "This is how many pairs are right. Which share of all is that?",
            lambda chosen, rejected: ((chosen - rejected).sign() / 2 + 0.5).sum(),
        ),
        Mistake(
            "percent",
            "A share between 0 and 1 is asked for.",
            lambda chosen, rejected: 100 * ((chosen - rejected).sign() / 2 + 0.5).mean(),
        ),
        Mistake(
            "mean probability",
            "This is the model's mean confidence. Accuracy asks only which side of 1/2 it is on.",
            lambda chosen, rejected: torch.sigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "sign of the chosen",
            "The chosen reward alone says nothing: its zero is arbitrary. Compare it.",
            lambda chosen, rejected: (chosen > 0).double().mean(),
        ),
        Mistake(
            "mean sign",
            "The mean sign runs from −1 to 1: right minus wrong.",
            lambda chosen, rejected: (chosen - rejected).sign().mean(),
        ),
        Mistake(
            "one verdict a pair",
            "One number is asked for: the mean over the pairs.",
            lambda chosen, rejected: (chosen - rejected).sign() / 2 + 0.5,
        ),
    ),
)


def _both(surprise: Tensor) -> tuple[Tensor, Tensor]:
    return -surprise, surprise


_GRADIENT = Exercise(
    name="reward_gradient",
    notebook="04",
    hints=(
        "d/du log σ(u) = 1 − σ(u) = σ(−u). What is u, and what is its derivative in each reward?",
        "The loss is a mean over B pairs, and has a minus.",
    ),
    solution=reward_gradient,
    cases=_pair_cases,
    returns=("gradient at chosen_rewards", "gradient at rejected_rewards"),
    mistakes=(
        Mistake(
            "sign",
            "Stepping against this gradient would lower the chosen reward.",
            lambda chosen, rejected: _both(-torch.sigmoid(rejected - chosen) / len(chosen)),
        ),
        Mistake(
            "mean forgotten",
            "This is the gradient of the sum over the pairs. The loss is their mean.",
            lambda chosen, rejected: _both(torch.sigmoid(rejected - chosen)),
        ),
        Mistake(
            "p for 1 − p",
            "Pairs that the model already gets right pull hardest here. It should be the others.",
            lambda chosen, rejected: _both(torch.sigmoid(chosen - rejected) / len(chosen)),
        ),
        Mistake(
            "same sign",
            "Both rewards are pushed the same way. Adding a constant to both must not matter, so "
            "the two gradients of a pair must cancel.",
            lambda chosen, rejected: (
                -torch.sigmoid(rejected - chosen) / len(chosen),
                -torch.sigmoid(rejected - chosen) / len(chosen),
            ),
        ),
        Mistake(
            "derivative of the sigmoid",
            "p (1 − p) is the derivative of σ. The loss has log σ.",
            lambda chosen, rejected: _both(
                torch.sigmoid(chosen - rejected) * torch.sigmoid(rejected - chosen) / len(chosen)
            ),
        ),
        Mistake(
            "sigmoid forgotten",
            "All pairs pull alike here. What does the derivative of log σ depend on?",
            lambda chosen, rejected: _both(torch.ones_like(chosen) / len(chosen)),
        ),
        Mistake(
            "overflow",
            "The formula is right, but e^20000 is infinite in floating point, and ∞/∞ is NaN.",
            lambda chosen, rejected: _both(
                (rejected - chosen).exp() / (1 + (rejected - chosen).exp()) / len(chosen)
            ),
        ),
        Mistake(
            "overflow of each reward",
            "The formula is right, but e^10000 is infinite in floating point, and ∞/∞ is NaN. Only "
            "the difference matters, so take it before you exponentiate.",
            lambda chosen, rejected: _both(
                (1 - chosen.exp() / (chosen.exp() + rejected.exp())) / len(chosen)
            ),
        ),
    ),
)

EXERCISES = (_ACCURACY, _GRADIENT)
