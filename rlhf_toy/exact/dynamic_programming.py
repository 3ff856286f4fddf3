"""Backward induction: soft values of worlds and tables, deterministic or not."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlhf_toy.checks import check_count, check_distribution, check_finite, check_ids, check_shapes
from rlhf_toy.envs import SlipperyWordMDP, TextWorld
from rlhf_toy.exact.bandit import gibbs_policy, log_partition, objective
from rlhf_toy.exact.enumeration import n_states, response_rewards

__all__ = ["soft_policy_evaluation", "soft_value_iteration", "tabular_mdp"]


def tabular_mdp(env: gym.Env) -> tuple[Tensor, Tensor, Tensor]:
    """Return an environment as tables: where each action leads, how likely, and what it earns.

    Works for this package's worlds, whose states are those of `n_states`, and for Gymnasium's toy
    texts such as FrozenLake, whose states are their own and whose final states lead to themselves.

    Args:
        env: the environment, with or without Gymnasium's wrappers.

    Returns:
        successors [S, A, K] (state indices), probabilities [S, A, K] and expected rewards [S, A],
        float64; K is the number of outcomes of an action.

    Raises:
        TypeError: any other kind of environment.
    """
    successors, probabilities, _, expected = outcome_tables(env)
    return successors, probabilities, expected


def outcome_tables(env: gym.Env) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tables of `tabular_mdp` with, before the last, each outcome's reward [S, A, K]."""
    inner = env.unwrapped if isinstance(env, gym.Env) else env
    if isinstance(inner, TextWorld):
        next_state, written = word_tables(inner)
        if not isinstance(inner, SlipperyWordMDP):
            tables = next_state[..., None], torch.ones(*next_state.shape, 1).double()
            return *tables, written[..., None], written
        slips = inner.transition_probabilities  # [A meant, A written]
        shape = (len(next_state), *slips.shape)
        # An outcome is the token that was written; the reward depends on nothing else.
        tables = next_state[:, None].expand(shape), slips.expand(shape)
        return *tables, written[:, None].expand(shape), written @ slips.T
    if not hasattr(inner, "P"):
        kind = type(inner).__name__
        raise TypeError(f"expected an rlhf_toy/ world or a Gymnasium toy text, got a {kind}")
    outcomes = max(len(row) for actions in inner.P.values() for row in actions.values())
    tables = np.zeros((3, len(inner.P), len(inner.P[0]), outcomes))
    for state, actions in inner.P.items():
        for action, row in actions.items():
            tables[:, state, action, : len(row)] = np.array([outcome[:3] for outcome in row]).T
    probabilities, successors, rewards = torch.from_numpy(tables)
    return successors.long(), probabilities, rewards, (probabilities * rewards).sum(-1)


def word_tables(world: TextWorld) -> tuple[Tensor, Tensor]:
    """Return the next state and the reward after each token that is written, both [S, A]."""
    X, A, T = world.n_prompts, world.n_actions, world.max_length
    P, over = int(world.level_starts[-1]), n_states(world) - 1
    table = response_rewards(world)
    starts = [*world.level_starts.tolist(), None]
    next_state = torch.full((X, P, A), over)
    earned = torch.zeros(X, P, A, dtype=torch.float64)
    for level in range(T):
        here = slice(starts[level], starts[level + 1])
        n = world.n_words**level
        if world.end_token is not None:  # a string of words and its ended response share an index
            earned[:, here, world.end_token] = table[:, here]
        if level + 1 < T:
            below = starts[level + 1] + torch.arange(n * world.n_words).view(n, world.n_words)
            next_state[:, here, : world.n_words] = torch.arange(X)[:, None, None] * P + below
        else:
            full = table[:, -n * world.n_words :]
            earned[:, here, : world.n_words] = full.view(X, n, world.n_words)
    next_state = torch.cat([next_state.view(-1, A), torch.full((1, A), over)])
    return next_state, torch.cat([earned.view(-1, A), torch.zeros(1, A, dtype=torch.float64)])


def soft_value_iteration(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    beta: float,
    horizon: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the KL-regularised optimum of a finite-horizon MDP, by backward induction.

    Q_h(s, a) = r(s, a) + E[V_{h+1}(s′)], V_h(s) = β log Σ_a π_ref(a|s) exp(Q_h(s, a)/β) and
    π_h(a|s) = π_ref(a|s) exp((Q_h(s, a) − V_h(s))/β), so that β log π*/π_ref = Q* − V*
    (Rafailov et al. 2024, whose Q* contains β log π_ref as well).

    Args:
        successors: [S, A, K] next states, int64.
        probabilities: [S, A, K] of each.
        rewards: [S, A] expected rewards in logits.
        ref_logps: [S, A] log π_ref(a|s).
        beta: strength of the KL penalty.
        horizon: H, the number of steps.

    Returns:
        Q [H, S, A], V [H + 1, S] (V_H = 0) and logps [H, S, A].

    Raises:
        TypeError: a table that is not a tensor, or a β or horizon that is not a number.
        ValueError: shapes that do not fit, successors that are not states, probabilities (the
            reference's included) that are negative or do not sum to 1, rewards that are not finite,
            β not finite and above 0, a horizon below 1.
    """
    check_tables(successors, probabilities, rewards, ref_logps)
    check_count("horizon", horizon)
    V = probabilities.new_zeros(horizon + 1, len(rewards))
    Q = probabilities.new_empty(horizon, *rewards.shape)
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
    """Return the KL-regularised value of any policy in a finite-horizon MDP.

    V_h(s) = E_{a ~ π_h}[r(s, a) − β log π_h(a|s)/π_ref(a|s) + V_{h+1}(s′)].

    Args:
        successors, probabilities, rewards, ref_logps, beta: as for `soft_value_iteration`.
        logps: [H, S, A] log π_h(a|s), one policy for each step.

    Returns:
        V [H + 1, S].

    Raises:
        TypeError, ValueError: as for `soft_value_iteration`, and where a policy's probabilities do
            not sum to 1.
    """
    check_tables(successors, probabilities, rewards, ref_logps)
    horizon = check_shapes(logps=(logps, "HSA"), rewards=(rewards, "SA"))["H"]
    check_distribution("logps", logps)
    V = probabilities.new_zeros(horizon + 1, len(rewards))
    for h in reversed(range(horizon)):
        Q = rewards + (probabilities * V[h + 1][successors]).sum(-1)
        V[h] = objective(logps[h], ref_logps, Q, beta)
    return V


def check_tables(
    successors: Tensor, probabilities: Tensor, rewards: Tensor, ref_logps: Tensor, kind: str = "SA"
) -> None:
    """Raise unless the tables of an MDP, with rewards of shape `kind`, and a reference fit."""
    sizes = check_shapes(
        successors=(successors, "SAK"),
        probabilities=(probabilities, "SAK"),
        rewards=(rewards, kind),
        ref_logps=(ref_logps, "SA"),
    )
    check_ids("successors", successors, sizes["S"], 3)
    check_distribution("probabilities", probabilities, log=False)
    check_distribution("ref_logps", ref_logps)
    check_finite(rewards=rewards)
