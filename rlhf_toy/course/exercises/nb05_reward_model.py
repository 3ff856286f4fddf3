"""The exercises of notebook 05: accuracy of a reward model, and the gradient it learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def reward_gradient(chosen_rewards: Tensor, rejected_rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the Bradley–Terry loss with respect to the rewards, by formula.

    With p = σ(chosen − rejected) it is −(1 − p)/B at the chosen and +(1 − p)/B at the rejected
    reward, so it is large where the model did not expect the answer.

    Args:
        chosen_rewards: [B] in logits.
        rejected_rewards: [B] in logits.

    Returns:
        gradient at chosen_rewards [B], and gradient at rejected_rewards [B].
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
    notebook="05",
    hints=(
        "The model is right about a pair if the chosen response has the higher reward. What "
        "should it get for a tie?",
        "torch.sign of the difference is 1, 0 or −1. Map these to 1, 1/2 and 0.",
    ),
    solution=losses.preference_accuracy,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "ties count as right",
            "A model that gives every response the reward 0 would always be right. How much "
            "should a tie count?",
            lambda chosen, rejected: (chosen >= rejected).double().mean(),
        ),
        Mistake(
            "ties count as wrong",
            "You count a tie as wrong. With a tie the model can only toss a coin, which is right "
            "half of the time.",
            lambda chosen, rejected: (chosen > rejected).double().mean(),
        ),
        Mistake(
            "swapped",
            "This is the share of pairs that the model gets wrong.",
            lambda chosen, rejected: ((rejected - chosen).sign() / 2 + 0.5).mean(),
        ),
        Mistake(
            "count",
            "This is the number of pairs that are right. What share of all pairs is that?",
            lambda chosen, rejected: ((chosen - rejected).sign() / 2 + 0.5).sum(),
        ),
        Mistake(
            "percent",
            "This is a percentage. Return a share between 0 and 1.",
            lambda chosen, rejected: 100 * ((chosen - rejected).sign() / 2 + 0.5).mean(),
        ),
        Mistake(
            "mean probability",
            "This is the mean probability of the chosen response. Accuracy asks only whether "
            "that probability is above 1/2.",
            lambda chosen, rejected: torch.sigmoid(chosen - rejected).mean(),
        ),
        Mistake(
            "sign of the chosen",
            "You use only the chosen reward, but its zero point is arbitrary. What should you "
            "compare it with?",
            lambda chosen, rejected: (chosen > 0).double().mean(),
        ),
        Mistake(
            "mean sign",
            "This goes from −1 to 1: it is the share of right pairs minus the share of wrong ones.",
            lambda chosen, rejected: (chosen - rejected).sign().mean(),
        ),
        Mistake(
            "one verdict a pair",
            "You return one number for each pair. Return a single number, the mean over the pairs.",
            lambda chosen, rejected: (chosen - rejected).sign() / 2 + 0.5,
        ),
    ),
)


def _both(surprise: Tensor) -> tuple[Tensor, Tensor]:
    return -surprise, surprise


_GRADIENT = Exercise(
    name="reward_gradient",
    notebook="05",
    hints=(
        "d/du log σ(u) = 1 − σ(u) = σ(−u). What is u here, and what is its derivative with "
        "respect to each reward?",
        "The loss is a mean over B pairs, with a minus sign in front.",
    ),
    solution=reward_gradient,
    cases=_pair_cases,
    returns=("gradient at chosen_rewards", "gradient at rejected_rewards"),
    mistakes=(
        Mistake(
            "sign",
            "Gradient descent with this gradient would lower the chosen reward. It should raise "
            "it.",
            lambda chosen, rejected: _both(-torch.sigmoid(rejected - chosen) / len(chosen)),
        ),
        Mistake(
            "mean forgotten",
            "This is the gradient of the sum over the pairs. The loss is the mean.",
            lambda chosen, rejected: _both(torch.sigmoid(rejected - chosen)),
        ),
        Mistake(
            "p for 1 − p",
            "Your gradient is largest for pairs that the model already gets right. It should be "
            "largest for the others.",
            lambda chosen, rejected: _both(torch.sigmoid(chosen - rejected) / len(chosen)),
        ),
        Mistake(
            "same sign",
            "You push both rewards in the same direction. Adding the same constant to both does "
            "not change the loss, so the two gradients of a pair must sum to 0.",
            lambda chosen, rejected: (
                -torch.sigmoid(rejected - chosen) / len(chosen),
                -torch.sigmoid(rejected - chosen) / len(chosen),
            ),
        ),
        Mistake(
            "derivative of the sigmoid",
            "p (1 − p) is the derivative of σ, but the loss contains log σ.",
            lambda chosen, rejected: _both(
                torch.sigmoid(chosen - rejected) * torch.sigmoid(rejected - chosen) / len(chosen)
            ),
        ),
        Mistake(
            "sigmoid forgotten",
            "Every pair gets the same gradient. What does the derivative of log σ depend on?",
            lambda chosen, rejected: _both(torch.ones_like(chosen) / len(chosen)),
        ),
        Mistake(
            "overflow",
            "The formula is right, but e^20000 is infinite in floating point, and ∞/∞ is NaN. "
            "Which torch function computes this ratio safely?",
            lambda chosen, rejected: _both(
                (rejected - chosen).exp() / (1 + (rejected - chosen).exp()) / len(chosen)
            ),
        ),
        Mistake(
            "overflow of each reward",
            "The formula is right, but e^10000 is infinite in floating point, and ∞/∞ is NaN. "
            "Only the difference matters, so subtract before you exponentiate.",
            lambda chosen, rejected: _both(
                (1 - chosen.exp() / (chosen.exp() + rejected.exp())) / len(chosen)
            ),
        ),
    ),
)

EXERCISES = (_ACCURACY, _GRADIENT)
