"""DPO with endless data: its loss against plain sums, its optimum against soft value iteration."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rlhf_toy.envs import REVIEWS, SlipperyWordMDP, WordMDP
from rlhf_toy.exact import soft_policy_evaluation, soft_value_iteration, tabular_mdp
from rlhf_toy.exact.population import (
    Episodes,
    enumerate_episodes,
    implicit_rewards,
    outcome_rewards,
    population_dpo,
    population_loss,
    population_rewards,
)
from rlhf_toy.losses import dpo_loss
from rlhf_toy.training import make_generator

BETA = 0.5
OTHER_WORDS = replace(REVIEWS, adjectives={"fine": 0.7}, corpus_weights={}, prompt_taste={})


def random_tree(seed, chances):
    """Start 0, one action to state 1, the other to 2 or 3, two actions each, then the end 4."""
    draws = torch.randn(5, 2, generator=make_generator(seed), dtype=torch.float64)
    successors = torch.full((5, 2, 2), 4)
    successors[0] = torch.tensor([[1, 1], [2, 3]])
    probabilities = torch.zeros(5, 2, 2, dtype=torch.float64)
    probabilities[..., 0] = 1.0
    probabilities[0, 1] = torch.tensor([chances, 1 - chances], dtype=torch.float64)
    rewards = (3 * draws)[..., None].expand(5, 2, 2).clone()
    rewards[4] = 0.0
    noise = torch.randn(5, 2, generator=make_generator(seed + 100), dtype=torch.float64)
    return successors, probabilities, rewards, noise.log_softmax(-1)


def words(slip):
    """Tables of the word world with two words, and a reference that writes at random."""
    env = SlipperyWordMDP(slip, max_length=2)
    successors, probabilities, _ = tabular_mdp(env)
    ref_logps = torch.full(successors.shape[:2], 1 / env.n_actions, dtype=torch.float64).log()
    return successors, probabilities, outcome_rewards(env), ref_logps


def lake(slippery):
    """Tables of a lake with four fields, and a reference that walks at random."""
    env = gym.make("FrozenLake-v1", desc=["SF", "HG"], is_slippery=slippery)
    successors, probabilities, _ = tabular_mdp(env)
    ref_logps = torch.full(successors.shape[:2], 0.25, dtype=torch.float64).log()
    return successors, probabilities, 4 * outcome_rewards(env), ref_logps


def optimum(successors, probabilities, rewards, ref_logps, horizon):
    expected = (probabilities * rewards).sum(-1)
    return soft_value_iteration(successors, probabilities, expected, ref_logps, BETA, horizon)


def value(tables, logps, start):
    successors, probabilities, rewards, ref_logps = tables
    expected = (probabilities * rewards).sum(-1)
    V = soft_policy_evaluation(successors, probabilities, expected, ref_logps, logps, BETA)
    return float(V[0, start])


# Episodes


def test_the_episodes_of_two_steps_by_hand():
    successors, probabilities, rewards, ref_logps = random_tree(0, 0.7)
    episodes = enumerate_episodes(successors, probabilities, rewards, ref_logps, 0, 2)
    p = ref_logps.exp()
    expected = {}  # (first visit, second visit): chance, return; an index is (h · 5 + s) · 2 + a
    for action, state, chance in ((0, 1, 1.0), (1, 2, 0.7), (1, 3, 0.3)):
        for then in (0, 1):
            earned = rewards[0, action, 0] + rewards[state, then, 0]
            key = (action, (5 + state) * 2 + then)
            expected[key] = (float(p[0, action] * chance * p[state, then]), float(earned))
    assert {tuple(row) for row in episodes.visits.tolist()} == set(expected)
    for row, weight, chances in zip(
        episodes.visits.tolist(), episodes.weights, episodes.chances, strict=True
    ):
        assert float(weight) == pytest.approx(expected[tuple(row)][0])
        assert float(chances @ episodes.returns / weight) == pytest.approx(expected[tuple(row)][1])


@pytest.mark.parametrize("record", ["actions", "outcomes"])
def test_the_mean_return_is_that_of_policy_evaluation(record):
    tables = words(0.2)
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=11, horizon=2, record=record)
    assert float(episodes.chances.sum()) == pytest.approx(1, abs=1e-12)
    mean = float(episodes.chances.sum(0) @ episodes.returns)
    assert mean == pytest.approx(value(tables, ref_logps.expand(2, *ref_logps.shape), 11))


def test_an_episode_is_over_where_nothing_can_change():
    tables = lake(slippery=True)
    episodes = enumerate_episodes(*tables, start=0, horizon=4)
    goal, hole = 3, 2
    states = episodes.visits[episodes.visits >= 0] // 4 % 4
    assert not ((states == goal) | (states == hole)).any()
    assert episodes.returns.tolist() == [0.0, 4.0]
    assert (episodes.visits[:, -1] == -1).any() and (episodes.visits[:, -1] >= 0).any()


def test_in_a_deterministic_world_a_record_has_one_return():
    for tables, start, horizon in ((words(0.0), 11, 2), (lake(False), 0, 3)):
        episodes = enumerate_episodes(*tables, start=start, horizon=horizon)
        assert ((episodes.chances > 0).sum(1) == 1).all()


def test_outcome_rewards_average_to_those_of_the_tables():
    for env in (
        WordMDP(max_length=2),
        SlipperyWordMDP(0.3, max_length=2),
        SlipperyWordMDP(0.3, OTHER_WORDS, 2),
        gym.make("FrozenLake-v1", is_slippery=True),
    ):
        _, probabilities, expected = tabular_mdp(env)
        assert_close((probabilities * outcome_rewards(env)).sum(-1), expected)


def test_what_was_written_decides_the_return_and_what_was_meant_does_not():
    tables = words(0.3)
    written = enumerate_episodes(*tables, start=11, horizon=2, record="outcomes")
    meant = enumerate_episodes(*tables, start=11, horizon=2, record="actions")
    assert ((written.chances > 0).sum(1) == 1).all() and len(written.weights) == 111
    lasts_two_words = meant.visits[:, 1] >= 0
    assert ((meant.chances > 0).sum(1) > 1)[lasts_two_words].all() and lasts_two_words.any()


# The loss


def test_the_population_loss_is_the_mean_dpo_loss_over_all_pairs():
    tables = random_tree(1, 0.6)
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=0, horizon=2)
    logps = torch.randn(2, 5, 2, generator=make_generator(3), dtype=torch.float64).log_softmax(-1)
    records = [episodes.visits.tolist(), episodes.weights, episodes.chances @ episodes.returns]
    total = 0.0
    for one, weight, mean in zip(*records, strict=True):
        for other, other_weight, other_mean in zip(*records, strict=True):
            # Here every record has one return.
            p = torch.sigmoid(mean / weight - other_mean / other_weight)
            sums = [
                sum(table.flatten()[i] for i in record)[None]
                for table in (logps, ref_logps.expand(2, 5, 2))
                for record in (one, other)
            ]
            first_wins = dpo_loss(*sums, BETA)
            second_wins = dpo_loss(sums[1], sums[0], sums[3], sums[2], BETA)
            total += weight * other_weight * (p * first_wins + (1 - p) * second_wins)
    scores = implicit_rewards(logps, ref_logps, episodes.visits, BETA)
    assert float(population_loss(scores, episodes)) == pytest.approx(float(total), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_true_returns_minimise_the_expected_loss(seed):
    episodes = enumerate_episodes(*random_tree(seed, 0.6), start=0, horizon=2)
    true = episodes.chances @ episodes.returns / episodes.weights
    least = population_loss(true, episodes)
    assert float(population_loss(true + 7.0, episodes)) == pytest.approx(float(least), abs=1e-12)
    noise = torch.randn(20, len(true), generator=make_generator(seed), dtype=torch.float64)
    for scores in true + 0.1 * noise:
        assert population_loss(scores, episodes) > least
    (gradient,) = torch.autograd.grad(population_loss(true.requires_grad_(), episodes), true)
    assert gradient.abs().max() < 1e-12


def test_the_loss_stays_finite_for_scores_that_are_far_apart():
    episodes = enumerate_episodes(*random_tree(0, 0.6), start=0, horizon=2)
    scores = torch.tensor([300.0, -300, 0, 0, 0, 0], dtype=torch.float64).requires_grad_()
    loss = population_loss(scores, episodes)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite() and gradient.isfinite().all()
    # The highest score is right even where others are cut off far below it.
    w, p = episodes.weights, episodes.win_rates
    wins = torch.sigmoid(scores[0] - scores).detach()
    best = 2 * w[0] * ((w * wins).sum() - p[0])
    assert float(gradient[0]) == pytest.approx(float(best), abs=1e-12)


# The optima


@pytest.mark.parametrize(
    "tables, start, horizon",
    [(random_tree(4, 1.0), 0, 2), (words(0.0), 11, 2), (lake(False), 0, 3)],
    ids=["tree", "words", "lake"],
)
def test_without_chance_dpo_finds_the_soft_optimum(tables, start, horizon):
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=start, horizon=horizon)
    _, V, star = optimum(*tables, horizon)
    for seed in (None, 0):
        dpo = population_dpo(episodes, ref_logps, BETA, seed)
        assert value(tables, dpo, start) == pytest.approx(float(V[0, start]), abs=1e-6)
        visited = torch.zeros(star.numel(), dtype=torch.bool)
        visited[episodes.visits[episodes.visits >= 0]] = True
        error = (dpo.exp() - star.exp()).flatten()[visited]
        assert error.abs().max() < 1e-6


@pytest.mark.parametrize("slip", [0.2, 0.6])
def test_dpo_on_what_was_written_is_the_optimum_of_a_world_without_slips(slip):
    tables = words(slip)
    episodes = enumerate_episodes(*tables, start=11, horizon=2, record="outcomes")
    dpo = population_dpo(episodes, tables[-1], BETA)
    _, _, star = optimum(*words(0.0), 2)
    assert_close(dpo.exp()[0, 11], star.exp()[0, 11], atol=1e-6, rtol=0)
    assert_close(dpo.exp()[1, 12:22], star.exp()[1, 12:22], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("slip", [0.1, 0.4])
def test_with_chance_dpo_stands_where_its_gradient_vanishes_and_falls_short(slip, seed):
    tables = words(slip)
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=11, horizon=2)
    dpo = population_dpo(episodes, ref_logps, BETA, seed)
    logits = dpo.clone().requires_grad_()
    scores = implicit_rewards(logits.log_softmax(-1), ref_logps, episodes.visits, BETA)
    (gradient,) = torch.autograd.grad(population_loss(scores, episodes), logits)
    assert gradient.abs().max() < 1e-6
    _, V, _ = optimum(*tables, 2)
    assert value(tables, dpo, 11) < float(V[0, 11]) - 0.02


def test_the_reward_model_is_right_with_and_without_chance():
    for tables, start, horizon in (
        (random_tree(2, 0.7), 0, 2),
        (words(0.3), 11, 2),
        (lake(True), 0, 3),
    ):
        episodes = enumerate_episodes(*tables, start=start, horizon=horizon)
        learned = population_rewards(episodes)
        true = episodes.returns - episodes.returns.mean()
        assert (learned - true).abs().max() < 1e-5


def test_where_no_record_leads_the_policy_is_the_reference():
    tables = lake(slippery=True)
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=0, horizon=3)
    dpo = population_dpo(episodes, ref_logps, BETA, seed=0)
    assert_close(dpo[:, 2:], ref_logps[2:].expand(3, 2, 4))  # hole and goal
    assert_close(dpo[0, 1], ref_logps[1])  # nobody is there at the start


def test_a_seed_moves_the_start_of_every_choice_that_a_record_visits(monkeypatch):
    tables = random_tree(0, 0.7)
    ref_logps = tables[-1]
    monkeypatch.setattr("rlhf_toy.exact.population._minimise", lambda loss, start: start)
    start = population_dpo(enumerate_episodes(*tables, start=0, horizon=2), ref_logps, BETA, seed=5)
    # The first step visits state 0, the second one states 1, 2 and 3: eight choices in order.
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=8)).view(4, 2)
    expected = ref_logps.expand(2, 5, 2).clone()
    expected[0, 0] += noise[0]
    expected[1, 1:4] += noise[1:]
    assert_close(start, expected.log_softmax(-1))


# Errors


def test_a_search_that_ends_where_the_gradient_is_not_0_is_an_error(monkeypatch):
    episodes = enumerate_episodes(*random_tree(0, 0.7), start=0, horizon=2)
    monkeypatch.setattr("rlhf_toy.exact.population.GRADIENT_AT_MOST", -1.0)
    with pytest.raises(RuntimeError, match=r"no minimum found: a gradient of .* after \d+ steps"):
        population_rewards(episodes)


def test_tables_and_starts_that_do_not_fit_are_refused():
    tables = successors, probabilities, rewards, ref_logps = random_tree(0, 0.7)
    with pytest.raises(ValueError, match=r"\[S, A, K\]"):
        enumerate_episodes(successors, probabilities, rewards.sum(-1), ref_logps, 0, 2)
    with pytest.raises(ValueError, match="sum to 1"):
        enumerate_episodes(successors, probabilities / 2, rewards, ref_logps, 0, 2)
    with pytest.raises(ValueError, match="ref_logps must hold log-probabilities"):
        enumerate_episodes(successors, probabilities, rewards, ref_logps * 2, 0, 2)
    with pytest.raises(ValueError, match="rewards must be finite, got NaN or infinity in 1 of"):
        spoiled = rewards.clone()
        spoiled[1, 0, 0] = torch.nan
        enumerate_episodes(successors, probabilities, spoiled, ref_logps, 0, 2)
    with pytest.raises(ValueError, match="record must be one of 'actions', 'outcomes'"):
        enumerate_episodes(*tables, start=0, horizon=2, record="text")
    with pytest.raises(ValueError, match="K = A"):
        one = [table[:, :, :1] for table in random_tree(0, 1.0)[:3]]
        enumerate_episodes(*one, ref_logps, 0, 2, record="outcomes")
    with pytest.raises(ValueError, match="start must be an integer from 0 to 4, got 5"):
        enumerate_episodes(*tables, start=5, horizon=2)
    with pytest.raises(ValueError, match="horizon must be an integer of at least 1, got 0"):
        enumerate_episodes(*tables, start=0, horizon=0)


def test_scores_and_records_that_do_not_fit_are_refused():
    tables = random_tree(0, 0.7)
    ref_logps = tables[-1]
    episodes = enumerate_episodes(*tables, start=0, horizon=2)
    logps = ref_logps.expand(2, 5, 2)
    for beta in (0.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            implicit_rewards(logps, ref_logps, episodes.visits, beta)
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            population_dpo(episodes, ref_logps, beta)
    for visits in (episodes.visits + 20, episodes.visits - 2):
        with pytest.raises(ValueError, match="visits must be ids from -1 to 19"):
            implicit_rewards(logps, ref_logps, visits, BETA)
    with pytest.raises(ValueError, match="ref_logps must be finite"):
        population_dpo(episodes, torch.tensor([[0.0, -torch.inf]]).double().expand(5, 2), BETA)
    with pytest.raises(ValueError, match="ref_logps must hold log-probabilities"):
        population_dpo(episodes, ref_logps + 1, BETA)
    with pytest.raises(ValueError, match="do not belong to tables"):
        population_dpo(episodes, ref_logps[:2], BETA)
    with pytest.raises(ValueError, match=r"scores \[N\].* got scores \[3\], episode_weights \[6\]"):
        population_loss(torch.zeros(3, dtype=torch.float64), episodes)
    with pytest.raises(ValueError, match="scores must be finite"):
        population_loss(episodes.weights * torch.nan, episodes)


def test_what_is_no_set_of_episodes_is_refused():
    episodes = enumerate_episodes(*random_tree(0, 0.7), start=0, horizon=2)
    with pytest.raises(ValueError, match="chances must hold probabilities"):
        Episodes(episodes.visits, episodes.chances * 2, episodes.returns)
    with pytest.raises(ValueError, match="returns must be finite"):
        Episodes(episodes.visits, episodes.chances, episodes.returns * torch.nan)
    with pytest.raises(ValueError, match=r"chances \[N, R\]"):
        Episodes(episodes.visits, episodes.chances[:-1], episodes.returns)
    for call in (population_rewards, lambda e: population_loss(episodes.weights, e)):
        with pytest.raises(TypeError, match="episodes must be Episodes"):
            call(episodes.visits)
    with pytest.raises(TypeError, match="Gymnasium toy text"):
        outcome_rewards(gym.make("CartPole-v1"))
