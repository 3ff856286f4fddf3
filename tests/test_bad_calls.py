"""The table of bad calls: each is refused in words that say what was given or what was expected.

For each function, class and settings field of the core there is one good call, which works, and a
list of what each argument must not be. Each row of the table replaces one argument of a good call.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from rlhf_toy import (
    annotators,
    best_of_n,
    bradley_terry,
    dpo,
    envs,
    exact,
    files,
    losses,
    models,
    plots,
    policy_gradient,
    ppo,
    preferences,
    reward_model,
    sampling,
    sft,
    training,
)
from rlhf_toy.checks import shown
from rlhf_toy.training import make_generator


class Bad(NamedTuple):
    """A value that must be refused."""

    value: Any
    error: type[Exception]
    words: str  # parts of the message, with … between them


class Row(NamedTuple):
    name: str  # of the function
    change: str  # the argument that is bad, and what it is
    call: Callable[[], Any]
    error: type[Exception]
    words: str


Kind = Callable[
    [str, Any], Iterator[Bad]
]  # the argument's name and good value → what it must not be

# What an argument must not be, by its kind


def tensor(name: str, good: Tensor) -> Iterator[Bad]:
    for value in (None, "text", [0.5]):
        yield Bad(value, TypeError, f"must be a tensor…, got {value!r}")
    for shape in ((7, 5, 4, 3), (0,)):
        yield Bad(torch.zeros(shape, dtype=good.dtype), ValueError, str(list(shape)))


def finite(name: str, good: Tensor) -> Iterator[Bad]:
    yield from tensor(name, good)
    for value in (math.nan, math.inf):
        bad = good.clone()
        bad.view(-1)[0] = value
        yield Bad(bad, ValueError, f"{name} must be finite, got NaN or infinity in 1 of")


def any_shape(kind: Kind) -> Kind:
    """A tensor that may have any shape."""

    def with_any_shape(name: str, good: Tensor) -> Iterator[Bad]:
        for bad in kind(name, good):
            if not isinstance(bad.value, Tensor) or bad.value.shape == good.shape:
                yield bad

    return with_any_shape


def log_distribution(name: str, good: Tensor) -> Iterator[Bad]:
    yield from tensor(name, good)
    for bad in (good + 1, good.exp(), good * math.nan):
        yield Bad(
            bad, ValueError, f"{name} must hold log-probabilities whose exponentials sum to 1"
        )


def probabilities(name: str, good: Tensor) -> Iterator[Bad]:
    yield from tensor(name, good)
    below_0 = torch.zeros_like(good)
    below_0[..., 0], below_0[..., 1] = 1.5, -0.5
    for bad in (good * 2, below_0, good * math.nan):
        yield Bad(bad, ValueError, f"{name} must hold probabilities, at least 0, that sum to 1")


def weights(name: str, good: Tensor) -> Iterator[Bad]:
    for value in ("text", [0.5]):
        yield Bad(value, TypeError, f"must be a tensor, got {value!r}")
    yield Bad(torch.ones(7), ValueError, "[7]")
    for value in (-1.0, 0.0, math.nan, math.inf):
        yield Bad(torch.full_like(good, value), ValueError, "at least 0 and not all 0")


def ids(limit: int, low: int = 0) -> Kind:
    def kind(name: str, good: Tensor) -> Iterator[Bad]:
        yield from tensor(name, good)
        yield Bad(good.double(), ValueError, f"{name} must be a nonempty int64 tensor")
        for value in (low - 1, limit):
            words = f"{name} must be ids from {low} to {limit - 1}, got ids from {value} to {value}"
            yield Bad(torch.full_like(good, value), ValueError, words)

    return kind


def any_ids(limit: int) -> Kind:
    """Ids of any shape."""

    def kind(name: str, good: Tensor) -> Iterator[Bad]:
        for bad in ids(limit)(name, good):
            if not isinstance(bad.value, Tensor) or bad.value.shape == good.shape:
                yield bad

    return kind


def mask(name: str, good: Tensor) -> Iterator[Bad]:
    yield from tensor(name, good)
    yield Bad(torch.zeros_like(good), ValueError, "real token")


def number(wanted: str, *wrong: float) -> Kind:
    def kind(name: str, good: float) -> Iterator[Bad]:
        for value in (*wrong, math.nan, math.inf, -math.inf):
            words = f"{name} must be a finite number{wanted and ' '}{wanted}, got {value!r}"
            yield Bad(value, ValueError, words)
        for value in ("0.5", True, [0.5]):
            yield Bad(value, TypeError, f"{name} must be a number, got {value!r}")

    return kind


def required(kind: Kind) -> Kind:
    """A number that cannot be None."""

    def with_none(name: str, good: Any) -> Iterator[Bad]:
        yield from kind(name, good)
        yield Bad(None, TypeError, f"{name} must be a number, got None")

    return with_none


any_number = required(number(""))
positive_or_none = number("above 0", 0, -1.0)
positive = required(positive_or_none)
not_negative = required(number("at least 0", -0.1))
unit = required(number("at least 0 and at most 1", -0.1, 1.1))
share = required(number("above 0 and below 1", 0.0, 1.0, -0.5))
below_1 = required(number("at least 0 and below 1", 1.0, -0.1))
below_half = required(number("at least 0 and below 0.5", 0.5, -0.1))


def integer(low: int = 1, high: int | None = None) -> Kind:
    limit = f"of at least {low}" if high is None else f"from {low} to {high}"

    def kind(name: str, good: int) -> Iterator[Bad]:
        for value in (low - 1, -7) if high is None else (low - 1, high + 1):
            yield Bad(value, ValueError, f"{name} must be an integer {limit}, got {value!r}")
        for value in (2.0, "2", None, True, [2]):
            yield Bad(value, TypeError, f"{name} must be an integer, got {value!r}")

    return kind


def or_none(kind: Kind) -> Kind:
    """What may also be None."""
    return lambda name, good: (bad for bad in kind(name, good) if bad.value is not None)


count, seed = integer(), integer(0, 2**63 - 1)


def choice(name: str, good: str) -> Iterator[Bad]:
    yield Bad("text", ValueError, f"{name} must be one of …{good!r}")
    for value in (None, 3):
        yield Bad(value, TypeError, f"got {value!r}")


def flag(name: str, good: bool) -> Iterator[Bad]:
    for value in ("no", None, 1):
        yield Bad(value, TypeError, f"{name} must be True or False, got {value!r}")


def group(name: str, good: Tensor) -> Iterator[Bad]:
    yield from finite(name, good)
    yield Bad(good[:, :1], ValueError, f"{name} must have at least two responses to each prompt")


def lengths(name: str, good: Tensor) -> Iterator[Bad]:
    yield from tensor(name, good)
    yield Bad(good - 1, ValueError, f"{name} must be at least 1, got 0")


def scalar(name: str, good: Tensor) -> Iterator[Bad]:
    for value in (None, "text", 0.5):
        yield Bad(value, TypeError, f"{name} must be a scalar tensor…, got {value!r}")
    for value in (torch.tensor([0.5, 0.5]), torch.tensor(-0.1), torch.tensor(math.nan)):
        yield Bad(value, ValueError, f"{name} must be one number of at least 0, got")


def generator(name: str, good: torch.Generator) -> Iterator[Bad]:
    for value in (None, 0, "0"):
        yield Bad(value, TypeError, "generator must be a torch.Generator, see make_generator, got")


def world(name: str, good: envs.TextWorld) -> Iterator[Bad]:
    for value in (None, "WordMDP", gym.make("FrozenLake-v1"), envs.WordMDP):
        yield Bad(value, TypeError, "one of the rlhf_toy…worlds, such as WordMDP(), got")


def toy_text(name: str, good: gym.Env) -> Iterator[Bad]:
    for value in (None, "FrozenLake-v1", gym.make("CartPole-v1")):
        yield Bad(value, TypeError, "expected an rlhf_toy/ world or a Gymnasium toy text, got")


def model(name: str, good: Any) -> Iterator[Bad]:
    for value in (None, "policy", 3.5):
        yield Bad(value, TypeError, f"PolicyModel…, got {value!r}")
    config = models.GPTConfig.for_world(envs.WordMDP(max_length=2), n_layer=1, n_embd=8)
    other = type(good) if isinstance(good, models.RewardModel) else models.PolicyModel
    yield Bad(other(config, make_generator(0)), ValueError, "was made for another world")


def annotator(name: str, good: Any) -> Iterator[Bad]:
    for value in (None, "me", annotators.BradleyTerryAnnotator):
        yield Bad(value, TypeError, "must be one such as BradleyTerryAnnotator(), got")


def instance(expected: str) -> Kind:
    def kind(name: str, good: Any) -> Iterator[Bad]:
        for value in (None, "text", 3):
            yield Bad(value, TypeError, f"{name} must be {expected}, got {value!r}")

    return kind


def settings(name: str, good: Any) -> Iterator[Bad]:
    wrong = sft.SFTSettings if type(good) is not sft.SFTSettings else ppo.PPOSettings
    for value in (None, "text", {"steps": 3}, wrong()):
        yield Bad(value, TypeError, f"settings must be {type(good).__name__}, got")


def device(name: str, good: str) -> Iterator[Bad]:
    for value in ("nowhere", "", 3.5, []):
        yield Bad(value, ValueError, f"device {value!r} cannot be used here")


def path(name: str, good: Any) -> Iterator[Bad]:
    for value in (None, 3.5, ["a"]):
        yield Bad(value, TypeError, "path")
    yield Bad("/nowhere/at/all.jsonl", ValueError, "/nowhere/at")


# Good arguments. Two prompts or rows, three tokens, four actions.

REAL = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]).bool()
B, BT = torch.tensor([0.5, -0.5]), torch.tensor([[0.1, -0.2, 0.3], [0.4, -0.5, 0.6]])
TOKENS, ONES = torch.tensor([[0, 3, 0], [2, 1, 3]]), torch.ones(2)
LOGITS = torch.arange(24.0).view(2, 3, 4).cos()
P = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)  # [X, Y]
LOGPS, REWARDS = P.log(), torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.0, 2.0]]).double()

# Two states, two actions with two outcomes each, two steps.
SUCCESSORS = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 0]]])
CHANCES = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(2, 2, 2).clone()
EARNED = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
REF = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log()
OUTCOMES = EARNED[..., None].expand(2, 2, 2).clone()
BY_STEP = REF.expand(2, 2, 2).clone()
EPISODES = exact.enumerate_episodes(SUCCESSORS, CHANCES, OUTCOMES, REF, 0, 2)

WORLD = envs.WordMDP(max_length=3)
SIZES = models.GPTConfig.for_world(WORLD, n_layer=1, n_head=2, n_embd=8)
POLICY, REWARD_MODEL = (
    kind(SIZES, make_generator(0)) for kind in (models.PolicyModel, models.RewardModel)
)
YARDSTICK = exact.Yardstick(WORLD, POLICY, 0.5)
TABLE = YARDSTICK.ref_logps
SLIPPERY = envs.SlipperyWordMDP(0.1, max_length=3)
ONE_ASPECT = {"aspects": {"room": {"good": 1.0}}, "importance": {}, "corpus_weights": {}}
LONG = envs.LongReview(dataclasses.replace(envs.STAYS, **ONE_ASPECT))
AUTOMATON = LONG.automaton()
S = len(AUTOMATON.successors)
UNIFORM = {"logits": 0 * AUTOMATON.ref_logps, "successors": AUTOMATON.successors}
LONG_POLICY = exact.table_reference(LONG)
LONG_YARDSTICK = exact.AutomatonYardstick(LONG, 0.5, samples=24)
BRADLEY_TERRY = annotators.BradleyTerryAnnotator()
PAIRS = preferences.collect_preferences(POLICY, WORLD, BRADLEY_TERRY, 40, make_generator(0))
N, TRUE = 40, REWARDS[0]
TABLE_POLICY = {
    "world": WORLD,
    "logits": torch.zeros(2, 11),
    "successors": torch.zeros(2, 11, dtype=torch.long),
}
TINY_PPO = ppo.PPOSettings(iterations=1, batch_size=8)
TINY_PG = policy_gradient.PolicyGradientSettings(iterations=1, batch_size=8)
TINY_ONLINE = dpo.OnlineDPOSettings(rounds=1, pairs=20, dpo=dpo.DPOSettings(steps=1))
ZERO = torch.zeros(1, dtype=torch.long)
TINY_SFT = sft.SFTSettings(corpus_size=4, steps=1)

# Functions of the core: what is called, with good arguments, and each argument's kind.
# What an argument's kind does not cover is in OTHERS below.

MASKED = {"values": (BT, tensor), "mask": (REAL, mask), "weights": (ONES, weights)}
TOKEN = {"logits": (LOGITS, tensor), "responses": (TOKENS, tensor), "mask": (REAL, tensor)}
REWARD_PAIRS = {"chosen_rewards": (B, tensor), "rejected_rewards": (B, tensor)}
LOGP_PAIRS = {
    f"{who}_{which}_logps": (B, tensor)
    for who in ("policy", "ref")
    for which in ("chosen", "rejected")
}
POLICY_PAIRS = {f"policy_{which}_logps": (B - 1, tensor) for which in ("chosen", "rejected")}
BY_LENGTH = {"chosen_lengths": (ONES, lengths), "rejected_lengths": (ONES, lengths)}
DPO = LOGP_PAIRS | {"beta": (0.5, positive), "weights": (ONES, weights)}
BANDIT = {"ref_logps": (LOGPS, tensor), "rewards": (REWARDS, tensor), "beta": (0.5, positive)}
MDP = {
    "successors": (SUCCESSORS, ids(2)),
    "probabilities": (CHANCES, probabilities),
    "rewards": (EARNED, finite),
    "ref_logps": (REF, log_distribution),
}
ENV = {"env": (WORLD, world)}
SOLVE = {"automaton": (AUTOMATON, instance("an Automaton such as LongReview().automaton()"))}
PAIR = {"first_rewards": (TRUE, finite), "second_rewards": (TRUE, finite)}
ASK = PAIR | {"generator": (make_generator(0), generator)}
RATE = {"rewards": (TRUE, any_shape(finite)), "generator": (make_generator(0), generator)}
TRAIN = {"seed": (0, seed), "device": ("cpu", device)}
DATA = {
    "world": (WORLD, world),
    "prompts": (PAIRS.prompts, ids(6)),
    "chosen": (PAIRS.chosen, ids(12)),
    "rejected": (PAIRS.rejected, ids(12)),
}
MEASURES = {"reference": YARDSTICK.measure(TABLE)}
RATER = annotators.Rater()
CROWD = annotators.Population([RATER, RATER])

GROUPS = {
    "advantage": (losses.rloo_advantages, instance("a function such as rloo_advantages")),
    "logps": (LOGPS, log_distribution),
    "rewards": (REWARDS, finite),
    "group_size": (2, count),
}
FUNCTIONS: dict[str, tuple[Callable, dict[str, tuple[Any, Kind]]]] = {
    "losses.masked_mean": (losses.masked_mean, MASKED),
    "losses.weighted_mean": (
        losses.weighted_mean,
        {"values": (B, tensor), "weights": (ONES, weights)},
    ),
    "losses.aggregate_loss": (losses.aggregate_loss, MASKED | {"aggregate": ("token", choice)}),
    "losses.whiten": (losses.whiten, MASKED),
    "losses.token_logps": (losses.token_logps, TOKEN),
    "losses.sequence_logps": (losses.sequence_logps, TOKEN),
    "losses.approx_kl": (
        losses.approx_kl,
        {"logps": (BT, tensor), "ref_logps": (BT, tensor), "estimator": ("k1", choice)},
    ),
    "losses.token_rewards": (
        losses.token_rewards,
        {
            "reward": (B, tensor),
            "logps": (BT, tensor),
            "ref_logps": (BT, tensor),
            "mask": (REAL, mask),
            "beta": (0.5, positive),
        },
    ),
    "losses.gae": (
        losses.gae,
        {
            "rewards": (BT, tensor),
            "values": (BT, tensor),
            "mask": (REAL, mask),
            "gamma": (1.0, unit),
            "lam": (0.9, unit),
        },
    ),
    "losses.rloo_advantages": (losses.rloo_advantages, {"rewards": (BT, group)}),
    "losses.grpo_advantages": (
        losses.grpo_advantages,
        {"rewards": (BT, group), "scale": (True, flag)},
    ),
    "losses.policy_gradient_loss": (
        losses.policy_gradient_loss,
        {
            "logps": (BT, tensor),
            "advantages": (BT, tensor),
            "mask": (REAL, mask),
            "aggregate": ("token", choice),
            "weights": (ONES, weights),
        },
    ),
    "losses.ppo_clip_loss": (
        losses.ppo_clip_loss,
        {
            "logps": (BT, tensor),
            "old_logps": (BT, tensor),
            "advantages": (BT, tensor),
            "mask": (REAL, mask),
            "cliprange": (0.2, positive),
            "aggregate": ("token", choice),
            "weights": (ONES, weights),
        },
    ),
    "losses.value_loss": (
        losses.value_loss,
        {
            "values": (BT, tensor),
            "old_values": (BT, tensor),
            "returns": (BT, tensor),
            "mask": (REAL, mask),
            "cliprange_value": (0.2, positive_or_none),
            "weights": (ONES, weights),
        },
    ),
    "losses.preference_probability": (
        losses.preference_probability,
        {"first_rewards": (B, tensor), "second_rewards": (B, tensor)},
    ),
    "losses.bradley_terry_loss": (
        losses.bradley_terry_loss,
        REWARD_PAIRS | {"weights": (ONES, weights)},
    ),
    "losses.preference_accuracy": (losses.preference_accuracy, REWARD_PAIRS),
    "losses.implicit_reward": (
        losses.implicit_reward,
        {"policy_logps": (B, tensor), "ref_logps": (B, tensor), "beta": (0.5, positive)},
    ),
    "losses.PairLogps": (
        lambda beta: losses.PairLogps(B, B, B, B, ONES, ONES).implicit_rewards(beta),
        {"beta": (0.5, positive)},
    ),
    "losses.PairLogps.kl": (
        losses.PairLogps(B, B, B, B, ONES, ONES).kl,
        {"weights": (ONES, weights)},
    ),
    "losses.dpo_loss": (losses.dpo_loss, DPO),
    "losses.ipo_loss": (losses.ipo_loss, DPO),
    "losses.cdpo_loss": (losses.cdpo_loss, DPO | {"label_smoothing": (0.1, below_half)}),
    "losses.rdpo_loss": (losses.rdpo_loss, DPO | {"label_smoothing": (0.1, below_half)}),
    "losses.chi_po_loss": (losses.chi_po_loss, DPO | {"max_reward": (10.0, positive)}),
    "losses.kto_loss": (
        losses.kto_loss,
        DPO
        | {
            "kl": (torch.tensor(0.5), scalar),
            "desirable_weight": (1.0, positive),
            "undesirable_weight": (1.0, positive),
        },
    ),
    "losses.simpo_loss": (
        losses.simpo_loss,
        POLICY_PAIRS
        | BY_LENGTH
        | {"beta": (0.5, positive), "gamma": (0.5, not_negative), "weights": (ONES, weights)},
    ),
    "losses.orpo_loss": (
        losses.orpo_loss,
        POLICY_PAIRS | BY_LENGTH | {"beta": (0.5, positive), "weights": (ONES, weights)},
    ),
    "exact.kl_divergence": (
        exact.kl_divergence,
        {"logp": (LOGPS, tensor), "logq": (LOGPS, tensor)},
    ),
    "exact.log_partition": (exact.log_partition, BANDIT),
    "exact.gibbs_policy": (exact.gibbs_policy, BANDIT),
    "exact.expected_reward": (
        exact.expected_reward,
        {"logps": (LOGPS, tensor), "rewards": (REWARDS, tensor)},
    ),
    "exact.objective": (exact.objective, BANDIT | {"logps": (LOGPS, tensor)}),
    "exact.tabular_mdp": (exact.tabular_mdp, {"env": (gym.make("FrozenLake-v1"), toy_text)}),
    "exact.outcome_rewards": (
        exact.outcome_rewards,
        {"env": (gym.make("FrozenLake-v1"), toy_text)},
    ),
    "exact.soft_value_iteration": (
        exact.soft_value_iteration,
        MDP | {"beta": (0.5, positive), "horizon": (2, count)},
    ),
    "exact.soft_policy_evaluation": (
        exact.soft_policy_evaluation,
        MDP | {"logps": (BY_STEP, log_distribution), "beta": (0.5, positive)},
    ),
    "exact.n_states": (exact.n_states, {"world": (WORLD, world)}),
    "exact.response_logps": (exact.response_logps, {"policy": (POLICY, model)} | ENV),
    "exact.response_rewards": (exact.response_rewards, ENV),
    "exact.response_scores": (exact.response_scores, {"reward_model": (REWARD_MODEL, model)} | ENV),
    "exact.state_logps": (exact.state_logps, {"policy": (POLICY, model)} | ENV),
    "exact.enumerate_episodes": (
        exact.enumerate_episodes,
        MDP
        | {
            "rewards": (OUTCOMES, finite),
            "start": (0, integer(0, 1)),
            "horizon": (2, count),
            "record": ("actions", choice),
        },
    ),
    "exact.Episodes": (
        exact.Episodes,
        {
            "visits": (EPISODES.visits, tensor),
            "chances": (EPISODES.chances, tensor),
            "returns": (EPISODES.returns, finite),
        },
    ),
    "exact.implicit_rewards": (
        exact.implicit_rewards,
        {
            "logps": (BY_STEP, tensor),
            "ref_logps": (REF, tensor),
            "visits": (EPISODES.visits, ids(8, low=-1)),
            "beta": (0.5, positive),
        },
    ),
    "exact.population_loss": (
        exact.population_loss,
        {
            "scores": (EPISODES.weights, finite),
            "episodes": (EPISODES, instance("Episodes, see enumerate_episodes")),
        },
    ),
    "exact.population_dpo": (
        exact.population_dpo,
        {
            "episodes": (EPISODES, instance("Episodes, see enumerate_episodes")),
            "ref_logps": (REF, log_distribution),
            "beta": (0.5, positive),
        },
    ),
    "exact.population_rewards": (
        exact.population_rewards,
        {"episodes": (EPISODES, instance("Episodes, see enumerate_episodes"))},
    ),
    "exact.expected_advantages": (exact.expected_advantages, GROUPS),
    "exact.gradient_moments": (exact.gradient_moments, GROUPS),
    "exact.fixed_point": (
        exact.fixed_point,
        {
            "loss": (
                lambda logps: -exact.objective(logps, LOGPS, REWARDS, 0.5).mean(),
                instance("a function of log-probabilities [X, Y]"),
            ),
            "ref_logps": (LOGPS, log_distribution),
            "rewards": (REWARDS, finite),
            "beta": (0.5, positive),
            "start_logps": (LOGPS, or_none(log_distribution)),
        },
    ),
    "exact.all_pairs": (
        exact.all_pairs,
        {
            "logps": (LOGPS, tensor),
            "ref_logps": (LOGPS, tensor),
            "rewards": (REWARDS, tensor),
            "lengths": (torch.ones(3).double(), or_none(tensor)),
            "sampler_logps": (LOGPS, or_none(tensor)),
            "noise": (0.1, required(number("at least 0 and at most 0.5", -0.1, 0.6))),
        },
    ),
    "exact.response_token_logps": (
        exact.response_token_logps,
        {"logps": (LOGPS, tensor), "responses": (torch.eye(3).long(), tensor)},
    ),
    "exact.Yardstick": (
        exact.Yardstick,
        ENV | {"reference": (POLICY, model), "beta": (0.5, positive)},
    ),
    "exact.Yardstick.measure": (YARDSTICK.measure, {"policy": (POLICY, model)}),
    "exact.Yardstick.metrics": (YARDSTICK.metrics, {"policy": (POLICY, model)}),
    "exact.StochasticYardstick": (
        exact.StochasticYardstick,
        {"env": (SLIPPERY, world), "reference": (POLICY, model), "beta": (0.5, positive)},
    ),
    "exact.make_yardstick": (
        exact.make_yardstick,
        ENV | {"reference": (POLICY, model), "beta": (0.5, positive)},
    ),
    "envs.Automaton": (
        envs.Automaton,
        {
            "successors": (AUTOMATON.successors, ids(S)),
            "rewards": (AUTOMATON.rewards, finite),
            "ref_logps": (AUTOMATON.ref_logps, log_distribution),
            "final_rewards": (AUTOMATON.final_rewards, finite),
            "start": (0, integer(0, S - 1)),
            "horizon": (3, count),
        },
    ),
    "exact.automaton_optimum": (exact.automaton_optimum, SOLVE | {"beta": (0.5, positive)}),
    "exact.automaton_evaluation": (
        exact.automaton_evaluation,
        SOLVE | {"logps": (AUTOMATON.ref_logps, log_distribution)},
    ),
    "exact.automaton_frontier": (
        exact.automaton_frontier,
        SOLVE | {"betas": ([0.5], instance("a list or tuple of numbers"))},
    ),
    "exact.table_reference": (exact.table_reference, {"env": (LONG, world)}),
    "exact.AutomatonOptimum.sample": (
        exact.automaton_optimum(AUTOMATON, 0.5).sample,
        {"prompts": (ZERO, ids(12)), "generator": (make_generator(0), generator)},
    ),
    "exact.AutomatonYardstick": (
        exact.AutomatonYardstick,
        {
            "env": (LONG, world),
            "beta": (0.5, positive),
            "samples": (24, integer(24)),
            "seed": (0, seed),
        },
    ),
    "exact.AutomatonYardstick.measure": (LONG_YARDSTICK.measure, {"policy": (LONG_POLICY, model)}),
    "annotators.BradleyTerryAnnotator": (
        annotators.BradleyTerryAnnotator,
        {"temperature": (1.0, positive)},
    ),
    "annotators.NoisyAnnotator": (
        annotators.NoisyAnnotator,
        {"annotator": (BRADLEY_TERRY, annotator), "flip_probability": (0.1, unit)},
    ),
    "annotators.Rater": (
        annotators.Rater,
        {
            "offset": (5.0, any_number),
            "gain": (1.0, positive),
            "noise": (1.0, not_negative),
            "rounding": (1.0, required(number("at least 0 and at most 10", -0.5, 11.0))),
        },
    ),
    "annotators.prefer": (BRADLEY_TERRY.prefer, ASK),
    "annotators.preference_probability": (BRADLEY_TERRY.preference_probability, PAIR),
    "annotators.Rater.prefer": (RATER.prefer, ASK),
    "annotators.Rater.rate": (RATER.rate, RATE),
    "annotators.Population.prefer": (CROWD.prefer, ASK),
    "annotators.Population.rate": (CROWD.rate, RATE),
    "annotators.preference_ceiling": (
        annotators.preference_ceiling,
        {"annotator": (BRADLEY_TERRY, annotator)} | PAIR,
    ),
    "preferences.PreferenceDataset": (preferences.PreferenceDataset, DATA),
    "preferences.join": (PAIRS.join, {"other": (PAIRS, instance("a PreferenceDataset"))}),
    "preferences.to": (PAIRS.to, {"device": ("cpu", device)}),
    "preferences.split": (PAIRS.split, {"fraction": (0.5, share), "seed": (0, seed)}),
    "preferences.collect_preferences": (
        preferences.collect_preferences,
        {
            "policy": (POLICY, model),
            "world": (WORLD, world),
            "annotator": (BRADLEY_TERRY, annotator),
            "n": (3, count),
            "generator": (make_generator(0), generator),
        },
    ),
    "bradley_terry.fit_bradley_terry": (
        lambda n_items, l2: bradley_terry.fit_bradley_terry([0, 1], [1, 0], n_items, l2),
        {"n_items": (2, count), "l2": (0.0, not_negative)},
    ),
    "best_of_n.pick_best_of_n": (
        best_of_n.pick_best_of_n,
        {"responses": (LOGITS, tensor), "scores": (BT, finite)},
    ),
    "best_of_n.best_of_n_logps": (
        best_of_n.best_of_n_logps,
        {"ref_logps": (LOGPS, log_distribution), "scores": (REWARDS, finite), "n": (2, count)},
    ),
    "best_of_n.best_of_n_kl_bound": (best_of_n.best_of_n_kl_bound, {"n": (2, count)}),
    "plots.frontier": (
        plots.frontier,
        {"yardstick": (YARDSTICK, instance("a Yardstick")), "max_kl": (0.5, any_number)},
    ),
    "plots.frontier_figure": (
        plots.frontier_figure,
        {
            "yardstick": (YARDSTICK, instance("a Yardstick")),
            "measures": (MEASURES, instance("a dict of names and measures")),
        },
    ),
    "training.make_generator": (make_generator, {"seed": (0, seed), "device": ("cpu", device)}),
    "training.pick_device": (training.pick_device, {"device": ("cpu", device)}),
    "sampling.sample": (
        sampling.sample,
        {
            "policy": (POLICY, model),
            "world": (WORLD, world),
            "prompts": (torch.tensor([0, 5]), ids(6)),
            "generator": (make_generator(0), generator),
        },
    ),
    "dpo.pair_logps": (
        dpo.pair_logps,
        {"policy": (POLICY, model), "preferences": (PAIRS, instance("a PreferenceDataset"))},
    ),
    "reward_model.pair_rewards": (
        reward_model.pair_rewards,
        {"model": (REWARD_MODEL, model), "preferences": (PAIRS, instance("a PreferenceDataset"))},
    ),
    "envs.WordMDP": (
        envs.WordMDP,
        {
            "spec": (envs.REVIEWS, instance("a WordSpec such as REVIEWS")),
            "max_length": (3, or_none(count)),
        },
    ),
    "envs.SlipperyWordMDP": (
        envs.SlipperyWordMDP,
        {
            "slip": (0.1, unit),
            "spec": (envs.REVIEWS, instance("a WordSpec such as REVIEWS")),
            "max_length": (3, or_none(count)),
        },
    ),
    "envs.PromptBandit": (
        envs.PromptBandit,
        {"spec": (envs.QUESTIONS, instance("a BanditSpec such as QUESTIONS"))},
    ),
    "envs.WordSpec": (
        partial(dataclasses.replace, envs.REVIEWS),
        {
            "repetition_cost": (1.0, not_negative),
            "grammar_cost": (1.0, not_negative),
            "contrast_cost": (1.0, not_negative),
            "silence_cost": (1.0, not_negative),
            "two_phrases": (0.5, unit),
            "intensified": (0.5, unit),
            "negated": (0.5, unit),
            "max_length": (3, count),
        },
    ),
    "envs.sample_prompts": (
        WORLD.sample_prompts,
        {"n": (2, count), "generator": (make_generator(0), generator)},
    ),
    "envs.sample_corpus": (
        WORLD.sample_corpus,
        {"n": (2, count), "generator": (make_generator(0), generator)},
    ),
    "envs.transition": (
        SLIPPERY.transition,
        {"actions": (torch.tensor([0, 10]), ids(11)), "uniforms": (ONES / 2, tensor)},
    ),
    "envs.prompt_tokens": (WORLD.prompt_tokens, {"prompts": (torch.tensor([0, 5]), any_ids(6))}),
    "models.ResidualPolicy": (
        models.ResidualPolicy,
        {
            "reference": (POLICY, model),
            "config": (SIZES, instance("a GPTConfig, see GPTConfig.for_world")),
            "generator": (make_generator(0), generator),
        },
    ),
    "sft.train_reference": (
        sft.train_reference,
        {"world": (WORLD, world), "settings": (TINY_SFT, settings)} | TRAIN,
    ),
    "reward_model.train_reward_model": (
        reward_model.train_reward_model,
        {
            "preferences": (PAIRS, instance("a PreferenceDataset")),
            "settings": (reward_model.RewardModelSettings(steps=1), settings),
        }
        | TRAIN,
    ),
    "dpo.train_dpo": (
        dpo.train_dpo,
        {
            "preferences": (PAIRS, instance("a PreferenceDataset")),
            "reference": (POLICY, model),
            "settings": (dpo.DPOSettings(steps=1), settings),
        }
        | TRAIN,
    ),
    "dpo.train_online_dpo": (
        dpo.train_online_dpo,
        {
            "world": (WORLD, world),
            "reference": (POLICY, model),
            "annotator": (BRADLEY_TERRY, annotator),
            "settings": (TINY_ONLINE, settings),
        }
        | TRAIN,
    ),
    "policy_gradient.train_policy_gradient": (
        lambda world, reference, **others: policy_gradient.train_policy_gradient(
            world, reference, WORLD.response_rewards, **others
        ),
        {
            "world": (WORLD, world),
            "reference": (POLICY, model),
            "settings": (TINY_PG, settings),
        }
        | TRAIN,
    ),
    "ppo.train_ppo": (
        lambda world, reference, **others: ppo.train_ppo(
            world, reference, WORLD.response_rewards, **others
        ),
        {
            "world": (WORLD, world),
            "reference": (POLICY, model),
            "settings": (TINY_PPO, settings),
        }
        | TRAIN,
    ),
    "best_of_n.sample_best_of_n": (
        best_of_n.sample_best_of_n,
        {
            "reference": (POLICY, model),
            "world": (WORLD, world),
            "reward": (WORLD.response_rewards, instance("a RewardModel or a function")),
            "prompts": (ZERO, ids(6)),
            "n": (2, count),
            "generator": (make_generator(0), generator),
        },
    ),
    "best_of_n.run_best_of_n": (
        best_of_n.run_best_of_n,
        {
            "world": (WORLD, world),
            "reference": (POLICY, model),
            "scores": (YARDSTICK.rewards, finite),
            "settings": (best_of_n.BestOfNSettings(ns=(1,), samples=2), settings),
        }
        | TRAIN,
    ),
}

SETTINGS: dict[type, dict[str, Kind]] = {
    sft.SFTSettings: {
        "corpus_size": count,
        "steps": count,
        "batch_size": count,
        "learning_rate": positive,
        "log_every": count,
    },
    reward_model.RewardModelSettings: {
        "steps": count,
        "batch_size": count,
        "learning_rate": positive,
        "weight_decay": not_negative,
        "ema_decay": below_1,
        "held_out": share,
        "measure_every": count,
    },
    ppo.PPOSettings: {
        "beta": positive,
        "iterations": count,
        "batch_size": count,
        "num_ppo_epochs": count,
        "num_mini_batches": count,
        "learning_rate": positive,
        "vf_coef": positive,
        "cliprange": positive,
        "cliprange_value": positive_or_none,
        "gamma": unit,
        "lam": unit,
        "max_grad_norm": positive,
        "use_critic": flag,
        "whiten_advantages": flag,
        "aggregate": choice,
        "target_kl": positive_or_none,
        "kl_horizon": count,
        "measure_every": count,
    },
    policy_gradient.PolicyGradientSettings: {
        "beta": positive,
        "advantage": choice,
        "kl": choice,
        "kl_level": choice,
        "aggregate": choice,
        "iterations": count,
        "batch_size": count,
        "num_generations": count,
        "num_mini_batches": count,
        "learning_rate": positive,
        "cliprange": positive,
        "max_grad_norm": positive,
        "measure_every": count,
    },
    dpo.DPOSettings: {
        "beta": positive,
        "loss": choice,
        "label_smoothing": below_half,
        "steps": count,
        "batch_size": count,
        "learning_rate": positive,
        "warmup_steps": integer(0),
        "weight_decay": not_negative,
        "ema_decay": below_1,
        "held_out": share,
        "early_stopping": flag,
        "measure_every": count,
        "simpo_gamma": not_negative,
        "desirable_weight": positive,
        "undesirable_weight": positive,
        "max_reward": positive,
    },
    dpo.OnlineDPOSettings: {
        "rounds": count,
        "pairs": count,
        "dpo": instance("DPOSettings"),
    },
    best_of_n.BestOfNSettings: {
        "beta": positive,
        "ns": lambda name, good: (Bad((n,), ValueError, "must be an integer") for n in (0, -1)),
        "samples": count,
    },
}
for settings_class, fields in SETTINGS.items():
    good = vars(settings_class())
    FUNCTIONS[f"{settings_class.__module__.split('.')[-1]}.{settings_class.__name__}"] = (
        settings_class,
        {name: (good[name], kind) for name, kind in fields.items()},
    )

# What no kind covers: calls that fit no other row, above all several arguments that do not fit.

OTHERS: list[tuple[str, str, Callable[[], Any], type[Exception], str]] = [
    *(
        (name, "no rows", lambda f=f, a=a: f(**empty(a)), ValueError, "[0")
        for name, (f, a) in FUNCTIONS.items()
        if name.startswith("losses.") and any(isinstance(g, Tensor) for g, _ in a.values())
    ),
    (
        "losses.token_rewards",
        "a mask with a gap",
        lambda: losses.token_rewards(B, BT, BT, REAL[:, [0, 2, 1]], 0.5),
        ValueError,
        "without gaps",
    ),
    (
        "losses.token_rewards",
        "a row without a token",
        lambda: losses.token_rewards(B, BT, BT, REAL & torch.tensor([[True], [False]]), 0.5),
        ValueError,
        "every row of the mask must be real tokens",
    ),
    *(
        (
            "losses.policy_gradient_loss",
            f"one advantage a row, mask {mask!r:.20}",
            lambda mask=mask: losses.policy_gradient_loss(BT, BT[:, :1], mask),
            error,
            words,
        )
        for mask, error, words in (
            (None, TypeError, "mask must be a tensor, got None"),
            (torch.tensor(1), ValueError, "one shape, got logps [2, 3], mask []"),
            (REAL[:, :2], ValueError, "one shape, got logps [2, 3], mask [2, 2]"),
        )
    ),
    (
        "losses.aggregate_loss",
        "a response without a token",
        lambda: losses.aggregate_loss(
            BT, REAL & torch.tensor([[True], [False]]), aggregate="response_mean"
        ),
        ValueError,
        "without a real token",
    ),
    (
        "exact.kl_divergence",
        "two shapes that do not broadcast",
        lambda: exact.kl_divergence(torch.zeros(2, 3), torch.zeros(4, 3)),
        ValueError,
        "have the same last dimension, got {'logp': [2, 3], 'logq': [4, 3]}",
    ),
    (
        "exact.kl_divergence",
        "numbers in place of rows",
        lambda: exact.kl_divergence(torch.tensor(0.0), torch.tensor(0.0)),
        ValueError,
        "[]",
    ),
    (
        "exact.soft_value_iteration",
        "a table [S, A, K] of rewards",
        lambda: exact.soft_value_iteration(SUCCESSORS, CHANCES, OUTCOMES, REF, 0.5, 2),
        ValueError,
        "rewards [S, A], ref_logps [S, A], got successors [2, 2, 2]",
    ),
    (
        "exact.soft_policy_evaluation",
        "one table for all steps",
        lambda: exact.soft_policy_evaluation(SUCCESSORS, CHANCES, EARNED, REF, REF, 0.5),
        ValueError,
        "logps [H, S, A], rewards [S, A], got logps [2, 2]",
    ),
    (
        "exact.response_logps",
        "a world that slips",
        lambda: exact.response_logps(POLICY, SLIPPERY),
        ValueError,
        "measure the policy with soft_policy_evaluation",
    ),
    (
        "exact.enumerate_episodes",
        "outcomes that are no actions",
        lambda: exact.enumerate_episodes(
            SUCCESSORS[..., :1], CHANCES[..., :1] * 4, OUTCOMES[..., :1], REF, 0, 2, "outcomes"
        ),
        ValueError,
        "only where K = A, got 1 and 2",
    ),
    *(
        (
            "exact.Episodes",
            what,
            lambda c=c: exact.Episodes(EPISODES.visits, c, EPISODES.returns),
            ValueError,
            words,
        )
        for what, c, words in (
            ("chances of 2", EPISODES.chances * 2, "chances must hold probabilities"),
            ("NaN chances", EPISODES.chances * math.nan, "chances must hold probabilities"),
            ("other records", EPISODES.chances[:-1], "visits [N, H], chances [N, R], returns [R]"),
        )
    ),
    (
        "exact.population_dpo",
        "a reference that excludes an action",
        lambda: exact.population_dpo(EPISODES, torch.tensor([[0.0, -math.inf]] * 2), 0.5),
        ValueError,
        "ref_logps must be finite",
    ),
    (
        "exact.population_dpo",
        "other tables",
        lambda: exact.population_dpo(EPISODES, REF[:1], 0.5),
        ValueError,
        "the records do not belong to tables [H, S, A] = [2, 1, 2]",
    ),
    *(
        (
            "exact.population_dpo",
            f"seed {seed!r}",
            lambda seed=seed: exact.population_dpo(EPISODES, REF, 0.5, seed),
            error,
            words,
        )
        for seed, error, words in (
            (-1, ValueError, "seed must be an integer of at least 0, got -1"),
            (0.5, TypeError, "seed must be an integer, got 0.5"),
            ("0", TypeError, "seed must be an integer, got '0'"),
        )
    ),
    *(
        (
            "exact.Yardstick.measure",
            what,
            lambda table=table: YARDSTICK.measure(table),
            ValueError,
            words,
        )
        for what, table, words in (
            ("one row", TABLE[0], f"have one shape, got log_probabilities {list(TABLE[0].shape)}"),
            ("unnormalised", TABLE + 1, "sum to 1"),
            ("probabilities", TABLE.exp(), "sum to 1"),
            ("NaN", TABLE * math.nan, "sum to 1"),
        )
    ),
    *(
        (
            "annotators.Population",
            what,
            lambda members=members, w=w: annotators.Population(members, w),
            error,
            words,
        )
        for what, members, w, error, words in (
            ("None", None, None, TypeError, "annotators must be a list of annotators, got None"),
            ("nobody", [], None, ValueError, "annotators must have at least one member"),
            ("text", "ab", None, TypeError, "must be one such as BradleyTerryAnnotator(), got 'a'"),
            ("a class", [annotators.Rater], None, TypeError, "BradleyTerryAnnotator(), got <class"),
            (
                "a weight too many",
                [RATER],
                [1, 2],
                ValueError,
                "weights must be 1 numbers, one for",
            ),
            ("all weights 0", [RATER], [0.0], ValueError, "not all 0, got [0.0]"),
            (
                "a negative weight",
                [RATER],
                [-1],
                ValueError,
                "every weight must be a finite number",
            ),
            ("a NaN weight", [RATER], [math.nan], ValueError, "at least 0, got nan"),
            ("weights as text", [RATER], "1", TypeError, "every weight must be a number, got '1'"),
            (
                "one weight",
                [RATER],
                1.0,
                TypeError,
                "weights must be a list of numbers or None, got 1.0",
            ),
        )
    ),
    (
        "annotators.Population.rate",
        "no rewards",
        lambda: CROWD.rate(TRUE[:0], make_generator(0)),
        ValueError,
        "there must be at least one entry, got rewards [0]",
    ),
    (
        "annotators.Population.rate",
        "a member without a scale",
        lambda: annotators.Population([BRADLEY_TERRY]).rate(TRUE, make_generator(0)),
        TypeError,
        "every member must be a Rater, as only raters can rate, got BradleyTerryAnnotator",
    ),
    (
        "preferences.PreferenceDataset",
        "responses of another length",
        lambda: preferences.PreferenceDataset(
            WORLD, PAIRS.prompts, PAIRS.chosen[:, :2], PAIRS.rejected[:, :2]
        ),
        ValueError,
        "chosen [N, T], rejected [N, T], T = 3, got prompts [40], chosen [40, 2]",
    ),
    (
        "preferences.PreferenceDataset",
        "a pad token before the end",
        lambda: preferences.PreferenceDataset(
            WORLD, torch.zeros(1).long(), torch.tensor([[0, 11, 10]]), torch.tensor([[0, 1, 2]])
        ),
        ValueError,
        "chosen has a pad token before its response has ended",
    ),
    *(
        ("preferences.__getitem__", what, lambda rows=rows: PAIRS[rows], error, words)
        for what, rows, error, words in (
            (
                "a number",
                3,
                TypeError,
                "rows must be a slice, a mask or a tensor of indices, got 3",
            ),
            ("a list", [0, 1], TypeError, "rows must be a slice, a mask or a tensor of indices"),
            ("no rows", slice(3, 3), ValueError, "prompts [0]"),
            ("a row too far", torch.tensor([N]), ValueError, "rows must be ids from -40 to 39"),
            ("floats", torch.zeros(2), ValueError, "rows must be a nonempty int64 tensor"),
            ("a short mask", torch.ones(3).bool(), ValueError, "prompts [40], rows [3]"),
            ("an empty mask", torch.zeros(N).bool(), ValueError, "prompts [0]"),
        )
    ),
    (
        "preferences.join",
        "pairs of another world",
        lambda: PAIRS.join(other_world_pairs()),
        ValueError,
        "the pairs are from another world, with fingerprint",
    ),
    (
        "preferences.split",
        "a part without pairs",
        lambda: PAIRS.split(0.001, 0),
        ValueError,
        "40 pairs are too few to split off 0.001 of them",
    ),
    *(
        (
            "preferences.load",
            f"path {p!r}",
            lambda p=p: preferences.PreferenceDataset.load(p, WORLD),
            error,
            words,
        )
        for p, error, words in (
            (None, TypeError, "path must be a path, got None"),
            (3, TypeError, "path must be a path, got 3"),
            ("/", ValueError, "/ is a folder, expected a file in JSON Lines"),
            ("/dev/null", ValueError, "/dev/null:1: the file is empty, expected one pair"),
            ("/nowhere.jsonl", FileNotFoundError, "No such file or directory: '/nowhere.jsonl'"),
        )
    ),
    *(
        (
            "preferences.load",
            f"world {w!r}",
            lambda w=w: preferences.PreferenceDataset.load("/", w),
            TypeError,
            "one of the rlhf_toy…worlds",
        )
        for w in (None, "WordMDP")
    ),
    *(
        ("preferences.save", f"path {p!r}", lambda p=p: PAIRS.save(p), error, words)
        for p, error, words in (
            (None, TypeError, "None"),
            ("/nowhere/at/all", ValueError, "/nowhere/at"),
        )
    ),
    *(
        (
            "bradley_terry.fit_bradley_terry",
            what,
            lambda w=w, lost=lost: bradley_terry.fit_bradley_terry(w, lost, 2),
            error,
            words,
        )
        for what, w, lost, error, words in (
            (
                "None",
                None,
                [0],
                ValueError,
                "lists of one length, at least 1, got shapes () and (1,)",
            ),
            (
                "no comparison",
                [],
                [],
                ValueError,
                "lists of one length, at least 1, got shapes (0,)",
            ),
            ("more winners", [0, 1], [1], ValueError, "got shapes (2,) and (1,)"),
            ("ragged", [[0], [0, 1]], [0, 1], ValueError, "must be lists of item indices"),
            (
                "text",
                ["a"],
                [0],
                TypeError,
                "winners and losers must be integers, got ['a'] and [0]",
            ),
            ("floats", [0.0], [1.0], TypeError, "winners and losers must be integers, got [0.0]"),
            ("True", [True], [0], TypeError, "winners and losers must be integers, got [True]"),
            ("item 2 of 2", [2], [0], ValueError, "must be ids from 0 to 1, got ids from 0 to 2"),
            ("item -1", [-1], [0], ValueError, "must be ids from 0 to 1, got ids from -1 to 0"),
            ("one always wins", [0], [1], ValueError, "no finite maximum-likelihood value"),
        )
    ),
    *(
        (
            "plots.frontier_figure",
            what,
            lambda m=m: plots.frontier_figure(YARDSTICK, m),
            error,
            words,
        )
        for what, m, error, words in (
            ("no policy", {}, ValueError, "measures must have at least one policy, got an empty"),
            ("a number", {"ppo": 0.3}, TypeError, "measures['ppo'] must be a Measure"),
            (
                "a list",
                [YARDSTICK],
                TypeError,
                "measures must be a dict of names and measures, got [",
            ),
            (
                "a NaN",
                {"ppo": exact.Measure(0.0, math.nan, 0.0, 0.0)},
                ValueError,
                "the KL of 'ppo' must be a finite number, got nan",
            ),
        )
    ),
    *(
        (
            "models.TablePolicy",
            str([f"{name} {shown(value)}" for name, value in tables.items()]),
            lambda tables=tables: models.TablePolicy(**TABLE_POLICY | tables),
            error,
            words,
        )
        for tables, error, words in (
            ({"world": None}, TypeError, "one of the rlhf_toy…worlds…got None"),
            ({"logits": None}, TypeError, "logits must be a tensor, got None"),
            ({"logits": torch.zeros(2, 10)}, ValueError, "X = 6, A = 11, got logits [2, 10]"),
            ({"logits": torch.full((2, 11), -math.inf)}, ValueError, "logits must be finite"),
            ({"successors": [0]}, TypeError, "successors must be a tensor, got [0]"),
            ({"successors": torch.ones(2, 11)}, ValueError, "must be a nonempty int64 tensor"),
            ({"successors": torch.full((2, 11), 2)}, ValueError, "ids from 0 to 1, got ids from 2"),
            (
                {"start": torch.tensor([0])},
                ValueError,
                "start [X], X = 6, A = 11…start [1]",
            ),
            ({"start": torch.full((6,), -1)}, ValueError, "ids from 0 to 1, got ids from -1"),
        )
    ),
    *(
        (
            "sft.train_reference",
            f"checkpoint {p!r}",
            lambda p=p: sft.train_reference(WORLD, TINY_SFT, device="cpu", checkpoint=p),
            error,
            words,
        )
        for p, error, words in (
            (3.5, TypeError, "path, got 3.5"),
            ("/", ValueError, "/"),
            ("/nowhere/at/all", ValueError, "/nowhere/at"),
            ("/dev/null", ValueError, "/dev/null"),
        )
    ),
    *(
        (
            "ppo.train_ppo",
            f"{name} {value!r:.20}",
            lambda others={name: value}: ppo.train_ppo(
                **{"world": WORLD, "reference": POLICY, "reward": WORLD.response_rewards}
                | {"settings": TINY_PPO, "device": "cpu"}
                | others
            ),
            TypeError,
            words,
        )
        for name, value, words in (
            ("reward", None, "reward must be a RewardModel or a function…got None"),
            ("start", "text", "start must be a PolicyModel…got 'text'"),
            ("start", models.TablePolicy(**TABLE_POLICY), "start must be a PolicyModel…Table"),
        )
    ),
    (
        "ppo.PPOSettings",
        "batches that do not divide",
        lambda: ppo.PPOSettings(batch_size=10, num_mini_batches=4),
        ValueError,
        "batch_size 10 must be a multiple of num_mini_batches 4",
    ),
    *(
        (
            "dpo.DPOSettings",
            what,
            lambda f=f: dpo.DPOSettings(**f),
            ValueError,
            "label_smoothing must be above 0 for the losses 'cdpo' and 'rdpo', and 0 for any other",
        )
        for what, f in (
            ("smoothing without cdpo", {"label_smoothing": 0.1}),
            ("cdpo without smoothing", {"loss": "cdpo"}),
            ("rdpo without smoothing", {"loss": "rdpo"}),
        )
    ),
    *(
        (
            "policy_gradient.PolicyGradientSettings",
            str(f),
            lambda f=f: policy_gradient.PolicyGradientSettings(**{"batch_size": 8} | f),
            ValueError,
            words,
        )
        for f, words in (
            ({"num_generations": 3}, "batch_size 8 must be a multiple of num_generations 3"),
            ({"num_mini_batches": 3}, "batch_size 8 must be a multiple of num_mini_batches 3"),
            ({"num_generations": 1}, "at least two responses to each prompt, got 1"),
        )
    ),
    *(
        (
            "best_of_n.BestOfNSettings",
            f"ns {ns!r}",
            lambda ns=ns: best_of_n.BestOfNSettings(ns=ns),
            error,
            words,
        )
        for ns, error, words in (
            ((), ValueError, "ns must name at least one n"),
            ((2.0,), TypeError, "every n must be an integer, got 2.0"),
            (("2",), TypeError, "every n must be an integer, got '2'"),
        )
    ),
    *(
        (
            "best_of_n.run_best_of_n",
            f"scores {list(scores.shape)}",
            lambda scores=scores: best_of_n.run_best_of_n(WORLD, POLICY, scores, device="cpu"),
            ValueError,
            "ref_logps [X, Y], scores [X, Y]",
        )
        for scores in (YARDSTICK.rewards[0], YARDSTICK.rewards[:, 1:], YARDSTICK.rewards[:1])
    ),
    *(
        (
            "ppo.train_ppo",
            f"reward {what}",
            lambda reward=reward: ppo.train_ppo(WORLD, POLICY, reward, TINY_PPO, device="cpu"),
            ValueError,
            words,
        )
        for what, reward, words in (
            ("NaN", lambda x, y: x * math.nan, "the reward function returned NaN or inf"),
            ("a number", lambda x, y: 1.0, "must return one number for each of 8 responses"),
            ("two columns", lambda x, y: torch.zeros(len(x), 2), "got a tensor [8, 2]"),
        )
    ),
    *(
        (
            "files.atomic_file",
            f"path {p!r}",
            lambda p=p: files.atomic_file(p).__enter__(),
            error,
            words,
        )
        for p, error, words in (
            (None, TypeError, "None"),
            (3.5, TypeError, "path, got 3.5"),
            ("/nowhere/at/all", ValueError, "/nowhere/at"),
        )
    ),
    *(
        (
            f"envs.{kind.__name__}",
            "render_mode",
            lambda kind=kind: kind(render_mode="human"),
            ValueError,
            "'human'",
        )
        for kind in (envs.PromptBandit, envs.WordMDP, envs.SlipperyWordMDP)
    ),
    *(
        ("envs.prompt_index", f"prompt {p!r}", lambda p=p: WORLD.prompt_index(p), error, words)
        for p, error, words in (
            ("opera", ValueError, "unknown prompt 'opera'; the prompts are ['film', 'concert'"),
            (None, TypeError, "prompt must be a text, got None"),
            (3, TypeError, "prompt must be a text, got 3"),
        )
    ),
    *(
        ("envs.encode", f"text {text!r}", lambda text=text: WORLD.encode(text), error, words)
        for text, error, words in (
            ("nice", ValueError, "unknown word 'nice'; the words are ['good', 'great'"),
            ("bad bad bad bad", ValueError, "4 words; a response has at most 3"),
            (None, TypeError, "text must be a text, got None"),
            (["bad"], TypeError, "text must be a text, got ['bad']"),
        )
    ),
    *(
        ("envs.encode_words", f"words {w!r}", lambda w=w: WORLD.encode_words(w), error, words)
        for w, error, words in (
            ("bad", TypeError, "words must be a list of words, got 'bad'"),
            ([3], ValueError, "unknown word 3"),
        )
    ),
    *(
        ("envs.decode", f"response {shown(r)}", lambda r=r: WORLD.decode(r), error, words)
        for r, error, words in (
            (None, TypeError, "got None"),
            (torch.tensor([0, 1]), ValueError, "must be a row of 3 tokens, got a tensor [2]"),
            (torch.tensor([[0, 1, 2]]), ValueError, "got a tensor [1, 3]"),
            (torch.tensor([-1, -1, -1]), ValueError, "ids from 0 to 11, got ids from -1 to -1"),
        )
    ),
    *(
        (f"envs.{f.__name__}", f"responses {shown(r)}", lambda f=f, r=r: f(ZERO, r), error, words)
        for f in (WORLD.response_rewards, lambda prompts, r: WORLD.response_index(r))
        for r, error, words in (
            (None, TypeError, "got None"),
            (torch.tensor([[0, 1]]), ValueError, "must be a row of 3 tokens, got a tensor [1, 2]"),
            (torch.tensor([[0, 1, 99]]), ValueError, "ids from 0 to 11, got ids from 0 to 99"),
            (torch.tensor([[0.0, 1, 2]]), ValueError, "must be a nonempty int64 tensor"),
            (torch.tensor([[11, 1, 2]]), ValueError, "pad token 11"),
        )
    ),
    *(
        (
            "envs.response_rewards",
            f"prompts {shown(prompts)}",
            lambda prompts=prompts: WORLD.response_rewards(prompts, torch.tensor([[0, 1, 2]])),
            error,
            words,
        )
        for prompts, error, words in (
            ([0], TypeError, "prompts must be a tensor, got [0]"),
            (ZERO - 1, ValueError, "prompts must be ids from 0 to 5, got ids from -1 to -1"),
            (ZERO.repeat(2), ValueError, "got 2 prompts for 1 responses"),
        )
    ),
    *(
        (
            "envs.reset",
            f"prompt {x!r}",
            lambda x=x: WORLD.reset(options={"prompt": x}),
            ValueError,
            words,
        )
        for x, words in (
            (6, "prompt must be 0 … 5, got 6"),
            (-1, "prompt must be 0 … 5, got -1"),
            ("opera", "unknown prompt 'opera'"),
        )
    ),
    *(
        (
            "envs.step",
            f"action {a!r}",
            lambda a=a: started().step(a),
            ValueError,
            "action must be 0",
        )
        for a in (-1, 11, None, "good", 1.5)
    ),
    (
        "envs.step",
        "before reset",
        lambda: envs.WordMDP().step(0),
        ValueError,
        "call reset() first",
    ),
    *(
        ("envs.WordSpec", f"{name} {v!r:.30}", lambda n=name, v=v: word_spec(n, v), error, words)
        for name, v, error, words in (
            ("prompts", None, TypeError, "prompts must be a tuple or list of texts, got None"),
            ("prompts", (), ValueError, "prompts must hold at least one text"),
            ("prompts", ("film", "film"), ValueError, "'film' is empty or given twice"),
            ("adjectives", ["good"], TypeError, "adjectives must be a mapping such as a dict"),
            (
                "adjectives",
                {"good": "1"},
                TypeError,
                "adjectives['good'] must be a number, got '1'",
            ),
            ("adjectives", {"good": math.nan}, ValueError, "must be a finite number, got nan"),
            ("adjectives", {"so so": 1}, ValueError, "must not contain blanks, got ('so so'"),
            ("adjectives", {"very": 1}, ValueError, "'very' is empty or given twice"),
            ("intensifiers", {"very": 0}, ValueError, "must be a finite number above 0, got 0"),
            ("negations", {"not": 1}, ValueError, "must be a finite number below 0, got 1"),
            ("conjunctions", {"and": 2}, ValueError, "['and'] must be -1, 0 or 1, got 2.0"),
            ("conjunctions", {"and": 0.5}, ValueError, "['and'] must be -1, 0 or 1, got 0.5"),
            (
                "prompt_taste",
                {"opera": {}},
                ValueError,
                "of prompt_taste must be one of 'film'…got 'opera'",
            ),
            ("prompt_taste", {"film": {"nice": 1}}, ValueError, "must be one of 'good'…got 'nice'"),
            ("corpus_weights", {"good": 0}, ValueError, "must be a finite number above 0, got 0"),
            (
                "grammar",
                {"start": ("end", "verb")},
                ValueError,
                "must be one of 'adjectives'…got 'verb'",
            ),
            ("grammar", {"start": ("adjectives",)}, ValueError, "must lead from 'start' to 'end'"),
        )
    ),
    (
        "exact.automaton_frontier",
        "no beta",
        lambda: exact.automaton_frontier(AUTOMATON, ()),
        ValueError,
        "betas must hold at least one number",
    ),
    (
        "exact.make_yardstick",
        "another reference",
        lambda: exact.make_yardstick(LONG, models.TablePolicy(LONG, **UNIFORM), 0.5),
        ValueError,
        "the reference in a LongReview must be table_reference(world)",
    ),
    (
        "envs.response_index",
        "too many responses",
        lambda: LONG.response_index(torch.zeros(1, 32).long()),
        ValueError,
        "responses to a prompt are too many to enumerate (at most 1,000,000 are possible)",
    ),
    (
        "envs.LongReview",
        "spec",
        lambda: envs.LongReview(envs.REVIEWS),
        TypeError,
        "spec must be a LongSpec such as STAYS, got WordSpec",
    ),
    *(
        ("envs.BanditSpec", f"{name} {v!r}", lambda n=name, v=v: bandit_spec(n, v), error, words)
        for name, v, error, words in (
            ("prompts", "a", TypeError, "prompts must be a tuple or list of texts, got 'a'"),
            ("responses", (), ValueError, "responses must hold at least one text"),
            ("taste", ((1,),), ValueError, "taste must have 1 rows…got ((1,),)"),
            ("taste", None, ValueError, "taste must have 1 rows…of 2 numbers, got None"),
            ("taste", (("1", 2),), TypeError, "each entry of taste must be a number, got '1'"),
            (
                "habits",
                ((math.nan, 2),),
                ValueError,
                "each entry of habits must be a finite number",
            ),
        )
    ),
    *(
        ("envs.unwrap", f"{w!r}", lambda w=w: envs.unwrap(w), TypeError, "rlhf_toy…worlds")
        for w in (None, "WordMDP", 3)
    ),
]


def empty(arguments: dict[str, tuple[Any, Kind]]) -> dict[str, Any]:
    """The arguments of a loss without any rows."""
    good = {name: value for name, (value, _) in arguments.items()}
    return {n: g[:0] if isinstance(g, Tensor) and g.dim() else g for n, g in good.items()}


def started() -> envs.WordMDP:
    world = envs.WordMDP(max_length=3)
    world.reset(seed=0)
    return world


def word_spec(name: str, value: Any) -> envs.WordSpec:
    return dataclasses.replace(envs.REVIEWS, **{name: value})


def bandit_spec(name: str, value: Any) -> envs.BanditSpec:
    good = {"prompts": ("a",), "responses": ("b", "c"), "taste": ((1, 2),), "habits": ((0, 0),)}
    return envs.BanditSpec(**good | {name: value})


def other_world_pairs() -> preferences.PreferenceDataset:
    longer = envs.WordMDP(max_length=4)
    end = torch.full((1, 4), longer.end_token)
    return preferences.PreferenceDataset(longer, torch.zeros(1).long(), end, end)


def rows() -> Iterator[Row]:
    for name, (function, arguments) in FUNCTIONS.items():
        good = {argument: value for argument, (value, _) in arguments.items()}
        for argument, (value, kind) in arguments.items():
            for bad in kind(argument, value):
                text = f"{argument} = {bad.value!r:.40}".replace("\n", " ")
                call = lambda f=function, a=good | {argument: bad.value}: f(**a)  # noqa: E731
                yield Row(name, text, call, bad.error, bad.words)
    yield from (Row(*row) for row in OTHERS)


ROWS = list(rows())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}: {row.change}")
def test_a_bad_call_is_refused_in_words(row):
    with pytest.raises(row.error) as refusal:
        row.call()
    message = str(refusal.value)
    assert all(part in message for part in row.words.split("…")), message
    assert len(message) < 500


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_good_call_works(name):
    function, arguments = FUNCTIONS[name]
    function(**{argument: value for argument, (value, _) in arguments.items()})


def test_the_table_is_long():
    assert len(ROWS) >= 300


@pytest.mark.parametrize("module", [losses, exact], ids=["losses", "exact"])
def test_every_public_name_has_rows(module):
    public = {
        name for name, value in vars(module).items() if not name.startswith("_") and callable(value)
    }
    results = {"AutomatonOptimum", "FixedPoint", "GradientMoments", "Measure"}  # nobody makes one
    missing = public - results - {row.name.split(".")[1] for row in ROWS}
    assert not missing, f"no bad call for {sorted(missing)}: add rows"


def test_every_argument_of_a_loss_has_rows():
    for name, (function, arguments) in FUNCTIONS.items():
        if name.startswith("losses."):
            assert set(arguments) == set(inspect.signature(function).parameters), name


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_settings_field_has_rows(kind):
    assert set(SETTINGS[kind]) == {field.name for field in dataclasses.fields(kind)}
