"""Answers to the exercises of notebook 08, as students write them."""

import math

import torch


def reward_by_difference(policy_logps, ref_logps, beta):
    return beta * (policy_logps - ref_logps)


def reward_term_by_term(policy_logps, ref_logps, beta):
    mine = beta * policy_logps
    theirs = beta * ref_logps
    return mine - theirs


def reward_by_torch_sub(policy_logps, ref_logps, beta):
    log_ratio = torch.sub(policy_logps.double(), ref_logps.double())
    return log_ratio.mul(beta)


def loss_by_logsigmoid(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    policy = policy_chosen_logps - policy_rejected_logps
    reference = ref_chosen_logps - ref_rejected_logps
    return -torch.nn.functional.logsigmoid(beta * (policy - reference)).mean()


def loss_by_softplus(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    return torch.nn.functional.softplus(rejected - chosen).mean()


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


def weight_by_sigmoid(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    return torch.sigmoid(rejected - chosen)


def weight_by_softmax(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    return torch.softmax(beta * torch.stack([chosen, rejected]), dim=0)[1]


def weight_by_autograd(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    chosen = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected = beta * (policy_rejected_logps - ref_rejected_logps)
    margin = (chosen - rejected).detach().requires_grad_()
    loss = -torch.nn.functional.logsigmoid(margin).sum()
    return -torch.autograd.grad(loss, margin)[0]


def weight_by_loops(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    weights = []
    columns = (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    for a, b, c, d in zip(*(column.tolist() for column in columns), strict=True):
        margin = beta * (a - c) - beta * (b - d)
        weights.append(1 / (1 + math.exp(margin)) if margin < 500 else 0.0)
    return weights


def repaired_by_summing(
    chosen_token_logps,
    rejected_token_logps,
    ref_chosen_token_logps,
    ref_rejected_token_logps,
    chosen_mask,
    rejected_mask,
    beta,
):
    chosen = ((chosen_token_logps - ref_chosen_token_logps) * chosen_mask).sum(1)
    rejected = ((rejected_token_logps - ref_rejected_token_logps) * rejected_mask).sum(1)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected)).mean()


def repaired_by_masked_fill(
    chosen_token_logps,
    rejected_token_logps,
    ref_chosen_token_logps,
    ref_rejected_token_logps,
    chosen_mask,
    rejected_mask,
    beta,
):
    def total(tokens, mask):
        return tokens.masked_fill(~mask, 0).sum(dim=-1)

    policy = total(chosen_token_logps, chosen_mask) - total(rejected_token_logps, rejected_mask)
    reference = total(ref_chosen_token_logps, chosen_mask) - total(
        ref_rejected_token_logps, rejected_mask
    )
    return torch.nn.functional.softplus(-beta * (policy - reference)).mean()


def repaired_by_loops(
    chosen_token_logps,
    rejected_token_logps,
    ref_chosen_token_logps,
    ref_rejected_token_logps,
    chosen_mask,
    rejected_mask,
    beta,
):
    terms = []
    for i in range(len(chosen_mask)):
        chosen = chosen_token_logps[i][chosen_mask[i]].sum()
        chosen = chosen - ref_chosen_token_logps[i][chosen_mask[i]].sum()
        rejected = rejected_token_logps[i][rejected_mask[i]].sum()
        rejected = rejected - ref_rejected_token_logps[i][rejected_mask[i]].sum()
        terms.append(torch.nn.functional.softplus(beta * (rejected - chosen)))
    return sum(terms) / len(terms)


RIGHT = {
    "implicit_reward": [reward_by_difference, reward_term_by_term, reward_by_torch_sub],
    "dpo_loss": [loss_by_logsigmoid, loss_by_softplus, loss_by_cross_entropy, loss_by_loops],
    "dpo_gradient_weight": [
        weight_by_sigmoid,
        weight_by_softmax,
        weight_by_autograd,
        weight_by_loops,
    ],
    "repair_dpo": [repaired_by_summing, repaired_by_masked_fill, repaired_by_loops],
}


def softplus(x):
    return torch.nn.functional.softplus(x)


def margin(c, r, ref_c, ref_r, beta):
    return beta * ((c - r) - (ref_c - ref_r))


def loss_two_sigmoids(c, r, ref_c, ref_r, beta):
    return softplus(-beta * (c - ref_c)).mean() + softplus(beta * (r - ref_r)).mean()


def loss_of_probabilities(c, r, ref_c, ref_r, beta):
    p = torch.exp(c) - torch.exp(ref_c)
    q = torch.exp(r) - torch.exp(ref_r)
    return softplus(beta * (q - p)).mean()


def loss_rejected_detached(c, r, ref_c, ref_r, beta):
    with torch.no_grad():
        rejected = beta * (r - ref_r)
    return softplus(rejected - beta * (c - ref_c)).mean()


def weight_naive(c, r, ref_c, ref_r, beta):
    a, b = torch.exp(beta * (c - ref_c)), torch.exp(beta * (r - ref_r))
    return b / (a + b)


def repair(c, r, rc, rr, cm, rm, beta, one=None, other=None):
    """DPO from tokens; `one` and `other` reduce the policy's and the reference's to numbers."""
    one = one or (lambda tokens, mask: (tokens * mask).sum(1))
    other = other or one
    return softplus(beta * (one(r, rm) - other(rr, rm) - one(c, cm) + other(rc, cm))).mean()


def mean_of_tokens(tokens, mask):
    return torch.where(mask, tokens, 0.0).sum(1) / mask.float().sum(1)


def last_of_tokens(tokens, mask):
    return torch.stack([row[real][-1] for row, real in zip(tokens, mask, strict=True)])


def half_of_the_loss(*a):
    return 0.5 * repair(*a)


WRONG = {
    "implicit_reward": [
        (lambda p, q, beta: p - q, "beta forgotten"),
        (lambda p, q, beta: -beta * p + beta * q, "swapped"),
        (lambda p, q, beta: p / beta - q / beta, "divided by beta"),
        (lambda p, q, beta: beta * p, "reference forgotten"),
        (lambda p, q, beta: torch.div(p, q) * beta, "quotient of the logarithms"),
        (lambda p, q, beta: beta * p.exp() / q.exp(), "ratio of probabilities"),
        (lambda p, q, beta: beta * p.exp() - beta * q.exp(), "difference of probabilities"),
        (lambda p, q, beta: beta * (p.mean() - q.mean()), "mean"),
        (lambda p, q, beta: beta * torch.log(torch.exp(p) / torch.exp(q)), "underflow"),
        (lambda p, q, beta: beta * (p - q).detach(), None),
        (lambda p, q, beta: beta * (p - q).abs(), None),
    ],
    "dpo_loss": [
        (lambda *a: -softplus(-margin(*a)).mean(), "sign"),
        (lambda *a: softplus(margin(*a)).mean(), "swapped pair"),
        (lambda c, r, rc, rr, beta: softplus(-margin(c, r, rc, rr, 1)).mean(), "beta forgotten"),
        (lambda c, r, rc, rr, b: b * softplus(-margin(c, r, rc, rr, 1)).mean(), "beta outside"),
        (
            lambda c, r, rc, rr, beta: softplus(-margin(c, r, rc, rr, 1) / beta).mean(),
            "divided by beta",
        ),
        (lambda c, r, rc, rr, beta: softplus(beta * r - beta * c).mean(), "reference forgotten"),
        (
            lambda c, r, rc, rr, beta: softplus(-beta * (c - rr - r + rc)).mean(),
            "reference swapped",
        ),
        (lambda *a: softplus(-margin(*a)).sum(), "sum instead of mean"),
        (lambda *a: softplus(-margin(*a)), "one loss per pair"),
        (lambda *a: -(1 / (1 + torch.exp(-margin(*a)))).mean(), "log forgotten"),
        (lambda *a: torch.mean(-margin(*a)), "sigmoid forgotten"),
        (loss_of_probabilities, "difference of probabilities"),
        (loss_two_sigmoids, "two separate sigmoids"),
        (loss_rejected_detached, "rejected detached"),
        (lambda *a: -torch.log(torch.sigmoid(margin(*a))).mean(), "overflow"),
        (lambda c, r, rc, rr, beta: softplus(-margin(c.detach(), r, rc, rr, beta)).mean(), None),
        (lambda *a: float(softplus(-margin(*a)).mean()), None),
        (lambda *a: (margin(*a) / a[4] - 1 / (2 * a[4])).square().mean(), None),
    ],
    "dpo_gradient_weight": [
        (lambda *a: 1 / (1 + torch.exp(-margin(*a))), "wrong way round"),
        (
            lambda c, r, rc, rr, beta: torch.sigmoid(-margin(c, r, rc, rr, 1)),
            "beta forgotten inside",
        ),
        (lambda *a: a[-1] * (1 - torch.sigmoid(margin(*a))), "times beta"),
        (lambda c, r, rc, rr, beta: 1 - torch.sigmoid(beta * (c - r)), "reference forgotten"),
        (lambda *a: torch.sigmoid(margin(*a)) - 1, "negative"),
        (
            lambda *a: torch.sigmoid(margin(*a)) * (1 - torch.sigmoid(margin(*a))),
            "slope of the sigmoid",
        ),
        (lambda *a: softplus(-margin(*a)), "the loss"),
        (lambda *a: -1 * margin(*a), "sigmoid forgotten"),
        (lambda *a: torch.mean(torch.sigmoid(-margin(*a))), "mean"),
        (lambda *a: torch.softmax(-margin(*a), dim=-1), "softmax over the batch"),
        (weight_naive, "overflow"),
        (lambda *a: torch.sigmoid(-margin(*a)) ** 2, None),
        (lambda *a: torch.tanh(-margin(*a)), None),
    ],
    "repair_dpo": [
        (lambda *a: repair(*a, one=mean_of_tokens), "still broken"),
        (
            lambda *a: repair(*a, one=lambda t, m: (t * m).sum(1) / t.shape[1]),
            "mean over padding",
        ),
        (lambda *a: repair(*a, other=mean_of_tokens), "only the policy repaired"),
        (lambda *a: repair(*a, one=lambda t, m: torch.sum(t, 1)), "mask forgotten"),
        (
            lambda c, r, rc, rr, cm, rm, beta: repair(c, r, rc, rr, cm, cm, beta),
            "one mask for both",
        ),
        (lambda *a: repair(*a, one=last_of_tokens), "last token only"),
        (lambda *a: repair(*a, one=lambda t, m: t[m].sum()), "summed over the batch"),
        (lambda *a: repair(*a[:-1], 1.0), "beta forgotten"),
        (
            lambda *a: repair(*a, other=lambda t, m: torch.zeros(len(t))),
            "reference forgotten",
        ),
        (
            lambda c, r, rc, rr, cm, rm, beta: repair(r, c, rr, rc, rm, cm, beta),
            "swapped pair",
        ),
        (lambda *a: len(a[0]) * repair(*a), "sum instead of mean"),
        (half_of_the_loss, None),
        (lambda *a: repair(*[t.detach() for t in a[:-1]], a[-1]), None),
    ],
}
