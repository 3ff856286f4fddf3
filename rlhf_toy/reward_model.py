"""Step 2: learning the reward from who won (L6, L7, L9).

First on a table of items, by maximum likelihood; then the network that PPO trains on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
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


def fit_bradley_terry(
    winners: ArrayLike, losers: ArrayLike, n_items: int, l2: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood rewards of items from comparisons (L7, L9; Bradley & Terry 1952).

    Minimises −Σ_k log σ(r_winner − r_loser) + l2 · Σ_i r_i² by Newton's method.

    Args:
        winners: [N] item indices.
        losers: [N] item indices.
        n_items: number of items.
        l2: weight of the penalty; 0 for plain maximum likelihood.

    Returns:
        rewards [n_items] in logits, of mean zero since only differences are identified, and their
        standard errors [n_items], from the inverse Fisher information within mean zero.

    Raises:
        ValueError: indices that are no items, no comparison, a negative penalty; or, without a
            penalty, data that have no finite maximum: some group of items never lost to the rest,
            or was never compared with it (Ford 1957).
    """
    winners, losers = np.asarray(winners), np.asarray(losers)
    if winners.ndim != 1 or winners.shape != losers.shape or len(winners) == 0:
        raise ValueError(
            "winners and losers must be lists of one length, at least 1, "
            f"got shapes {winners.shape} and {losers.shape}"
        )
    both = np.concatenate([winners, losers])
    if not np.issubdtype(both.dtype, np.integer) or both.min() < 0 or both.max() >= n_items:
        raise ValueError(f"winners and losers must be whole numbers from 0 to {n_items - 1}")
    if not 0 <= l2 < np.inf:
        raise ValueError(f"l2 must be a finite number of at least 0, got {l2}")
    ones = np.ones(len(winners))
    wins = coo_array((ones, (winners, losers)), shape=(n_items, n_items)).toarray()
    if l2 == 0:
        groups, _ = connected_components(wins, directed=True, connection="strong")
        if groups > 1:
            raise ValueError(
                "the rewards have no finite maximum-likelihood value: some items never lost to, or "
                "were never compared with, some others. Collect more comparisons, or give l2 > 0."
            )

    def loss(rewards: np.ndarray) -> tuple[float, np.ndarray]:
        differences = rewards[:, None] - rewards
        residuals = wins * expit(-differences)  # how surprising each win is
        value = (wins * np.logaddexp(0, -differences)).sum() + l2 * (rewards**2).sum()
        return value, residuals.sum(0) - residuals.sum(1) + 2 * l2 * rewards

    def information(rewards: np.ndarray) -> np.ndarray:
        differences = rewards[:, None] - rewards
        weights = (wins + wins.T) * expit(differences) * expit(-differences)
        return np.diag(weights.sum(1)) - weights + 2 * l2 * np.eye(n_items)

    # The constant shift carries no information; with it filled in the matrix can be inverted.
    shift = np.full((n_items, n_items), 1 / n_items)
    fit = minimize(
        loss,
        np.zeros(n_items),
        jac=True,
        hess=lambda rewards: information(rewards) + shift,
        method="Newton-CG",
        options={"xtol": 1e-12},
    )
    rewards = fit.x - fit.x.mean()
    covariance = np.linalg.inv(information(rewards) + shift) - shift / (1 + 2 * l2)
    return rewards, np.sqrt(np.diag(covariance).clip(min=0))


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
