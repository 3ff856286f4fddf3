"""What the interactive cells share."""

import math

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from rlhf_toy.course.widgets import parts

PNG = b"\x89PNG"


def test_a_figure_becomes_png_and_leaves_nothing_open():
    before, still_open = dict(plt.rcParams), plt.get_fignums()
    data = parts.png(lambda figure: figure.add_subplot().plot([1, 2]), (2.0, 1.0))
    assert data.startswith(PNG)
    assert plt.get_fignums() == still_open
    assert dict(plt.rcParams) == before


def test_what_is_said_is_text_and_not_markup():
    line = parts.words("1 < 2")
    assert "1 &lt; 2" in line.value and 'role="status"' in line.value
    parts.say(line, "<b>no</b>", wrong=True)
    assert "Not possible" in line.value and "<b>no</b>" not in line.value


@pytest.mark.parametrize("in_colab", [False, True])
def test_a_cell_shows_its_widgets_and_a_figure_for_readers_without_a_kernel(monkeypatch, in_colab):
    if in_colab:
        monkeypatch.setitem(parts.sys.modules, "google.colab", object())
    shown = []
    monkeypatch.setattr(parts, "display", lambda data, raw: shown.append(data))
    cell = parts.InteractiveCell(ipywidgets.VBox([]), PNG)
    cell._ipython_display_()
    cell._ipython_display_()
    assert len(shown) == 2
    for data in shown:
        assert data[parts.WIDGET_VIEW]["model_id"] == cell.box.model_id
        assert ("image/png" in data) is not in_colab


def test_a_log_slider_keeps_its_start_value_on_a_step_and_its_ends_in_range():
    for value, low, high in ((0.5, 0.01, 100.0), (1e-3, 1e-4, 1e-2), (0.01, 0.01, 100.0)):
        made = parts.log_slider("β", value, low, high)
        steps = (math.log10(value) - made.min) / parts.LOG_STEP
        assert made.value == value and steps == pytest.approx(round(steps))
        assert low <= 10**made.min * (1 + 1e-9) < low * 10**parts.LOG_STEP
        assert high >= 10**made.max * (1 - 1e-9) > high / 10**parts.LOG_STEP


def test_a_slider_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match=r"share must be .* at most 1, got 2"):
        parts.slider("share", "a share", 2, 0, 1)
    with pytest.raises(TypeError, match="share must be a number, got '1'"):
        parts.slider("share", "a share", "1", 0, 1)


class Square(parts.Explorer):
    """Two sliders and the square root of their sum."""

    def __init__(self):
        self.drawn = 0
        self.sliders = [parts.slider(name, name, 2, -5, 5) for name in "ab"]
        super().__init__([parts.in_a_row(self.sliders)], self.sliders)

    def _compute(self):
        a, b = (one.value for one in self.sliders)
        if a + b == 10:
            raise RuntimeError("too much")
        self.root = math.sqrt(a + b)

    def _draw(self, figure):
        self.drawn += 1
        figure.text(0, 0, f"{self.root:.3f}")

    def _describe(self):
        return f"the root is {self.root:g}"


def test_an_explorer_follows_its_controls_in_picture_and_words():
    cell = Square()
    assert cell.chart.value == cell.figure and "the root is 2" in cell.line.value
    cell.sliders[1].value = -1.0
    assert cell.chart.value != cell.figure and "the root is 1" in cell.line.value


@pytest.mark.parametrize(
    ("values", "said"), [((-5, 2), "math domain error"), ((5, 5), "RuntimeError: too much")]
)
def test_an_explorer_says_an_error_and_keeps_its_chart(values, said):
    cell = Square()
    with cell._at_once():
        for one, value in zip(cell.sliders, values, strict=True):
            one.value = value
    assert "Not possible" in cell.line.value and said in cell.line.value
    assert ("Error" in cell.line.value) == ("Error" in said)
    assert cell.chart.value == cell.figure
    cell.sliders[0].value = cell.sliders[1].value = 2
    assert "the root is 2" in cell.line.value


def test_several_controls_can_move_and_draw_once():
    cell = Square()
    with cell._at_once():
        for one in cell.sliders:
            one.value = 0.5
    assert cell.drawn == 2 and "the root is 1" in cell.line.value


def test_a_button_calls_its_function_at_each_press():
    presses = []
    made = parts.button("press", lambda: presses.append(1), style="primary")
    made.click()
    made.click()
    assert presses == [1, 1] and made.button_style == "primary"
