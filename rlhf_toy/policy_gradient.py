"""Step 3, online and without a critic: REINFORCE, RLOO, GRPO and Dr. GRPO.

They differ in what a response is compared with, and in where the KL term goes. Read from top to
bottom: settings, advantages, loss, one iteration, training.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from rlhf_toy import losses, training
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.checks import check_scores, check_settings, check_type
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import Yardstick, make_yardstick
from rlhf_toy.losses import approx_kl, grpo_advantages, rloo_advantages
from rlhf_toy.models import Policy, check_fits
from rlhf_toy.sampling import Rollout, sample
from rlhf_toy.training import History, Metrics, Reward

# What `PolicyGradientSettings.advantage` may name: rewards [X, G] of G responses to each of X
# prompts → advantages [X, G].
ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "reinforce": lambda rewards: rewards,
    # The mean of all other responses, whatever their prompt.
    "baseline": lambda rewards: rloo_advantages(rewards.reshape(1, -1)).view_as(rewards),
    "rloo": rloo_advantages,
    "grpo": grpo_advantages,
    "dr_grpo": lambda rewards: grpo_advantages(rewards, scale=False),
}
KL_TERMS = ("k1_reward", "k2_loss", "k3_loss", "none")
KL_LEVELS = ("sequence", "token")


@dataclass(frozen=True)
class PolicyGradientSettings:
    """Settings of REINFORCE and its descendants, under the field's names.

    The defaults are RLOO's. GRPO as in its paper is `advantage="grpo", kl="k3_loss",
    kl_level="token", aggregate="response_mean"`.
    """

    beta: float = 0.5  # KL weight
    advantage: str = "rloo"  # a key of ADVANTAGES
    kl: str = "k1_reward"  # β k1 taken off the reward, or β k2 or β k3 added to the loss
    kl_level: str = "sequence"  # k2 and k3: of a whole response, or of each token and then summed
    aggregate: str = "sequence"  # what the loss averages over, see `aggregate_loss`
    iterations: int = 380
    batch_size: int = 1024  # responses sampled per iteration
    num_generations: int = 4  # responses to each prompt: a group
    num_mini_batches: int = 4
    learning_rate: float = 1e-3  # falls linearly to 0
    cliprange: float = 0.2
    max_grad_norm: float = 1.0
    measure_every: int = 100  # iterations between two exact measurements

    def __post_init__(self) -> None:
        choices = {"kl": KL_TERMS, "kl_level": KL_LEVELS, "aggregate": losses.AGGREGATES}
        check_settings(self, advantage=ADVANTAGES, **choices)
        for name in ("num_generations", "num_mini_batches"):
            if self.batch_size % getattr(self, name):
                wanted = f"a multiple of {name} {getattr(self, name)}"
                raise ValueError(f"batch_size {self.batch_size} must be {wanted}")
        groups = self.batch_size // self.num_generations, self.num_generations
        ADVANTAGES[self.advantage](torch.zeros(groups))  # raises where there is nobody to compare


class PolicyGradientState(training.State):
    """What changes during training."""

    def __init__(
        self, policy: training.Trainable, settings: PolicyGradientSettings, generator: Generator
    ) -> None:
        super().__init__(generator)
        self.policy = policy
        trained = policy.parameters()  # those without a gradient are skipped
        self.optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, eps=1e-5, fused=True)


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with what the update needs."""

    ref_logps: Tensor  # [B, T] log π_ref of each token
    advantages: Tensor  # [B], the same for all tokens of a response


def make_experience(
    rollout: Rollout, scores: Tensor, ref_logps: Tensor, settings: PolicyGradientSettings
) -> Experience:
    """Return how much better than its group each response was.

    Args:
        rollout: B responses of the policy; each `num_generations` in a row answer one prompt.
        scores: [B] rewards of the responses.
        ref_logps: [B, T] log π_ref of each token.
        settings: see `PolicyGradientSettings`.
    """
    if settings.kl == "k1_reward":
        scores = scores - settings.beta * approx_kl(rollout.logps, ref_logps).sum(1)
    groups = scores.view(-1, settings.num_generations)
    advantages = ADVANTAGES[settings.advantage](groups).flatten()
    return Experience(*vars(rollout).values(), ref_logps, advantages)


def experience_loss(
    logps: Tensor,
    batch: Experience,
    settings: PolicyGradientSettings,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of a batch: the policy's, and β times the KL term where it is in the loss.

    Args:
        logps: [B, T] log π of the batch's tokens under the policy as it is now.
        batch: B responses, sampled by the policy as it was.
        settings: see `PolicyGradientSettings`.
        weights: [B] weights of the responses.

    Returns:
        scalar.
    """
    advantages, mask = batch.advantages[:, None].expand_as(logps), batch.mask
    if settings.num_mini_batches == 1:  # the policy is still the one that sampled
        loss = losses.policy_gradient_loss(logps, advantages, mask, settings.aggregate, weights)
    else:
        loss = losses.ppo_clip_loss(
            logps, batch.logps, advantages, mask, settings.cliprange, settings.aggregate, weights
        )
    if settings.kl.endswith("loss"):
        estimator = settings.kl[:2]
        if settings.kl_level == "token":
            kl = approx_kl(logps, batch.ref_logps, estimator)
            kl = losses.aggregate_loss(kl, mask, settings.aggregate, weights)
        else:
            kl = approx_kl(logps.sum(1), batch.ref_logps.sum(1), estimator)
            kl = losses.weighted_mean(kl, weights)
        loss = loss + settings.beta * kl
    return loss


def policy_gradient_iteration(
    state: PolicyGradientState,
    world: TextWorld,
    reference: Policy,
    reward: Reward,
    settings: PolicyGradientSettings,
) -> Metrics:
    """Do one iteration: sample groups, reward, advantages, updates.

    Args:
        state: what changes.
        world: where responses are written.
        reference: π_ref, on the state's device.
        reward: prompts [B], responses [B, T] → rewards [B].
        settings: see `PolicyGradientSettings`.

    Returns:
        the metrics of `train_policy_gradient` that are not exact.
    """
    # Sample groups of responses.
    G = settings.num_generations
    prompts = world.sample_prompts(settings.batch_size // G, state.generator).repeat_interleave(G)
    rollout = sample(state.policy, world, prompts, state.generator)
    with torch.no_grad():
        scores = check_scores(reward(prompts, rollout.responses), prompts)
        ref_logps = reference.token_logps(prompts, rollout.responses, rollout.actions)
        experience = make_experience(rollout, scores, ref_logps, settings)

    # Step towards what was better.
    training.linear_decay(state.optimizer, settings.learning_rate, state.step, settings.iterations)
    parameters = state.optimizer.param_groups[0]["params"]
    updates = []
    order = torch.randperm(len(prompts), generator=state.generator, device=prompts.device)
    for drawn in order.chunk(settings.num_mini_batches):
        batch = experience[drawn]
        logps = state.policy.token_logps(batch.prompts, batch.responses, batch.actions)
        loss = experience_loss(logps, batch, settings)
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        state.optimizer.step()
        metrics = batch.ratio_metrics(logps.detach(), settings.cliprange)
        updates.append({"loss/policy": loss.detach(), **metrics})
    state.step += 1

    spread = scores.view(-1, G).std(1, correction=0)
    return {
        **rollout.metrics(scores, ref_logps, settings.beta),
        "frac_reward_zero_std": (spread < 1e-8).float().mean(),
        "val/ratio_first": updates[0]["val/ratio"],
        **{name: torch.stack([u[name] for u in updates]).mean() for name in updates[0]},
    }


def train_policy_gradient(
    world: TextWorld,
    reference: Policy,
    reward: Reward,
    settings: PolicyGradientSettings = PolicyGradientSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: training.Watch | None = None,
    start: training.Trainable | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[training.Trainable, History]:
    """Maximise J(π) = E[r] − β KL(π ‖ π_ref) by policy gradients without a critic.

    REINFORCE (Williams 1992), RLOO (Ahmadian et al. 2024), GRPO (Shao et al. 2024) and Dr. GRPO
    (Liu et al. 2025), see `PolicyGradientSettings`. Not all of them end at the optimum of J.

    Args:
        world, reference, reward, seed, device, checkpoint, watch, yardstick: as for `train_ppo`.
        settings: see `PolicyGradientSettings`.
        start: where the policy starts; None: at the reference, which must then be a GPT.

    Returns:
        the policy, and a history by iteration with the metrics of `train_ppo` that do not concern
        a critic, and `frac_reward_zero_std`, the share of groups whose responses all have the same
        reward. `loss/policy` includes the KL term where it is in the loss.

    Raises:
        TypeError, ValueError, DivergenceError: as for `train_ppo`.
    """
    world = unwrap(world)
    check_type("settings", settings, PolicyGradientSettings, "PolicyGradientSettings")
    device = training.pick_device(device)
    generator = training.make_generator(seed, device)
    check_fits(reference, world)
    policy = training.trainable_copy(reference if start is None else start, world).to(device)
    reference = copy.deepcopy(reference).to(device).requires_grad_(False)
    reward = training.frozen_reward(reward, world, device)
    yardstick = yardstick or make_yardstick(world, reference, settings.beta)
    check_type("yardstick", yardstick, Yardstick, "a Yardstick or None")
    state = PolicyGradientState(policy, settings, generator)
    inputs = {"world": world.fingerprint, "reference": reference, "start": policy}
    if checkpoint is not None:
        inputs["reward"] = training.reward_digest(reward, world, device)
    history = training.run_steps(
        state,
        lambda: policy_gradient_iteration(state, world, reference, reward, settings),
        settings.iterations,
        Checkpoint(checkpoint, settings.advantage, settings, seed, **inputs),
        lambda: yardstick.metrics(policy),
        settings.measure_every,
        shown_metrics={"exact/gap": "gap", "objective/rlhf_reward": "J on samples"},
        watch=watch,
    )
    return policy, history
