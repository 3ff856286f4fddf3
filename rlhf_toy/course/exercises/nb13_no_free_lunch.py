"""The exercises of notebook 13: a token's advantage, a soft backup, an episode's luck."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import exact
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_logps, random_numbers
from rlhf_toy.training import make_generator


def token_advantage(
    logps: Tensor, ref_logps: Tensor, responses: Tensor, y: Tensor, beta: float
) -> Tensor:
    """Return β log π/π_ref of each token of y, [T] in logits, from whole responses' probabilities.

    Args:
        logps, ref_logps: [Y] log-probabilities of all responses.
        responses: [Y, T] their token ids; the same id after the end of a response.
        y: [T] one of them.
        beta: strength of the KL penalty.
    """
    begins = (responses == y).cumprod(1).bool()  # [Y, T] whether they agree with y so far
    after = [logps[b].logsumexp(0) - ref_logps[b].logsumexp(0) for b in begins.T]
    return beta * torch.stack([torch.zeros_like(after[0]), *after]).diff()  # all responses: 0


def soft_backup(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    next_values: Tensor,
    beta: float,
) -> Tensor:
    """Return V(s) = β log Σ_a π_ref(a|s) exp(Q(s, a)/β) with Q = r + E[V(s′)], [S] in logits.

    Args:
        successors, probabilities: [S, A, K] next state of each outcome, and how likely it is.
        rewards, ref_logps: [S, A] expected rewards in logits, log π_ref(a|s).
        next_values: [S] values one step later, in logits.
        beta: strength of the KL penalty.
    """
    Q = rewards + (probabilities * next_values[successors]).sum(-1)
    return beta * exact.log_partition(ref_logps, Q, beta)


def luck(rewards: Tensor, q_values: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return Σ_t [r_t + V(s_{t+1}) − Q(s_t, a_t)] over the real steps of each episode, [B].

    Args:
        rewards, q_values, mask: [B, T] reward, Q(s_t, a_t), and whether the step took place.
        values: [B, T + 1] V(s_0) to V(s_T).
    """
    return (rewards + values[:, 1:] - q_values).masked_fill(~mask, 0.0).sum(1)


def _advantage_cases() -> list[Case]:
    words = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # 9 responses of 2 tokens
    ended = torch.tensor([[2, -1, -1], [0, 2, -1], [1, 2, -1], [0, 1, 2], [0, 0, 2], [1, 1, 2]])
    made = [(random_logps(9, seed=s), random_logps(9, seed=s + 50), words) for s in range(3)]
    plain = [(*made[i], words[i + 3], beta) for i, beta in enumerate((0.5, 2.0, 1.5))]
    both = random_logps(6, seed=7), random_logps(6, seed=8)
    plain += [(*both, ended, ended[i], 0.5) for i in (0, 1, 3)]
    rare = (both[0] - 2000 * float64(0, 0, 1, 0, 0, 1)).log_softmax(0)
    corners = [(rare, both[1], ended, ended[2], 0.5), (both[0], both[0], ended, ended[4], 1.0)]
    return make_cases(("logps", "ref_logps", "responses", "y", "beta"), plain, corners)


def _backup_cases() -> list[Case]:
    def tables(S: int, A: int, K: int, seed: int) -> tuple[Tensor, ...]:
        successors = torch.randint(S, (S, A, K), generator=make_generator(seed))
        chances = random_logps(S, A, K, seed=seed).exp()
        rewards, values = random_numbers(S, A, seed=seed), random_numbers(S, seed=seed + 1)
        return successors, chances, rewards, random_logps(S, A, seed=seed + 2), values

    plain = [(*tables(2, 2, 2, 1), 0.5), (*tables(1, 3, 1, 2), 2.0), (*tables(3, 2, 2, 3), 0.5)]
    plain.append((*tables(4, 3, 3, 4), 1.5))
    successors, chances, rewards, ref, values = tables(3, 2, 2, 5)
    corners = [(successors, chances, k * rewards, ref, values, 0.5) for k in (1000, -1000)]
    names = "successors", "probabilities", "rewards", "ref_logps", "next_values", "beta"
    return make_cases(names, plain, corners)


def _luck_cases() -> list[Case]:
    def draw(lengths: list[int], T: int, seed: int) -> tuple[Tensor, ...]:
        shape = len(lengths), T
        mask = torch.arange(T) < torch.tensor(lengths)[:, None]
        values = random_numbers(len(lengths), T + 1, seed=seed + 2)
        return (
            random_numbers(*shape, seed=seed),
            random_numbers(*shape, seed=seed + 1),
            values,
            mask,
        )

    plain = [draw([2, 2], 2, 1), draw([1, 3], 3, 11), draw([4, 2, 3], 4, 21)]
    names = "rewards", "q_values", "values", "mask"
    return make_cases(names, plain, [draw([0, 1], 1, 31), draw([1], 3, 41)])


def _masses(logps: Tensor, responses: Tensor, y: Tensor) -> Tensor:
    """log-probability of the first t tokens of y, for t = 0 … T, [T + 1]."""
    begins = (responses == y).cumprod(1).bool()
    return torch.stack([logps.logsumexp(0), *(logps[b].logsumexp(0) for b in begins.T)])


def _q(succ: Tensor, p: Tensor, r: Tensor, V: Tensor) -> Tensor:
    return r + (p * V[succ]).sum(-1)


def _filled(steps: Tensor, mask: Tensor) -> Tensor:
    return steps.masked_fill(~mask, 0.0).sum(1)


_ADVANTAGE_MISTAKES = (
    ("reference forgotten", "You return β log π of each token. What would the reference have said?",
     lambda p, ref, all_, y, beta: beta * _masses(p, all_, y).diff()),
    ("sign", "You praise a token that π says less often than π_ref. Which one is subtracted?",
     lambda p, ref, all_, y, beta: token_advantage(ref, p, all_, y, beta)),
    ("beginnings", "Each entry rates the response up to this token. What did this token add?",
     lambda p, ref, all_, y, beta: token_advantage(p, ref, all_, y, beta).cumsum(0)),
    ("summed", "This is the response's implicit reward. How much of it belongs to each token?",
     lambda p, ref, all_, y, beta: token_advantage(p, ref, all_, y, beta).sum()),
    ("context forgotten", "You collect all responses with this token here. And the tokens before?",
     lambda p, ref, all_, y, beta: beta * torch.stack(
         [p[s].logsumexp(0) - ref[s].logsumexp(0) for s in (all_ == y).T])),
    ("underflow", "Right, but exp(−2000) is 0. How can you add probabilities in logarithms?",
     lambda p, ref, all_, y, beta: beta * (
         _masses(p, all_, y).exp().log() - _masses(ref, all_, y).exp().log()).diff()),
)  # fmt: skip
_BACKUP_MISTAKES = (
    ("exp before expectation",
     "You put the outcomes inside the exponential, next to the actions. Who chooses the outcome?",
     lambda succ, p, r, ref, V, beta: beta * torch.logsumexp(
         (ref[..., None] + p.log() + (r[..., None] + V[succ]) / beta).flatten(1), dim=1)),
    ("hard maximum", "You take the best action, as if leaving π_ref cost nothing. Where is the KL?",
     lambda succ, p, r, ref, V, beta: _q(succ, p, r, V).amax(-1)),
    ("reference forgotten", "You count all actions equally. Where is π_ref in the sum?",
     lambda succ, p, r, ref, V, beta: beta * (_q(succ, p, r, V) / beta).logsumexp(-1)),
    ("beta only inside", "Your result is V/β. What turns it back into logits?",
     lambda succ, p, r, ref, V, beta: soft_backup(succ, p, r, ref, V, beta) / beta),
    ("beta only outside", "You multiply the logarithm by β. What does β do in the exponent?",
     lambda succ, p, r, ref, V, beta: beta * soft_backup(succ, p, r, ref, V, 1.0)),
    ("value of the state itself",
     "You add the value of the state before the step. Where does the action lead?",
     lambda succ, p, r, ref, V, beta: soft_backup(succ, p, r, ref, 0 * V, beta) + V),
    ("overflow", "Right, but exp(2000) is infinite. How can you stay in logarithms?",
     lambda succ, p, r, ref, V, beta: (
         beta * (ref.exp() * (_q(succ, p, r, V) / beta).exp()).sum(-1).log())),
)  # fmt: skip
_LUCK_MISTAKES = (
    ("not shifted", "You use the state before each step. Where is the episode after it?",
     lambda r, Q, V, mask: _filled(r + V[:, :-1] - Q, mask)),
    ("future forgotten", "Q also counts what comes after the step. Where is that in your sum?",
     lambda r, Q, V, mask: _filled(r - Q, mask)),
    ("skill", "This is Q − V, what the choice was worth. What did the world add after it?",
     lambda r, Q, V, mask: _filled(Q - V[:, :-1], mask)),
    ("sign", "You count good luck as negative. Is Q the expectation or the outcome?",
     lambda r, Q, V, mask: _filled(Q - r - V[:, 1:], mask)),
    ("not summed", "You return the luck of each step. What is asked for the whole episode?",
     lambda r, Q, V, mask: (r + V[:, 1:] - Q) * mask),
    ("mask forgotten", "You count steps after the end of an episode. Where does the mask come in?",
     lambda r, Q, V, mask: (r + V[:, 1:] - Q).sum(1)),
)  # fmt: skip
_ADVANTAGE_HINTS = (
    "π(token | tokens before it) is the probability of all responses that begin with these tokens "
    "and this one, divided by that of all responses that begin with these tokens.",
    "`begins = (responses == y).cumprod(1).bool()` says which responses begin like y, [Y, T].",
    "Add probabilities, not log-probabilities: `logps[begins[:, t]].logsumexp(0)`.",
)
_BACKUP_HINTS = (
    "First compute Q(s, a), [S, A]. `next_values[successors]` is the value of each outcome.",
    "Average over the outcomes before you exponentiate anything.",
    "The rest is β log Z of a bandit whose rewards are Q (notebook 06).",
)
_LUCK_HINTS = (
    "`values` has one column more than the others. Which of its columns are V(s_{t+1})?",
    "Set the steps that did not take place to 0, then sum over the steps.",
)
EXERCISES = tuple(
    Exercise(answer.__name__, "13", hints, answer, cases, tuple(Mistake(*row) for row in mistakes))
    for answer, hints, cases, mistakes in (
        (token_advantage, _ADVANTAGE_HINTS, _advantage_cases, _ADVANTAGE_MISTAKES),
        (soft_backup, _BACKUP_HINTS, _backup_cases, _BACKUP_MISTAKES),
        (luck, _LUCK_HINTS, _luck_cases, _LUCK_MISTAKES),
    )
)
