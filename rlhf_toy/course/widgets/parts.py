"""What the interactive cells share: controls, charts, lines of text, and the cell around them.

Plain ipywidgets (7.7 and 8) and matplotlib. A figure is a PNG in an `Image` widget: drawing again
replaces the bytes, so outputs do not pile up and nothing depends on a notebook's backend.
"""

from __future__ import annotations

import base64
import html
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import ipywidgets
import matplotlib as mpl
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from rlhf_toy.checks import check_number
from rlhf_toy.plots import STYLE

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MARGINS = {"left": 0.085, "right": 0.985, "bottom": 0.17, "top": 0.92, "wspace": 0.25}
LOG_STEP = 0.05  # of a logarithmic slider, in powers of ten

Control = TypeVar("Control", bound=ipywidgets.Widget)

# Figures


def png(draw: Callable[[Figure], None], size: tuple[float, float] = (8.0, 3.6)) -> bytes:
    """Return a figure in the course's style as PNG.

    It is made without pyplot: no figure stays open, and a thread can draw too.

    Args:
        draw: fills the empty figure that it is given.
        size: width and height in inches.
    """
    in_force = all(mpl.rcParams[name] == value for name, value in STYLE.items())
    # Settings are global: a thread that restores them could undo what a cell has just set.
    with nullcontext() if in_force else mpl.rc_context(STYLE):
        figure = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.canvas.print_png(file)
    return file.getvalue()


def panels(
    figure: Figure | SubFigure, n: int, margins: Mapping[str, float] = MARGINS, **options: Any
) -> list[Axes]:
    """Add n axes side by side to an empty figure, with fixed margins.

    The automatic layout takes as long as the drawing itself, too long for a slider's chart. The
    options are those of `Figure.subplots`.
    """
    figure.figure.set_layout_engine("none")
    return list(figure.subplots(1, n, gridspec_kw=dict(margins), **options))


def picture(data: bytes) -> ipywidgets.Image:
    """Return an image as wide as its cell allows; set its `value` to new bytes to redraw."""
    return ipywidgets.Image(
        value=data,
        format="png",
        layout=ipywidgets.Layout(max_width="100%", object_fit="contain", align_self="flex-start"),
    )


# Controls


def labelled(
    kind: Callable[..., Control], description: str, width: str = "22em", **options: Any
) -> Control:
    """Return a control of this kind with its full description, never wider than the page."""
    return kind(
        description=description,
        style={"description_width": "initial"},
        layout={"width": width, "max_width": "98%"},
        **options,
    )


def slider(
    name: str, description: str, value: float, low: float, high: float, step: float = 0.05
) -> ipywidgets.FloatSlider:
    """Return a slider from `low` to `high`.

    Raises:
        TypeError, ValueError: the value is not a number, or is outside the slider; the message
            calls it `name`.
    """
    check_number(name, value, low, high)
    # A long description must not leave less room for the handle.
    width = f"{18 + len(description) // 2}em"
    options = {"value": value, "min": low, "max": high, "step": step}
    return labelled(ipywidgets.FloatSlider, description, width, **options)


def log_slider(
    description: str, value: float, low: float, high: float, **options: Any
) -> ipywidgets.FloatLogSlider:
    """Return a logarithmic slider for values from `low` to `high`, all above 0.

    Its ends are an integer number of steps from the start value, because a browser moves every
    value to such a step.
    """
    # A tiny bit more, so that rounding errors do not cost a step.
    below, above = (int(abs(math.log10(end / value)) / LOG_STEP + 1e-9) for end in (low, high))
    middle = math.log10(value)
    options |= {"value": value, "step": LOG_STEP, "readout_format": ".3g"}
    options |= {"min": middle - below * LOG_STEP, "max": middle + above * LOG_STEP}
    return labelled(ipywidgets.FloatLogSlider, description, "27em", **options)


def button(
    description: str, press: Callable[[], object], width: str = "7.5em", style: str = ""
) -> ipywidgets.Button:
    """Return a button that calls `press`; `style` is "", "primary" or another of ipywidgets."""
    made = ipywidgets.Button(
        description=description, button_style=style, layout={"width": width, "max_width": "98%"}
    )
    made.on_click(lambda _: press())
    return made


def in_a_row(widgets: Sequence[ipywidgets.Widget], **layout: str) -> ipywidgets.HBox:
    """Return widgets side by side, on several lines where the page is narrow."""
    return ipywidgets.HBox(list(widgets), layout=ipywidgets.Layout(flex_flow="row wrap", **layout))


# Text


def words(text: str = "") -> ipywidgets.HTML:
    """Return a line of text: what the figure shows in numbers, or what went wrong."""
    line = ipywidgets.HTML()
    say(line, text)
    return line


def say(line: ipywidgets.HTML, text: str, wrong: bool = False) -> None:
    """Put plain text into the line; if `wrong`, a word and a colour mark it as an error."""
    shown = html.escape(text)
    if wrong:
        shown = f'<span style="color:#D55E00"><b>Not possible:</b> {shown}</span>'
    line.value = f'<div role="status" aria-live="polite" style="line-height:1.5">{shown}</div>'


# Cells


class InteractiveCell:
    """A box of widgets that displays itself, and a static figure where there is no kernel.

    Attributes:
        box: the widgets; code can set their values just as a reader does.
        figure: what saved notebooks and web pages show instead, a PNG or HTML.
    """

    def __init__(self, box: ipywidgets.Box, figure: bytes | str) -> None:
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
        # Without a kernel the figure is shown. Colab saves none of its kernel's widgets, and may
        # choose the wrong one of the two.
        if "google.colab" not in sys.modules:
            if isinstance(self.figure, str):
                data["text/html"] = self.figure
            else:
                data["image/png"] = base64.b64encode(self.figure).decode()
        display(data, raw=True)


class Explorer(InteractiveCell):
    """Controls, a chart of their values, and the chart in words; every change updates both.

    A subclass makes its controls and has three methods: `_compute` reads the controls and keeps the
    result, `_draw` draws it into an empty figure, `_describe` returns it as text. ipywidgets would
    swallow their errors, so the line of words shows them, and the chart stays as it was.

    Attributes:
        chart: the chart, an image.
        line: the chart in words, or what went wrong.
    """

    SIZE = (9.0, 3.3)  # of the chart, in inches
    _waits = False  # whether changes wait for the end of `_at_once`

    def __init__(
        self,
        above: Sequence[ipywidgets.Widget],
        controls: Sequence[ipywidgets.Widget],
        below: Sequence[ipywidgets.Widget] = (),
    ) -> None:
        """Draw the values with which the controls start.

        Args:
            above: rows above the chart.
            controls: those whose values the chart follows.
            below: rows below the line of words.

        Raises:
            ValueError: from `_compute`, if the first values are not possible.
        """
        self._compute()
        first = self._drawing()
        self.chart, self.line = picture(first), words()
        super().__init__(ipywidgets.VBox([*above, self.chart, self.line, *below]), first)
        for control in controls:
            control.observe(self._show, "value")
        self._speak()

    def _drawing(self) -> bytes:
        return png(self._draw, self.SIZE)

    def _speak(self) -> None:
        say(self.line, self._describe())

    def _show(self, _: object = None) -> None:
        """Compute, draw and describe the values that the controls have now."""
        if self._waits:
            return
        try:
            self._compute()
            self.chart.value = self._drawing()
            self._speak()
        except Exception as error:
            reason = str(error)
            if not isinstance(error, ValueError):  # not about a value that the reader chose
                reason = f"{type(error).__name__}: {reason}"
            say(self.line, f"{reason}. The chart still shows the previous values.", wrong=True)

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Let the block move several controls, then draw once."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self._show()
