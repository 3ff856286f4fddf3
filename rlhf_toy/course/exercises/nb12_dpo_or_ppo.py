"""The exercises of notebook 12: a paired interval, and where a spread comes from."""

from __future__ import annotations

from scipy import stats
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def paired_interval(first: Tensor, second: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Return the mean of first − second, and half of its confidence interval (Student's t).

    `first` and `second` [S] are two methods' results for the same S seeds; `confidence` is, for
    example, 0.95. Both results are scalars.
    """
    difference = first - second
    n = len(difference)
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return difference.mean(), quantile * difference.std() / n**0.5


def split_spread(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance within the rows, and that between the rows without the rows' own noise.

    `gaps` [G, R] has R runs in each of G groups. The mean of R numbers varies by within/R even if
    all rows are alike, so this is taken off. Both scalars are unbiased, so `between` can come out
    below 0 (one-way random effects).
    """
    within = gaps.var(1).mean()
    return within, gaps.mean(1).var() - within / gaps.shape[1]


def _paired_cases() -> list[Case]:
    plain = [
        (float64(3.0, 5.0, 4.0), float64(2.0, 1.0, 3.0), 0.95),
        (float64(0.2, 0.5, 0.9, 0.4), float64(0.1, 0.5, 0.6, 0.6), 0.9),
        (random_numbers(10, seed=1), random_numbers(10, seed=2), 0.95),
        (random_numbers(30, seed=3).float(), random_numbers(30, seed=4).float(), 0.8),
    ]
    corners = [
        (float64(1.0, 4.0), float64(2.0, 1.0), 0.95),  # two seeds
        (float64(1.0, 9.0, -5.0), float64(0.0, 8.0, -6.0), 0.95),  # the same difference every time
        (float64(1e6, 3e6, 2e6), float64(1e6, 1e6, 5e6), 0.99),
    ]
    return make_cases(("first", "second", "confidence"), plain, corners)


def _split_cases() -> list[Case]:
    plain = [
        (float64([1.0, 3.0], [6.0, 4.0], [9.0, 8.0]),),
        (float64([1.0, 2.0, 6.0], [5.0, 4.0, 9.0]),),
        (random_numbers(6, 3, seed=5) + 3 * random_numbers(6, 1, seed=6),),
        (random_numbers(10, 2, seed=7).float(),),
    ]
    corners = [
        (float64([2.0, 2.0], [5.0, 5.0]),),  # every training ends alike
        (float64([1.0, 5.0], [5.0, 1.0], [1.0, 5.0]),),  # the data make no difference: below 0
        (random_numbers(5, 4, seed=8) + 100,),
    ]
    return make_cases(("gaps",), plain, corners)


def _interval(error: str):
    """An interval with one error."""

    def answer(first: Tensor, second: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        difference, n = first - second, len(first)
        tail = confidence if error == "one-sided" else (1 + confidence) / 2
        quantile = float(stats.t.ppf(tail, n if error == "degrees" else n - 1))
        spread = difference.std(correction=0 if error == "biased" else 1)
        if error == "unpaired":
            spread = (first.var() + second.var()).sqrt()
        return difference.mean(), quantile * spread / (1 if error == "of one seed" else n**0.5)

    return answer


_PAIRED = Exercise(
    name="paired_interval",
    notebook="12",
    hints=(
        "Both methods had the same reference and pairs in a seed. Which S numbers compare them?",
        "The standard error of a mean of S numbers is their standard deviation over √S.",
        "scipy.stats.t.ppf(q, S − 1) is the quantile q. Which q leaves out 2.5 % at each end?",
    ),
    solution=paired_interval,
    cases=_paired_cases,
    returns=("mean", "half"),
    mistakes=(
        Mistake(
            "unpaired",
            "You add the two methods' variances, as for runs that have nothing in common. What do "
            "two runs with the same seed share, and which numbers are free of it?",
            _interval("unpaired"),
        ),
        Mistake(
            "degrees of freedom",
            "You use Student's t with S degrees of freedom. How many of the S deviations from "
            "their own mean are free?",
            _interval("degrees"),
        ),
        Mistake(
            "divided by S",
            "You divide the squared deviations by S. They are measured from the sample's own "
            "mean, which makes them too small. What do you divide by?",
            _interval("biased"),
        ),
        Mistake(
            "one-sided",
            "You leave out 1 − confidence at each end. How much is that in total?",
            _interval("one-sided"),
        ),
        Mistake(
            "spread of one seed",
            "Your interval is about the difference in a single seed. How much does the mean over "
            "S seeds vary?",
            _interval("of one seed"),
        ),
        Mistake(
            "whole width",
            "This is the distance between both ends. How far is each from the mean?",
            lambda *given: (paired_interval(*given)[0], 2 * paired_interval(*given)[1]),
        ),
    ),
)


def _split(gaps: Tensor, correction: int = 1, share: float | None = None) -> tuple[Tensor, Tensor]:
    within = gaps.var(1, correction=correction).mean()
    share = 1 / gaps.shape[1] if share is None else share
    return within, gaps.mean(1).var(correction=correction) - share * within


_SPLIT = Exercise(
    name="split_spread",
    notebook="12",
    hints=(
        "Within a row only the training differs. Average the rows' variances (gaps.var(1)).",
        "Take the variance of the rows' means. Would it be 0 if all data sets were alike?",
        "A mean of R noisy numbers has the variance within/R. Subtract that.",
    ),
    solution=split_spread,
    cases=_split_cases,
    returns=("within", "between"),
    mistakes=(
        Mistake(
            "training noise left in",
            "You return the variance of the rows' means. Suppose that all data sets were alike: "
            "would these means be equal?",
            lambda gaps: _split(gaps, share=0.0),
        ),
        Mistake(
            "too much taken off",
            "You take off the variance of a single run. How much does a mean of R runs vary?",
            lambda gaps: _split(gaps, share=1.0),
        ),
        Mistake(
            "divided by n",
            "You divide squared deviations by their number. With few runs that is too small. What "
            "does torch divide by, unless you tell it otherwise?",
            lambda gaps: _split(gaps, correction=0),
        ),
        Mistake(
            "rows and columns",
            "You compare the columns. Do the runs of one column share their data?",
            lambda gaps: split_spread(gaps.T),
        ),
        Mistake(
            "clipped",
            "You cut `between` at 0. Over many studies your mean would then be too large. May an "
            "unbiased estimate of a small variance be negative?",
            lambda gaps: (split_spread(gaps)[0], split_spread(gaps)[1].clamp(min=0)),
        ),
        Mistake(
            "standard deviations",
            "These are standard deviations, which do not add up. Which measure of spread does?",
            lambda gaps: (gaps.std(1).mean(), gaps.mean(1).std()),
        ),
        Mistake(
            "all pooled",
            "Your first number is the variance of all runs, whatever their data. In which runs "
            "does only the training differ?",
            lambda gaps: (gaps.var(), split_spread(gaps)[1]),
        ),
    ),
)

EXERCISES = (_PAIRED, _SPLIT)
