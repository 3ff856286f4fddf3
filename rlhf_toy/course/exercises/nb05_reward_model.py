"""The exercises of notebook 05: the ceiling, what a pair teaches, and calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import annotators
from rlhf_toy.annotators import BradleyTerryAnnotator, NoisyAnnotator
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers
from rlhf_toy.training import make_generator


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


def calibration_error(predicted: Tensor, won: Tensor, bins: int = 10) -> Tensor:
    """Return the expected calibration error, Σ_b (n_b/N) |mean predicted − share won| (Guo 2017).

    Pairs are put into bins of equal width by their prediction. An empty bin counts nothing.

    Args:
        predicted: [N] predicted P(first wins), from 0 to 1.
        won: [N] 1 where the first won, else 0.
        bins: number of bins; a prediction of exactly 1 is in the last.

    Returns:
        scalar.
    """
    place = (predicted * bins).long().clamp(max=bins - 1)
    too_high = torch.zeros(bins, dtype=torch.float64, device=predicted.device)
    too_high.index_add_(0, place, (predicted - won).double())  # n_b (mean predicted − share won)
    return too_high.abs().sum() / len(predicted)


def _ceiling_cases() -> list[Case]:
    once, sharp = BradleyTerryAnnotator(), BradleyTerryAnnotator(temperature=0.5)
    careless = NoisyAnnotator(once, flip_probability=0.2)
    plain = [
        (once, float64(2.0, -1.0, 0.5), float64(0.0, 1.0, 1.5)),
        (sharp, float64(0.5, -0.5, 0.0), float64(0.0, 0.5, 1.5)),
        (careless, random_numbers(5, seed=1), random_numbers(5, seed=2)),
    ]
    corners = [
        (once, float64(1.0, 0.0), float64(1.0, 0.0)),  # ties
        (once, float64(1e4), float64(-1e4)),
        (NoisyAnnotator(once, flip_probability=1.0), float64(2.0, 0.0), float64(0.0, 1.0)),
    ]
    return make_cases(("annotator", "first_rewards", "second_rewards"), plain, corners)


_CEILING = Exercise(
    name="preference_ceiling",
    notebook="05",
    hints=(
        "annotator.preference_probability(first_rewards, second_rewards) gives p for each pair. "
        "Whom should you bet on, and how often are you right?",
        "On a single pair you are right with probability p or 1 − p, whichever is larger.",
    ),
    solution=annotators.preference_ceiling,
    cases=_ceiling_cases,
    mistakes=(
        Mistake(
            "always the first",
            "You always bet on the first response. What should you do where p is below 1/2?",
            lambda annotator, a, b: annotator.preference_probability(a, b).mean(),
        ),
        Mistake(
            "larger of the means",
            "You choose one side for all pairs. Can you do better by choosing for each pair?",
            lambda annotator, a, b: (
                annotator.preference_probability(a, b).mean().sub(0.5).abs() + 0.5
            ),
        ),
        Mistake(
            "share of errors",
            "This is how often the best predictor is wrong. How often is it right?",
            lambda annotator, a, b: (
                0.5 - annotator.preference_probability(a, b).sub(0.5).abs()
            ).mean(),
        ),
        Mistake(
            "distance to a coin",
            "This is how far the best predictor is above chance. What is chance?",
            lambda annotator, a, b: annotator.preference_probability(a, b).sub(0.5).abs().mean(),
        ),
        Mistake(
            "annotator ignored",
            "You compute the probability from the rewards alone. What if this annotator is sharper "
            "or more careless than σ of the difference?",
            lambda annotator, a, b: torch.sigmoid((a - b).abs()).mean(),
        ),
        Mistake(
            "follow the rewards",
            "You always bet on the response with the higher reward. Is that best for an annotator "
            "who answers the wrong way round?",
            lambda annotator, a, b: annotator.preference_probability(
                torch.maximum(a, b), torch.minimum(a, b)
            ).mean(),
        ),
        Mistake(
            "sum",
            "This is the expected number of right answers. What share of all pairs is that?",
            lambda annotator, a, b: (
                annotator.preference_probability(a, b).sub(0.5).abs().add(0.5).sum()
            ),
        ),
        Mistake(
            "one number a pair",
            "You return one number for each pair. Which single number describes all of them?",
            lambda annotator, a, b: annotator.preference_probability(a, b).sub(0.5).abs().add(0.5),
        ),
    ),
)


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


def _calibration_cases() -> list[Case]:
    generator = make_generator(7)
    many = torch.rand(24, generator=generator, dtype=torch.float64)
    answers = (torch.rand(24, generator=generator, dtype=torch.float64) < many**2).double()
    plain = [
        (float64(0.1, 0.3, 0.7, 0.9, 0.8), float64(0.0, 1.0, 1.0, 0.0, 0.0), 2),
        (float64(0.2, 0.1, 0.6, 0.4, 0.9), float64(1.0, 0.0, 1.0, 1.0, 1.0), 3),
        (many, answers, 4),
    ]
    corners = [
        (float64(1.0, 0.9), float64(1.0, 1.0), 2),  # an empty bin, and a prediction of 1
        (float64(0.7), float64(0.0), 10),
        (float64(0.0, 1.0), float64(1.0, 0.0), 5),
    ]
    return make_cases(("predicted", "won", "bins"), plain, corners)


def _by_bin(predicted: Tensor, won: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Counts of the bins that are not empty, and mean predicted − share won in each."""
    place = (predicted * bins).long().clamp(max=bins - 1)
    rows = [place == b for b in range(bins) if (place == b).any()]
    counts = torch.stack([row.double().sum() for row in rows])
    return counts, torch.stack([(predicted - won)[row].mean() for row in rows])


def _from_middles(predicted: Tensor, won: Tensor, bins: int) -> Tensor:
    place = (predicted * bins).long().clamp(max=bins - 1)
    return calibration_error((place + 0.5) / bins, won, bins)


def _last_lost(predicted: Tensor, won: Tensor, bins: int) -> Tensor:
    inside = predicted < 1
    if not inside.any():
        return torch.zeros(())
    share = inside.double().mean()
    return share * calibration_error(predicted[inside], won[inside], bins)


def _with_nan(predicted: Tensor, won: Tensor, bins: int) -> Tensor:
    place = (predicted * bins).long().clamp(max=bins - 1)
    gaps = [(predicted - won)[place == b].mean() for b in range(bins)]
    shares = [(place == b).double().mean() for b in range(bins)]
    return sum(share * gap.abs() for share, gap in zip(shares, gaps, strict=True))


_CALIBRATION = Exercise(
    name="calibration_error",
    notebook="05",
    hints=(
        "(predicted * bins).long() is the number of each pair's bin. Where does a prediction of "
        "exactly 1 belong?",
        "In each bin, compare the mean prediction with the share that won. How much should a bin "
        "with few pairs count?",
    ),
    solution=calibration_error,
    cases=_calibration_cases,
    mistakes=(
        Mistake(
            "no bins",
            "You compare each prediction with a single answer. A coin predicted at 0.5 would have "
            "an error of 0.5. What do you compare within a bin?",
            lambda predicted, won, bins: (predicted - won).abs().mean(),
        ),
        Mistake(
            "errors cancel",
            "Bins that predict too much cancel bins that predict too little. Where should the "
            "absolute value be?",
            lambda predicted, won, bins: (predicted - won).mean().abs(),
        ),
        Mistake(
            "signed",
            "Your result is a signed sum, in which bins cancel. Where should the absolute value "
            "be?",
            lambda predicted, won, bins: (predicted - won).mean(),
        ),
        Mistake(
            "bins count alike",
            "Every bin counts the same, also one with a single pair. By what should you weight it?",
            lambda predicted, won, bins: _by_bin(predicted, won, bins)[1].abs().mean(),
        ),
        Mistake(
            "largest",
            "This is the error of the worst bin. What is the mean over all pairs?",
            lambda predicted, won, bins: _by_bin(predicted, won, bins)[1].abs().max(),
        ),
        Mistake(
            "squares",
            "You square the difference of each bin. What unit does the result have then?",
            lambda predicted, won, bins: (
                (_by_bin(predicted, won, bins)[0] * _by_bin(predicted, won, bins)[1] ** 2).sum()
                / len(predicted)
            ),
        ),
        Mistake(
            "middles of the bins",
            "You use the middle of each bin as its prediction. What did the model really predict "
            "there, on average?",
            _from_middles,
        ),
        Mistake(
            "empty bins",
            "Your result is NaN where a bin is empty, because the mean of nothing is. What should "
            "an empty bin add?",
            _with_nan,
        ),
        Mistake(
            "last edge lost",
            "A prediction of exactly 1 is in none of your bins. In which should it be?",
            _last_lost,
        ),
    ),
)

EXERCISES = (_CEILING, _GRADIENT, _CALIBRATION)
