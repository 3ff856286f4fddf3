"""DPO gradient: what the loss of one pair does to its two log-probabilities (L23, L24)."""

from __future__ import annotations

from typing import NamedTuple

import ipywidgets
import torch
from matplotlib.figure import Figure

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
from rlhf_toy.losses import dpo_loss
from rlhf_toy.plots import COLOURS

LOG_RATIOS = (-6.0, 6.0)  # of the sliders, nats
BETAS = (0.05, 2.0)
ARROW = 5.0  # length in the chart of a push with weight 1, nats


class Push(NamedTuple):
    """A pair under DPO: margin and loss, and how the loss pushes each log-probability."""

    margin: float  # implicit reward of the chosen − of the rejected, logits
    loss: float  # nats
    chosen: float  # −∂loss/∂log π(chosen)
    rejected: float


def push(chosen_ratio: float, rejected_ratio: float, beta: float) -> Push:
    """Margin, loss and pushes of a pair, the pushes by autograd of `dpo_loss`.

    Args:
        chosen_ratio: log π/π_ref of the preferred response, nats.
        rejected_ratio: of the other.
        beta: KL weight.
    """
    ratios = torch.tensor([[chosen_ratio], [rejected_ratio]], dtype=torch.float64)
    ratios.requires_grad_()
    zero = torch.zeros(1, dtype=torch.float64)  # the reference's log-probabilities cancel
    loss = dpo_loss(ratios[0], ratios[1], zero, zero, beta)
    (gradient,) = torch.autograd.grad(loss, ratios)
    margin = beta * (chosen_ratio - rejected_ratio)
    return Push(margin, loss.item(), -gradient[0].item(), -gradient[1].item())


def draw_push(figure: Figure, chosen_ratio: float, rejected_ratio: float, beta: float) -> None:
    """The loss over the margin with the pair on it, and both log-ratios with their pushes."""
    found = push(chosen_ratio, rejected_ratio, beta)
    left, right = panels(figure, 2)
    margins = torch.linspace(-6, 6, 121, dtype=torch.float64)
    left.plot(margins, torch.nn.functional.softplus(-margins), color="0.3", label="−log σ(margin)")
    left.plot(found.margin, found.loss, "o", color="black", markersize=9, label="this pair")
    left.axvline(0, color="0.6", linestyle=":", label="the reference")
    left.set(xlabel="margin (logits)", ylabel="loss (nats)")
    left.legend(fontsize=9)
    sides = (("chosen", chosen_ratio, found.chosen), ("rejected", rejected_ratio, found.rejected))
    for place, (name, ratio, strength) in enumerate(sides):
        right.plot(ratio, place, "so"[place], color=COLOURS[place], markersize=11, label=name)
        # A push is at most β.
        tip = (ratio + ARROW * strength / beta, place)
        style = {"arrowstyle": "->", "color": COLOURS[place], "linewidth": 2.5}
        right.annotate("", tip, (ratio, place), arrowprops=style)
    right.axvline(0, color="0.6", linestyle=":")
    right.set_yticks((0, 1), ("chosen", "rejected"))
    right.tick_params("y", rotation=90)
    right.set(
        xlabel="log π/π_ref, nats; arrows: push / β",
        xlim=(LOG_RATIOS[0] - ARROW, LOG_RATIOS[1] + ARROW),
        ylim=(1.6, -0.6),
    )


def describe(chosen_ratio: float, rejected_ratio: float, beta: float) -> str:
    """What the pair's numbers are, and what they mean."""
    found = push(chosen_ratio, rejected_ratio, beta)
    text = (
        f"Margin {found.margin:+.3f}, loss {found.loss:.3f}, weight {found.chosen / beta:.3f}. "
        f"Push on log π: chosen {found.chosen:+.3f}, rejected {found.rejected:+.3f}. "
    )
    if chosen_ratio < 0 and rejected_ratio < 0 and found.margin > 0:
        return (
            text + "Both have become rarer than under the reference, and the loss is below log 2."
        )
    if found.margin < 0:
        return text + "The policy contradicts the annotator, so the weight is above one half."
    if found.margin == 0:
        return text + "The policy does not tell them apart: the loss is log 2."
    return text + "The policy agrees with the annotator: the more, the weaker the push."


class DPOGradient(InteractiveCell):
    """The DPO loss of one pair: sliders for both log-ratios and β.

    Attributes:
        chosen, rejected, beta: the sliders.
        picture: the chart.
        line: what it shows, in words.
    """

    def __init__(self, chosen: float = -1.0, rejected: float = -3.0, beta: float = 0.5) -> None:
        """Where the sliders start.

        Raises:
            ValueError: a number outside its slider.
        """
        self.chosen = slider("chosen", "log π/π_ref, chosen", chosen, *LOG_RATIOS, 0.1)
        self.rejected = slider("rejected", "log π/π_ref, rejected", rejected, *LOG_RATIOS, 0.1)
        self.beta = slider("beta", "β", beta, *BETAS)
        sliders = (self.chosen, self.rejected, self.beta)
        for one in sliders:
            one.observe(self._redraw, "value")
        self.line, first = words(), self._drawing()
        self.picture = picture(first)
        super().__init__(ipywidgets.VBox([in_a_row(sliders), self.picture, self.line]), first)
        self._redraw()

    def _values(self) -> tuple[float, float, float]:
        return self.chosen.value, self.rejected.value, self.beta.value

    def _drawing(self) -> bytes:
        return png(lambda figure: draw_push(figure, *self._values()), (9.0, 3.3))

    def _redraw(self, _: object = None) -> None:
        self.picture.value = self._drawing()
        say(self.line, describe(*self._values()))
