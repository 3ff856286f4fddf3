"""The exercises of notebook 13: soft value iteration, and what a token's log-ratio means."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import exact
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.training import make_generator


def soft_backup(
    successors: Tensor,
    probabilities: Tensor,
    rewards: Tensor,
    ref_logps: Tensor,
    next_values: Tensor,
    beta: float,
) -> Tensor:
    """Do one step of soft value iteration: return V(s) = β log Σ_a π_ref(a|s) exp(Q(s, a)/β).

    Here Q(s, a) = r(s, a) + Σ_k p(k|s, a) V(s′_k). The outcomes k of chance are averaged; only the
    actions are inside the exponential, because the agent chooses nothing else.

    Args:
        successors: [S, A, K] next state of each outcome.
        probabilities: [S, A, K] probability of each outcome.
        rewards: [S, A] expected rewards, in logits.
        ref_logps: [S, A] log π_ref(a|s), in nats.
        next_values: [S] values one step later, in logits.
        beta: strength of the KL penalty.

    Returns:
        [S] values, in logits.
    """
    Q = rewards + (probabilities * next_values[successors]).sum(-1)
    return beta * exact.log_partition(ref_logps, Q, beta)


def token_advantage(policy_logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return β (log π − log π_ref) of each token, which at the optimum is its advantage Q* − V*.

    Q* and V* are the soft values of the KL-regularised token MDP (Rafailov et al. 2024, whose Q*
    contains β log π_ref as well).

    Args:
        policy_logps: [B, T] log π of the tokens that were written, in nats.
        ref_logps: [B, T] log π_ref of the same tokens, in nats.
        mask: [B, T] True on real tokens.
        beta: strength of the KL penalty.

    Returns:
        [B, T] in logits; 0 on masked tokens, even if the inputs are inf or NaN there.
    """
    return (beta * (policy_logps - ref_logps)).masked_fill(~mask, 0.0)


def _float64(*rows: list | float) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    draws = torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)
    return (10 * scale * draws).round() / 10


def _tables(S: int, A: int, K: int, seed: int) -> tuple[Tensor, ...]:
    """successors, probabilities, rewards, ref_logps and next_values of a random MDP."""
    successors = torch.randint(S, (S, A, K), generator=make_generator(seed))
    probabilities = _random(S, A, K, seed=seed + 1).softmax(-1)
    ref_logps = _random(S, A, seed=seed + 2).log_softmax(-1)
    return (
        successors,
        probabilities,
        _random(S, A, seed=seed + 3),
        ref_logps,
        _random(S, seed=seed + 4, scale=2),
    )


# Two states. In the first, the second action is a gamble between the next values 2 and −3.
_GAMBLE = (
    torch.tensor([[[0, 0], [0, 1]], [[1, 1], [1, 0]]]),
    _float64([[1.0, 0.0], [0.75, 0.25]], [[1.0, 0.0], [0.5, 0.5]]),
    _float64([0.0, 1.0], [0.5, -1.0]),
    _float64([0.5, 0.5], [0.25, 0.75]).log(),
    _float64(2.0, -3.0),
)


def _backup_cases() -> list[Case]:
    plain = [
        (*_GAMBLE, 0.5),
        (*_tables(1, 3, 1, seed=1), 2.0),
        (*_tables(3, 2, 2, seed=11), 0.5),
        (*_tables(4, 3, 3, seed=21), 1.5),
        (*(t.float() if t.is_floating_point() else t for t in _tables(3, 4, 2, seed=31)), 0.7),
    ]
    successors, probabilities, rewards, ref_logps, next_values = _tables(3, 2, 2, seed=41)
    never = _float64([0.0, -torch.inf]).expand(3, 2)
    corners = [
        (successors, probabilities, 1000 * rewards, ref_logps, next_values, 0.5),
        (successors, probabilities, rewards - 1000, ref_logps, next_values, 0.5),
        (successors, probabilities, rewards, ref_logps, next_values, 1e-3),
        (successors, probabilities, rewards, ref_logps, next_values, 1e3),
        (successors, probabilities, rewards, never, next_values, 0.5),  # π_ref is 0 somewhere
        (
            successors,
            probabilities,
            torch.zeros(3, 2).double(),
            ref_logps,
            torch.zeros(3).double(),
            0.5,
        ),
    ]
    names = ("successors", "probabilities", "rewards", "ref_logps", "next_values", "beta")
    return make_cases(names, plain, corners)


def _q(successors: Tensor, probabilities: Tensor, rewards: Tensor, next_values: Tensor) -> Tensor:
    return rewards + (probabilities * next_values[successors]).sum(-1)


_SOFT_BACKUP = Exercise(
    name="soft_backup",
    notebook="13",
    hints=(
        "First compute Q(s, a), of shape [S, A]. next_values[successors] gives the value of every "
        "outcome.",
        "Average over the outcomes, weighted by their probabilities, before you exponentiate "
        "anything.",
        "The rest is β log Z of a bandit whose rewards are Q. You wrote log Z in notebook 06.",
    ),
    solution=soft_backup,
    cases=_backup_cases,
    mistakes=(
        Mistake(
            "exp before expectation",
            "You put the outcomes inside the exponential, next to the actions. That is the value "
            "of an agent who can choose its luck. Average over chance first.",
            lambda succ, p, r, ref, V, beta: (
                beta
                * torch.logsumexp(
                    (ref[..., None] + p.log() + (r[..., None] + V[succ]) / beta).flatten(1), dim=1
                )
            ),
        ),
        Mistake(
            "hard maximum",
            "This is ordinary value iteration: only the best action counts, and leaving the "
            "reference costs nothing.",
            lambda succ, p, r, ref, V, beta: _q(succ, p, r, V).max(-1).values,
        ),
        Mistake(
            "mean of the reference",
            "This is the value of following the reference. The optimal policy moves towards the "
            "better actions.",
            lambda succ, p, r, ref, V, beta: (ref.exp() * _q(succ, p, r, V)).sum(-1),
        ),
        Mistake(
            "reference forgotten",
            "You count all actions equally. Where is π_ref in the sum?",
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(_q(succ, p, r, V) / beta, dim=-1)
            ),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. It is in the formula twice.",
            lambda succ, p, r, ref, V, beta: soft_backup(succ, p, r, ref, V, 1.0),
        ),
        Mistake(
            "beta only inside",
            "You divide Q by β, but you do not turn the logarithm back into logits. Your result "
            "is V/β.",
            lambda succ, p, r, ref, V, beta: soft_backup(succ, p, r, ref, V, beta) / beta,
        ),
        Mistake(
            "beta only outside",
            "You multiply the logarithm by β. But what does β do to Q in the exponent?",
            lambda succ, p, r, ref, V, beta: beta * soft_backup(succ, p, r, ref, V, 1.0),
        ),
        Mistake(
            "outcomes not weighted",
            "You count every outcome equally. How likely is each of them?",
            lambda succ, p, r, ref, V, beta: (
                beta * exact.log_partition(ref, r + V[succ].mean(-1), beta)
            ),
        ),
        Mistake(
            "first outcome only",
            "You use only the first outcome of each action. What about the others?",
            lambda succ, p, r, ref, V, beta: (
                beta * exact.log_partition(ref, r + V[succ[..., 0]], beta)
            ),
        ),
        Mistake(
            "future forgotten",
            "Your result does not depend on next_values. What comes after this step?",
            lambda succ, p, r, ref, V, beta: beta * exact.log_partition(ref, r, beta),
        ),
        Mistake(
            "reward forgotten",
            "Your result does not depend on the rewards of this step.",
            lambda succ, p, r, ref, V, beta: soft_backup(succ, p, 0 * r, ref, V, beta),
        ),
        Mistake(
            "value of the state itself",
            "You add the value of the state before the step. Where does the action lead?",
            lambda succ, p, r, ref, V, beta: beta * exact.log_partition(ref, r + V[:, None], beta),
        ),
        Mistake(
            "sign",
            "In your result, bad actions raise the value. Look at the sign of Q.",
            lambda succ, p, r, ref, V, beta: soft_backup(succ, p, -r, ref, -V, beta),
        ),
        Mistake(
            "probabilities in the exponent",
            "Inside the exponential, the reference should be a log-probability.",
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref.exp() + _q(succ, p, r, V) / beta, dim=-1)
            ),
        ),
        Mistake(
            "overflow",
            "The formula is right, but in floating point exp(2000) is infinite and exp(−2000) is "
            "0. Stay in logarithms.",
            lambda succ, p, r, ref, V, beta: (
                beta * (ref.exp() * (_q(succ, p, r, V) / beta).exp()).sum(-1).log()
            ),
        ),
    ),
)


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _logps(*shape: int, seed: int) -> Tensor:
    """Made-up log-probabilities of single tokens; the masked places are filled too."""
    return -_random(*shape, seed=seed).abs() - 0.1


def _advantage_cases() -> list[Case]:
    plain = [
        (_float64([-1.0, -0.5]), _float64([-2.0, -0.3]), _mask(2, T=2), 0.5),
        (_float64([-1.0, -0.5, -3.0]), _float64([-2.0, -0.3, -1.0]), _mask(2, T=3), 0.5),
        (_logps(2, 3, seed=1), _logps(2, 3, seed=2), _mask(1, 3, T=3), 2.0),
        (_logps(3, 4, seed=3), _logps(3, 4, seed=4), _mask(4, 2, 3, T=4), 0.7),
        (_logps(2, 5, seed=5).float(), _logps(2, 5, seed=6).float(), _mask(5, 4, T=5), 0.1),
    ]
    nothing = _float64([-1.0, -torch.inf, -torch.inf])
    corners = [
        (nothing, _float64([-2.0, -torch.inf, -torch.inf]), _mask(1, T=3), 0.5),  # padded with −inf
        (_float64([-1.0, 0.0]), _float64([-1.5, -torch.inf]), _mask(1, T=2), 0.5),
        (_float64([-900.0, -0.1]), _float64([-0.1, -900.0]), _mask(2, T=2), 0.5),
        (_float64([-1.0, -2.0]), _float64([-1.0, -2.0]), _mask(2, T=2), 0.5),  # policy = reference
        (_logps(2, 2, seed=7), _logps(2, 2, seed=8), _mask(0, 2, T=2), 0.5),  # an empty row
    ]
    return make_cases(("policy_logps", "ref_logps", "mask", "beta"), plain, corners)


_TOKEN_ADVANTAGE = Exercise(
    name="token_advantage",
    notebook="13",
    hints=(
        "Return one number for each token, so do not sum: [B, T] in, [B, T] out.",
        "The logarithm of a ratio of probabilities is a difference of log-probabilities.",
        "Where the mask is False, the result is 0, whatever the inputs are there. Fill these "
        "places instead of multiplying by the mask.",
    ),
    solution=token_advantage,
    cases=_advantage_cases,
    mistakes=(
        Mistake(
            "mask forgotten",
            "You count tokens after the end of a response. Where does the mask come in?",
            lambda policy, ref, mask, beta: beta * (policy - ref),
        ),
        Mistake(
            "beta forgotten",
            "Your result does not depend on β. What turns nats into units of reward?",
            lambda policy, ref, mask, beta: token_advantage(policy, ref, mask, 1.0),
        ),
        Mistake(
            "divided by beta",
            "With a small β, a reward of one logit moves the policy far. So how much reward does "
            "a given log-ratio stand for?",
            lambda policy, ref, mask, beta: token_advantage(policy, ref, mask, 1 / beta),
        ),
        Mistake(
            "sign",
            "If the policy says a word more often than the reference does, its number should be "
            "positive.",
            lambda policy, ref, mask, beta: token_advantage(ref, policy, mask, beta),
        ),
        Mistake(
            "summed over tokens",
            "This is the implicit reward of a whole response. Here every token has its own number.",
            lambda policy, ref, mask, beta: token_advantage(policy, ref, mask, beta).sum(1),
        ),
        Mistake(
            "cumulative sums",
            "Each of your entries includes the tokens before it. What did this token add?",
            lambda policy, ref, mask, beta: (
                token_advantage(policy, ref, mask, beta).cumsum(1) * mask
            ),
        ),
        Mistake(
            "sums to the end",
            "Each of your entries includes the tokens after it. What did this token add?",
            lambda policy, ref, mask, beta: (
                token_advantage(policy, ref, mask, beta).flip(1).cumsum(1).flip(1) * mask
            ),
        ),
        Mistake(
            "difference of probabilities",
            "These are differences of probabilities. The formula has the logarithm of a ratio.",
            lambda policy, ref, mask, beta: token_advantage(policy.exp(), ref.exp(), mask, beta),
        ),
        Mistake(
            "ratio without logarithm",
            "This is β times the ratio itself, which is never negative. Where is the logarithm?",
            lambda policy, ref, mask, beta: beta * (policy - ref).exp().masked_fill(~mask, 0.0),
        ),
        Mistake(
            "divided by the length",
            "You divide by the length, so each token of a long response gets less. The tokens "
            "should sum to the response's implicit reward, not to its mean.",
            lambda policy, ref, mask, beta: (
                token_advantage(policy, ref, mask, beta) / mask.sum(1, keepdim=True).clamp(min=1)
            ),
        ),
        Mistake(
            "NaN behind the mask",
            "The numbers are right, but 0 · (−∞ + ∞) is NaN. So multiplying by the mask does not "
            "remove what is there. Fill these places instead.",
            lambda policy, ref, mask, beta: beta * (policy - ref) * mask,
        ),
    ),
)

EXERCISES = (_SOFT_BACKUP, _TOKEN_ADVANTAGE)
