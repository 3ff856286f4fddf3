"""Steps 2 and 3 at once, offline: DPO, preferences straight to the policy (L20 – L27).

Read from top to bottom: the reference's log-probabilities once, loss, update, measure.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_toy.exact import Yardstick
from rlhf_toy.losses import dpo_loss, implicit_reward, preference_accuracy
from rlhf_toy.models import PolicyModel, check_fits
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import (
    BestSoFar,
    History,
    Run,
    Watch,
    check_settings,
    digest,
    linear_decay,
    make_generator,
    minibatch,
    pick_device,
)


@dataclass(frozen=True)
class DPOSettings:
    """Settings of DPO, under the field's names."""

    beta: float = 0.5  # KL weight
    steps: int = 300
    batch_size: int = 512  # pairs
    learning_rate: float = 5e-4  # falls linearly to 0 …
    warmup_steps: int = 100  # … once it has risen: early leaps put mass on what no pair shows
    held_out: float = 0.1  # share of the pairs that are kept for measuring
    early_stopping: bool = True  # hand back the policy that was best on the held-out pairs
    measure_every: int = 25  # steps between two exact measurements and looks at the held-out pairs

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "warmup_steps", "measure_every")
        check_settings(self, counts, ("beta", "learning_rate"), ("held_out",))


def train_dpo(
    preferences: PreferenceDataset,
    reference: PolicyModel,
    settings: DPOSettings = DPOSettings(),
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    watch: Watch | None = None,
    start: PolicyModel | None = None,
) -> tuple[PolicyModel, History]:
    """Fits a policy to preferences by the DPO loss (L23; Rafailov et al. 2023).

    Args:
        preferences: the pairs; a share of them is held out.
        reference: π_ref, in the loss and in the yardstick.
        settings: see `DPOSettings`.
        seed: of split and batches.
        device: None picks CUDA where there is one.
        checkpoint: a file to save to and to go on from.
        watch: called after every step with the number of steps so far, the policy as it is
            (a copy is needed to keep it) and the history, in place of the progress bar. Training
            waits until it returns. What it raises ends the run, once the checkpoint is written.
        start: where the policy starts; None: at the reference. With the policy of an earlier round,
            and its pairs joined with new ones, training goes on. Pairs that are held out now may be
            pairs that it was trained on.

    Returns:
        the policy (with early stopping, as it was when its loss on the held-out pairs was lowest),
        and a history by step. Of the batch, before its update: `loss`, `rewards/chosen`,
        `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (implicit rewards, β included),
        `logps/chosen` and `logps/rejected` (summed over the sequence). At the same steps, after the
        update: `held_out/loss`, `held_out/accuracy`, and the exact `exact/reward`, `exact/kl`,
        `exact/objective` and `exact/gap`.

    Raises:
        ValueError: bad settings, seed, device, world, too few pairs, a start that does not fit the
            world, or a checkpoint of another run.
    """
    device = pick_device(device)
    generator = make_generator(seed)
    reference = copy.deepcopy(reference).to(device).requires_grad_(False)
    policy = copy.deepcopy(reference if start is None else start).to(device).requires_grad_(True)
    check_fits(policy, preferences.world)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    yardstick = Yardstick(preferences.world, reference, settings.beta)
    # The reference does not change, so its log-probabilities are computed once.
    train, held_out = preferences.to(device).split(1 - settings.held_out, seed)
    with torch.no_grad():
        ref_train, ref_held_out = pair_logps(reference, train), pair_logps(reference, held_out)
    history, best = History(), BestSoFar(policy)
    parts = {"policy": policy, "optimizer": optimizer, "best": best}
    inputs = digest(
        reference, policy, preferences.prompts, preferences.chosen, preferences.rejected
    )
    run = Run("DPO", settings, seed, inputs, parts, generator, history, checkpoint, watch=watch)

    for step in run.steps(settings.steps, {"exact/gap": "gap", "loss": "loss"}):
        rows = minibatch(len(train), settings.batch_size, step, seed)
        batch = train[rows]
        chosen_logps, rejected_logps = pair_logps(policy, batch)
        ref_chosen_logps, ref_rejected_logps = ref_train[:, rows]
        loss = dpo_loss(
            chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, settings.beta
        )

        linear_decay(optimizer, settings.learning_rate, step, settings.steps, settings.warmup_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if (step + 1) % settings.measure_every == 0 or step + 1 == settings.steps:
            with torch.no_grad():
                chosen = implicit_reward(chosen_logps, ref_chosen_logps, settings.beta)
                rejected = implicit_reward(rejected_logps, ref_rejected_logps, settings.beta)
                held_out_logps = pair_logps(policy, held_out)
                held_out_loss = dpo_loss(*held_out_logps, *ref_held_out, settings.beta)
                held_out_rewards = implicit_reward(held_out_logps, ref_held_out, settings.beta)
            metrics = {
                "loss": loss,
                "rewards/chosen": chosen.mean(),
                "rewards/rejected": rejected.mean(),
                "rewards/margins": (chosen - rejected).mean(),
                "rewards/accuracies": preference_accuracy(chosen, rejected),
                "logps/chosen": chosen_logps.mean(),
                "logps/rejected": rejected_logps.mean(),
                "held_out/loss": held_out_loss,
                "held_out/accuracy": preference_accuracy(*held_out_rewards),
                **yardstick.metrics(policy),
            }
            history.record(step + 1, metrics)
            best.offer(policy, float(held_out_loss))
    if settings.early_stopping:
        best.restore(policy)
    return policy, history


def pair_logps(policy: PolicyModel, preferences: PreferenceDataset) -> Tensor:
    """log π(y|x) of both responses of each pair: [2, N], chosen first, in nats.

    Sums over the tokens, not means. A response that stands in many pairs is read once.
    """
    prompts, responses, index = preferences.unique_responses()
    logps = policy.token_logps(prompts, responses).sum(1)
    return logps.index_select(0, index).view(2, -1)
