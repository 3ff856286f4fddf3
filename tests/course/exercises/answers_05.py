"""Answers to the exercises of notebook 04, as students write them."""

import math

import torch


def accuracy_by_two_means(chosen_rewards, rejected_rewards):
    right = (chosen_rewards > rejected_rewards).float()
    tie = (chosen_rewards == rejected_rewards).float()
    return (right + 0.5 * tie).mean()


def accuracy_by_loops(chosen_rewards, rejected_rewards):
    points = 0.0
    for a, b in zip(chosen_rewards.tolist(), rejected_rewards.tolist(), strict=True):
        points += 1.0 if a > b else 0.5 if a == b else 0.0
    return points / len(chosen_rewards)


def accuracy_by_heaviside(chosen_rewards, rejected_rewards):
    half = torch.tensor(0.5, dtype=chosen_rewards.dtype)
    return torch.heaviside(chosen_rewards - rejected_rewards, half).mean()


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


RIGHT = {
    "preference_accuracy": [accuracy_by_two_means, accuracy_by_loops, accuracy_by_heaviside],
    "reward_gradient": [gradient_by_hand, gradient_by_autograd, gradient_by_loops],
}


def points(chosen, rejected, tie=0.5):
    return torch.where(chosen == rejected, tie, torch.where(chosen > rejected, 1.0, 0.0))


def pulls(q):
    return [-q, q]


WRONG = {
    "preference_accuracy": [
        (lambda c, r: points(c, r, 1.0).mean(), "ties count as right"),
        (lambda c, r: torch.gt(c, r).float().mean(), "ties count as wrong"),
        (lambda c, r: points(r, c).mean(), "swapped"),
        (lambda c, r: points(c, r).sum(), "count"),
        (lambda c, r: points(c, r).mean() * 100, "percent"),
        (lambda c, r: (1 / (1 + torch.exp(r - c))).mean(), "mean probability"),
        (lambda c, r: torch.where(c > 0, 1.0, 0.0).mean(), "sign of the chosen"),
        (lambda c, r: (2 * points(c, r) - 1).mean(), "mean sign"),
        (lambda c, r: points(c, r), "one verdict a pair"),
        (lambda c, r: points(c, r).median(), None),
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
}
