"""Every loss of the course, each a pure function of tensors.

Log-probabilities are in nats, rewards in logits, masks are True (or 1) on real tokens. Masked
positions never affect values or gradients, even if they hold inf or NaN.
"""

from rlhf_toy.losses.policy import (
    aggregate_loss,
    approx_kl,
    gae,
    masked_mean,
    ppo_clip_loss,
    sequence_logps,
    token_logps,
    token_rewards,
    value_loss,
    weighted_mean,
    whiten,
)
from rlhf_toy.losses.preferences import (
    bradley_terry_loss,
    cdpo_loss,
    dpo_loss,
    implicit_reward,
    ipo_loss,
    preference_accuracy,
    preference_probability,
)

__all__ = [
    "aggregate_loss",
    "approx_kl",
    "bradley_terry_loss",
    "cdpo_loss",
    "dpo_loss",
    "gae",
    "implicit_reward",
    "ipo_loss",
    "masked_mean",
    "ppo_clip_loss",
    "preference_accuracy",
    "preference_probability",
    "sequence_logps",
    "token_logps",
    "token_rewards",
    "value_loss",
    "weighted_mean",
    "whiten",
]
