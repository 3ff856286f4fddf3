"""The exercises of notebook 11: IPO, SimPO, the parts of a gap, and a DPO loss to repair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_logps, random_numbers
from rlhf_toy.exact import gibbs_policy, objective

_POLICY = ("policy_chosen_logps", "policy_rejected_logps")
_TOKENS = ("chosen_token_logps", "rejected_token_logps")


def split_gap(
    trained: Tensor, data: Tensor, endless: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of a policy's gap that are due to the method, the data and the optimiser.

    J* − J(endless), J(endless) − J(data) and J(data) − J(trained), divided by J* − J(reference); J
    is a mean over prompts. All are log-probabilities [X, Y]; `rewards` [X, Y] are in logits.
    """
    best = gibbs_policy(ref_logps, rewards, beta)
    arms = torch.stack([best, endless, data, trained, ref_logps])
    J = objective(arms, ref_logps, rewards, beta).mean(1)
    return tuple((J[:3] - J[1:4]) / (J[0] - J[4]))


def repair_dpo(
    chosen_token_logps: Tensor, rejected_token_logps: Tensor, ref_chosen_token_logps: Tensor,
    ref_rejected_token_logps: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, beta: float,
) -> Tensor:  # fmt: skip
    """Return DPO's loss, in nats, from tokens: log π [B, T] × 4, True on real ones [B, T] × 2."""
    tokens = (chosen_token_logps, rejected_token_logps)
    tokens += (ref_chosen_token_logps, ref_rejected_token_logps)
    masks = (chosen_mask, rejected_mask) * 2
    sums = (t.masked_fill(~mask, 0.0).sum(1) for t, mask in zip(tokens, masks, strict=True))
    return losses.dpo_loss(*sums, beta)


def _logps(n: int, seed: int) -> tuple[Tensor, ...]:
    """Four made-up columns [n] of log-probabilities."""
    return tuple(-random_numbers(4, n, seed=seed).abs() - 0.1)


def _h(c: Tensor, r: Tensor, ref_c: Tensor, ref_r: Tensor) -> Tensor:
    return (c - ref_c) - (r - ref_r)


def _ipo_cases() -> list[Case]:
    plain = [(*_logps(n, seed), beta) for n, seed, beta in ((1, 1, 0.5), (3, 2, 2.0), (6, 3, 0.1))]
    same = float64(-1.0, -2.0)
    corners = [(same, same, same, same, 0.5), (1e3 * same, same, same, same, 0.5)]
    names = (*_POLICY, "ref_chosen_logps", "ref_rejected_logps", "beta")
    return make_cases(names, plain, corners)


def _simpo_cases() -> list[Case]:
    lengths = float64(2.0, 5.0, 1.0, 3.0), float64(4.0, 1.0, 1.0, 7.0)
    plain = [
        (*(t[:n] for t in (*_logps(4, seed)[:2], *lengths)), beta, gamma)
        for n, seed, beta, gamma in ((1, 4, 2.0, 0.5), (3, 5, 0.5, 1.0), (4, 6, 2.5, 0.0))
    ]
    far = float64(-9e3, -1.0), float64(-1.0, -9e3), *(float64(1.0, 3.0),) * 2
    names = (*_POLICY, "chosen_lengths", "rejected_lengths", "beta", "gamma")
    return make_cases(names, plain, [(*far, 1.0, 0.5)])


def _gap_cases() -> list[Case]:
    plain = [
        (*(random_logps(X, 4, seed=seed + i) for i in range(4)),
         random_numbers(X, 4, seed=seed), beta)
        for X, seed, beta in ((1, 10, 2.0), (2, 20, 0.5), (3, 30, 0.3))
    ]  # fmt: skip
    ref, rewards = random_logps(2, 3, seed=40), random_numbers(2, 3, seed=41)
    best = gibbs_policy(ref, rewards, 1.0)
    names = ("trained", "data", "endless", "ref_logps", "rewards", "beta")
    return make_cases(names, plain, [(best, ref, best, ref, rewards, 1.0)])


def _token_cases() -> list[Case]:
    def case(B: int, T: int, seed: int, beta: float, *lengths: list[int]) -> tuple:
        tokens = -random_numbers(4, B, T, seed=seed).abs() - 0.1
        return *tokens, *(torch.arange(T) < torch.tensor(n)[:, None] for n in lengths), beta

    plain = [
        case(1, 2, 50, 0.5, [2], [1]),
        case(2, 3, 51, 2.0, [1, 3], [2, 2]),
        case(4, 5, 52, 0.3, [5, 2, 3, 1], [1, 4, 2, 5]),
    ]
    far = case(1, 3, 53, 1.0, [3], [1])
    names = (*_TOKENS, *(f"ref_{name}" for name in _TOKENS), "chosen_mask", "rejected_mask", "beta")
    return make_cases(names, plain, [(1e4 * far[0], *far[1:])])


_IPO = Exercise(
    name="ipo_loss",
    notebook="11",
    hints=(
        "Which h does the loss ask for? At h = 1/(2β) the loss of a pair is 0.",
        "There is no sigmoid: square the distance of each h, then take the mean.",
    ),
    solution=losses.ipo_loss,
    cases=_ipo_cases,
    differentiable=_POLICY,
    mistakes=tuple(Mistake(*row) for row in (
        ("beta times h", "Your h is multiplied by β. Where does β enter the formula?",
         lambda *a: ((a[4] * _h(*a[:4]) - 1 / (2 * a[4])) ** 2).mean()),
        ("1/beta", "Your loss is 0 at h = 1/β. Which h does IPO ask for?",
         lambda *a: ((_h(*a[:4]) - 1 / a[4]) ** 2).mean()),
        ("beta/2", "Your loss is 0 at h = β/2. Should a stronger penalty allow a larger h?",
         lambda *a: ((_h(*a[:4]) - a[4] / 2) ** 2).mean()),
        ("reference forgotten", "Your h ignores the reference. What should it be at π = π_ref?",
         lambda c, r, ref_c, ref_r, beta: ((c - r - 1 / (2 * beta)) ** 2).mean()),
        ("hinge", "Your loss is 0 once h is large enough. What does the square do there?",
         lambda *a: (F.relu(1 / (2 * a[4]) - _h(*a[:4])) ** 2).mean()),
        ("sum", "You add up the pairs. What keeps the step size independent of the batch size?",
         lambda *a: ((_h(*a[:4]) - 1 / (2 * a[4])) ** 2).sum()),
    )),
)  # fmt: skip


def _simpo(c: Tensor, r: Tensor, beta: float, gamma: float) -> Tensor:
    return -F.logsigmoid(beta * (c - r) - gamma).mean()


_SIMPO = Exercise(
    name="simpo_loss",
    notebook="11",
    hints=(
        "Divide each log-probability by the number of its own tokens.",
        "γ is a margin in logits, so it is subtracted after β. Use F.logsigmoid.",
    ),
    solution=losses.simpo_loss,
    cases=_simpo_cases,
    differentiable=_POLICY,
    mistakes=tuple(Mistake(*row) for row in (
        ("not normalised", "Your loss ignores the lengths. What is the reward of one token?",
         lambda c, r, n, m, *a: _simpo(c, r, *a)),
        ("one length", "You divide both by the length of the chosen one. Whose tokens are they?",
         lambda c, r, n, m, *a: _simpo(c / n, r / n, *a)),
        ("lengths swapped", "You divide each log-probability by the other response's length. Which "
         "two belong together?", lambda c, r, n, m, *a: _simpo(c / m, r / n, *a)),
        ("gamma added", "A larger γ makes your loss smaller. Should the loss ask for more or less?",
         lambda c, r, n, m, beta, gamma: _simpo(c / n, r / m, beta, -gamma)),
        ("gamma forgotten", "Your loss ignores γ. Which margin does it ask for?",
         lambda c, r, n, m, beta, gamma: _simpo(c / n, r / m, beta, 0.0)),
        ("gamma times beta", "You multiply γ by β. Is γ in nats per token or in logits?",
         lambda c, r, n, m, beta, gamma: _simpo(c / n, r / m, beta, beta * gamma)),
    )),
)  # fmt: skip


def _parts(*a: Tensor) -> Tensor:
    return torch.stack(split_gap(*a))


def _unit(*a: Tensor) -> Tensor:
    best = gibbs_policy(*a[3:])
    return objective(best, *a[3:]) - objective(a[3], *a[3:])


_GAP = Exercise(
    name="split_gap",
    notebook="11",
    hints=(
        "Compute J of four policies, from π* to the trained one. What are the three steps?",
        "objective(logps, ref_logps, rewards, beta) gives J of each prompt, and gibbs_policy(...) "
        "gives π*. A step may go up, so a part may be negative.",
    ),
    solution=split_gap,
    cases=_gap_cases,
    returns=("method's part", "data's part", "optimiser's part"),
    mistakes=tuple(Mistake(*row) for row in (
        ("order", "Your first part is the optimiser's. Which part comes first in the docstring?",
         lambda *a: tuple(_parts(*a).flip(0))),
        ("sign", "Your parts are negative where a step loses J. What do they add up to?",
         lambda *a: tuple(-_parts(*a))),
        ("not divided", "Your parts are in logits. What is the whole gap of the reference?",
         lambda *a: tuple(_parts(*a) * _unit(*a).mean())),
        ("divided by J*", "You divide by J*. Does adding 10 to all rewards change your parts?",
         lambda *a: tuple(_parts(*a) * _unit(*a).mean()
                          / objective(gibbs_policy(*a[3:]), *a[3:]).mean())),
        ("gaps to the optimum", "Each of your parts starts at π*. Then what is counted twice?",
         lambda *a: tuple(_parts(*a).cumsum(0))),
        ("clamped", "You cut negative parts at 0. Do your parts still add up to the gap?",
         lambda *a: tuple(_parts(*a).clamp(min=0))),
    )),
)  # fmt: skip


def _dpo(*a: Tensor, masks: bool = True, mean: bool = False, sign: int = 1, detach: bool = False):
    """DPO's loss from tokens, with one thing wrong."""
    tokens = zip(a[:4], (a[4], a[5]) * 2, strict=True)
    c, r, ref_c, ref_r = ((t * m if masks else t).sum(1) / (m.sum(1) if mean else 1)
                          for t, m in tokens)  # fmt: skip
    r = r.detach() if detach else r
    return -F.logsigmoid(a[6] * (c - r - sign * (ref_c - ref_r))).mean()


_REPAIR = Exercise(
    name="repair_dpo",
    notebook="11",
    hints=(
        "The broken function fails three checks. Which part of its code causes each?",
        "Which tokens are real? Which way round is the reference? Who gets a gradient?",
    ),
    solution=repair_dpo,
    cases=_token_cases,
    differentiable=_TOKENS,
    mistakes=tuple(Mistake(*row) for row in (
        ("still broken", "Nothing has changed: all three symptoms are still there. Which one can "
         "you explain?", lambda *a: _dpo(*a, masks=False, sign=-1, detach=True)),
        ("padding", "Your loss counts the padding. Which tokens belong to the response?",
         lambda *a: _dpo(*a, masks=False)),
        ("reference's sign", "At π = π_ref your loss is not log 2. With which sign does the "
         "reference's difference enter?", lambda *a: _dpo(*a, sign=-1)),
        ("detached", "The value is right, but the rejected tokens get no gradient. What stops it?",
         lambda *a: _dpo(*a, detach=True)),
        ("reference forgotten", "You dropped the reference. What should your loss be at π = π_ref?",
         lambda *a: _dpo(*a, sign=0)),
        ("mean", "You average over the tokens. What does the chain rule say about log π(y|x)?",
         lambda *a: _dpo(*a, mean=True)),
    )),
)  # fmt: skip

EXERCISES = (_IPO, _SIMPO, _GAP, _REPAIR)
