"""What the trainers share: seeds, minibatches, history, and the loop, which survives anything."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rlhf_toy.checkpoints import Checkpoint, digest
from rlhf_toy.models import GPTConfig, ResidualPolicy
from rlhf_toy.training import (
    BestSoFar,
    DivergenceError,
    History,
    State,
    check_finite,
    linear_decay,
    make_generator,
    minibatch,
    moving_average,
    pick_device,
    reward_digest,
    run_steps,
    trainable_copy,
)


@dataclass(frozen=True)
class Settings:
    steps: int = 60
    rate: float = 0.5


class Walk(State):
    def __init__(self, generator, policy):
        super().__init__(generator)
        self.policy = policy


def random_walk(
    checkpoint=None, settings=Settings(), seed=0, stop_before=None, inputs="same", watch=None
):
    """A run whose every step depends on chance and on all the steps before."""
    model = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    state = Walk(make_generator(seed), model)

    def iterate():
        if state.step == stop_before:
            raise KeyboardInterrupt
        with torch.no_grad():
            noise = torch.randn(1, generator=state.generator)
            model.weight.mul_(settings.rate).add_(noise)
        state.step += 1
        return {"place": model.weight.detach().sum()}

    history = run_steps(
        state,
        iterate,
        settings.steps,
        Checkpoint(checkpoint, "walk", settings, seed, inputs=inputs),
        shown_metrics={"place": "place"},
        watch=watch,
    )
    return model.weight.item(), history.rows


@pytest.mark.parametrize("stop_before", [1, 24, 25, 26, 49, 59])
def test_a_killed_run_ends_where_the_uninterrupted_run_ends(tmp_path, stop_before):
    path = tmp_path / "walk.pt"
    with pytest.raises(KeyboardInterrupt):
        random_walk(path, stop_before=stop_before)
    assert random_walk(path) == random_walk()


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "walk.pt"
    ended = random_walk(path)
    assert random_walk(path, stop_before=0) == ended


@pytest.mark.parametrize("halt_at", [1, 24, 25, 26, 60])
def test_a_run_that_its_watch_ends_is_saved_at_that_step(tmp_path, halt_at):
    path, seen = tmp_path / "walk.pt", []

    def watch(step, policy, history):
        seen.append(step)
        assert history.rows[-1] == {"step": step, "place": policy.weight.item()}
        if step == halt_at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        random_walk(path, watch=watch)
    assert seen == list(range(1, halt_at + 1))
    halt_at = None
    assert random_walk(path, watch=watch) == random_walk()
    assert seen == list(range(1, 61))
    assert random_walk(path, watch=watch) == random_walk()
    assert seen == list(range(1, 61)), "a finished run has no step to watch"


def test_a_watched_run_has_no_progress_bar(capfd):
    random_walk(watch=lambda *_: None)
    assert capfd.readouterr() == ("", "")
    random_walk()
    assert "walk" in capfd.readouterr().err


def test_a_step_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "walk.pt"
    with pytest.raises(DivergenceError, match=r"walk stopped at step 52: place is nan\. "):
        random_walk(path, watch=_poison(52))
    saved = Checkpoint(path, "walk", Settings(), 0, inputs="same").load()
    assert saved["state"]["step"] == 50
    assert random_walk(path) == random_walk()


def _poison(step):
    """A watch that makes the policy NaN before a step."""

    def watch(done, policy, history):
        if done == step - 1:
            with torch.no_grad():
                policy.weight.fill_(torch.nan)

    return watch


def test_a_number_that_only_float32_cannot_hold_is_finite():
    state = State(make_generator(0))
    check_finite("run", state, {"exact/kl": torch.tensor(1e300, dtype=torch.float64)})


def test_the_metric_that_is_not_finite_is_named():
    with pytest.raises(DivergenceError, match=r"run stopped at step 0: score is nan\."):
        check_finite("run", State(make_generator(0)), {"loss": 0.5, "score": float("nan")})


def test_every_epoch_of_minibatches_is_a_new_permutation():
    epochs = [torch.cat([minibatch(12, 4, 3 * e + b, seed=7) for b in range(3)]) for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert minibatch(12, 4, 4, seed=7).tolist() == epochs[1][4:8].tolist()
    assert minibatch(12, 4, 0, seed=8).tolist() != epochs[0][:4].tolist()


def test_minibatches_of_few_rows_are_all_rows():
    assert sorted(minibatch(3, 100, 5, seed=0).tolist()) == [0, 1, 2]


def test_the_learning_rate_falls_linearly():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    rates = []
    for step in range(4):
        linear_decay(optimizer, 2.0, step, 4)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [2.0, 1.5, 1.0, 0.5]


def test_the_learning_rate_rises_during_the_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    rates = []
    for step in range(4):
        linear_decay(optimizer, 2.0, step, 4, warmup_steps=1)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.5, 1.0, 0.5]


def test_history_gives_series_of_metrics_recorded_at_different_steps():
    history = History()
    history.record(1, {"a": 1.0})
    history.record(2, {"a": torch.tensor(2.0)})
    history.record(2, {"b": 5.0})
    assert history.series("a") == ([1, 2], [1.0, 2.0])
    assert history.series("b") == ([2], [5.0])
    assert history.last("a") == 2.0
    assert history.labelled({"b": "B", "c": "C"}) == {"B": "5"}
    with pytest.raises(KeyError, match="'c'"):
        history.series("c")


def test_the_best_weights_come_back():
    model = torch.nn.Linear(1, 1)
    best = BestSoFar(model)
    for weight, loss in ((1.0, 0.5), (2.0, 0.3), (3.0, 0.4)):
        torch.nn.init.constant_(model.weight, weight)
        best.offer(model, loss)
    best.restore(model)
    assert model.weight.item() == 2.0


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "0", None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises((TypeError, ValueError), match="seed"):
        make_generator(seed)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta-physical"])
def test_a_missing_device_is_refused(device):
    with pytest.raises(ValueError, match="device"):
        pick_device(device)


def test_a_run_leaves_the_global_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    random_walk()
    minibatch(10, 2, 0, seed=123)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_only_a_network_can_be_trained(world, policy, tiny):
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=8)
    residual = ResidualPolicy(policy, config, make_generator(0))
    for start in (policy, residual):
        copy = trainable_copy(start.requires_grad_(False), world)
        assert copy is not start and digest(copy) == digest(start)
        frozen = {name for name, p in copy.named_parameters() if not p.requires_grad}
        assert all(name.startswith("reference.") for name in frozen)
        assert bool(frozen) == (start is residual)
    with pytest.raises(TypeError, match="start must be a PolicyModel or ResidualPolicy, since a"):
        trainable_copy(tiny.table(tiny.theta(0)), tiny.world)
    with pytest.raises(ValueError, match="another world"):
        trainable_copy(policy, tiny.world)


def test_reward_functions_are_told_apart_by_what_they_return(world, tiny):
    cpu, rewards = torch.device("cpu"), world.response_rewards
    same = [reward_digest(f, world, cpu) for f in (rewards, rewards, lambda p, y: rewards(p, y))]
    assert len(set(same)) == 1

    def unlike_for_one_word(prompts, responses):
        return rewards(prompts, responses) + 0.1 * (responses[:, 0] == 3)

    others = [lambda p, y: -rewards(p, y), lambda p, y: 2 * rewards(p, y), unlike_for_one_word]
    digests = {reward_digest(f, world, cpu) for f in others}
    assert len(digests) == 3 and same[0] not in digests
    calls = iter(range(9))
    unsteady = [reward_digest(lambda p, y: p * next(calls), world, cpu) for _ in range(2)]
    assert unsteady[0] != unsteady[1]


def test_metrics_are_recorded_and_measured_as_often_as_asked():
    state = State(make_generator(0))

    def iterate():
        state.step += 1
        return {"a": float(state.step)}

    nowhere = Checkpoint(None, "count", Settings(), 0)
    history = run_steps(state, iterate, 7, nowhere, lambda: {"b": 0.0}, 3, record_every=2)
    assert history.series("a") == ([2, 4, 6, 7], [2.0, 4.0, 6.0, 7.0])
    assert history.series("b")[0] == [3, 6, 7]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_moving_average_starts_at_the_first_weights_and_follows_the_others(decay):
    model = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False)
    average, expected = moving_average(model, decay), None
    for n, weight in enumerate((5.0, -3.0, 2.0, 0.5, *[1.0] * 100, 0.5)):
        torch.nn.init.constant_(model.weight, weight)
        average.update_parameters(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = weight if expected is None else d * expected + (1 - d) * weight
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 0.5
