"""Step 3, online: PPO-Clip with a critic, on a reward less β times the KL term (L10 – L14).

Read from top to bottom: sample, reward, advantage, update, measure.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_toy.envs import TextWorld
from rlhf_toy.exact import Yardstick
from rlhf_toy.losses import (
    approx_kl,
    gae,
    masked_mean,
    ppo_clip_loss,
    token_rewards,
    value_loss,
    whiten,
)
from rlhf_toy.models import PolicyModel, ValueModel, sample
from rlhf_toy.training import (
    History,
    Run,
    Watch,
    check_settings,
    digest,
    linear_decay,
    make_generator,
    pick_device,
)

UPDATE_METRICS = ("loss/policy", "loss/value", "val/ratio", "policy/approxkl", "policy/clipfrac")
Reward = Callable[[Tensor, Tensor], Tensor]  # prompts [B], responses [B, T] → rewards [B]


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO, under the field's names."""

    beta: float = 0.5  # KL weight
    iterations: int = 200
    batch_size: int = 1024  # responses sampled per iteration
    num_ppo_epochs: int = 1
    num_mini_batches: int = 8
    learning_rate: float = 1e-3  # falls linearly to 0
    vf_coef: float = 0.5
    cliprange: float = 0.2
    cliprange_value: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    max_grad_norm: float = 1.0
    use_critic: bool = True  # without one, advantages are plain rewards-to-go
    whiten_advantages: bool = True
    measure_every: int = 25  # iterations between two exact measurements

    def __post_init__(self) -> None:
        counts = ("iterations", "batch_size", "num_ppo_epochs", "num_mini_batches", "measure_every")
        positive = ("beta", "learning_rate", "vf_coef", "cliprange", "max_grad_norm")
        check_settings(self, counts, positive)
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"gamma and lam must be in [0, 1], got {self.gamma} and {self.lam}")
        if self.cliprange_value is not None and not self.cliprange_value > 0:
            raise ValueError(f"cliprange_value must be above 0, got {self.cliprange_value}")
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_mini_batches "
                f"{self.num_mini_batches}"
            )


def train_ppo(
    world: TextWorld,
    reference: PolicyModel,
    reward: Reward,
    settings: PPOSettings = PPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: Watch | None = None,
) -> tuple[PolicyModel, History]:
    """Maximises J(π) = E[r] − β KL(π ‖ π_ref) by PPO (L10 – L14; Schulman et al. 2017).

    Args:
        world: a deterministic world.
        reference: π_ref, where the policy and the critic's body start.
        reward: a `RewardModel`, or `world.response_rewards` for the true reward.
        settings: see `PPOSettings`.
        seed: of everything random.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to go on from.
        watch: called after every iteration with the number of iterations so far, the policy as it
            is (a copy is needed to keep it) and the history, in place of the progress bar. Training
            waits until it returns. What it raises ends the run, once the checkpoint is written.

    Returns:
        the policy, and a history by iteration, under the field's names. Estimates on the samples of
        the iteration, before its update: `objective/kl` (nats, summed over the sequence),
        `objective/entropy` (likewise), `objective/scores`, `objective/non_score_reward` (−β · KL),
        `objective/rlhf_reward` (scores + non-score reward). Means over the minibatches of its
        update: `loss/policy`, `loss/value`, `policy/approxkl`, `policy/clipfrac`, `val/ratio`, and
        `val/ratio_first`, of the first minibatch, where it is 1. Exact, after the update, at every
        `measure_every`-th iteration and the last: `exact/reward` (the true one), `exact/kl`,
        `exact/objective` and `exact/gap`.

    Raises:
        ValueError: bad settings, seed, device, world, or a checkpoint of another run.
    """
    device = pick_device(device)
    generator = make_generator(seed, device)
    reference = copy.deepcopy(reference).to(device).requires_grad_(False)
    policy = copy.deepcopy(reference).requires_grad_(True)
    critic = ValueModel(policy.config, make_generator(seed))
    critic.start_from(reference)
    critic.to(device)
    if isinstance(reward, torch.nn.Module):
        reward = copy.deepcopy(reward).to(device)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, eps=1e-5, fused=True)
    yardstick = Yardstick(world, reference, settings.beta)
    history = History()
    parts = {"policy": policy, "critic": critic, "optimizer": optimizer}
    inputs = digest(reference, reward if isinstance(reward, torch.nn.Module) else "a function")
    run = Run("PPO", settings, seed, inputs, parts, generator, history, checkpoint, watch=watch)

    shown = {"exact/gap": "gap", "objective/rlhf_reward": "J on samples", "objective/kl": "kl"}
    for iteration in run.steps(settings.iterations, shown):
        # Sample responses from the policy as it is (L3).
        prompts = world.sample_prompts(settings.batch_size, generator)
        _, responses, old_logps, mask = sample(policy, world, prompts, generator)
        with torch.no_grad():
            # The reward on the last token, −β log-ratio on every one (L10).
            scores = reward(prompts, responses).float()
            ref_logps = reference.token_logps(prompts, responses)
            rewards = token_rewards(scores, old_logps, ref_logps, mask, settings.beta)
            # How much better than expected each token was (L13).
            old_values = critic(prompts, responses)
            baseline = old_values if settings.use_critic else torch.zeros_like(old_values)
            advantages, returns = gae(rewards, baseline, mask, settings.gamma, settings.lam)
            if settings.whiten_advantages:
                advantages = whiten(advantages, mask)

        # Step towards what was better, within the clip (L12).
        linear_decay(optimizer, settings.learning_rate, iteration, settings.iterations)
        updates = []
        for _ in range(settings.num_ppo_epochs):
            order = torch.randperm(settings.batch_size, generator=generator, device=device)
            for rows in order.chunk(settings.num_mini_batches):
                logps = policy.token_logps(prompts[rows], responses[rows])
                values = critic(prompts[rows], responses[rows])
                loss_policy = ppo_clip_loss(
                    logps, old_logps[rows], advantages[rows], mask[rows], settings.cliprange
                )
                loss_value = value_loss(
                    values, old_values[rows], returns[rows], mask[rows], settings.cliprange_value
                )
                optimizer.zero_grad()
                (loss_policy + settings.vf_coef * loss_value).backward()
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                with torch.no_grad():
                    ratio = (logps - old_logps[rows]).exp()
                    clipped = ((ratio - 1).abs() > settings.cliprange).float()
                    approxkl = approx_kl(old_logps[rows], logps, "k3")
                    on_tokens = [masked_mean(x, mask[rows]) for x in (ratio, approxkl, clipped)]
                    updates.append(torch.stack([loss_policy, loss_value, *on_tokens]))

        update = dict(zip(UPDATE_METRICS, torch.stack(updates).mean(0), strict=True))
        kl = approx_kl(old_logps, ref_logps).sum(1).mean()
        metrics = {
            "objective/kl": kl,
            "objective/entropy": -old_logps.sum(1).mean(),
            "objective/scores": scores.mean(),
            "objective/non_score_reward": -settings.beta * kl,
            "objective/rlhf_reward": scores.mean() - settings.beta * kl,
            "val/ratio_first": updates[0][UPDATE_METRICS.index("val/ratio")],
            **update,
        }
        # Measure against the exact optimum (L16, L17).
        if (iteration + 1) % settings.measure_every == 0 or iteration + 1 == settings.iterations:
            metrics |= yardstick.metrics(policy)
        history.record(iteration + 1, metrics)
    return policy, history
