"""The taste fitted to a few answers: its features, its fit, and the examination it takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import norm

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.widgets.taste import (
    Examination,
    draw_taste,
    feature_names,
    fit_taste,
    response_features,
    taste_words,
)
from rlhf_toy.course.worlds import DISHES
from rlhf_toy.envs import WordMDP
from rlhf_toy.training import make_generator

WORLD, DINNER = WordMDP(), WordMDP(DISHES)
FEATURES = feature_names(WORLD)
EXAMINATION = Examination(WORLD, BradleyTerryAnnotator())


def features(text):
    counts = response_features(WORLD, WORLD.encode(text)[None])[0]
    return {name: int(n) for name, n in zip(FEATURES, counts, strict=True) if n}


# The fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("good", {"praise": 1, "each word": 1}),
        ("not good", {"not + praise": 1, "each word": 2}),
        ("very bad", {"complaint": 1, "very + complaint": 1, "each word": 2}),
        ("not very dull", {"not + complaint": 1, "each word": 3}),
        ("very great but not loud", {"praise": 1, "very + praise": 1, "loud": -1, "each word": 5}),
        ("long and long", {"long": 2, "said twice": 1, "each word": 3}),
        ("good great", {"praise": 2, "each word": 2, "bad grammar": 1}),
        ("and good not", {"praise": 1, "each word": 3, "bad grammar": 3}),
        ("not and good", {"praise": 1, "each word": 3, "bad grammar": 1}),
    ],
)
def test_features_count_what_their_names_say(text, expected):
    assert features(text) == expected


@pytest.mark.parametrize("world", [WORLD, DINNER], ids=["reviews", "dishes"])
@pytest.mark.parametrize(
    ("cost", "feature"), [("grammar_cost", "bad grammar"), ("repetition_cost", "said twice")]
)
def test_slips_are_counted_as_the_world_counts_them(world, cost, feature):
    rows = torch.randint(len(world.all_responses), (2000,), generator=make_generator(0))
    responses = world.all_responses[rows]
    prompts = torch.zeros(2000, dtype=torch.long)
    spec = world.world_spec
    costlier = WordMDP(replace(spec, **{cost: getattr(spec, cost) + 1}))
    counts = world.response_rewards(prompts, responses) - costlier.response_rewards(
        prompts, responses
    )
    column = response_features(world, responses)[:, feature_names(world).index(feature)]
    assert column.any()
    np.testing.assert_allclose(column, counts, atol=1e-9)


def test_another_world_has_features_of_its_own_words():
    names = feature_names(DINNER)
    assert names[:3] == ("praise", "hardly + praise", "really/slightly + praise")
    assert names[6:] == ("hot", "sweet", "crisp", "each word", "said twice", "bad grammar")
    (counts,) = response_features(DINNER, DINNER.encode("hardly sweet and tasty")[None])
    assert {n: c for n, c in zip(names, counts, strict=True) if c} == {
        "praise": 1,
        "sweet": -1,
        "each word": 4,
    }
    examination = Examination(DINNER, BradleyTerryAnnotator())
    assert 0.55 < examination.share(examination.annotator_taste) < examination.ceiling


def test_without_answers_the_prior_speaks():
    taste = fit_taste(np.zeros((0, 3)), [], prior_sd=2.0)
    assert not taste.weights.any() and not taste.is_asked.any()
    np.testing.assert_allclose(taste.half_widths, 1.96 * 2.0)
    np.testing.assert_allclose(taste.predict(np.zeros((1, 3))), 0.5)


def test_the_fit_is_the_posterior_of_one_weight():
    """Against a grid: the mode, and a Laplace interval close to the exact one."""
    answers = np.array([1.0] * 30 + [0.0] * 12)
    taste = fit_taste(np.ones((42, 1)), answers)
    grid = np.linspace(-3, 3, 60_001)
    density = np.exp(30 * np.log(expit(grid)) + 12 * np.log(expit(-grid))) * norm.pdf(grid)
    assert taste.weights[0] == pytest.approx(grid[density.argmax()], abs=1e-4)
    mean = (grid * density).sum() / density.sum()
    sd = np.sqrt(((grid - mean) ** 2 * density).sum() / density.sum())
    assert taste.half_widths[0] == pytest.approx(1.96 * sd, rel=0.03)


def test_a_tie_is_half_a_win_each_way():
    d = np.array([[1.0, 0.0], [0.5, -1.0]])
    tied = fit_taste(d, [0.5, 1.0])
    swapped = fit_taste(-d, [0.5, 0.0])  # the sides changed
    np.testing.assert_allclose(tied.weights, swapped.weights, atol=1e-8)
    both_ways = fit_taste(d[[0, 0]], [1, 0]).weights  # two answers of opposite sense
    np.testing.assert_allclose(both_ways, 0, atol=1e-8)


def test_separable_answers_have_a_finite_fit():
    taste = fit_taste(np.full((500, 2), 5.0), np.ones(500))
    assert np.isfinite(taste.weights).all() and (taste.half_widths > 0).all()


@pytest.mark.parametrize(
    ("differences", "verdicts", "prior_sd", "message"),
    [
        (np.zeros(3), np.zeros(3), 1.0, "differences must be"),
        (np.zeros((3, 2)), np.zeros(2), 1.0, "differences must be"),
        (np.zeros((1, 2)), [2.0], 1.0, "verdicts"),
        (np.zeros((1, 2)), [float("nan")], 1.0, "verdicts"),
        (np.full((1, 2), np.inf), [1.0], 1.0, "differences must be finite"),
        (np.zeros((1, 2)), [1.0], 0.0, "prior_sd must be a finite number above 0, got 0.0"),
        (np.zeros((1, 2)), [1.0], "1", "prior_sd must be a number, got '1'"),
    ],
)
def test_bad_input_to_the_fit_is_named(differences, verdicts, prior_sd, message):
    with pytest.raises(TypeError if prior_sd == "1" else ValueError, match=message):
        fit_taste(differences, verdicts, prior_sd)


def test_the_share_predicted_is_that_of_sampled_answers():
    rng, generator = np.random.default_rng(0), make_generator(0)
    taste = fit_taste(rng.normal(size=(40, len(FEATURES))), rng.integers(0, 2, 40))
    # Pairs of different reviews, drawn independently: leave out those drawn twice.
    prompts, left = WORLD.sample_corpus(20_000, generator)
    reviews, chances = WORLD.fluent_reviews
    right = reviews[torch.multinomial(chances[prompts], 1, generator=generator)[:, 0]]
    kept = (left != right).any(1)
    prompts, left, right = prompts[kept], left[kept], right[kept]
    rewards = [WORLD.response_rewards(prompts, side) for side in (left, right)]
    p = BradleyTerryAnnotator().preference_probability(*rewards).numpy()
    margin = (response_features(WORLD, left) - response_features(WORLD, right)) @ taste.weights
    right_share = np.where(margin > 1e-9, p, np.where(margin < -1e-9, 1 - p, 0.5))
    assert EXAMINATION.share(taste) == pytest.approx(right_share.mean(), abs=0.006)
    assert EXAMINATION.ceiling == pytest.approx(np.maximum(p, 1 - p).mean(), abs=0.006)


def test_no_taste_is_a_coin_toss_and_its_opposite_is_wrong_where_it_is_right():
    nothing = fit_taste(np.zeros((0, len(FEATURES))), [])
    assert EXAMINATION.share(nothing) == pytest.approx(0.5)
    own = EXAMINATION.annotator_taste
    opposite = type(own)(-own.weights, own.covariance, own.is_asked)
    assert EXAMINATION.share(own) + EXAMINATION.share(opposite) == pytest.approx(1)
    assert 0.6 < EXAMINATION.share(own) < EXAMINATION.ceiling < 0.8


def test_a_world_in_which_some_reviews_fit_no_prompt_can_be_examined():
    examination = Examination(WordMDP(max_length=3), BradleyTerryAnnotator())
    assert 0.5 < examination.share(examination.annotator_taste) < examination.ceiling < 1


def test_the_chart_draws_fit_annotator_and_limits():
    figure = Figure()
    d = np.zeros((32, len(FEATURES)))
    d[:30, 0] = 1  # praise always wins
    d[30:, 6] = 1  # "long" once
    taste = fit_taste(d, [1] * 30 + [1, 0.5])
    draw_taste(figure, taste, {0: 0.5, 30: 0.6}, EXAMINATION, show_annotator=True)
    weights, shares = figure.axes
    names = {text.get_text() for text in weights.get_legend().get_texts()}
    assert names == {"clear of 0", "not clear", "never asked", "the annotator"}
    assert weights.get_yticklabels()[0].get_text() == "praise (good, great)"
    assert "your fit" in {text.get_text() for text in shares.get_legend().get_texts()}
    text = taste_words(taste, 0.6, EXAMINATION)
    assert "Clear of 0, in logits: praise +" in text and "predicts 60.0%" in text
    assert "Never asked: not + praise" in text and "Not clear: long +" in text
