"""The exercises of notebook 01: rankings from ratings and from comparisons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.training import make_generator


def rank_by_rating(items: Tensor, ratings: Tensor, n_items: int) -> Tensor:
    """Rank items from best to worst by their mean rating.

    Args:
        items: [N] index of the item that was rated.
        ratings: [N] the rating that it got.
        n_items: number of items.

    Returns:
        [n_items] item indices, best first. Ties are ordered by index; items without a rating come
        last.
    """
    ratings = ratings.double()
    sums = ratings.new_zeros(n_items).index_add(0, items, ratings)
    counts = ratings.new_zeros(n_items).index_add(0, items, torch.ones_like(ratings))
    means = torch.where(counts > 0, sums / counts.clamp(min=1), -torch.inf)
    return means.sort(descending=True, stable=True).indices


def rank_by_wins(winners: Tensor, losers: Tensor, n_items: int) -> Tensor:
    """Rank items from best to worst by the share of their comparisons that they won.

    Args:
        winners: [N] index of the item that won each comparison.
        losers: [N] index of the item that lost it.
        n_items: number of items.

    Returns:
        [n_items] item indices, best first. Ties are ordered by index; an item that was never
        compared has the share 1/2.
    """
    wins = torch.bincount(winners, minlength=n_items).double()
    losses = torch.bincount(losers, minlength=n_items).double()
    share = torch.where(wins + losses > 0, wins / (wins + losses).clamp(min=1), 0.5)
    return share.sort(descending=True, stable=True).indices


def _random_items(n: int, n_items: int, seed: int) -> Tensor:
    return torch.randint(n_items, (n,), generator=make_generator(seed))


def _random_ratings(n: int, seed: int) -> Tensor:
    return torch.randint(11, (n,), generator=make_generator(seed)).double()


def _rating_cases() -> list[Case]:
    plain = [
        (torch.tensor([0, 1, 2]), torch.tensor([2.0, 9.0, 5.0]), 3),
        (torch.tensor([0, 1, 1, 1]), torch.tensor([9.0, 4.0, 5.0, 3.0]), 2),
        (torch.tensor([1, 0, 1, 2, 0]), torch.tensor([1.0, 8.0, 9.0, 6.0, 7.0]), 3),
        (torch.tensor([0, 1, 2, 0]), torch.tensor([4.0, 4.5, 4.0, 6.0]), 4),
        (_random_items(12, 5, 1), _random_ratings(12, 2), 5),
        (_random_items(40, 8, 3), _random_ratings(40, 4), 8),
    ]
    corners = [
        (torch.tensor([1]), torch.tensor([3.0]), 2),  # one rating
        (torch.tensor([0, 1, 2]), torch.tensor([5.0, 5.0, 7.0]), 3),  # a tie
        (torch.tensor([1, 2]), torch.tensor([0.0, 0.0]), 4),  # rated 0 against not rated
        (torch.tensor([0, 1]), torch.tensor([-3.0, -1.0]), 3),  # a scale below 0
    ]
    return make_cases(("items", "ratings", "n_items"), plain, corners)


def _win_cases() -> list[Case]:
    plain = [
        (torch.tensor([1, 1, 0]), torch.tensor([0, 2, 2]), 3),
        (torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0]), 3),
        (torch.tensor([2, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 0, 0]), 3),
        (torch.tensor([0, 1, 1, 3]), torch.tensor([1, 0, 0, 0]), 5),
        (_random_items(15, 5, 5), (_random_items(15, 4, 6) + 1) % 5, 5),
        (_random_items(40, 8, 7), _random_items(40, 8, 8), 8),
    ]
    corners = [
        (torch.tensor([1]), torch.tensor([0]), 2),
        (torch.tensor([0, 1]), torch.tensor([1, 0]), 2),  # a tie
        (torch.tensor([1, 2]), torch.tensor([2, 0]), 4),  # the last was never compared
    ]
    return make_cases(("winners", "losers", "n_items"), plain, corners)


def _means(items: Tensor, ratings: Tensor, n_items: int, unrated: float = -torch.inf) -> Tensor:
    counts = torch.bincount(items, minlength=n_items)
    sums = torch.bincount(items, ratings.double(), minlength=n_items)
    return torch.where(counts > 0, sums / counts.clamp(min=1), unrated)


def _order(scores: Tensor) -> Tensor:
    return scores.sort(descending=True, stable=True).indices


def _tie_by_last(scores: Tensor) -> Tensor:
    return len(scores) - 1 - _order(scores.flip(0))


def _last_rating(items: Tensor, ratings: Tensor, n_items: int) -> Tensor:
    scores = torch.full((n_items,), -torch.inf, dtype=torch.float64)
    for item, rating in zip(items.tolist(), ratings.tolist(), strict=True):
        scores[item] = rating
    return _order(scores)


def _ranks(order: Callable) -> Callable:
    """Turn a function that returns an order into one that returns each item's rank."""
    return lambda *arguments: order(*arguments).argsort()


_BY_RATING = Exercise(
    name="rank_by_rating",
    notebook="01",
    hints=(
        "First compute each item's mean rating: the sum of its ratings, divided by how many it "
        "has.",
        "torch.bincount(items, weights=ratings, minlength=n_items) sums the ratings of each item.",
        "Sort in descending order. stable=True keeps ties in the order of their indices.",
    ),
    solution=rank_by_rating,
    cases=_rating_cases,
    mistakes=(
        Mistake(
            "worst first",
            "Your ranking starts with the worst item. Is a high rating good or bad?",
            lambda items, ratings, n_items: _order(-_means(items, ratings, n_items, torch.inf)),
        ),
        Mistake(
            "worst first, unrated first",
            "Your ranking is in ascending order, with the unrated items first. Is a high rating "
            "good or bad?",
            lambda items, ratings, n_items: _order(-_means(items, ratings, n_items)),
        ),
        Mistake(
            "ranks for order",
            "You return the rank of each item. Return the items in order instead: the best item "
            "first, then the second best, and so on.",
            _ranks(rank_by_rating),
        ),
        Mistake(
            "sum for mean",
            "You rank by the sum, so an item gains just by being rated more often. Divide by its "
            "number of ratings.",
            lambda items, ratings, n_items: _order(
                torch.bincount(items, ratings.double(), minlength=n_items)
            ),
        ),
        Mistake(
            "last rating only",
            "You use only one rating of each item. In scores[items] = … and scores[items] += …, "
            "an index that appears twice is written only once.",
            _last_rating,
        ),
        Mistake(
            "unrated as zero",
            "You treat an item without ratings as if it were rated 0, but 0 is a rating too. Put "
            "unrated items last.",
            lambda items, ratings, n_items: _order(_means(items, ratings, n_items, 0.0)),
        ),
        Mistake(
            "unrated first",
            "An item without ratings comes first: its mean is 0/0 = NaN, and torch sorts NaN as "
            "the largest value.",
            lambda items, ratings, n_items: _order(_means(items, ratings, n_items, torch.nan)),
        ),
        Mistake(
            "ties by the last",
            "Ties should be in the order of their indices.",
            lambda items, ratings, n_items: _tie_by_last(_means(items, ratings, n_items)),
        ),
    ),
)


def _shares(winners: Tensor, losers: Tensor, n_items: int, never: float = 0.5) -> Tensor:
    wins = torch.bincount(winners, minlength=n_items).double()
    played = wins + torch.bincount(losers, minlength=n_items)
    return torch.where(played > 0, wins / played.clamp(min=1), never)


_BY_WINS = Exercise(
    name="rank_by_wins",
    notebook="01",
    hints=(
        "torch.bincount(winners, minlength=n_items) counts each item's wins. How do you count "
        "its losses?",
        "The share is wins / (wins + losses), and 1/2 for an item that was never compared.",
    ),
    solution=rank_by_wins,
    cases=_win_cases,
    mistakes=(
        Mistake(
            "worst first",
            "Your ranking starts with the worst item. Did you sort in ascending order, or count "
            "losses as wins?",
            lambda winners, losers, n_items: _order(-_shares(winners, losers, n_items)),
        ),
        Mistake(
            "each item once",
            "You count at most one win and one loss for each item. In wins[winners] += 1, an "
            "index that appears twice is written only once.",
            lambda winners, losers, n_items: _order(
                _shares(winners.unique(), losers.unique(), n_items)
            ),
        ),
        Mistake(
            "swapped",
            "You count losses as wins. Which of the two arguments holds the winners?",
            lambda winners, losers, n_items: _order(_shares(losers, winners, n_items, 0.0)),
        ),
        Mistake(
            "ranks for order",
            "You return the rank of each item. Return the items in order instead: the best item "
            "first, then the second best, and so on.",
            _ranks(rank_by_wins),
        ),
        Mistake(
            "number of wins",
            "You rank by the number of wins, so an item gains just by being compared more often. "
            "Use the share that it won.",
            lambda winners, losers, n_items: _order(torch.bincount(winners, minlength=n_items)),
        ),
        Mistake(
            "wins minus losses",
            "Wins minus losses also depends on the number of comparisons. Use the share of wins.",
            lambda winners, losers, n_items: _order(
                torch.bincount(winners, minlength=n_items)
                - torch.bincount(losers, minlength=n_items)
            ),
        ),
        Mistake(
            "never compared is zero",
            "You give an item without comparisons the share 0, but it never lost. Its share "
            "should be 1/2.",
            lambda winners, losers, n_items: _order(_shares(winners, losers, n_items, 0.0)),
        ),
        Mistake(
            "never compared first",
            "An item without comparisons comes first: its share is 0/0 = NaN, and torch sorts "
            "NaN as the largest value. Its share should be 1/2.",
            lambda winners, losers, n_items: _order(_shares(winners, losers, n_items, torch.nan)),
        ),
        Mistake(
            "ties by the last",
            "Ties should be in the order of their indices.",
            lambda winners, losers, n_items: _tie_by_last(_shares(winners, losers, n_items)),
        ),
    ),
)

EXERCISES = (_BY_RATING, _BY_WINS)
