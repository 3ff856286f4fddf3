"""What is true of every trainer: it learns, repeats itself, and resumes where it was killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlhf_toy import best_of_n as best_of_n_module
from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.best_of_n import BestOfNSettings, run_best_of_n
from rlhf_toy.checkpoints import digest
from rlhf_toy.dpo import DPOSettings, OnlineDPOSettings, train_dpo, train_online_dpo
from rlhf_toy.envs import LongReview, PromptBandit, WordMDP
from rlhf_toy.exact import AutomatonYardstick, Yardstick, response_rewards, table_reference
from rlhf_toy.models import GPTConfig, PolicyModel, ResidualPolicy
from rlhf_toy.policy_gradient import PolicyGradientSettings, train_policy_gradient
from rlhf_toy.ppo import PPOSettings, train_ppo
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.reward_model import RewardModelSettings, train_reward_model
from rlhf_toy.sft import SFTSettings, train_reference
from rlhf_toy.training import make_generator

WORLD = WordMDP(max_length=2)


def tiny_reference():
    config = GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=16)
    return PolicyModel(config, make_generator(3))


REFERENCE = tiny_reference()
PAIRS = collect_preferences(REFERENCE, WORLD, BradleyTerryAnnotator(), 300, make_generator(4))

# Each trainer with settings so small that a test takes a second, as seed, device → result, history.
TRAINERS = {
    "sft": lambda **run: train_reference(
        WORLD, SFTSettings(corpus_size=300, steps=32, batch_size=32, log_every=5), **run
    ),
    "reward_model": lambda **run: train_reward_model(
        PAIRS,
        RewardModelSettings(steps=32, batch_size=32, measure_every=5),
        **run,
    ),
    "ppo": lambda **run: train_ppo(
        WORLD,
        REFERENCE,
        WORLD.response_rewards,
        PPOSettings(iterations=32, batch_size=32, num_mini_batches=4, measure_every=5),
        **run,
    ),
    "policy_gradient": lambda **run: train_policy_gradient(
        WORLD,
        REFERENCE,
        WORLD.response_rewards,
        PolicyGradientSettings(iterations=32, batch_size=32, num_mini_batches=4, measure_every=5),
        **run,
    ),
    "dpo": lambda **run: train_dpo(
        PAIRS, REFERENCE, DPOSettings(steps=32, batch_size=32, measure_every=5), **run
    ),
    "online_dpo": lambda **run: train_online_dpo(
        WORLD,
        REFERENCE,
        BradleyTerryAnnotator(),
        OnlineDPOSettings(4, 50, DPOSettings(steps=8, batch_size=32, measure_every=5)),
        **run,
    ),
    "best_of_n": lambda **run: run_best_of_n(
        WORLD,
        REFERENCE,
        response_rewards(WORLD),
        BestOfNSettings(ns=tuple(range(1, 31)), samples=8),
        **run,
    ),
}


@contextlib.contextmanager
def killed_at(step, monkeypatch):
    """Raises a KeyboardInterrupt in the middle of a step."""
    calls = 0

    def count(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt

    draw = best_of_n_module.sample
    hook = register_optimizer_step_pre_hook(count)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(best_of_n_module, "sample", lambda *a: (count(), draw(*a))[1])
            yield
    finally:
        hook.remove()


ONE_FILE = [name for name in TRAINERS if name != "online_dpo"]  # whose rounds have files each
STEPS_OF_THE_OPTIMIZER = {"ppo": 4, "policy_gradient": 4}  # in each iteration


@pytest.mark.parametrize("name", ONE_FILE)
@pytest.mark.parametrize("step", [7, 28])
def test_a_killed_trainer_ends_bit_for_bit_where_an_uninterrupted_one_does(
    name, step, tmp_path, monkeypatch
):
    train, path = TRAINERS[name], tmp_path / "run.pt"
    with killed_at(step * STEPS_OF_THE_OPTIMIZER.get(name, 1), monkeypatch):
        train(seed=5, device="cpu", checkpoint=path)
    assert path.exists() == (step > 25)
    resumed, resumed_history = train(seed=5, device="cpu", checkpoint=path)
    straight, history = train(seed=5, device="cpu")
    assert digest(resumed) == digest(straight)
    assert resumed_history.rows == history.rows


@pytest.mark.parametrize("name", ["ppo", "policy_gradient", "dpo", "online_dpo"])
@pytest.mark.parametrize("halt_at", [1, 25, 31, 32])
def test_a_trainer_that_its_watch_ends_resumes_bit_for_bit(name, halt_at, tmp_path):
    train, path, seen, digests = TRAINERS[name], tmp_path / "run.pt", [], set()
    straight, history = train(seed=5, device="cpu")

    def watch(step, policy, so_far):
        seen.append(step)
        assert so_far.rows == [row for row in history.rows if row["step"] <= step]
        assert isinstance(policy, PolicyModel | ResidualPolicy)
        assert digest(policy) not in digests
        digests.add(digest(policy))
        if len(seen) == halt_at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(seed=5, device="cpu", checkpoint=path, watch=watch)
    resumed, resumed_history = train(seed=5, device="cpu", checkpoint=path, watch=watch)
    assert seen == list(range(1, 33))
    assert digest(resumed) == digest(straight)
    assert resumed_history.rows == history.rows


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sft", "loss="),
        ("reward_model", "held-out accuracy="),
        ("ppo", "gap="),
        ("dpo", "gap="),
        ("best_of_n", "score="),
    ],
)
def test_the_progress_bar_shows_how_the_run_goes(name, shown, capsys):
    TRAINERS[name](seed=0, device="cpu")
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ppo", "dpo"])
def test_a_yardstick_that_is_given_measures_the_run(name):
    yardstick = Yardstick(WORLD, REFERENCE, beta=0.25)  # the settings have another beta
    _, history = TRAINERS[name](seed=0, device="cpu", yardstick=yardstick)
    objectives = history.series("exact/objective")[1]
    rewards, kls = history.series("exact/reward")[1], history.series("exact/kl")[1]
    assert objectives == pytest.approx([r - 0.25 * kl for r, kl in zip(rewards, kls, strict=True)])


# Texts, saved outputs and times of the notebooks belong to these defaults. If you change one, run
# `make notebooks`, and read what the notebooks say about the results.
DEFAULTS = {
    SFTSettings: {"corpus_size": 12_000, "steps": 700, "batch_size": 256, "learning_rate": 3e-3},
    RewardModelSettings: {
        "steps": 800, "batch_size": 512, "learning_rate": 3e-3, "weight_decay": 1.0,
        "ema_decay": 0.99, "held_out": 0.1,
    },
    PPOSettings: {
        "beta": 0.5, "iterations": 380, "batch_size": 1024, "num_ppo_epochs": 1,
        "num_mini_batches": 4, "learning_rate": 1e-3, "vf_coef": 0.5, "cliprange": 0.2,
        "cliprange_value": None, "gamma": 1.0, "lam": 1.0, "max_grad_norm": 1.0,
        "use_critic": True, "whiten_advantages": True, "aggregate": "token", "target_kl": None,
    },
    DPOSettings: {
        "beta": 0.5, "loss": "dpo", "label_smoothing": 0.0, "steps": 400, "batch_size": 1024,
        "learning_rate": 3e-3, "warmup_steps": 0, "weight_decay": 1.0, "ema_decay": 0.99,
        "held_out": 0.1, "early_stopping": True, "simpo_gamma": 0.5, "desirable_weight": 1.0,
        "undesirable_weight": 1.0, "max_reward": 10.0,
    },
    OnlineDPOSettings: {
        "rounds": 5, "pairs": 20_000, "dpo": DPOSettings(steps=300, weight_decay=0.1),
    },
    PolicyGradientSettings: {
        "beta": 0.5, "advantage": "rloo", "kl": "k1_reward", "kl_level": "sequence",
        "aggregate": "sequence", "iterations": 380, "batch_size": 1024, "num_generations": 4,
        "num_mini_batches": 4, "learning_rate": 1e-3, "cliprange": 0.2, "max_grad_norm": 1.0,
    },
    BestOfNSettings: {"beta": 0.5, "ns": (1, 2, 4, 8, 16, 32, 64, 128), "samples": 512},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_defaults_are_those_that_the_notebooks_were_run_with(kind):
    found = vars(kind())
    assert {name: found[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_seed_gives_the_same_result_and_another_seed_another(name):
    train = TRAINERS[name]
    one, other = train(seed=1, device="cpu"), train(seed=2, device="cpu")
    assert train(seed=1, device="cpu")[1].rows == one[1].rows
    assert one[1].rows != other[1].rows


@pytest.mark.parametrize("name", TRAINERS)
def test_no_trainer_touches_the_global_random_state_or_its_inputs(name):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    before = digest(REFERENCE), digest(PAIRS.chosen)
    TRAINERS[name](seed=0, device="cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert (digest(REFERENCE), digest(PAIRS.chosen)) == before


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("bad", [{"seed": -1}, {"device": "nowhere"}])
def test_bad_input_is_refused_before_anything_is_written(name, bad, tmp_path):
    options = {"seed": 0, "device": "cpu", "checkpoint": tmp_path / "run.pt"} | bad
    with pytest.raises(ValueError, match=next(iter(bad))):
        TRAINERS[name](**options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: SFTSettings(steps=0),
        lambda: RewardModelSettings(learning_rate=-1.0),
        lambda: RewardModelSettings(held_out=1.5),
        lambda: PPOSettings(beta=0.0),
        lambda: PPOSettings(batch_size=10, num_mini_batches=4),
        lambda: PPOSettings(lam=1.5),
        lambda: DPOSettings(beta=float("nan")),
        lambda: DPOSettings(held_out=0.0),
        lambda: BestOfNSettings(ns=()),
        lambda: BestOfNSettings(ns=(1, 0)),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises((TypeError, ValueError)):
        make()


def test_the_whole_pipeline_closes_most_of_the_gap_on_the_bandit():
    world = PromptBandit()
    reference, history = train_reference(world, SFTSettings(steps=150), seed=0, device="cpu")
    assert history.last("loss") < 1.9  # log 8 is 2.08, the habits' entropy 1.8
    pairs = collect_preferences(reference, world, BradleyTerryAnnotator(), 4_000, make_generator(1))
    model, history = train_reward_model(pairs, RewardModelSettings(steps=150), seed=0, device="cpu")
    assert history.last("held_out/accuracy") > 0.65
    settings = PPOSettings(iterations=80, batch_size=512, num_mini_batches=8)
    yardstick = Yardstick(world, reference, settings.beta)
    ppo_true, _ = train_ppo(
        world, reference, world.response_rewards, settings, seed=0, device="cpu"
    )
    ppo_learned, _ = train_ppo(world, reference, model, settings, seed=0, device="cpu")
    dpo, _ = train_dpo(pairs, reference, DPOSettings(steps=150), seed=0, device="cpu")
    gaps = [yardstick.measure(policy).gap for policy in (ppo_true, ppo_learned, dpo)]
    assert 0 <= gaps[0] < 0.02
    assert gaps[0] < gaps[1] < 0.2
    assert 0 < gaps[2] < 0.2


def test_best_of_n_is_chosen_by_the_scores_and_its_estimates_agree_with_the_exact_law():
    settings = BestOfNSettings(ns=(1, 2, 8, 64), samples=4_000)
    rewards = response_rewards(WORLD)
    logps, history = run_best_of_n(WORLD, REFERENCE, rewards, settings, seed=0)
    assert torch.allclose(logps.exp().sum(1), torch.ones(6, dtype=torch.float64))
    assert Yardstick(WORLD, REFERENCE, 0.5).measure(logps).objective == pytest.approx(
        max(history.series("exact/objective")[1])
    )
    kls, bounds = history.series("exact/kl")[1], history.series("kl_bound")[1]
    assert all(kl <= bound + 1e-9 for kl, bound in zip(kls, bounds, strict=True))
    for exact, estimate in zip(
        history.series("exact/scores")[1], history.series("objective/scores")[1], strict=True
    ):
        assert estimate == pytest.approx(exact, abs=0.15)


KILLED_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_trainers import TRAINERS
from rlhf_toy.checkpoints import digest
policy, history = TRAINERS["ppo"](seed=5, device="cpu", checkpoint=sys.argv[2])
print(digest(policy))
"""


def test_a_trainer_killed_by_the_system_resumes(tmp_path):
    path = tmp_path / "ppo.pt"
    command = [sys.executable, "-c", KILLED_PROGRAM, os.path.dirname(__file__), str(path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert path.exists()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    straight, _ = TRAINERS["ppo"](seed=5, device="cpu")
    assert second.stdout.strip() == digest(straight)


@pytest.mark.filterwarnings("ignore:.* as far from the optimum")
def test_every_trainer_runs_in_a_world_that_cannot_be_enumerated(short_spec, tmp_path):
    world = LongReview(short_spec)
    reference, yardstick = table_reference(world), AutomatonYardstick(world, 0.5, samples=64)
    start, _ = train_reference(world, SFTSettings(corpus_size=500, steps=40), device="cpu")
    pairs = collect_preferences(reference, world, BradleyTerryAnnotator(), 200, make_generator(0))
    model, _ = train_reward_model(pairs, RewardModelSettings(steps=3), device="cpu")
    run = {"start": start, "yardstick": yardstick, "device": "cpu"}
    ppo = PPOSettings(iterations=2, batch_size=32, measure_every=1)
    for name, reward in (("true", world.response_rewards), ("learned", model)):
        policy, history = train_ppo(
            world, reference, reward, ppo, checkpoint=tmp_path / name, **run
        )
        assert yardstick.measure(policy).gap == history.last("exact/gap") > 0
        assert history.last("exact/standard_error") > 0
    dpo = DPOSettings(steps=2, early_stopping=False)
    rounds = OnlineDPOSettings(rounds=2, pairs=200, dpo=dpo)
    for own in ({}, {"start": start}):  # beside the table, and from the model
        run = {"yardstick": yardstick, "device": "cpu", **own}
        policy, history = train_dpo(pairs, reference, dpo, **run)
        assert yardstick.measure(policy).gap == history.last("exact/gap")
        arguments = (world, reference, BradleyTerryAnnotator(), rounds)
        policy, history = train_online_dpo(*arguments, **run)
        assert yardstick.measure(policy).gap == history.last("exact/gap")
    gradients = PolicyGradientSettings(iterations=2, batch_size=32, measure_every=1)
    run["start"] = start
    policy, history = train_policy_gradient(world, reference, model, gradients, **run)
    assert yardstick.measure(policy).gap == history.last("exact/gap")


@pytest.mark.filterwarnings("ignore:.* as far from the optimum")
def test_ppo_learns_where_nothing_can_be_enumerated(short_spec):
    world = LongReview(short_spec)
    config = GPTConfig.for_world(world, n_layer=1, n_head=2, n_embd=32)
    start = PolicyModel(config, make_generator(0))
    yardstick = AutomatonYardstick(world, 1.0, samples=500)
    settings = PPOSettings(beta=1.0, iterations=60, batch_size=256, learning_rate=3e-3)
    arguments = (world, table_reference(world), world.response_rewards, settings)
    policy, _ = train_ppo(*arguments, start=start, yardstick=yardstick, device="cpu")
    assert yardstick.measure(policy).gap < 0.5 * yardstick.measure(start).gap
