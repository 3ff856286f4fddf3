"""The Gibbs explorer: choose β, rewards and reference, and see the optimal policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from rlhf_toy.checks import check_number, check_type
from rlhf_toy.course.widgets.parts import (
    Explorer,
    button,
    in_a_row,
    labelled,
    log_slider,
    panels,
)
from rlhf_toy.exact import expected_reward, gibbs_policy, kl_divergence, log_partition, objective
from rlhf_toy.plots import COLOUR

MOST = 6  # responses: there is no room for more bars and sliders
BETAS = (0.01, 100.0)
HIGHEST_REWARD = 5.0
HIGHEST_WEIGHT = 10.0
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.18, "top": 0.9, "wspace": 0.2}

# Arithmetic


@dataclass(frozen=True)
class Optimum:
    """The optimal policy π* for one prompt and its value; float64, nats and logits.

    Attributes:
        ref_logps: [Y] log π_ref(y).
        rewards: [Y] r(y).
        beta: KL weight.
        logps: [Y] log π*(y).
        log_z: log Z.
        reward: E[r] under π*.
        kl: KL(π* ‖ π_ref).
        objective: J* = E[r] − β KL, which is β log Z.
    """

    ref_logps: Tensor
    rewards: Tensor
    beta: float
    logps: Tensor
    log_z: float
    reward: float
    kl: float
    objective: float


def log_probabilities(weights: Sequence[float]) -> Tensor:
    """Return weights [Y] as log-probabilities [Y], −inf where a weight is 0.

    Raises:
        TypeError: weights that are not numbers.
        ValueError: weights that are negative, not finite, or all 0.
    """
    values = torch.tensor(_check_row("weights", weights), dtype=torch.float64)
    if not ((values >= 0).all() and values.sum() > 0):
        raise ValueError(
            f"weights must be at least 0 and not all 0, got {values.tolist()}: raise one of them "
            "above 0"
        )
    return (values / values.sum()).log()


def find_optimum(weights: Sequence[float], rewards: Sequence[float], beta: float) -> Optimum:
    """Return the Gibbs policy for a reference [Y], given by its weights, and rewards [Y].

    Raises:
        TypeError: weights, rewards or β that are not numbers.
        ValueError: weights that `log_probabilities` refuses, not as many rewards as weights, or a
            β that is not a finite number above 0.
    """
    ref_logps = log_probabilities(weights)
    r = torch.tensor(_check_row("rewards", rewards), dtype=torch.float64)
    logps = gibbs_policy(ref_logps, r, beta)
    return Optimum(
        ref_logps=ref_logps,
        rewards=r,
        beta=beta,
        logps=logps,
        log_z=float(log_partition(ref_logps, r, beta)),
        reward=float(expected_reward(logps, r)),
        kl=float(kl_divergence(logps, ref_logps)),
        objective=float(objective(logps, ref_logps, r, beta)),
    )


def gibbs_frontier(ref_logps: Tensor, rewards: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return KL and reward of the Gibbs policies from β = ∞ to β = 0, both limits included.

    At β = ∞ the policy is the reference. At β = 0 it is the reference restricted to the best
    responses that the reference can give.

    Args:
        ref_logps: [Y] log π_ref(y).
        rewards: [Y] in logits.

    Returns:
        [B] KL(π ‖ π_ref) in nats, and [B] E[r] in logits.
    """
    possible = ref_logps > -torch.inf
    best = possible & (rewards == rewards[possible].max())
    greedy = ref_logps.masked_fill(~best, -torch.inf).log_softmax(-1)
    betas = torch.logspace(3, -3, 200, dtype=torch.float64)[:, None]
    many = ref_logps.expand(len(betas), -1)
    logps = torch.cat([ref_logps[None], gibbs_policy(many, rewards / betas, 1.0), greedy[None]])
    kls = kl_divergence(logps, ref_logps.expand_as(logps)).clamp(min=0)
    return kls.numpy(), expected_reward(logps, rewards.expand_as(logps)).numpy()


# Words


def optimum_words(optimum: Optimum, names: Sequence[str]) -> str:
    """Describe the figure in numbers."""
    o = optimum
    shares = ", ".join(
        f"{name} {before:.1%} → {after:.1%}"
        for name, before, after in zip(
            names, o.ref_logps.exp().tolist(), o.logps.exp().tolist(), strict=True
        )
    )
    at_reference = float(expected_reward(o.ref_logps, o.rewards))
    return (
        f"At β = {o.beta:.3g}: Z = {partition_text(o.log_z)}, log Z = {_number(o.log_z)}, "
        f"J* = β log Z = {_number(o.objective)}. "
        f"π* earns E[r] = {_number(o.reward)} for KL = {_number(o.kl)} nats, "
        f"so E[r] − β KL = J*. π_ref earns E[r] = {_number(at_reference)} with KL = 0. "
        f"π_ref → π*: {shares}."
    )


def partition_text(log_z: float) -> str:
    """Return Z with four digits, or as a power of ten where it is very large or small."""
    if abs(log_z) < 11:
        return f"{math.exp(log_z):.4g}"
    return f"10^{log_z / math.log(10):.1f}"


def _number(value: float, digits: int = 4) -> str:
    """Round to this many decimals, never to −0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


# Drawing


def draw_optimum(figure: Figure, optimum: Optimum, names: Sequence[str]) -> None:
    """Draw π* beside π_ref as bars, and its point on the frontier of reward against KL.

    Args:
        figure: an empty figure.
        optimum: what to draw.
        names: the Y responses' names.
    """
    left, right = panels(figure, 2, MARGINS)
    _draw_bars(left, optimum, names)
    _draw_frontier(right, optimum)


def _draw_bars(axes: Axes, optimum: Optimum, names: Sequence[str]) -> None:
    places = np.arange(len(names))
    before, after = optimum.ref_logps.exp().tolist(), optimum.logps.exp().tolist()
    axes.bar(places - 0.2, before, 0.4, label="π_ref", color=COLOUR["reference"])
    colour = COLOUR["optimum"]
    axes.bar(places + 0.2, after, 0.4, label="π*", color=colour, hatch="//", edgecolor="w")
    for place, old, new in zip(places, before, after, strict=True):
        for at, share in ((place - 0.2, old), (place + 0.2, new)):
            axes.text(at, share + 0.012, f"{share:.0%}", ha="center", fontsize=7.5)
    labels = [
        f"{name}\nr = {_number(r, 1)}"
        for name, r in zip(names, optimum.rewards.tolist(), strict=True)
    ]
    axes.set_xticks(places, labels, fontsize=9)
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("probability")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)
    axes.grid(visible=False, axis="x")


def _draw_frontier(axes: Axes, optimum: Optimum) -> None:
    kls, rewards = gibbs_frontier(optimum.ref_logps, optimum.rewards)
    # Leave room around a frontier that is a single point.
    width, height = max(kls.max(), 0.5), max(np.ptp(rewards), 0.5)
    line = np.array([-0.05, 1.1]) * width
    tangent = optimum.objective + optimum.beta * line
    axes.plot(kls, rewards, color="0.25", label="Gibbs policies for all β")
    axes.plot(line, tangent, "--", color="0.5", linewidth=1.3, label="reward = J* + β KL")
    grey, black = COLOUR["reference"], COLOUR["optimum"]
    axes.plot(kls[0], rewards[0], "s", color=grey, markersize=8, label="π_ref (β → ∞)")
    axes.plot(kls[-1], rewards[-1], "^", color=black, fillstyle="none", markersize=9, label="β → 0")
    axes.plot(
        optimum.kl,
        optimum.reward,
        "o",
        color=black,
        markersize=11,
        markeredgecolor="w",
        label=f"π* at β = {optimum.beta:.3g}",
    )
    axes.set_xlim(line)
    axes.set_ylim(rewards.min() - 0.12 * height, rewards.max() + 0.15 * height)
    axes.set_xlabel("KL(π ‖ π_ref), nats")
    axes.set_ylabel("E[r], logits")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.legend(loc="lower right", fontsize=8)


# The widget


class GibbsExplorer(Explorer):
    """Sliders for β, and for each response's reward and its weight in the reference; one prompt.

    Args:
        rewards: of two to six responses, in logits, from −5 to 5.
        weights: how often the reference gives each response, in any unit; if one is above 10, all
            are scaled down. A response of weight 0 is never given.
        beta: where the slider of β starts, from 0.01 to 100.
        names: of the responses; A, B, C … by default.

    Rewards and weights are rounded to one decimal and β to three digits, as the sliders show them.

    Attributes:
        optimum: the `Optimum` that is shown.
        beta: the slider of β.
        rewards, weights: the other sliders, one for each response.
        reset: the button that restores the start values.

    Raises:
        TypeError: a reward, weight or β that is not a number.
        ValueError: one that is out of range, or not as many weights and names as rewards.
    """

    SIZE = (9.0, 3.5)

    def __init__(
        self,
        rewards: Sequence[float] = (0.0, 1.0, 2.0, -1.0, 0.5),
        weights: Sequence[float] = (5.0, 3.0, 1.0, 2.0, 0.5),
        beta: float = 0.5,
        names: Sequence[str] | None = None,
    ) -> None:
        rewards, weights = _check_row("rewards", rewards), _check_row("weights", weights)
        names = "ABCDEF"[: len(rewards)] if names is None else names
        check_type("names", names, Sequence, "a list of names")
        self._names = tuple(map(str, names))
        _check(rewards, weights, beta, self._names)
        scale = min(1.0, HIGHEST_WEIGHT / max(weights))
        # However rare a response is, rounding must not make it impossible.
        weights = [max(round(scale * weight, 1), 0.1) if weight else 0.0 for weight in weights]
        beta, rewards = _round_beta(beta), [round(reward, 1) for reward in rewards]
        self.beta = log_slider("β (KL weight)", beta, *BETAS)
        self.rewards, self.weights = [], []
        for name, reward, weight in zip(self._names, rewards, weights, strict=True):
            self.rewards.append(
                _slider(f"reward of {name}", reward, -HIGHEST_REWARD, HIGHEST_REWARD)
            )
            self.weights.append(_slider(f"weight of {name} in π_ref", weight, 0.0, HIGHEST_WEIGHT))
        sliders = [self.beta, *self.rewards, *self.weights]
        self._start = [(one, one.value) for one in sliders]
        self.reset = button("Reset", self._reset, "7em")
        pairs = zip(self.rewards, self.weights, strict=True)
        super().__init__([in_a_row(row) for row in ([self.beta, self.reset], *pairs)], sliders)

    def _reset(self) -> None:
        with self._at_once():
            for one, value in self._start:
                one.value = value

    def _compute(self) -> None:
        weights, rewards = (
            [round(one.value, 1) for one in sliders] for sliders in (self.weights, self.rewards)
        )
        self.optimum = find_optimum(weights, rewards, _round_beta(self.beta.value))

    def _draw(self, figure: Figure) -> None:
        draw_optimum(figure, self.optimum, self._names)

    def _describe(self) -> str:
        return optimum_words(self.optimum, self._names)


def _round_beta(beta: float) -> float:
    return float(f"{beta:.3g}")


def _slider(description: str, value: float, low: float, high: float) -> ipywidgets.FloatSlider:
    options = {"value": value, "min": low, "max": high, "step": 0.1, "readout_format": ".1f"}
    return labelled(ipywidgets.FloatSlider, description, "27em", **options)


def _check_row(name: str, values: Iterable[float]) -> list[float]:
    """The values as a list; a TypeError or ValueError unless all are finite numbers."""
    check_type(name, values, Iterable, "a list of numbers")
    values = list(values)
    for i, value in enumerate(values):
        check_number(f"{name}[{i}]", value)
    return values


def _check(
    rewards: Sequence[float], weights: Sequence[float], beta: float, names: Sequence[str]
) -> None:
    """Raise a TypeError or ValueError unless the sliders can show all this."""
    if not 2 <= len(rewards) <= MOST:
        raise ValueError(f"there must be 2 to {MOST} rewards, got {len(rewards)}")
    if not len(rewards) == len(weights) == len(names) == len(set(names)):
        raise ValueError(
            f"{len(rewards)} rewards need {len(rewards)} weights and {len(rewards)} different "
            f"names, got {list(weights)} and {list(names)}"
        )
    if not all(abs(r) <= HIGHEST_REWARD for r in rewards):
        raise ValueError(
            f"rewards must be from −{HIGHEST_REWARD:g} to {HIGHEST_REWARD:g} logits, got "
            f"{list(rewards)}: divide them and β by the same number, which leaves π* as it is"
        )
    log_probabilities(weights)
    check_number("beta", beta, *BETAS)
