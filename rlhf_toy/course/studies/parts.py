"""What the studies share: the world, the reference, and the settings they start from.

All settings are written out in full. Otherwise a new default of a trainer would change what a study
measures.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from rlhf_toy.dpo import DPOSettings
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.ppo import PPOSettings
from rlhf_toy.reward_model import RewardModelSettings
from rlhf_toy.sft import SFTSettings, train_reference

MAX_LENGTH = 3  # words in a review, so that a run takes seconds
BETA = 0.5
REFERENCE = SFTSettings(
    corpus_size=12_000, steps=200, batch_size=256, learning_rate=3e-3, log_every=50
)
REWARD_MODEL = RewardModelSettings(
    steps=100,
    batch_size=512,
    learning_rate=3e-3,
    weight_decay=1.0,
    ema_decay=0.0,
    held_out=0.1,
    measure_every=25,
)
PPO = PPOSettings(
    beta=BETA,
    iterations=60,
    batch_size=256,
    num_ppo_epochs=1,
    num_mini_batches=4,
    learning_rate=1e-3,
    vf_coef=0.5,
    cliprange=0.2,
    cliprange_value=None,
    gamma=1.0,
    lam=0.95,
    max_grad_norm=1.0,
    use_critic=True,
    whiten_advantages=True,
    aggregate="token",
    target_kl=None,
    kl_horizon=10_000,
    measure_every=20,
)
DPO = DPOSettings(
    beta=BETA,
    loss="dpo",
    label_smoothing=0.0,
    steps=200,
    batch_size=512,
    learning_rate=5e-4,
    warmup_steps=100,
    weight_decay=0.01,
    ema_decay=0.0,
    held_out=0.1,
    early_stopping=True,
    measure_every=25,
    simpo_gamma=0.5,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    max_reward=10.0,
)
# Fields that a settings class got after the studies were run, as "Class.field", each with the value
# that does what the code did before the field existed. See `described`.
NEW_FIELDS: dict[str, Any] = {
    "DPOSettings.weight_decay": 0.01,
    "DPOSettings.ema_decay": 0.0,
    "DPOSettings.simpo_gamma": 0.5,
    "DPOSettings.desirable_weight": 1.0,
    "DPOSettings.undesirable_weight": 1.0,
    "DPOSettings.max_reward": 10.0,
    "RewardModelSettings.ema_decay": 0.0,
    "PPOSettings.target_kl": None,
    "PPOSettings.kl_horizon": 10_000,
}


@cache
def word_world() -> WordMDP:
    """Return the word world of all studies."""
    return WordMDP(max_length=MAX_LENGTH)


@cache
def reference(seed: int) -> PolicyModel:
    """Return the reference of a seed, trained on the CPU."""
    return train_reference(word_world(), REFERENCE, seed, device="cpu")[0]


@cache
def fingerprint() -> str:
    """Return a hex string that identifies the world, the reference's settings and its network."""
    world = word_world()
    text = repr(world.fingerprint) + described(REFERENCE) + described(GPTConfig.for_world(world))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(value: Any) -> str:
    """Return the text of a constant that a fingerprint digests: its repr, with one exception.

    All fields of a settings object count, stated or default, because a new default changes what a
    study measures. The exception is a field in `NEW_FIELDS` that has the value listed there: it is
    left out, so that results from before the field existed stay valid. The price is that a person
    decides whether this value does what the code did before. The fingerprint cannot see a wrong
    decision; `study NAME --recheck` can.
    """
    if not is_dataclass(value):
        return repr(value)
    kind = type(value).__qualname__
    items = [(field.name, getattr(value, field.name)) for field in fields(value)]
    kept = [(name, x) for name, x in items if NEW_FIELDS.get(f"{kind}.{name}", ...) != x]
    return f"{kind}({', '.join(f'{name}={x!r}' for name, x in kept)})"


def half_width(values: np.ndarray) -> np.ndarray:
    """Return half of the 95 % interval of the mean over S seeds, [S, …] → […]; 0 for one seed."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
