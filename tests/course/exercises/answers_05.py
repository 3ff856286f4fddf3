"""Answers to the exercises of notebook 05, as students write them."""

import math

import torch


def ceiling_by_maximum(annotator, first_rewards, second_rewards):
    p = annotator.preference_probability(first_rewards, second_rewards)
    return torch.maximum(p, 1 - p).mean()


def ceiling_by_distance(annotator, first_rewards, second_rewards):
    p = annotator.preference_probability(first_rewards, second_rewards)
    return 0.5 + (p - 0.5).abs().mean()


def ceiling_by_both_orders(annotator, first_rewards, second_rewards):
    total = 0.0
    for a, b in zip(first_rewards.split(1), second_rewards.split(1), strict=True):
        p = float(annotator.preference_probability(a, b))
        total += p if p > 0.5 else 1 - p
    return total / len(first_rewards)


def gradient_by_hand(chosen_rewards, rejected_rewards):
    p = torch.sigmoid(chosen_rewards - rejected_rewards)
    B = len(chosen_rewards)
    return -(1 - p) / B, (1 - p) / B


def gradient_by_autograd(chosen_rewards, rejected_rewards):
    a = chosen_rewards.clone().requires_grad_()
    b = rejected_rewards.clone().requires_grad_()
    loss = torch.nn.functional.softplus(b - a).mean()
    return torch.autograd.grad(loss, (a, b))


def gradient_by_loops(chosen_rewards, rejected_rewards):
    one, two = [], []
    n = len(chosen_rewards)
    for a, b in zip(chosen_rewards.tolist(), rejected_rewards.tolist(), strict=True):
        d = a - b
        q = 0.0 if d > 500 else 1 / (1 + math.exp(d))
        one.append(-q / n)
        two.append(q / n)
    return one, two


def calibration_by_loops(predicted, won, bins=10):
    rows = [[] for _ in range(bins)]
    for p, w in zip(predicted.tolist(), won.tolist(), strict=True):
        rows[min(int(p * bins), bins - 1)].append((p, w))
    error = 0.0
    for row in rows:
        if row:
            mean, share = (sum(column) / len(row) for column in zip(*row, strict=True))
            error += len(row) / len(predicted) * abs(mean - share)
    return error


def calibration_by_buckets(predicted, won, bins=10):
    inner = torch.linspace(0, 1, bins + 1, dtype=predicted.dtype)[1:-1]
    place = torch.bucketize(predicted, inner, right=True)
    error = torch.zeros((), dtype=torch.float64)
    for b in place.unique():
        here = place == b
        gap = predicted[here].mean() - won[here].double().mean()
        error += here.double().mean() * gap.abs()
    return error


def calibration_by_one_hot(predicted, won, bins=10):
    place = torch.clamp((predicted * bins).floor().long(), 0, bins - 1)
    inside = torch.nn.functional.one_hot(place, bins).double()  # [N, bins]
    return ((predicted - won).double() @ inside).abs().sum() / predicted.numel()


RIGHT = {
    "preference_ceiling": [ceiling_by_maximum, ceiling_by_distance, ceiling_by_both_orders],
    "reward_gradient": [gradient_by_hand, gradient_by_autograd, gradient_by_loops],
    "calibration_error": [calibration_by_loops, calibration_by_buckets, calibration_by_one_hot],
}


def ask(annotator, a, b):
    return annotator.preference_probability(a, b)


def best(annotator, a, b):
    return torch.maximum(ask(annotator, a, b), 1 - ask(annotator, a, b))


def in_bins(predicted, won, bins, each, edge=None, empty=False):
    """The list of (share of the pairs, each(predicted, won)) over the bins."""
    place = (predicted * bins).long()
    if edge is None:
        place = place.clamp(max=bins - 1)
    rows = [place == b for b in range(bins)]
    return [
        (float(row.double().mean()), each(predicted[row], won[row]))
        for row in rows
        if empty or row.any()
    ]


def gap(predicted, won):
    return abs(float(predicted.mean() - won.mean()))


def weighed(found):
    return sum(share * value for share, value in found)


def alike(found):
    return sum(value for _, value in found) / len(found)


def middles(predicted, won, bins):
    place = (predicted * bins).long().clamp(max=bins - 1)
    return weighed(in_bins((place + 0.5) / bins, won, bins, gap))


def pulls(q):
    return [-q, q]


WRONG = {
    "preference_ceiling": [
        (lambda m, a, b: ask(m, a, b).mean(), "always the first"),
        (lambda m, a, b: max(ask(m, a, b).mean(), 1 - ask(m, a, b).mean()), "larger of the means"),
        (lambda m, a, b: torch.minimum(ask(m, a, b), ask(m, b, a)).mean(), "share of errors"),
        (lambda m, a, b: best(m, a, b).mean() - 0.5, "distance to a coin"),
        (lambda m, a, b: (1 / (1 + torch.exp(-abs(a - b)))).mean(), "annotator ignored"),
        (
            lambda m, a, b: torch.where(a > b, ask(m, a, b), ask(m, b, a)).mean(),
            "follow the rewards",
        ),
        (lambda m, a, b: best(m, a, b).sum(), "sum"),
        (lambda m, a, b: best(m, a, b), "one number a pair"),
        (lambda m, a, b: best(m, a, b).median(), None),
    ],
    "reward_gradient": [
        (lambda c, r: pulls(-torch.sigmoid(r - c) / c.numel()), "sign"),
        (lambda c, r: pulls(1 - torch.sigmoid(c - r)), "mean forgotten"),
        (lambda c, r: pulls(torch.sigmoid(c - r) / c.shape[0]), "p for 1 − p"),
        (lambda c, r: [pulls(torch.sigmoid(r - c) / len(c))[0]] * 2, "same sign"),
        (
            lambda c, r: pulls(torch.sigmoid(c - r) * (1 - torch.sigmoid(c - r)) / len(c)),
            "derivative of the sigmoid",
        ),
        (lambda c, r: pulls(torch.full_like(c, 1 / len(c))), "sigmoid forgotten"),
        (lambda c, r: pulls(r.exp() / (c.exp() + r.exp()) / len(c)), "overflow"),
        (
            lambda c, r: pulls((1 - c.exp() / (r.exp() + c.exp())) / len(c)),
            "overflow of each reward",
        ),
        (lambda c, r: pulls(torch.sigmoid(r - c) / len(c))[::-1], "sign"),
        (lambda c, r: torch.sigmoid(r - c) / len(c), None),
        (lambda c, r: pulls((r - c) / len(c)), None),
    ],
    "calibration_error": [
        (lambda p, w, n: torch.where(w > 0, 1 - p, p).mean(), "no bins"),
        (lambda p, w, n: gap(p, w), "errors cancel"),
        (lambda p, w, n: p.mean() - w.mean(), "signed"),
        (lambda p, w, n: alike(in_bins(p, w, n, gap)), "bins count alike"),
        (lambda p, w, n: max(v for _, v in in_bins(p, w, n, gap)), "largest"),
        (lambda p, w, n: weighed(in_bins(p, w, n, lambda a, b: gap(a, b) ** 2)), "squares"),
        (middles, "middles of the bins"),
        (lambda p, w, n: weighed(in_bins(p, w, n, gap, empty=True)), "empty bins"),
        (lambda p, w, n: weighed(in_bins(p, w, n, gap, edge="lost")), "last edge lost"),
        (lambda p, w, n: ((p - w) ** 2).mean(), None),
    ],
}
