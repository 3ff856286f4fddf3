"""The figures: what the lines, points, labels and colours show."""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from rlhf_toy.exact import Measure, Yardstick, expected_reward, gibbs_policy, kl_divergence
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.plots import COLOUR, COLOURS, MARKERS, STYLE, frontier, frontier_figure, use_style
from rlhf_toy.training import make_generator

BETA = 0.5


@pytest.fixture(scope="module")
def yardstick(bandit):
    config = GPTConfig.for_world(bandit, n_layer=1, n_head=2, n_embd=16)
    return Yardstick(bandit, PolicyModel(config, make_generator(0)), BETA)


@pytest.fixture(scope="module")
def measures(yardstick):
    at = {beta: gibbs_policy(yardstick.ref_logps, yardstick.rewards, beta) for beta in (0.5, 2.0)}
    return {
        "reference": yardstick.measure(yardstick.ref_logps),
        "optimum": yardstick.measure(at[0.5]),
        "cautious": yardstick.measure(at[2.0]),
    }


@pytest.fixture
def figure(yardstick, measures):
    figure = frontier_figure(yardstick, measures)
    yield figure
    plt.close(figure)


# The frontier


def test_the_frontier_climbs_from_the_reference_and_ends_just_above_the_highest_kl(yardstick):
    kls, rewards = frontier(yardstick, max_kl=0.7)
    assert kls.shape == rewards.shape and len(kls) > 20
    assert (np.diff(kls) > 0).all() and (np.diff(rewards) > 0).all()
    at_reference = float(expected_reward(yardstick.ref_logps, yardstick.rewards).mean())
    assert kls[0] < 1e-3 and rewards[0] == pytest.approx(at_reference, abs=0.05)
    assert (kls[:-1] <= 0.7).all() and kls[-1] > 0.7


def test_no_policy_is_above_the_frontier(yardstick):
    kls, rewards = frontier(yardstick, max_kl=3.0)
    noise = torch.randn(200, *yardstick.rewards.shape, generator=make_generator(0)).double()
    tilted = (yardstick.ref_logps + noise + yardstick.rewards).log_softmax(-1)
    kl = kl_divergence(tilted, yardstick.ref_logps.expand_as(tilted)).mean(-1).numpy()
    reward = expected_reward(tilted, yardstick.rewards.expand_as(tilted)).mean(-1).numpy()
    # The frontier is concave, so a straight line between two of its points is below it.
    slack = np.interp(kl, kls, np.diff(rewards, append=rewards[-1]))
    assert (kl < kls[-1]).all() and (reward < np.interp(kl, kls, rewards) + slack).all()
    assert reward.max() > rewards[0] + 0.5  # they do climb


def test_a_small_kl_leaves_only_the_reference(yardstick):
    kls, _ = frontier(yardstick, max_kl=0.0)
    assert len(kls) == 1 and kls[0] < 1e-3


# The figure


def test_the_figure_shows_the_frontier_the_optimums_line_and_each_policy(
    figure, yardstick, measures
):
    curve, line, *points = figure.axes[0].lines
    kls, rewards = frontier(yardstick, 1.25 * measures["optimum"].kl)
    np.testing.assert_array_equal(curve.get_xdata(), kls)
    np.testing.assert_array_equal(curve.get_ydata(), rewards)
    assert len(line.get_xdata()) > 5
    np.testing.assert_allclose(line.get_ydata(), yardstick.optimum + BETA * line.get_xdata())
    shown = [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points]
    assert shown == [(m.kl, m.reward) for m in measures.values()]


def test_the_line_touches_the_frontier_at_the_optimum_and_is_above_it_elsewhere(
    figure, yardstick, measures
):
    curve = figure.axes[0].lines[0]
    above = yardstick.optimum + BETA * curve.get_xdata() - curve.get_ydata()
    assert (above > -1e-12).all() and above.min() < 1e-3
    best = measures["optimum"]
    assert best.reward == pytest.approx(yardstick.optimum + BETA * best.kl)
    nearest = curve.get_xdata()[above.argmin()]
    assert nearest == pytest.approx(best.kl, abs=0.1)


def test_the_labels_name_the_policies_their_gaps_and_the_axes(figure, measures):
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "the best possible (exact)",
        "reward = J* + β KL, for β = 0.5",
        "reference: gap 100.0%",
        "optimum: gap 0.0%",
        f"cautious: gap {measures['cautious'].gap:.1%}",
    ]
    assert "KL" in axes.get_xlabel() and "nats" in axes.get_xlabel()
    assert "reward" in axes.get_ylabel() and "logits" in axes.get_ylabel()


def test_a_gap_just_below_0_is_no_minus_0(yardstick):
    figure = frontier_figure(yardstick, {"best": Measure(1.0, 0.5, 0.75, gap=-1e-9)})
    assert figure.axes[0].get_legend().get_texts()[2].get_text() == "best: gap 0.0%"
    plt.close(figure)


def test_each_policy_has_a_colour_and_a_marker_of_its_own(figure):
    points = figure.axes[0].lines[2:]
    known = [COLOUR["reference"], COLOUR["optimum"]]
    assert [p.get_color() for p in points] == [*known, COLOURS[2]]
    assert [p.get_marker() for p in points] == list(MARKERS[:3])
    assert (len(set(COLOURS)), len(set(MARKERS))) == (7, 9)


def test_many_policies_still_look_different(yardstick, measures):
    figure = frontier_figure(yardstick, {str(i): measures["optimum"] for i in range(20)})
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines[2:]}
    assert len(looks) == 20
    assert figure.axes[0].lines[2 + 7].get_color() == COLOURS[0]
    plt.close(figure)


# The style


def test_the_style_is_matplotlibs_default_once_it_is_asked_for():
    with mpl.rc_context():
        mpl.rcdefaults()
        use_style()
        figsize = {"figure.figsize": [7.0, 4.3]}  # matplotlib keeps a list
        assert {name: mpl.rcParams[name] for name in STYLE} == STYLE | figsize
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)


def test_a_figure_leaves_the_style_of_others_alone(yardstick, measures):
    with mpl.rc_context({"font.size": 5.0, "axes.grid": False}):
        plt.close(frontier_figure(yardstick, measures))
        assert mpl.rcParams["font.size"] == 5.0 and not mpl.rcParams["axes.grid"]


# Errors


def test_bad_arguments_are_refused(yardstick, measures):
    figures = plt.get_fignums()
    with pytest.raises(TypeError, match="yardstick must be a Yardstick, got None"):
        frontier(None, 1.0)
    with pytest.raises(TypeError, match="max_kl must be a number, got '1'"):
        frontier(yardstick, "1")
    with pytest.raises(ValueError, match="measures must have at least one policy"):
        frontier_figure(yardstick, {})
    with pytest.raises(TypeError, match="measures must be a dict of names and measures, got"):
        frontier_figure(yardstick, list(measures.values()))
    with pytest.raises(TypeError, match=r"measures\['ppo'\] must be a Measure"):
        frontier_figure(yardstick, {"ppo": 0.3})
    with pytest.raises(ValueError, match="the KL of 'ppo' must be a finite number, got nan"):
        frontier_figure(yardstick, measures | {"ppo": Measure(0.0, math.nan, 0.0, 0.0)})
    assert plt.get_fignums() == figures


def test_every_colour_means_one_thing():
    assert len(set(COLOUR.values())) == len(COLOUR)
