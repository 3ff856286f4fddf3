"""One style for every figure, and the figures that are drawn in several places."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from rlhf_toy.checks import check_number, check_type
from rlhf_toy.exact import AutomatonYardstick, Measure, Yardstick

# Okabe & Ito's palette, which colour-blind readers can tell apart. Markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "P", "v", "X", "*", "d")

# Every method and quantity has one colour in the whole course.
COLOUR = {
    "reference": "#7F7F7F", "optimum": "#000000", "true reward": "#009E73",
    "learned reward": "#CC79A7", "chosen": "#0B7A75", "rejected": "#A23B3B",
    "comparisons": "#332288", "ratings": "#DDAA33", "policy gradient": "#6A3D9A",
    "ppo": "#0072B2", "ppo, true reward": "#004C6D", "rloo": "#56B4E9", "grpo": "#B8860B",
    "dr_grpo": "#9ACD32", "dpo": "#D55E00", "online dpo": "#8B2E00", "best-of-n": "#556B2F",
}  # fmt: skip

# Our defaults for matplotlib.
STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.figsize": (7.0, 4.3),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


def use_style() -> None:
    """Set matplotlib's defaults to the course's style."""
    mpl.rcParams.update(STYLE)


def frontier_figure(yardstick: Yardstick, measures: Mapping[str, Measure]) -> Figure:
    """Draw the exact reward–KL frontier over all β, with policies as points on it or below it.

    No policy lies above the curve: it is the highest possible reward for each KL. The dashed line
    is reward = J* + β KL; it touches the curve at the optimum for β, and a policy's vertical
    distance to it is J* − J(π).

    Args:
        yardstick: world, reference and β.
        measures: a `Measure` for each policy's name.

    Returns:
        the figure, which the caller shows or closes.

    Raises:
        TypeError: not a yardstick, or measures that are not a dict of them.
        ValueError: no measures, or one whose KL is not finite.
    """
    check_type("measures", measures, Mapping, "a dict of names and measures")
    for name, measure in measures.items():
        check_type(f"measures[{name!r}]", measure, Measure, "a Measure, see Yardstick.measure")
        check_number(f"the KL of {name!r}", measure.kl)
    if not measures:
        raise ValueError("measures must have at least one policy, got an empty dict")
    kls, rewards = frontier(yardstick, max_kl=1.25 * max(m.kl for m in measures.values()))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(kls, rewards, color="0.25", label="the best possible (exact)")
        line = yardstick.optimum + yardstick.beta * kls
        seen = line <= 1.05 * rewards.max()
        label = f"reward = J* + β KL, for β = {yardstick.beta:g}"
        axes.plot(kls[seen], line[seen], "--", color="0.55", linewidth=1.2, label=label)
        for i, (name, measure) in enumerate(measures.items()):
            label = f"{name}: gap {round(measure.gap, 3) + 0.0:.1%}"
            marker = MARKERS[i % len(MARKERS)]
            colour = COLOUR.get(name.lower(), COLOURS[i % len(COLOURS)])
            axes.plot(measure.kl, measure.reward, marker, markersize=9, color=colour, label=label)
        axes.set_xlabel("how far from the reference: KL(π ‖ π_ref), nats per response")
        axes.set_ylabel("how good: true reward, logits")
        axes.legend(loc="lower right", fontsize=9)
    return figure


def frontier(yardstick: Yardstick, max_kl: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the reward–KL frontier: the Gibbs policies for β from large to small, up to a KL.

    Args:
        yardstick: world, reference and β.
        max_kl: in nats; the frontier ends just above it.

    Returns:
        KL in nats and true reward in logits of each policy, both [N].

    Raises:
        TypeError: not a yardstick, or a KL that is not a number.
        ValueError: a KL that is not finite.
    """
    check_type("yardstick", yardstick, Yardstick, "a Yardstick")
    check_number("max_kl", max_kl)
    # By enumeration a β takes milliseconds, on an automaton seconds.
    is_automaton = isinstance(yardstick, AutomatonYardstick)
    points = []
    for beta in np.geomspace(3, 0.02, 24) if is_automaton else np.geomspace(100, 0.02, 120):
        points.append(yardstick.best_at(float(beta)))
        if points[-1][1] > max_kl:
            break
    rewards, kls = np.array(points).T
    return kls, rewards
