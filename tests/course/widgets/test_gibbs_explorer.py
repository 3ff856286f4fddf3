"""The Gibbs explorer, without a browser."""

import math
import re

import numpy as np
import pytest
import torch

from rlhf_toy.course.widgets import gibbs_explorer as module
from rlhf_toy.course.widgets.gibbs_explorer import (
    GibbsExplorer,
    find_optimum,
    gibbs_frontier,
    log_probabilities,
    optimum_words,
    partition_text,
)
from rlhf_toy.exact import gibbs_policy


def number(text, name):
    """The number that the words give after `name = `."""
    return float(re.search(rf"{re.escape(name)} = (−?[\d.]+\d)", text).group(1).replace("−", "-"))


# Arithmetic


def test_the_optimum_of_two_responses_by_hand():
    # π_ref = (3/4, 1/4), r = (0, log 3), β = 1: both get the weight 3/4, and Z = 3/2.
    o = find_optimum([3, 1], [0, math.log(3)], 1.0)
    assert o.logps.exp().tolist() == pytest.approx([0.5, 0.5])
    assert o.log_z == pytest.approx(math.log(1.5))
    assert o.reward == pytest.approx(math.log(3) / 2)
    assert o.kl == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert o.objective == pytest.approx(o.log_z)


@pytest.mark.parametrize("beta", [0.01, 0.3, 100.0])
def test_what_the_optimum_is_worth_is_beta_log_z(beta):
    o = find_optimum([5, 3, 1, 2, 0], [5, -5, 2, 0.5, 5], beta)
    assert o.objective == pytest.approx(beta * o.log_z, rel=1e-9)
    assert o.objective == pytest.approx(o.reward - beta * o.kl, rel=1e-9)


def test_a_response_that_is_never_given_stays_impossible():
    o = find_optimum([1, 0], [0, 5], 0.1)
    assert o.logps.exp().tolist() == [1, 0]
    assert o.kl == 0
    assert o.reward == 0


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([0, 0], ValueError, "not all 0"),
        ([1, -1], ValueError, "at least 0"),
        ([], ValueError, "not all 0"),
        ([1, math.inf], ValueError, r"weights\[1\] must be a finite number"),
        (["1", 1], TypeError, r"weights\[0\] must be a number"),
    ],
)
def test_weights_that_are_no_distribution(weights, error, message):
    with pytest.raises(error, match=message):
        log_probabilities(weights)


def test_the_frontier_goes_from_the_reference_to_the_best_that_it_gives():
    ref_logps = log_probabilities([2, 1, 1, 0])
    rewards = torch.tensor([0.0, 1, 1, 5], dtype=torch.float64)
    kls, earned = gibbs_frontier(ref_logps, rewards)
    assert kls[0] == 0
    assert earned[0] == pytest.approx(0.5)
    assert kls[-1] == pytest.approx(math.log(2))
    assert earned[-1] == pytest.approx(1)
    assert (np.diff(kls) >= -1e-12).all() and (np.diff(earned) >= -1e-12).all()


def test_no_policy_lies_above_the_frontier_and_the_optimum_lies_on_it():
    ref_logps = log_probabilities([5, 3, 1, 2])
    rewards = torch.tensor([0.0, 1, 2, -1], dtype=torch.float64)
    kls, earned = gibbs_frontier(ref_logps, rewards)
    o = find_optimum([5, 3, 1, 2], rewards.tolist(), 0.4)
    assert np.interp(o.kl, kls, earned) == pytest.approx(o.reward, abs=1e-3)
    logps = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 4))).log_softmax(-1)
    kl = (logps.exp() * (logps - ref_logps)).sum(-1).numpy()
    reward = (logps.exp() * rewards).sum(-1).numpy()
    assert (reward <= np.interp(kl, kls, earned) + 1e-3).all()


# Words


def test_the_words_have_the_numbers():
    o = find_optimum([3, 1], [0, math.log(3)], 1.0)
    text = optimum_words(o, ["yes", "no"])
    assert number(text, "Z") == 1.5
    assert number(text, "log Z") == pytest.approx(0.4055)
    assert number(text, "E[r]") == pytest.approx(0.5493)
    assert number(text, "KL") == pytest.approx(0.1438)
    assert "yes 75.0% → 50.0%, no 25.0% → 50.0%" in text


@pytest.mark.parametrize(
    "log_z, text", [(0.0, "1"), (math.log(2.5), "2.5"), (500.0, "10^217.1"), (-50.0, "10^-21.7")]
)
def test_a_partition_sum_of_any_size(log_z, text):
    assert partition_text(log_z) == text


# The widget


def test_moving_a_slider_draws_again_and_says_it(capfd):
    cell = GibbsExplorer()
    before, said = cell.chart.value, cell.line.value
    assert before == cell.figure
    cell.beta.value = 2.0
    assert cell.chart.value != before and cell.line.value != said
    assert cell.optimum.beta == 2.0
    cell.rewards[1].value = 3.0
    cell.weights[2].value = 0.0
    weights = [slider.value for slider in cell.weights]
    rewards = torch.tensor([slider.value for slider in cell.rewards], dtype=torch.float64)
    expected = gibbs_policy(log_probabilities(weights), rewards, 2.0)
    assert torch.allclose(cell.optimum.logps.exp(), expected.exp())
    assert "At β = 2:" in cell.line.value
    assert capfd.readouterr() == ("", "")


def test_a_reference_that_says_nothing_is_said_and_leaves_the_picture():
    cell = GibbsExplorer(rewards=[0, 1], weights=[1, 0])
    cell.weights[0].value = 0.5
    before = cell.chart.value
    cell.weights[0].value = 0.0
    assert "Not possible" in cell.line.value and "raise one of them" in cell.line.value
    assert cell.chart.value == before
    cell.weights[1].value = 1.0
    assert "Not possible" not in cell.line.value
    assert cell.optimum.logps.exp().tolist() == [0, 1]


def test_reset_puts_everything_back_and_draws_once(monkeypatch):
    cell = GibbsExplorer(beta=1.0)
    said = cell.line.value
    for slider in (cell.beta, *cell.rewards, *cell.weights):
        slider.value = slider.value + 0.5
    assert cell.line.value != said
    drawn, draw = [], module.draw_optimum
    monkeypatch.setattr(module, "draw_optimum", lambda *args: drawn.append(1) or draw(*args))
    cell.reset.click()
    assert cell.line.value == said
    assert cell.chart.value == cell.figure
    assert len(drawn) == 1


@pytest.mark.parametrize("beta", [0.01, 100])
@pytest.mark.parametrize("rewards", [[5, -5, 5, -5, 5], [1, 1, 1, 1, 1], [5, 5, 5, 5, -5]])
def test_the_corners_can_be_drawn(beta, rewards, capfd):
    cell = GibbsExplorer(rewards, [10, 0, 0, 0.1, 0], beta)
    assert math.isfinite(cell.optimum.objective)
    assert "nan" not in cell.line.value and "inf" not in cell.line.value
    assert capfd.readouterr() == ("", "")


def test_every_control_has_a_description_and_two_cells_do_not_meet():
    one, other = GibbsExplorer(), GibbsExplorer()
    for control in (one.beta, one.reset, *one.rewards, *one.weights):
        assert control.description
    one.beta.value = 3.0
    assert other.optimum.beta == 0.5
    assert other.chart.value == other.figure


def test_weights_in_any_unit_keep_their_ratios_to_a_decimal():
    cell = GibbsExplorer(rewards=[0, 1, 2, 3], weights=[600, 300, 0.001, 0])
    assert [slider.value for slider in cell.weights] == [10, 5, 0.1, 0]


def test_what_a_browser_sends_back_for_the_first_values_changes_nothing():
    cell = GibbsExplorer(beta=0.5)
    said = cell.line.value
    steps = round((math.log10(0.5) - cell.beta.min) / cell.beta.step)
    cell.beta.value = 10 ** (cell.beta.min + steps * cell.beta.step)
    cell.rewards[0].value = 1e-15
    cell.weights[1].value = 3.0000000000000004
    assert cell.line.value == said
    assert cell.chart.value == cell.figure
    assert 0.01 <= 10**cell.beta.min < 0.0113 and 88 < 10**cell.beta.max <= 100


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"rewards": 3}, TypeError, "rewards must be a list of numbers, got 3"),
        ({"rewards": ["high", 1]}, TypeError, r"rewards\[0\] must be a number, got 'high'"),
        ({"rewards": [1]}, ValueError, "2 to 6 rewards, got 1"),
        ({"rewards": [1] * 7}, ValueError, "2 to 6 rewards, got 7"),
        ({"rewards": [1, 2]}, ValueError, "2 rewards need 2 weights"),
        ({"rewards": [1, 2], "weights": [1, 1], "names": ["a", "a"]}, ValueError, "different"),
        ({"rewards": [1, 9], "weights": [1, 1]}, ValueError, "divide them"),
        (
            {"rewards": [1, math.nan], "weights": [1, 1]},
            ValueError,
            r"rewards\[1\] must be a finite",
        ),
        ({"names": 5}, TypeError, "names must be a list"),
        ({"rewards": [1, 2], "weights": [0, 0]}, ValueError, "not all 0"),
        ({"beta": "big"}, TypeError, "beta must be a number"),
        ({"beta": True}, TypeError, "beta must be a number"),
        ({"beta": 0}, ValueError, "at least 0.01 and at most 100, got 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(given, error, message):
    with pytest.raises(error, match=message):
        GibbsExplorer(**given)
