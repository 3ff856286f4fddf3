"""What the interactive cells share."""

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
