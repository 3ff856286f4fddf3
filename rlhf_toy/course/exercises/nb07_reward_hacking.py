"""The exercises of notebook 07: best-of-n, and what it costs (L15)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_toy import best_of_n
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers
from rlhf_toy.training import make_generator


def best_of_n_kl(n: int) -> float:
    """log n − (n − 1)/n, in nats."""
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
    notebook="07",
    hints=(
        "It is a difference of two terms, and 0 for n = 1: the best of one is any response.",
        "The first term is a natural logarithm, the second a share below 1.",
    ),
    solution=best_of_n_kl,
    cases=_kl_cases,
    mistakes=(
        Mistake(
            "log n alone",
            "log n is what it would cost if the best of n always were one of the top 1/n. Usually "
            "it is not quite: something is still to be taken off. (`//` would round that to 0.)",
            lambda n: math.log(n),
        ),
        Mistake(
            "added",
            "Two terms that are added cannot stay below log n. What is the sign of the second?",
            lambda n: math.log(n) + (n - 1) / n,
        ),
        Mistake(
            "sign",
            "A KL divergence is never negative. Which term is taken from which?",
            lambda n: (n - 1) / n - math.log(n),
        ),
        Mistake(
            "not divided",
            "n − 1 grows faster than log n, and the result becomes negative. What is n − 1 a "
            "share of?",
            lambda n: math.log(n) - (n - 1),
        ),
        Mistake(
            "1/n for (n − 1)/n",
            "At n = 1 the KL must be 0: nothing is chosen. Check the second term there.",
            lambda n: math.log(n) - 1 / n,
        ),
        Mistake(
            "n/(n + 1)",
            "At n = 1 the KL must be 0. Which share is 0 for n = 1 and near 1 for a large n?",
            lambda n: math.log(n) - n / (n + 1),
        ),
        Mistake(
            "one off",
            "The draws are n, not n − 1: look at the logarithm again.",
            lambda n: math.log(n - 1) - (n - 1) / n,
        ),
        Mistake(
            "bits",
            "This logarithm is to the base 2. The course counts in nats.",
            lambda n: math.log2(n) - (n - 1) / n,
        ),
        Mistake(
            "base 10",
            "This logarithm is to the base 10. The course counts in nats.",
            lambda n: math.log10(n) - (n - 1) / n,
        ),
    ),
)

_PICK = Exercise(
    name="pick_best_of_n",
    notebook="07",
    hints=(
        "First the place of the highest score in each row, then the response that stands there.",
        "scores.argmax(1) is [B]. Each row of the batch needs its own place: pair the places with "
        "torch.arange(B).",
    ),
    solution=best_of_n.pick_best_of_n,
    cases=_pick_cases,
    mistakes=(
        Mistake(
            "worst",
            "This takes the lowest score.",
            lambda responses, scores: _rows(responses, scores.argmin(1)),
        ),
        Mistake(
            "always the first",
            "The scores are not used: this is the first of each n.",
            lambda responses, scores: responses[:, 0],
        ),
        Mistake(
            "always the last",
            "The scores are not used: this is the last of each n.",
            lambda responses, scores: responses[:, -1],
        ),
        Mistake(
            "by absolute value",
            "A score of −3 is worse than one of 1. What does an absolute value do to it?",
            lambda responses, scores: _rows(responses, scores.abs().argmax(1)),
        ),
        Mistake(
            "one winner for all",
            "Every prompt has n responses of its own, and its own best one: the maximum is to be "
            "taken in each row, not over the whole batch.",
            lambda responses, scores: responses.flatten(0, 1)[scores.argmax()],
        ),
        Mistake(
            "places",
            "These are the places of the best, not the responses that stand there.",
            lambda responses, scores: scores.argmax(1),
        ),
        Mistake(
            "scores",
            "These are the highest scores, not the responses that got them.",
            lambda responses, scores: scores.amax(1),
        ),
        Mistake(
            "same places for every row",
            "responses[:, places] looks up all places in all rows, [B, B, T]. Each row wants its "
            "own place only.",
            lambda responses, scores: responses[:, scores.argmax(1)],
        ),
        Mistake(
            "dimension left",
            "The result has the shape [B, 1, T]. Of n responses one is left: where is the "
            "dimension that should be gone?",
            lambda responses, scores: _rows(responses, scores.argmax(1))[:, None],
        ),
        Mistake(
            "last of a tie",
            "Where two scores tie, the first of them counts. Which one does your search leave?",
            lambda responses, scores: _rows(
                responses, scores.shape[1] - 1 - scores.flip(1).argmax(1)
            ),
        ),
    ),
)

EXERCISES = (_PICK, _KL)
