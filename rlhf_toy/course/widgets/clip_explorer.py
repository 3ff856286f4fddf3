"""Clip explorer: PPO's clipped objective of one token, and its gradient (L13, L14)."""

from __future__ import annotations

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.course.widgets.parts import (
    InteractiveCell,
    in_a_row,
    panels,
    picture,
    png,
    say,
    slider,
    words,
)
from rlhf_toy.losses import ppo_clip_loss
from rlhf_toy.plots import COLOURS

RATIOS = (0.3, 1.7)  # of the sliders and the chart
ADVANTAGES = (-2.0, 2.0)


def objective_and_gradient(
    ratios: Tensor, advantage: float, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped objective of single tokens, and its derivative in log π, both from the loss.

    Args:
        ratios: [N] π/π_old of the token, above 0.
        advantage: of the token, logits.
        cliprange: ε.

    Returns:
        [N] objective, which is −`ppo_clip_loss`, and [N] derivative with respect to the token's
        log-probability.
    """
    logps = ratios.double().log().requires_grad_()
    old, advantages = torch.zeros_like(logps), torch.full_like(logps, advantage)
    mask = torch.ones_like(logps, dtype=torch.bool)
    losses = torch.stack(
        [
            ppo_clip_loss(*(t.view(1, 1) for t in token), cliprange)
            for token in zip(logps, old, advantages, mask, strict=True)
        ]
    )
    (gradient,) = torch.autograd.grad(-losses.sum(), logps)
    return -losses.detach(), gradient


def draw_clip(figure: Figure, ratio: float, advantage: float, cliprange: float) -> None:
    """Objective and gradient over the ratio, with the point at `ratio`."""
    edges = [1 + side * cliprange + step for side in (-1, 1) for step in (-1e-6, 1e-6)]
    # Straight lines, which jump at the edges of the band at most.
    ratios = torch.tensor([*RATIOS, 0.5, 1.0, *edges], dtype=torch.float64).sort().values
    curves = objective_and_gradient(ratios, advantage, cliprange)
    point = objective_and_gradient(torch.tensor([ratio]), advantage, cliprange)
    labels = ("objective of the token", "gradient in log π")
    for axes, curve, here, label, colour in zip(
        panels(figure, 2), curves, point, labels, COLOURS, strict=False
    ):
        axes.axvspan(1 - cliprange, 1 + cliprange, color="0.92", zorder=0, label="1 ± ε")
        axes.axhline(0, color="0.6", linewidth=1)
        axes.plot(ratios, ratios * advantage, ":", color="0.5", label="without the clip")
        axes.plot(ratios, curve, color=colour, label=label)
        axes.plot(ratio, here, "o", color="black", markersize=9)
        axes.set(xlabel="ratio ρ = π/π_old", ylabel=label, xlim=RATIOS)
        axes.legend(fontsize=8, loc="upper left" if advantage > 0 else "lower left")


def describe(ratio: float, advantage: float, cliprange: float) -> str:
    """What the point says, in words and numbers."""
    objective, gradient = (
        float(value[0])
        for value in objective_and_gradient(torch.tensor([ratio]), advantage, cliprange)
    )
    at = f"A = {advantage:.2f}, ε = {cliprange:.2f}, ρ = {ratio:.2f}"
    numbers = f"{at}: objective {objective:+.3f}, gradient in log π {gradient:+.3f}. "
    if advantage == 0:
        return numbers + "An advantage of 0 asks for nothing."
    if gradient == 0:
        more = "likelier" if advantage > 0 else "rarer"
        return (
            numbers + f"The clip is active: the token has become {more} enough, and gets no push."
        )
    push = "likelier" if gradient > 0 else "rarer"
    outside = "" if abs(ratio - 1) <= cliprange else " although the ratio is outside the band"
    return numbers + f"The clip is not active{outside}: the token is pushed to become {push}."


class ClipExplorer(InteractiveCell):
    """PPO's clip for one token: sliders for advantage, ε and ratio.

    Attributes:
        advantage, cliprange, ratio: the sliders.
        picture: the chart.
        line: what it shows, in words.
    """

    def __init__(self, advantage: float = 1.0, cliprange: float = 0.2, ratio: float = 1.4) -> None:
        """Where the sliders start.

        Raises:
            ValueError: a number outside its slider.
        """
        self.advantage = slider("advantage", "advantage A", advantage, *ADVANTAGES)
        self.cliprange = slider("cliprange", "ε (cliprange)", cliprange, 0.05, 0.5)
        self.ratio = slider("ratio", "ratio ρ", ratio, *RATIOS)
        sliders = (self.advantage, self.cliprange, self.ratio)
        for one in sliders:
            one.observe(self._redraw, "value")
        self.line, first = words(), self._drawing()
        self.picture = picture(first)
        super().__init__(ipywidgets.VBox([in_a_row(sliders), self.picture, self.line]), first)
        self._redraw()

    def _values(self) -> tuple[float, float, float]:
        return self.ratio.value, self.advantage.value, self.cliprange.value

    def _drawing(self) -> bytes:
        return png(lambda figure: draw_clip(figure, *self._values()), (9.0, 3.3))

    def _redraw(self, _: object = None) -> None:
        self.picture.value = self._drawing()
        say(self.line, describe(*self._values()))
