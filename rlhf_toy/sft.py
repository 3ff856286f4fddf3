"""Step 1: the reference policy π_ref, by supervised learning on fluent text (L5).

Read from top to bottom: settings, data, loss, update.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rlhf_toy.envs import TextWorld
from rlhf_toy.losses import masked_mean
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import (
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
class SFTSettings:
    """Settings of the reference's training."""

    corpus_size: int = 12_000  # texts in the generated corpus
    steps: int = 700
    batch_size: int = 256
    learning_rate: float = 3e-3  # falls linearly to 0
    log_every: int = 50

    def __post_init__(self) -> None:
        check_settings(
            self, ("corpus_size", "steps", "batch_size", "log_every"), ("learning_rate",)
        )


def train_reference(
    world: TextWorld,
    settings: SFTSettings = SFTSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[PolicyModel, History]:
    """Trains a small GPT on a corpus drawn from the world's grammar (Ouyang et al. 2022, step 1).

    Args:
        world: where the corpus comes from.
        settings: see `SFTSettings`.
        seed: of corpus, weights and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to go on from.

    Returns:
        the policy, and a history of `loss` (nats per token, of the batch).

    Raises:
        ValueError: bad settings, seed, device, or a checkpoint of another run.
    """
    device = pick_device(device)
    generator = make_generator(seed)
    prompts, responses = world.sample_corpus(settings.corpus_size, generator)
    prompts, responses = prompts.to(device), responses.to(device)
    mask = world.response_mask(responses)

    policy = PolicyModel(GPTConfig.for_world(world), generator).to(device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    history = History()
    parts = {"policy": policy, "optimizer": optimizer}
    inputs = digest(prompts, responses)
    run = Run("reference", settings, seed, inputs, parts, generator, history, checkpoint)

    for step in run.steps(settings.steps, shown={"loss": "loss"}):
        rows = minibatch(settings.corpus_size, settings.batch_size, step, seed).to(device)
        loss = -masked_mean(policy.token_logps(prompts[rows], responses[rows]), mask[rows])

        linear_decay(optimizer, settings.learning_rate, step, settings.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            history.record(step + 1, {"loss": loss})
    return policy, history
