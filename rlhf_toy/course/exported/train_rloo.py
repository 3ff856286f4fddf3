"""Train the model of this folder with TRL's RLOOTrainer, and measure it against the optimum.

python train_rloo.py
accelerate launch --num_processes 2 --cpu train_rloo.py                       # two processes
accelerate launch --num_processes 8 --multi_gpu train_rloo.py --device cuda   # eight GPUs
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import RLOOConfig, RLOOTrainer

from rlhf_toy.bridge import GapCallback, to_prompts, to_reward_function
from rlhf_toy.course.worlds import make_world

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
options = parser.parse_args()

folder = Path(__file__).parent
about = json.loads((folder / "export.json").read_text())
world = make_world(about["world"])
model = AutoModelForCausalLM.from_pretrained(folder / "model")
gaps = GapCallback(world, model, about["beta"], max(1, options.steps // 4))
settings = RLOOConfig(
    str(folder / "trl"),
    beta=about["beta"],
    max_steps=options.steps,
    learning_rate=1e-3,
    per_device_train_batch_size=256,
    num_generations=4,
    max_completion_length=world.max_length + 1,  # the words and the end
    top_k=0,  # sample from the policy itself
    use_cpu=options.device == "cpu",
    bf16=False,
    gradient_checkpointing=False,
    report_to="none",
    save_strategy="no",
)
trainer = RLOOTrainer(
    str(folder / "model"),  # TRL loads the reference from here too
    to_reward_function(world.response_rewards, world),
    settings,
    train_dataset=Dataset.from_dict({"prompt": to_prompts(world) * 1_000}),
    callbacks=[gaps],
)
trainer.train()
if trainer.is_world_process_zero():
    print(gaps)
    trainer.save_model(str(folder / "trained_rloo"))
