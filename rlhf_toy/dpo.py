"""Steps 2 and 3 at once, offline: DPO and its family, preferences straight to the policy.

Read from top to bottom: settings, losses, one step, measuring, training.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlhf_toy import training
from rlhf_toy.checks import check_choice, check_settings, check_type
from rlhf_toy.exact import Yardstick, make_yardstick
from rlhf_toy.losses import PairLogps, cdpo_loss, dpo_loss, ipo_loss, preference_accuracy
from rlhf_toy.models import Policy, PolicyModel, check_fits
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import BestSoFar, History, Metrics


@dataclass(frozen=True)
class DPOSettings:
    """Settings of DPO, under the field's names."""

    beta: float = 0.5  # KL weight
    loss: str = "dpo"  # a key of LOSSES
    label_smoothing: float = 0.0  # share of labels taken to be wrong, for the loss "cdpo"
    steps: int = 300
    batch_size: int = 512  # pairs
    learning_rate: float = 5e-4  # falls linearly to 0 …
    warmup_steps: int = 100  # … once it has risen: early leaps put mass on what no pair shows
    held_out: float = 0.1  # share of the pairs that are kept for measuring
    early_stopping: bool = True  # return the policy that was best on the held-out pairs
    measure_every: int = 25  # steps between two measurements, exact and on the held-out pairs

    def __post_init__(self) -> None:
        ranges = {"held_out": {"above": 0, "below": 1}, "label_smoothing": {"low": 0, "below": 0.5}}
        check_settings(self, **ranges)
        check_choice("loss", self.loss, LOSSES)
        if (self.label_smoothing > 0) != (self.loss == "cdpo"):
            wanted = "above 0 for the loss 'cdpo' and 0 for any other"
            got = f"{self.label_smoothing} for {self.loss!r}"
            raise ValueError(f"label_smoothing must be {wanted}, got {got}")


# What `DPOSettings.loss` may name: the loss of a batch of pairs, given settings and row weights.
LOSSES: dict[str, Callable[[PairLogps, DPOSettings, Tensor | None], Tensor]] = {
    "dpo": lambda pairs, s, weights: dpo_loss(*pairs.logps, s.beta, weights),
    "ipo": lambda pairs, s, weights: ipo_loss(*pairs.logps, s.beta, weights),
    "cdpo": lambda pairs, s, weights: cdpo_loss(*pairs.logps, s.beta, s.label_smoothing, weights),
}


class DPOState(training.State):
    """What changes during DPO; `generator` also seeds the shuffling."""

    def __init__(self, policy: PolicyModel, settings: DPOSettings, generator: Generator) -> None:
        super().__init__(generator)
        self.policy, self.best = policy, BestSoFar(policy)  # the best on the held-out pairs
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)


def pair_logps(policy: Policy, preferences: PreferenceDataset) -> Tensor:
    """Return log π(y|x) of both responses of each pair: [2, N], chosen first, in nats.

    Sums over the tokens, not means. A response that occurs in many pairs is read once.

    Raises:
        ValueError: the policy was made for another world.
    """
    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    check_fits(policy, preferences.world)
    prompts, responses, index = preferences.unique_responses()
    logps = policy.token_logps(prompts, responses).sum(1)
    return logps.index_select(0, index).view(2, -1)


def preference_loss(
    policy: Policy,
    preferences: PreferenceDataset,
    ref_logps: Tensor,
    settings: DPOSettings,
    weights: Tensor | None = None,
) -> tuple[Tensor, PairLogps]:
    """Return the loss of some pairs that `settings.loss` names, and the log-probabilities in it.

    Args:
        policy: the language model.
        preferences: the N pairs.
        ref_logps: [2, N] `pair_logps` of the reference.
        settings: see `DPOSettings`.
        weights: [N] weights of the pairs.
    """
    world = preferences.world
    pairs = PairLogps(
        *pair_logps(policy, preferences),
        *ref_logps,
        chosen_lengths=world.response_mask(preferences.chosen).sum(1),
        rejected_lengths=world.response_mask(preferences.rejected).sum(1),
    )
    return LOSSES[settings.loss](pairs, settings, weights), pairs


def dpo_iteration(
    state: DPOState, preferences: PreferenceDataset, ref_logps: Tensor, settings: DPOSettings
) -> Metrics:
    """Do one step of DPO on a batch of the N pairs; `ref_logps` [2, N] as in `preference_loss`."""
    seed = state.generator.initial_seed()
    rows = training.minibatch(len(preferences), settings.batch_size, state.step, seed)
    loss, pairs = preference_loss(state.policy, preferences[rows], ref_logps[:, rows], settings)

    rates = settings.learning_rate, state.step, settings.steps, settings.warmup_steps
    training.linear_decay(state.optimizer, *rates)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.step += 1
    with torch.no_grad():
        chosen, rejected = pairs.implicit_rewards(settings.beta)
        return {
            "loss": loss.detach(),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/margins": (chosen - rejected).mean(),
            "rewards/accuracies": preference_accuracy(chosen, rejected),
            "logps/chosen": pairs.policy_chosen_logps.mean(),
            "logps/rejected": pairs.policy_rejected_logps.mean(),
        }


def measure_held_out(
    state: DPOState, held_out: PreferenceDataset, ref_logps: Tensor, settings: DPOSettings
) -> Metrics:
    """Measure the policy on held-out pairs, and keep its weights if they are the best so far."""
    with torch.no_grad():
        loss, pairs = preference_loss(state.policy, held_out, ref_logps, settings)
        accuracy = preference_accuracy(*pairs.implicit_rewards(settings.beta))
    state.best.offer(state.policy, float(loss))
    return {"held_out/loss": loss, "held_out/accuracy": accuracy}


def train_dpo(
    preferences: PreferenceDataset,
    reference: Policy,
    settings: DPOSettings = DPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: training.Watch | None = None,
    start: PolicyModel | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[PolicyModel, History]:
    """Fit a policy to preferences by the DPO loss or one of its family (Rafailov et al. 2023).

    Args:
        preferences: the pairs; a share of them is held out.
        reference: π_ref, in the loss and in the yardstick: a GPT or a table.
        settings: see `DPOSettings`.
        seed: of split and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.
        watch: called after every step with the number of steps so far, the policy as it is (a copy
            is needed to keep it) and the history, in place of the progress bar. Training waits
            until it returns. What it raises ends the run, once the checkpoint is written.
        start: where the policy starts; None: at the reference, which must then be a GPT. Start from
            the policy of an earlier round, with its pairs joined with new ones, to train further.
            Pairs that are held out now may be pairs that it was trained on.
        yardstick: measures the policy; None: `make_yardstick` of the pairs' world, the reference
            and `settings.beta`.

    Returns:
        the policy (with early stopping, as it was when its loss on the held-out pairs was lowest),
        and a history by step. Of the batch, before its update: `loss`, `rewards/chosen`,
        `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (implicit rewards, β included),
        `logps/chosen` and `logps/rejected` (summed over the sequence). At the same steps, after the
        update: `held_out/loss`, `held_out/accuracy`, and the exact `exact/reward`, `exact/kl`,
        `exact/objective` and `exact/gap`.

    Raises:
        TypeError, ValueError: bad settings, seed, device, too few pairs, models of another world,
            or a checkpoint of another run.
        DivergenceError: a metric or weight is no longer finite.
    """
    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    check_type("settings", settings, DPOSettings, "DPOSettings")
    world = preferences.world
    device = training.pick_device(device)
    generator = training.make_generator(seed)
    start = reference if start is None else start
    check_fits(reference, world)
    policy = training.trainable_copy(start, world).to(device)
    reference = copy.deepcopy(reference).to(device).requires_grad_(False)
    train, held_out = preferences.to(device).split(1 - settings.held_out, seed)
    with torch.no_grad():  # once: the reference does not change
        ref_train, ref_held_out = pair_logps(reference, train), pair_logps(reference, held_out)
    yardstick = yardstick or make_yardstick(world, reference, settings.beta)
    check_type("yardstick", yardstick, Yardstick, "a Yardstick or None")
    state = DPOState(policy, settings, generator)

    def measure() -> Metrics:
        found = measure_held_out(state, held_out, ref_held_out, settings)
        return {**found, **yardstick.metrics(policy)}

    inputs = {"world": world.fingerprint, "reference": reference, "start": policy}
    history = training.run_steps(
        state,
        lambda: dpo_iteration(state, train, ref_train, settings),
        settings.steps,
        training.Checkpoint(checkpoint, "DPO", settings, seed, **inputs, pairs=preferences.columns),
        measure,
        measure_every=settings.measure_every,
        record_every=settings.measure_every,
        shown_metrics={"exact/gap": "gap", "loss": "loss"},
        watch=watch,
    )
    if settings.early_stopping:
        state.best.restore(policy)
    return policy, history
