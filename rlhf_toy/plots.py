"""One style for every figure of the course, and the figures that several places draw."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from rlhf_toy.exact import Measure, Yardstick, expected_reward, gibbs_policy, kl_divergence

# Okabe & Ito's palette: told apart by the colour-blind. Markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "P", "v", "X")


# matplotlib's defaults in the course.
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
    """Sets matplotlib's defaults to the course's style."""
    mpl.rcParams.update(STYLE)


def frontier_figure(yardstick: Yardstick, measures: Mapping[str, Measure]) -> Figure:
    """The exact reward–KL frontier over all β, and policies as points on it or under it (L16, L17).

    No policy lies above the curve: for each KL it is the highest reward there is. The dashed line
    is reward = J* + β KL; it touches the curve at the optimum for β, and a policy's vertical
    distance to it is what its J lacks.

    Args:
        yardstick: world, reference and β.
        measures: a `Measure` for each policy's name.

    Returns:
        the figure; whoever asked for it shows or closes it.
    """
    kls, rewards = frontier(yardstick, max_kl=1.25 * max(m.kl for m in measures.values()))
    with mpl.rc_context():
        use_style()
        figure, axes = plt.subplots()
        axes.plot(kls, rewards, color="0.25", label="frontier: Gibbs policies for all β")
        line = yardstick.optimum + yardstick.beta * kls
        seen = line <= 1.05 * rewards.max()
        axes.plot(
            kls[seen],
            line[seen],
            "--",
            color="0.55",
            linewidth=1.2,
            label=f"reward = J* + β KL, β = {yardstick.beta:g}",
        )
        for i, (name, measure) in enumerate(measures.items()):
            axes.plot(
                measure.kl,
                measure.reward,
                MARKERS[i % len(MARKERS)],
                markersize=9,
                color=COLOURS[i % len(COLOURS)],
                label=f"{name}: gap {round(measure.gap, 3) + 0.0:.1%}",
            )
        axes.set_xlabel("KL(π ‖ π_ref), nats per response")
        axes.set_ylabel("true reward, logits")
        axes.legend(loc="lower right", fontsize=9)
    return figure


def frontier(yardstick: Yardstick, max_kl: float) -> tuple[np.ndarray, np.ndarray]:
    """KL and true reward of the Gibbs policies for β from large to small, up to a KL."""
    kls, rewards = [], []
    for beta in np.geomspace(100, 0.02, 120):
        logps = gibbs_policy(yardstick.ref_logps, yardstick.rewards, beta)
        kls.append(float(kl_divergence(logps, yardstick.ref_logps).mean()))
        rewards.append(float(expected_reward(logps, yardstick.rewards).mean()))
        if kls[-1] > max_kl:
            break
    return np.array(kls), np.array(rewards)
