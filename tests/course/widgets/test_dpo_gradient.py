"""The DPO gradient: its numbers against the formula, its sliders and its words."""

import math

import pytest

from rlhf_toy.course.widgets.dpo_gradient import DPOGradient, describe, push


@pytest.mark.parametrize("chosen, rejected, beta", [(0, 0, 0.5), (-4, -6, 0.5), (3, -2, 1.5)])
def test_the_pushes_are_beta_times_the_weight(chosen, rejected, beta):
    found = push(chosen, rejected, beta)
    weight = 1 / (1 + math.exp(beta * (chosen - rejected)))
    assert found.chosen == pytest.approx(beta * weight)
    assert found.rejected == pytest.approx(-beta * weight)
    assert found.loss == pytest.approx(-math.log(1 - weight))
    assert found.margin == pytest.approx(beta * (chosen - rejected))


@pytest.mark.parametrize(
    "chosen, rejected, said",
    [
        (-1, -3, "gives both less often than the reference"),
        (1, 2, "disagrees with the annotator"),
        (2, 2, "the loss is log 2"),
        (2, -2, "agrees with the annotator"),
    ],
)
def test_the_words_say_what_the_numbers_mean(chosen, rejected, said):
    assert said in describe(chosen, rejected, 0.5)


@pytest.mark.parametrize("name, value", [("chosen", 4.0), ("rejected", 5.0), ("beta", 2.0)])
def test_each_slider_draws_again_and_says_so(name, value, capsys):
    cell = DPOGradient()
    before, said = cell.chart.value, cell.line.value
    getattr(cell, name).value = value
    assert cell.chart.value != before and cell.line.value != said
    assert capsys.readouterr() == ("", "")


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"beta .* at least 0\.05 and at most 2, got 0"):
        DPOGradient(beta=0)
    with pytest.raises(TypeError, match="chosen must be a number, got None"):
        DPOGradient(chosen=None)
    with pytest.raises(ValueError, match="rejected_ratio must be a finite number"):
        push(0.0, math.inf, 0.5)
