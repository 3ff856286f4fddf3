"""Best-of-n: its exact law, held against every possible draw."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.testing import assert_close

from rlhf_toy.best_of_n import (
    BestOfNSettings,
    best_of_n_kl_bound,
    best_of_n_logps,
    pick_best_of_n,
    run_best_of_n,
    sample_best_of_n,
)
from rlhf_toy.envs import LongReview
from rlhf_toy.exact import (
    AutomatonYardstick,
    expected_reward,
    kl_divergence,
    response_logps,
    table_reference,
)
from rlhf_toy.models import GPTConfig, RewardModel
from rlhf_toy.training import make_generator

random_inputs = settings(deadline=None, derandomize=True, max_examples=30)
scores_with_ties = st.lists(st.integers(0, 3), min_size=2, max_size=5)


def random_reference(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n, dtype=torch.float64, generator=generator).log_softmax(-1)


def test_the_best_of_each_group_is_picked_and_of_ties_the_first():
    responses = torch.arange(12).view(2, 3, 2)
    scores = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 5.0]])
    assert pick_best_of_n(responses, scores).tolist() == [[2, 3], [6, 7]]


@given(scores_with_ties, st.integers(1, 4), st.integers(0, 100))
@random_inputs
def test_the_law_is_that_of_all_draws_enumerated(scores, n, seed):
    scores = torch.tensor([scores], dtype=torch.float64)
    ref_logps = random_reference(scores.shape[1], seed)
    draws = torch.tensor(list(product(range(scores.shape[1]), repeat=n)))  # [Y^n, n]
    best = pick_best_of_n(draws[..., None], scores[0][draws])[:, 0]
    probability = ref_logps[0][draws].sum(1).exp()
    law = torch.zeros(scores.shape[1], dtype=torch.float64).scatter_add(0, best, probability)
    assert_close(best_of_n_logps(ref_logps, scores, n)[0].exp(), law)


@given(scores_with_ties, st.integers(1, 1000), st.integers(0, 100))
@random_inputs
def test_the_law_is_a_distribution_within_the_kl_bound(scores, n, seed):
    scores = torch.tensor([scores], dtype=torch.float64)
    ref_logps = random_reference(scores.shape[1], seed)
    logps = best_of_n_logps(ref_logps, scores, n)
    assert logps.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert -1e-12 < kl_divergence(logps, ref_logps).item() <= best_of_n_kl_bound(n) + 1e-12
    better = best_of_n_logps(ref_logps, scores, n + 1)
    assert expected_reward(better, scores) >= expected_reward(logps, scores) - 1e-12


def test_each_prompt_has_a_law_of_its_own():
    ref_logps = torch.cat([random_reference(4, 0), random_reference(4, 1)])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    both = best_of_n_logps(ref_logps, scores, 3)
    for x in range(2):
        assert_close(both[x : x + 1], best_of_n_logps(ref_logps[x : x + 1], scores[x : x + 1], 3))


def test_one_draw_is_the_reference_itself():
    ref_logps = random_reference(5, 0)
    assert_close(best_of_n_logps(ref_logps, torch.randn(1, 5).argsort(), 1), ref_logps)
    assert best_of_n_kl_bound(1) == 0


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("scores", [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
def test_what_the_reference_never_writes_is_never_picked(scores, n):
    ref_logps = torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64).log()
    logps = best_of_n_logps(ref_logps, torch.tensor([scores]), n)
    assert logps[0, 0] == -math.inf
    assert logps.exp().sum().item() == pytest.approx(1)


def test_rare_responses_keep_their_digits():
    rare = 1e-30
    ref_logps = torch.tensor([[1 - rare, rare]], dtype=torch.float64).log()
    logps = best_of_n_logps(ref_logps, torch.tensor([[0.0, 1.0]]), 64)
    assert logps[0, 1].item() == pytest.approx(math.log(64 * rare))
    below = best_of_n_logps(ref_logps, torch.tensor([[1.0, 0.0]]), 4)
    assert below[0, 1].item() == pytest.approx(4 * math.log(rare))


def test_many_draws_find_the_best_and_share_it_among_ties_as_the_reference_does():
    ref_logps = torch.tensor([[0.2, 0.6, 0.1, 0.1]], dtype=torch.float64).log()
    logps = best_of_n_logps(ref_logps, torch.tensor([[1.0, 0.0, 1.0, -1.0]]), 10_000)
    assert_close(logps.exp(), torch.tensor([[2 / 3, 0, 1 / 3, 0]], dtype=torch.float64))


def test_only_the_order_of_the_scores_matters():
    ref_logps, scores = random_reference(6, 0), torch.tensor([[3.0, 1.0, 2.0, 2.0, -5.0, 0.0]])
    expected = best_of_n_logps(ref_logps, scores, 7)
    assert_close(best_of_n_logps(ref_logps, 1 + scores.exp(), 7), expected)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_bound_is_reached_where_each_of_very_many_is_unlikely(n):
    ref_logps = torch.full((1, 50_000), -math.log(50_000), dtype=torch.float64)
    logps = best_of_n_logps(ref_logps, torch.arange(50_000.0)[None], n)
    kl = kl_divergence(logps, ref_logps).item()
    assert kl == pytest.approx(best_of_n_kl_bound(n), abs=1e-3)
    assert best_of_n_kl_bound(n) == pytest.approx(math.log(n) - 1 + 1 / n)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_n_must_be_an_integer_of_at_least_1(n):
    ref_logps = random_reference(3, 0)
    error = ValueError if type(n) is int else TypeError
    with pytest.raises(error, match="n must be an integer"):
        best_of_n_logps(ref_logps, ref_logps, n)
    with pytest.raises(error, match="n must be an integer"):
        best_of_n_kl_bound(n)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_must_be_finite(bad):
    scores = torch.tensor([[0.0, bad, 1.0]])
    with pytest.raises(ValueError, match="scores must be finite, got NaN or infinity in 1 of 3"):
        best_of_n_logps(random_reference(3, 0), scores, 2)
    with pytest.raises(ValueError, match="scores must be finite, got NaN or infinity in 1 of 3"):
        pick_best_of_n(torch.zeros(1, 3, 2), scores)


@pytest.mark.parametrize("change", [lambda p: p + 1, torch.exp, lambda p: p * math.nan])
def test_the_reference_must_be_a_distribution(change):
    ref_logps = random_reference(3, 0)
    with pytest.raises(ValueError, match="ref_logps must hold log-probabilities"):
        best_of_n_logps(change(ref_logps), ref_logps, 2)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"\[X, Y\]"):
        best_of_n_logps(torch.zeros(2, 3), torch.zeros(2, 4), 2)
    with pytest.raises(ValueError, match=r"\[X, Y\]"):
        best_of_n_logps(torch.zeros(3), torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"\[B, n, T\]"):
        pick_best_of_n(torch.zeros(2, 3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\[B, n, T\]"):
        pick_best_of_n(torch.zeros(2, 3), torch.zeros(2, 3))


def test_samples_of_the_best_have_its_exact_distribution(tiny):
    reference = tiny.table(tiny.theta(0))
    prompts = torch.zeros(40_000).long()
    rewards = tiny.world.response_rewards
    best, scores = sample_best_of_n(reference, tiny.world, rewards, prompts, 3, make_generator(0))
    assert torch.allclose(scores.double(), rewards(prompts, best), atol=1e-6)
    exact = best_of_n_logps(response_logps(reference, tiny.world), tiny.world.table, 3)[0].exp()
    counts = tiny.world.response_index(best).bincount(minlength=40)
    often = exact * 40_000 > 5
    statistic = ((counts - 40_000 * exact) ** 2 / (40_000 * exact))[often].sum()
    assert float(statistic) < chi2.ppf(1 - 1e-4, int(often.sum()))


def test_a_world_without_tables_is_tried_by_samples(short_spec, tmp_path):
    world = LongReview(short_spec)
    reference, settings = table_reference(world), BestOfNSettings(beta=0.1, ns=(1, 4, 16))
    run = partial(run_best_of_n, world, reference, world.response_rewards, settings, device="cpu")
    n, history = run(seed=0, checkpoint=tmp_path / "c")
    assert n in (1, 4, 16)
    scores, kls = history.series("objective/scores")[1], history.series("kl_bound")[1]
    assert scores == pytest.approx(
        history.series("objective/reward")[1], abs=1e-5
    )  # the scores are the true rewards
    assert scores[0] < scores[1] < scores[2] and kls[1] == best_of_n_kl_bound(4)
    J = [score - 0.1 * kl for score, kl in zip(scores, kls, strict=True)]
    assert n == settings.ns[J.index(max(J))]
    exact = AutomatonYardstick(world, 0.1).reference_objective
    assert scores[0] == pytest.approx(exact, abs=0.5)
    assert run(seed=0, checkpoint=tmp_path / "c")[1].rows == history.rows
    model = RewardModel(GPTConfig.for_world(world, n_embd=8), make_generator(0))
    _, learned = run_best_of_n(world, reference, model, settings, device="cpu")
    assert learned.last("objective/scores") != learned.last("objective/reward")
    with pytest.raises(TypeError, match=r"scores must be a tensor .* or a function"):
        run_best_of_n(world, reference, "best", settings, device="cpu")
    with pytest.raises(ValueError, match="too many to enumerate"):
        run_best_of_n(world, reference, torch.zeros(2, 3), settings, device="cpu")
