"""Why DPO falls short of the optimum: the same pairs, one thing changed at a time.

The world is the word world with at most four words. Every arm of a seed has the same reference and
the same 20,000 pairs of its responses, unless its name says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.studies import parts
from rlhf_toy.course.studies.parts import BETA
from rlhf_toy.dpo import (
    DPOState,
    OnlineDPOSettings,
    dpo_iteration,
    measure_held_out,
    pair_logps,
    train_dpo,
    train_online_dpo,
)
from rlhf_toy.envs import WordMDP
from rlhf_toy.exact import Yardstick, gibbs_policy, response_logps, response_scores
from rlhf_toy.losses import bradley_terry_loss
from rlhf_toy.models import GPTConfig, PolicyModel, ResidualPolicy, TablePolicy
from rlhf_toy.plots import COLOURS
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.sft import train_reference
from rlhf_toy.training import linear_decay, make_generator, minibatch

SEEDS = 10
PAIRS = 20_000
REFERENCE = replace(parts.REFERENCE, steps=400)
REWARD_MODEL = replace(parts.REWARD_MODEL, steps=600, ema_decay=0.99, measure_every=50)
RESIDUAL = replace(
    parts.DPO,
    steps=400,
    learning_rate=3e-3,
    warmup_steps=0,
    weight_decay=1.0,
    ema_decay=0.99,
    measure_every=50,
)
TUNING = replace(RESIDUAL, weight_decay=0.01, ema_decay=0.0, warmup_steps=100)
ALL = RESIDUAL.steps * RESIDUAL.batch_size  # pairs that a run reads
ARMS: dict[str, dict[str, Any]] = {
    "reward model, exact optimum": {},
    "reward summed over tokens, exact optimum": {},
    "fine-tuning, rate 5e-4, 300 steps": {"learning_rate": 5e-4, "steps": 300},
    "fine-tuning, rate 5e-4, 1,000 steps": {"learning_rate": 5e-4, "steps": 1_000},
    "fine-tuning, rate 2e-3, 400 steps": {"learning_rate": 2e-3},
    "residual": {},
    "residual, soft labels": {},
    "residual, fresh pairs in every batch": {"pairs": ALL},
    "fine-tuning, fresh pairs in every batch": {"learning_rate": 2e-3, "pairs": ALL},
    "residual, half of the pairs its own": {},
}
OCCURRENCES = (0, 1, 4, 16)  # in the pairs: 0, 1 to 3, 4 to 15, 16 and more


def tasks() -> list[dict[str, Any]]:
    """Return all combinations of an arm and a seed."""
    return [{"arm": arm, "seed": seed} for seed in range(SEEDS) for arm in ARMS]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train one arm once.

    Returns:
        exact `gap`, `reward` (logits) and `kl` (nats) of the policy, and for each entry of
        `OCCURRENCES` the `shares` of its gap that responses with so many occurrences in the pairs
        have, and the `reference_shares` of the reference's; each sums to the gap.
    """
    arm, seed = task["arm"], task["seed"]
    change = dict(ARMS[arm])
    start, generator = reference(seed), make_generator(1_000 + seed)
    n = change.pop("pairs", PAIRS)
    pairs = collect_preferences(start, world(), BradleyTerryAnnotator(), n, generator)
    yardstick = Yardstick(world(), start, BETA)
    if arm.startswith("reward summed"):
        scores = token_sums(pairs, seed)
        policy = gibbs_policy(yardstick.ref_logps, scores, BETA)
    elif arm.startswith("reward model"):
        model, _ = train_reward_model(pairs, REWARD_MODEL, seed, device="cpu")
        scores = response_scores(model, world())
        policy = gibbs_policy(yardstick.ref_logps, scores, BETA)
    elif arm.startswith("fine-tuning"):
        settings = replace(TUNING, **change)
        policy, _ = train_dpo(pairs, start, settings, seed, "cpu", start=start, yardstick=yardstick)
    elif arm.endswith("soft labels"):
        policy = soft_labels(pairs, start, seed)
    elif arm.endswith("its own"):
        online = OnlineDPOSettings(rounds=2, pairs=PAIRS // 2, dpo=replace(RESIDUAL, steps=200))
        annotator = BradleyTerryAnnotator()
        policy, _ = train_online_dpo(world(), start, annotator, online, seed, "cpu")
    else:
        policy, _ = train_dpo(pairs, start, RESIDUAL, seed, "cpu", yardstick=yardstick)
    logps = policy if isinstance(policy, Tensor) else response_logps(policy, world())
    measure = yardstick.measure(logps)
    return {
        "gap": measure.gap,
        "reward": measure.reward,
        "kl": measure.kl,
        "shares": shares(logps, yardstick, pairs),
        "reference_shares": shares(yardstick.ref_logps, yardstick, pairs),
    }


@cache
def world() -> WordMDP:
    """Return the word world with at most four words."""
    return WordMDP(max_length=4)


@cache
def reference(seed: int) -> PolicyModel:
    """Return the reference of a seed, trained on the CPU."""
    return train_reference(world(), REFERENCE, seed, device="cpu")[0]


def soft_labels(pairs: PreferenceDataset, start: PolicyModel, seed: int) -> ResidualPolicy:
    """Train on the probability of each answer in place of the answer: no label noise."""
    train, held_out = pairs.split(1 - RESIDUAL.held_out, seed)
    rewards = [
        world().response_rewards(train.prompts, responses)
        for responses in (train.chosen, train.rejected)
    ]
    p = torch.sigmoid(rewards[0] - rewards[1]).float()
    turned = PreferenceDataset(world(), train.prompts, train.rejected, train.chosen)
    both, weights = train.join(turned), torch.cat([p, 1 - p])
    generator = make_generator(seed)
    policy = ResidualPolicy(start, GPTConfig.for_world(world()), generator)
    with torch.no_grad():
        refs, held_out_refs = pair_logps(start, both), pair_logps(start, held_out)
    state = DPOState(policy, RESIDUAL, generator)
    while state.step < RESIDUAL.steps:
        dpo_iteration(state, both, refs, RESIDUAL, weights)
        if state.step % RESIDUAL.measure_every == 0:
            measure_held_out(state, held_out, held_out_refs, RESIDUAL)
    state.best.restore(policy)
    return policy


def token_sums(pairs: PreferenceDataset, seed: int) -> Tensor:
    """Fit a reward that is a sum over tokens, and return it for every response [X, Y].

    Its network is that of the residual policy, and so are the settings; only the softmax that makes
    a policy of it is missing.
    """
    train, held_out = pairs.split(1 - RESIDUAL.held_out, seed)
    generator = make_generator(seed)
    flat = torch.zeros(1, world().n_actions), torch.zeros(1, world().n_actions, dtype=torch.long)
    table = TablePolicy(world(), *flat)
    net = ResidualPolicy(table, GPTConfig.for_world(world()), generator)
    state = DPOState(net, RESIDUAL, generator)

    def rewards(policy: nn.Module, prompts: Tensor, responses: Tensor) -> Tensor:
        mask = world().response_mask(responses)
        actions = responses.masked_fill(~mask, 0)[..., None]
        return (policy(prompts, responses).gather(-1, actions)[..., 0] * mask).sum(1)

    def loss(policy: nn.Module, some: PreferenceDataset) -> Tensor:
        prompts, responses, index = some.unique_responses()
        return bradley_terry_loss(*rewards(policy, prompts, responses)[index].view(2, -1))

    while state.step < RESIDUAL.steps:
        rows = minibatch(len(train), RESIDUAL.batch_size, state.step, seed)
        linear_decay(state.optimizer, RESIDUAL.learning_rate, state.step, RESIDUAL.steps)
        state.optimizer.zero_grad()
        loss(net, train[rows]).backward()
        state.optimizer.step()
        state.average.update_parameters(net)
        state.step += 1
        if state.step % RESIDUAL.measure_every == 0:
            with torch.no_grad():
                state.best.offer(state.average.module, float(loss(state.average.module, held_out)))
    state.best.restore(net)
    with torch.no_grad():
        rows = world().all_responses.split(20_000)
        prompts = range(world().n_prompts)
        tables = [[rewards(net, torch.full_like(y[:, 0], x), y) for y in rows] for x in prompts]
    return torch.stack([torch.cat(table) for table in tables]).double()


def shares(logps: Tensor, yardstick: Yardstick, pairs: PreferenceDataset) -> list[float]:
    """Return the gap of a policy [X, Y] by how often a response occurs in the pairs.

    J* − J(π) = β KL(π ‖ π*) = β Σ_y (π log π/π* − π + π*), whose terms are never negative.
    """
    optimum = gibbs_policy(yardstick.ref_logps, yardstick.rewards, BETA)
    terms = logps.exp() * (logps - optimum) - logps.exp() + optimum.exp()
    counts = torch.zeros_like(terms)
    for responses in (pairs.chosen, pairs.rejected):
        place = pairs.prompts, world().response_index(responses)
        counts.index_put_(place, torch.ones(len(pairs)).double(), accumulate=True)
    scale = BETA / (yardstick.optimum - yardstick.reference_objective) / len(terms)
    bins = torch.bucketize(counts, torch.tensor(OCCURRENCES).double(), right=True) - 1
    return [float(terms[bins == i].sum()) * scale for i in range(len(OCCURRENCES))]


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw each arm's gap: a dot for each seed, the mean and its 95 % interval; and its shares."""
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11.0, 4.4), sharey=True)
    for row, arm in enumerate(ARMS):
        runs = [result for result in results if result["arm"] == arm]
        gaps = np.array([100 * result["gap"] for result in runs])
        left.plot(gaps, np.full(len(gaps), row) + 0.2, "o", color=COLOURS[5], markersize=4)
        half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else 0.0
        left.errorbar(gaps.mean(), row, xerr=half, fmt="D", color=COLOURS[0], capsize=4)
        parts = 100 * np.mean([result["shares"] for result in runs], axis=0)
        for i, part in enumerate(parts):
            right.barh(row, part, left=parts[:i].sum(), color=COLOURS[i])
    names = ["no pair", "1 to 3", "4 to 15", "16 or more"]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[i]) for i in range(len(names))]
    where = {"loc": "center right", "bbox_to_anchor": (1.0, 0.32)}
    right.legend(handles, names, title="occurrences in the pairs", fontsize=8, **where)
    left.set_yticks(range(len(ARMS)), ARMS)
    left.invert_yaxis()
    left.set(xlabel="gap to the optimum, %")
    right.set(xlabel="parts of the gap, %")
    return drawn
