"""DPO gradient: what the loss of one pair does to its two log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from rlhf_toy.checks import check_number
from rlhf_toy.course.widgets.parts import Explorer, in_a_row, panels, slider
from rlhf_toy.losses import dpo_loss
from rlhf_toy.plots import COLOUR

LOG_RATIOS = (-6.0, 6.0)  # range of the sliders, nats
BETAS = (0.05, 2.0)
ARROW = 5.0  # length in the chart of a push with weight 1, nats


class Push(NamedTuple):
    """A pair under DPO: margin, loss, and how the loss pushes each log-probability."""

    margin: float  # implicit reward of the chosen response minus that of the rejected, logits
    loss: float  # nats
    chosen: float  # −∂loss/∂log π(chosen)
    rejected: float


def push(chosen_ratio: float, rejected_ratio: float, beta: float) -> Push:
    """Return margin, loss and pushes of a pair; the pushes are autograd's on `dpo_loss`.

    Args:
        chosen_ratio: log π/π_ref of the chosen response, in nats.
        rejected_ratio: the same of the rejected response.
        beta: weight of the KL penalty.

    Raises:
        TypeError, ValueError: a log-ratio that is not a finite number, or a bad beta.
    """
    check_number("chosen_ratio", chosen_ratio)
    check_number("rejected_ratio", rejected_ratio)
    ratios = torch.tensor([[chosen_ratio], [rejected_ratio]], dtype=torch.float64)
    ratios.requires_grad_()
    zero = torch.zeros(1, dtype=torch.float64)  # the reference's log-probabilities cancel
    loss = dpo_loss(ratios[0], ratios[1], zero, zero, beta)
    (gradient,) = torch.autograd.grad(loss, ratios)
    margin = beta * (chosen_ratio - rejected_ratio)
    return Push(margin, loss.item(), -gradient[0].item(), -gradient[1].item())


def draw_push(figure: Figure, chosen_ratio: float, rejected_ratio: float, beta: float) -> None:
    """Draw the loss against the margin with the pair on it, and both log-ratios with arrows."""
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
        right.plot(ratio, place, "so"[place], color=COLOUR[name], markersize=11, label=name)
        # A push is at most β.
        tip = (ratio + ARROW * strength / beta, place)
        style = {"arrowstyle": "->", "color": COLOUR[name], "linewidth": 2.5}
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
    """Describe the pair: its numbers, and what they mean."""
    found = push(chosen_ratio, rejected_ratio, beta)
    text = (
        f"Margin {found.margin:+.3f}, loss {found.loss:.3f}, weight {found.chosen / beta:.3f}. "
        f"Push on log π: chosen {found.chosen:+.3f}, rejected {found.rejected:+.3f}. "
    )
    if chosen_ratio < 0 and rejected_ratio < 0 and found.margin > 0:
        return (
            text + "The policy gives both less often than the reference; the loss is below log 2."
        )
    if found.margin < 0:
        return text + "The policy disagrees with the annotator, so the weight is above one half."
    if found.margin == 0:
        return text + "The policy scores both the same, so the loss is log 2."
    return text + "The policy agrees with the annotator; a larger margin weakens the push."


class DPOGradient(Explorer):
    """The DPO loss of one pair: sliders for both log-ratios and β.

    Attributes:
        chosen, rejected, beta: the sliders.
    """

    def __init__(self, chosen: float = -1.0, rejected: float = -3.0, beta: float = 0.5) -> None:
        """Start the sliders at these values.

        Raises:
            TypeError, ValueError: a value that is not a number, or is outside its slider.
        """
        self.chosen = slider("chosen", "log π/π_ref, chosen", chosen, *LOG_RATIOS, 0.1)
        self.rejected = slider("rejected", "log π/π_ref, rejected", rejected, *LOG_RATIOS, 0.1)
        self.beta = slider("beta", "β", beta, *BETAS)
        sliders = (self.chosen, self.rejected, self.beta)
        super().__init__([in_a_row(sliders)], sliders)

    def _compute(self) -> None:
        self._values = self.chosen.value, self.rejected.value, self.beta.value

    def _draw(self, figure: Figure) -> None:
        draw_push(figure, *self._values)

    def _describe(self) -> str:
        return describe(*self._values)
