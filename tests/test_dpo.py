"""DPO and its family: the gradient of a batch in expectation, and what each setting does.

Every pair of responses of a tiny world is weighted by its probability, so the gradient of the batch
loss is that of the population loss; the right-hand sides are written in numpy.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.checkpoints import digest
from rlhf_toy.dpo import (
    LOSSES,
    DPOSettings,
    DPOState,
    OnlineDPOSettings,
    dpo_iteration,
    measure_held_out,
    pair_logps,
    preference_loss,
    train_dpo,
    train_online_dpo,
)
from rlhf_toy.envs import SlipperyWordMDP, WordMDP
from rlhf_toy.exact import Yardstick
from rlhf_toy.losses import dpo_loss
from rlhf_toy.models import GPTConfig, PolicyModel, ResidualPolicy
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.training import make_generator

BETA, EPSILON = 0.4, 0.1
SETTINGS = {
    "dpo": DPOSettings(beta=BETA),
    "ipo": DPOSettings(beta=BETA, loss="ipo"),
    "cdpo": DPOSettings(beta=BETA, loss="cdpo", label_smoothing=EPSILON),
    "rdpo": DPOSettings(beta=BETA, loss="rdpo", label_smoothing=EPSILON),
    "simpo": DPOSettings(beta=BETA, loss="simpo", simpo_gamma=0.3),
    "kto": DPOSettings(beta=BETA, loss="kto", desirable_weight=1.5, undesirable_weight=0.7),
    "orpo": DPOSettings(beta=BETA, loss="orpo"),
    "chi_po": DPOSettings(beta=BETA, loss="chi_po", max_reward=1.0),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def every_pair(tiny, sampler):
    """All pairs of two responses to one prompt, and how likely each is to be recorded so.

    Both responses are drawn from `sampler`, and the first is preferred with σ(r − r′).
    """
    chances = 2 * tiny.chances(sampler)  # π(y|x)
    rows = [(i, j) for i in range(80) for j in range(80) if i // 40 == j // 40 and i != j]
    i, j = np.array(rows).T
    weights = chances[i] * chances[j] * sigmoid(tiny.rewards[i] - tiny.rewards[j])
    pairs = PreferenceDataset(tiny.world, tiny.prompts[i], tiny.responses[i], tiny.responses[j])
    return i, j, pairs, weights / weights.sum()


def slopes(s, logps, refs, lengths, weights):
    """The derivative of each pair's loss in both log-probabilities: [2, N], for settings s.

    `logps`, `refs` and `lengths` are [2, N], chosen first; `weights` [N] are those of the pairs.
    """
    beta, epsilon, (chosen, rejected) = s.beta, s.label_smoothing, logps - refs
    h = chosen - rejected
    wrong, right = sigmoid(-beta * h), sigmoid(beta * h)
    if s.loss == "simpo":
        means = logps / lengths
        wrong = sigmoid(s.simpo_gamma - beta * (means[0] - means[1]))
        return np.array([-beta * wrong, beta * wrong]) / lengths
    if s.loss == "orpo":
        p = np.exp(logps / lengths)  # of a token; the derivative of its log-odds is 1/(1 − p)
        odds = p / (1 - p)
        wrong = odds[1] / (odds[0] + odds[1])
        pull = np.array([np.ones_like(h), np.zeros_like(h)])
        return (-pull + beta * wrong * np.array([-1 / (1 - p[0]), 1 / (1 - p[1])])) / lengths
    if s.loss == "chi_po":
        z = np.exp([chosen, rejected])
        margin = beta * (z[0] + chosen - z[1] - rejected)
        wrong = np.where(np.abs(margin) > 2 * s.max_reward, 0.0, sigmoid(-margin))
        return beta * wrong * np.array([-(z[0] + 1), z[1] + 1])
    if s.loss == "kto":
        both, twice = np.concatenate([chosen, rejected]), np.concatenate([weights, weights])
        kl = (twice * np.exp(both) * both).sum() / (twice * np.exp(both)).sum()  # a constant
        v = sigmoid(beta * (chosen - kl)), sigmoid(beta * (kl - rejected))
        lambdas = -s.desirable_weight, s.undesirable_weight
        return np.array([w * beta * p * (1 - p) / 2 for w, p in zip(lambdas, v, strict=True)])
    in_h = {
        "dpo": -beta * wrong,
        "ipo": 2 * (h - 1 / (2 * beta)),
        "cdpo": beta * (-(1 - epsilon) * wrong + epsilon * right),
        "rdpo": beta * (-(1 - epsilon) * wrong - epsilon * right) / (1 - 2 * epsilon),
    }[s.loss]
    return np.array([in_h, -in_h])


def population_slopes(tiny, settings, logps, ref, sampler):
    """d(population loss)/d log π(y|x) for each of the 80 rows."""
    i, j, _, weights = every_pair(tiny, sampler)
    refs, rows = tiny.logps(ref), np.array([i, j])
    found = np.zeros(80)
    pairs = slopes(settings, logps[rows], refs[rows], tiny.lengths[rows], weights)
    np.add.at(found, rows, weights * pairs)
    return found


def test_every_loss_is_here():
    assert set(SETTINGS) == set(LOSSES)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_expected_update_is_the_gradient_of_the_population_loss(tiny, name):
    theta, ref, sampler = (tiny.theta(seed) for seed in (0, 1, 2))
    _, _, pairs, weights = every_pair(tiny, sampler)
    policy, reference = tiny.table(theta), tiny.table(ref)
    ref_logps = pair_logps(reference, pairs).detach()
    loss, _ = preference_loss(policy, pairs, ref_logps, SETTINGS[name], torch.from_numpy(weights))
    loss.backward()
    found = population_slopes(tiny, SETTINGS[name], tiny.logps(theta), ref, sampler)
    expected = tiny.score(theta, [[s] * n for s, n in zip(found, tiny.lengths, strict=True)])
    np.testing.assert_allclose(policy.table.grad.numpy(), expected, atol=1e-8, rtol=0)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", SETTINGS)
def test_a_gpt_gets_the_same_expected_update_by_the_chain_rule(tiny, name):
    policy, ref, sampler = tiny.gpt(3), tiny.theta(1), tiny.theta(2)
    _, _, pairs, weights = every_pair(tiny, sampler)
    ref_logps = pair_logps(tiny.table(ref), pairs).detach()
    loss, _ = preference_loss(policy, pairs, ref_logps, SETTINGS[name], torch.from_numpy(weights))
    found = torch.autograd.grad(loss, list(policy.parameters()))
    logps = policy.token_logps(tiny.prompts, tiny.responses).sum(1)
    total = population_slopes(tiny, SETTINGS[name], logps.detach().numpy(), ref, sampler)
    right = torch.autograd.grad((torch.from_numpy(total) * logps).sum(), list(policy.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def test_at_the_gibbs_policy_the_expected_dpo_update_is_0(tiny):
    ref, sampler = tiny.theta(1), tiny.theta(2)
    _, _, pairs, weights = every_pair(tiny, sampler)
    ref_logps = pair_logps(tiny.table(ref), pairs).detach()
    # π* as a table: at a state, the mass of all responses that go through each action.
    mass = np.exp(tiny.logps(ref) + tiny.rewards / BETA)
    totals = np.full((2, tiny.S, 4), 1e-300)
    for n, (x, y) in enumerate(tiny.rows):
        for s, a in zip(tiny.states[n], y, strict=True):
            totals[x, s, a] += mass[n]
    policy = tiny.table(np.log(totals))
    loss, _ = preference_loss(policy, pairs, ref_logps, SETTINGS["dpo"], torch.from_numpy(weights))
    loss.backward()
    assert policy.table.grad.abs().max() < 1e-8


def test_a_batch_of_pairs_has_sums_of_logps_and_lengths(tiny):
    theta, ref = tiny.theta(0), tiny.theta(1)
    i, j, pairs, _ = every_pair(tiny, theta)
    ref_logps = pair_logps(tiny.table(ref), pairs).detach()
    _, batch = preference_loss(tiny.table(theta), pairs, ref_logps, SETTINGS["dpo"])
    logps, refs = tiny.logps(theta), tiny.logps(ref)
    for found, right in (
        (batch.policy_chosen_logps, logps[i]),
        (batch.policy_rejected_logps, logps[j]),
        (batch.ref_chosen_logps, refs[i]),
        (batch.ref_rejected_logps, refs[j]),
        (batch.chosen_lengths, tiny.lengths[i]),
        (batch.rejected_lengths, tiny.lengths[j]),
    ):
        np.testing.assert_allclose(found.detach().numpy(), right, atol=1e-12)
    rewards = batch.implicit_rewards(BETA)
    np.testing.assert_allclose(rewards[0].detach().numpy(), BETA * (logps - refs)[i], atol=1e-12)
    np.testing.assert_allclose(rewards[1].detach().numpy(), BETA * (logps - refs)[j], atol=1e-12)


# What each setting does


WORLD = WordMDP(max_length=2)


def reference(seed=3):
    config = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(seed))


REFERENCE = reference()
PAIRS = collect_preferences(REFERENCE, WORLD, BradleyTerryAnnotator(), 300, make_generator(4))
SHORT = DPOSettings(steps=8, batch_size=32, measure_every=3, warmup_steps=2)


def steps(settings, updates, pairs=PAIRS, n=1, seed=7):
    """The first n updates from another policy than the reference, and the metrics of the last."""
    updates.clear()
    state = DPOState(reference(9), settings, make_generator(seed))
    ref_logps = pair_logps(REFERENCE, pairs).detach()
    for _ in range(n):
        metrics = dpo_iteration(state, pairs, ref_logps, settings)
    assert state.step == n
    return list(updates), metrics


def flat(update):
    return torch.cat([g.flatten() for g in update[1]])


def check_update(update, settings, pairs=PAIRS):
    """An update with all the pairs is the one that the slopes of these settings give."""
    policy, length = reference(9), pairs.world.response_mask
    logps, refs = pair_logps(policy, pairs), pair_logps(REFERENCE, pairs).detach()
    lengths = torch.stack([length(side).sum(1) for side in (pairs.chosen, pairs.rejected)])
    numbers = [x.detach().double().numpy() for x in (logps, refs, lengths)]
    each = torch.from_numpy(slopes(settings, *numbers, np.ones(len(pairs)))).float()
    surrogate = (each * logps).sum() / len(pairs)
    expected = torch.autograd.grad(surrogate, list(policy.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(flat(update), expected, atol=2e-5, rtol=1e-4)
    assert expected.norm() > 1e-2


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_names_the_loss_whose_gradient_is_followed(updates, name):
    settings = replace(SETTINGS[name], batch_size=300)
    (update,), metrics = steps(settings, updates)
    check_update(update, settings)
    with torch.no_grad():
        loss, _ = preference_loss(
            reference(9), PAIRS, pair_logps(REFERENCE, PAIRS), SETTINGS[name], torch.ones(300)
        )
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {"beta": 0.9}) for name in SETTINGS),
        ("cdpo", {"label_smoothing": 0.3}),
        ("rdpo", {"label_smoothing": 0.3}),
        ("simpo", {"simpo_gamma": 0.0}),
        ("kto", {"desirable_weight": 0.5}),
        ("kto", {"undesirable_weight": 3.0}),
        ("chi_po", {"max_reward": 0.2}),
    ],
)
def test_each_field_of_a_loss_changes_the_update_as_its_formula_says(updates, name, change):
    plain = replace(SETTINGS[name], batch_size=300)
    changed = replace(plain, **change)
    (before,), _ = steps(plain, updates)
    (update,), _ = steps(changed, updates)
    check_update(update, changed)
    assert (flat(update) - flat(before)).norm() > 1e-2


def test_weight_decay_pulls_every_weight_towards_0(updates):
    weights = {}
    for weight_decay in (0.0, 0.5):
        settings = replace(SHORT, weight_decay=weight_decay, learning_rate=0.01, warmup_steps=0)
        state = DPOState(reference(9), settings, make_generator(7))
        dpo_iteration(state, PAIRS, pair_logps(REFERENCE, PAIRS).detach(), settings)
        weights[weight_decay] = torch.cat([p.detach().flatten() for p in state.policy.parameters()])
    start = torch.cat([p.detach().flatten() for p in reference(9).parameters()])
    torch.testing.assert_close(weights[0.5], weights[0.0] - 0.01 * 0.5 * start)


def test_label_smoothing_belongs_to_cdpo_and_rdpo():
    for change in ({"label_smoothing": 0.1}, {"loss": "cdpo"}, {"loss": "rdpo"}):
        with pytest.raises(ValueError, match="above 0 for the losses 'cdpo' and 'rdpo', and 0 for"):
            DPOSettings(**change)


@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
def test_the_learning_rate_rises_and_then_falls_linearly(updates, warmup_steps):
    settings = replace(SHORT, warmup_steps=warmup_steps, learning_rate=0.01)
    rates = [rate for rate, _ in steps(settings, updates, n=8)[0]]
    rise = [min(1, (step + 1) / (warmup_steps + 1)) for step in range(8)]
    assert rates == pytest.approx([0.01 * rise[s] * (1 - s / 8) for s in range(8)])


def test_batch_size_is_how_many_pairs_an_update_reads(updates, monkeypatch):
    sizes = []
    real = preference_loss

    def spy(policy, pairs, *rest):
        sizes.append(len(pairs))
        return real(policy, pairs, *rest)

    monkeypatch.setattr("rlhf_toy.dpo.preference_loss", spy)
    steps(replace(SHORT, batch_size=25), updates, n=2)
    assert sizes == [25, 25]


def test_an_epoch_reads_each_pair_once_in_an_order_of_the_seed(updates, monkeypatch):
    seen = []
    real = preference_loss

    def spy(policy, pairs, ref_logps, *rest):
        seen.append(ref_logps[0])
        return real(policy, pairs, ref_logps, *rest)

    monkeypatch.setattr("rlhf_toy.dpo.preference_loss", spy)
    settings = replace(SHORT, batch_size=100)
    steps(settings, updates, n=6)
    steps(settings, updates, n=3, seed=8)
    epochs = [torch.cat(seen[start : start + 3]) for start in (0, 3, 6)]
    every = pair_logps(REFERENCE, PAIRS)[0].detach().sort().values
    for epoch in epochs:
        torch.testing.assert_close(epoch.sort().values, every)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])


def test_measure_every_and_steps_are_when_something_is_recorded():
    _, history = train_dpo(PAIRS, REFERENCE, SHORT, device="cpu")
    for name in ("loss", "held_out/loss", "exact/gap"):
        assert history.series(name)[0] == [3, 6, 8]


@pytest.mark.parametrize("held_out", [0.1, 0.4])
def test_held_out_is_the_share_of_the_pairs_that_are_never_trained_on(held_out, monkeypatch):
    sizes = set()
    real = measure_held_out

    def spy(state, pairs, ref_logps, settings):
        sizes.add(len(pairs))
        logps = pair_logps(state.average.module, pairs).detach()
        loss = float(dpo_loss(*logps, *ref_logps, settings.beta))
        metrics = real(state, pairs, ref_logps, settings)
        assert float(metrics["held_out/loss"]) == pytest.approx(loss, abs=1e-6)
        return metrics

    monkeypatch.setattr("rlhf_toy.dpo.measure_held_out", spy)
    train_dpo(PAIRS, REFERENCE, replace(SHORT, held_out=held_out), device="cpu")
    assert sizes == {round(held_out * 300)}


def test_early_stopping_returns_the_policy_that_was_best_on_the_held_out_pairs():
    settings = DPOSettings(steps=200, batch_size=64, learning_rate=1e-2, measure_every=10)
    few = PAIRS[:60]
    stopped, history = train_dpo(few, REFERENCE, settings, seed=0, device="cpu")
    to_the_end = replace(settings, early_stopping=False)
    last, _ = train_dpo(few, REFERENCE, to_the_end, seed=0, device="cpu")
    losses = history.series("held_out/loss")[1]
    best = losses.index(min(losses))
    assert best < len(losses) - 1, "the example must overfit, or it shows nothing"
    yardstick = Yardstick(WORLD, REFERENCE, 0.5)
    gaps = history.series("exact/gap")[1]
    assert yardstick.measure(stopped).gap == pytest.approx(gaps[best], abs=1e-6)
    assert yardstick.measure(last).gap == pytest.approx(gaps[-1], abs=1e-6)


# Training


def test_dpo_starts_at_log_2_and_its_history_is_consistent():
    settings = DPOSettings(steps=2, batch_size=64, measure_every=1)
    _, history = train_dpo(PAIRS, REFERENCE, settings, seed=0)
    first = history.rows[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    for row in history.rows:
        assert row["rewards/margins"] == pytest.approx(
            row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5
        )


def test_dpo_trains_a_network_beside_the_reference_or_the_reference_s_own_weights():
    settings = replace(SHORT, steps=4)
    beside, _ = train_dpo(PAIRS, REFERENCE, settings, seed=0, device="cpu")
    assert isinstance(beside, ResidualPolicy) and digest(beside.reference) == digest(REFERENCE)
    again, _ = train_dpo(PAIRS, REFERENCE, settings, seed=0, device="cpu")
    other, _ = train_dpo(PAIRS, REFERENCE, settings, seed=1, device="cpu")
    assert digest(again) == digest(beside) != digest(other)
    own, _ = train_dpo(PAIRS, REFERENCE, settings, device="cpu", start=REFERENCE)
    assert isinstance(own, PolicyModel) and digest(own) != digest(REFERENCE)


def test_the_metrics_are_means_over_the_batch(updates):
    settings = replace(SHORT, batch_size=300)
    _, metrics = steps(settings, updates)
    logps, ref_logps = (pair_logps(p, PAIRS).detach() for p in (reference(9), REFERENCE))
    rewards = settings.beta * (logps - ref_logps)
    margins = rewards[0] - rewards[1]
    for name, right in {
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": ((margins > 0).float() + (margins == 0).float() / 2).mean(),
        "logps/chosen": logps[0].mean(),
        "logps/rejected": logps[1].mean(),
    }.items():
        assert float(metrics[name]) == pytest.approx(float(right), abs=1e-5), name


def test_dpo_trains_further_from_another_policy_against_the_same_reference():
    one_step = DPOSettings(
        steps=1, batch_size=270, held_out=0.1, measure_every=1, learning_rate=1e-5
    )
    half_way, _ = train_dpo(PAIRS, REFERENCE, DPOSettings(steps=100), seed=0, device="cpu")
    before = digest(half_way)
    _, history = train_dpo(PAIRS, REFERENCE, one_step, seed=0, device="cpu", start=half_way)
    assert digest(half_way) == before
    train, _ = PAIRS.split(0.9, 0)  # the one batch of the run is all of it
    with torch.no_grad():
        loss = dpo_loss(*pair_logps(half_way, train), *pair_logps(REFERENCE, train), one_step.beta)
    assert len(train) == 270
    assert loss < np.log(2) - 0.01
    assert history.last("loss") == pytest.approx(float(loss), abs=1e-6)
    gap = Yardstick(WORLD, REFERENCE, one_step.beta).measure(half_way).gap
    assert history.last("exact/gap") == pytest.approx(gap, abs=0.01)


def test_models_of_another_world_and_a_checkpoint_of_another_start_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    wide = PolicyModel(GPTConfig.for_world(WordMDP(max_length=3)), make_generator(0))
    for arguments in ({"start": wide}, {"reference": wide, "start": REFERENCE}):
        with pytest.raises(ValueError, match="made for another world"):
            train_dpo(PAIRS, **{"reference": REFERENCE, **arguments}, checkpoint=path)
    with pytest.raises(ValueError, match="made for another world"):
        pair_logps(wide, PAIRS)
    assert not path.exists()
    train_dpo(PAIRS, REFERENCE, SHORT, checkpoint=path, device="cpu")
    with pytest.raises(ValueError, match="belongs to another run: start is"):
        train_dpo(PAIRS, REFERENCE, SHORT, checkpoint=path, device="cpu", start=reference(9))
    with pytest.raises(ValueError, match="belongs to another run: pairs is"):
        train_dpo(PAIRS[:200], REFERENCE, SHORT, checkpoint=path, device="cpu")


def test_a_table_can_be_the_reference(tiny):
    table = tiny.table(tiny.theta(1))
    pairs = collect_preferences(
        table, tiny.world, BradleyTerryAnnotator(), 2_000, make_generator(0)
    )
    settings = replace(SHORT, steps=300, batch_size=256, learning_rate=3e-3, measure_every=50)
    start = tiny.gpt(3).float()
    _, history = train_dpo(pairs, table, settings, device="cpu", start=start)
    at_start = Yardstick(tiny.world, table, settings.beta).measure(start).gap
    assert history.last("exact/gap") < 0.5 * at_start
    policy, history = train_dpo(pairs, table, settings, device="cpu")
    assert isinstance(policy, ResidualPolicy) and history.last("exact/gap") < 0.5
    with pytest.raises(TypeError, match="start must be a PolicyModel or ResidualPolicy, since a"):
        train_dpo(pairs, table, settings, device="cpu", start=table)


def test_dpo_trains_on_what_was_written_in_a_stochastic_world():
    world = SlipperyWordMDP(slip=0.1, max_length=2)
    pairs = collect_preferences(REFERENCE, world, BradleyTerryAnnotator(), 2_000, make_generator(0))
    _, history = train_dpo(pairs, REFERENCE, replace(SHORT, steps=60), device="cpu")
    assert history.last("exact/gap") < 0.97


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, early_stopping):
    settings = DPOSettings(steps=40, learning_rate=1e30, early_stopping=early_stopping)
    with pytest.raises(ValueError, match=r"DPO stopped at step \d+: .* learning rate"):
        train_dpo(PAIRS, REFERENCE, settings, device="cpu", checkpoint=tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


# Online DPO


ONLINE = OnlineDPOSettings(
    rounds=3, pairs=60, dpo=DPOSettings(steps=10, batch_size=32, measure_every=4)
)


def online(settings=ONLINE, seed=5, **run):
    annotator = BradleyTerryAnnotator()
    return train_online_dpo(WORLD, REFERENCE, annotator, settings, seed, "cpu", **run)


@pytest.mark.parametrize("start", [None, reference(9)], ids=["at the reference", "elsewhere"])
def test_each_round_adds_pairs_of_the_policy_as_it_is(monkeypatch, start):
    asked, rounds = [], []
    collect, train = collect_preferences, train_dpo

    def collecting(sampler, world, annotator, n, generator):
        asked.append((digest(sampler), n))
        return collect(sampler, world, annotator, n, generator)

    def training(pairs, reference, settings, seed, *others):
        policy, history = train(pairs, reference, settings, seed, *others)
        rounds.append((pairs, digest(reference), settings, seed, digest(policy)))
        return policy, history

    monkeypatch.setattr("rlhf_toy.dpo.collect_preferences", collecting)
    monkeypatch.setattr("rlhf_toy.dpo.train_dpo", training)
    policy, _ = online(start=start)
    policies = [digest(start or REFERENCE), *(row[-1] for row in rounds)]
    assert asked == [(found, 60) for found in policies[:-1]]
    assert policies[-1] == digest(policy) and len(set(policies)) == 4
    assert [len(pairs) for pairs, *_ in rounds] == [60, 120, 180]
    for (earlier, *_), (later, *_) in itertools.pairwise(rounds):
        assert torch.equal(later.chosen[: len(earlier)], earlier.chosen)
    assert {row[1:3] for row in rounds} == {(digest(REFERENCE), ONLINE.dpo)}
    assert [row[3] for row in rounds] == [5, 6, 7]


def test_the_steps_of_the_history_and_of_the_watch_count_over_all_rounds():
    seen, lengths = [], []

    def watch(step, policy, history):
        seen.append(step)
        lengths.append(len(history.rows))
        assert not history.rows or history.rows[-1]["step"] <= step

    _, history = online(watch=watch)
    assert seen == list(range(1, 31))
    measured = [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert history.series("loss")[0] == history.series("exact/gap")[0] == measured
    assert lengths == [sum(place <= step for place in measured) for step in seen]
    assert online()[1].rows == history.rows


@pytest.mark.parametrize("halt_at", [3, 10, 15, 20, 29])
def test_a_run_that_ends_in_any_round_resumes_bit_for_bit(tmp_path, updates, halt_at):
    straight, history = online()
    path, seen = tmp_path / "run.pt", []

    def watch(step, policy, so_far):
        seen.append(step)
        if step == halt_at and len(seen) == halt_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        online(checkpoint=path, watch=watch)
    begun = [f"run.pt.{number + 1}" for number in range((halt_at - 1) // 10 + 1)]
    assert sorted(file.name for file in tmp_path.iterdir()) == begun
    resumed, again = online(checkpoint=path, watch=watch)
    assert seen == list(range(1, 31)), "no step is done twice"
    assert digest(resumed) == digest(straight) and again.rows == history.rows
    with pytest.raises(ValueError, match=r"run\.pt\.1 belongs to another run: pairs is"):
        online(replace(ONLINE, pairs=61), checkpoint=path)


def test_a_run_that_is_killed_within_a_step_resumes_bit_for_bit(tmp_path, monkeypatch):
    straight, history = online()
    path, calls, real = tmp_path / "run.pt", [], preference_loss

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rlhf_toy.dpo.preference_loss", dies)
        online(checkpoint=path)
    assert (tmp_path / "run.pt.2").exists() and not (tmp_path / "run.pt.3").exists()
    resumed, again = online(checkpoint=path)
    assert digest(resumed) == digest(straight) and again.rows == history.rows


def test_online_dpo_comes_closer_with_each_round():
    dpo = DPOSettings(steps=100, batch_size=256, measure_every=100, early_stopping=False)
    _, history = online(OnlineDPOSettings(3, 1_500, dpo))
    gaps = history.series("exact/gap")[1]
    assert gaps[0] > gaps[-1] and gaps[-1] < 0.5


def test_online_dpo_refuses_what_is_no_annotator_and_other_settings():
    with pytest.raises(TypeError, match="BradleyTerryAnnotator"):
        train_online_dpo(WORLD, REFERENCE, "me", ONLINE)
    with pytest.raises(TypeError, match="settings must be OnlineDPOSettings"):
        train_online_dpo(WORLD, REFERENCE, BradleyTerryAnnotator(), DPOSettings())
    with pytest.raises(TypeError, match="dpo must be DPOSettings"):
        OnlineDPOSettings(dpo={"steps": 3})
    wide = PolicyModel(GPTConfig.for_world(WordMDP(max_length=3)), make_generator(0))
    with pytest.raises(ValueError, match="made for another world"):
        train_online_dpo(WORLD, wide, BradleyTerryAnnotator(), ONLINE)
