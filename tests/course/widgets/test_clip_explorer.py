"""The clip explorer: its numbers against the formula, its sliders and its words."""

import pytest
import torch

from rlhf_toy.course.widgets.clip_explorer import ClipExplorer, describe, objective_and_gradient


@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.0, 1.0])
@pytest.mark.parametrize("cliprange", [0.1, 0.3])
def test_objective_and_gradient_are_those_of_the_formula(advantage, cliprange):
    ratios = torch.linspace(0.35, 1.65, 50, dtype=torch.float64)
    objective, gradient = objective_and_gradient(ratios, advantage, cliprange)
    clipped = ratios.clamp(1 - cliprange, 1 + cliprange)
    torch.testing.assert_close(objective, torch.minimum(ratios * advantage, clipped * advantage))
    held = (ratios > 1 + cliprange) if advantage > 0 else (ratios < 1 - cliprange)
    torch.testing.assert_close(gradient, torch.where(held, 0.0, ratios * advantage))


@pytest.mark.parametrize(
    "ratio, advantage, said",
    [
        (1.4, 1.0, "has risen enough and gets no push"),
        (0.6, -1.0, "has fallen enough"),
        (0.6, 1.0, "outside the band: the probability is pushed up"),
        (1.4, -1.0, "outside the band: the probability is pushed down"),
        (1.1, 1.0, "not active: the probability is pushed up"),
        (1.1, 0.0, "no push"),
    ],
)
def test_the_words_say_whether_the_clip_is_active(ratio, advantage, said):
    assert said in describe(ratio, advantage, 0.2)


@pytest.mark.parametrize("name, value", [("advantage", -1.0), ("cliprange", 0.4), ("ratio", 0.5)])
def test_each_slider_draws_again_and_says_so(name, value, capsys):
    cell = ClipExplorer()
    before, said = cell.chart.value, cell.line.value
    getattr(cell, name).value = value
    assert cell.chart.value != before and cell.line.value != said
    assert capsys.readouterr() == ("", "")


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"cliprange .* at least 0\.05 and at most 0\.5, got 0\.9"):
        ClipExplorer(cliprange=0.9)
    with pytest.raises(TypeError, match="ratio must be a number, got 'high'"):
        ClipExplorer(ratio="high")
    with pytest.raises(ValueError, match="ratios must be above 0"):
        objective_and_gradient(torch.tensor([1.0, 0.0]), 1.0, 0.2)
    with pytest.raises(TypeError, match="ratios must be a tensor"):
        objective_and_gradient([1.0], 1.0, 0.2)
