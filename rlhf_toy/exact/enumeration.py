"""Policies and rewards over every response of a world, by one walk over its tree of words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import gymnasium as gym
import torch
from torch import Tensor

from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.models import Cache, Policy, RewardModel, check_fits

__all__ = ["n_states", "response_logps", "response_rewards", "response_scores", "state_logps"]

NODES_AT_ONCE = 1_000  # word strings whose continuations are scored at once: bounds the memory


def n_states(world: TextWorld) -> int:
    """S: every prompt with every string of fewer than T words, and one state for all that is over.

    State x · P + i is prompt x with the i-th of P word strings (in the order of
    `TextWorld.all_responses`); the last state is the end.
    """
    world = unwrap(world)
    return world.n_prompts * int(world.level_starts[-1]) + 1


Step = Callable[[Tensor, Cache | None], tuple[Tensor, Cache]]


def _tree(
    step: Step, world: TextWorld, prompt: int, device: torch.device
) -> Iterator[tuple[Tensor, Cache]]:
    """Walk down the tree of word strings after a prompt, one level at a time.

    Yields for 0, 1 … T − 1 words what `step` returns for the last tokens [n] and the cache of the
    level above. One prompt at a time bounds the memory. Raises a ValueError if there are too many.
    """
    world.check_enumerable()
    words = torch.arange(world.n_words, device=device)
    tokens, past = world.prompt_tokens(torch.tensor([prompt], device=device)), None
    for level in range(world.max_length):
        if level > 0:
            tokens, past = _children(past, words)
        found, past = step(tokens, past)
        yield found, past


def _children(past: Cache, tokens: Tensor) -> tuple[Tensor, Cache]:
    """Each of n nodes followed by each of k tokens: the tokens [n · k] and their KV cache."""
    n, k = len(past[0]), len(tokens)
    rows = torch.arange(n, device=tokens.device).repeat_interleave(k)
    return tokens.repeat(n), [layer[rows] for layer in past]


def state_logps(policy: Policy, env: gym.Env) -> Tensor:
    """log π(a|s) in every state of a world, by one walk over the tree of word strings.

    Each level of the tree is one batch, and takes the KV cache of the level above.

    Args:
        policy: the language model.
        env: a world of this package.

    Returns:
        [S, A] float64 in the order of `n_states`; uniform in the last state, the end.

    Raises:
        TypeError: `env` is none of this package's worlds.
        ValueError: the policy was made for another world, or there are too many responses.
    """
    world = unwrap(env)
    check_fits(policy, world)
    rows = []
    with torch.inference_mode():
        for prompt in range(world.n_prompts):
            for logits, _ in _tree(policy.next_logits, world, prompt, policy.device):
                rows.append(logits.double().log_softmax(-1))
        rows.append(torch.full_like(rows[0], 1 / world.n_actions).log())
        logps = torch.cat(rows)
    return logps.clone()


def response_logps(policy: Policy, env: gym.Env) -> Tensor:
    """log π(y|x) of every response to every prompt, exactly.

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
        advice = "measure the policy with soft_policy_evaluation() on tabular_mdp(env)"
        raise ValueError(f"transitions are stochastic, a response has no one probability: {advice}")
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
    for start in range(0, len(past[0]), NODES_AT_ONCE):
        nodes = slice(start, start + NODES_AT_ONCE)
        some = [layer[nodes] for layer in past]
        last, repeated = _children(some, tokens)
        hidden, _ = reward_model.body(last[:, None], repeated)
        scores.append(reward_model.head(hidden)[:, 0, 0])
    return torch.cat(scores)


def response_scores(reward_model: RewardModel, env: gym.Env) -> Tensor:
    """Learned reward r_φ(x, y) of every response to every prompt, [X, Y] float64.

    One walk over the tree of word strings, as in `state_logps`; the order is that of
    `response_logps`.

    Raises:
        TypeError: `env` is none of this package's worlds.
        ValueError: the reward model was made for another world, or there are too many responses.
    """
    world = unwrap(env)
    check_fits(reward_model, world)
    scores = []

    def read(tokens: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        return reward_model.body(tokens[:, None], past)

    with torch.inference_mode():
        for prompt in range(world.n_prompts):
            for _, past in _tree(read, world, prompt, reward_model.device):
                if world.end_token is not None:
                    scores.append(_scores_after(reward_model, past, [world.end_token]))
            scores.append(_scores_after(reward_model, past, range(world.n_words)))
        table = torch.cat(scores).view(world.n_prompts, -1).double()
    return table.clone()
