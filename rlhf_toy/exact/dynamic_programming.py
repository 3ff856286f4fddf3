"""Backward induction: soft values of worlds and tables, deterministic or not."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlhf_toy.checks import check_positive
from rlhf_toy.envs import SlipperyWordMDP, TextWorld
from rlhf_toy.exact.bandit import gibbs_policy, log_partition, objective
from rlhf_toy.exact.enumeration import n_states, response_rewards

__all__ = [
    "soft_policy_evaluation",
    "soft_value_iteration",
    "tabular_mdp",
]


def tabular_mdp(env: gym.Env) -> tuple[Tensor, Tensor, Tensor]:
    """An environment as tables: where each action leads, how likely, and what it earns (L2).

    Works for this package's worlds, whose states are those of `n_states`, and for Gymnasium's toy
    texts, FrozenLake among them, whose states are their own and whose ends loop onto themselves.

    Args:
        env: the environment.

    Returns:
        successors [S, A, K] (state indices), probabilities [S, A, K] and expected rewards [S, A],
        float64; K is the number of outcomes of an action.

    Raises:
        TypeError: neither kind of environment.
    """
    inner = env.unwrapped if isinstance(env, gym.Env) else env
    if isinstance(inner, TextWorld):
        return _word_tables(inner)
    if not hasattr(inner, "P"):
        raise TypeError(f"expected an rlhf_toy/ world or a Gymnasium toy text, got {inner!r}")
    outcomes = max(len(row) for actions in inner.P.values() for row in actions.values())
    shape = (len(inner.P), len(inner.P[0]), outcomes)
    successors, probabilities = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    rewards = np.zeros(shape[:2])
    for state, actions in inner.P.items():
        for action, row in actions.items():
            for k, (probability, successor, reward, _) in enumerate(row):
                successors[state, action, k] = successor
                probabilities[state, action, k] = probability
                rewards[state, action] += probability * reward
    return tuple(torch.from_numpy(table) for table in (successors, probabilities, rewards))


def _word_tables(world: TextWorld) -> tuple[Tensor, Tensor, Tensor]:
    """`tabular_mdp` of a text world: first for the token that is written, then for the slip."""
    X, A, T = world.n_prompts, world.n_actions, world.max_length
    P, over = int(world.level_starts[-1]), n_states(world) - 1
    table = response_rewards(world)
    starts = [*world.level_starts.tolist(), None]
    next_state = torch.full((X, P, A), over)
    earned = torch.zeros(X, P, A, dtype=torch.float64)
    for level in range(T):
        here = slice(starts[level], starts[level + 1])
        n = world.n_words**level
        if world.end_token is not None:  # the ended responses stand where their word strings do
            earned[:, here, world.end_token] = table[:, here]
        if level + 1 < T:
            below = starts[level + 1] + torch.arange(n * world.n_words).view(n, world.n_words)
            next_state[:, here, : world.n_words] = torch.arange(X)[:, None, None] * P + below
        else:
            full = table[:, -n * world.n_words :]
            earned[:, here, : world.n_words] = full.view(X, n, world.n_words)
    next_state = torch.cat([next_state.view(-1, A), torch.full((1, A), over)])
    earned = torch.cat([earned.view(-1, A), torch.zeros(1, A, dtype=torch.float64)])
    if not isinstance(world, SlipperyWordMDP):
        return next_state[..., None], torch.ones(*next_state.shape, 1).double(), earned
    slips = world.transition_probabilities  # [A meant, A written]
    shape = (len(next_state), A, A)
    return next_state[:, None].expand(shape), slips.expand(shape), earned @ slips.T


def soft_value_iteration(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    beta: float,
    horizon: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The KL-regularised optimum of a finite-horizon MDP, by backward induction (L29, L30).

    Q_h(s, a) = r(s, a) + E[V_{h+1}(s′)], V_h(s) = β log Σ_a π_ref(a|s) exp(Q_h(s, a)/β) and
    π_h(a|s) = π_ref(a|s) exp((Q_h(s, a) − V_h(s))/β), so that β log π*/π_ref = Q* − V*
    (Rafailov et al. 2024, whose Q* contains β log π_ref as well).

    Args:
        successors: [S, A, K] next states.
        probabilities: [S, A, K] of each.
        rewards: [S, A] expected rewards.
        ref_logps: [S, A] log π_ref(a|s).
        beta: KL weight.
        horizon: H, the number of steps.

    Returns:
        Q [H, S, A], V [H + 1, S] (V_H = 0) and logps [H, S, A].

    Raises:
        ValueError: shapes that do not fit, probabilities that do not sum to 1, β not a finite
            number above 0, a horizon below 1.
    """
    _check_tables(successors, probabilities, rewards, ref_logps, beta, horizon)
    V = torch.zeros(horizon + 1, len(rewards), dtype=rewards.dtype, device=rewards.device)
    Q = rewards.new_empty(horizon, *rewards.shape)
    logps = torch.empty_like(Q)
    for h in reversed(range(horizon)):
        Q[h] = rewards + (probabilities * V[h + 1][successors]).sum(-1)
        V[h] = beta * log_partition(ref_logps, Q[h], beta)
        logps[h] = gibbs_policy(ref_logps, Q[h], beta)
    return Q, V, logps


def soft_policy_evaluation(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    logps: Tensor,
    beta: float,
) -> Tensor:
    """The KL-regularised value of any policy in a finite-horizon MDP, by backward induction (L29).

    V_h(s) = E_{a ~ π_h}[r(s, a) − β log π_h(a|s)/π_ref(a|s) + V_{h+1}(s′)].

    Args:
        successors, probabilities, rewards, ref_logps, beta: as for `soft_value_iteration`.
        logps: [H, S, A] log π_h(a|s), one policy for each step.

    Returns:
        V [H + 1, S].

    Raises:
        ValueError: as for `soft_value_iteration`.
    """
    if logps.dim() != 3 or logps.shape[1:] != rewards.shape:
        raise ValueError(
            f"logps must be [H, S, A], here [H, {', '.join(map(str, rewards.shape))}], "
            f"got {list(logps.shape)}"
        )
    horizon = len(logps)
    _check_tables(successors, probabilities, rewards, ref_logps, beta, horizon)
    V = torch.zeros(horizon + 1, len(rewards), dtype=rewards.dtype, device=rewards.device)
    for h in reversed(range(horizon)):
        Q = rewards + (probabilities * V[h + 1][successors]).sum(-1)
        V[h] = objective(logps[h], ref_logps, Q, beta)
    return V


def _check_tables(successors, probabilities, rewards, ref_logps, beta, horizon) -> None:
    """Raises a ValueError unless the tables of an MDP fit together."""
    check_positive(beta=beta)
    if successors.dim() != 3 or successors.shape != probabilities.shape:
        raise ValueError(
            "successors and probabilities must both be [S, A, K], got "
            f"{list(successors.shape)} and {list(probabilities.shape)}"
        )
    if rewards.shape != successors.shape[:2] or ref_logps.shape != rewards.shape:
        raise ValueError(
            f"rewards and ref_logps must both be [S, A] = {list(successors.shape[:2])}, got "
            f"{list(rewards.shape)} and {list(ref_logps.shape)}"
        )
    if not torch.allclose(probabilities.sum(-1), torch.ones_like(rewards)):
        raise ValueError("the probabilities of an action's outcomes must sum to 1")
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
