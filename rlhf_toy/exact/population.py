"""DPO with infinite data: its loss as an exact expectation, and the policy that minimises it.

A Bradley–Terry annotator compares pairs of episodes that the reference generated in a small MDP.
Because the expectation is exact, any error of the optimum comes from DPO itself and not from a
finite sample. Shapes: N records of an episode, R different returns, S states, A actions, K
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

from rlhf_toy import checks
from rlhf_toy.exact.dynamic_programming import check_tables, outcome_tables

__all__ = [
    "Episodes", "enumerate_episodes", "implicit_rewards", "outcome_rewards", "population_dpo",
    "population_loss", "population_rewards",
]  # fmt: skip

GRADIENT_AT_MOST = 1e-6  # largest entry at which an optimum counts as found
RETURN_DIGITS = 9  # returns that agree to this many decimal places count as one


@dataclass(frozen=True)
class Episodes:
    """Every possible episode under the reference: what was recorded, and what it earned.

    Args:
        visits: [N, H] int64, for each step of a record its index in a flattened table [H, S, A];
            −1 once the episode is over.
        chances: [N, R] probability of each record with each return; they sum to 1.
        returns: [R] the different returns, in logits.

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: shapes that do not fit, a negative chance, chances that do not sum to 1, returns
            that are not finite.
    """

    visits: Tensor
    chances: Tensor
    returns: Tensor

    def __post_init__(self) -> None:
        checks.check_shapes(
            visits=(self.visits, "NH"), chances=(self.chances, "NR"), returns=(self.returns, "R")
        )
        checks.check_distribution("chances", self.chances.flatten(), log=False)
        checks.check_finite(returns=self.returns)

    @cached_property
    def weights(self) -> Tensor:
        """[N] probability of each record."""
        return self.chances.sum(1)

    @cached_property
    def win_rates(self) -> Tensor:
        """[N] probability that an episode with each record is preferred to another episode."""
        against_any = torch.sigmoid(self.returns[:, None] - self.returns) @ self.chances.sum(0)
        return self.chances @ against_any / self.weights


def outcome_rewards(env: gym.Env) -> Tensor:
    """Return what each outcome of an action earns, [S, A, K] in logits, in `tabular_mdp`'s order.

    `tabular_mdp` gives the expected rewards [S, A]; an annotator sees which outcome occurred.

    Raises:
        TypeError: neither a world of this package nor a Gymnasium toy text.
    """
    return outcome_tables(env)[2]


def enumerate_episodes(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    start: int,
    horizon: int,
    record: str = "actions",
) -> Episodes:
    """Return all episodes of H steps from one state, under the reference.

    An episode is over in a state that no action leaves and where no action earns anything.

    Args:
        successors: [S, A, K] next states, int64.
        probabilities: [S, A, K] of each.
        rewards: [S, A, K] of each in logits, see `outcome_rewards`.
        ref_logps: [S, A] log π_ref(a|s).
        start: the first state.
        horizon: H, the number of steps.
        record: the tokens whose log-ratio will be taken: "actions" for the actions that were
            chosen, "outcomes" for what followed, where outcome k is read as action k. In the
            slippery word world these are the words that were meant and the words that were written
            (there K = A).

    Returns:
        the episodes; episodes with the same record and the same return are merged.

    Raises:
        TypeError: a table that is not a tensor, or a start or horizon that is not an integer.
        ValueError: tables as for `soft_value_iteration`, an unknown `record`, outcomes that cannot
            be read as actions, a start that is not a state, a horizon below 1.
    """
    check_tables(successors, probabilities, rewards, ref_logps, "SAK")
    S, A, K = successors.shape
    checks.check_choice("record", record, ("actions", "outcomes"))
    if record == "outcomes" and K != A:
        raise ValueError(f"outcomes can be read as actions only where K = A, got {K} and {A}")
    checks.check_count("start", start, 0, S - 1)
    checks.check_count("horizon", horizon)
    stays = (successors == torch.arange(S)[:, None, None]) | (probabilities == 0)
    over = (stays & (rewards * probabilities == 0)).flatten(1).all(1)
    branches = ref_logps.exp()[..., None] * probabilities  # [S, A, K]

    visits = torch.empty(1, 0, dtype=torch.long)
    states, chances = torch.tensor([start]), torch.ones(1).double()
    returns = torch.zeros(1).double()
    for h in range(horizon):
        row, action, k = torch.where(branches[states] * ~over[states][:, None, None] > 0)
        ended = torch.where(over[states])[0]
        before = states[row]
        step = (h * S + before) * A + (action if record == "actions" else k)
        column = torch.cat([step, torch.full_like(ended, -1)])
        visits = torch.cat([visits[torch.cat([row, ended])], column[:, None]], dim=1)
        chances = torch.cat([chances[row] * branches[before, action, k], chances[ended]])
        returns = torch.cat([returns[row] + rewards[before, action, k], returns[ended]])
        states = torch.cat([successors[before, action, k], states[ended]])
        visits, states, chances, returns = _merge(visits, states, chances, returns)
    records, record_of = visits.unique(dim=0, return_inverse=True)
    values, value_of = returns.unique(return_inverse=True)
    table = torch.zeros(len(records), len(values), dtype=torch.float64)
    table.index_put_((record_of, value_of), chances, accumulate=True)
    return Episodes(records, table / table.sum(), values)  # corrects rounding


def _merge(
    visits: Tensor, states: Tensor, chances: Tensor, returns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge beginnings of episodes that have the same record, state and return."""
    values, value_of = np.unique(returns.numpy().round(RETURN_DIGITS), return_inverse=True)
    keys = torch.cat([visits, states[:, None], torch.from_numpy(value_of)[:, None]], dim=1)
    keys, key_of = keys.unique(dim=0, return_inverse=True)
    summed = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, key_of, chances)
    return keys[:, :-2], keys[:, -2], summed, torch.from_numpy(values)[keys[:, -1]]


def implicit_rewards(logps: Tensor, ref_logps: Tensor, visits: Tensor, beta: float) -> Tensor:
    """Return the implicit reward of each record, β Σ_h log π_h(a_h|s_h)/π_ref(a_h|s_h).

    Args:
        logps: [H, S, A] log π_h(a|s).
        ref_logps: [S, A] log π_ref(a|s).
        visits: [N, H], see `Episodes`.
        beta: strength of the KL penalty.

    Returns:
        [N] in logits.

    Raises:
        TypeError: an argument that is not a tensor, or a β that is not a number.
        ValueError: shapes that do not fit, visits that are not entries of the table, or β not
            finite and above 0.
    """
    checks.check_shapes(logps=(logps, "HSA"), ref_logps=(ref_logps, "SA"), visits=(visits, "NH"))
    checks.check_ids("visits", visits, logps.numel(), 2, low=-1)
    checks.check_positive(beta=beta)
    log_ratios = torch.cat([(logps - ref_logps).flatten(), logps.new_zeros(1)])  # −1 reads the 0
    return beta * log_ratios[visits].sum(1)


def population_loss(scores: Tensor, episodes: Episodes) -> Tensor:
    """Return the expectation of −log σ(score of the preferred − score of the other) over all pairs.

    With f the score of a record and w its win rate, this is E[log(e^f + e^f′)] − 2 E[w f], where
    f and f′ belong to two independently drawn episodes. So only the win rates of the preferences
    matter.

    Args:
        scores: [N] a reward of each record, learned or implicit, in logits.
        episodes: N records.

    Returns:
        scalar in nats, never below the entropy of the annotator's answers.

    Raises:
        TypeError: scores that are not a tensor, or episodes that are not `Episodes`.
        ValueError: not one finite score for each record.
    """
    checks.check_type("episodes", episodes, Episodes, "Episodes, see enumerate_episodes")
    checks.check_shapes(scores=(scores, "N"), episode_weights=(episodes.weights, "N"))
    checks.check_finite(scores=scores)
    highest = scores.detach().max()
    lifted = (scores - highest).exp().clamp(min=1e-150)  # one exp a record, not one a pair
    log_sums = (lifted[:, None] + lifted).log()
    weights = episodes.weights
    return weights @ log_sums @ weights + highest - 2 * weights @ (scores * episodes.win_rates)


def population_dpo(
    episodes: Episodes, ref_logps: Tensor, beta: float, seed: int | None = None
) -> Tensor:
    """Return the policy that minimises the DPO loss with infinite data.

    In a stochastic world the loss can have several minima; this is the one that descent reaches
    from the given start.

    Args:
        episodes: see `enumerate_episodes`.
        ref_logps: [S, A] log π_ref(a|s), none of them −inf.
        beta: strength of the KL penalty.
        seed: of random logits to start from; None starts at the reference, as training does.

    Returns:
        [H, S, A] log-probabilities, one policy for each step; equal to the reference in every state
        that no record reaches.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: β is not finite and above 0, the reference excludes an action or does not sum to
            1, the seed is negative, or the records belong to other tables.
        RuntimeError: the optimiser found no point where the gradient vanishes.
    """
    checks.check_type("episodes", episodes, Episodes, "Episodes, see enumerate_episodes")
    checks.check_shapes(ref_logps=(ref_logps, "SA"))
    checks.check_distribution("ref_logps", ref_logps)
    checks.check_finite(ref_logps=ref_logps)
    shape = (episodes.visits.shape[1], *ref_logps.shape)
    if episodes.visits.max() >= shape[0] * ref_logps.numel():
        raise ValueError(f"the records do not belong to tables [H, S, A] = {list(shape)}")

    def loss(logits: Tensor) -> Tensor:
        logps = logits.view(shape).log_softmax(-1)
        return population_loss(implicit_rewards(logps, ref_logps, episodes.visits, beta), episodes)

    start = ref_logps.expand(shape).flatten().clone()
    if seed is not None:
        checks.check_count("seed", seed, low=0)
        visited = episodes.visits[episodes.visits >= 0].unique()
        noise = np.random.default_rng(seed).normal(size=len(visited))
        start[visited] += torch.from_numpy(noise)
    return _minimise(loss, start).view(shape).log_softmax(-1)


def population_rewards(episodes: Episodes) -> Tensor:
    """Return the rewards [R] that minimise the reward model's loss with infinite data.

    One reward in logits for each different return, of mean 0, found from the preferences alone.

    Raises:
        TypeError: `episodes` is not `Episodes`.
        RuntimeError: the optimiser found no point where the gradient vanishes.
    """
    checks.check_type("episodes", episodes, Episodes, "Episodes, see enumerate_episodes")
    chances = torch.diag(episodes.chances.sum(0))
    outcomes = Episodes(torch.full((len(chances), 1), -1), chances, episodes.returns)
    # The loss ignores a constant shift; subtracting the mean keeps the scores from drifting.
    scores = _minimise(
        lambda s: population_loss(s - s.mean(), outcomes), torch.zeros_like(episodes.returns)
    )
    return scores - scores.mean()


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return a local minimum [n] of a smooth loss, found by L-BFGS from a start [n]."""

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat.copy()).requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    options = {"gtol": 1e-10, "ftol": 0.0, "maxiter": 3000, "maxfun": 5000, "maxcor": 40}
    found = minimize(evaluate, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    largest = float(np.abs(found.jac).max())
    if not largest <= GRADIENT_AT_MOST:
        raise RuntimeError(f"no minimum found: a gradient of {largest:.1e} after {found.nit} steps")
    return torch.from_numpy(found.x)
