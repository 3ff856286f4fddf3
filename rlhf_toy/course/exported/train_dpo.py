"""Train the model of this folder with TRL's DPOTrainer, and measure it against the optimum.

python train_dpo.py
accelerate launch --num_processes 2 --cpu train_dpo.py                       # two processes
accelerate launch --num_processes 8 --multi_gpu train_dpo.py --device cuda   # eight GPUs
"""

import argparse
import json
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from rlhf_toy.bridge import GapCallback
from rlhf_toy.course.worlds import make_world

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
options = parser.parse_args()

folder = Path(__file__).parent
about = json.loads((folder / "export.json").read_text())
files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
data = load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))
model, reference = (AutoModelForCausalLM.from_pretrained(folder / "model") for _ in range(2))
gaps = GapCallback(make_world(about["world"]), model, about["beta"], max(1, options.steps // 4))
settings = DPOConfig(
    str(folder / "trl"),
    beta=about["beta"],
    max_steps=options.steps,
    learning_rate=1e-3,
    per_device_train_batch_size=256,
    use_cpu=options.device == "cpu",
    bf16=False,
    gradient_checkpointing=False,
    report_to="none",
    save_strategy="no",
)
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
columns = {"train_dataset": data["train"], "eval_dataset": data["test"]}
trainer = DPOTrainer(
    model, reference, settings, processing_class=tokenizer, callbacks=[gaps], **columns
)
trainer.train()
if trainer.is_world_process_zero():
    print(gaps)
    trainer.save_model(str(folder / "trained_dpo"))
