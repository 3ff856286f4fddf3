"""What a GPU does with the long world: `python tests/benchmarks/gpu.py`, at most ten minutes.

A GPT of about ten million parameters learns by PPO on the true reward, on the GPU and on the CPU
for equally long. Its speed is given in tokens per second and as a share of the device's matrix
rate. It needs only torch, numpy, scipy, gymnasium and tqdm; the package need not be installed.
Times are of this machine at this moment; run nothing beside it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
try:
    metadata.version("rlhf_toy")
except metadata.PackageNotFoundError:  # the package asks for its version, which is not known here
    folder = Path(tempfile.mkdtemp())
    (folder / "rlhf_toy-0.dist-info").mkdir()
    (folder / "rlhf_toy-0.dist-info" / "METADATA").write_text("Name: rlhf_toy\nVersion: 0\n")
    sys.path.append(str(folder))

from rlhf_toy import losses, ppo, sft, training
from rlhf_toy.envs import LongReview
from rlhf_toy.exact import AutomatonYardstick, table_reference
from rlhf_toy.models import GPTConfig, PolicyModel, ValueModel
from rlhf_toy.sampling import sample

WORLD, BETA = LongReview(), 0.1
SIZES = {"n_layer": 6, "n_head": 6, "n_embd": 384}
IMITATE, LEARN = 60, 140  # seconds of supervised learning, and of PPO on each device
REPEATS = 3  # of each timing, of which the fastest counts


def seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Seconds of some work, the fastest of a few, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: str, dtype: torch.dtype, n: int) -> float:
    """Operations per second of a product of two n × n matrices."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device)


def rates(policy: PolicyModel, device: str, batch: int) -> None:
    """Print tokens per second of sampling and of training, and their shares of the matrix rate."""
    n = 8_192 if device == "cuda" else 2_048
    most = matrix_rate(device, torch.bfloat16, n)
    print(f"{device}: matrix rate {most / 1e12:.2f} TFLOP/s in bf16, ", end="")
    print(f"{matrix_rate(device, torch.float32, n) / 1e12:.2f} in float32 as set here")
    weights = sum(p.numel() for name, p in policy.named_parameters() if p.dim() == 2)
    weights -= policy.body.wpe.weight.numel()
    policy = policy.to(device)
    generator = training.make_generator(0, device)
    prompts = WORLD.sample_prompts(batch, generator)
    rollout = sample(policy, WORLD, prompts, generator)
    mask = rollout.mask

    def train() -> None:
        logps = policy.token_logps(prompts, rollout.responses)
        losses.masked_mean(logps, mask).backward()

    tokens = prompts.numel() * WORLD.max_length  # every position is computed, padding as well
    draw = lambda: sample(policy, WORLD, prompts, generator)  # noqa: E731
    for name, work, operations in (("sampled", draw, 2), ("trained", train, 6)):
        rate = tokens / seconds(work, device)
        share = rate * operations * weights / most
        print(f"{device}: {rate:,.0f} tokens {name} per second, {share:.2%} of the bf16 rate")


def imitate(device: str) -> PolicyModel:
    """Train a GPT on the corpus for `IMITATE` seconds."""
    generator = training.make_generator(0)
    policy = PolicyModel(GPTConfig.for_world(WORLD, **SIZES), generator).to(device)
    settings = sft.SFTSettings(batch_size=512, learning_rate=5e-4, steps=100_000)
    corpus = WORLD.sample_corpus(200_000, training.make_generator(1, device))
    data = (*corpus, WORLD.response_mask(corpus[1]))
    state = sft.SFTState(policy, settings, generator)
    each = seconds(lambda: sft.sft_iteration(state, *data, settings), device)
    settings = sft.SFTSettings(batch_size=512, learning_rate=5e-4, steps=int(IMITATE / each))
    state.step, start = 0, time.perf_counter()
    while state.step < settings.steps:
        loss = sft.sft_iteration(state, *data, settings)["loss"]
    spent = time.perf_counter() - start
    size = sum(p.numel() for p in policy.parameters())
    print(f"{size:,} parameters, {settings.steps} steps of SFT in {spent:.0f} s: loss {loss:.3f}")
    return policy


def learn(start: PolicyModel, device: str, yardstick: AutomatonYardstick) -> None:
    """Run PPO for about `LEARN` seconds; print the gap on the way, measured where `start` is."""
    reference = table_reference(WORLD).to(device).requires_grad_(False)
    policy = training.trainable_copy(start, WORLD).to(device)
    reward = WORLD.response_rewards
    common = {"beta": BETA, "batch_size": 1_024, "num_mini_batches": 8, "lam": 0.95}

    def begin(iterations: int) -> tuple[ppo.PPOState, ppo.PPOSettings]:
        settings = ppo.PPOSettings(iterations=iterations, learning_rate=3e-4, **common)
        critic = ValueModel(policy.config, training.make_generator(0))
        critic.start_from(policy)
        generator = training.make_generator(0, device)
        return ppo.PPOState(policy, critic.to(device), settings, generator), settings

    state, settings = begin(1_000_000)
    once = lambda: ppo.ppo_iteration(state, WORLD, reference, reward, settings)  # noqa: E731
    each = seconds(once, device, repeats=1)
    policy.load_state_dict(start.state_dict())
    state, settings = begin(max(2, int(LEARN / each)))
    print(
        f"{device}: {each:.2f} s an iteration of 1,024 responses, {settings.iterations} iterations"
    )
    spent, shown = 0.0, {round(settings.iterations * i / 4) for i in range(1, 5)}
    while state.step < settings.iterations:
        _wait(device)
        begun = time.perf_counter()
        once()
        _wait(device)
        spent += time.perf_counter() - begun
        if state.step in shown:
            found = yardstick.measure(training.trainable_copy(policy, WORLD).to(start.device))
            gap = f"gap {found.gap:.2%} ± {1.96 * found.standard_error:.2%}"
            print(f"{device}: iteration {state.step}, {spent:.0f} s: {gap}", flush=True)


def main() -> None:
    """Run everything on the CUDA device, if there is one, and on the CPU."""
    torch.set_float32_matmul_precision("high")  # TF32
    fast = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if fast == "cuda" else "no GPU"
    print(f"{card}, {os.cpu_count()} CPU cores, torch {torch.__version__}")
    yardstick = AutomatonYardstick(WORLD, BETA, samples=8_192 if fast == "cuda" else 1_024)
    policy = imitate(fast)
    found = yardstick.measure(policy)
    print(f"start: gap {found.gap:.2%} ± {1.96 * found.standard_error:.2%}, KL {found.kl:.3f}")
    for device in dict.fromkeys((fast, "cpu")):
        learn(policy, device, yardstick)
    for device in dict.fromkeys((fast, "cpu")):
        rates(training.trainable_copy(policy, WORLD), device, 4_096 if device == "cuda" else 256)


if __name__ == "__main__":
    main()
