"""Answers to the exercises of notebook 02, as students write them."""

import math

import torch


def probability_by_sigmoid(first_rewards, second_rewards):
    return torch.sigmoid(first_rewards - second_rewards)


def probability_by_softmax(first_rewards, second_rewards):
    return torch.softmax(torch.stack([first_rewards, second_rewards]), dim=0)[0]


def probability_by_loops(first_rewards, second_rewards):
    out = []
    for a, b in zip(first_rewards.tolist(), second_rewards.tolist(), strict=True):
        d = a - b
        out.append(1 / (1 + math.exp(-d)) if d > -500 else 0.0)
    return out


def loss_by_logsigmoid(chosen_rewards, rejected_rewards):
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards).mean()


def loss_by_softplus(chosen_rewards, rejected_rewards):
    return torch.nn.functional.softplus(rejected_rewards - chosen_rewards).mean()


def loss_by_cross_entropy(chosen_rewards, rejected_rewards):
    logits = torch.stack([chosen_rewards, rejected_rewards], dim=1)
    labels = torch.zeros(len(logits), dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits, labels)


def loss_by_loops(chosen_rewards, rejected_rewards):
    total = 0.0
    for a, b in zip(chosen_rewards, rejected_rewards, strict=True):
        total = total + torch.logaddexp(torch.zeros_like(a), b - a)
    return total / len(chosen_rewards)


RIGHT = {
    "preference_probability": [
        probability_by_sigmoid,
        probability_by_softmax,
        probability_by_loops,
    ],
    "bradley_terry_loss": [
        loss_by_logsigmoid,
        loss_by_softplus,
        loss_by_cross_entropy,
        loss_by_loops,
    ],
}


def sigma(x):
    return torch.sigmoid(x)


def softplus(x):
    return torch.nn.functional.softplus(x)


WRONG = {
    "preference_probability": [
        (lambda a, b: 1 - torch.sigmoid(a - b), "swapped"),
        (lambda a, b: torch.true_divide(a, a + b), "ratio of the rewards"),
        (lambda a, b: a - b, "difference only"),
        (lambda a, b: (a - b).exp(), "odds"),
        (lambda a, b: (a - b).tanh(), "tanh"),
        (lambda a, b: torch.softmax(a - b, dim=-1), "softmax over the batch"),
        (lambda a, b: 1 / (1 + torch.exp(-(a + b))), "sum"),
        (lambda a, b: torch.sigmoid(a), "sigmoid of the first"),
        (lambda a, b: torch.where(a > b, 1.0, 0.0), "always the better one"),
        (lambda a, b: torch.exp(a) / (torch.exp(a) + torch.exp(b)), "overflow"),
        (lambda a, b: torch.sigmoid(2 * (a - b)), None),
    ],
    "bradley_terry_loss": [
        (lambda c, r: -softplus(r - c).mean(), "sign"),
        (lambda c, r: softplus(c - r).mean(), "swapped"),
        (lambda c, r: softplus(r - c).sum(), "sum for mean"),
        (lambda c, r: -(1 / (1 + torch.exp(r - c))).mean(), "log forgotten"),
        (lambda c, r: -torch.log(torch.mean(sigma(c - r))), "log of the mean"),
        (lambda c, r: (r - c).mean(), "sigmoid forgotten"),
        (lambda c, r: (softplus(-c) + softplus(r)).mean(), "two separate sigmoids"),
        (lambda c, r: softplus(r - c).mean() / math.log(2.0), "bits"),
        (lambda c, r: torch.clamp(1 - c + r, min=0).mean(), "hinge"),
        (lambda c, r: softplus(r - c), "one loss a pair"),
        (lambda c, r: -torch.log(sigma(c - r)).mean(), "overflow"),
        (lambda c, r: softplus(r.detach() - c).mean(), None),
        (lambda c, r: float(softplus(r - c).mean()), None),
        (lambda c, r: (softplus(r - c) ** 2).mean(), None),
    ],
}
