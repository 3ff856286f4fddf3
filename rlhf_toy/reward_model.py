"""Step 2: learning the reward from who won (L6, L7, L9).

First on a table of items, by maximum likelihood; then the network that PPO trains on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_toy.losses import bradley_terry_loss, preference_accuracy
from rlhf_toy.models import GPTConfig, RewardModel
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import (
    BestSoFar,
    History,
    Run,
    check_settings,
    digest,
    linear_decay,
    make_generator,
    minibatch,
    pick_device,
)


@dataclass(frozen=True)
class RewardModelSettings:
    """Settings of the reward model's training."""

    steps: int = 800
    batch_size: int = 512  # pairs
    learning_rate: float = 3e-3  # falls linearly to 0
    weight_decay: float = 1.0  # strong: few pairs, and people's answers are noisy
    held_out: float = 0.1  # share of the pairs that are kept for measuring
    measure_every: int = 25  # steps between two looks at the held-out pairs

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "measure_every")
        check_settings(self, counts, ("learning_rate",), ("held_out",))


def train_reward_model(
    preferences: PreferenceDataset,
    settings: RewardModelSettings = RewardModelSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[RewardModel, History]:
    """Fits r_φ(x, y) to preferences by maximum likelihood (L9; Christiano et al. 2017).

    The network starts from fresh weights. At full size one starts from the language model; at this
    size that learns no faster, and overfits 20,000 pairs more.

    Args:
        preferences: the pairs; a share of them is held out.
        settings: see `RewardModelSettings`.
        seed: of weights, split and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to go on from.

    Returns:
        the model as it was when its loss on the held-out pairs was lowest, and a history by step:
        `loss`, `accuracy`, `margin` and `mean_reward` of the batch; `held_out/loss` and
        `held_out/accuracy` at every `measure_every`-th step and the last.

    Raises:
        ValueError: bad settings, seed, device, too few pairs, or a checkpoint of another run.
    """
    device = pick_device(device)
    generator = make_generator(seed)
    train, held_out = preferences.to(device).split(1 - settings.held_out, seed)
    model = RewardModel(GPTConfig.for_world(preferences.world), generator).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    history, best = History(), BestSoFar(model)
    parts = {"model": model, "optimizer": optimizer, "best": best}
    inputs = digest(preferences.prompts, preferences.chosen, preferences.rejected)
    run = Run("reward model", settings, seed, inputs, parts, generator, history, checkpoint)

    for step in run.steps(
        settings.steps, {"held_out/accuracy": "held-out accuracy", "loss": "loss"}
    ):
        batch = train[minibatch(len(train), settings.batch_size, step, seed)]
        chosen_rewards, rejected_rewards = pair_rewards(model, batch)
        loss = bradley_terry_loss(chosen_rewards, rejected_rewards)

        linear_decay(optimizer, settings.learning_rate, step, settings.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if (step + 1) % settings.measure_every == 0 or step + 1 == settings.steps:
            with torch.inference_mode():
                chosen, rejected = pair_rewards(model, held_out)
                held_out_loss = bradley_terry_loss(chosen, rejected)
                metrics = {
                    "loss": loss,
                    "accuracy": preference_accuracy(chosen_rewards, rejected_rewards),
                    "margin": (chosen_rewards - rejected_rewards).mean(),
                    "mean_reward": (chosen_rewards + rejected_rewards).mean() / 2,
                    "held_out/loss": held_out_loss,
                    "held_out/accuracy": preference_accuracy(chosen, rejected),
                }
            history.record(step + 1, metrics)
            best.offer(model, float(held_out_loss))
    best.restore(model)
    return model, history


def pair_rewards(model: RewardModel, preferences: PreferenceDataset) -> Tensor:
    """r_φ(x, y) of both responses of each pair: [2, N], chosen first, in logits.

    A response that stands in many pairs is read once.
    """
    prompts, responses, index = preferences.unique_responses()
    return model(prompts, responses).index_select(0, index).view(2, -1)
