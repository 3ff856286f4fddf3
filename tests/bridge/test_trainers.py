"""TRL's own trainers on the word world, measured against the exact optimum as they train.

These tests take minutes, so only `make test-bridge` runs them.
"""

import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
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
from rlhf_toy.annotators import BradleyTerryAnnotator, preference_ceiling
from rlhf_toy.bridge import GapCallback, to_dataset, to_hugging_face, to_prompts, to_reward_function
from rlhf_toy.envs import WordMDP
from rlhf_toy.preferences import collect_preferences
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


def test_dpo_comes_closer_and_pushes_the_pairs_apart(reference, pairs, folder):
    (model, tokenizer), (frozen, _) = (to_hugging_face(reference, WORLD) for _ in range(2))
    callback = GapCallback(WORLD, model, BETA, 50)
    settings = DPOConfig(beta=BETA, **common(folder, 100))
    data = {"train_dataset": to_dataset(pairs), "processing_class": tokenizer}
    DPOTrainer(model, frozen, settings, callbacks=[callback], **data).train()
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


def online(trainer, config, folder, reference, steps, **settings):
    callback = GapCallback(WORLD, to_hugging_face(reference, WORLD)[0], BETA, steps // 2)
    arguments = common(folder, steps, num_generations=4, max_completion_length=4, top_k=0)
    trainer(
        str(folder / "model"),
        to_reward_function(WORLD.response_rewards, WORLD),
        config(**arguments | settings),
        train_dataset=Dataset.from_dict({"prompt": to_prompts(WORLD) * 1_000}),
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


def test_its_reward_trainer_comes_near_what_the_annotator_s_noise_allows(pairs, folder, reference):
    model, tokenizer = to_hugging_face(reference, WORLD)
    config = model.config
    config.num_labels = 1
    torch.manual_seed(0)
    scorer = GPT2ForSequenceClassification(config)
    train, test = (to_dataset(part) for part in pairs.split(0.8, seed=0))
    settings = RewardConfig(**common(folder, 150, eval_strategy="no", learning_rate=3e-3))
    trainer = RewardTrainer(
        scorer, settings, train_dataset=train, eval_dataset=test, processing_class=tokenizer
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    sides = (pairs.chosen, pairs.rejected)
    rewards = [WORLD.response_rewards(pairs.prompts, side) for side in sides]
    ceiling = float(preference_ceiling(BradleyTerryAnnotator(), *rewards))
    assert ceiling - 0.07 < accuracy < ceiling + 0.03


@pytest.mark.parametrize("script", ["train_dpo.py", "train_rloo.py"])
def test_an_export_trains_on_two_processes(script, tmp_path):
    folder = tmp_path / "export"
    assert main(["export", str(folder), "--preferences", "1500", "--world", "dishes"]) == 0
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    done = subprocess.run(
        [*command, str(folder / script), "--steps", "6"],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("step 6: gap") == 1  # only one process prints
    model = AutoModelForCausalLM.from_pretrained(folder / f"trained_{script[6:-3]}")
    assert all(weight.isfinite().all() for weight in model.parameters())
