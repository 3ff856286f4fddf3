"""Answers to the exercises of notebook 12, as students write them."""

import math

import numpy as np
import torch
from scipy import stats


def paired_with_torch(first, second, confidence):
    difference = first - second
    t = stats.t.ppf(1 - (1 - confidence) / 2, df=len(first) - 1)
    return difference.mean(), t * difference.std() / len(first) ** 0.5


def paired_with_numpy(first, second, confidence):
    d = (first - second).double().numpy()
    low, high = stats.t.interval(confidence, len(d) - 1)
    half = (high - low) / 2 * np.std(d, ddof=1) / np.sqrt(len(d))
    return torch.tensor(np.mean(d)), torch.tensor(half)


def paired_with_loops(first, second, confidence):
    differences = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    t = stats.t(n - 1).isf((1 - confidence) / 2)
    return torch.tensor(mean), torch.tensor(t * math.sqrt(variance / n))


def split_with_torch(gaps):
    within = gaps.var(dim=1).mean()
    return within, gaps.mean(dim=1).var() - within / gaps.size(1)


def split_by_sums_of_squares(gaps):
    G, R = gaps.shape
    means = gaps.mean(1, keepdim=True)
    within = ((gaps - means) ** 2).sum() / (G * (R - 1))
    between = R * ((means - gaps.mean()) ** 2).sum() / (G - 1)
    return within, (between - within) / R


def split_with_numpy(gaps):
    rows = gaps.double().numpy()
    within = np.mean([np.var(row, ddof=1) for row in rows])
    between = np.var([row.mean() for row in rows], ddof=1) - within / len(rows[0])
    return torch.tensor(within), torch.tensor(between)


RIGHT = {
    "paired_interval": [paired_with_torch, paired_with_numpy, paired_with_loops],
    "split_spread": [split_with_torch, split_by_sums_of_squares, split_with_numpy],
}


def t_of(confidence, n):
    return stats.t.ppf((1 + confidence) / 2, n - 1)


def two_samples(a, b, c):
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    return a.mean() - b.mean(), t_of(c, len(a)) * error


def with_normal(a, b, c):
    return (a - b).mean(), stats.norm.isf((1 - c) / 2) * (a - b).std() / len(a) ** 0.5


def with_n_degrees(a, b, c):
    return (a - b).mean(), stats.t.ppf((1 + c) / 2, len(a)) * (a - b).std() / len(a) ** 0.5


def numpy_std(a, b, c):
    d = (a - b).numpy()
    return torch.tensor(d.mean()), torch.tensor(t_of(c, len(d)) * np.std(d) / len(d) ** 0.5)


def one_tail(a, b, c):
    return (a - b).mean(), stats.t.ppf(c, len(a) - 1) * (a - b).std() / len(a) ** 0.5


def pooled_variance(gaps):
    within = gaps.var(1).mean()
    return torch.var(gaps.flatten()), gaps.mean(1).var() - within / gaps.shape[1]


def by_columns(gaps):
    within = gaps.var(0).mean()
    return within, gaps.mean(0).var() - within / len(gaps)


def population(gaps):
    within = gaps.numpy().var(1).mean()
    between = gaps.numpy().mean(1).var() - within / gaps.shape[1]
    return torch.tensor(within), torch.tensor(between)


WRONG = {
    "paired_interval": [
        (two_samples, "unpaired"),
        (with_normal, None),
        (with_n_degrees, "degrees of freedom"),
        (numpy_std, "divided by S"),
        (one_tail, "one-sided"),
        (lambda a, b, c: ((a - b).mean(), t_of(c, len(a)) * (a - b).std()), "spread of one seed"),
        (
            lambda a, b, c: ((a - b).mean(), 2 * t_of(c, len(a)) * (a - b).std() / len(a) ** 0.5),
            "whole width",
        ),
        (lambda a, b, c: paired_with_torch(b, a, c), None),
        (lambda a, b, c: (a.mean(), t_of(c, len(a)) * a.std() / len(a) ** 0.5), None),
    ],
    "split_spread": [
        (lambda gaps: (gaps.var(1).mean(), gaps.mean(1).var()), "training noise left in"),
        (
            lambda gaps: (gaps.var(1).mean(), gaps.mean(1).var() - gaps.var(1).mean()),
            "too much taken off",
        ),
        (population, "divided by n"),
        (by_columns, "rows and columns"),
        (lambda gaps: (split_with_torch(gaps)[0], split_with_torch(gaps)[1].relu()), "clipped"),
        (lambda gaps: (gaps.std(1).mean(), gaps.mean(1).std()), "standard deviations"),
        (lambda gaps: tuple(reversed(split_with_torch(gaps))), None),
        (pooled_variance, "all pooled"),
        (lambda gaps: (gaps.var(1), gaps.mean(1).var()), None),
    ],
}
