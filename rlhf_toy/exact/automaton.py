"""Exact values of worlds that are finite automata, however many responses they have.

On an automaton (`world.automaton()`) backward induction over T steps and S states finds what
enumeration cannot: log Z, J*, the frontier, and π*. Only the values V are kept. log π* is computed
where it is needed, because its full table [T, X, S, A] would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor

from rlhf_toy import checks
from rlhf_toy.envs import Automaton, TextWorld, unwrap
from rlhf_toy.exact.bandit import kl_divergence
from rlhf_toy.models import TablePolicy

__all__ = [
    "AutomatonOptimum", "automaton_evaluation", "automaton_frontier", "automaton_optimum",
    "table_reference",
]  # fmt: skip


def _check(automaton: Automaton) -> None:
    wanted = "an Automaton such as LongReview().automaton()"
    checks.check_type("automaton", automaton, Automaton, wanted)


@dataclass(frozen=True)
class AutomatonOptimum:
    """The best that any policy can do on an automaton, and the policy that does it.

    Attributes:
        automaton: on which this is the optimum.
        beta: KL weight.
        values: [T + 1, X, S] float64, V*(s) after 0 … T tokens, in logits.
    """

    automaton: Automaton
    beta: float
    values: Tensor

    @property
    def log_z(self) -> Tensor:
        """[X] log Z(x) = V*(start)/β, in nats."""
        starts = self.automaton.starts
        return self.values[0, torch.arange(len(starts), device=starts.device), starts] / self.beta

    @property
    def objective(self) -> float:
        """J* = E_x[β log Z(x)], in logits."""
        return float(self.beta * self.log_z.mean())

    def logps_at(self, step: int | Tensor, prompts: Tensor, states: Tensor) -> Tensor:
        """Return log π*(a|s) = log π_ref(a|s) + (r(s, a) + V*(s′) − V*(s))/β of every token.

        Args:
            step: the number of tokens so far, or one for each state.
            prompts: [...] prompt indices.
            states: [...] states, both on the automaton's device.

        Returns:
            [..., A] float64.
        """
        gains = self.automaton.rewards[prompts, states]
        after = step + 1 if isinstance(step, int) else step[..., None] + 1
        later = self.values[after, prompts[..., None], self.automaton.successors[states]]
        gains = gains + later - self.values[step, prompts, states][..., None]
        return self.automaton.ref_logps_at(prompts, states) + gains / self.beta

    def table(self, step: int) -> Tensor:
        """Return log π* of every token in every state after so many tokens, [X, S, A]."""
        _, X, S = self.values.shape
        prompts, states = torch.meshgrid(torch.arange(X), torch.arange(S), indexing="ij")
        return self.logps_at(step, prompts, states)

    def sample(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Sample from π*, exactly: prompts [B] → responses [B, T], padded after their end.

        Raises:
            TypeError, ValueError: bad prompts, or a generator that is not torch's.
        """
        checks.check_ids("prompts", prompts, len(self.automaton.rewards), 1)
        checks.check_generator(generator)
        return self.automaton.sample(prompts, generator, lambda t, s: self.logps_at(t, prompts, s))


def automaton_optimum(automaton: Automaton, beta: float) -> AutomatonOptimum:
    """Return the KL-regularised optimum of an automaton, by backward induction.

    V_T(s) is the reward of being cut off in s, and
    V_t(s) = β log Σ_a π_ref(a|s) exp((r(s, a) + V_{t+1}(s′))/β).

    Args:
        automaton: see `Automaton`.
        beta: strength of the KL penalty.

    Raises:
        TypeError: not an automaton, or a β that is not a number.
        ValueError: β is not finite and above 0.
    """
    _check(automaton)
    checks.check_positive(beta=beta)
    rate = torch.tensor(1 / beta, dtype=torch.float64)
    return AutomatonOptimum(automaton, beta, beta * _log_partitions(automaton, rate))


def _log_partitions(automaton: Automaton, rate: Tensor) -> Tensor:
    """[T + 1, X, S] log E_ref[exp(rate · reward to come)] in each state after 0 … T tokens."""
    slots, following = automaton.branches
    scores = automaton.ref_logps + rate * automaton.rewards  # [X, S, A]
    # Tokens that lead to the same state are added up once, not in every step.
    slots, shape = slots.expand(scores.shape), (*scores.shape[:2], following.shape[1])
    most = scores.new_full(shape, -torch.inf).scatter_reduce(2, slots, scores.detach(), "amax")
    shares = (scores - most.gather(2, slots)).exp()
    branches = most + torch.zeros_like(most).scatter_add(2, slots, shares).log()  # [X, S, K]
    found = [rate * automaton.final_rewards.double()]
    for _ in range(automaton.horizon):
        found.append((branches + found[-1][:, following]).logsumexp(-1))
    return torch.stack(found[::-1])


def automaton_evaluation(automaton: Automaton, logps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a policy that is a table on the automaton earns, and its KL to π_ref, exactly.

    Args:
        automaton: see `Automaton`.
        logps: log π, [S, A], [X, S, A], or [T, X, S, A] where it depends on the number of tokens so
            far.

    Returns:
        expected rewards [X] in logits, and KL(π ‖ π_ref) of whole responses [X] in nats.

    Raises:
        TypeError: not an automaton, or not a tensor.
        ValueError: a table of another shape, or whose rows are not log-probabilities.
    """
    _check(automaton)
    checks.check_tensors(logps=logps)
    X, S, A = automaton.rewards.shape
    kind = {2: "SA", 3: "XSA"}.get(logps.dim(), "TXSA")
    checks.check_shapes({"T": automaton.horizon, "X": X, "S": S, "A": A}, logps=(logps, kind))
    checks.check_distribution("logps", logps)
    ended = automaton.successors[:, -1].unique()
    slots, following = automaton.branches
    value, penalty = automaton.final_rewards, torch.zeros_like(automaton.final_rewards)
    here = None
    for t in reversed(range(automaton.horizon)):
        before, here = here, logps[t] if kind == "TXSA" else logps
        if here is not before:
            p = here.exp().expand(automaton.rewards.shape)
            earned, kl = (p * automaton.rewards).sum(-1), kl_divergence(here, automaton.ref_logps)
            chances = p.new_zeros(*p.shape[:2], following.shape[1])
            chances.scatter_add_(2, slots.expand(p.shape), p)
        value = earned + (chances * value[:, following]).sum(-1)
        penalty = kl + (chances * penalty[:, following]).sum(-1)
        penalty[:, ended] = 0.0  # what is written after the end does not matter
    prompts, starts = torch.arange(len(value), device=value.device), automaton.starts
    return value[prompts, starts], penalty[prompts, starts]


def automaton_frontier(automaton: Automaton, betas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the best reward at each KL: mean reward and KL of the optimum for each β.

    Args:
        automaton: see `Automaton`.
        betas: N strengths of the KL penalty.

    Returns:
        expected rewards [N] in logits and KLs [N] in nats, means over the prompts.

    Raises:
        TypeError, ValueError: as for `automaton_optimum`, or no β.
    """
    _check(automaton)
    checks.check_type("betas", betas, list | tuple, "a list or tuple of numbers")
    if not betas:
        raise ValueError("betas must hold at least one number, got none")
    prompts = torch.arange(len(automaton.rewards), device=automaton.starts.device)
    rewards, kls = [], []
    for beta in betas:
        checks.check_positive(beta=beta)
        rate = torch.tensor(1 / beta, dtype=torch.float64, requires_grad=True)
        log_z = _log_partitions(automaton, rate)[0, prompts, automaton.starts].mean()
        (reward,) = torch.autograd.grad(log_z, rate)  # E[r] = d log Z / d(1/β)
        rewards.append(reward)
        kls.append((rate * reward - log_z).detach())
    return torch.stack(rewards), torch.stack(kls)


def automaton_world(env: gym.Env) -> TextWorld:
    """Return the world itself; raises a TypeError unless it has an automaton."""
    world = unwrap(env)
    if not hasattr(world, "automaton"):
        raise TypeError(f"expected a world with an automaton, got a {type(world).__name__}")
    return world


def table_reference(env: gym.Env) -> TablePolicy:
    """Return the reference of a world with an automaton, π_ref, as a policy.

    Raises:
        TypeError: a world without an automaton, such as `WordMDP`.
    """
    world = automaton_world(env)
    tables = world.automaton()
    return TablePolicy(world, tables.ref_logps, tables.successors, tables.starts)
