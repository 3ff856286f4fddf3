"""Step 2: learning the reward from who won.

Read from top to bottom: settings, loss, one step, measuring, training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlhf_toy import training
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.checks import check_settings, check_type
from rlhf_toy.losses import bradley_terry_loss, preference_accuracy
from rlhf_toy.models import GPTConfig, RewardModel, check_fits
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import BestSoFar, History, Metrics


@dataclass(frozen=True)
class RewardModelSettings:
    """Settings of the reward model's training."""

    steps: int = 800
    batch_size: int = 512  # pairs
    learning_rate: float = 3e-3  # falls linearly to 0
    weight_decay: float = 1.0  # strong: few pairs, and people's answers are noisy
    ema_decay: float = 0.99  # of the moving average of the weights that is measured and returned
    held_out: float = 0.1  # share of the pairs that are kept for measuring
    measure_every: int = 25  # steps between two measurements on the held-out pairs

    def __post_init__(self) -> None:
        shares = {"held_out": {"above": 0, "below": 1}, "ema_decay": {"low": 0, "below": 1}}
        check_settings(self, weight_decay={"low": 0}, **shares)


class RewardModelState(training.State):
    """What changes during the reward model's training; `generator` also seeds the shuffling."""

    def __init__(
        self, model: RewardModel, settings: RewardModelSettings, generator: Generator
    ) -> None:
        super().__init__(generator)
        rate, decay = settings.learning_rate, settings.weight_decay
        self.model, trained = model, model.parameters()
        self.average = training.moving_average(model, settings.ema_decay)
        self.best = BestSoFar(model)  # the best average on the held-out pairs
        self.optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)


def pair_rewards(model: RewardModel, preferences: PreferenceDataset) -> Tensor:
    """Return r_φ(x, y) of both responses of each pair: [2, N], chosen first, in logits.

    Raises:
        ValueError: the model was made for another world.
    """
    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    check_fits(model, preferences.world)
    return model(preferences.prompts.repeat(2), preferences.responses).view(2, -1)


def reward_model_loss(
    model: RewardModel, preferences: PreferenceDataset, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the Bradley–Terry loss of some pairs (nats), and their rewards [2, N] (logits).

    Args:
        model: the reward model.
        preferences: the N pairs.
        weights: [N] weights of the pairs.
    """
    rewards = pair_rewards(model, preferences)
    return bradley_terry_loss(*rewards, weights), rewards


def reward_model_iteration(
    state: RewardModelState, preferences: PreferenceDataset, settings: RewardModelSettings
) -> Metrics:
    """Do one step of maximum likelihood on a batch of the pairs."""
    seed = state.generator.initial_seed()
    rows = training.minibatch(len(preferences), settings.batch_size, state.step, seed)
    loss, rewards = reward_model_loss(state.model, preferences[rows])

    training.linear_decay(state.optimizer, settings.learning_rate, state.step, settings.steps)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.average.update_parameters(state.model)
    state.step += 1
    chosen, rejected = rewards.detach()
    return {
        "loss": loss.detach(),
        "accuracy": preference_accuracy(chosen, rejected),
        "margin": (chosen - rejected).mean(),
        "mean_reward": (chosen + rejected).mean() / 2,
    }


def measure_held_out(state: RewardModelState, held_out: PreferenceDataset) -> Metrics:
    """Measure the average on held-out pairs, and keep its weights if they are the best so far."""
    with torch.inference_mode():
        loss, rewards = reward_model_loss(state.average.module, held_out)
        accuracy = preference_accuracy(*rewards)
    state.best.offer(state.average.module, float(loss))
    return {"held_out/loss": loss, "held_out/accuracy": accuracy}


def train_reward_model(
    preferences: PreferenceDataset,
    settings: RewardModelSettings = RewardModelSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[RewardModel, History]:
    """Fit r_φ(x, y) to preferences by maximum likelihood (Christiano et al. 2017).

    The network starts from fresh weights. At full size one starts from the language model; at this
    size that learns no faster, and overfits 20,000 pairs more.

    Args:
        preferences: the pairs; a share of them is held out.
        settings: see `RewardModelSettings`.
        seed: of weights, split and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.

    Returns:
        the average of the weights, see `ema_decay`, as it was when its loss on the held-out pairs
        was lowest, and a history by step: `loss`, `accuracy`, `margin` and `mean_reward` of the
        batch; `held_out/loss` and `held_out/accuracy`, of the average, at every `measure_every`-th
        step and the last.

    Raises:
        TypeError, ValueError: bad settings, seed, device, too few pairs, or a checkpoint of another
            run.
        DivergenceError: a loss or weight is no longer finite.
    """
    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    check_type("settings", settings, RewardModelSettings, "RewardModelSettings")
    device = training.pick_device(device)
    generator = training.make_generator(seed)
    train, held_out = preferences.to(device).split(1 - settings.held_out, seed)
    model = RewardModel(GPTConfig.for_world(preferences.world), generator).to(device)
    state = RewardModelState(model, settings, generator)
    inputs = {"world": preferences.world.fingerprint, "pairs": preferences.columns}
    history = training.run_steps(
        state,
        lambda: reward_model_iteration(state, train, settings),
        settings.steps,
        Checkpoint(checkpoint, "reward model", settings, seed, **inputs),
        lambda: measure_held_out(state, held_out),
        measure_every=settings.measure_every,
        record_every=settings.measure_every,
        shown_metrics={"held_out/accuracy": "held-out accuracy", "loss": "loss"},
    )
    state.best.restore(model)
    return model, history
