"""The study of over-optimisation: its exact curves, its pairs, and its fit."""

import numpy as np
import pytest
import torch

from rlhf_toy.course.studies import overoptimisation
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import make_generator


@pytest.fixture(scope="module")
def yardstick():
    world = WordMDP(max_length=1)
    return Yardstick(world, PolicyModel(GPTConfig.for_world(world), make_generator(0)), 0.5)


def test_anchoring_shifts_each_prompt_to_the_true_mean(yardstick):
    scores = torch.randn(yardstick.rewards.shape, generator=make_generator(1)).double()
    anchored = overoptimisation.anchored(scores, yardstick)
    weights = yardstick.ref_logps.exp()
    assert torch.allclose((weights * anchored).sum(1), (weights * yardstick.rewards).sum(1))
    shift = anchored - scores
    assert torch.allclose(shift, shift[:, :1].expand_as(shift))


@pytest.mark.parametrize("how", ["rl", "bon"])
def test_following_the_truth_further_gives_more_of_it(yardstick, how):
    curve = overoptimisation.follow(yardstick, yardstick.rewards, how)
    assert {len(values) for values in curve.values()} == {
        len(overoptimisation.BETAS if how == "rl" else overoptimisation.NS)
    }
    assert curve["proxy"] == curve["true"]
    assert np.all(np.diff(curve["kl"]) >= 0) and np.all(np.diff(curve["true"]) >= 0)
    assert curve["true"][-1] == pytest.approx(float(yardstick.rewards.amax(1).mean()), abs=0.05)


def test_best_of_one_is_the_reference(yardstick):
    curve = overoptimisation.follow(yardstick, -yardstick.rewards, "bon")
    assert curve["kl"][0] == 0.0
    mean = (yardstick.ref_logps.exp() * yardstick.rewards).sum(1).mean()
    assert curve["true"][0] == pytest.approx(float(mean), abs=1e-5)


def test_compared_pairs_come_from_the_policy_and_better_responses_win_more_often(yardstick):
    world = yardstick.world
    allowed = torch.full(yardstick.ref_logps.shape, -torch.inf)
    allowed[:, [0, 2]] = np.log(0.5)
    pairs = overoptimisation.compare(world, allowed, 500, make_generator(0))
    for responses in (pairs.chosen, pairs.rejected):
        assert set(world.response_index(responses).tolist()) == {0, 2}
    won = world.response_rewards(pairs.prompts, pairs.chosen)
    lost = world.response_rewards(pairs.prompts, pairs.rejected)
    assert (won - lost).mean() > 0.1


@pytest.mark.parametrize(("how", "shape"), [("bon", lambda d: d), ("rl", np.log)])
def test_the_fit_recovers_its_own_curve(how, shape):
    kl = np.linspace(0.1, 4, 20)
    d = np.sqrt(kl)
    found, residual = overoptimisation.fit(kl, d * (1.3 - 0.4 * shape(d)), how)
    assert found == pytest.approx([1.3, 0.4])
    assert residual == pytest.approx(0.0, abs=1e-9)


def test_a_series_has_a_row_for_each_seed_in_order():
    results = [
        {"condition": "a", "seed": seed, "rl": {"kl": [seed, 10 + seed]}} for seed in (2, 0, 1)
    ]
    results.append({"condition": "b", "seed": 0, "rl": {"kl": [7, 7]}})
    found = overoptimisation.series(results, "a", "rl", "kl")
    assert found.tolist() == [[0, 10], [1, 11], [2, 12]]
