"""TRL's own trainers, measured against the exact optimum as they train, and beside ours.

These tests take minutes, so only `make test-bridge` runs them.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from rlhf_toy.__main__ import main
from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.bridge import (
    GapCallback,
    to_dataset,
    to_hugging_face,
    to_prompts,
    to_reward_function,
    to_text,
)
from rlhf_toy.course.commands.export import SCRIPTS
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import LongReview, WordMDP
from rlhf_toy.exact import AutomatonYardstick, Yardstick, response_scores, table_reference
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.policy_gradient import PolicyGradientSettings, train_policy_gradient
from rlhf_toy.preferences import collect_preferences
from rlhf_toy.reward_model import RewardModelSettings, train_reward_model
from rlhf_toy.sft import SFTSettings, train_reference
from rlhf_toy.training import make_generator

pytestmark = pytest.mark.filterwarnings("default")  # TRL's warnings are not ours
BETA = 0.5
WORLD = WordMDP(max_length=3)


@pytest.fixture(scope="module")
def reference():
    return train_reference(WORLD, SFTSettings(steps=300), seed=0, device="cpu")[0]


@pytest.fixture(scope="module")
def pairs(reference):
    annotator = BradleyTerryAnnotator()
    return collect_preferences(reference, WORLD, annotator, 5_000, make_generator(1))


@pytest.fixture
def folder(reference, tmp_path):
    """A folder with the reference, as the online trainers want it."""
    for part in to_hugging_face(reference, WORLD):
        part.save_pretrained(tmp_path / "model")
    return tmp_path


def common(folder, steps, **more):
    return {
        "output_dir": str(folder / "trl"),
        "max_steps": steps,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 256,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **more,
    }


def gaps(callback):
    return [measure.gap for measure in callback.measures.values()]


def offline(world, beta, reference, pairs, folder, steps, **settings):
    (model, tokenizer), (frozen, _) = (to_hugging_face(reference, world) for _ in range(2))
    callback = GapCallback(world, model, beta, steps // 2)
    config = DPOConfig(beta=beta, **common(folder, steps, **settings))
    data = {"train_dataset": to_dataset(pairs), "processing_class": tokenizer}
    DPOTrainer(model, frozen, config, callbacks=[callback], **data).train()
    return callback


def test_dpo_comes_closer_and_pushes_the_pairs_apart(reference, pairs, folder):
    callback = offline(WORLD, BETA, reference, pairs, folder, 100)
    assert list(callback.measures) == [50, 100]
    assert 0 < gaps(callback)[-1] < 0.5


def test_kto_learns_from_single_responses(reference, pairs, folder):
    (model, tokenizer), (frozen, _) = (to_hugging_face(reference, WORLD) for _ in range(2))
    callback = GapCallback(WORLD, model, BETA, 50)
    rows = to_dataset(pairs)
    prompts = [*rows["prompt"], *rows["prompt"]]
    completions = [*rows["chosen"], *rows["rejected"]]
    labels = [True] * len(rows) + [False] * len(rows)
    data = Dataset.from_dict({"prompt": prompts, "completion": completions, "label": labels})
    data = data.shuffle(seed=0)  # the trainer reads the rows in order
    settings = KTOConfig(beta=BETA, **common(folder, 100))
    data = {"train_dataset": data, "processing_class": tokenizer}
    KTOTrainer(model, frozen, settings, callbacks=[callback], **data).train()
    assert gaps(callback)[-1] < 0.7


def online(trainer, config, folder, reference, steps, world=WORLD, gap_beta=BETA, **settings):
    callback = GapCallback(world, to_hugging_face(reference, world)[0], gap_beta, steps // 2)
    words = world.max_length + 1  # and the end
    arguments = common(folder, steps, num_generations=4, max_completion_length=words, top_k=0)
    trainer(
        str(folder / "model"),
        to_reward_function(world.response_rewards, world),
        config(**arguments | settings),
        train_dataset=Dataset.from_dict({"prompt": to_prompts(world) * 1_000}),
        callbacks=[callback],
    ).train()
    return callback


def test_rloo_closes_most_of_the_gap(reference, folder):
    callback = online(RLOOTrainer, RLOOConfig, folder, reference, 120, beta=BETA)
    assert gaps(callback)[-1] < 0.3


def test_grpo_with_a_kl_in_the_loss_ends_elsewhere(reference, folder):
    callback = online(GRPOTrainer, GRPOConfig, folder, reference, 120, beta=BETA)
    assert 0.15 < gaps(callback)[-1] < 0.6


def test_grpo_s_defaults_have_no_kl_and_leave_the_optimum_behind(reference, folder):
    callback = online(GRPOTrainer, GRPOConfig, folder, reference, 120)
    last = list(callback.measures.values())[-1]
    assert last.reward > callback.yardstick.best_at(BETA)[0]  # more reward than the optimum has,
    assert last.kl > 1.5 * callback.yardstick.best_at(BETA)[1]  # at a far higher price


# A reward model: TRL's beside ours


SMALL = WordMDP(max_length=2)  # the world of notebook 15, and its numbers of pairs, rows and steps
BATCH = 128


@pytest.fixture(scope="module")
def small():
    """The exact values of the small world, and pairs."""
    reference = train_reference(SMALL, SFTSettings(steps=200), seed=0, device="cpu")[0]
    annotator = BradleyTerryAnnotator()
    pairs = collect_preferences(reference, SMALL, annotator, 3_000, make_generator(1))
    return Yardstick(SMALL, reference, BETA), pairs


def judged(rewards, yardstick):
    """Root mean square error around each prompt's mean, and the share of pairs judged right.

    Both are exact, over the reference's responses; right is what the annotator answers.
    """
    p, truth = yardstick.ref_logps.exp(), yardstick.rewards
    error = rewards.double() - truth
    error -= (p * error).sum(1, keepdim=True)
    pairs = p[:, :, None] * p[:, None] * (1 - torch.eye(p.shape[1]))
    signs, margins = ((r[:, :, None] - r[:, None]) for r in (rewards.double(), truth))
    right = (pairs * (margins * signs.sign()).sigmoid()).sum() / pairs.sum()
    return float((p * error**2).sum(1).mean().sqrt()), float(right)


def our_rewards(pairs, seed):
    """The rewards of all responses [X, Y] after our training, without decay or averages."""
    plain = {"learning_rate": 1e-3, "weight_decay": 0.0, "ema_decay": 0.0}
    settings = RewardModelSettings(steps=60, batch_size=BATCH, measure_every=60, **plain)
    return response_scores(train_reward_model(pairs, settings, seed, device="cpu")[0], SMALL)


def trl_rewards(pairs, seed, folder, **settings):
    """The same after TRL's training from the same weights, on the same share of the pairs."""
    start = PolicyModel(GPTConfig.for_world(SMALL), make_generator(seed))  # our reward model's body
    model, tokenizer = to_hugging_face(start, SMALL)
    model.config.num_labels = 1
    scorer = GPT2ForSequenceClassification(model.config)
    scorer.transformer.load_state_dict(model.transformer.state_dict())
    torch.nn.init.zeros_(scorer.score.weight)
    same = {"seed": seed, "per_device_train_batch_size": BATCH}
    config = RewardConfig(**common(folder, 60, **same, **settings))
    train = to_dataset(pairs.split(0.9, seed)[0])
    RewardTrainer(scorer, config, train_dataset=train, processing_class=tokenizer).train()
    prompts = torch.arange(SMALL.n_prompts).repeat_interleave(len(SMALL.all_responses))
    texts = to_text(SMALL, prompts, SMALL.all_responses.repeat(SMALL.n_prompts, 1))
    rows = [prompt + response + " <end>" for prompt, response in zip(*texts, strict=True)]
    with torch.no_grad():
        scores = scorer.eval()(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    return scores.view(SMALL.n_prompts, -1)


def test_its_reward_trainer_learns_as_much_as_ours(small, tmp_path):
    yardstick, pairs = small
    found = [
        [
            judged(rewards, yardstick)
            for rewards in (
                our_rewards(pairs, seed),
                trl_rewards(pairs, seed, tmp_path),
                trl_rewards(pairs, seed, tmp_path, dataloader_drop_last=True),
            )
        ]
        for seed in range(5)
    ]
    errors, right = np.moveaxis(found, -1, 0)  # each [seeds, arms]
    print(f"errors {errors.round(3).tolist()}, right {right.round(4).tolist()}")
    best = judged(yardstick.rewards, yardstick)[1]
    assert (errors < 0.6).all() and (best - 0.07 < right).all() and (right < best).all()
    # TRL takes a full step on the twelve rows that are left at the end of an epoch; we do not.
    assert (errors[:, 1] > errors[:, 2]).all()
    assert abs((errors[:, 2] - errors[:, 0]).mean()) < 0.06
    assert abs((right[:, 2] - right[:, 0]).mean()) < 0.015


# The long world, beside ours. `pytest -s` prints the numbers that notebook 15 has saved.


LONG, LONG_BETA = LongReview(max_length=16), 0.1
LONG_STEPS = {"RLOO": 120, "DPO": 60}


@pytest.fixture(scope="module")
def imitation():
    """A GPT that imitates the table by which the long world is measured."""
    return train_reference(LONG, seed=0, device="cpu")[0]


def test_the_optimum_around_the_imitation_is_nearly_that_around_the_table(imitation):
    # π*_GPT(y) ∝ π*(y) w(y) with w = π_GPT/π_ref, so weighted samples of π* give KL(π*_GPT ‖ π*).
    ruler, samples = AutomatonYardstick(LONG, LONG_BETA), 1_000
    prompts = torch.arange(LONG.n_prompts).repeat_interleave(samples)
    responses = ruler.optimum_on(prompts.device).sample(prompts, make_generator(0))
    with torch.no_grad():
        logps, ref_logps = (
            policy.token_logps(prompts, responses).sum(1).double()
            for policy in (imitation, table_reference(LONG))
        )
    weights = (logps - ref_logps).view(-1, samples).softmax(1) * samples
    assert (samples / weights.square().mean(1)).min() > samples / 2  # so the estimate is good
    kl = float((weights * weights.log()).mean())
    gap = LONG_BETA * kl / (ruler.optimum - ruler.reference_objective)
    print(f"gap of the imitation's own optimum: {gap:.2%}")
    assert 0 < gap < 0.01


def ours_in_the_long_world(method, imitation, pairs, seed):
    steps = LONG_STEPS[method]
    how = {"start": imitation, "device": "cpu", "yardstick": AutomatonYardstick(LONG, LONG_BETA)}
    same = {"batch_size": 256, "measure_every": steps}
    if method == "DPO":
        plain = {"weight_decay": 0.0, "ema_decay": 0.0, "early_stopping": False, "held_out": 0.001}
        settings = DPOSettings(LONG_BETA, steps=steps, learning_rate=3e-4, **plain, **same)
        return train_dpo(pairs, imitation, settings, seed, **how)[1].last("exact/gap")
    settings = PolicyGradientSettings(LONG_BETA, iterations=steps, num_mini_batches=1, **same)
    arguments = LONG, imitation, LONG.response_rewards, settings, seed
    return train_policy_gradient(*arguments, **how)[1].last("exact/gap")


@pytest.mark.parametrize("method", ["RLOO", "DPO"])
def test_in_the_long_world_trl_ends_where_ours_does(method, imitation, tmp_path):
    annotator, steps = BradleyTerryAnnotator(), LONG_STEPS[method]
    pairs = collect_preferences(imitation, LONG, annotator, 20_000, make_generator(1))
    for part in to_hugging_face(imitation, LONG):
        part.save_pretrained(tmp_path / "model")
    found = []
    for seed in range(3):
        if method == "DPO":
            how = {"learning_rate": 3e-4, "seed": seed}
            callback = offline(LONG, LONG_BETA, imitation, pairs, tmp_path, steps, **how)
        else:
            how = {"world": LONG, "gap_beta": LONG_BETA, "beta": LONG_BETA, "seed": seed}
            callback = online(RLOOTrainer, RLOOConfig, tmp_path, imitation, steps, **how)
        assert isinstance(callback.yardstick, AutomatonYardstick)
        *_, last = callback.measures.values()
        assert last.gap < 1 and last.standard_error < 0.01
        found.append((last.gap, ours_in_the_long_world(method, imitation, pairs, seed)))
    difference = np.subtract(*np.transpose(found))
    width = stats.t.ppf(0.975, len(found) - 1) * stats.sem(difference)
    print(f"{method}, TRL and ours: {np.round(found, 3).tolist()}")
    print(f"{method}, TRL − ours: {difference.mean():.3f} ± {width:.3f}")
    assert abs(difference.mean()) < 0.1


# Exports


def launched(command):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_export_trains_on_two_processes(script, tmp_path):
    folder = tmp_path / "export"
    assert main(["export", str(folder), "--preferences", "1500", "--world", "dishes"]) == 0
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    output = launched([*command, str(folder / script), "--steps", "6"])
    assert output.count("step 6: gap") == 1  # only one process prints
    model = AutoModelForCausalLM.from_pretrained(folder / f"trained_{script[6:-3]}")
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_export_of_the_long_world_trains(script, tmp_path):
    folder, checkpoint = tmp_path / "export", tmp_path / "reference.ck"
    train_reference(LongReview(), SFTSettings(steps=30), 0, "cpu", checkpoint)
    options = ["--world", "long", "--policy", str(checkpoint), "--preferences", "600"]
    assert main(["export", str(folder), *options]) == 0
    output = launched([sys.executable, str(folder / script), "--steps", "2"])
    steps = re.findall(r"^step (\d): gap [\d.]+%, reward -?[\d.]+, KL [\d.]+ nats$", output, re.M)
    assert steps == ["1", "2"]
