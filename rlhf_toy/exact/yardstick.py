"""Measuring policies against the exact optimum."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
from torch import Tensor

from rlhf_toy.envs import unwrap
from rlhf_toy.exact.bandit import expected_reward, kl_divergence, log_partition
from rlhf_toy.exact.enumeration import response_logps, response_rewards
from rlhf_toy.models import PolicyModel


@dataclass(frozen=True)
class Measure:
    """How good a policy is, exactly; means over the prompts."""

    reward: float  # E[r(x, y)], the true reward
    kl: float  # KL(π ‖ π_ref) of whole responses, in nats
    objective: float  # J(π) = reward − β kl
    gap: float  # (J* − J(π)) / (J* − J(π_ref)): 0 at the optimum, 1 at the reference


class Yardstick:
    """Measures policies against the exact optimum of one world, reference and β (L16, L17).

    Args:
        env: a deterministic world of this package.
        reference: π_ref.
        beta: KL weight.

    Attributes:
        ref_logps: [X, Y] log π_ref(y|x).
        rewards: [X, Y] true rewards.
        optimum: J* = E_x[β log Z(x)].

    Raises:
        TypeError, ValueError: as for `response_logps` and `log_partition`.
    """

    def __init__(self, env: gym.Env, reference: PolicyModel, beta: float) -> None:
        self.world, self.beta = unwrap(env), beta
        self.ref_logps = response_logps(reference, env).cpu()
        self.rewards = response_rewards(env)
        self.optimum = float(beta * log_partition(self.ref_logps, self.rewards, beta).mean())
        self._at_reference = float(expected_reward(self.ref_logps, self.rewards).mean())
        if not self.optimum - self._at_reference > 1e-12:
            raise ValueError(
                "the reference is optimal already (every response it gives has the same reward), "
                "so there is no gap to measure"
            )

    def measure(self, policy: PolicyModel | Tensor) -> Measure:
        """The exact `Measure` of a policy, given as a model or as its log-probabilities [X, Y]."""
        logps = policy if isinstance(policy, Tensor) else response_logps(policy, self.world)
        logps = logps.cpu()
        reward = float(expected_reward(logps, self.rewards).mean())
        kl = float(kl_divergence(logps, self.ref_logps).mean())
        J = reward - self.beta * kl
        gap = (self.optimum - J) / (self.optimum - self._at_reference)
        return Measure(reward=reward, kl=kl, objective=J, gap=gap)

    def metrics(self, policy: PolicyModel | Tensor) -> dict[str, float]:
        """`measure` under the names that a trainer's history has."""
        measure = self.measure(policy)
        return {
            "exact/reward": measure.reward,
            "exact/kl": measure.kl,
            "exact/objective": measure.objective,
            "exact/gap": measure.gap,
        }
