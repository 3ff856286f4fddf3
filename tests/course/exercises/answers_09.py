"""Answers to the exercises of notebook 07, as students write them."""

import math

import torch


def kl_by_formula(n):
    return math.log(n) - (n - 1) / n


def kl_in_torch(n):
    return torch.tensor(float(n)).log() - 1 + 1 / n


def kl_by_the_integral(n):
    # The best rank u has density n u^(n − 1). Its KL to the uniform: log n + (n − 1) E[log u].
    return math.log(n) + (n - 1) * (-1 / n)


def pick_by_gather(responses, scores):
    place = scores.argmax(dim=-1)[:, None, None].expand(-1, 1, responses.shape[-1])
    return responses.gather(1, place).squeeze(1)


def pick_by_rows(responses, scores):
    return responses[range(len(scores)), scores.max(1).indices]


def pick_by_loops(responses, scores):
    chosen = []
    for group, row in zip(responses, scores.tolist(), strict=True):
        best = 0
        for i in range(1, len(row)):
            if row[i] > row[best]:
                best = i
        chosen.append(group[best])
    return torch.stack(chosen)


RIGHT = {
    "best_of_n_kl": [kl_by_formula, kl_in_torch, kl_by_the_integral],
    "pick_best_of_n": [pick_by_gather, pick_by_rows, pick_by_loops],
}


def kl_log_only(n):
    return torch.tensor(float(n), dtype=torch.float64).log()


def kl_added(n):
    return math.log(n) + 1 - 1 / n


def kl_negative(n):
    return 1 - 1 / n - math.log(n)


def kl_forgot_to_divide(n):
    return math.log(n) - n + 1


def kl_one_over_n(n):
    return math.log(n) - n**-1


def kl_n_plus_one(n):
    return math.log(n) - n / (1 + n)


def kl_off_by_one(n):
    return math.log(n - 1) - 1 + 1 / n


def kl_bits(n):
    return math.log(n, 2) - (n - 1) / n


def kl_base_ten(n):
    return math.log(n, 10) - (n - 1) / n


def kl_floor(n):
    return math.log(n) - int((n - 1) / n)


def kl_half(n):
    return (math.log(n) - (n - 1) / n) / 2


def pick_worst(responses, scores):
    return pick_by_gather(responses, -scores)


def pick_first(responses, scores):
    return responses[:, :1].squeeze(1)


def pick_last(responses, scores):
    return responses[:, scores.shape[1] - 1]


def pick_absolute(responses, scores):
    return pick_by_gather(responses, scores**2)


def pick_global(responses, scores):
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return responses[row, column]


def pick_places(responses, scores):
    return scores.max(1).indices


def pick_scores(responses, scores):
    return scores.max(dim=1).values


def pick_all_rows(responses, scores):
    return responses[:, scores.max(1).indices]


def pick_with_dimension(responses, scores):
    return responses.gather(1, scores.argmax(1)[:, None, None].expand(-1, 1, responses.shape[-1]))


def pick_last_tie(responses, scores):
    best = []
    for group, row in zip(responses, scores.tolist(), strict=True):
        winner = max(range(len(row)), key=lambda i: (row[i], i))
        best.append(group[winner])
    return torch.stack(best)


def pick_second_best(responses, scores):
    place = scores.argsort(1, descending=True)[:, min(1, scores.shape[1] - 1)]
    return responses[torch.arange(len(responses)), place]


WRONG = {
    "best_of_n_kl": [
        (kl_log_only, "log n alone"),
        (kl_added, "added"),
        (kl_negative, "sign"),
        (kl_forgot_to_divide, "not divided"),
        (kl_one_over_n, "1/n instead of (n − 1)/n"),
        (kl_n_plus_one, "n/(n + 1)"),
        (kl_off_by_one, "one off"),
        (kl_bits, "bits"),
        (kl_base_ten, "base 10"),
        (kl_floor, "log n alone"),
        (kl_half, None),
    ],
    "pick_best_of_n": [
        (pick_worst, "worst"),
        (pick_first, "always the first"),
        (pick_last, "always the last"),
        (pick_absolute, "by absolute value"),
        (pick_global, "one winner for all"),
        (pick_places, "places"),
        (pick_scores, "scores"),
        (pick_all_rows, "same places for every row"),
        (pick_with_dimension, "dimension left"),
        (pick_last_tie, "last of a tie"),
        (pick_second_best, None),
    ],
}
