"""Raters and scales: who ranks better at the same number of judgements, and when (L1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, pairwise

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest, norm, rankdata, sem, t

from rlhf_toy.annotators import Population, Rater
from rlhf_toy.course.widgets.parts import InteractiveCell, picture, png, say, words
from rlhf_toy.plots import COLOURS, MARKERS
from rlhf_toy.training import make_generator

N_RATERS = 20
STUDIES = 200  # with fixed seeds: the same chance for every setting of the sliders
RATINGS, COMPARISONS = "ratings", "comparisons"
COLOUR = {RATINGS: COLOURS[1], COMPARISONS: COLOURS[0]}
RESPONSES = {"A": 1.25, "B": 0.75, "C": 0.25, "D": -0.25, "E": -0.75, "F": -1.25}
MARGINS = {"left": 0.055, "right": 0.985, "bottom": 0.16, "top": 0.9, "wspace": 0.3}
LEGEND = {"fontsize": 8, "loc": "lower center", "bbox_to_anchor": (0.47, 0.99), "handlelength": 1.6}
BY_HAND = "as the sliders stand"


# The people


@dataclass(frozen=True)
class Scales:
    """How a population of raters uses the scale from 0 to 10; see `Rater`."""

    offset: float = 5.0  # mean of the raters' offsets, in points
    offset_spread: float = 2.5  # their standard deviation
    gain: float = 1.0  # mean of the gains, in points per logit
    gain_spread: float = 0.6  # gains lie up to this share above and below the mean
    noise: float = 0.7  # of everybody's impressions, in logits
    rounding: float = 1.0  # everybody's grid, in points


PRESETS = {
    "own scales": Scales(),
    "one scale, careful": Scales(5.0, 0.0, 1.5, 0.0, 0.7, 0.1),
    "one scale, three grades": Scales(5.0, 0.0, 1.5, 0.0, 0.7, 5.0),
    "one scale, very noisy": Scales(5.0, 0.0, 1.0, 0.0, 2.5, 1.0),
}


def make_raters(scales: Scales) -> list[Rater]:
    """`N_RATERS` people: offsets at the quantiles of a normal distribution, gains evenly spread.

    Who has which gain has nothing to do with the offset, and nothing is drawn.
    """
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
    """Many studies of the same responses, each by ratings and by as many comparisons.

    Attributes:
        scores: for each method [S, n]: mean ratings, or shares of comparisons won.
        pairs_right: for each method [S], the share of the pairs that the scores put in the right
            order; equal scores count half.
        order_right: for each method bool [S], whether the whole order is right.
    """

    scores: dict[str, np.ndarray]
    pairs_right: dict[str, np.ndarray]
    order_right: dict[str, np.ndarray]


def judgement_counts(n: int) -> list[int]:
    """Numbers of judgements that give each of n responses, and each pair, its equal share."""
    unit = math.lcm(n, math.comb(n, 2))
    unit *= math.ceil(24 / unit)
    return [unit * factor for factor in (1, 2, 4, 8)]


def run_contest(scales: Scales, rewards: Sequence[float], judgements: int) -> Contest:
    """`STUDIES` studies; each judgement is made by a member drawn at random.

    Ratings go to the responses in turn and comparisons to the pairs in turn, so that chance leaves
    nobody out. (Every pair being compared equally often, the order of the shares of wins is that of
    Bradley–Terry's rewards as well.)

    Args:
        scales: of the population.
        rewards: [n] true rewards in logits, best first and no two equal.
        judgements: how many ratings, and how many comparisons: one of `judgement_counts(n)`.
    """
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
    """Mean of [S] values, and the ends of its 95 % interval."""
    mean, half = float(values.mean()), float(t.ppf(0.975, len(values) - 1) * sem(values))
    return mean, mean - half, mean + half


def share_interval(hits: np.ndarray) -> tuple[float, float, float]:
    """Share of True among bool [S], and the ends of its 95 % interval (Wilson 1927)."""
    ends = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return float(hits.mean()), float(ends.low), float(ends.high)


# Words


def contest_words(contest: Contest, names: Sequence[str], judgements: int, study: int) -> str:
    """The figure in numbers."""
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
        text += "On the pairs nobody is ahead, within the 95% interval. "
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
    """Scores [n] as an order from best to worst, equal ones with =."""
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
    """The raters' scales, the two rankings of one study, and how often each method is right.

    Args:
        figure: an empty figure.
        contest: the studies.
        scales: of the population.
        rewards: the responses' true rewards by their names, best first.
        study: which one is shown, from 0.
    """
    # Margins by hand: to work them out takes longer than all the rest of the drawing.
    figure.set_layout_engine("none")
    left, middle, right = figure.subplots(1, 3, gridspec_kw=MARGINS)
    _draw_scales(left, scales, list(rewards.values()))
    _draw_rankings(middle, contest, list(rewards), study)
    _draw_shares(right, contest)


def _draw_scales(axes: Axes, scales: Scales, rewards: Sequence[float]) -> None:
    """Each rater's rating by true reward, without the noise."""
    reach = max(map(abs, rewards)) + 0.25
    grid = torch.linspace(-reach, reach, 121, dtype=torch.float64)
    raters = [replace(rater, noise=0.0) for rater in make_raters(scales)]
    ratings = torch.stack([rater.rate(grid, make_generator(0)) for rater in raters])
    axes.plot(grid, ratings.T, color="0.55", linewidth=0.8, alpha=0.6)
    for rater, name, style, colour in (
        (-1, "generous", "--", COLOURS[2]),
        (0, "strict", ":", COLOURS[3]),
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
    """Rank by ratings, true rank and rank by comparisons, a line for each response."""
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
    axes.set_axis_off()  # ticks would take longer than everything else here


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


class RatersAndScales(InteractiveCell):
    """Sliders for how people use a scale, and the rankings that ratings and comparisons give.

    Args:
        rewards: true rewards in logits of 3 to 7 responses, by short names; no two equal.
        population: the setting to start with, one of `PRESETS`.

    Attributes:
        scales: what the sliders say.
        contest: the studies that are shown.

    Raises:
        TypeError, ValueError: no such rewards, or an unknown population.
    """

    def __init__(
        self, rewards: Mapping[str, float] = RESPONSES, population: str = "own scales"
    ) -> None:
        self._rewards = _check_rewards(rewards)
        if population not in PRESETS:
            raise ValueError(f"population must be one of {list(PRESETS)}, got {population!r}")
        self._make_widgets(population)
        self._compute()
        first = self._drawing()
        self.chart, self.line = picture(first), words()
        super().__init__(ipywidgets.VBox([self.controls, self.chart, self.line]), first)
        self._speak()

    @property
    def scales(self) -> Scales:
        # A browser sends 0.6000000000000001 back for 0.6.
        return Scales(**{name: round(slider.value, 6) for name, slider in self.sliders.items()})

    def _make_widgets(self, population: str) -> None:
        style = {"description_width": "initial"}
        self.population = ipywidgets.Dropdown(
            options=[*PRESETS, BY_HAND],
            value=population,
            description="population",
            style=style,
            layout={"width": "22em", "max_width": "98%"},
        )
        self.judgements = ipywidgets.SelectionSlider(
            options=judgement_counts(len(self._rewards)),
            description="judgements",
            style=style,
            layout={"width": "22em", "max_width": "98%"},
        )
        self.judgements.index = 1
        self.study = ipywidgets.IntSlider(
            value=1,
            min=1,
            max=STUDIES,
            description="study shown",
            style=style,
            layout={"width": "22em", "max_width": "98%"},
        )
        limits = {
            "offset": ("mean offset", 0.0, 10.0, 0.5),
            "offset_spread": ("offset spread", 0.0, 5.0, 0.1),
            "gain": ("mean gain", 0.1, 5.0, 0.1),
            "gain_spread": ("gain spread", 0.0, 0.9, 0.1),
            "noise": ("noise", 0.0, 4.0, 0.1),
            "rounding": ("rounding", 0.0, 5.0, 0.1),
        }
        start = PRESETS[population]
        self.sliders = {
            name: ipywidgets.FloatSlider(
                value=getattr(start, name),
                min=low,
                max=high,
                step=step,
                description=description,
                readout_format=".1f",
                style=style,
                layout={"width": "22em", "max_width": "98%"},
            )
            for name, (description, low, high, step) in limits.items()
        }
        self._is_setting = False  # whether the sliders are being moved by the preset
        self.population.observe(lambda _: self._take_preset(), "value")
        for slider in self.sliders.values():
            slider.observe(lambda _: self._move(), "value")
        self.judgements.observe(lambda _: self._show(), "value")
        self.study.observe(lambda _: self._show(compute=False), "value")
        self.controls = ipywidgets.HBox(
            [self.population, *self.sliders.values(), self.judgements, self.study],
            layout=ipywidgets.Layout(flex_flow="row wrap"),
        )

    def _take_preset(self) -> None:
        """Moves the sliders to the chosen population, and draws once."""
        if self._is_setting or self.population.value == BY_HAND:
            return
        self._is_setting = True
        try:
            for field in fields(Scales):
                value = getattr(PRESETS[self.population.value], field.name)
                self.sliders[field.name].value = value
        finally:
            self._is_setting = False
        self._show()

    def _move(self) -> None:
        """After a slider was moved by hand: the population is no longer the preset."""
        if self._is_setting or self.scales == self._computed_for:
            return
        self.population.value = BY_HAND
        self._show()

    def _show(self, compute: bool = True) -> None:
        if compute:
            self._compute()
        self.chart.value = self._drawing()
        self._speak()

    def _compute(self) -> None:
        rewards, self._computed_for = list(self._rewards.values()), self.scales
        self.contest = run_contest(self.scales, rewards, self.judgements.value)

    def _drawing(self) -> bytes:
        study = self.study.value - 1
        return png(
            lambda figure: draw_contest(figure, self.contest, self.scales, self._rewards, study),
            (9.0, 3.4),
        )

    def _speak(self) -> None:
        names, study = list(self._rewards), self.study.value - 1
        say(self.line, contest_words(self.contest, names, self.judgements.value, study))


def _check_rewards(rewards: Mapping[str, float]) -> dict[str, float]:
    """The rewards by name, best first; a TypeError or ValueError if they cannot be ranked."""
    if not isinstance(rewards, Mapping):
        raise TypeError(f"rewards must be a dict such as {RESPONSES}, got {rewards!r}")
    for name, reward in rewards.items():
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise TypeError(f"the reward of {name!r} must be a number, got {reward!r}")
    values = list(rewards.values())
    if not 3 <= len(values) <= 7 or len(set(values)) < len(values):
        raise ValueError(f"rewards must be 3 to 7 different numbers, got {values}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"rewards must be finite, got {values}")
    order = sorted(rewards.items(), key=lambda pair: -pair[1])
    return {str(name): float(reward) for name, reward in order}
