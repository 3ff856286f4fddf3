"""Policy-gradient estimators: their moments over multisets against all ordered groups."""

from itertools import product

import numpy as np
import pytest
import torch

from rlhf_toy.exact import expected_advantages, gradient_moments
from rlhf_toy.losses import grpo_advantages, rloo_advantages
from rlhf_toy.training import make_generator

ADVANTAGES = {
    "reinforce": lambda rewards: rewards,
    "rloo": rloo_advantages,
    "grpo": grpo_advantages,
    "dr_grpo": lambda rewards: grpo_advantages(rewards, scale=False),
}


def tables(X=2, Y=4, seed=0):
    logits, rewards = torch.randn(2, X, Y, generator=make_generator(seed), dtype=torch.float64)
    return logits.log_softmax(-1), rewards


def by_hand(name, r, G):
    """Advantages of one group, in numpy."""
    others = (r.sum() - r) / (G - 1) if G > 1 else 0.0
    spread = r.std(ddof=1) + 1e-4 if G > 1 else 1.0
    return {
        "reinforce": r,
        "rloo": r - others,
        "grpo": (r - r.mean()) / spread,
        "dr_grpo": r - r.mean(),
    }[name]


def all_ordered(name, p, rewards, G):
    """Every ordered group of one prompt: its probability, members and advantages."""
    for group in product(range(len(p)), repeat=G):
        group = np.array(group)
        yield np.prod(p[group]), group, by_hand(name, rewards[group], G)


@pytest.mark.parametrize("G", [2, 3])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_the_moments_are_those_over_all_ordered_groups(name, G):
    logps, rewards = tables()
    found = gradient_moments(ADVANTAGES[name], logps, rewards, G)
    conditional = expected_advantages(ADVANTAGES[name], logps, rewards, G).numpy()
    for x, (p, r) in enumerate(zip(logps.exp().numpy(), rewards.numpy(), strict=True)):
        mean, square, credit = np.zeros(4), 0.0, np.zeros(4)
        for chance, group, A in all_ordered(name, p, r, G):
            gradient = (A[:, None] * (np.eye(4)[group] - p)).mean(0)
            mean += chance * gradient
            square += chance * gradient @ gradient
            np.add.at(credit, group[:1], chance * A[0])
        true = p * (r - p @ r)
        cosine = mean @ true / np.linalg.norm(mean) / np.linalg.norm(true)
        np.testing.assert_allclose(found.mean[x], mean, atol=1e-12)
        np.testing.assert_allclose(found.variance[x], square - mean @ mean, atol=1e-12)
        np.testing.assert_allclose(found.cosine[x], cosine, atol=1e-12)
        np.testing.assert_allclose(conditional[x], credit / p, atol=1e-12)


@pytest.mark.parametrize("G", [2, 4, 8])
def test_rloo_is_unbiased_and_dr_grpo_is_so_up_to_a_factor(G):
    logps, rewards = tables()
    p = logps.exp()
    true = p * (rewards - (p * rewards).sum(1, keepdim=True))
    for name, factor in (("reinforce", 1.0), ("rloo", 1.0), ("dr_grpo", 1 - 1 / G)):
        found = gradient_moments(ADVANTAGES[name], logps, rewards, G)
        torch.testing.assert_close(found.mean, factor * true, atol=1e-12, rtol=0)


def test_grpo_turns_away_from_the_gradient_and_a_baseline_cuts_the_variance():
    logps, rewards = tables()
    assert (gradient_moments(grpo_advantages, logps, rewards, 2).cosine < 0.999).all()
    value = (logps.exp() * rewards).sum(1, keepdim=True)
    far = gradient_moments(lambda r: r, logps, rewards + 5, 2)
    near = gradient_moments(lambda r: r, logps, rewards - value, 2)
    torch.testing.assert_close(far.mean, near.mean)
    assert (near.variance < far.variance).all()


def test_where_all_rewards_are_equal_there_is_no_direction():
    logps, rewards = tables()
    found = gradient_moments(rloo_advantages, logps, 0 * rewards, 2)
    assert found.cosine.isnan().all() and not found.mean.any() and not found.variance.any()


def test_what_cannot_be_enumerated_is_refused():
    logps, rewards = tables()
    many = torch.full((1, 60), 1 / 60, dtype=torch.float64).log()
    with pytest.raises(ValueError, match=r"82,598,880 .* of 6 of 60 .* at most 200,000"):
        expected_advantages(rloo_advantages, many, many, 6)
    with pytest.raises(ValueError, match=r"logps \[X, Y\]"):
        gradient_moments(rloo_advantages, logps, rewards[:1], 2)
    with pytest.raises(ValueError, match="logps must hold log-probabilities"):
        gradient_moments(rloo_advantages, logps + 1, rewards, 2)
    with pytest.raises(ValueError, match="logps must be finite"):
        certain = torch.tensor([[0.0, -torch.inf]]).double()
        gradient_moments(rloo_advantages, certain, certain.exp(), 2)
    with pytest.raises(ValueError, match="group_size must be an integer of at least 1"):
        gradient_moments(rloo_advantages, logps, rewards, 0)
    with pytest.raises(ValueError, match="these must have one shape, got advantages"):
        gradient_moments(lambda rewards: rewards.mean(1), logps, rewards, 2)
