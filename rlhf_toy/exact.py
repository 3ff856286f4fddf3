"""The yardstick: exact distributions, optima and values of worlds that can be enumerated.

Shapes: X prompts, Y responses, S states, A actions, H steps. Everything is float64 and in nats;
rewards are in logits. Sums over responses run over the last dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlhf_toy.envs import SlipperyWordMDP, TextWorld
from rlhf_toy.models import Cache, PolicyModel, RewardModel, check_fits

NODES_AT_ONCE = 1_000  # word strings whose continuations are scored at once: bounds the memory


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be a finite number above 0, got {beta}")


def _check_shapes(**tensors: Tensor) -> None:
    """Raises a ValueError unless all have the same last dimension and can be broadcast."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len({shape[-1] if shape else None for shape in shapes.values()}) > 1:
        raise ValueError(f"the last dimensions, over responses, must agree, got {shapes}")
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        raise ValueError(f"the shapes must agree or broadcast, got {shapes}") from None


# The bandit problem over whole responses (L16 – L19)


def kl_divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_y p(y) (log p(y) − log q(y)) (L16), in nats.

    Args:
        logp: [..., Y] log-probabilities; −inf where p is 0.
        logq: [..., Y].

    Returns:
        [...]; 0 · log 0 counts as 0, and the result is inf where q misses something p has.

    Raises:
        ValueError: the last dimensions differ.
    """
    _check_shapes(logp=logp, logq=logq)
    logp, logq = torch.broadcast_tensors(logp, logq)
    has_mass = logp > -torch.inf
    missed = has_mass & (logq == -torch.inf)
    counts = has_mass & ~missed
    difference = logp.masked_fill(~counts, 0.0) - logq.masked_fill(~counts, 0.0)
    terms = logp.exp() * difference
    return terms.masked_fill(missed, torch.inf).sum(-1)


def log_partition(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β) (L17).

    Args:
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: KL weight.

    Returns:
        [...] in nats, without overflow for any β.

    Raises:
        ValueError: the last dimensions differ, or β is not a finite number above 0.
    """
    _check_shapes(ref_logps=ref_logps, rewards=rewards)
    _check_beta(beta)
    return torch.logsumexp(ref_logps + rewards / beta, dim=-1)


def gibbs_policy(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*(y|x) = log π_ref(y|x) + r(x, y)/β − log Z(x), the optimum of L16 (L17).

    Arguments and errors as for `log_partition`; returns log-probabilities [..., Y].
    """
    log_z = log_partition(ref_logps, rewards, beta)
    return ref_logps + rewards / beta - log_z[..., None]


def lagrange_multiplier(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """λ(x) = β − β log Z(x), the multiplier of Σ_y π(y|x) = 1 at the optimum (L18).

    Arguments and errors as for `log_partition`; returns [...].
    """
    return beta - beta * log_partition(ref_logps, rewards, beta)


def expected_reward(logps: Tensor, rewards: Tensor) -> Tensor:
    """E_{y ~ π}[r(x, y)]: [..., Y] × 2 → [...]; a response of probability 0 counts as 0.

    Raises:
        ValueError: the last dimensions differ.
    """
    _check_shapes(logps=logps, rewards=rewards)
    return (logps.exp() * rewards).sum(-1)


def objective(logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J(π) per prompt: E_{y ~ π}[r(x, y)] − β KL(π ‖ π_ref) (L16).

    Args:
        logps: [..., Y] log π(y|x).
        ref_logps: [..., Y] log π_ref(y|x).
        rewards: [..., Y] in logits.
        beta: KL weight.

    Returns:
        [...]; the lecture's J is its mean over the prompts.

    Raises:
        ValueError: the last dimensions differ, or β is not a finite number above 0.
    """
    _check_beta(beta)
    return expected_reward(logps, rewards) - beta * kl_divergence(logps, ref_logps)


# Policies and rewards, enumerated (L3, L4)


def unwrap(env: gym.Env) -> TextWorld:
    """The world inside Gymnasium's wrappers.

    Raises:
        TypeError: it is none of this package's worlds.
    """
    world = env.unwrapped if isinstance(env, gym.Env) else env
    if not isinstance(world, TextWorld):
        raise TypeError(f"expected one of the rlhf_toy/ worlds, got {world!r}")
    return world


def n_states(world: TextWorld) -> int:
    """S: every prompt with every string of fewer than T words, and one state for all that is over.

    State x · P + i is prompt x with the i-th of P word strings (in the order of
    `TextWorld.all_responses`); the last state is the end.
    """
    return world.n_prompts * int(world.level_starts[-1]) + 1


def _tree(
    model: PolicyModel | RewardModel, world: TextWorld, prompt: int
) -> Iterator[tuple[Tensor, Cache]]:
    """Walks down the tree of word strings after a prompt, a level at a time.

    Yields for 0, 1 … T − 1 words: what the body makes of the last position [n, 1, n_embd], and the
    KV cache, which the next level takes over. One prompt at a time bounds the memory.
    """
    words = torch.arange(world.n_words, device=model.device)
    tokens, past = world.prompt_tokens(torch.tensor([[prompt]], device=model.device)), None
    for level in range(world.max_length):
        if level > 0:
            tokens, past = _children(past, words)
        hidden, past = model.body(tokens, past)
        yield hidden, past


def _children(past: Cache, tokens: Tensor) -> tuple[Tensor, Cache]:
    """Each of n nodes followed by each of k tokens: the tokens [n · k, 1] and their KV cache."""
    n, k = len(past[0][0]), len(tokens)
    repeated = [tuple(t.repeat_interleave(k, dim=0) for t in block) for block in past]
    return tokens.repeat(n)[:, None], repeated


def state_logps(policy: PolicyModel, env: gym.Env) -> Tensor:
    """log π(a|s) in every state of a world, by one walk over the tree of word strings (L4).

    Each level of the tree is one batch, and takes the KV cache of the level above.

    Args:
        policy: the language model.
        env: a world of this package.

    Returns:
        [S, A] float64 in the order of `n_states`; uniform in the last state, the end.

    Raises:
        TypeError: `env` is none of this package's worlds.
        ValueError: the policy was made for another world.
    """
    world = unwrap(env)
    check_fits(policy, world)
    rows = []
    with torch.inference_mode():
        for prompt in range(world.n_prompts):
            for hidden, _ in _tree(policy, world, prompt):
                rows.append(policy.logits(hidden)[:, 0].double().log_softmax(-1))
        rows.append(torch.full_like(rows[0][:1], 1 / world.n_actions).log())
        logps = torch.cat(rows)
    return logps.clone()


def response_logps(policy: PolicyModel, env: gym.Env) -> Tensor:
    """log π(y|x) of every response to every prompt, exactly (L4).

    Args:
        policy: the language model.
        env: a deterministic world of this package.

    Returns:
        [X, Y] float64 in the order of `TextWorld.all_responses`; each row's probabilities sum to 1.

    Raises:
        TypeError: `env` is none of this package's worlds.
        ValueError: the policy was made for another world, or the world slips: then a response's
            probability is not the policy's alone, and `soft_policy_evaluation` is what measures it.
    """
    world = unwrap(env)
    if not world.is_deterministic:
        raise ValueError(
            "in a world with stochastic transitions a response's probability is not the policy's "
            "alone: measure the policy with soft_policy_evaluation() on tabular_mdp(env)"
        )
    tree = state_logps(policy, world)[:-1].view(world.n_prompts, -1, world.n_actions)
    starts = world.level_starts.tolist()
    so_far = torch.zeros(world.n_prompts, 1, dtype=torch.float64, device=tree.device)
    columns = []
    for level in range(world.max_length):
        nodes = so_far[..., None] + tree[:, starts[level] : starts[level + 1]]
        if world.end_token is not None:
            columns.append(nodes[..., world.end_token])
        so_far = nodes[..., : world.n_words].flatten(1)
    return torch.cat([*columns, so_far], dim=1)


def response_rewards(env: gym.Env) -> Tensor:
    """True reward r(x, y) of every response to every prompt, [X, Y] float64.

    The order is that of `response_logps`.

    Raises:
        TypeError: `env` is none of this package's worlds.
    """
    world = unwrap(env)
    responses = world.all_responses
    table = [
        world.response_rewards(torch.full_like(responses[:, 0], prompt), responses)
        for prompt in range(world.n_prompts)
    ]
    return torch.stack(table)


def _scores_after(reward_model: RewardModel, past: Cache, tokens: Sequence[int]) -> Tensor:
    """Rewards [n · k] of each of n nodes' word strings, followed by each of k last tokens."""
    tokens = torch.tensor(tokens, device=reward_model.device)
    scores = []
    for start in range(0, len(past[0][0]), NODES_AT_ONCE):
        nodes = slice(start, start + NODES_AT_ONCE)
        some = [tuple(t[nodes] for t in block) for block in past]
        hidden, _ = reward_model.body(*_children(some, tokens))
        scores.append(reward_model.head(hidden)[:, 0, 0])
    return torch.cat(scores)


def response_scores(reward_model: RewardModel, env: gym.Env) -> Tensor:
    """Learned reward r_φ(x, y) of every response to every prompt, [X, Y] float64 (L6).

    One walk over the tree of word strings, as in `state_logps`; the order is that of
    `response_logps`.

    Raises:
        TypeError: `env` is none of this package's worlds.
        ValueError: the reward model was made for another world.
    """
    world = unwrap(env)
    check_fits(reward_model, world)
    scores = []
    with torch.inference_mode():
        for prompt in range(world.n_prompts):
            for _, past in _tree(reward_model, world, prompt):
                if world.end_token is not None:
                    scores.append(_scores_after(reward_model, past, [world.end_token]))
            scores.append(_scores_after(reward_model, past, range(world.n_words)))
        table = torch.cat(scores).view(world.n_prompts, -1).double()
    return table.clone()


# The token problem over states (L2, L4, L29, L30)


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
    _check_beta(beta)
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


# Measuring a policy


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
            "objective/gap": measure.gap,
        }
