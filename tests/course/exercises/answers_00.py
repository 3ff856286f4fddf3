"""Answers to the exercise of notebook 00, as students write them."""

import torch


def score_in_one_line(rewards, logps, ref_logps, beta):
    return rewards - beta * (logps - ref_logps)


def score_by_log_of_the_ratio(rewards, logps, ref_logps, beta):
    pi, pi_ref = logps.double().exp(), ref_logps.double().exp()
    return rewards - beta * torch.log(pi / pi_ref)


def score_by_a_loop(rewards, logps, ref_logps, beta):
    scores = []
    for r, a, b in zip(rewards.tolist(), logps.tolist(), ref_logps.tolist(), strict=True):
        scores.append(r - beta * a + beta * b)
    return torch.tensor(scores)


RIGHT = {
    "kl_penalised_score": [score_in_one_line, score_by_log_of_the_ratio, score_by_a_loop],
}


def charged_without_a_logarithm(rewards, logps, ref_logps, beta):
    return rewards - beta * torch.exp(logps) / torch.exp(ref_logps)


def charged_as_in_a_sum_over_answers(rewards, logps, ref_logps, beta):
    log_ratio = logps - ref_logps
    return rewards - beta * torch.exp(logps) * log_ratio


def never_paid_back(rewards, logps, ref_logps, beta):
    return rewards - beta * torch.relu(logps - ref_logps)


def one_charge_for_all(rewards, logps, ref_logps, beta):
    kl = (logps - ref_logps).sum() / len(logps)
    return rewards - beta * kl


WRONG = {
    "kl_penalised_score": [
        (lambda r, logp, ref, beta: r - beta * (ref - logp), "sign"),
        (lambda r, logp, ref, beta: r - logp + ref, "beta forgotten"),
        (lambda r, logp, ref, beta: r, "KL forgotten"),
        (lambda r, logp, ref, beta: beta * r - logp + ref, "beta on the reward"),
        (lambda r, logp, ref, beta: r - beta * logp, "reference forgotten"),
        (lambda r, logp, ref, beta: r - beta * (logp.exp() - ref.exp()), "probabilities"),
        (charged_without_a_logarithm, "ratio without its logarithm"),
        (charged_as_in_a_sum_over_answers, "weighted by the probability"),
        (never_paid_back, "never below zero"),
        (lambda r, logp, ref, beta: r - beta * torch.abs(logp - ref), "absolute value"),
        (lambda r, logp, ref, beta: torch.mean(r - beta * (logp - ref)), "averaged"),
        (one_charge_for_all, "the same charge for all"),
        (lambda r, logp, ref, beta: r / beta - (logp - ref), None),
    ],
}
