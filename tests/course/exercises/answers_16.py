"""Answers to the exercises of notebook 16, as students write them."""

import math

import numpy as np
import torch
from scipy import stats


def decide_by_where(effects, least):
    n = effects.shape[0]
    half = stats.t.ppf(0.975, n - 1) * effects.std(dim=0) / math.sqrt(n)
    low, high = effects.mean(dim=0) - half, effects.mean(dim=0) + half
    return torch.where(low > least, 1, torch.where(high < least, -1, 0))


def decide_by_scipy(effects, least):
    out = []
    for column in effects.double().T.numpy():
        if np.ptp(column) == 0:
            out.append(int(np.sign(column[0] - least)))
            continue
        low, high = stats.t.interval(
            0.95, len(column) - 1, loc=column.mean(), scale=stats.sem(column)
        )
        out.append(1 if low > least else -1 if high < least else 0)
    return torch.tensor(out)


def decide_by_t_value(effects, least):
    n = len(effects)
    distance = effects.mean(0) - least
    needed = float(stats.t.ppf(0.975, n - 1)) * (effects.var(0) / n).sqrt()
    return torch.sign(distance) * (distance.abs() > needed)


def gain_by_formula(W, h, chosen, rejected, rate):
    p = torch.softmax(W @ h, dim=0)
    d = W[chosen] - W[rejected]
    up = torch.dot(W[chosen] - p @ W, d) + rate * h.dot(h) * (1 - p[chosen] + p[rejected])
    return up / (d.dot(d) + 2 * rate * h.dot(h))


def gain_by_logits(W, h, chosen, rejected, rate):
    change = W @ (W[chosen] - W[rejected])
    change[chosen] += rate * (h @ h)
    change[rejected] -= rate * (h @ h)
    rise = change[chosen] - ((W @ h).softmax(0) * change).sum()
    return rise / (change[chosen] - change[rejected])


def gain_by_autograd(W, h, chosen, rejected, rate):
    W, h = W.detach().clone().requires_grad_(), h.detach().clone().requires_grad_()
    logps = (W @ h).log_softmax(0)
    margin = torch.autograd.grad(logps[chosen] - logps[rejected], [W, h], retain_graph=True)
    target = torch.autograd.grad(logps[chosen], [W, h])
    speeds = (rate, 1.0)
    rise = sum(s * (a * b).sum() for s, a, b in zip(speeds, target, margin, strict=True))
    return rise / sum(s * (b * b).sum() for s, b in zip(speeds, margin, strict=True))


def threshold_by_tanh(majority_gain, minority_gain, temperature):
    a, b = (math.tanh(x / temperature / 2) for x in (majority_gain, minority_gain))
    return b / (a + b), minority_gain / (majority_gain + minority_gain)


def threshold_by_sigmoid(majority_gain, minority_gain, temperature):
    def yes(x):
        return 1 / (1 + math.exp(-x))

    theirs = yes(majority_gain / temperature)
    others = 1 - yes(min(minority_gain / temperature, 500))
    return (0.5 - others) / (theirs - others), 1 / (1 + majority_gain / minority_gain)


def threshold_by_tensors(majority_gain, minority_gain, temperature):
    gains = torch.tensor([majority_gain, minority_gain], dtype=torch.float64)
    votes = torch.tanh(gains / temperature / 2)
    return votes[1] / votes.sum(), gains[1] / gains.sum()


RIGHT = {
    "decide": [decide_by_where, decide_by_scipy, decide_by_t_value],
    "chosen_gain": [gain_by_formula, gain_by_logits, gain_by_autograd],
    "majority_threshold": [threshold_by_tanh, threshold_by_sigmoid, threshold_by_tensors],
}


def _three(low, high, least):
    return torch.where(low > least, 1, torch.where(high < least, -1, 0))


def decide_by_mean(effects, least):
    return torch.sign(effects.mean(0) - least)


def decide_against_zero(effects, least):
    return decide_by_where(effects, 0.0)


def decide_by_spread(effects, least):
    half = stats.t.ppf(0.975, len(effects) - 1) * effects.std(0)
    return _three(effects.mean(0) - half, effects.mean(0) + half, least)


def decide_by_196(effects, least):
    half = 1.96 * effects.std(0) / len(effects) ** 0.5
    return _three(effects.mean(0) - half, effects.mean(0) + half, least)


def decide_one_sided(effects, least):
    half = stats.t.ppf(0.95, len(effects) - 1) * effects.std(0) / len(effects) ** 0.5
    return _three(effects.mean(0) - half, effects.mean(0) + half, least)


def decide_yes_or_no(effects, least):
    return torch.where(decide_by_where(effects, least) > 0, 1, -1)


def decide_never_refutes(effects, least):
    return decide_by_where(effects, least).clamp(min=0)


def decide_by_seeds(effects, least):
    return torch.where(effects.amin(0) > least, 1, torch.where(effects.amax(0) < least, -1, 0))


def decide_pooled(effects, least):
    every = effects.flatten()[:, None].expand(-1, effects.shape[1])
    return decide_by_where(every, least)


def decide_by_biased_spread(effects, least):
    half = stats.t.ppf(0.975, len(effects) - 1) * effects.std(0, correction=0)
    return _three(effects.mean(0) - half, effects.mean(0) + half, least) * 2


def gain_of_the_logit(W, h, chosen, rejected, rate):
    d = W[chosen] - W[rejected]
    return (W[chosen] @ d + rate * h @ h) / (d @ d + 2 * rate * h @ h)


def gain_with_plain_mean(W, h, chosen, rejected, rate):
    d = W[chosen] - W[rejected]
    return ((W[chosen] - W.mean(0)) @ d + rate * h @ h) / (d @ d + 2 * rate * h @ h)


def gain_of_a_step(W, h, chosen, rejected, rate):
    p, d = (W @ h).softmax(0), W[chosen] - W[rejected]
    return (W[chosen] - p @ W) @ d + rate * (h @ h) * (1 - p[chosen] + p[rejected])


def gain_of_h(W, h, chosen, rejected, rate):
    p, d = (W @ h).softmax(0), W[chosen] - W[rejected]
    return (W[chosen] - p @ W) @ d / d.square().sum()


def gain_of_one_vector(W, h, chosen, rejected, rate):
    change = W @ (W[chosen] - W[rejected])
    change[chosen] += rate * (h @ h)
    rise = change[chosen] - ((W @ h).softmax(0) * change).sum()
    return rise / (change[chosen] - change[rejected])


def gain_of_the_rejected(W, h, chosen, rejected, rate):
    change = W @ (W[chosen] - W[rejected])
    change[chosen] += rate * (h @ h)
    change[rejected] -= rate * (h @ h)
    rise = change[rejected] - ((W @ h).softmax(0) * change).sum()
    return rise / (change[chosen] - change[rejected])


def gain_downwards(W, h, chosen, rejected, rate):
    return -gain_by_logits(W, h, chosen, rejected, rate)


def gain_of_probability(W, h, chosen, rejected, rate):
    return gain_by_logits(W, h, chosen, rejected, rate) * torch.softmax(W @ h, 0)[chosen]


def gain_of_similarity(W, h, chosen, rejected, rate):
    return torch.cosine_similarity(W[chosen], W[rejected], dim=0)


def threshold_of_heads(majority_gain, minority_gain, temperature):
    return 1 / 2, minority_gain / (majority_gain + minority_gain)


def threshold_of_means(majority_gain, minority_gain, temperature):
    share = minority_gain / (majority_gain + minority_gain)
    return share, share


def threshold_of_own_answers(majority_gain, minority_gain, temperature):
    a, b = (1 / (1 + math.exp(-x / temperature)) for x in (majority_gain, minority_gain))
    return b / (a + b), minority_gain / (majority_gain + minority_gain)


def threshold_without_half(majority_gain, minority_gain, temperature):
    a, b = (math.tanh(x / temperature) for x in (majority_gain, minority_gain))
    return b / (a + b), minority_gain / (majority_gain + minority_gain)


def threshold_times_temperature(majority_gain, minority_gain, temperature):
    a, b = (math.tanh(x * temperature / 2) for x in (majority_gain, minority_gain))
    return b / (a + b), minority_gain / (majority_gain + minority_gain)


def threshold_of_the_minority(majority_gain, minority_gain, temperature):
    return tuple(1 - s for s in threshold_by_tanh(majority_gain, minority_gain, temperature))


def threshold_as_odds(majority_gain, minority_gain, temperature):
    return tuple(s / (1 - s) for s in threshold_by_tanh(majority_gain, minority_gain, temperature))


def threshold_of_logits(majority_gain, minority_gain, temperature):
    return majority_gain / temperature, minority_gain / temperature


WRONG = {
    "decide": [
        (decide_by_mean, "mean only"),
        (decide_against_zero, "any effect"),
        (decide_by_spread, "standard deviation"),
        (decide_by_196, "normal quantile"),
        (decide_one_sided, "one side"),
        (decide_yes_or_no, "open counts as refuted"),
        (decide_never_refutes, "cannot fail"),
        (decide_by_seeds, "seeds vote"),
        (decide_pooled, "pooled"),
        (decide_by_biased_spread, None),
    ],
    "chosen_gain": [
        (gain_of_the_logit, "others forgotten"),
        (gain_with_plain_mean, "plain mean"),
        (gain_of_a_step, "not per nat"),
        (gain_of_h, "h alone"),
        (gain_of_one_vector, "one vector"),
        (gain_of_the_rejected, "rejected's"),
        (gain_downwards, "sign"),
        (gain_of_probability, "probability"),
        (gain_of_similarity, None),
    ],
    "majority_threshold": [
        (threshold_of_heads, "no noise"),
        (threshold_of_means, "no difference"),
        (threshold_of_own_answers, "answers for their own"),
        (threshold_without_half, "half forgotten"),
        (threshold_times_temperature, "temperature multiplies"),
        (threshold_of_the_minority, "groups swapped"),
        (threshold_as_odds, "odds"),
        (threshold_of_logits, None),
    ],
}
