"""A class of annotators: Krippendorff's α, one taste for all, Borda count and mean utility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

from rlhf_toy.course.widgets.annotator_files import LEFT, RIGHT, TIE, Pair
from rlhf_toy.course.widgets.annotator_pairs import pair_differences
from rlhf_toy.course.widgets.taste import feature_names, fit_taste, response_features
from rlhf_toy.envs import WordMDP

VERDICTS = (RIGHT, TIE, LEFT)  # in ascending order

Answers = Sequence[tuple[Pair, float]]  # of one student: pairs and verdicts


@dataclass(frozen=True)
class Agreement:
    """How far the students agree on the pairs that several of them answered.

    Attributes:
        alpha: Krippendorff's α: 1 if all agree, about 0 if each answers by chance, below 0 if they
            disagree more often than chance; NaN if no pair has two answers, or all are ties.
        half_width: half of its 95 % interval, by the jackknife over students; NaN without one.
        same: the share of equal answers among all pairs of students who answered the same pair.
        pairs: the number of pairs with at least two answers.
    """

    alpha: float
    half_width: float
    same: float
    pairs: int


def agreement(students: Sequence[Answers]) -> Agreement:
    """Measure how far students agree; at most one answer of each student counts per pair.

    A tie lies halfway between the two other answers (α at the interval level). Which response of a
    pair is called the first is arbitrary, so each pair counts in both orders: α does not depend on
    it, and chance means a fair coin.
    """
    units: dict[tuple, int] = {}
    ballots = []
    for answers in students:
        rows = {}
        for pair, verdict in answers:
            first_won = verdict if pair.left <= pair.right else 1 - verdict
            rows[units.setdefault(pair.key, len(units))] = VERDICTS.index(first_won)
        ballots.append((list(rows), list(rows.values())))
    counts = np.zeros((len(units), len(VERDICTS)))
    for ballot in ballots:
        counts[ballot] += 1
    without = []
    for ballot in ballots:
        counts[ballot] -= 1
        without.append(_alpha(counts))
        counts[ballot] += 1
    n = len(without)
    half = np.nan
    if n > 2:
        half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) ** 2 / n * np.var(without, ddof=1))
    answered = counts.sum(1)
    possible = (answered * (answered - 1)).sum()
    same = (counts * (counts - 1)).sum() / possible if possible else np.nan
    return Agreement(_alpha(counts), float(half), float(same), int((answered >= 2).sum()))


def _alpha(counts: np.ndarray) -> float:
    """Krippendorff's α of the numbers of verdicts on each pair, [U, 3]."""
    import krippendorff

    shared = counts[counts.sum(1) >= 2]
    if not shared[:, [0, -1]].any():
        return np.nan
    both_orders = np.concatenate([shared, shared[:, ::-1]])
    return krippendorff.alpha(
        value_counts=both_orders, value_domain=VERDICTS, level_of_measurement="interval"
    )


def pooled_weights(
    differences: Sequence[np.ndarray], verdicts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit one taste to the answers of all students, as one reward model does.

    An interval is the wider of two: Laplace's, as if all answers came from one person, and the
    cluster-robust one, in which students are the sample. Students with different tastes make the
    first too narrow, and a weight that few were asked about the second.

    Args:
        differences: for each of at least two students, [N_s, F] features of left minus right.
        verdicts: for each student, [N_s], see `fit_taste`.

    Returns:
        weights [F] in logits, and half of their 95 % intervals; NaN where no pair had the feature.
    """
    n = len(differences)
    taste = fit_taste(np.concatenate(differences), np.concatenate(verdicts))
    parts = zip(differences, verdicts, strict=True)
    gradients = np.stack([d.T @ (verdict - expit(d @ taste.weights)) for d, verdict in parts])
    between = gradients.T @ gradients * n / (n - 1)
    robust = np.diag(taste.covariance @ between @ taste.covariance)
    half_widths = np.maximum(taste.half_widths, stats.t.ppf(0.975, n - 1) * np.sqrt(robust))
    weights, half_widths = (
        np.where(taste.is_asked, values, np.nan) for values in (taste.weights, half_widths)
    )
    return weights, half_widths


def mean_weights(
    differences: Sequence[np.ndarray], verdicts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit each student's taste, and average: every student counts as strongly as they feel.

    With few answers the prior pulls a fit to 0, so read the order of the means, not their size.

    Args:
        differences, verdicts: as in `pooled_weights`.

    Returns:
        means [F] over the students who were asked about the feature, in logits, and half of their
        95 % intervals; NaN for a mean of no students, or an interval of one.
    """
    fits = [fit_taste(*answers) for answers in zip(differences, verdicts, strict=True)]
    means, half_widths = np.full((2, differences[0].shape[1]), np.nan)
    for f in range(len(means)):
        own = [fit.weights[f] for fit in fits if fit.is_asked[f]]
        if own:
            means[f] = np.mean(own)
        if len(own) > 1:
            half_widths[f] = stats.t.ppf(0.975, len(own) - 1) * stats.sem(own)
    return means, half_widths


@dataclass(frozen=True)
class ClassTaste:
    """The tastes of a class, in the features of `taste.py`; NaN where a feature was never asked.

    Attributes:
        features: names of the F features.
        pooled: [2, F] weights of the pooled fit in logits, and half of their 95 % intervals.
        mean: [2, F] the same of the mean of the students' own fits.
        reviews: the N fluent reviews of the world, one of those with the same features.
        borda: [N] how often each is preferred to a random review of the corpus, by the pooled fit.
        utility: [N] its mean utility over the students, in logits, 0 on average over the corpus.
    """

    features: tuple[str, ...]
    pooled: np.ndarray
    mean: np.ndarray
    reviews: tuple[str, ...]
    borda: np.ndarray
    utility: np.ndarray


def class_taste(world: WordMDP, students: Sequence[Answers]) -> ClassTaste:
    """Fit one taste to all answers, and one to the answers of each student.

    With one reward for all, a fit predicts shares of wins, so it orders responses by Borda count
    (Siththaranjan et al. 2024). The mean utility may order them differently.

    Args:
        world: the world of the reviews.
        students: at least two, with the answers of each.
    """
    differences = [pair_differences(world, [pair for pair, _ in answers]) for answers in students]
    verdicts = [np.array([verdict for _, verdict in answers]) for answers in students]
    pooled, mean = (np.stack(f(differences, verdicts)) for f in (pooled_weights, mean_weights))
    reviews, chances = world.fluent_reviews
    features, share = response_features(world, reviews), chances.mean(0).numpy()
    score, utility = (features @ np.nan_to_num(weights[0]) for weights in (pooled, mean))
    borda = expit(score[:, None] - score) @ share / share.sum()
    utility -= np.average(utility, weights=share)
    kept = np.sort(np.unique(features, axis=0, return_index=True)[1])
    texts = tuple(world.decode(reviews[i]) for i in kept)
    return ClassTaste(feature_names(world), pooled, mean, texts, borda[kept], utility[kept])
