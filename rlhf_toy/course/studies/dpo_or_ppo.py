"""Eight ways from the same pairs to a policy, tuned alike: gaps, spreads and gradient noise.

The world is the word world with at most three words, so that a run takes seconds. All methods have
the same reference, the same 4,000 pairs and the same aim. Only online DPO asks for new comparisons,
of its own responses; in all it gets as many as the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy import dpo, exact, losses, policy_gradient, ppo, training
from rlhf_toy.annotators import BradleyTerryAnnotator
from rlhf_toy.course.studies import parts
from rlhf_toy.course.studies.parts import BETA, half_width, reference, word_world
from rlhf_toy.models import GPTConfig, ResidualPolicy, RewardModel, ValueModel
from rlhf_toy.plots import COLOUR
from rlhf_toy.policy_gradient import PolicyGradientSettings
from rlhf_toy.preferences import PreferenceDataset, collect_preferences
from rlhf_toy.reward_model import train_reward_model
from rlhf_toy.sampling import sample
from rlhf_toy.training import make_generator

SEEDS = 10
TUNING_SEEDS = (100, 101, 102)  # other references, pairs and networks than those of the race
PAIRS = 4_000
DATA_SETS, REPEATS = 6, 2  # of the part "one reference"
NOISE_SEEDS = 4
POWERS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of π/π_ref, see `path`
MINIBATCHES, MINIBATCH = 32, 512  # from which gradient noise is estimated

FIT = replace(parts.REWARD_MODEL, steps=150, ema_decay=0.99)
OFFLINE = replace(parts.DPO, steps=150, warmup_steps=0, ema_decay=0.99)
PPO = replace(parts.PPO, measure_every=parts.PPO.iterations)
RLOO = PolicyGradientSettings(
    beta=BETA, advantage="rloo", kl="k1_reward", kl_level="sequence", aggregate="sequence",
    iterations=60, batch_size=256, num_generations=4, num_mini_batches=4, learning_rate=1e-3,
    cliprange=0.2, max_grad_norm=1.0, measure_every=60,
)  # fmt: skip
GRPO = replace(RLOO, advantage="grpo", kl="k3_loss", kl_level="token", aggregate="response_mean")


def _grid(settings: Any, rates: tuple[float, ...], decays: tuple[float, ...]) -> list[Any]:
    """Settings with every pair of a learning rate and a weight decay."""
    pairs = [(rate, decay) for rate in rates for decay in decays]
    return [replace(settings, learning_rate=rate, weight_decay=decay) for rate, decay in pairs]


# Each pipeline may try four settings. RL needs a reward model first: two of it, two of the policy.
RATES, DECAYS, ROUND = (1e-3, 3e-3), (0.1, 1.0), replace(OFFLINE, steps=40, measure_every=20)
SETTINGS: dict[str, list[Any]] = {
    "gibbs": _grid(FIT, RATES, (1.0,)),
    "dpo": _grid(OFFLINE, RATES, DECAYS),
    "dpo, copied": _grid(OFFLINE, RATES, DECAYS),
    "dpo, fine-tuned": _grid(replace(OFFLINE, warmup_steps=50), (3e-4, 1e-3), (0.01, 1.0)),
    "online dpo": [
        dpo.OnlineDPOSettings(4, PAIRS // 4, rounds) for rounds in _grid(ROUND, RATES, DECAYS)
    ],
    "ppo": [replace(PPO, learning_rate=rate) for rate in RATES],
    "rloo": [replace(RLOO, learning_rate=rate) for rate in RATES],
    "grpo": [replace(GRPO, learning_rate=rate) for rate in RATES],
}
# What `chosen` finds in the tuning runs; everything else is measured with these settings.
PICKED = dict(zip(SETTINGS, (0, 2, 2, 3, 3, 0, 0, 0), strict=True))
SPREAD = ("gibbs", "dpo", "dpo, fine-tuned", "ppo")
NOISE = ("dpo", "dpo, fine-tuned", "ppo", "rloo")
LOOKS = {  # name in figures, colour, marker
    "gibbs": ("reward model, exact Gibbs", "learned reward", "o"),
    "dpo": ("DPO, fresh network beside π_ref", "dpo", "o"),
    "dpo, copied": ("DPO, copy of π_ref beside π_ref", "dpo", "*"),
    "dpo, fine-tuned": ("DPO, π_ref itself fine-tuned", "dpo", "^"),
    "online dpo": ("online DPO, new labels", "online dpo", "P"),
    "ppo": ("reward model, PPO", "ppo", "s"),
    "rloo": ("reward model, RLOO", "rloo", "D"),
    "grpo": ("reward model, GRPO", "grpo", "v"),
}


def tasks() -> list[dict[str, Any]]:
    """Return all runs: tuning, the race, trainings on one reference, and gradient noise."""
    every = [(method, i) for method in SETTINGS for i in range(len(SETTINGS[method]))]
    runs = [("tuning", *one, seed) for seed in TUNING_SEEDS for one in every]
    runs += [("race", *one, seed) for seed in range(SEEDS) for one in PICKED.items()]
    repeats = range(DATA_SETS * REPEATS)
    runs += [("one reference", name, PICKED[name], seed) for seed in repeats for name in SPREAD]
    runs += [("noise", name, PICKED[name], seed) for seed in range(NOISE_SEEDS) for name in NOISE]
    return [dict(zip(("part", "method", "setting", "seed"), run, strict=True)) for run in runs]


def seeds(task: dict[str, Any]) -> tuple[int, int, int]:
    """Return the seeds of the reference, of the pairs, and of the training."""
    seed = task["seed"]
    if task["part"] == "one reference":
        return 0, 200 + seed // REPEATS, 200 + seed
    return seed, seed, seed


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train once, and measure; or estimate gradient noise, see `gradient_noise`.

    Returns:
        exact `gap`, `reward` (logits) and `kl` (nats) of the policy; `path_kl` and `path_reward`,
        see `path`; `unseen`, the probability (mean over prompts) of responses in none of the
        pairs. In tuning also what a practitioner can see, see `visible`.
    """
    if task["part"] == "noise":
        return gradient_noise(task["method"], task["seed"])
    on, pairs, seed = seeds(task)
    logps, yardstick = learn(task["method"], task["setting"], on, pairs, seed), _yardstick(on)
    measure = yardstick.measure(logps)
    found = {"gap": measure.gap, "reward": measure.reward, "kl": measure.kl}
    found |= path(logps, yardstick) | {"unseen": unseen_mass(logps, _pairs(on, pairs))}
    return found | (visible(logps, on) if task["part"] == "tuning" else {})


def learn(method: str, setting: int, on: int, pairs: int, seed: int) -> Tensor:
    """Return the log-probabilities [X, Y] of the policy that a method makes of the pairs.

    `on`, `pairs` and `seed` are the seeds of the reference, of the pairs, and of the training.
    """
    world, start, yardstick = word_world(), reference(on), _yardstick(on)
    settings = SETTINGS[method][setting]
    common = {"seed": seed, "device": "cpu", "yardstick": yardstick}
    if method == "gibbs":
        model = _reward_model(on, pairs, seed, setting)
        return exact.gibbs_policy(yardstick.ref_logps, exact.response_scores(model, world), BETA)
    if method == "online dpo":
        common["annotator"] = BradleyTerryAnnotator()
        policy, _ = dpo.train_online_dpo(world, start, settings=settings, **common)
    elif method.startswith("dpo"):
        first = first_policy(method, on, make_generator(seed))
        policy, _ = dpo.train_dpo(_pairs(on, pairs), start, settings, start=first, **common)
    else:
        train = ppo.train_ppo if method == "ppo" else policy_gradient.train_policy_gradient
        model = _reward_model(on, pairs, seed, PICKED["gibbs"])
        policy, _ = train(world, start, model, settings, **common)
    return exact.response_logps(policy, world)


def first_policy(method: str, on: int, generator: torch.Generator) -> training.Trainable:
    """Return the policy that a kind of DPO starts from; all of them say what π_ref says."""
    world, start = word_world(), reference(on)
    if method == "dpo, fine-tuned":
        return start
    policy = ResidualPolicy(start, GPTConfig.for_world(world), generator)
    if method == "dpo, copied":  # the network's output is still 0, because its head is
        policy.body.load_state_dict(start.body.state_dict())
    return policy


def visible(logps: Tensor, on: int) -> dict[str, float]:
    """Return what a practitioner can see of a policy, by means of 4,000 further pairs.

    Returns:
        `pair_loss` (nats) and `pair_accuracy` of its implicit reward β log π/π_ref on these pairs,
        and `judged`: by how much it raises E[r̂] − β KL (logits), for the reward r̂ of a reward
        model that learned from them.
    """
    pairs, ref_logps = _pairs(on, 10_000 + on), _yardstick(on).ref_logps
    rewards = BETA * (logps - ref_logps)
    chosen, rejected = (
        rewards[pairs.prompts, pairs.world.response_index(responses)]
        for responses in (pairs.chosen, pairs.rejected)
    )
    judge = exact.response_scores(_reward_model(on, 10_000 + on, on, PICKED["gibbs"]), word_world())
    raised = exact.objective(logps, ref_logps, judge, BETA)
    raised -= exact.expected_reward(ref_logps, judge)
    return {
        "pair_loss": float(losses.bradley_terry_loss(chosen, rejected)),
        "pair_accuracy": float(losses.preference_accuracy(chosen, rejected)),
        "judged": float(raised.mean()),
    }


def path(logps: Tensor, yardstick: exact.Yardstick) -> dict[str, list[float]]:
    """Return KL and true reward of the policies ∝ π_ref (π/π_ref)^t for the t of `POWERS`.

    These are the Gibbs policies of the policy's implicit reward, for β/t.
    """
    mixed = [torch.lerp(yardstick.ref_logps, logps, t).log_softmax(-1) for t in POWERS]
    found = [yardstick.measure(policy) for policy in mixed]
    return {
        f"path_{name}": [round(getattr(m, name), 5) for m in found] for name in ("kl", "reward")
    }


def unseen_mass(logps: Tensor, preferences: PreferenceDataset) -> float:
    """Return the probability of responses in no pair, mean over prompts, from logps [X, Y]."""
    seen = torch.zeros(logps.shape, dtype=torch.bool)
    for responses in (preferences.chosen, preferences.rejected):
        seen[preferences.prompts, preferences.world.response_index(responses)] = True
    return float((logps.exp() * ~seen).sum(1).mean())


def gradient_noise(method: str, seed: int) -> dict[str, float]:
    """Estimate the noise of a method's gradient before training and half way through.

    Returns:
        `noise_start` and `noise_half`, the variance of the gradient of one pair or one response,
        summed over the network's weights; `signal_start` and `signal_half`, the squared length of
        its mean. Noise over signal is the number of pairs or responses whose mean gradient is as
        wrong as it is long. Both are unbiased, so a tiny signal can come out below 0.
    """
    state, step, loss = _trainer(method, seed)
    settings, found = SETTINGS[method][PICKED[method]], {}
    half = (settings.steps if method.startswith("dpo") else settings.iterations) // 2
    weights = [weight for weight in state.policy.parameters() if weight.requires_grad]
    for name, steps in (("start", 0), ("half", half)):
        for _ in range(steps):
            step()
        rows = [torch.autograd.grad(loss(), weights) for _ in range(MINIBATCHES)]
        gradients = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        variance = float(gradients.var(0).sum())  # of a minibatch's mean
        found[f"noise_{name}"] = MINIBATCH * variance
        found[f"signal_{name}"] = float(gradients.mean(0).square().sum()) - variance / MINIBATCHES
    return found


def _trainer(
    method: str, seed: int
) -> tuple[training.State, Callable[[], Any], Callable[[], Tensor]]:
    """A method's state, a function that does one iteration, and one for a minibatch's loss."""
    world, start, generator = word_world(), reference(seed), make_generator(seed)
    settings = SETTINGS[method][PICKED[method]]
    if method.startswith("dpo"):
        pairs, _ = _pairs(seed, seed).split(1 - settings.held_out, seed)
        ref_logps = dpo.pair_logps(start, pairs).detach()
        policy = training.trainable_copy(first_policy(method, seed, generator), world)
        state = dpo.DPOState(policy, settings, generator)

        def pair_loss() -> Tensor:
            rows = torch.randint(len(pairs), (MINIBATCH,), generator=generator)
            return dpo.preference_loss(policy, pairs[rows], ref_logps[:, rows], settings)[0]

        return state, lambda: dpo.dpo_iteration(state, pairs, ref_logps, settings), pair_loss

    model = _reward_model(seed, seed, seed, PICKED["gibbs"])
    policy = training.trainable_copy(start, world)
    extra, module, step = (), policy_gradient, policy_gradient.policy_gradient_iteration
    if method == "ppo":
        extra, module, step = (ValueModel(start.config, generator),), ppo, ppo.ppo_iteration
        extra[0].start_from(start)
    state_of = ppo.PPOState if extra else policy_gradient.PolicyGradientState
    state = state_of(policy, *extra, settings, generator)

    def sampled_loss() -> Tensor:
        G = 1 if extra else settings.num_generations
        prompts = world.sample_prompts(MINIBATCH // G, generator).repeat_interleave(G)
        rollout = sample(policy, world, prompts, generator)
        with torch.no_grad():
            scores = model(rollout.prompts, rollout.responses)
            ref_logps = start.token_logps(rollout.prompts, rollout.responses)
            batch = module.make_experience(rollout, scores, ref_logps, *extra, settings)
        if extra:
            return ppo.ppo_loss(policy, None, batch, settings)[0]
        logps = policy.token_logps(rollout.prompts, rollout.responses)
        return policy_gradient.experience_loss(logps, batch, settings)

    return state, lambda: step(state, world, start, model, settings), sampled_loss


@cache
def _yardstick(on: int) -> exact.Yardstick:
    return exact.Yardstick(word_world(), reference(on), BETA)


@cache
def _pairs(on: int, seed: int) -> PreferenceDataset:
    """Pairs of responses of the reference with the seed `on`."""
    annotator, generator = BradleyTerryAnnotator(), make_generator(1_000 + seed)
    return collect_preferences(reference(on), word_world(), annotator, PAIRS, generator)


@cache
def _reward_model(on: int, pairs: int, seed: int, setting: int) -> RewardModel:
    settings = SETTINGS["gibbs"][setting]
    return train_reward_model(_pairs(on, pairs), settings, seed, device="cpu")[0]


def chosen(results: list[dict[str, Any]], method: str, by: str | None = None) -> int:
    """Return the setting that a practitioner picks: the best mean over the tuning seeds.

    It has the lowest "pair_loss" or the highest "judged", as `by` says; by default "judged" for RL.
    """
    by = by or ("judged" if method in ("ppo", "rloo", "grpo") else "pair_loss")
    sign = 1 if by == "judged" else -1
    tried = range(len(SETTINGS[method]))
    found = [values(results, by, part="tuning", method=method, setting=i) for i in tried]
    return int(np.argmax([sign * seen.mean() for seen in found]))


def race(results: list[dict[str, Any]], method: str, name: str = "gap") -> np.ndarray:
    """Return a result of the race, one for each seed."""
    return values(results, name, part="race", method=method)


def values(results: list[dict[str, Any]], name: str, **which: Any) -> np.ndarray:
    """Return one result of all runs with these settings, in the order of the seeds."""
    runs = [run for run in results if all(run[key] == value for key, value in which.items())]
    return np.array([run[name] for run in sorted(runs, key=lambda run: run["seed"])])


def figure(results: list[dict[str, Any]]) -> Figure:
    """Draw every method's gap, and how much it is above the first method's, seed by seed."""
    drawn, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True)
    for row, (method, (_, colour, marker)) in enumerate(LOOKS.items()):
        gaps, style = 100 * race(results, method), {"color": COLOUR[colour]}
        for ax, shown in zip(axes, (gaps, gaps - 100 * race(results, "gibbs")), strict=True):
            ax.plot(shown, np.full(len(shown), row + 0.2), ".", alpha=0.5, **style)
            bar = {"xerr": half_width(shown), "fmt": marker, "capsize": 4}
            ax.errorbar(shown.mean(), row, **bar, **style)
    axes[0].set_yticks(range(len(LOOKS)), [name for name, _, _ in LOOKS.values()])
    axes[0].invert_yaxis()
    axes[0].set(xlabel="gap to the optimum, %", title="mean and 95 % interval")
    axes[1].axvline(0, color=COLOUR["reference"], linestyle=":")
    axes[1].set(xlabel="percentage points", title="difference to the first row, same seed")
    return drawn
