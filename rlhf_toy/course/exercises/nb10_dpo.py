"""The exercises of notebook 10: DPO's loss, the weight in its gradient, the pairs of a round."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64, random_numbers


def dpo_gradient_weight(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return σ(r̂(rejected) − r̂(chosen)) with r̂ = β log π/π_ref. [B] × 4 → [B] (Rafailov 2023)."""
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    return torch.sigmoid(rejected - chosen)


def online_pairs(
    first: Tensor, second: Tensor, p_first: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the chosen and the rejected responses [N, T], and where the two differ [N].

    Args:
        first: [N, T] token ids of one response to each prompt.
        second: [N, T] of another one, padded alike.
        p_first: [N] probability that the annotator prefers the first.
        u: [N] uniform random numbers: the first wins where u < p_first.
    """
    wins = (u < p_first)[:, None]
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    return chosen, rejected, (first != second).any(1)


def _pair_cases() -> list[Case]:
    def logps(n: int, seed: int) -> list[Tensor]:
        return [-random_numbers(n, seed=seed + i).abs() - 0.1 for i in range(4)]

    plain = [
        (float64(-1.0), float64(-2.0), float64(-1.5), float64(-1.8), 0.5),
        (float64(-1.0, -2.0), float64(-0.5, -2.5), float64(-1.2, -1.0), float64(-0.9, -2.0), 2.0),
        (*logps(4, 1), 0.3),
        (*(table.float() for table in logps(7, 5)), 0.5),
    ]
    same, other, far = float64(-1.0, -2.0), float64(-3.0, -0.5), float64(-2e3, -2e3)
    corners = [
        (same, other, same, other, 0.5),  # policy = reference
        (same, same, same, same, 0.5),  # a response compared with itself
        (float64(-1e4, 0.0), float64(0.0, -1e4), same, same, 1.0),
        (same, other, far, far, 1.0),
    ]
    names = "policy_chosen_logps policy_rejected_logps ref_chosen_logps ref_rejected_logps beta"
    return make_cases(names.split(), plain, corners)


def _round_cases() -> list[Case]:
    def case(n: int, seed: int) -> tuple[Tensor, ...]:
        first, second = (random_numbers(n, 3, seed=seed + i).abs().long() for i in (0, 1))
        p, u = (random_numbers(n, seed=seed + i).sigmoid() for i in (2, 3))
        return first, second, p, u

    two = torch.tensor([[1, 2], [3, 4]])
    plain = [
        (two, two.flip(0), float64(0.7, 0.7), float64(0.2, 0.9)),
        (two, torch.tensor([[1, 5], [3, 4]]), float64(0.4, 0.6), float64(0.3, 0.1)),
        case(6, 1),
        case(8, 5),
    ]
    corners = [
        (two, two, float64(0.5, 0.5), float64(0.1, 0.9)),
        (two, two.flip(0), float64(0.0, 1.0), float64(0.0, 0.999)),
    ]
    return make_cases(("first", "second", "p_first", "u"), plain, corners)


def _margin(c: Tensor, r: Tensor, ref_c: Tensor, ref_r: Tensor, beta: float) -> Tensor:
    return beta * (c - ref_c) - beta * (r - ref_r)


def _mistakes(*rows: tuple) -> tuple[Mistake, ...]:
    return tuple(Mistake(*row) for row in rows)


# fmt: off
_DPO_LOSS = Exercise(
    name="dpo_loss", notebook="10", solution=losses.dpo_loss, cases=_pair_cases,
    differentiable=("policy_chosen_logps", "policy_rejected_logps"),
    hints=(
        "The implicit reward of a response is β (log π − log π_ref). What is the margin of a pair?",
        "It is the Bradley–Terry loss of notebook 02, with implicit rewards in place of rewards.",
        "torch.nn.functional.logsigmoid does not overflow.",
    ),
    mistakes=_mistakes(
        ("sign", "Your loss is negative: a log-likelihood. What does an optimiser minimise?",
         lambda *a: F.logsigmoid(_margin(*a)).mean()),
        ("swapped pair",
         "Your loss falls when the rejected response becomes likelier. Which one should gain?",
         lambda *a: -F.logsigmoid(-_margin(*a)).mean()),
        ("beta forgotten", "Your loss does not depend on β. Where is it in the implicit reward?",
         lambda *a: -F.logsigmoid(_margin(*a[:4], 1.0)).mean()),
        ("beta outside", "You multiply the whole loss by β. What does β multiply in the formula?",
         lambda *a: -a[4] * F.logsigmoid(_margin(*a[:4], 1.0)).mean()),
        ("reference forgotten",
         "Your loss ignores the reference. What should it be when the policy is the reference?",
         lambda c, r, ref_c, ref_r, beta: -F.logsigmoid(beta * (c - r)).mean()),
        ("sum instead of mean",
         "You add up the pairs, so a larger batch takes a larger step. What does |D| do?",
         lambda *a: -F.logsigmoid(_margin(*a)).sum()),
        ("two separate sigmoids",
         "You judge each response alone. Then does β log Z(x) still cancel?",
         lambda c, r, ref_c, ref_r, beta:
         -(F.logsigmoid(beta * (c - ref_c)) + F.logsigmoid(beta * (ref_r - r))).mean()),
        ("rejected detached",
         "The value is right, but no gradient reaches the rejected responses. What cuts it off?",
         lambda c, r, *rest: -F.logsigmoid(_margin(c, r.detach(), *rest)).mean()),
        ("overflow",
         "The formula is right, but for a large negative margin σ is 0 and its logarithm −∞. Which "
         "function computes log σ in one step?",
         lambda *a: -torch.sigmoid(_margin(*a)).log().mean()),
    ),
)

_WEIGHT = Exercise(
    name="dpo_gradient_weight", notebook="10", solution=dpo_gradient_weight, cases=_pair_cases,
    hints=(
        "Differentiate −log σ(m) with respect to m. What is left of the sigmoid?",
        "The more clearly the policy agrees with the annotator, the closer the weight is to 0.",
    ),
    mistakes=_mistakes(
        ("wrong way round",
         "Your weight is large where the policy agrees with the annotator. Where is more to learn?",
         lambda *a: torch.sigmoid(_margin(*a))),
        ("beta forgotten", "Your weight does not depend on β. Do the implicit rewards?",
         lambda *a: torch.sigmoid(-_margin(*a[:4], 1.0))),
        ("times beta",
         "Your weight has an extra factor β. In the formula, is it part of the weight?",
         lambda *a: a[4] * torch.sigmoid(-_margin(*a))),
        ("negative", "Your weight is negative. Where does the formula keep its minus sign?",
         lambda *a: -torch.sigmoid(-_margin(*a))),
        ("slope of the sigmoid",
         "You return the derivative of σ. Which function of the margin is in the loss?",
         lambda *a: torch.sigmoid(_margin(*a)) * torch.sigmoid(-_margin(*a))),
        ("the loss", "You return each pair's loss. What is its derivative in the margin?",
         lambda *a: -F.logsigmoid(_margin(*a))),
        ("mean", "You return one number. How many pairs have a weight of their own?",
         lambda *a: torch.sigmoid(-_margin(*a)).mean()),
    ),
)

_ONLINE = Exercise(
    name="online_pairs", notebook="10", solution=online_pairs, cases=_round_cases,
    returns=("chosen", "rejected", "differ"),
    hints=(
        "The first response wins where u < p_first. torch.where picks rows if you add a dimension.",
        "Two responses are the same if all their tokens are. What is the opposite of that?",
    ),
    mistakes=_mistakes(
        ("likelier one always wins",
         "You let the better response win every time. How often does it win with this annotator?",
         lambda a, b, p, u: online_pairs(a, b, p, torch.full_like(u, 0.5))),
        ("swapped", "You call the loser chosen. What does u < p_first mean?",
         lambda a, b, p, u: online_pairs(b, a, p, u)),
        ("annotator ignored",
         "Your first response is always chosen. Where do you use the annotator's answer?",
         lambda a, b, p, u: online_pairs(a, b, p, torch.full_like(u, -1.0))),
        ("second always rejected",
         "Your rejected response is always the second. What if the second one won?",
         lambda a, b, p, u: (online_pairs(a, b, p, u)[0], b, (a != b).any(1))),
        ("all tokens differ",
         "You count a pair as different only if no token agrees. When are two responses the same?",
         lambda a, b, p, u: (*online_pairs(a, b, p, u)[:2], (a != b).all(1))),
        ("same instead of different",
         "Your third result is True for equal responses. Which pairs can move the margin?",
         lambda a, b, p, u: (*online_pairs(a, b, p, u)[:2], (a == b).all(1))),
        ("first token only",
         "You compare the first tokens only. Can two different responses begin alike?",
         lambda a, b, p, u: (*online_pairs(a, b, p, u)[:2], a[:, 0] != b[:, 0])),
    ),
)
# fmt: on

EXERCISES = (_DPO_LOSS, _WEIGHT, _ONLINE)
