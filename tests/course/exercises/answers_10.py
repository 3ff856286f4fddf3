"""Answers to the exercises of notebook 10, as students write them."""

import math

import torch


def softplus(x):
    return torch.nn.functional.softplus(x)


def margin(c, r, ref_c, ref_r, beta):
    return beta * ((c - r) - (ref_c - ref_r))


def loss_by_logsigmoid(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    policy = policy_chosen_logps - policy_rejected_logps
    reference = ref_chosen_logps - ref_rejected_logps
    return -torch.nn.functional.logsigmoid(beta * (policy - reference)).mean()


def loss_by_cross_entropy(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    policy = torch.stack([policy_chosen_logps, policy_rejected_logps], dim=1)
    reference = torch.stack([ref_chosen_logps, ref_rejected_logps], dim=1)
    first = torch.zeros(len(policy), dtype=torch.long)
    return torch.nn.functional.cross_entropy(beta * (policy - reference), first)


def loss_by_loops(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    total = 0.0
    for i in range(len(policy_chosen_logps)):
        chosen = policy_chosen_logps[i] - ref_chosen_logps[i]
        rejected = policy_rejected_logps[i] - ref_rejected_logps[i]
        behind = beta * rejected - beta * chosen
        total = total + torch.logaddexp(torch.zeros_like(behind), behind)
    return total / len(policy_chosen_logps)


def weight_by_softmax(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    return torch.softmax(beta * torch.stack([chosen, rejected]), dim=0)[1]


def weight_by_autograd(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    columns = policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    m = margin(*columns, beta).detach().requires_grad_()
    return -torch.autograd.grad(softplus(-m).sum(), m)[0]


def weight_by_loops(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    weights = []
    columns = (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        m = margin(*row, beta)
        weights.append(1 / (1 + math.exp(m)) if m < 500 else 0.0)
    return weights


def pairs_by_where(first, second, p_first, u):
    wins = (u < p_first).unsqueeze(1)
    return (
        torch.where(wins, first, second),
        torch.where(wins, second, first),
        (first != second).any(dim=1),
    )


def pairs_by_swapping_rows(first, second, p_first, u):
    chosen, rejected = first.clone(), second.clone()
    lost = ~(u < p_first)
    chosen[lost], rejected[lost] = second[lost], first[lost]
    return chosen, rejected, ~(chosen == rejected).all(1)


def pairs_by_loops(first, second, p_first, u):
    chosen, rejected, differ = [], [], []
    for a, b, p, number in zip(first, second, p_first, u, strict=True):
        better, worse = (a, b) if number < p else (b, a)
        chosen.append(better)
        rejected.append(worse)
        differ.append(a.tolist() != b.tolist())
    return torch.stack(chosen), torch.stack(rejected), torch.tensor(differ)


RIGHT = {
    "dpo_loss": [loss_by_logsigmoid, loss_by_cross_entropy, loss_by_loops],
    "dpo_gradient_weight": [weight_by_softmax, weight_by_autograd, weight_by_loops],
    "online_pairs": [pairs_by_where, pairs_by_swapping_rows, pairs_by_loops],
}


def loss_two_sigmoids(c, r, ref_c, ref_r, beta):
    return softplus(-beta * (c - ref_c)).mean() + softplus(beta * (r - ref_r)).mean()


def loss_rejected_detached(c, r, ref_c, ref_r, beta):
    with torch.no_grad():
        rejected = beta * (r - ref_r)
    return softplus(rejected - beta * (c - ref_c)).mean()


def ordered(wins, first, second):
    """Chosen and rejected for given winners [N]."""
    wins = wins[:, None]
    return torch.where(wins, first, second), torch.where(wins, second, first)


def differ(first, second):
    return ~torch.eq(first, second).all(-1)


WRONG = {
    "dpo_loss": [
        (lambda *a: -softplus(-margin(*a)).mean(), "sign"),
        (lambda *a: softplus(margin(*a)).mean(), "swapped pair"),
        (lambda c, r, rc, rr, beta: softplus(-margin(c, r, rc, rr, 1)).mean(), "beta forgotten"),
        (lambda c, r, rc, rr, b: b * softplus(-margin(c, r, rc, rr, 1)).mean(), "beta outside"),
        (lambda c, r, rc, rr, beta: softplus(beta * r - beta * c).mean(), "reference forgotten"),
        (lambda *a: softplus(-margin(*a)).sum(), "sum instead of mean"),
        (loss_two_sigmoids, "two separate sigmoids"),
        (loss_rejected_detached, "rejected detached"),
        (lambda *a: -torch.log(torch.sigmoid(margin(*a))).mean(), "overflow"),
        (lambda *a: softplus(-margin(*a)), None),
        (lambda c, r, rc, rr, beta: softplus(-margin(c.detach(), r, rc, rr, beta)).mean(), None),
        (lambda *a: (margin(*a) / a[4] - 1 / (2 * a[4])).square().mean(), None),
    ],
    "dpo_gradient_weight": [
        (lambda *a: 1 / (1 + torch.exp(-margin(*a))), "wrong way round"),
        (lambda c, r, rc, rr, beta: torch.sigmoid(-margin(c, r, rc, rr, 1)), "beta forgotten"),
        (lambda *a: a[-1] * (1 - torch.sigmoid(margin(*a))), "times beta"),
        (lambda *a: torch.sigmoid(margin(*a)) - 1, "negative"),
        (
            lambda *a: torch.sigmoid(margin(*a)) * (1 - torch.sigmoid(margin(*a))),
            "slope of the sigmoid",
        ),
        (lambda *a: softplus(-margin(*a)), "the loss"),
        (lambda *a: torch.mean(torch.sigmoid(-margin(*a))), "mean"),
        (lambda *a: torch.sigmoid(-margin(*a)) ** 2, None),
        (lambda c, r, rc, rr, beta: 1 - torch.sigmoid(beta * (c - r)), None),
    ],
    "online_pairs": [
        (lambda a, b, p, u: (*ordered(p > 0.5, a, b), differ(a, b)), "likelier one always wins"),
        (lambda a, b, p, u: (*ordered(u < p, b, a), differ(a, b)), "swapped"),
        (lambda a, b, p, u: (a.clone(), b.clone(), differ(a, b)), "annotator ignored"),
        (
            lambda a, b, p, u: (ordered(u < p, a, b)[0], b.clone(), differ(a, b)),
            "second always rejected",
        ),
        (lambda a, b, p, u: (*ordered(u < p, a, b), (a != b).all(1)), "all tokens differ"),
        (lambda a, b, p, u: (*ordered(u < p, a, b), ~differ(a, b)), "same instead of different"),
        (
            lambda a, b, p, u: (*ordered(u < p, a, b), a[:, 0] != b[:, 0]),
            "first token only",
        ),
        (lambda a, b, p, u: (*ordered(u < p, a, b), torch.ones(len(a)).bool()), None),
        (lambda a, b, p, u: ordered(u < p, a, b), None),
    ],
}
