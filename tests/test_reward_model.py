"""The reward model: its expected update, and what each setting does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.checkpoints import digest
from rlhf_toy.envs import LongReview, WordMDP
from rlhf_toy.exact import automaton_optimum, table_reference
from rlhf_toy.models import GPTConfig, PolicyModel, RewardModel
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import (
    RewardModelSettings,
    RewardModelState,
    measure_held_out,
    pair_rewards,
    reward_model_iteration,
    reward_model_loss,
    train_reward_model,
)
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator


def a_model(world, seed=3, n_embd=8):
    """A reward model whose head is not 0."""
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=n_embd)
    model = RewardModel(config, make_generator(seed))
    torch.nn.init.normal_(model.head.weight, generator=make_generator(seed + 1))
    return model


def every_pair(tiny, sampler):
    """All pairs of two responses to one prompt, and how likely each is to be recorded so."""
    chances = 2 * tiny.chances(sampler)
    rows = [(i, j) for i in range(80) for j in range(80) if i // 40 == j // 40 and i != j]
    i, j = np.array(rows).T
    wins = 1 / (1 + np.exp(tiny.rewards[j] - tiny.rewards[i]))
    weights = chances[i] * chances[j] * wins
    pairs = PreferenceDataset(tiny.world, tiny.prompts[i], tiny.responses[i], tiny.responses[j])
    return i, j, pairs, weights / weights.sum()


def test_the_expected_update_is_the_gradient_of_the_population_loss(tiny):
    i, j, pairs, weights = every_pair(tiny, tiny.theta(2))
    model = a_model(tiny.world).double()
    loss, rewards = reward_model_loss(model, pairs, torch.from_numpy(weights))
    found = torch.autograd.grad(loss, list(model.parameters()))
    # dL/dr(y) = −Σ over pairs that y wins of w σ(−(r − r′)), plus Σ over pairs that it loses.
    outputs = model(tiny.prompts, tiny.responses)
    r = outputs.detach().numpy()
    surprise = weights / (1 + np.exp(r[i] - r[j]))
    slopes = np.zeros(80)
    np.add.at(slopes, i, -surprise)
    np.add.at(slopes, j, surprise)
    surrogate = (torch.from_numpy(slopes) * outputs).sum()
    right = torch.autograd.grad(surrogate, list(model.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)
    assert np.abs(slopes).max() > 1e-3
    assert float(loss.detach()) == pytest.approx((weights * np.log1p(np.exp(r[j] - r[i]))).sum())
    np.testing.assert_allclose(rewards.detach().numpy(), [r[i], r[j]], atol=1e-12)


def test_where_the_model_is_the_true_reward_the_expected_update_is_0(tiny):
    _, _, pairs, weights = every_pair(tiny, tiny.theta(2))

    class Truth(torch.nn.Module):
        vocabulary = tiny.world.vocabulary

        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(2, 40, dtype=torch.float64))

        def forward(self, prompts, responses):
            index = tiny.world.response_index(responses)
            rewards = tiny.world.response_rewards(prompts, responses)
            return rewards + 7.0 + self.shift[prompts, index]  # a constant is free

    model = Truth()
    reward_model_loss(model, pairs, torch.from_numpy(weights))[0].backward()
    assert model.shift.grad.abs().max() < 1e-8


# What each setting does


WORLD = WordMDP(max_length=2)
WRITER = PolicyModel(GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16), make_generator(3))
PAIRS = collect_preferences(WRITER, WORLD, BradleyTerryAnnotator(), 300, make_generator(4))
SHORT = RewardModelSettings(steps=8, batch_size=100, measure_every=3)


def steps(settings, updates, n=1, seed=7):
    updates.clear()
    state = RewardModelState(a_model(WORLD), settings, make_generator(seed))
    for _ in range(n):
        metrics = reward_model_iteration(state, PAIRS, settings)
    assert state.step == n
    return list(updates), metrics, state


def test_the_learning_rate_falls_linearly_over_the_steps(updates):
    settings = replace(SHORT, learning_rate=0.01)
    rates = [rate for rate, _ in steps(settings, updates, n=8)[0]]
    assert rates == pytest.approx([0.01 * (1 - step / 8) for step in range(8)])


def test_an_epoch_reads_each_pair_once_in_batches_of_batch_size(updates, monkeypatch):
    seen = []
    real = reward_model_loss

    def spy(model, pairs):
        seen.append(torch.cat([pairs.prompts[:, None], pairs.chosen, pairs.rejected], 1))
        return real(model, pairs)

    monkeypatch.setattr("rlhf_toy.reward_model.reward_model_loss", spy)
    steps(SHORT, updates, n=3)
    assert [len(batch) for batch in seen] == [100, 100, 100]
    every = torch.cat([PAIRS.prompts[:, None], PAIRS.chosen, PAIRS.rejected], 1)
    assert sorted(torch.cat(seen).tolist()) == sorted(every.tolist())
    steps(SHORT, updates, seed=8)
    assert seen[3].tolist() != seen[0].tolist()


def test_weight_decay_pulls_the_weights_to_0(updates):
    plain = steps(replace(SHORT, weight_decay=0.0, learning_rate=0.01), updates)[2].model
    decayed = steps(replace(SHORT, weight_decay=2.0, learning_rate=0.01), updates)[2].model
    for start, one, other in zip(
        a_model(WORLD).parameters(), plain.parameters(), decayed.parameters(), strict=True
    ):
        # AdamW takes lr · decay · weight off, beside Adam's own step.
        torch.testing.assert_close(one - other, 0.01 * 2.0 * start, atol=1e-6, rtol=1e-4)


def test_the_metrics_are_means_over_the_batch(updates):
    _, metrics, _ = steps(replace(SHORT, batch_size=300), updates)
    chosen, rejected = pair_rewards(a_model(WORLD), PAIRS).detach()
    margin = chosen - rejected
    for name, right in {
        "loss": torch.log1p(torch.exp(-margin)).mean(),
        "accuracy": ((margin > 0).float() + (margin == 0).float() / 2).mean(),
        "margin": margin.mean(),
        "mean_reward": torch.cat([chosen, rejected]).mean(),
    }.items():
        assert float(metrics[name]) == pytest.approx(float(right), abs=1e-5), name


def test_steps_and_measure_every_are_when_something_is_recorded():
    _, history = train_reward_model(PAIRS, SHORT, device="cpu")
    for name in ("loss", "held_out/loss", "held_out/accuracy"):
        assert history.series(name)[0] == [3, 6, 8]


@pytest.mark.parametrize("held_out", [0.1, 0.4])
def test_held_out_is_the_share_of_the_pairs_that_are_kept_for_measuring(held_out, monkeypatch):
    sizes = set()
    real = measure_held_out

    def spy(state, pairs):
        sizes.add(len(pairs))
        chosen, rejected = pair_rewards(state.average.module, pairs).detach()
        metrics = real(state, pairs)
        loss = torch.log1p(torch.exp(rejected - chosen)).mean()
        assert float(metrics["held_out/loss"]) == pytest.approx(float(loss), abs=1e-5)
        share = float((chosen > rejected).float().mean())
        assert float(metrics["held_out/accuracy"]) == pytest.approx(share, abs=0.05)
        return metrics

    monkeypatch.setattr("rlhf_toy.reward_model.measure_held_out", spy)
    train_reward_model(PAIRS, replace(SHORT, held_out=held_out), device="cpu")
    assert sizes == {round(held_out * 300)}


def test_the_model_that_was_best_on_the_held_out_pairs_is_returned():
    settings = RewardModelSettings(
        steps=150, batch_size=64, learning_rate=1e-2, weight_decay=0.0, measure_every=10
    )
    few = PAIRS[:60]
    model, history = train_reward_model(few, settings, device="cpu")
    losses = history.series("held_out/loss")[1]
    assert losses.index(min(losses)) < len(losses) - 1, "it must overfit, or it shows nothing"
    _, held_out = few.split(0.9, 0)
    loss, _ = reward_model_loss(model, held_out)
    assert float(loss.detach()) == pytest.approx(min(losses), abs=1e-6)


def test_a_model_of_another_world_is_refused():
    with pytest.raises(ValueError, match="made for another world"):
        pair_rewards(a_model(WordMDP(max_length=3)), PAIRS)


def test_seeds_give_models_of_their_own():
    models = [train_reward_model(PAIRS, SHORT, seed=s, device="cpu")[0] for s in (0, 1, 0)]
    assert digest(models[0]) == digest(models[2]) != digest(models[1])


def test_a_run_that_diverges_stops():
    settings = replace(SHORT, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"reward model stopped at step \d: .* learning rate"):
        train_reward_model(PAIRS, settings, device="cpu")


def test_a_model_that_saw_only_fluent_reviews_likes_praise_that_is_no_sentence(short_spec):
    """The long world can be hacked: the salad is worse than anything that was compared."""
    world, generator = LongReview(short_spec), make_generator(0)
    reference = table_reference(world)
    pairs = collect_preferences(reference, world, BradleyTerryAnnotator(), 2_000, generator)
    settings = RewardModelSettings(steps=80, batch_size=128)
    model, _ = train_reward_model(pairs, settings, device="cpu")
    prompts = world.sample_prompts(500, generator)
    best = automaton_optimum(world.automaton(), 0.3).sample(prompts, generator)
    salad = world.encode("good good good good").expand_as(best)
    fluent = sample(reference, world, prompts, generator).responses
    with torch.inference_mode():
        learned = [model(prompts, y).mean() for y in (salad, best, fluent)]
    true = [world.response_rewards(prompts, y).mean() for y in (salad, best, fluent)]
    assert learned[0] > learned[1] > learned[2]
    assert true[0] < true[2] - 2 < true[1]
