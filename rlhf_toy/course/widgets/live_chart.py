"""The chart of a live training: the exact gap by step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rlhf_toy.course.widgets.live_run import GAP, measurements
from rlhf_toy.plots import COLOUR
from rlhf_toy.training import History

HIGHEST_SHOWN = 2.0  # higher gaps are outside the chart; the text still gives them
EARLIER_STYLES = ("-", "-.", ":")  # one for each earlier run that stays in the chart


def gap_series(history: History) -> tuple[list[int], list[float]]:
    """Return the steps at which the gap was measured, and the gaps; 1 at step 0, the reference."""
    measured = measurements(history)
    return [0, *(row["step"] for row in measured)], [1.0, *(row[GAP] for row in measured)]


def draw_gap(
    figure: Figure, history: History, steps: int, label: str, earlier: Mapping[str, History]
) -> None:
    """Draw the exact gap by step, with its limit.

    Args:
        figure: an empty figure.
        history: of the current run.
        steps: the number of steps of the whole run.
        label: the run's name in the legend.
        earlier: histories of other runs, by their names in the legend.
    """
    axes = figure.subplots()
    axes.axhline(1, color="0.45", linewidth=1.2, linestyle="--", label="reference: gap 100 %")
    axes.axhline(0, color="black", linewidth=1.6, label="optimum: gap 0, the limit")
    for style, (name, other) in zip(EARLIER_STYLES, earlier.items(), strict=False):
        axes.plot(*gap_series(other), style, color="0.55", label=name)
    at, gaps = gap_series(history)
    if len(at) > 1:
        axes.plot(at, gaps, "o-", color=COLOUR["ppo"], markersize=5, label=label)
        axes.annotate(
            f"{gaps[-1]:.1%}", (at[-1], gaps[-1]), (0, 9), textcoords="offset points", ha="center"
        )
    shown = [gap for h in (history, *earlier.values()) for gap in gap_series(h)[1]]
    highest = max((gap for gap in shown if math.isfinite(gap)), default=1.0)
    longest = max(steps, *(gap_series(h)[0][-1] for h in (history, *earlier.values())))
    axes.set(xlim=(0, 1.04 * longest), ylim=(-0.06, min(1.12 * highest, HIGHEST_SHOWN)))
    # No mathematical text: two threads must not use its parser at once.
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="step", ylabel="exact gap to J*")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
