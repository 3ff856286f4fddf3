"""The exercises of notebook 14: one backup on an automaton, and a KL estimated by samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import random_logps, random_numbers
from rlhf_toy.training import make_generator


def automaton_backup(
    values: Tensor, successors: Tensor, rewards: Tensor, ref_logps: Tensor, beta: float
) -> Tensor:
    """Return V_t(s) = β log Σ_a π_ref(a|s) exp((r(s, a) + V_{t+1}(s′))/β), [X, S]."""
    return beta * (ref_logps + (rewards + values[:, successors]) / beta).logsumexp(-1)


def _backup_cases() -> list[Case]:
    def tables(X: int, S: int, A: int, seed: int, scale: float = 1.0) -> tuple[Tensor, ...]:
        successors = torch.randint(S, (S, A), generator=make_generator(seed))
        values, rewards = (
            scale * random_numbers(*shape, seed=seed + i, scale=1.0)
            for i, shape in enumerate([(X, S), (X, S, A)])
        )
        return values, successors, rewards, random_logps(S, A, seed=seed + 2)

    plain = [(*tables(n, n + 1, n + 1, seed=10 * n), 0.5 * n) for n in (1, 2, 3)]
    corners = [(*tables(1, 2, 3, seed=41), 1e-3), (*tables(2, 2, 3, seed=51, scale=500.0), 0.5)]
    names = ("values", "successors", "rewards", "ref_logps", "beta")
    return make_cases(names, plain, corners)


_BACKUP = Exercise(
    name="automaton_backup",
    notebook="14",
    hints=(
        "values[:, successors] has the shape [X, S, A]: what is still to come after each token.",
        "A token earns its own reward and then leads on. What is the total that β divides?",
        "In logarithms the sum over the tokens is torch.logsumexp. Where does log π_ref go?",
    ),
    solution=automaton_backup,
    cases=_backup_cases,
    mistakes=(
        Mistake(
            "average",
            "You average over the reference's tokens: the value of never leaving it. Which average "
            "does the optimum take, where better tokens count more?",
            lambda V, succ, r, ref, beta: (ref.exp() * (r + V[:, succ])).sum(-1),
        ),
        Mistake(
            "maximum",
            "You take the best token and pay nothing for leaving the reference. Which β is that?",
            lambda V, succ, r, ref, beta: (r + V[:, succ]).max(-1).values,
        ),
        Mistake(
            "log Z",
            "Your result is log Z, in nats. Rewards are in logits: what turns one into the other?",
            lambda V, succ, r, ref, beta: automaton_backup(V, succ, r, ref, beta) / beta,
        ),
        Mistake(
            "values not divided",
            "You divide the reward by β, but not what is still to come. Are they not both rewards?",
            lambda V, succ, r, ref, beta: beta * (ref + r / beta + V[:, succ]).logsumexp(-1),
        ),
        Mistake(
            "reference divided",
            "You divide log π_ref by β too, so its probabilities no longer add up to 1. What does "
            "the formula divide?",
            lambda V, succ, r, ref, beta: beta * ((ref + r + V[:, succ]) / beta).logsumexp(-1),
        ),
        Mistake(
            "reference forgotten",
            "You count all tokens alike, the likely and the unlikely. Where is π_ref?",
            lambda V, succ, r, ref, beta: beta * ((r + V[:, succ]) / beta).logsumexp(-1),
        ),
        Mistake(
            "no successor",
            "You add the value of the state you are in. In which state are you after the token?",
            lambda V, succ, r, ref, beta: beta * (ref + (r + V[..., None]) / beta).logsumexp(-1),
        ),
        Mistake(
            "overflow",
            "Your formula is right, but exp overflows where rewards are large compared with β. "
            "Which function of torch computes log Σ exp safely?",
            lambda V, succ, r, ref, beta: (
                beta * (ref.exp() * ((r + V[:, succ]) / beta).exp()).sum(-1).log()
            ),
        ),
    ),
)


def kl_estimate(
    logps: Tensor, best_logps: Tensor, tokens: Tensor, mask: Tensor, full: bool
) -> tuple[Tensor, Tensor]:
    """Return an estimate of KL(π ‖ π*) from B responses, and its standard error."""
    return _summary(_terms(logps, best_logps, tokens, mask, full).sum(1))


def _summary(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mean(), rows.std() / len(rows) ** 0.5


def _terms(logps: Tensor, best: Tensor, tokens: Tensor, mask: Tensor, full: bool) -> Tensor:
    """The terms of each token, [B, T], 0 after the end."""
    log_ratios = logps - best
    drawn = log_ratios.gather(-1, tokens[..., None])[..., 0]
    return ((logps.exp() * log_ratios).sum(-1) if full else drawn) * mask


def _kl_cases() -> list[Case]:
    def case(B: int, T: int, A: int, seed: int, full: bool, end: int = 1) -> tuple:
        logps, best = (random_logps(B, T, A, seed=seed + i) for i in range(2))
        tokens = torch.randint(A, (B, T), generator=make_generator(seed))
        lengths = torch.arange(B) % T + 1 if end else torch.full((B,), T)
        return logps, best, tokens, torch.arange(T) < lengths[:, None], full

    sizes = [(3, 2, 2), (4, 3, 3), (6, 2, 4)]
    plain = [case(*size, seed=10 * i, full=f) for i, size in enumerate(sizes) for f in (0, 1)]
    corners = [case(4, 1, 2, seed=91, full=f, end=0) for f in (False, True)]
    names = ("logps", "best_logps", "tokens", "mask", "full")
    return make_cases(names, [(*c[:4], bool(c[4])) for c in plain], corners)


_KL = Exercise(
    name="kl_estimate",
    notebook="14",
    returns=("estimate", "standard error"),
    hints=(
        "With full=True each visited state gives Σ_a π(a|s) log π(a|s)/π*(a|s), else log π/π* of "
        "the one token that was drawn: (logps - best_logps).gather(-1, tokens[..., None])[..., 0].",
        "Which states were visited? Set the others to 0 before you sum over the tokens.",
        "Now you have B independent numbers, one for each response. What is the standard error of "
        "their mean?",
    ),
    solution=kl_estimate,
    cases=_kl_cases,
    mistakes=(
        Mistake(
            "sign",
            "Your estimate is minus the KL. Which of the two policies wrote the samples, and "
            "whose log-probability comes first?",
            lambda *args: _summary(-_terms(*args).sum(1)),
        ),
        Mistake(
            "mean over tokens",
            "You average over the tokens of a response. Its log-probability is a sum over its "
            "tokens. What does that make of its log-ratio?",
            lambda *args: _summary(_terms(*args).sum(1) / args[3].sum(1)),
        ),
        Mistake(
            "mask forgotten",
            "You go on counting after the end of a response. Was anything written there?",
            lambda p, best, tokens, mask, full: _summary(
                _terms(p, best, tokens, torch.ones_like(mask), full).sum(1)
            ),
        ),
        Mistake(
            "standard deviation",
            "Your second number does not shrink with more responses: it is the spread of single "
            "responses. How much does the mean of B of them vary?",
            lambda *args: (_terms(*args).sum(1).mean(), _terms(*args).sum(1).std()),
        ),
        Mistake(
            "full ignored",
            "You always use the tokens that were drawn. What should `full` change?",
            lambda *args: _summary(_terms(*args[:4], False).sum(1)),
        ),
        Mistake(
            "the optimum's weights",
            "You weight the tokens by π*. In KL(π ‖ π*), over whose tokens is the average?",
            lambda p, best, *rest: _summary(
                (-_terms(best, p, *rest) if rest[-1] else _terms(p, best, *rest)).sum(1)
            ),
        ),
        Mistake(
            "tokens independent",
            "Your estimate is right, but its error treats the tokens of a response as independent "
            "draws. Which numbers are independent here?",
            lambda *args: (
                _terms(*args).sum(1).mean(),
                _terms(*args)[args[3]].std() * args[3].sum() ** 0.5 / len(args[3]),
            ),
        ),
    ),
)

EXERCISES = (_BACKUP, _KL)
