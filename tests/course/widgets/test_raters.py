"""Raters and scales, without a browser."""

import re

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rlhf_toy.course.widgets import raters as module
from rlhf_toy.course.widgets.raters import (
    BY_HAND,
    COMPARISONS,
    N_RATERS,
    PRESETS,
    RATINGS,
    RESPONSES,
    STUDIES,
    RatersAndScales,
    Scales,
    judgement_counts,
    make_raters,
    mean_interval,
    order_text,
    run_contest,
    share_interval,
)

REWARDS = list(RESPONSES.values())


# The raters


def test_the_population_has_the_spread_that_was_asked_for():
    raters = make_raters(Scales(offset=4, offset_spread=2, gain=2, gain_spread=0.5, rounding=0.5))
    offsets = np.array([rater.offset for rater in raters])
    gains = np.array([rater.gain for rater in raters])
    assert len(raters) == N_RATERS
    assert offsets.mean() == pytest.approx(4)
    assert offsets.std() == pytest.approx(2)
    assert (gains.min(), gains.mean(), gains.max()) == pytest.approx((1, 2, 3))
    assert abs(np.corrcoef(offsets, gains)[0, 1]) < 0.3
    assert {rater.noise for rater in raters} == {0.7}
    assert {rater.rounding for rater in raters} == {0.5}


def test_without_spread_all_are_alike():
    assert len(set(make_raters(PRESETS["one scale, careful"]))) == 1


# The contest


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_each_response_and_each_pair_gets_its_equal_share(n):
    for judgements in judgement_counts(n):
        assert judgements % n == 0
        assert judgements % (n * (n - 1) // 2) == 0


def test_without_noise_and_on_one_fine_scale_both_are_always_right():
    contest = run_contest(Scales(5, 0, 1, 0, 0, 0), REWARDS, 30)
    for method in (RATINGS, COMPARISONS):
        assert contest.order_right[method].all()
        assert (contest.pairs_right[method] == 1).all()
    assert contest.scores[RATINGS][0] == pytest.approx([5 + reward for reward in REWARDS])
    assert contest.scores[COMPARISONS][0] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


def test_where_ratings_cannot_tell_ties_count_half():
    # A grid of 10 points rounds all ratings to the same number; comparisons are unaffected.
    contest = run_contest(Scales(2, 0, 0.1, 0, 0, 10), REWARDS, 30)
    assert (contest.pairs_right[RATINGS] == 0.5).all()
    assert not contest.order_right[RATINGS].any()
    assert contest.order_right[COMPARISONS].all()


def test_comparisons_do_not_depend_on_offset_gain_and_rounding():
    one, other = (run_contest(s, REWARDS, 60) for s in (Scales(), Scales(9, 4, 3, 0.1, 0.7, 5)))
    assert (one.scores[COMPARISONS] == other.scores[COMPARISONS]).all()
    assert (one.scores[RATINGS] != other.scores[RATINGS]).any()


def test_wins_and_ratings_are_as_frequent_as_the_formulas_say():
    scales = Scales(5, 0, 1, 0, 1.0, 0)
    contest = run_contest(scales, [0.5, 0.0, -0.5], 192)
    wins = contest.scores[COMPARISONS]
    assert wins.mean() == pytest.approx(0.5)
    expected = (norm.cdf(0.5 / 2**0.5) + norm.cdf(1 / 2**0.5)) / 2
    assert wins[:, 0].mean() == pytest.approx(expected, abs=0.01)
    # 64 ratings each: the better of two neighbours is ahead with Φ(0.5 / √(2 / 64)).
    ratings = contest.scores[RATINGS]
    right = norm.cdf(0.5 / (2 / 64) ** 0.5)
    assert (ratings[:, 0] > ratings[:, 1]).mean() == pytest.approx(right, abs=0.02)


def test_the_presets_are_won_by_the_method_that_the_notebook_names():
    for name, sign in (("own scales", 1), ("one scale, careful", -1)):
        contest = run_contest(PRESETS[name], REWARDS, 60)
        difference = contest.pairs_right[COMPARISONS] - contest.pairs_right[RATINGS]
        _, low, high = mean_interval(sign * difference)
        assert 0 < low < high


def test_the_contest_is_reproducible_and_leaves_global_random_states_alone():
    state = torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()
    one, other = (run_contest(Scales(), REWARDS, 30) for _ in range(2))
    assert (one.scores[RATINGS] == other.scores[RATINGS]).all()
    assert (torch.get_rng_state() == state).all()
    assert (np.random.get_state()[1] == np_state).all()


def test_intervals():
    mean, low, high = mean_interval(np.array([0.0, 1.0] * 50))
    assert mean == 0.5
    half = 1.984 * 0.5025 / 10  # Student's t, and the standard deviation
    assert (mean - low, high - mean) == pytest.approx((half, half), abs=1e-4)
    share, low, high = share_interval(np.zeros(200, dtype=bool))
    assert (share, low) == (0, 0)
    assert high == pytest.approx(0.0188, abs=1e-3)


def test_an_order_in_words():
    assert order_text(np.array([1.0, 3.0, 1.0]), ["a", "b", "c"]) == "b > a = c"


# The widget


def test_moving_each_slider_draws_again_and_says_it(capfd):
    cell = RatersAndScales()
    assert cell.chart.value == cell.figure
    for name, slider in cell.sliders.items():
        before = cell.chart.value
        slider.value = slider.value + 10 * slider.step
        assert cell.chart.value != before, name
        assert getattr(cell.scales, name) == slider.value
    assert cell.population.value == BY_HAND
    assert capfd.readouterr() == ("", "")


def test_the_words_have_the_numbers_of_the_contest():
    cell = RatersAndScales()
    cell.judgements.value = 120
    text = cell.line.value
    assert "120 judgements by 20 raters" in text
    for method in (RATINGS, COMPARISONS):
        share = cell.contest.pairs_right[method].mean()
        assert f"{method.capitalize()} put {share:.1%} (" in text
        whole = cell.contest.order_right[method].mean()
        assert f"the whole order right in {whole:.1%} (" in text
    assert "Ahead on the pairs: comparisons" in text
    for share in map(float, re.findall(r"([\d.]+)%", text)):
        assert 0 <= share <= 100


def test_it_is_said_when_neither_is_ahead():
    cell = RatersAndScales()
    cell.population.value = "one scale, very noisy"
    said = {"neither is ahead" in cell.line.value}
    for judgements in cell.judgements.options:
        cell.judgements.value = judgements
        said.add("neither is ahead" in cell.line.value)
        _, low, high = mean_interval(
            cell.contest.pairs_right[COMPARISONS] - cell.contest.pairs_right[RATINGS]
        )
        assert ("neither is ahead" in cell.line.value) == (low <= 0 <= high)
    assert said == {True, False}


def test_a_preset_moves_all_sliders_and_draws_once(monkeypatch):
    cell = RatersAndScales()
    cell.sliders["noise"].value = 2.0
    drawn, draw = [], module.draw_contest
    monkeypatch.setattr(module, "draw_contest", lambda *args: drawn.append(1) or draw(*args))
    cell.population.value = "own scales"
    assert cell.scales == PRESETS["own scales"]
    assert len(drawn) == 1
    assert cell.chart.value == cell.figure
    cell.sliders["noise"].value = 2.0
    assert len(drawn) == 2
    cell.population.value = "one scale, three grades"
    assert len(drawn) == 3 and cell.scales.rounding == 5


def test_what_a_browser_sends_back_is_no_move_by_hand():
    cell = RatersAndScales()
    cell.sliders["gain_spread"].value = 0.6000000000000001
    assert cell.population.value == "own scales"
    assert cell.scales == PRESETS["own scales"]


def test_every_preset_is_on_the_steps_of_its_sliders():
    cell = RatersAndScales()
    for name in PRESETS:
        cell.population.value = name
        for slider in cell.sliders.values():
            steps = (slider.value - slider.min) / slider.step
            assert steps == pytest.approx(round(steps))


def test_another_study_changes_the_ranking_and_not_the_shares():
    cell = RatersAndScales()
    contest, before, said = cell.contest, cell.chart.value, cell.line.value
    cell.study.value = STUDIES
    assert cell.contest is contest
    assert cell.chart.value != before
    assert f"In study {STUDIES} " in cell.line.value
    assert cell.line.value.split("The truth")[0] == said.split("The truth")[0]


@pytest.mark.parametrize("end", ["min", "max"])
def test_the_corners_can_be_drawn(end, capfd):
    cell = RatersAndScales()
    for slider in cell.sliders.values():
        slider.value = getattr(slider, end)
    assert "nan" not in cell.line.value
    assert capfd.readouterr() == ("", "")


def test_own_responses_are_put_in_order():
    cell = RatersAndScales({"dull": -0.6, "great": 1.2, "good": 0.5}, "one scale, careful")
    assert "The truth is great &gt; good &gt; dull" in cell.line.value
    assert cell.scales == PRESETS["one scale, careful"]


def test_every_control_has_a_description():
    cell = RatersAndScales()
    for control in cell.controls.children:
        assert control.description


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"rewards": [1, 2, 3]}, TypeError, "must be a dict"),
        ({"rewards": {"a": 1, "b": "2", "c": 3}}, TypeError, "reward of 'b'"),
        ({"rewards": {"a": 1, "b": 2}}, ValueError, "3 to 7 different"),
        ({"rewards": {"a": 1, "b": 1, "c": 2}}, ValueError, "3 to 7 different"),
        ({"rewards": {"a": 1, "b": float("inf"), "c": 2}}, ValueError, "finite"),
        ({"population": "nobody"}, ValueError, "population must be one of"),
    ],
)
def test_bad_arguments_are_refused_in_words(given, error, message):
    with pytest.raises(error, match=message):
        RatersAndScales(**given)


def test_a_contest_needs_scales_and_judgements_that_can_be_shared():
    with pytest.raises(TypeError, match="scales must be a Scales"):
        run_contest("own scales", REWARDS, 30)
    with pytest.raises(ValueError, match=r"judgements must be one of \[30, 60, 120, 240\], got 31"):
        run_contest(Scales(), REWARDS, 31)
    with pytest.raises(ValueError, match="n must be an integer of at least 2, got 1"):
        judgement_counts(1)
