"""Raters and scales: do ratings or comparisons rank better, from equally many judgements?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest, norm, rankdata, sem, t

from rlhf_toy.annotators import Population, Rater
from rlhf_toy.checks import check_choice, check_count, check_number, check_type
from rlhf_toy.course.widgets.parts import Explorer, in_a_row, labelled, panels
from rlhf_toy.plots import COLOUR, COLOURS, MARKERS
from rlhf_toy.training import make_generator

N_RATERS = 20
STUDIES = 200  # with fixed seeds: the same random numbers for every setting of the sliders
RATINGS, COMPARISONS = "ratings", "comparisons"
RESPONSES = {"A": 1.25, "B": 0.75, "C": 0.25, "D": -0.25, "E": -0.75, "F": -1.25}
MARGINS = {"left": 0.055, "right": 0.985, "bottom": 0.16, "top": 0.9, "wspace": 0.3}
LEGEND = {"fontsize": 8, "loc": "lower center", "bbox_to_anchor": (0.47, 0.99), "handlelength": 1.6}
BY_HAND = "set by the sliders"


# The raters


@dataclass(frozen=True)
class Scales:
    """How a population of raters uses the scale from 0 to 10; see `Rater`."""

    offset: float = 5.0  # mean of the raters' offsets, in points
    offset_spread: float = 2.5  # their standard deviation
    gain: float = 1.0  # mean of the gains, in points per logit
    gain_spread: float = 0.6  # gains are up to this fraction above and below the mean
    noise: float = 0.7  # of every rater's impressions, in logits
    rounding: float = 1.0  # every rater's grid, in points


PRESETS = {
    "own scales": Scales(),
    "one scale, careful": Scales(5.0, 0.0, 1.5, 0.0, 0.7, 0.1),
    "one scale, three grades": Scales(5.0, 0.0, 1.5, 0.0, 0.7, 5.0),
    "one scale, very noisy": Scales(5.0, 0.0, 1.0, 0.0, 2.5, 1.0),
}


def make_raters(scales: Scales) -> list[Rater]:
    """Return `N_RATERS` raters, offsets at the quantiles of a normal distribution, gains even.

    Gains are assigned independently of the offsets. Nothing is sampled.

    Raises:
        TypeError: scales that are not `Scales`.
    """
    check_type("scales", scales, Scales, "a Scales")
    quantiles = norm.ppf((np.arange(N_RATERS) + 0.5) / N_RATERS)
    offsets = scales.offset + scales.offset_spread * quantiles / quantiles.std()
    places = np.random.default_rng(0).permutation(N_RATERS)
    gains = scales.gain * (1 + scales.gain_spread * np.linspace(-1, 1, N_RATERS)[places])
    return [
        Rater(offset, gain, scales.noise, scales.rounding)
        for offset, gain in zip(offsets.tolist(), gains.tolist(), strict=True)
    ]


# The contest


@dataclass(frozen=True)
class Contest:
    """Many studies of the same responses, each with as many ratings as comparisons.

    Attributes:
        scores: for each method [S, n], the mean ratings or the shares of comparisons won.
        pairs_right: for each method [S], the share of pairs that the scores order correctly; equal
            scores count half.
        order_right: for each method bool [S], whether the whole order is correct.
    """

    scores: dict[str, np.ndarray]
    pairs_right: dict[str, np.ndarray]
    order_right: dict[str, np.ndarray]


def judgement_counts(n: int) -> list[int]:
    """Return numbers of judgements that n responses share equally, and so do all their pairs."""
    check_count("n", n, 2)
    unit = math.lcm(n, math.comb(n, 2))
    unit *= math.ceil(24 / unit)
    return [unit * factor for factor in (1, 2, 4, 8)]


def run_contest(scales: Scales, rewards: Sequence[float], judgements: int) -> Contest:
    """Run `STUDIES` studies in which random members of a population make each judgement.

    Responses are rated in turn and pairs compared in turn, so each gets the same number of
    judgements. (Then the shares of wins have the same order as Bradley–Terry's rewards.)

    Args:
        scales: how the population uses its scale.
        rewards: [n] true rewards in logits, best first and no two equal.
        judgements: the number of ratings, and of comparisons: one of `judgement_counts(n)`.

    Raises:
        TypeError: scales that are not `Scales`.
        ValueError: another number of judgements.
    """
    if judgements not in (counts := judgement_counts(len(rewards))):
        raise ValueError(f"judgements must be one of {counts}, got {judgements!r}")
    population = Population(make_raters(scales))
    truth, n = torch.tensor(list(rewards), dtype=torch.float64), len(rewards)
    items = torch.arange(judgements) % n
    shown = truth[items].expand(STUDIES, judgements)
    ratings = population.rate(shown, make_generator(2)).view(STUDIES, -1, n)

    pairs = torch.tensor(list(combinations(range(n), 2)))
    first, second = pairs[torch.arange(judgements) % len(pairs)].T
    probability = population.preference_probability(truth[first], truth[second])
    chance = torch.rand(STUDIES, judgements, generator=make_generator(3), dtype=torch.float64)
    is_first = (chance < probability).double()
    wins = torch.zeros(STUDIES, n, dtype=torch.float64)
    wins.index_add_(1, first, is_first).index_add_(1, second, 1 - is_first)

    means = ratings.mean(1).numpy().round(9)  # equal ratings, equal means
    scores = {RATINGS: means, COMPARISONS: (wins * n / (2 * judgements)).numpy().round(9)}
    i, j = np.triu_indices(n, 1)
    signs = {name: np.sign(value[:, i] - value[:, j]) for name, value in scores.items()}
    return Contest(
        scores=scores,
        pairs_right={name: (1 + sign).mean(1) / 2 for name, sign in signs.items()},
        order_right={name: (sign > 0).all(1) for name, sign in signs.items()},
    )


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of [S] values and the ends of its 95 % interval."""
    mean, half = float(values.mean()), float(t.ppf(0.975, len(values) - 1) * sem(values))
    return mean, mean - half, mean + half


def share_interval(hits: np.ndarray) -> tuple[float, float, float]:
    """Return the share of True in bool [S] and the ends of its 95 % interval (Wilson 1927)."""
    ends = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return float(hits.mean()), float(ends.low), float(ends.high)


# Words


def contest_words(contest: Contest, names: Sequence[str], judgements: int, study: int) -> str:
    """Describe the figure in numbers."""
    text = f"{judgements} judgements by {N_RATERS} raters, {STUDIES} studies. "
    for method in (RATINGS, COMPARISONS):
        pairs = _percent(*mean_interval(contest.pairs_right[method]))
        orders = _percent(*share_interval(contest.order_right[method]))
        text += (
            f"{method.capitalize()} put {pairs} of the pairs in the right order, "
            f"and get the whole order right in {orders} of the studies. "
        )
    difference = contest.pairs_right[COMPARISONS] - contest.pairs_right[RATINGS]
    mean, low, high = mean_interval(difference)
    if low <= 0 <= high:
        text += "On the pairs neither is ahead: the 95% interval of the difference contains 0. "
    else:
        ahead = COMPARISONS if mean > 0 else RATINGS
        low, high = sorted((abs(low), abs(high)))
        text += (
            f"Ahead on the pairs: {ahead}, by {100 * abs(mean):.1f} percentage points "
            f"({100 * low:.1f} to {100 * high:.1f}). "
        )
    orders = [
        f"{method} say {order_text(contest.scores[method][study], names)}"
        for method in (RATINGS, COMPARISONS)
    ]
    return text + f"The truth is {' > '.join(names)}. In study {study + 1} {' and '.join(orders)}."


def order_text(scores: np.ndarray, names: Sequence[str]) -> str:
    """Write scores [n] as an order from best to worst, equal ones with =."""
    order = np.argsort(-scores, kind="stable")
    text = names[order[0]]
    for before, after in pairwise(order):
        text += (" = " if scores[before] == scores[after] else " > ") + names[after]
    return text


def _percent(mean: float, low: float, high: float) -> str:
    return f"{mean:.1%} ({max(low, 0):.1%} to {min(high, 1):.1%})"


# Drawing


def draw_contest(
    figure: Figure,
    contest: Contest,
    scales: Scales,
    rewards: Mapping[str, float],
    study: int,
) -> None:
    """Draw the raters' scales, the two rankings of one study, and how often each is right.

    Args:
        figure: an empty figure.
        contest: the studies.
        scales: of the population.
        rewards: the responses' true rewards by name, best first.
        study: the study that is shown, from 0.
    """
    left, middle, right = panels(figure, 3, MARGINS)
    _draw_scales(left, scales, list(rewards.values()))
    _draw_rankings(middle, contest, list(rewards), study)
    _draw_shares(right, contest)


def _draw_scales(axes: Axes, scales: Scales, rewards: Sequence[float]) -> None:
    """Each rater's rating against the true reward, without the noise."""
    reach = max(map(abs, rewards)) + 0.25
    grid = torch.linspace(-reach, reach, 121, dtype=torch.float64)
    raters = [replace(rater, noise=0.0) for rater in make_raters(scales)]
    ratings = torch.stack([rater.rate(grid, make_generator(0)) for rater in raters])
    axes.plot(grid, ratings.T, color="0.55", linewidth=0.8, alpha=0.6)
    for rater, name, style, colour in (
        (-1, "generous", "--", "#6699CC"),
        (0, "strict", ":", "#004488"),
    ):
        axes.plot(grid, ratings[rater], style, color=colour, linewidth=2.5, label=name)
    axes.plot(grid, ratings.mean(0), color="black", label="mean")
    axes.plot(rewards, [-0.4] * len(rewards), "^", color="0.3", markersize=6, clip_on=False)
    axes.set_ylim(-0.4, 10.4)
    axes.set_yticks([0, 5, 10])
    axes.set_xlabel("true reward, logits (▲: the responses)", fontsize=9)
    axes.set_ylabel("rating, without noise", fontsize=9)
    axes.legend(ncols=3, columnspacing=1.0, **LEGEND)


def _draw_rankings(axes: Axes, contest: Contest, names: Sequence[str], study: int) -> None:
    """Rank by ratings, true rank and rank by comparisons, one line for each response."""
    ranks = [
        rankdata(-contest.scores[RATINGS][study]),
        np.arange(1, len(names) + 1),
        rankdata(-contest.scores[COMPARISONS][study]),
    ]
    for i, name in enumerate(names):
        places = [rank[i] for rank in ranks]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot([0, 1, 2], places, color=colour, marker=marker, markersize=7)
        axes.text(
            1,
            places[1],
            name,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": colour},
        )
    bottom = len(names) + 0.7
    for place, text in ((0, RATINGS), (1, "truth"), (2, COMPARISONS)):
        axes.text(place, bottom, text, ha="center", va="top", fontsize=10)
    axes.text(1, 0.3, f"rank, in study {study + 1}", ha="center", fontsize=9)
    axes.set_xlim(-0.25, 2.25)
    axes.set_ylim(bottom, 0.4)
    axes.set_axis_off()  # drawing ticks would take longer than all of this


def _draw_shares(axes: Axes, contest: Contest) -> None:
    hatches = {RATINGS: "", COMPARISONS: "//"}
    for k, method in enumerate((RATINGS, COMPARISONS)):
        rows = [
            mean_interval(contest.pairs_right[method]),
            share_interval(contest.order_right[method]),
        ]
        places = np.array([0.0, 1.0]) + (-0.2, 0.2)[k]
        means, low, high = 100 * np.array(rows).T
        axes.bar(
            places,
            means,
            0.4,
            color=COLOUR[method],
            hatch=hatches[method],
            edgecolor="w",
            label=method,
            yerr=np.clip([means - low, high - means], 0, None),
            capsize=3,
        )
        for place, mean, top in zip(places, means, high, strict=True):
            axes.text(place, top + 1.5, f"{mean:.0f}%", ha="center", fontsize=9)
    axes.plot([-0.45, 0.45], [50, 50], ":", color="0.2", linewidth=1.5)
    axes.text(0.47, 50, "chance", fontsize=8, va="center")
    axes.set_xticks([0, 1], ["pairs", "whole order"])
    axes.set_ylim(0, 110)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel(f"% right, in {STUDIES} studies", fontsize=9)
    axes.legend(ncols=2, **LEGEND)
    axes.grid(visible=False, axis="x")


# The widget


class RatersAndScales(Explorer):
    """Sliders for how people use a scale, and the rankings that ratings and comparisons give.

    Args:
        rewards: true rewards in logits of 3 to 7 responses, by short names; no two equal.
        population: the setting to start with, one of `PRESETS`.

    Attributes:
        scales: the values of the sliders.
        contest: the studies that are shown.
        sliders: by the names of the fields of `Scales`.
        population, judgements, study: the other controls.
        controls: all controls, in a row.

    Raises:
        TypeError: rewards that are not a dict of numbers.
        ValueError: rewards that are too few, too many, equal or not finite; an unknown population.
    """

    SIZE = (9.0, 3.4)

    def __init__(
        self, rewards: Mapping[str, float] = RESPONSES, population: str = "own scales"
    ) -> None:
        self._rewards = _check_rewards(rewards)
        check_choice("population", population, PRESETS)
        self._made_for: tuple[Scales, int] | None = None  # what the contest belongs to
        self._make_controls(population)
        super().__init__([self.controls], [self.judgements, self.study])

    @property
    def scales(self) -> Scales:
        # A browser sends 0.6000000000000001 back for 0.6.
        return Scales(**{name: round(one.value, 6) for name, one in self.sliders.items()})

    def _make_controls(self, population: str) -> None:
        self.population = labelled(
            ipywidgets.Dropdown, "population", options=[*PRESETS, BY_HAND], value=population
        )
        counts = judgement_counts(len(self._rewards))
        self.judgements = labelled(
            ipywidgets.SelectionSlider, "judgements", options=counts, value=counts[1]
        )
        self.study = labelled(ipywidgets.IntSlider, "study shown", value=1, min=1, max=STUDIES)
        limits = {
            "offset": ("mean offset", 0.0, 10.0, 0.5),
            "offset_spread": ("offset spread", 0.0, 5.0, 0.1),
            "gain": ("mean gain", 0.1, 5.0, 0.1),
            "gain_spread": ("gain spread", 0.0, 0.9, 0.1),
            "noise": ("noise", 0.0, 4.0, 0.1),
            "rounding": ("rounding", 0.0, 5.0, 0.1),
        }
        start = asdict(PRESETS[population])
        self.sliders = {
            name: labelled(
                ipywidgets.FloatSlider,
                description,
                value=start[name],
                min=low,
                max=high,
                step=step,
                readout_format=".1f",
            )
            for name, (description, low, high, step) in limits.items()
        }
        self.population.observe(self._take_preset, "value")
        for one in self.sliders.values():
            one.observe(self._move, "value")
        self.controls = in_a_row(
            [self.population, *self.sliders.values(), self.judgements, self.study]
        )

    def _take_preset(self, _: object) -> None:
        """Move the sliders to the chosen population, and draw once."""
        if self.population.value == BY_HAND:
            return
        with self._at_once():
            for name, value in asdict(PRESETS[self.population.value]).items():
                self.sliders[name].value = value

    def _move(self, _: object) -> None:
        """React to a reader who moves a slider: the population is no longer the preset."""
        if self._waits or self.scales == self._made_for[0]:
            return
        self.population.value = BY_HAND
        self._show()

    def _compute(self) -> None:
        wanted = self.scales, self.judgements.value
        if wanted != self._made_for:  # another study alone needs no new contest
            self.contest = run_contest(wanted[0], list(self._rewards.values()), wanted[1])
            self._made_for = wanted

    def _draw(self, figure: Figure) -> None:
        study = self.study.value - 1
        draw_contest(figure, self.contest, self._made_for[0], self._rewards, study)

    def _describe(self) -> str:
        names, judgements = list(self._rewards), self.judgements.value
        return contest_words(self.contest, names, judgements, self.study.value - 1)


def _check_rewards(rewards: Mapping[str, float]) -> dict[str, float]:
    """The rewards by name, best first; a TypeError or ValueError if they cannot be ranked."""
    check_type("rewards", rewards, Mapping, f"a dict such as {RESPONSES}")
    for name, reward in rewards.items():
        check_number(f"the reward of {name!r}", reward)
    values = list(rewards.values())
    if not 3 <= len(values) <= 7 or len(set(values)) < len(values):
        raise ValueError(f"rewards must be 3 to 7 different numbers, got {values}")
    order = sorted(rewards.items(), key=lambda pair: -pair[1])
    return {str(name): float(reward) for name, reward in order}
