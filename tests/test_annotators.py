"""Who answers: each kind of annotator by formula and by frequency."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_toy.annotators import (
    Annotator,
    BradleyTerryAnnotator,
    NoisyAnnotator,
    Population,
    Rater,
    preference_ceiling,
)
from rlhf_toy.training import make_generator

CROWD = Population([Rater(2, 0.5, 1.0), Rater(6, 2.0, 0.1)], weights=[1, 3])
KINDS = [
    BradleyTerryAnnotator(),
    BradleyTerryAnnotator(temperature=0.3),
    NoisyAnnotator(BradleyTerryAnnotator(), 0.2),
    Rater(noise=0.7),
    CROWD,
    Population([BradleyTerryAnnotator(), NoisyAnnotator(Rater(), 1.0)]),
]
NAMES = ["bradley_terry", "cold", "noisy", "rater", "crowd", "mixed_crowd"]


def pair(difference):
    return torch.tensor([difference], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("annotator", "expected"),
    [
        (BradleyTerryAnnotator(), 1 / (1 + math.exp(-1.5))),
        (BradleyTerryAnnotator(temperature=3.0), 1 / (1 + math.exp(-0.5))),
        (NoisyAnnotator(BradleyTerryAnnotator(), 0.25), 0.25 + 0.5 / (1 + math.exp(-1.5))),
        (Rater(noise=2.0), 0.5 * (1 + math.erf(1.5 / (math.sqrt(2) * 2.0) / math.sqrt(2)))),
        (Rater(noise=0.0), 1.0),
        (Population([Rater(noise=0.0), NoisyAnnotator(Rater(noise=0.0), 1.0)], [3, 1]), 0.75),
    ],
)
def test_the_probability_is_the_formulas(annotator, expected):
    assert float(annotator.preference_probability(*pair(1.5))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("annotator", KINDS, ids=NAMES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(a=st.floats(-50, 50), b=st.floats(-50, 50))
def test_the_two_answers_probabilities_sum_to_one(annotator, a, b):
    first, second = (torch.tensor([x], dtype=torch.float64) for x in (a, b))
    p = annotator.preference_probability(first, second)
    assert 0 <= float(p) <= 1
    assert float(p + annotator.preference_probability(second, first)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("annotator", KINDS[:5], ids=NAMES[:5])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(a=st.floats(-5, 5), b=st.floats(-5, 5), rise=st.floats(0, 5))
def test_a_better_response_is_preferred_no_less_often(annotator, a, b, rise):
    first, second, better = (torch.tensor([x], dtype=torch.float64) for x in (a, b, a + rise))
    p = float(annotator.preference_probability(first, second))
    assert float(annotator.preference_probability(better, second)) >= p
    assert (p >= 0.5) if a >= b else (p <= 0.5)


@pytest.mark.parametrize("annotator", [*KINDS, Rater(noise=0.0), BradleyTerryAnnotator(1e-300)])
@settings(deadline=None, derandomize=True, max_examples=10)
@given(reward=st.floats(-1e10, 1e10))
def test_a_tie_is_a_coin_toss(annotator, reward):
    rewards = torch.tensor([reward], dtype=torch.float64)
    assert float(annotator.preference_probability(rewards, rewards)) == pytest.approx(0.5)


@pytest.mark.parametrize("annotator", KINDS, ids=NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused(annotator, bad):
    with pytest.raises(ValueError, match="finite"):
        annotator.prefer(*pair(bad), make_generator(0))


@pytest.mark.parametrize("annotator", KINDS, ids=NAMES)
@pytest.mark.parametrize("difference", [-1.0, 0.0, 0.4])
def test_answers_come_as_often_as_the_probability_says(annotator, difference):
    n = 40_000
    first, second = (r.expand(n) for r in pair(difference))
    wins = int(annotator.prefer(first, second, make_generator(0)).sum())
    p = float(annotator.preference_probability(*pair(difference)))
    assert abs(wins - n * p) <= 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("annotator", KINDS, ids=NAMES)
def test_the_same_seed_gives_the_same_answers_and_global_chance_is_left_alone(annotator):
    before = torch.get_rng_state()
    first, second = (r.expand(100) for r in pair(0.3))
    one, same, other = (
        annotator.prefer(first, second, make_generator(seed)).tolist() for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rating_is_offset_and_gain_rounded_and_clipped():
    rewards = torch.tensor([-10.0, -1.0, 0.0, 0.3, 10.0], dtype=torch.float64)
    generator = make_generator(0)
    plain = Rater(offset=4, gain=2, noise=0, rounding=0).rate(rewards, generator)
    assert plain.tolist() == pytest.approx([0, 2, 4, 4.6, 10])
    whole = Rater(offset=4, gain=2, noise=0, rounding=1).rate(rewards, generator)
    assert whole.tolist() == [0, 2, 4, 5, 10]
    halves = Rater(offset=4, gain=2, noise=0, rounding=0.5).rate(rewards, generator)
    assert halves.tolist() == [0, 2, 4, 4.5, 10]


def test_a_raters_noise_is_in_logits():
    rewards = torch.zeros(100_000, dtype=torch.float64)
    ratings = Rater(offset=5, gain=0.5, noise=2, rounding=0).rate(rewards, make_generator(0))
    assert float(ratings.std()) == pytest.approx(1.0, abs=0.015)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(offset=st.floats(-5, 15), gain=st.floats(0.1, 5), rounding=st.floats(0, 2))
def test_a_comparison_needs_no_scale(offset, gain, rounding):
    rater = Rater(offset, gain, 1.0, rounding)
    assert rater.preference_probability(*pair(0.8)) == Rater().preference_probability(*pair(0.8))


def test_a_draw_that_equals_the_probability_is_no_win_so_a_probability_of_0_never_wins():
    class Drawn(Annotator):
        def preference_probability(self, first_rewards, second_rewards):
            return torch.rand(5, generator=make_generator(0))

    rewards = torch.zeros(5)
    assert not Drawn().prefer(rewards, rewards, make_generator(0)).any()


def test_a_crowds_ratings_are_its_members():
    members = [Rater(offset=2, gain=1, noise=0), Rater(offset=7, gain=1, noise=0)]
    n = 20_000
    ratings = Population(members, [1, 4]).rate(torch.zeros(n), make_generator(0))
    assert set(ratings.tolist()) == {2.0, 7.0}
    again = Population(members, iter([1, 4])).rate(torch.zeros(n), make_generator(0))
    assert torch.equal(again, ratings), "the generator decides which member rates"
    assert abs(int((ratings == 7).sum()) - 0.8 * n) < 5 * math.sqrt(n * 0.16)
    with pytest.raises(TypeError, match="every member must be a Rater, as only raters can rate"):
        Population([BradleyTerryAnnotator()]).rate(torch.zeros(2), make_generator(0))


def test_the_ceiling_is_reached_by_the_true_reward_and_by_nothing_better():
    generator = make_generator(0)
    first, second = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    for annotator in KINDS:
        p = annotator.preference_probability(first, second)
        ceiling = float(preference_ceiling(annotator, first, second))
        assert float(torch.where(first > second, p, 1 - p).mean()) == pytest.approx(
            ceiling if float(annotator.preference_probability(*pair(1.0))) >= 0.5 else 1 - ceiling
        )
        for _ in range(20):
            guess = torch.rand(50, generator=generator) < 0.5
            assert float(torch.where(guess, p, 1 - p).mean()) <= ceiling


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: BradleyTerryAnnotator(temperature=0.0), ValueError),
        (lambda: BradleyTerryAnnotator(temperature=math.inf), ValueError),
        (lambda: BradleyTerryAnnotator(temperature="1"), TypeError),
        (lambda: NoisyAnnotator(BradleyTerryAnnotator(), 1.1), ValueError),
        (lambda: NoisyAnnotator(BradleyTerryAnnotator(), math.nan), ValueError),
        (lambda: Rater(gain=0.0), ValueError),
        (lambda: Rater(noise=-1.0), ValueError),
        (lambda: Rater(rounding=-0.5), ValueError),
        (lambda: Rater(offset=math.nan), ValueError),
        (lambda: NoisyAnnotator(3, 0.1), TypeError),
        (lambda: Population("ab"), TypeError),
        (lambda: Population([]), ValueError),
        (lambda: Population([Rater()], [1, 2]), ValueError),
        (lambda: Population([Rater(), Rater()], [0, 0]), ValueError),
        (lambda: Population([Rater(), Rater()], [1, -1]), ValueError),
        (lambda: Rater().preference_probability(torch.zeros(2), torch.zeros(3)), ValueError),
        (lambda: KINDS[0].preference_probability(torch.zeros(2), torch.zeros(3)), ValueError),
    ],
)
def test_bad_input_is_refused(make, error):
    with pytest.raises(error, match="must"):
        make()


def test_only_the_callers_generator_decides():
    rewards = torch.zeros(3)
    for annotator in KINDS:
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator.* got None"):
            annotator.prefer(rewards, rewards, None)
    for rater in (Rater(), CROWD):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator.* got None"):
            rater.rate(rewards, None)


def test_ratings_need_finite_rewards():
    for rater in (Rater(), CROWD):
        with pytest.raises(ValueError, match="finite, got NaN or infinity in 2 of 3"):
            rater.rate(torch.tensor([0.0, math.nan, math.inf]), make_generator(0))


def test_a_rater_may_have_nothing_to_rate():
    assert Rater().rate(torch.zeros(0), make_generator(0)).shape == (0,)


def test_an_annotator_without_parentheses_is_refused():
    rewards = torch.zeros(3)
    for call in (
        lambda: NoisyAnnotator(BradleyTerryAnnotator, 0.1),
        lambda: Population([Rater(), Rater]),
        lambda: preference_ceiling(Rater, rewards, rewards),
    ):
        with pytest.raises(TypeError, match=r"one such as BradleyTerryAnnotator\(\), got <class"):
            call()


def test_an_annotator_of_ones_own_needs_only_a_probability():
    class AlwaysFirst(Annotator):
        def preference_probability(self, first_rewards, second_rewards):
            return torch.ones_like(first_rewards)

    rewards = torch.zeros(5)
    assert AlwaysFirst().prefer(rewards, rewards, make_generator(0)).all()
    assert float(preference_ceiling(AlwaysFirst(), rewards, rewards)) == 1


def test_by_default_a_response_of_reward_0_is_rated_in_the_middle_of_the_scale():
    assert Rater(noise=0.0).rate(torch.zeros(3), make_generator(0)).tolist() == [5.0, 5.0, 5.0]
