"""DPO with endless data: its loss as an exact expectation, and the policy that minimises it (L29).

An annotator after Bradley and Terry judges pairs of episodes that the reference had in a small MDP.
With the expectation taken exactly, whatever is wrong with the optimum is DPO's own fault, and not
that of the sample. Shapes: N records of an episode, R different returns, S states, A actions, K
outcomes of an action, H steps. Everything is float64; rewards are in logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import gymnasium as gym
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from rlhf_toy.envs import SlipperyWordMDP, TextWorld, unwrap
from rlhf_toy.exact.dynamic_programming import tabular_mdp

GRADIENT_AT_MOST = 1e-6  # largest entry at which an optimum counts as found
RETURN_DIGITS = 9  # returns that agree to so many digits after the point are one


@dataclass(frozen=True)
class Episodes:
    """Every way an episode can go under the reference: what was recorded, and what it earned.

    Attributes:
        visits: [N, H] which entry of a table [H, S, A] each step of a record stands for (an index
            into the flattened table), −1 once the episode is over.
        chances: [N, R] probability of each record with each return; they sum to 1.
        returns: [R] the different returns.
    """

    visits: Tensor
    chances: Tensor
    returns: Tensor

    @cached_property
    def weights(self) -> Tensor:
        """[N] probability of each record."""
        return self.chances.sum(1)

    @cached_property
    def win_rates(self) -> Tensor:
        """[N] how likely an episode with each record is preferred to another one (L7)."""
        against_any = torch.sigmoid(self.returns[:, None] - self.returns) @ self.chances.sum(0)
        return self.chances @ against_any / self.weights


def outcome_rewards(env: gym.Env) -> Tensor:
    """What each outcome of an action earns, [S, A, K], in the order of `tabular_mdp`.

    `tabular_mdp` has the expected rewards [S, A]; an annotator sees what came of an action.

    Raises:
        TypeError: neither a world of this package nor a Gymnasium toy text.
    """
    successors, _, expected = tabular_mdp(env)
    inner = env.unwrapped
    if not isinstance(inner, TextWorld):
        rewards = torch.zeros(successors.shape, dtype=torch.float64)
        for state, actions in inner.P.items():
            for action, row in actions.items():
                rewards[state, action, : len(row)] = torch.tensor([r for _, _, r, _ in row])
        return rewards
    if not isinstance(unwrap(env), SlipperyWordMDP):
        return expected[..., None]
    # An outcome is the token that was written, and it alone decides what is earned.
    _, _, written = tabular_mdp(SlipperyWordMDP(0.0, inner.world_spec, inner.max_length))
    return written[:, None].expand(successors.shape)


def enumerate_episodes(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    start: int,
    horizon: int,
    record: str = "actions",
) -> Episodes:
    """All episodes of H steps from one state, under the reference.

    An episode is over in a state that no action leaves and where none earns anything.

    Args:
        successors: [S, A, K] next states.
        probabilities: [S, A, K] of each.
        rewards: [S, A, K] of each, see `outcome_rewards`.
        ref_logps: [S, A] log π_ref(a|s).
        start: the first state.
        horizon: H.
        record: what the log-ratio will be taken of: "actions" for those that were chosen, or
            "outcomes" for what came of them, outcome k being read as action k (in the slippery word
            world: the words that were meant, or those that were written; then K = A).

    Returns:
        the episodes, those with the same record and return as one.

    Raises:
        ValueError: shapes that do not fit, probabilities that do not sum to 1, an unknown `record`,
            a start that is no state, a horizon below 1.
    """
    S, A, K = _check_tables(successors, probabilities, rewards, ref_logps)
    if record not in ("actions", "outcomes"):
        raise ValueError(f"record must be 'actions' or 'outcomes', got {record!r}")
    if record == "outcomes" and K != A:
        raise ValueError(f"outcomes can be read as actions only where K = A, got {K} and {A}")
    if start not in range(S) or horizon < 1:
        raise ValueError(f"no {horizon} steps from state {start!r} of {S}")
    stays = (successors == torch.arange(S)[:, None, None]) | (probabilities == 0)
    over = (stays & (rewards * probabilities == 0)).flatten(1).all(1)
    branches = ref_logps.exp()[..., None] * probabilities  # [S, A, K]

    visits = torch.empty(1, 0, dtype=torch.long)
    states, chances, returns = (
        torch.tensor([start]),
        torch.ones(1).double(),
        torch.zeros(1).double(),
    )
    for h in range(horizon):
        row, action, k = torch.where(branches[states] * ~over[states][:, None, None] > 0)
        ended = torch.where(over[states])[0]
        before = states[row]
        step = (h * S + before) * A + (action if record == "actions" else k)
        visits = torch.cat([visits[torch.cat([row, ended])], _column(step, ended)], dim=1)
        chances = torch.cat([chances[row] * branches[before, action, k], chances[ended]])
        returns = torch.cat([returns[row] + rewards[before, action, k], returns[ended]])
        states = torch.cat([successors[before, action, k], states[ended]])
        visits, states, chances, returns = _merge(visits, states, chances, returns)
    records, record_of = visits.unique(dim=0, return_inverse=True)
    values, value_of = returns.unique(return_inverse=True)
    table = torch.zeros(len(records), len(values), dtype=torch.float64)
    table.index_put_((record_of, value_of), chances, accumulate=True)
    return Episodes(records, table / table.sum(), values)  # less what rounding lost


def _column(step: Tensor, ended: Tensor) -> Tensor:
    return torch.cat([step, torch.full_like(ended, -1)])[:, None]


def _merge(
    visits: Tensor, states: Tensor, chances: Tensor, returns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Beginnings of episodes with the same record, state and return, as one."""
    values, value_of = np.unique(returns.numpy().round(RETURN_DIGITS), return_inverse=True)
    keys = torch.cat([visits, states[:, None], torch.from_numpy(value_of)[:, None]], dim=1)
    keys, key_of = keys.unique(dim=0, return_inverse=True)
    summed = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, key_of, chances)
    return keys[:, :-2], keys[:, -2], summed, torch.from_numpy(values)[keys[:, -1]]


def implicit_rewards(logps: Tensor, ref_logps: Tensor, visits: Tensor, beta: float) -> Tensor:
    """β Σ_h log π_h(a_h|s_h)/π_ref(a_h|s_h) of each record: [H, S, A], [S, A], [N, H] → [N]."""
    log_ratios = torch.cat([(logps - ref_logps).flatten(), logps.new_zeros(1)])  # −1 reads the 0
    return beta * log_ratios[visits].sum(1)


def population_loss(scores: Tensor, episodes: Episodes) -> Tensor:
    """Expected −log σ(score of the preferred − score of the other), over all pairs (L9, L23).

    With f the score of a record and w its win rate, this is E[log(e^f + e^f′)] − 2 E[w f], where
    f and f′ are of two episodes drawn independently. So preferences count through win rates alone.

    Args:
        scores: [N] a reward of each record, learned or implicit.
        episodes: N records.

    Returns:
        scalar in nats, never below the annotator's own entropy.

    Raises:
        ValueError: not one score for each record.
    """
    if scores.shape != episodes.weights.shape:
        raise ValueError(
            f"{len(episodes.weights)} records need as many scores, got {list(scores.shape)}"
        )
    highest = scores.detach().max()
    lifted = (scores - highest).exp().clamp(min=1e-150)  # one exp a record, not one a pair
    log_sums = (lifted[:, None] + lifted).log()
    weights = episodes.weights
    return weights @ log_sums @ weights + highest - 2 * weights @ (scores * episodes.win_rates)


def population_dpo(
    episodes: Episodes, ref_logps: Tensor, beta: float, seed: int | None = None
) -> Tensor:
    """The policy that minimises the DPO loss when the data never end (L23, L29).

    In a stochastic world the loss can have several minima; this is the one downhill from a start.

    Args:
        episodes: see `enumerate_episodes`.
        ref_logps: [S, A] log π_ref(a|s), none of them −inf.
        beta: KL weight.
        seed: of random logits to start from; None starts at the reference, as training does.

    Returns:
        [H, S, A] log-probabilities, one policy for each step; the reference where no record leads.

    Raises:
        ValueError: β is not a finite number above 0, the reference excludes an action, or the
            records are those of other tables.
        RuntimeError: the optimiser found no point where the gradient vanishes.
    """
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be a finite number above 0, got {beta}")
    if not ref_logps.isfinite().all():
        raise ValueError("the reference must give every action a probability above 0")
    shape = (episodes.visits.shape[1], *ref_logps.shape)
    if episodes.visits.max() >= shape[0] * ref_logps.numel():
        raise ValueError(f"the records are not of tables {list(shape)}")

    def loss(logits: Tensor) -> Tensor:
        logps = logits.view(shape).log_softmax(-1)
        return population_loss(implicit_rewards(logps, ref_logps, episodes.visits, beta), episodes)

    start = ref_logps.expand(shape).flatten().clone()
    if seed is not None:
        visited = episodes.visits[episodes.visits >= 0].unique()
        noise = np.random.default_rng(seed).normal(size=len(visited))
        start[visited] += torch.from_numpy(noise)
    return _minimise(loss, start).view(shape).log_softmax(-1)


def population_rewards(episodes: Episodes) -> Tensor:
    """The rewards [R] that minimise the reward loss when the data never end, of mean 0 (L9).

    One for each return there is, from nothing but who wins against whom.

    Raises:
        RuntimeError: the optimiser found no point where the gradient vanishes.
    """
    chances = torch.diag(episodes.chances.sum(0))
    outcomes = Episodes(torch.empty(len(chances), 0), chances, episodes.returns)
    # A constant is free: less the mean, the loss does not drift along it.
    scores = _minimise(
        lambda s: population_loss(s - s.mean(), outcomes), torch.zeros_like(episodes.returns)
    )
    return scores - scores.mean()


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a smooth loss has a minimum, downhill from a start [n]: L-BFGS."""

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat.copy()).requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    options = {"gtol": 1e-10, "ftol": 0.0, "maxiter": 3000, "maxfun": 5000, "maxcor": 40}
    found = minimize(
        value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options
    )
    largest = float(np.abs(found.jac).max())
    if not largest <= GRADIENT_AT_MOST:
        raise RuntimeError(f"no minimum found: a gradient of {largest:.1e} after {found.nit} steps")
    return torch.from_numpy(found.x)


def _check_tables(
    successors: Tensor, probabilities: Tensor, rewards: Tensor, ref_logps: Tensor
) -> tuple[int, int, int]:
    """S, A and K; a ValueError unless the tables fit together."""
    shapes = {tuple(table.shape) for table in (successors, probabilities, rewards)}
    if len(shapes) != 1 or successors.dim() != 3 or ref_logps.shape != successors.shape[:2]:
        raise ValueError(
            "successors, probabilities and rewards must be [S, A, K] and ref_logps [S, A], got "
            f"{[list(t.shape) for t in (successors, probabilities, rewards, ref_logps)]}"
        )
    if not torch.allclose(probabilities.sum(-1), torch.ones_like(ref_logps)):
        raise ValueError("the probabilities of an action's outcomes must sum to 1")
    if not torch.allclose(ref_logps.exp().sum(-1), torch.ones_like(ref_logps[:, 0])):
        raise ValueError("the reference's probabilities must sum to 1 in every state")
    return tuple(successors.shape)
