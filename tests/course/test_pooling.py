"""A class of annotators: α by hand, intervals that cover, and a minority that feels strongly."""

import numpy as np
import pytest
from scipy.special import expit

from rlhf_toy.course.widgets.annotator_files import LEFT, RIGHT, TIE, Pair
from rlhf_toy.course.widgets.annotator_pairs import pair_differences, sample_pairs
from rlhf_toy.course.widgets.taste import feature_names, fit_taste, response_features
from rlhf_toy.envs import WordMDP
from rlhf_toy.training import make_generator

pytest.importorskip("krippendorff")
from rlhf_toy.course.pooling import agreement, class_taste, mean_weights, pooled_weights

WORLD = WordMDP(max_length=3)
FEATURES = feature_names(WORLD)
DIFFERENCES = pair_differences(WORLD, sample_pairs(WORLD, 500, make_generator(0)))
# Two tastes that contradict each other about praise, complaint, "long" and "loud".
MOST = np.array([0.9, 0.2, 0.4, -0.9, 0.3, -0.4, 0.3, -0.2, 0.1, -0.3, -0.5])
OTHERS = np.array([-0.9, 0.2, 0.0, 0.9, 0.0, 0.3, 2.5, -2.0, 0.1, 0.3, -0.5])


def ballots(*columns):
    """Students who answered the same pairs; a column has a verdict or None of each student."""
    pairs = [Pair("film", f"a{k}", f"b{k}") for k in range(len(columns[0]))]
    return [
        [
            (pair, verdict)
            for pair, verdict in zip(pairs, column, strict=True)
            if verdict is not None
        ]
        for column in columns
    ]


def test_alpha_is_one_where_all_agree():
    found = agreement(ballots([LEFT, RIGHT, LEFT], [LEFT, RIGHT, LEFT], [LEFT, None, None]))
    assert (found.alpha, found.half_width, found.same, found.pairs) == (1, 0, 1, 3)


def test_alpha_of_two_who_never_agree():
    """N pairs in both orders have 4 N values, half of each kind. Observed disagreement is 1,
    expected 2 (2 N)² / (4 N (4 N − 1)) = 2 N / (4 N − 1), so α = 1/(2 N) − 1."""
    first = [LEFT, RIGHT, LEFT, LEFT, LEFT]
    found = agreement(ballots(first, [1 - verdict for verdict in first]))
    assert found.alpha == pytest.approx(-0.9)
    assert found.same == 0


def test_alpha_is_zero_where_half_of_the_answers_agree():
    """Observed disagreement is 1/2, so α = 1 − (4 N − 1)/(4 N) = 1/(4 N): 0 but for small N."""
    n = 1000
    first = [LEFT] * n
    found = agreement(ballots(first, [LEFT, RIGHT] * (n // 2)))
    assert found.alpha == pytest.approx(1 / (4 * n))
    assert found.same == 0.5


def test_alpha_of_three_by_hand():
    """On the first pair 4 of 6 ordered pairs of students disagree; three answers. On the second two
    students agree; two answers. Observed: (3 · 4/6 + 2 · 0)/5 = 0.4. In both orders there are
    10 values, 5 of each kind; expected: 2 · 25/(10 · 9) = 5/9. α = 1 − 0.4 · 9/5 = 0.28."""
    found = agreement(ballots([LEFT, RIGHT], [LEFT, RIGHT], [RIGHT, None]))
    assert found.alpha == pytest.approx(0.28)
    assert found.same == pytest.approx((2 + 2) / (6 + 2))


def test_a_tie_is_half_a_disagreement_squared():
    """One pair, one tie: observed (1/2)² = 1/4. In both orders the values are 1, ½, 0, ½: of the 12
    ordered pairs 2 differ by 1 and 8 by ½, so expected is (2 + 8/4)/12 = 1/3. α = 1 − 3/4."""
    assert agreement(ballots([LEFT], [TIE])).alpha == pytest.approx(0.25)


def test_alpha_does_not_depend_on_the_order_of_a_pair():
    rng = np.random.default_rng(0)
    columns = rng.choice([LEFT, TIE, RIGHT], (4, 9), p=[0.6, 0.1, 0.3]).tolist()
    students = ballots(*columns)
    swapped = [
        [
            (Pair(p.prompt, p.right, p.left), 1 - v) if k % 2 else (p, v)
            for k, (p, v) in enumerate(s)
        ]
        for s in students
    ]
    renamed = [[(Pair(p.prompt, f"z{p.left}", p.right), v) for p, v in s] for s in students]
    for other in (swapped, renamed):
        assert agreement(other).alpha == pytest.approx(agreement(students).alpha)


@pytest.mark.parametrize(
    "columns", [([LEFT, None], [None, LEFT]), ([TIE, None], [TIE, LEFT]), ([TIE], [TIE], [TIE])]
)
def test_without_two_answers_that_could_differ_there_is_no_alpha(columns):
    assert np.isnan(agreement(ballots(*columns)).alpha)


def simulated(n_students, n_answers, share, seed):
    """Differences and verdicts of students; each has the taste `MOST` with this probability."""
    rng = np.random.default_rng(seed)
    d = [DIFFERENCES[rng.choice(500, n_answers, replace=False)] for _ in range(n_students)]
    tastes = [MOST if rng.random() < share else OTHERS for _ in range(n_students)]
    p = [expit(x @ taste) for x, taste in zip(d, tastes, strict=True)]
    return d, [(rng.random(n_answers) < q).astype(float) for q in p]


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_pooled_intervals_cover_the_taste(share):
    """Twelve students, forty answers each. The truth is what endless answers of such students give.

    In 200 classes of each kind 97.0 ± 0.8 and 96.4 ± 1.0 % of the intervals covered it, and of
    Laplace's alone 96.1 and 88.6 %; the test allows for its fewer classes.
    """
    endless = share * expit(DIFFERENCES @ MOST) + (1 - share) * expit(DIFFERENCES @ OTHERS)
    truth = fit_taste(DIFFERENCES, endless, prior_sd=100.0).weights
    covered, by_laplace = [], []
    for seed in range(80):
        d, verdicts = simulated(12, 40, share, seed)
        weights, half_widths = pooled_weights(d, verdicts)
        asked = ~np.isnan(weights)
        laplace = fit_taste(np.concatenate(d), np.concatenate(verdicts))
        errors = abs(laplace.weights - truth)[asked]
        assert np.array_equal(weights[asked], laplace.weights[asked])
        covered.append(np.mean(errors <= half_widths[asked]))
        by_laplace.append(np.mean(errors <= laplace.half_widths[asked]))
    assert 0.94 < np.mean(covered) < 0.99
    if share < 1:
        assert np.mean(by_laplace) < 0.92


def test_the_jackknife_interval_of_alpha_covers():
    """Twelve students, forty pairs, answers by chance: 97.5 ± 1.5 % of 400 intervals covered it."""
    p = expit(DIFFERENCES[:40] @ MOST)
    truth = 1 - 2 * np.mean(2 * p * (1 - p))  # of endless students: chance means 1/2
    pairs, hits = [Pair("film", f"a{k}", f"b{k}") for k in range(40)], []
    for seed in range(100):
        won = np.random.default_rng(seed).random((12, 40)) < p
        found = agreement([list(zip(pairs, row.astype(float), strict=True)) for row in won])
        hits.append(abs(found.alpha - truth) <= found.half_width)
    assert np.mean(hits) > 0.89


def test_a_feature_that_nobody_was_asked_about_has_no_weight():
    d, verdicts = simulated(3, 30, 1.0, seed=0)
    silent = FEATURES.index("bad grammar")
    for weights in (*pooled_weights(d, verdicts), *mean_weights(d, verdicts)):
        assert np.isnan(weights[silent])
    d[0][0, silent] = 1.0
    means, half_widths = mean_weights(d, verdicts)
    assert np.isfinite(means[silent]) and np.isnan(half_widths[silent])


def test_the_mean_of_own_fits_has_the_t_interval_of_the_students_it_averages():
    d, verdicts = simulated(3, 30, 0.6, seed=1)
    own = np.array([fit_taste(*student).weights[0] for student in zip(d, verdicts, strict=True)])
    means, half_widths = mean_weights(d, verdicts)
    assert means[0] == pytest.approx(own.mean())
    assert half_widths[0] == pytest.approx(4.3027 * own.std(ddof=1) / np.sqrt(3), rel=1e-4)


def test_a_majority_wins_the_borda_count_and_a_strong_minority_the_mean_utility():
    """Six of ten choose "loud" over "long" in 26 of 30 cases, four never do: 156 of 300 wins, but
    the four feel more strongly. (By hand, with the prior: 0.6 · 1.65 − 0.4 · 2.97 = −0.2 logits.)
    """
    pairs = [Pair(prompt, "loud", "long") for prompt in WORLD.prompts for _ in range(5)]
    ballots = [[LEFT] * wins + [RIGHT] * (30 - wins) for wins in [26] * 6 + [0] * 4]
    found = class_taste(WORLD, [list(zip(pairs, votes, strict=True)) for votes in ballots])
    loud, long = (FEATURES.index(name) for name in ("loud", "long"))
    pooled, mean = (weights[0, loud] - weights[0, long] for weights in (found.pooled, found.mean))
    assert 0 < pooled < np.log(156 / 144)
    assert mean == pytest.approx(-0.2, abs=0.02)
    loud, long = (found.reviews.index(review) for review in ("loud", "long"))
    assert found.borda[loud] > 0.5 > found.borda[long]
    assert found.utility[loud] - found.utility[long] == pytest.approx(mean)


def test_borda_and_utility_are_averages_over_the_corpus():
    pairs = sample_pairs(WORLD, 30, make_generator(3))
    d, verdicts = pair_differences(WORLD, pairs), []
    for k, taste in enumerate((MOST, OTHERS)):
        verdicts.append(np.random.default_rng(k).random(30) < expit(d @ taste))
    found = class_taste(WORLD, [list(zip(pairs, v.astype(float), strict=True)) for v in verdicts])
    reviews, chances = WORLD.fluent_reviews
    features, share = response_features(WORLD, reviews), chances.mean(0).numpy()
    weights = np.nan_to_num(found.pooled[0])
    texts = [WORLD.decode(review) for review in reviews]
    for text, borda in list(zip(found.reviews, found.borda, strict=True))[::7]:
        own = features[texts.index(text)]
        wins = sum(
            s * expit((own - other) @ weights) for s, other in zip(share, features, strict=True)
        )
        assert borda == pytest.approx(wins / share.sum())
    utilities = features @ np.nan_to_num(found.mean[0])
    average = sum(s * u for s, u in zip(share, utilities, strict=True)) / share.sum()
    kept = [texts.index(text) for text in found.reviews]
    assert found.utility == pytest.approx(utilities[kept] - average)
    assert len(np.unique(features[kept], axis=0)) == len(kept) == len(np.unique(features, axis=0))
