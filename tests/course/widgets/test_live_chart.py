"""The chart of a live training."""

import pytest

from rlhf_toy.course.widgets.live_chart import draw_gap, gap_series
from rlhf_toy.course.widgets.parts import png
from rlhf_toy.training import History


def test_the_chart_begins_at_the_reference_and_leaves_out_what_was_not_measured():
    history = History()
    history.record(1, {"loss": 1.0})
    history.record(2, {"exact/gap": 0.5})
    assert gap_series(history) == ([0, 2], [1.0, 0.5])
    assert gap_series(History()) == ([0], [1.0])


@pytest.mark.parametrize("gaps", [[], [0.5], [0.5, 30.0], [float("nan")], [float("inf"), 0.1]])
def test_any_history_can_be_drawn(gaps):
    history = History()
    for step, gap in enumerate(gaps, 1):
        history.record(step, {"exact/gap": gap})
    axes = []

    def draw(figure):
        draw_gap(figure, history, 20, "this run", {"an earlier run": history})
        axes.extend(figure.axes)

    assert png(draw).startswith(b"\x89PNG")
    low, high = axes[0].get_ylim()
    assert low < 0 and 1 < high <= 2
    labels = axes[0].get_legend_handles_labels()[1]
    assert "optimum: gap 0, the limit" in labels and "an earlier run" in labels
    assert ("this run" in labels) == bool(gaps)
