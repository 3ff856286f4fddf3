"""Step 1: the reference policy π_ref, by supervised learning on fluent text.

Read from top to bottom: settings, loss, one step, training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlhf_toy import training
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.checks import check_settings, check_type
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.losses import masked_mean
from rlhf_toy.models import GPTConfig, Policy, PolicyModel
from rlhf_toy.training import History, Metrics, minibatch


@dataclass(frozen=True)
class SFTSettings:
    """Settings of the reference's training."""

    corpus_size: int = 12_000  # texts in the generated corpus
    steps: int = 700
    batch_size: int = 256
    learning_rate: float = 3e-3  # falls linearly to 0
    log_every: int = 50

    def __post_init__(self) -> None:
        check_settings(self)


class SFTState(training.State):
    """What changes during supervised training; `generator` also seeds the shuffling."""

    def __init__(self, policy: PolicyModel, settings: SFTSettings, generator: Generator) -> None:
        super().__init__(generator)
        self.policy = policy
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)


def sft_loss(
    policy: Policy, prompts: Tensor, responses: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy, −mean log π(y_{t+1} | x, y_≤t) over the real tokens, in nats.

    Args:
        policy: the language model.
        prompts: [B] prompt indices.
        responses: [B, T] token ids.
        mask: [B, T] real tokens.
        weights: [B] weights of the responses.

    Returns:
        scalar.
    """
    return -masked_mean(policy.token_logps(prompts, responses), mask, weights)


def sft_iteration(
    state: SFTState, prompts: Tensor, responses: Tensor, mask: Tensor, settings: SFTSettings
) -> Metrics:
    """Do one step of supervised learning on a batch of the corpus [N], [N, T] × 2."""
    seed = state.generator.initial_seed()
    rows = minibatch(len(prompts), settings.batch_size, state.step, seed).to(prompts.device)
    loss = sft_loss(state.policy, prompts[rows], responses[rows], mask[rows])

    training.linear_decay(state.optimizer, settings.learning_rate, state.step, settings.steps)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.step += 1
    return {"loss": loss.detach()}


def train_reference(
    world: TextWorld,
    settings: SFTSettings = SFTSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[PolicyModel, History]:
    """Train a small GPT on a corpus drawn from the world's grammar (Ouyang et al. 2022, step 1).

    Args:
        world: where the corpus comes from.
        settings: see `SFTSettings`.
        seed: of corpus, weights and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.

    Returns:
        the policy, and a history of `loss` (nats per token, of the batch).

    Raises:
        TypeError, ValueError: bad settings, seed, device, world, or a checkpoint of another run.
        DivergenceError: a loss or weight is no longer finite.
    """
    world = unwrap(world)
    check_type("settings", settings, SFTSettings, "SFTSettings")
    device = training.pick_device(device)
    generator = training.make_generator(seed)
    corpus = world.sample_corpus(settings.corpus_size, generator)
    prompts, responses = (tokens.to(device) for tokens in corpus)
    mask = world.response_mask(responses)
    policy = PolicyModel(GPTConfig.for_world(world), generator).to(device)
    state = SFTState(policy, settings, generator)
    inputs = {"world": world.fingerprint, "corpus": responses}
    history = training.run_steps(
        state,
        lambda: sft_iteration(state, prompts, responses, mask, settings),
        settings.steps,
        Checkpoint(checkpoint, "reference", settings, seed, **inputs),
        record_every=settings.log_every,
        shown_metrics={"loss": "loss"},
    )
    return policy, history
