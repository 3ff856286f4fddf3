"""The Gibbs explorer: β, rewards and reference by hand, and the optimum that follows (L17)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from rlhf_toy.course.widgets.parts import InteractiveCell, picture, png, say, words
from rlhf_toy.exact import expected_reward, gibbs_policy, kl_divergence, log_partition, objective
from rlhf_toy.plots import COLOURS

MOST = 6  # responses: more bars and sliders than that fit into no cell
BETAS = (0.01, 100.0)
BETA_STEP = 0.05  # of log10 β
HIGHEST_REWARD = 5.0
HIGHEST_WEIGHT = 10.0
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.18, "top": 0.9, "wspace": 0.2}

# Arithmetic


@dataclass(frozen=True)
class Optimum:
    """π* of one prompt, and what it is worth; float64, nats and logits.

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
    """Weights [Y] as log-probabilities [Y], −inf where a weight is 0.

    Raises:
        ValueError: weights that are negative, not finite, or all 0.
    """
    values = torch.tensor(list(weights), dtype=torch.float64)
    if not (values.isfinite().all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(
            "the reference's weights must be finite, at least 0 and not all 0: it has to say "
            f"something. Got {list(weights)}; raise one of them"
        )
    return (values / values.sum()).log()


def find_optimum(weights: Sequence[float], rewards: Sequence[float], beta: float) -> Optimum:
    """The Gibbs policy of a reference [Y], given by its weights, and of rewards [Y] (L16, L17).

    Raises:
        ValueError: weights as in `log_probabilities`, as many weights as rewards are wanted, or β
            is no finite number above 0.
    """
    ref_logps, r = log_probabilities(weights), torch.tensor(list(rewards), dtype=torch.float64)
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
    """KL and reward of the Gibbs policies for all β, from β = ∞ to β = 0, both limits included.

    At ∞ it is the reference; at 0, the reference among the best responses that it gives.

    Args:
        ref_logps: [Y] log π_ref(y).
        rewards: [Y] in logits.
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
    """The figure in numbers."""
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
        f"and E[r] − β KL is J* again; π_ref earns {_number(at_reference)} for nothing. "
        f"π_ref → π*: {shares}."
    )


def partition_text(log_z: float) -> str:
    """Z in four digits; as a power of ten where the number has no end."""
    if abs(log_z) < 11:
        return f"{math.exp(log_z):.4g}"
    return f"10^{log_z / math.log(10):.1f}"


def _number(value: float, digits: int = 4) -> str:
    """So many digits behind the point, and never −0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


# Drawing


def draw_optimum(figure: Figure, optimum: Optimum, names: Sequence[str]) -> None:
    """π* beside π_ref as bars, and its point on the frontier of reward against KL.

    Args:
        figure: an empty figure.
        optimum: what is drawn.
        names: of the responses, Y of them.
    """
    # Margins by hand: to work them out takes longer than all the rest of the drawing.
    figure.set_layout_engine("none")
    left, right = figure.subplots(1, 2, gridspec_kw=MARGINS)
    _draw_bars(left, optimum, names)
    _draw_frontier(right, optimum)


def _draw_bars(axes: Axes, optimum: Optimum, names: Sequence[str]) -> None:
    places = np.arange(len(names))
    before, after = optimum.ref_logps.exp().tolist(), optimum.logps.exp().tolist()
    axes.bar(places - 0.2, before, 0.4, label="π_ref", color="0.75", edgecolor="0.3")
    axes.bar(places + 0.2, after, 0.4, label="π*", color=COLOURS[0], hatch="//", edgecolor="w")
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
    # A frontier that is a single point still gets room around it.
    width, height = max(kls.max(), 0.5), max(np.ptp(rewards), 0.5)
    line = np.array([-0.05, 1.1]) * width
    tangent = optimum.objective + optimum.beta * line
    axes.plot(kls, rewards, color="0.25", label="Gibbs policies for all β")
    axes.plot(line, tangent, "--", color=COLOURS[1], linewidth=1.3, label="reward = J* + β KL")
    axes.plot(kls[0], rewards[0], "s", color="0.5", markersize=8, label="π_ref (β → ∞)")
    axes.plot(kls[-1], rewards[-1], "^", color=COLOURS[4], markersize=9, label="β → 0")
    axes.plot(
        optimum.kl,
        optimum.reward,
        "o",
        color=COLOURS[0],
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


class GibbsExplorer(InteractiveCell):
    """Sliders for β, and for the reward and the reference's weight of each response to one prompt.

    Args:
        rewards: of two to six responses, in logits, between −5 and 5.
        weights: how often the reference gives each, in any unit; weights above 10 are scaled down.
            A response of weight 0 is never given.
        beta: where the slider of β starts, between 0.01 and 100.
        names: of the responses; A, B, C … by default.

    Rewards and weights are rounded to a decimal and β to three digits, as the sliders show them.

    Attributes:
        optimum: what is shown, as an `Optimum`.

    Raises:
        TypeError, ValueError: numbers that are none, out of range, or not as many as rewards.
    """

    def __init__(
        self,
        rewards: Sequence[float] = (0.0, 1.0, 2.0, -1.0, 0.5),
        weights: Sequence[float] = (5.0, 3.0, 1.0, 2.0, 0.5),
        beta: float = 0.5,
        names: Sequence[str] | None = None,
    ) -> None:
        rewards, weights = _check_row("rewards", rewards), _check_row("weights", weights)
        names = tuple("ABCDEF"[: len(rewards)] if names is None else map(str, names))
        _check(rewards, weights, beta, names)
        scale = min(1.0, HIGHEST_WEIGHT / max(weights))
        # What is possible stays so, however rare.
        weights = [max(round(scale * weight, 1), 0.1) if weight else 0.0 for weight in weights]
        self._names = names
        self._start = (_round_beta(beta), [round(reward, 1) for reward in rewards], weights)
        self._make_widgets()
        self.optimum = self._find()
        first = self._drawing()
        self.chart, self.line = picture(first), words()
        super().__init__(ipywidgets.VBox([*self.controls, self.chart, self.line]), first)
        say(self.line, optimum_words(self.optimum, self._names))

    def _make_widgets(self) -> None:
        beta, rewards, weights = self._start
        # A browser moves the value to a whole number of steps from the left end.
        below, above = (int(abs(math.log10(end / beta)) / BETA_STEP) for end in BETAS)
        self.beta = ipywidgets.FloatLogSlider(
            value=beta,
            min=math.log10(beta) - below * BETA_STEP,
            max=math.log10(beta) + above * BETA_STEP,
            step=BETA_STEP,
            description="β (KL weight)",
            readout_format=".3g",
            style={"description_width": "initial"},
            layout={"width": "27em", "max_width": "98%"},
        )
        self.reset = ipywidgets.Button(description="Reset", layout={"width": "7em"})
        self.reset.on_click(lambda _: self._reset())
        self.rewards = [
            _slider(f"reward of {name}", r, -HIGHEST_REWARD, HIGHEST_REWARD)
            for name, r in zip(self._names, rewards, strict=True)
        ]
        self.weights = [
            _slider(f"weight of {name} in π_ref", weight, 0.0, HIGHEST_WEIGHT)
            for name, weight in zip(self._names, weights, strict=True)
        ]
        for slider in (self.beta, *self.rewards, *self.weights):
            slider.observe(lambda _: self._show(), "value")
        row = ipywidgets.Layout(flex_flow="row wrap")
        pairs = [
            ipywidgets.HBox([r, weight], layout=row)
            for r, weight in zip(self.rewards, self.weights, strict=True)
        ]
        self.controls = [ipywidgets.HBox([self.beta, self.reset], layout=row), *pairs]
        self._is_resetting = False

    def _reset(self) -> None:
        """Puts all sliders back, and draws once."""
        beta, rewards, weights = self._start
        self._is_resetting = True
        try:
            self.beta.value = beta
            for slider, value in zip(
                (*self.rewards, *self.weights), (*rewards, *weights), strict=True
            ):
                slider.value = value
        finally:
            self._is_resetting = False
        self._show()

    def _show(self) -> None:
        """Computes and draws; what cannot be computed leaves the last picture and is said."""
        if self._is_resetting:
            return
        try:
            self.optimum = self._find()
        except ValueError as error:
            say(self.line, f"{error}. The picture is the last one that was possible.", wrong=True)
            return
        self.chart.value = self._drawing()
        say(self.line, optimum_words(self.optimum, self._names))

    def _find(self) -> Optimum:
        weights, rewards = (
            [round(slider.value, 1) for slider in sliders]
            for sliders in (self.weights, self.rewards)
        )
        return find_optimum(weights, rewards, _round_beta(self.beta.value))

    def _drawing(self) -> bytes:
        return png(lambda figure: draw_optimum(figure, self.optimum, self._names), (9.0, 3.5))


def _round_beta(beta: float) -> float:
    return float(f"{beta:.3g}")


def _slider(description: str, value: float, low: float, high: float) -> ipywidgets.FloatSlider:
    return ipywidgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=0.1,
        description=description,
        readout_format=".1f",
        style={"description_width": "initial"},
        layout={"width": "27em", "max_width": "98%"},
    )


def _check_row(name: str, values: Sequence[float]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a list of numbers, got {values!r}") from None


def _check(
    rewards: Sequence[float], weights: Sequence[float], beta: float, names: Sequence[str]
) -> None:
    """Raises a TypeError or ValueError unless the sliders can show all this."""
    if not 2 <= len(rewards) <= MOST:
        raise ValueError(f"2 to {MOST} responses can be shown, got {len(rewards)} rewards")
    if not len(rewards) == len(weights) == len(names) == len(set(names)):
        raise ValueError(
            f"{len(rewards)} rewards need as many weights and as many different names, got "
            f"{list(weights)} and {list(names)}"
        )
    if not all(abs(r) <= HIGHEST_REWARD for r in rewards):
        raise ValueError(
            f"rewards must lie between −{HIGHEST_REWARD:g} and {HIGHEST_REWARD:g} logits, got "
            f"{list(rewards)}: divide them, and β, by the same number; π* stays the same"
        )
    log_probabilities(weights)
    if isinstance(beta, bool) or not isinstance(beta, int | float):
        raise TypeError(f"beta must be a number, got {beta!r}")
    if not BETAS[0] <= beta <= BETAS[1]:
        raise ValueError(f"beta must lie between {BETAS[0]:g} and {BETAS[1]:g}, got {beta!r}")
