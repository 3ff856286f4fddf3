"""Every loss of the course, each a pure function of tensors.

Log-probabilities are in nats, rewards in logits, masks are True (or 1) on real tokens. Masked
positions never affect values or gradients, even if they hold inf or NaN.
"""

from rlhf_toy.losses.advantages import *
from rlhf_toy.losses.policy import *
from rlhf_toy.losses.preferences import *
