"""The exercises of notebook 09: best-of-n and the KL it costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_toy import best_of_n
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers
from rlhf_toy.training import make_generator


def best_of_n_kl(n: int) -> float:
    """Return log n − (n − 1)/n, an upper bound on KL(best-of-n ‖ π_ref) in nats.

    It is tight where no single response is likely to be drawn twice (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def _kl_cases() -> list[Case]:
    return make_cases(("n",), [(2,), (3,), (4,), (10,), (128,)], [(1,), (10**6,)])


def _responses(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 9, shape, generator=make_generator(seed))


def _pick_cases() -> list[Case]:
    plain = [
        (torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), float64([0.5, 2.0], [-1.0, -3.0])),
        (torch.tensor([[[4, 0], [1, 1], [2, 3]]]), float64([-2.0, -0.5, -1.0])),
        (_responses(3, 4, 3, seed=1), random_numbers(3, 4, seed=2)),
        (_responses(4, 3, 5, seed=3), random_numbers(4, 3, seed=4).float()),
        (_responses(3, 3, 3, seed=5), random_numbers(3, 3, seed=6) - 5),
    ]
    corners = [
        (torch.tensor([[[1, 2], [3, 4], [5, 6]]]), float64([1.0, 2.0, 2.0])),  # a tie
        (torch.tensor([[[1, 2]], [[3, 4]]]), float64([1.0], [2.0])),  # n = 1
        (_responses(2, 3, 2, seed=7), float64([-1e9, -1e8, -1e10], [0.0, 1e9, 1e8])),
    ]
    return make_cases(("responses", "scores"), plain, corners)


def _rows(responses: Tensor, index: Tensor) -> Tensor:
    return responses[torch.arange(len(responses)), index]


_KL = Exercise(
    name="best_of_n_kl",
    notebook="09",
    hints=(
        "It is a difference of two terms. For n = 1 it is 0: with one draw there is no choice, so "
        "best-of-1 is the reference itself.",
        "The first term is a natural logarithm. The second is a fraction below 1.",
    ),
    solution=best_of_n_kl,
    cases=_kl_cases,
    mistakes=(
        Mistake(
            "log n alone",
            "log n would be the KL if the best of n always came from the top 1/n of all "
            "responses. Often it does not, so the KL is smaller. Which term is missing? (If you "
            "wrote `//`, it rounded that term to 0.)",
            lambda n: math.log(n),
        ),
        Mistake(
            "added",
            "You add the two terms, so your result is above log n. It should stay below. Which "
            "sign does the second term have?",
            lambda n: math.log(n) + (n - 1) / n,
        ),
        Mistake(
            "sign",
            "A KL divergence is never negative. Which term should be subtracted from which?",
            lambda n: (n - 1) / n - math.log(n),
        ),
        Mistake(
            "not divided",
            "n − 1 grows faster than log n, so your result becomes negative. The second term "
            "should be a fraction: n − 1 out of what?",
            lambda n: math.log(n) - (n - 1),
        ),
        Mistake(
            "1/n instead of (n − 1)/n",
            "For n = 1 the KL must be 0, because there is nothing to choose from. What is your "
            "second term for n = 1?",
            lambda n: math.log(n) - 1 / n,
        ),
        Mistake(
            "n/(n + 1)",
            "For n = 1 the KL must be 0. Which fraction is 0 for n = 1 and close to 1 for a large "
            "n?",
            lambda n: math.log(n) - n / (n + 1),
        ),
        Mistake(
            "one off",
            "There are n draws, not n − 1. Look at the logarithm again.",
            lambda n: math.log(n - 1) - (n - 1) / n,
        ),
        Mistake(
            "bits",
            "Your logarithm has base 2. The course measures KL in nats.",
            lambda n: math.log2(n) - (n - 1) / n,
        ),
        Mistake(
            "base 10",
            "Your logarithm has base 10. The course measures KL in nats.",
            lambda n: math.log10(n) - (n - 1) / n,
        ),
    ),
)

_PICK = Exercise(
    name="pick_best_of_n",
    notebook="09",
    hints=(
        "First find the index of the highest score in each row. Then take the response at that "
        "index.",
        "scores.argmax(1) has shape [B]. Each row of the batch needs its own index, so use the "
        "indices together with torch.arange(B).",
    ),
    solution=best_of_n.pick_best_of_n,
    cases=_pick_cases,
    mistakes=(
        Mistake(
            "worst",
            "You take the response with the lowest score.",
            lambda responses, scores: _rows(responses, scores.argmin(1)),
        ),
        Mistake(
            "always the first",
            "You do not use the scores: this is always the first of the n responses.",
            lambda responses, scores: responses[:, 0],
        ),
        Mistake(
            "always the last",
            "You do not use the scores: this is always the last of the n responses.",
            lambda responses, scores: responses[:, -1],
        ),
        Mistake(
            "by absolute value",
            "A score of −3 is worse than a score of 1. What does the absolute value do to them?",
            lambda responses, scores: _rows(responses, scores.abs().argmax(1)),
        ),
        Mistake(
            "one winner for all",
            "Every row has n responses of its own, and its own best one. Take the maximum in each "
            "row, not over the whole batch.",
            lambda responses, scores: responses.flatten(0, 1)[scores.argmax()],
        ),
        Mistake(
            "places",
            "You return the indices of the best responses, not the responses themselves.",
            lambda responses, scores: scores.argmax(1),
        ),
        Mistake(
            "scores",
            "You return the highest scores, not the responses that got them.",
            lambda responses, scores: scores.amax(1),
        ),
        Mistake(
            "same places for every row",
            "responses[:, index] looks up all indices in every row, so its shape is [B, B, T]. "
            "Each row should use only its own index.",
            lambda responses, scores: responses[:, scores.argmax(1)],
        ),
        Mistake(
            "dimension left",
            "Your result has shape [B, 1, T]. You keep one of n responses, so that dimension "
            "should disappear.",
            lambda responses, scores: _rows(responses, scores.argmax(1))[:, None],
        ),
        Mistake(
            "last of a tie",
            "If two scores tie, the first one counts. Which one does your code pick?",
            lambda responses, scores: _rows(
                responses, scores.shape[1] - 1 - scores.flip(1).argmax(1)
            ),
        ),
    ),
)

EXERCISES = (_PICK, _KL)
