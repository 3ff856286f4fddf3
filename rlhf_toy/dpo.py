"""Steps 2 and 3 at once, offline: DPO and its family, preferences straight to the policy.

Read from top to bottom: settings, losses, one step, measuring, training.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from rlhf_toy import losses, training
from rlhf_toy.annotators import Annotator, check_annotator
from rlhf_toy.checkpoints import Checkpoint
from rlhf_toy.checks import check_settings, check_type
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import Yardstick, make_yardstick
from rlhf_toy.losses import PairLogps, preference_accuracy
from rlhf_toy.models import GPTConfig, Policy, ResidualPolicy, check_fits
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.training import BestSoFar, History, Metrics


@dataclass(frozen=True)
class DPOSettings:
    """Settings of DPO, under the field's names.

    The defaults are for 20,000 pairs and a network that starts at 0 beside the reference; they were
    chosen by held-out loss. With ten times the pairs, take a tenth of the `weight_decay`. To
    fine-tune the reference's own weights (`start=reference`), take a `learning_rate` of about 5e-4,
    100 `warmup_steps` and a `weight_decay` of 0.01.
    """

    beta: float = 0.5  # KL weight
    loss: str = "dpo"  # a key of LOSSES
    steps: int = 400
    batch_size: int = 1024  # pairs
    learning_rate: float = 3e-3  # falls linearly to 0 …
    warmup_steps: int = 0  # … once it has risen; 0: it starts at its highest
    weight_decay: float = 1.0  # strong: few pairs, and people's answers are noisy
    ema_decay: float = 0.99  # of the moving average of the weights that is measured and returned
    held_out: float = 0.1  # share of the pairs that are kept for measuring
    early_stopping: bool = True  # return the policy that was best on the held-out pairs
    measure_every: int = 100  # steps between two measurements, exact and on the held-out pairs
    label_smoothing: float = 0.0  # ε, share of wrong labels, for the losses "cdpo" and "rdpo"
    simpo_gamma: float = 0.5  # margin that "simpo" asks for, in logits
    desirable_weight: float = 1.0  # λ_D of "kto"
    undesirable_weight: float = 1.0  # λ_U of "kto"
    max_reward: float = 10.0  # R of "chi_po", in logits

    def __post_init__(self) -> None:
        limits = {"held_out": {"above": 0, "below": 1}, "label_smoothing": {"low": 0, "below": 0.5}}
        limits |= {name: {"low": 0} for name in ("warmup_steps", "weight_decay", "simpo_gamma")}
        check_settings(self, ema_decay={"low": 0, "below": 1}, loss=LOSSES, **limits)
        if (self.label_smoothing > 0) != (self.loss in ("cdpo", "rdpo")):
            wanted = "above 0 for the losses 'cdpo' and 'rdpo', and 0 for any other"
            got = f"{self.label_smoothing} for {self.loss!r}"
            raise ValueError(f"label_smoothing must be {wanted}, got {got}")


# What `DPOSettings.loss` may name: the loss of a batch p of pairs, for settings s, row weights w.
LOSSES: dict[str, Callable[[PairLogps, DPOSettings, Tensor | None], Tensor]] = {
    "dpo": lambda p, s, w: losses.dpo_loss(*p.logps, s.beta, w),
    "ipo": lambda p, s, w: losses.ipo_loss(*p.logps, s.beta, w),
    "cdpo": lambda p, s, w: losses.cdpo_loss(*p.logps, s.beta, s.label_smoothing, w),
    "rdpo": lambda p, s, w: losses.rdpo_loss(*p.logps, s.beta, s.label_smoothing, w),
    "simpo": lambda p, s, w: losses.simpo_loss(*p.logps[:2], *p.lengths, s.beta, s.simpo_gamma, w),
    "kto": lambda p, s, w: losses.kto_loss(
        *p.logps, s.beta, p.kl(w), s.desirable_weight, s.undesirable_weight, w
    ),
    "orpo": lambda p, s, w: losses.orpo_loss(*p.logps[:2], *p.lengths, s.beta, w),
    "chi_po": lambda p, s, w: losses.chi_po_loss(*p.logps, s.beta, s.max_reward, w),
}


class DPOState(training.State):
    """What changes during DPO; `generator` also seeds the shuffling."""

    def __init__(
        self, policy: training.Trainable, settings: DPOSettings, generator: Generator
    ) -> None:
        super().__init__(generator)
        self.policy = policy
        self.average = training.moving_average(policy, settings.ema_decay)
        self.best = BestSoFar(policy)  # the best average on the held-out pairs
        rate, decay = settings.learning_rate, settings.weight_decay
        trained = policy.parameters()  # those without a gradient are skipped
        self.optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)


def pair_logps(policy: Policy, preferences: PreferenceDataset) -> Tensor:
    """Return log π(y|x) of both responses of each pair: [2, N], chosen first, in nats.

    Sums over the tokens, not means.

    Raises:
        ValueError: the policy was made for another world.
    """
    check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
    check_fits(policy, preferences.world)
    prompts, responses = preferences.prompts.repeat(2), preferences.responses
    return policy.token_logps(prompts, responses).sum(1).view(2, -1)


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
    masks = map(preferences.world.response_mask, (preferences.chosen, preferences.rejected))
    lengths = [mask.sum(1) for mask in masks]  # [N] each
    pairs = PairLogps(*pair_logps(policy, preferences), *ref_logps, *lengths)
    return LOSSES[settings.loss](pairs, settings, weights), pairs


def dpo_iteration(
    state: DPOState,
    preferences: PreferenceDataset,
    ref_logps: Tensor,
    settings: DPOSettings,
    weights: Tensor | None = None,
) -> Metrics:
    """Do one step of DPO on a batch of the N pairs; see `preference_loss` for the arguments.

    The metrics but the loss are means over the batch, whatever the weights are.
    """
    seed = state.generator.initial_seed()
    rows = training.minibatch(len(preferences), settings.batch_size, state.step, seed)
    batch, refs = preferences[rows], ref_logps[:, rows]
    some = None if weights is None else weights[rows]
    loss, pairs = preference_loss(state.policy, batch, refs, settings, some)

    rates = settings.learning_rate, state.step, settings.steps, settings.warmup_steps
    training.linear_decay(state.optimizer, *rates)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.average.update_parameters(state.policy)
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
    """Measure the average on held-out pairs, and keep its weights if they are the best so far."""
    with torch.no_grad():
        loss, pairs = preference_loss(state.average.module, held_out, ref_logps, settings)
        accuracy = preference_accuracy(*pairs.implicit_rewards(settings.beta))
    state.best.offer(state.average.module, float(loss))
    return {"held_out/loss": loss, "held_out/accuracy": accuracy}


def train_dpo(
    preferences: PreferenceDataset,
    reference: Policy,
    settings: DPOSettings = DPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: training.Watch | None = None,
    start: training.Trainable | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[training.Trainable, History]:
    """Fit a policy to preferences by the DPO loss or one of its family (Rafailov et al. 2023).

    Args:
        preferences: the pairs; a share of them is held out.
        reference: π_ref, in the loss and in the yardstick: a GPT or a table.
        settings: see `DPOSettings`.
        seed: of the network's weights, split and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to resume from.
        watch: called after every step with the number of steps so far, the policy as it is (a copy
            is needed to keep it) and the history, in place of the progress bar. Training waits
            until it returns. What it raises ends the run, once the checkpoint is written.
        start: where the policy starts; None: a `ResidualPolicy` at the reference. Give the
            reference to fine-tune its own weights, or the policy of an earlier round to train it
            further. Pairs that are held out now may be pairs that it was trained on.
        yardstick: measures the policy; None: `make_yardstick` of the pairs' world, the reference
            and `settings.beta`.

    Returns:
        the average of the weights, see `ema_decay` (with early stopping, as it was when its loss on
        the held-out pairs was lowest), and a history by step. Of the batch, before its update:
        `loss`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`
        (implicit rewards, β included), `logps/chosen` and `logps/rejected` (summed over the
        sequence). At the same steps, of the average after the update: `held_out/loss`,
        `held_out/accuracy`, and the exact `exact/reward`, `exact/kl`, `exact/objective` and
        `exact/gap`.

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
    check_fits(reference, world)
    if start is None:
        start = ResidualPolicy(reference, GPTConfig.for_world(world), generator)
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
        return {**found, **yardstick.metrics(state.average.module)}

    inputs = {"world": world.fingerprint, "reference": reference, "start": policy}
    history = training.run_steps(
        state,
        lambda: dpo_iteration(state, train, ref_train, settings),
        settings.steps,
        Checkpoint(checkpoint, "DPO", settings, seed, **inputs, pairs=preferences.columns),
        measure,
        measure_every=settings.measure_every,
        record_every=settings.measure_every,
        shown_metrics={"exact/gap": "gap", "loss": "loss"},
        watch=watch,
    )
    if settings.early_stopping:
        state.best.restore(policy)
        return policy, history
    return state.average.module, history


@dataclass(frozen=True)
class OnlineDPOSettings:
    """Settings of online DPO: how often fresh pairs come, and how each round trains."""

    rounds: int = 5
    pairs: int = 20_000  # that the annotator compares in each round
    dpo: DPOSettings = DPOSettings(steps=300, weight_decay=0.1)  # more pairs need less decay

    def __post_init__(self) -> None:
        check_settings(self)
        check_type("dpo", self.dpo, DPOSettings, "DPOSettings")


def train_online_dpo(
    world: TextWorld,
    reference: Policy,
    annotator: Annotator,
    settings: OnlineDPOSettings = OnlineDPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: training.Watch | None = None,
    start: training.Trainable | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[training.Trainable, History]:
    """Train by DPO in rounds, with fresh pairs of the policy's own responses (Guo et al. 2024).

    A round asks the annotator about pairs of responses of the policy as it is, adds them to all
    earlier pairs, and goes on training the policy on all of them.

    Args:
        world: where responses are written.
        reference: π_ref in the loss and in the yardstick, in every round.
        annotator: who compares the pairs.
        settings: see `OnlineDPOSettings`.
        seed: of everything random.
        checkpoint: a file to save to and to resume from; the rounds have files of their own, whose
            names end with the number of the round.
        device, watch, start, yardstick: as for `train_dpo`, for all rounds together.

    Returns:
        the policy, and a history like that of `train_dpo`, whose steps count over all rounds.

    Raises:
        TypeError, ValueError, DivergenceError: as for `train_dpo` and `collect_preferences`.
    """
    world = unwrap(world)
    check_type("settings", settings, OnlineDPOSettings, "OnlineDPOSettings")
    check_annotator(annotator)
    device = training.pick_device(device)
    generator = training.make_generator(seed, device)
    check_fits(reference, world)
    policy, sampler = start, copy.deepcopy(reference if start is None else start).to(device)
    pairs, history = None, History()

    def together(number: int, found: History) -> History:
        """The history of all rounds so far, of which the last one found this."""
        whole, done = History(), number * settings.dpo.steps
        whole.rows = history.rows + [{**row, "step": done + row["step"]} for row in found.rows]
        return whole

    def look(number: int, step: int, policy: nn.Module, found: History) -> None:
        watch(number * settings.dpo.steps + step, policy, together(number, found))

    for number in range(settings.rounds):
        fresh = collect_preferences(sampler, world, annotator, settings.pairs, generator)
        pairs = fresh if pairs is None else pairs.join(fresh)
        path = checkpoint and f"{os.fspath(checkpoint)}.{number + 1}"
        see = watch and partial(look, number)
        policy, found = train_dpo(
            pairs, reference, settings.dpo, seed + number, device, path, see, policy, yardstick
        )
        sampler, history = policy, together(number, found)
    return policy, history
