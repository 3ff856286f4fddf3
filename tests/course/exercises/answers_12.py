"""Answers to the exercises of notebook 09, as students write them."""

import math

import torch


def interval_by_one_quantile_call(values, resamples, confidence):
    tail = (1 - confidence) / 2
    means = values[resamples].mean(dim=-1)
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype))
    return low, high


def interval_by_sorting(values, resamples, confidence):
    means = sorted(values[row].mean().item() for row in resamples)
    ends = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        place = share * (len(means) - 1)
        below, above = math.floor(place), math.ceil(place)
        ends.append(means[below] + (place - below) * (means[above] - means[below]))
    return tuple(ends)


def interval_by_loops(values, resamples, confidence):
    means = []
    for row in resamples.tolist():
        total = 0.0
        for i in row:
            total += float(values[i])
        means.append(total / len(row))
    means = torch.tensor(means, dtype=torch.float64)
    return [means.quantile(0.5 - confidence / 2), means.quantile(0.5 + confidence / 2)]


def wins_over_all_pairs(first_logps, second_logps, rewards):
    difference = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
    score = (difference.sign() + 1) / 2
    return torch.einsum("...i,...j,...ij->...", first_logps.exp(), second_logps.exp(), score)


def wins_by_one_half_and_the_lead(first_logps, second_logps, rewards):
    p, q = first_logps.exp(), second_logps.exp()
    better = (rewards[..., :, None] > rewards[..., None, :]).to(p.dtype)
    wins = (p[..., None, :] @ better @ q[..., :, None])[..., 0, 0]
    losses = (q[..., None, :] @ better @ p[..., :, None])[..., 0, 0]
    return 0.5 + (wins - losses) / 2


def wins_by_loops(first_logps, second_logps, rewards):
    size = rewards.shape[-1]
    rows = zip(
        first_logps.reshape(-1, size).tolist(),
        second_logps.reshape(-1, size).tolist(),
        rewards.reshape(-1, size).tolist(),
        strict=True,
    )
    results = []
    for first, second, r in rows:
        total = 0.0
        for i in range(size):
            for j in range(size):
                chance = math.exp(first[i]) * math.exp(second[j])
                total += chance * (1.0 if r[i] > r[j] else 0.5 if r[i] == r[j] else 0.0)
        results.append(total)
    return torch.tensor(results).reshape(rewards.shape[:-1])


RIGHT = {
    "bootstrap_interval": [
        interval_by_one_quantile_call,
        interval_by_sorting,
        interval_by_loops,
    ],
    "win_rate": [wins_over_all_pairs, wins_by_one_half_and_the_lead, wins_by_loops],
}


def both_ends(numbers, confidence):
    tail = (1 - confidence) / 2
    return numbers.quantile(tail), numbers.quantile(1 - tail)


def z_value(confidence):
    return math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64))


def textbook_interval(values, resamples, confidence):
    error = values.std(correction=1) / math.sqrt(values.numel())
    return values.mean() - z_value(confidence) * error, values.mean() + z_value(confidence) * error


def bootstrap_standard_error(values, resamples, confidence):
    means = torch.stack([values[row].mean() for row in resamples])
    half = z_value(confidence) * means.std()
    return means.mean() - half, means.mean() + half


def plus_minus_deviation(values, resamples, confidence):
    means = values[resamples].sum(1) / resamples.shape[1]
    return means.mean() - means.std(), means.mean() + means.std()


def basic_bootstrap(values, resamples, confidence):
    errors = values[resamples].mean(1) - values.mean()
    low, high = both_ends(errors, confidence)
    return values.mean() - high, values.mean() - low


def score_of(rewards):
    return ((rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).sign() + 1) / 2


def expected(logps, rewards):
    return torch.einsum("...y,...y->...", logps.exp(), rewards)


def decided_pairs_only(first, second, rewards):
    joint = first.exp()[..., :, None] * second.exp()[..., None, :]
    difference = rewards[..., :, None] - rewards[..., None, :]
    return (joint * (difference > 0)).sum((-1, -2)) / (joint * (difference != 0)).sum((-1, -2))


def never_the_same(first, second, rewards):
    joint = first.exp()[..., :, None] * second.exp()[..., None, :]
    agree = (first + second).exp().sum(-1)
    return (joint * score_of(rewards)).sum((-1, -2)) - agree / 2


WRONG = {
    "bootstrap_interval": [
        (lambda v, rows, c: both_ends(v, c), "quantiles of the values"),
        (lambda v, rows, c: both_ends(v[rows].reshape(-1), c), "pooled"),
        (lambda v, rows, c: both_ends(v[rows].mean(dim=0), c), "wrong dimension"),
        (
            lambda v, rows, c: (v[rows].mean(1).quantile(1 - c), v[rows].mean(1).quantile(c)),
            "one-sided",
        ),
        (plus_minus_deviation, "one standard deviation"),
        (bootstrap_standard_error, "normal approximation"),
        (textbook_interval, "resamples ignored"),
        (lambda v, rows, c: both_ends(v[rows].median(dim=1)[0], c), "medians"),
        (lambda v, rows, c: both_ends(v[rows].sum(dim=1), c), "sums"),
        (lambda v, rows, c: tuple(v[rows].mean(1).aminmax()), "smallest and largest"),
        (lambda v, rows, c: both_ends(v[rows].mean(1), c)[::-1], "swapped"),
        (basic_bootstrap, "reflected"),
        (lambda v, rows, c: both_ends(v[rows].mean(1), c / 2), None),
        (lambda v, rows, c: v[rows].mean(1).quantile(c), None),
    ],
    "win_rate": [
        (
            lambda p, q, r: (
                p.exp()[..., :, None] * q.exp()[..., None, :] * (r[..., :, None] > r[..., None, :])
            ).sum((-1, -2)),
            "ties count as losses",
        ),
        (
            lambda p, q, r: (
                p.exp()[..., :, None] * q.exp()[..., None, :] * (r[..., :, None] >= r[..., None, :])
            ).sum((-1, -2)),
            "ties count as wins",
        ),
        (decided_pairs_only, "ties left out"),
        (never_the_same, "same response left out"),
        (lambda p, q, r: 1 - wins_over_all_pairs(p, q, r), "swapped"),
        (
            lambda p, q, r: torch.einsum(
                "...i,...j,...ij->...",
                p.exp(),
                q.exp(),
                1 / (1 + torch.exp(r[..., None, :] - r[..., :, None])),
            ),
            "Bradley–Terry",
        ),
        (lambda p, q, r: expected(p, r) - expected(q, r), "difference of expected rewards"),
        (
            lambda p, q, r: torch.sigmoid(expected(p, r) - expected(q, r)),
            "sigmoid of expected rewards",
        ),
        (
            lambda p, q, r: torch.where(r > expected(q, r).unsqueeze(-1), p.exp(), 0.0).sum(-1),
            "against the average response",
        ),
        (lambda p, q, r: score_of(r).mean(-1).mean(-1), "not weighted"),
        (
            lambda p, q, r: torch.einsum("...i,...j,...ij->...", p, q, score_of(r)),
            "log-probabilities as weights",
        ),
        (lambda p, q, r: torch.sum(wins_over_all_pairs(p, q, r)), "summed over prompts"),
        (lambda p, q, r: torch.mean(wins_over_all_pairs(p, q, r)), "averaged over prompts"),
        (lambda p, q, r: (expected(p, r) > expected(q, r)).double(), None),
        (lambda p, q, r: (p.exp() * q.exp() * r).sum(-1), None),
    ],
}
