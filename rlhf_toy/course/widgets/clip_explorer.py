"""Clip explorer: PPO's clipped objective for one token, and its gradient."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.checks import check_tensors
from rlhf_toy.course.widgets.parts import Explorer, in_a_row, panels, slider
from rlhf_toy.losses import ppo_clip_loss
from rlhf_toy.plots import COLOURS

RATIOS = (0.3, 1.7)  # range of the slider and the chart
ADVANTAGES = (-2.0, 2.0)


def objective_and_gradient(
    ratios: Tensor, advantage: float, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped objective of a token and its derivative in log π, both from the loss.

    Args:
        ratios: [N] values of the token's ratio π/π_old, above 0.
        advantage: the token's advantage, in logits.
        cliprange: ε.

    Returns:
        [N] objective, which is −`ppo_clip_loss`, and [N] derivative with respect to the token's
        log-probability.

    Raises:
        TypeError, ValueError: ratios that are not a tensor or not above 0, or a bad cliprange.
    """
    check_tensors(ratios=ratios)
    if not (ratios > 0).all():
        raise ValueError(f"ratios must be above 0, got {ratios.tolist()}")
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
    """Draw objective and gradient against the ratio, and mark the point at `ratio`."""
    edges = [1 + side * cliprange + step for side in (-1, 1) for step in (-1e-6, 1e-6)]
    # The curves are straight lines that bend or jump only at the edges of the band.
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
    """Describe the marked point: its numbers, and whether the clip is active."""
    objective, gradient = (
        float(value[0])
        for value in objective_and_gradient(torch.tensor([ratio]), advantage, cliprange)
    )
    at = f"A = {advantage:.2f}, ε = {cliprange:.2f}, ρ = {ratio:.2f}"
    numbers = f"{at}: objective {objective:+.3f}, gradient in log π {gradient:+.3f}. "
    if advantage == 0:
        return numbers + "An advantage of 0 gives no push."
    if gradient == 0:
        moved = "risen" if advantage > 0 else "fallen"
        return f"{numbers}The clip is active: the probability has {moved} enough and gets no push."
    push = "up" if gradient > 0 else "down"
    outside = "" if abs(ratio - 1) <= cliprange else " although the ratio is outside the band"
    return numbers + f"The clip is not active{outside}: the probability is pushed {push}."


class ClipExplorer(Explorer):
    """PPO's clip for one token: sliders for advantage, ε and ratio.

    Attributes:
        advantage, cliprange, ratio: the sliders.
    """

    def __init__(self, advantage: float = 1.0, cliprange: float = 0.2, ratio: float = 1.4) -> None:
        """Start the sliders at these values.

        Raises:
            TypeError, ValueError: a value that is not a number, or is outside its slider.
        """
        self.advantage = slider("advantage", "advantage A", advantage, *ADVANTAGES)
        self.cliprange = slider("cliprange", "ε (cliprange)", cliprange, 0.05, 0.5)
        self.ratio = slider("ratio", "ratio ρ", ratio, *RATIOS)
        sliders = (self.advantage, self.cliprange, self.ratio)
        super().__init__([in_a_row(sliders)], sliders)

    def _compute(self) -> None:
        self._values = self.ratio.value, self.advantage.value, self.cliprange.value

    def _draw(self, figure: Figure) -> None:
        draw_clip(figure, *self._values)

    def _describe(self) -> str:
        return describe(*self._values)
