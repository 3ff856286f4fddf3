"""Supervised training: its expected update, and what each setting does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_toy.checkpoints import digest
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.sft import SFTSettings, SFTState, sft_iteration, sft_loss, train_reference
from rlhf_toy.training import make_generator

WORLD = WordMDP(max_length=2)
SHORT = SFTSettings(corpus_size=60, steps=8, batch_size=20, log_every=3)


def test_the_expected_update_is_the_gradient_of_the_cross_entropy(tiny):
    theta, data = tiny.theta(0), tiny.chances(tiny.theta(5))  # the corpus is another table's text
    policy = tiny.table(theta)
    loss = sft_loss(policy, tiny.prompts, tiny.responses, tiny.mask, torch.from_numpy(data))
    loss.backward()
    tokens = (data * tiny.lengths).sum()
    shares = [[p / tokens] * n for p, n in zip(data, tiny.lengths, strict=True)]
    expected = -tiny.score(theta, shares)
    np.testing.assert_allclose(policy.table.grad.numpy(), expected, atol=1e-8, rtol=0)
    entropy = -sum(p * logps.sum() for p, logps in zip(data, tiny.token_logps(theta), strict=True))
    assert float(loss.detach()) == pytest.approx(entropy / tokens)
    assert np.abs(expected).max() > 1e-3


def test_at_the_text_s_own_policy_the_expected_update_is_0(tiny):
    policy, data = tiny.table(tiny.theta(5)), tiny.chances(tiny.theta(5))
    loss = sft_loss(policy, tiny.prompts, tiny.responses, tiny.mask, torch.from_numpy(data))
    loss.backward()
    assert policy.table.grad.abs().max() < 1e-8


def test_a_gpt_gets_the_same_expected_update_by_the_chain_rule(tiny):
    policy, data = tiny.gpt(3), tiny.chances(tiny.theta(5))
    loss = sft_loss(policy, tiny.prompts, tiny.responses, tiny.mask, torch.from_numpy(data))
    found = torch.autograd.grad(loss, list(policy.parameters()))
    coefficients = torch.from_numpy(-data / (data * tiny.lengths).sum())
    logps = policy.token_logps(tiny.prompts, tiny.responses).sum(1)
    right = torch.autograd.grad((coefficients * logps).sum(), list(policy.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


# What each setting does


def steps(settings, updates, n=1, seed=7):
    """The first n updates of a fresh policy on a corpus of 60 texts."""
    updates.clear()
    config = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
    policy = PolicyModel(config, make_generator(3))
    state = SFTState(policy, settings, make_generator(seed))
    prompts, responses = WORLD.sample_corpus(60, make_generator(1))
    mask = WORLD.response_mask(responses)
    for _ in range(n):
        sft_iteration(state, prompts, responses, mask, settings)
    assert state.step == n
    return list(updates)


def test_the_learning_rate_falls_linearly_over_the_steps(updates):
    rates = [rate for rate, _ in steps(replace(SHORT, learning_rate=0.01), updates, n=8)]
    assert rates == pytest.approx([0.01 * (1 - step / 8) for step in range(8)])


def test_batch_size_is_how_many_texts_an_update_reads_and_an_epoch_reads_all(updates, monkeypatch):
    seen = []
    real = sft_loss

    def spy(policy, prompts, responses, mask):
        seen.append(responses)
        return real(policy, prompts, responses, mask)

    monkeypatch.setattr("rlhf_toy.sft.sft_loss", spy)
    steps(SHORT, updates, n=3)
    assert [len(batch) for batch in seen] == [20, 20, 20]
    _, responses = WORLD.sample_corpus(60, make_generator(1))
    assert sorted(torch.cat(seen).tolist()) == sorted(responses.tolist())
    steps(SHORT, updates, n=1, seed=8)
    assert seen[3].tolist() != seen[0].tolist()


def test_steps_and_log_every_are_when_the_loss_is_recorded():
    _, history = train_reference(WORLD, SHORT, device="cpu")
    assert [row.keys() for row in history.rows] == [{"step", "loss"}] * 3
    assert history.series("loss")[0] == [3, 6, 8]


def test_corpus_size_is_how_many_texts_are_drawn(monkeypatch):
    drawn = []
    real = WordMDP.sample_corpus
    monkeypatch.setattr(
        WordMDP, "sample_corpus", lambda world, n, g: (drawn.append(n), real(world, n, g))[1]
    )
    train_reference(WORLD, replace(SHORT, corpus_size=33), device="cpu")
    assert drawn == [33]


def test_the_reference_learns_the_corpus():
    world = WordMDP(max_length=3)
    settings = SFTSettings(corpus_size=2_000, steps=120, batch_size=128)
    policy, history = train_reference(world, settings, seed=0, device="cpu")
    tokens, chances = world.fluent_reviews
    # The cross-entropy of the corpus, per token, of a policy that knows it exactly.
    lengths = world.response_mask(tokens).sum(1).double()
    weights = chances.mean(0)
    entropy = -(chances * chances.clamp(min=1e-300).log()).sum(1).mean() / (weights @ lengths)
    assert float(entropy) - 0.03 < history.last("loss") < float(entropy) + 0.2
    assert digest(policy) != digest(train_reference(world, settings, seed=1, device="cpu")[0])


def test_a_run_that_diverges_stops():
    with pytest.raises(ValueError, match=r"reference stopped at step \d: .* learning rate"):
        train_reference(WORLD, replace(SHORT, learning_rate=1e30), device="cpu")
