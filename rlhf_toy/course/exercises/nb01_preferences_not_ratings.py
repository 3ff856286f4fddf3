"""The exercises of notebook 01: who agrees with whom, how good a ranking is, whose scale it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64
from rlhf_toy.training import make_generator


def pairs_right(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the share of pairs of items that the scores put in the right order.

    Args:
        scores: [n] estimated score of each item. A pair with equal scores counts half, which is
            what tossing a coin for it would give on average.
        truth: [n] true reward of each item, no two equal.

    Returns:
        scalar in [0, 1]; 1/2 is chance.
    """
    i, j = torch.triu_indices(len(scores), len(scores), offset=1)
    agreement = (scores[i] - scores[j]).sign() * (truth[i] - truth[j]).sign()
    return ((1 + agreement.double()) / 2).mean()


def standardise_ratings(raters: Tensor, ratings: Tensor) -> Tensor:
    """Remove each rater's offset and gain from their ratings.

    Args:
        raters: [N] index of the person who gave each rating.
        ratings: [N] the ratings.

    Returns:
        [N] ratings minus the mean of their rater, divided by the rater's standard deviation
        (population form: divide by the number of ratings). 0 for a rater whose ratings are all
        equal or who gave only one.
    """
    result = torch.zeros_like(ratings)
    for rater in raters.unique():
        theirs = raters == rater
        centred = ratings[theirs] - ratings[theirs].mean()
        spread = centred.square().mean().sqrt()
        if spread > 1e-9:
            result[theirs] = centred / spread
    return result


def cohen_kappa(first: Tensor, second: Tensor) -> Tensor:
    """Return the agreement of two annotators, corrected for chance (Cohen 1960).

    Args:
        first: [N] integer label that the first annotator gave to each item.
        second: [N] label that the second one gave to the same item.

    Returns:
        scalar (observed − chance) / (1 − chance), where `observed` is the share of equal labels and
        `chance` the share expected if both kept their own label frequencies and ignored the item.
        The two use at least two different labels between them.
    """
    observed = (first == second).double().mean()
    labels = torch.cat([first, second]).unique()
    frequencies = [(who[:, None] == labels).double().mean(0) for who in (first, second)]
    chance = (frequencies[0] * frequencies[1]).sum()
    return (observed - chance) / (1 - chance)


def _random_labels(n: int, highest: int, seed: int) -> Tensor:
    return torch.randint(highest + 1, (n,), generator=make_generator(seed))


def _pair_cases() -> list[Case]:
    plain = [
        (float64(3.0, 1.0, 2.0), float64(0.5, -1.0, 1.5)),
        (float64(1.0, 1.0, 2.0), float64(0.0, 1.0, 2.0)),
        (float64(4.0, 4.0, 6.0, 5.0), float64(1.0, -1.0, 0.0, 2.0)),
        (_random_labels(6, 4, 1).double(), float64(0.3, -0.2, 1.1, 0.7, -1.4, 2.0)),
        (_random_labels(9, 4, 2).double(), torch.arange(9).double()),
    ]
    corners = [
        (float64(5.0, 5.0, 5.0), float64(1.0, 2.0, 3.0)),  # no opinion at all
        (float64(9.0, 8.0), float64(-2.0, -3.0)),
        (float64(1.0, 2.0, 3.0), float64(0.3, 0.2, 0.1)),  # all wrong
    ]
    return make_cases(("scores", "truth"), plain, corners)


def _rating_cases() -> list[Case]:
    plain = [
        (torch.tensor([0, 0, 1, 1]), float64(8.0, 10.0, 1.0, 2.0)),
        (torch.tensor([0, 1, 0, 1, 0]), float64(7.0, 2.0, 9.0, 6.0, 5.0)),
        (torch.tensor([2, 0, 0, 2, 1, 1, 2]), float64(4.0, 8.0, 9.0, 6.0, 0.0, 5.0, 5.0)),
        (torch.arange(12) % 3, _random_labels(12, 10, 3).double()),
    ]
    corners = [
        (torch.tensor([0, 1, 1]), float64(7.0, 3.0, 5.0)),  # one rating only
        (torch.tensor([0, 0, 1, 1]), float64(6.0, 6.0, 1.0, 9.0)),  # always the same rating
        (torch.tensor([7, 3, 7, 3]), float64(1.0, 0.0, 3.0, 10.0)),  # indices with gaps
    ]
    return make_cases(("raters", "ratings"), plain, corners)


def _label_cases() -> list[Case]:
    plain = [
        (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])),
        (torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])),
        (torch.tensor([1, 2, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 0, 2, 2])),
        (_random_labels(12, 2, 4), _random_labels(12, 3, 5)),
    ]
    corners = [
        (torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0])),  # always the same
        (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0])),  # never the same
        (torch.tensor([1, 1, 1]), torch.tensor([1, 0, 1])),  # one says the same to everything
        (torch.tensor([8, 9, 10, 9]), torch.tensor([2, 3, 9, 3])),  # other parts of the scale
    ]
    return make_cases(("first", "second"), plain, corners)


def _signs(scores: Tensor, truth: Tensor) -> Tensor:
    """+1 for a pair in the right order, −1 for a wrong one, 0 for equal scores: [n (n − 1) / 2]."""
    i, j = torch.triu_indices(len(scores), len(scores), offset=1)
    return ((scores[i] - scores[j]).sign() * (truth[i] - truth[j]).sign()).double()


def _neighbours_only(scores: Tensor, truth: Tensor) -> Tensor:
    steps = scores[truth.argsort()].diff().sign().double()
    return ((1 + steps) / 2).mean()


def _whole_table(scores: Tensor, truth: Tensor) -> Tensor:
    signs = (scores[:, None] - scores).sign() * (truth[:, None] - truth).sign()
    return ((1 + signs) / 2).mean()


_PAIRS = Exercise(
    name="pairs_right",
    notebook="01",
    hints=(
        "torch.triu_indices(n, n, offset=1) lists every pair i < j once.",
        "(scores[i] − scores[j]).sign() says what the scores think of a pair. What does it have in "
        "common with the sign of the true difference, if the order is right? If it is wrong?",
        "The product of the two signs is 1, 0 or −1. Map these to 1, 1/2 and 0.",
    ),
    solution=pairs_right,
    cases=_pair_cases,
    mistakes=(
        Mistake(
            "equal is wrong",
            "You count a pair with equal scores as wrong. What would a coin toss give on average?",
            lambda scores, truth: (_signs(scores, truth) > 0).double().mean(),
        ),
        Mistake(
            "equal is right",
            "You count a pair with equal scores as right. What score would then be best for you: "
            "the same one for every item?",
            lambda scores, truth: (_signs(scores, truth) >= 0).double().mean(),
        ),
        Mistake(
            "equal is dropped",
            "You leave out pairs with equal scores. What would happen to a method that gives an "
            "opinion on one easy pair only?",
            lambda scores, truth: (
                (_signs(scores, truth) > 0).sum() / (_signs(scores, truth) != 0).sum()
            ),
        ),
        Mistake(
            "tau",
            "You return Kendall's τ: right pairs minus wrong pairs, from −1 to 1. Which share of "
            "the pairs is right?",
            lambda scores, truth: _signs(scores, truth).mean(),
        ),
        Mistake(
            "share wrong",
            "You return the share of pairs in the wrong order. Do you compare with the negative of "
            "the true difference?",
            lambda scores, truth: (1 - _signs(scores, truth)).mean() / 2,
        ),
        Mistake(
            "itself",
            "You also compare each item with itself, which always counts half. How many pairs of "
            "different items are there?",
            _whole_table,
        ),
        Mistake(
            "neighbours only",
            "You compare only items that are neighbours in the true order. Which other pairs are "
            "there?",
            _neighbours_only,
        ),
    ),
)


def _per_rater(what: Callable) -> Callable:
    """Apply a function of one rater's ratings to each rater's ratings."""

    def answer(raters: Tensor, ratings: Tensor) -> Tensor:
        result = torch.zeros_like(ratings)
        for rater in raters.unique():
            result[raters == rater] = what(ratings[raters == rater])
        return result

    return answer


def _safe(numerator: Tensor, spread: Tensor) -> Tensor:
    return numerator / spread if spread > 0 else torch.zeros_like(numerator)


def _all_as_one(raters: Tensor, ratings: Tensor) -> Tensor:
    return _safe(ratings - ratings.mean(), ratings.std(correction=0))


def _spread_of_all(raters: Tensor, ratings: Tensor) -> Tensor:
    return _per_rater(lambda x: x - x.mean())(raters, ratings) / ratings.std(correction=0)


_STANDARDISE = Exercise(
    name="standardise_ratings",
    notebook="01",
    hints=(
        "Loop over raters.unique(). raters == rater selects the ratings of one person.",
        "The mean of one person's ratings estimates their offset. What estimates their gain?",
        "std(correction=0) divides by the number of ratings. What do you return if it is 0?",
    ),
    solution=standardise_ratings,
    cases=_rating_cases,
    mistakes=(
        Mistake(
            "offset only",
            "You remove each rater's offset but not the gain. What do a rater's largest and "
            "smallest rating have to do with it?",
            _per_rater(lambda x: x - x.mean()),
        ),
        Mistake(
            "gain only",
            "You divide by each rater's spread but keep the offset. What is the mean of a rater's "
            "ratings after your function?",
            _per_rater(lambda x: _safe(x, x.std(correction=0))),
        ),
        Mistake(
            "all as one",
            "You use one mean and one spread for all ratings together. Whose offset does that "
            "remove?",
            _all_as_one,
        ),
        Mistake(
            "spread of all",
            "You use each rater's mean, but the spread of all ratings together. Does a timid "
            "rater's spread change?",
            _spread_of_all,
        ),
        Mistake(
            "sample spread",
            "Your spread divides by one less than the number of ratings. Which form does the "
            "docstring ask for?",
            _per_rater(lambda x: _safe(x - x.mean(), x.std() if len(x) > 1 else x.sum() * 0)),
        ),
        Mistake(
            "variance",
            "You divide by the variance. Which unit does the result have, and what should it be?",
            _per_rater(lambda x: _safe(x - x.mean(), x.var(correction=0))),
        ),
        Mistake(
            "no spread",
            "Your function returns NaN for a rater whose ratings are all equal: 0/0. What do such "
            "ratings say about the items?",
            _per_rater(lambda x: (x - x.mean()) / x.std(correction=0)),
        ),
    ),
)


def _shares(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The share of equal labels, and both annotators' label frequencies: scalar, [L], [L]."""
    labels = torch.cat([first, second]).unique()
    one, two = ((who[:, None] == labels).double().mean(0) for who in (first, second))
    return (first == second).double().mean(), one, two


def _with_chance(
    chance_of: Callable, combine: Callable = lambda o, c: (o - c) / (1 - c)
) -> Callable:
    """A κ with another chance agreement, or with another formula."""

    def answer(first: Tensor, second: Tensor) -> Tensor:
        observed, one, two = _shares(first, second)
        return combine(observed, chance_of(one, two))

    return answer


_KAPPA = Exercise(
    name="cohen_kappa",
    notebook="01",
    hints=(
        "First compute the observed agreement: the share of items with equal labels.",
        "Suppose both annotators drew their labels blindly, each with their own frequencies. How "
        "likely is it that both draw label 0? Label 1?",
        "Sum over labels: (share of it in first) × (share of it in second). That is `chance`.",
    ),
    solution=cohen_kappa,
    cases=_label_cases,
    mistakes=(
        Mistake(
            "raw agreement",
            "You return the observed agreement. How high would it be for two people who answer "
            "blindly?",
            lambda first, second: _shares(first, second)[0],
        ),
        Mistake(
            "equal labels",
            "Your chance agreement is one over the number of labels. Do the annotators use every "
            "label equally often?",
            _with_chance(lambda one, two: 1 / len(one)),
        ),
        Mistake(
            "pooled frequencies",
            "You pool the labels of both annotators (that is Scott's π). Does each of them have "
            "their own frequencies?",
            _with_chance(lambda one, two: ((one + two) / 2).square().sum()),
        ),
        Mistake(
            "not divided",
            "You return observed minus chance. What is the most that this can be, and what should "
            "perfect agreement give?",
            _with_chance(lambda one, two: one @ two, lambda o, c: o - c),
        ),
        Mistake(
            "divided by chance",
            "You divide by the chance agreement. What should perfect agreement give?",
            _with_chance(lambda one, two: one @ two, lambda o, c: (o - c) / c),
        ),
        Mistake(
            "first one twice",
            "Your chance agreement uses the first annotator's label frequencies only. How does the "
            "second one answer?",
            _with_chance(lambda one, two: one @ one),
        ),
        Mistake(
            "one label only",
            "Your chance agreement counts the largest label only. Can they not agree by chance on "
            "the others?",
            _with_chance(lambda one, two: one[-1] * two[-1]),
        ),
    ),
)

EXERCISES = (_KAPPA, _PAIRS, _STANDARDISE)
