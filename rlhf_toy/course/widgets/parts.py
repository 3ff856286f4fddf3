"""What the interactive cells share: how one is shown, how a figure gets into it, how it speaks.

Plain ipywidgets (7.7 and 8) and matplotlib. A figure is a PNG in an `Image` widget: drawing again
replaces the bytes, so that no outputs pile up and nothing depends on a notebook's backend.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import ipywidgets
import matplotlib as mpl
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_toy.plots import STYLE

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def png(draw: Callable[[Figure], None], size: tuple[float, float] = (8.0, 3.6)) -> bytes:
    """A figure in the course's style as PNG.

    It is made without pyplot: nothing is left open, and a thread may draw as well.

    Args:
        draw: is given an empty figure and fills it.
        size: width and height in inches.
    """
    in_force = all(mpl.rcParams[name] == value for name, value in STYLE.items())
    # Settings are global: a thread that put them back might undo what a cell has just set.
    with nullcontext() if in_force else mpl.rc_context(STYLE):
        figure = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.canvas.print_png(file)
    return file.getvalue()


def panels(figure: Figure, n: int) -> list[Axes]:
    """n axes side by side in an empty figure, at fixed places.

    The automatic layout takes as long as the drawing, which a slider's picture has no time for.
    """
    figure.set_layout_engine("none")
    return [figure.add_axes((i / n + 0.085, 0.17, 1 / n - 0.1, 0.75)) for i in range(n)]


def picture(data: bytes) -> ipywidgets.Image:
    """An image as wide as its cell allows; give its `value` new bytes to draw again."""
    return ipywidgets.Image(
        value=data,
        format="png",
        layout=ipywidgets.Layout(max_width="100%", object_fit="contain", align_self="flex-start"),
    )


def slider(
    name: str, description: str, value: float, low: float, high: float, step: float = 0.05
) -> ipywidgets.FloatSlider:
    """A slider with its description in full.

    Raises:
        ValueError: the value is outside it; the message calls it `name`.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
    return ipywidgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=description,
        style={"description_width": "initial"},
        # A long description must not leave the handle less room.
        layout={"width": f"{18 + len(description) // 2}em"},
    )


def in_a_row(widgets: Sequence[ipywidgets.Widget]) -> ipywidgets.HBox:
    """Widgets side by side, in several lines where the page is narrow."""
    return ipywidgets.HBox(list(widgets), layout=ipywidgets.Layout(flex_flow="row wrap"))


def words(text: str = "") -> ipywidgets.HTML:
    """A line of text below the controls: what the figure shows in numbers, or what went wrong."""
    line = ipywidgets.HTML()
    say(line, text)
    return line


def say(line: ipywidgets.HTML, text: str, wrong: bool = False) -> None:
    """Puts plain text into the line; what went wrong is marked by a word and a colour."""
    shown = html.escape(text)
    if wrong:
        shown = f'<span style="color:#D55E00"><b>Not possible:</b> {shown}</span>'
    line.value = f'<div role="status" aria-live="polite" style="line-height:1.5">{shown}</div>'


class InteractiveCell:
    """A box of widgets that shows itself, and a static figure where there is no kernel.

    Attributes:
        box: the widgets, for whoever drives them from code.
        figure: PNG that saved notebooks and pages show instead.
    """

    def __init__(self, box: ipywidgets.Box, figure: bytes) -> None:
        self.box = box
        self.figure = figure

    def _ipython_display_(self) -> None:
        data = {
            "text/plain": f"<{type(self).__name__}>",
            WIDGET_VIEW: {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.box.model_id,
            },
        }
        # A reader without a kernel falls back on the figure. Colab keeps none without its kernel's
        # widgets, and might choose the wrong one of two.
        if "google.colab" not in sys.modules:
            data["image/png"] = base64.b64encode(self.figure).decode()
        display(data, raw=True)
