"""Step 3, online: PPO-Clip with a critic, on a reward minus β times the KL term.

Read from top to bottom: settings, advantages, loss, one iteration, training.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rlhf_toy import losses, training
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.checks import check_scores, check_settings, check_type
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import Yardstick, make_yardstick
from rlhf_toy.models import Policy, ValueModel, check_fits
from rlhf_toy.sampling import Rollout, sample
from rlhf_toy.training import History, Metrics, Reward


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO, under the field's names."""

    beta: float = 0.5  # KL weight
    iterations: int = 380
    batch_size: int = 1024  # responses sampled per iteration
    num_ppo_epochs: int = 1
    num_mini_batches: int = 4
    learning_rate: float = 1e-3  # falls linearly to 0
    vf_coef: float = 0.5
    cliprange: float = 0.2
    cliprange_value: float | None = None
    gamma: float = 1.0
    lam: float = 1.0
    max_grad_norm: float = 1.0
    use_critic: bool = True  # without one, advantages are rewards-to-go, whatever lam is
    whiten_advantages: bool = True
    aggregate: str = "token"  # what the policy loss averages over, see `aggregate_loss`
    target_kl: float | None = None  # in nats: the KL weight starts at beta and adapts to it
    kl_horizon: int = 10_000  # responses in which the KL weight can change by about a fifth
    measure_every: int = 100  # iterations between two exact measurements

    def __post_init__(self) -> None:
        share = {"low": 0, "high": 1}
        check_settings(self, gamma=share, lam=share, aggregate=losses.AGGREGATES)
        if self.batch_size % self.num_mini_batches:
            wanted = f"a multiple of num_mini_batches {self.num_mini_batches}"
            raise ValueError(f"batch_size {self.batch_size} must be {wanted}")


class PPOState(training.State):
    """What changes during PPO; the critic maps prompts [B], responses [B, T] to values [B, T]."""

    def __init__(
        self,
        policy: training.Trainable,
        critic: nn.Module | None,
        settings: PPOSettings,
        generator: Generator,
    ) -> None:
        super().__init__(generator)
        self.policy, self.critic, self.kl_coef = policy, critic, settings.beta
        models, rate = [policy] if critic is None else [policy, critic], settings.learning_rate
        parameters = [p for model in models for p in model.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=rate, eps=1e-5, fused=True)


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with what the update needs."""

    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T] the critic's targets
    old_values: Tensor  # [B, T] the critic's values at sampling time; 0 without a critic


def make_experience(
    rollout: Rollout,
    scores: Tensor,
    ref_logps: Tensor,
    critic: nn.Module | None,
    settings: PPOSettings,
    weights: Tensor | None = None,
    kl_coef: float | None = None,
) -> Experience:
    """Return how much better than expected each token was.

    Args:
        rollout: B responses of the policy.
        scores: [B] rewards of the whole responses.
        ref_logps: [B, T] log π_ref of each token.
        critic: prompts [B], responses [B, T] → values [B, T]; without one, advantages are plain
            rewards-to-go.
        settings: see `PPOSettings`.
        weights: [B] weights of the responses, for the whitening.
        kl_coef: KL weight, if it is no longer `settings.beta`.
    """
    # The reward on the last token, −β log-ratio on every one.
    beta = settings.beta if kl_coef is None else kl_coef
    rewards = losses.token_rewards(scores, rollout.logps, ref_logps, rollout.mask, beta)
    if critic is None:  # rewards-to-go
        old_values, lam = torch.zeros_like(rewards), 1.0
    else:
        old_values, lam = critic(rollout.prompts, rollout.responses), settings.lam
    advantages, returns = losses.gae(rewards, old_values, rollout.mask, settings.gamma, lam)
    if settings.whiten_advantages:
        advantages = losses.whiten(advantages, rollout.mask, weights)
    return Experience(*vars(rollout).values(), advantages, returns, old_values)


def ppo_loss(
    policy: Policy,
    critic: nn.Module | None,
    batch: Experience,
    settings: PPOSettings,
    weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return PPO's loss of a batch, clipped policy loss plus `vf_coef` times value loss.

    Args:
        policy: as it is now.
        critic: as it is now, if there is one.
        batch: B responses, sampled by the policy as it was.
        settings: see `PPOSettings`.
        weights: [B] weights of the responses.

    Returns:
        scalar, and metrics of the batch without gradient: `loss/policy`, `loss/value`, `val/ratio`,
        `policy/approxkl` and `policy/clipfrac` (means over tokens).
    """
    logps, mask = policy.token_logps(batch.prompts, batch.responses, batch.actions), batch.mask
    loss_policy = losses.ppo_clip_loss(
        logps, batch.logps, batch.advantages, mask, settings.cliprange, settings.aggregate, weights
    )
    metrics = {"loss/policy": loss_policy.detach()}
    metrics |= batch.ratio_metrics(logps.detach(), settings.cliprange, weights)
    if critic is None:
        return loss_policy, metrics
    values = critic(batch.prompts, batch.responses)
    loss_value = losses.value_loss(
        values, batch.old_values, batch.returns, mask, settings.cliprange_value, weights
    )
    metrics["loss/value"] = loss_value.detach()
    return loss_policy + settings.vf_coef * loss_value, metrics


def ppo_iteration(
    state: PPOState, world: TextWorld, reference: Policy, reward: Reward, settings: PPOSettings
) -> Metrics:
    """Do one iteration of PPO: sample, reward, advantages, updates.

    Args:
        state: what changes.
        world: where responses are written.
        reference: π_ref, on the state's device.
        reward: prompts [B], responses [B, T] → rewards [B].
        settings: see `PPOSettings`.

    Returns:
        the metrics of `train_ppo` that are not exact.
    """
    # Sample responses from the policy as it is.
    prompts = world.sample_prompts(settings.batch_size, state.generator)
    rollout = sample(state.policy, world, prompts, state.generator)
    with torch.no_grad():
        scores = check_scores(reward(prompts, rollout.responses), prompts)
        ref_logps = reference.token_logps(prompts, rollout.responses, rollout.actions)
        critic, kl_coef = state.critic, state.kl_coef
        experience = make_experience(rollout, scores, ref_logps, critic, settings, None, kl_coef)

    # Step towards what was better, within the clip.
    training.linear_decay(state.optimizer, settings.learning_rate, state.step, settings.iterations)
    parameters = state.optimizer.param_groups[0]["params"]
    updates = []
    for _ in range(settings.num_ppo_epochs):
        order = torch.randperm(len(prompts), generator=state.generator, device=prompts.device)
        for drawn in order.chunk(settings.num_mini_batches):
            loss, metrics = ppo_loss(state.policy, state.critic, experience[drawn], settings)
            state.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            state.optimizer.step()
            updates.append(metrics)
    state.step += 1

    found = rollout.metrics(scores, ref_logps, kl_coef)
    if settings.target_kl is not None:
        error = (found["objective/kl"] / settings.target_kl - 1).clamp(-0.2, 0.2)
        state.kl_coef = float(kl_coef * (1 + error * settings.batch_size / settings.kl_horizon))
    return {
        **found,
        "objective/kl_coef": kl_coef,
        "val/ratio_first": updates[0]["val/ratio"],
        **{name: torch.stack([u[name] for u in updates]).mean() for name in updates[0]},
    }


def train_ppo(
    world: TextWorld,
    reference: Policy,
    reward: Reward,
    settings: PPOSettings = PPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: training.Watch | None = None,
    start: training.Trainable | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[training.Trainable, History]:
    """Maximise J(π) = E[r] − β KL(π ‖ π_ref) by PPO (Schulman et al. 2017; Ziegler et al. 2019).

    Args:
        world: one of this package's worlds, bare or in Gymnasium's wrappers.
        reference: π_ref, in the reward and in the yardstick: a GPT or a table.
        reward: a `RewardModel`, or `world.response_rewards` for the true reward.
        settings: see `PPOSettings`.
        seed: of everything random.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.
        watch: called after every iteration with the number of iterations so far, the policy as it
            is (a copy is needed to keep it) and the history, in place of the progress bar. Training
            waits until it returns. What it raises ends the run, once the checkpoint is written.
        start: where the policy and the critic's body start; None: at the reference, which must
            then be a GPT.
        yardstick: measures the policy; None: `make_yardstick(world, reference, settings.beta)`.

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
        TypeError, ValueError: bad settings, seed, device, world, models of another world, a reward
            that is not one finite number for each response, or a checkpoint of another run.
        DivergenceError: a metric or weight is no longer finite.
    """
    world = unwrap(world)
    check_type("settings", settings, PPOSettings, "PPOSettings")
    device = training.pick_device(device)
    generator = training.make_generator(seed, device)
    check_fits(reference, world)
    policy = training.trainable_copy(reference if start is None else start, world).to(device)
    reference = copy.deepcopy(reference).to(device).requires_grad_(False)
    reward = training.frozen_reward(reward, world, device)
    critic = None
    if settings.use_critic:
        critic = ValueModel(policy.config, training.make_generator(seed))
        critic.start_from(policy)
        critic.to(device)
    yardstick = yardstick or make_yardstick(world, reference, settings.beta)
    check_type("yardstick", yardstick, Yardstick, "a Yardstick or None")
    state = PPOState(policy, critic, settings, generator)
    inputs = {"world": world.fingerprint, "reference": reference, "start": policy}
    if checkpoint is not None:
        inputs["reward"] = training.reward_digest(reward, world, device)
    shown = {"exact/gap": "gap", "objective/rlhf_reward": "J on samples", "objective/kl": "kl"}
    history = training.run_steps(
        state,
        lambda: ppo_iteration(state, world, reference, reward, settings),
        settings.iterations,
        Checkpoint(checkpoint, "PPO", settings, seed, **inputs),
        lambda: yardstick.metrics(policy),
        settings.measure_every,
        shown_metrics=shown,
        watch=watch,
    )
    return policy, history
