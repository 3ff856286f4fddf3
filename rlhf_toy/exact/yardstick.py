"""Measuring policies against the exact optimum."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor

from rlhf_toy.checks import check_distribution, check_positive, check_same_shape, check_shapes
from rlhf_toy.envs import unwrap
from rlhf_toy.exact import dynamic_programming as dp
from rlhf_toy.exact.bandit import expected_reward, kl_divergence, log_partition
from rlhf_toy.exact.enumeration import response_logps, response_rewards, state_logps
from rlhf_toy.models import Policy

__all__ = ["Measure", "StochasticYardstick", "Yardstick", "make_yardstick"]


@dataclass(frozen=True)
class Measure:
    """How good a policy is; means over the prompts."""

    reward: float  # E[r(x, y)], the true reward
    kl: float  # KL(π ‖ π_ref) of whole responses, in nats
    objective: float  # J(π) = reward − β kl
    gap: float  # (J* − J(π)) / (J* − J(π_ref)): 0 at the optimum, 1 at the reference
    standard_error: float = 0.0  # of the gap; 0 where nothing is sampled


class Yardstick:
    """Measures policies against the exact optimum of one world, reference and β, by enumeration.

    Args:
        env: a deterministic world of this package.
        reference: π_ref.
        beta: KL weight.

    Attributes:
        ref_logps: [X, Y] log π_ref(y|x).
        rewards: [X, Y] true rewards.
        optimum: J* = E_x[β log Z(x)].

    Raises:
        TypeError, ValueError: as for `response_logps` and `log_partition`, or every response of the
            reference has the same reward, so there is nothing to gain.
    """

    optimum: float
    reference_objective: float  # J(π_ref), which is the reference's reward

    def __init__(self, env: gym.Env, reference: Policy, beta: float) -> None:
        self.world, self.beta = unwrap(env), beta
        self.ref_logps = response_logps(reference, env).cpu()
        self.rewards = response_rewards(env)
        self.optimum = float(beta * log_partition(self.ref_logps, self.rewards, beta).mean())
        self.reference_objective = float(expected_reward(self.ref_logps, self.rewards).mean())
        self._check_there_is_a_gap()

    def _check_there_is_a_gap(self) -> None:
        if not self.optimum - self.reference_objective > 1e-12:
            reason = "every response it gives has the same reward"
            raise ValueError(f"there is no gap to measure: the reference is optimal ({reason})")

    def _reward_and_kl(self, policy: Policy | Tensor) -> tuple[float, float]:
        """Mean true reward (logits) and KL to the reference (nats)."""
        if isinstance(policy, Tensor):
            check_same_shape(log_probabilities=policy, reference=self.ref_logps)
            check_distribution("the policy's table", policy)
            logps = policy.cpu()
        else:
            logps = response_logps(policy, self.world).cpu()
        reward = float(expected_reward(logps, self.rewards).mean())
        return reward, float(kl_divergence(logps, self.ref_logps).mean())

    def measure(self, policy: Policy | Tensor) -> Measure:
        """Return the exact `Measure` of a policy: a model, or its log-probabilities as a table.

        Raises:
            TypeError, ValueError: a model of another world, or a table of another shape or whose
                rows are not log-probabilities.
        """
        reward, kl = self._reward_and_kl(policy)
        J = reward - self.beta * kl
        gap = (self.optimum - J) / (self.optimum - self.reference_objective)
        return Measure(reward=reward, kl=kl, objective=J, gap=gap)

    def metrics(self, policy: Policy | Tensor) -> dict[str, float]:
        """Return `measure` under the names that a trainer's history has."""
        measure, names = self.measure(policy), ("reward", "kl", "objective", "gap")
        return {f"exact/{name}": getattr(measure, name) for name in names}


class StochasticYardstick(Yardstick):
    """The `Yardstick` of a world with stochastic transitions, by backward induction over states.

    The KL is that of the actions: Σ_t log π(a_t|s_t)/π_ref(a_t|s_t) in expectation.

    Args:
        env: a world of this package.
        reference: π_ref.
        beta: KL weight.

    Raises:
        TypeError, ValueError: as for `state_logps` and `soft_value_iteration`.
    """

    def __init__(self, env: gym.Env, reference: Policy, beta: float) -> None:
        self.world, self.beta = unwrap(env), beta
        check_positive(beta=beta)
        self._tables = dp.tabular_mdp(self.world)
        self.ref_logps = state_logps(reference, self.world).cpu()  # [S, A]
        # One start for each prompt: its empty response.
        self._starts = torch.arange(self.world.n_prompts) * int(self.world.level_starts[-1])
        horizon = self.world.max_length
        _, values, _ = dp.soft_value_iteration(*self._tables, self.ref_logps, beta, horizon)
        self.optimum = float(values[0, self._starts].mean())
        self.reference_objective = self._reward_and_kl(reference)[0]
        self._check_there_is_a_gap()

    def _reward_and_kl(self, policy: Policy | Tensor) -> tuple[float, float]:
        if isinstance(policy, Tensor):
            sizes = zip("HSA", (self.world.max_length, *self.ref_logps.shape), strict=True)
            kind = "HSA" if policy.dim() == 3 else "SA"
            check_shapes(dict(sizes), log_probabilities=(policy, kind))
            check_distribution("the policy's table", policy)
            logps = policy.cpu()
        else:
            logps = state_logps(policy, self.world).cpu()
        logps = logps.expand(self.world.max_length, *self.ref_logps.shape)
        successors, probabilities, rewards = self._tables
        arguments = (self.ref_logps, logps, self.beta)
        values = dp.soft_policy_evaluation(successors, probabilities, rewards, *arguments)
        penalty = dp.soft_policy_evaluation(successors, probabilities, 0 * rewards, *arguments)
        objective, kl = (float(v[0, self._starts].mean()) for v in (values, -penalty / self.beta))
        return objective + self.beta * kl, kl


def make_yardstick(env: gym.Env, reference: Policy, beta: float) -> Yardstick:
    """Return the yardstick that fits the world: by enumeration where transitions are certain.

    Raises:
        TypeError, ValueError: as for `Yardstick` and `StochasticYardstick`.
    """
    kind = Yardstick if unwrap(env).is_deterministic else StochasticYardstick
    return kind(env, reference, beta)
