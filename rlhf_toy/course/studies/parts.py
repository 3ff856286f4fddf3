"""What the studies share: the world, the reference, and the settings they start from.

All settings are written out in full. Otherwise a new default of a trainer would change what a study
measures.
"""

from __future__ import annotations

from functools import cache

from rlhf_toy.checkpoints import digest
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
)


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
    return digest(word_world().fingerprint, REFERENCE, GPTConfig.for_world(word_world()))
