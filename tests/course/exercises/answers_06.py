"""Answers to the exercises of notebook 05, as students write them."""

import math

import torch


def kl_by_masking(logp, logq):
    p = logp.exp()
    terms = p * (logp - logq)
    return torch.where(p == 0, torch.zeros_like(terms), terms).sum(-1)


def kl_by_two_entropies(logp, logq):
    def expectation(values):
        return torch.where(logp == -torch.inf, torch.zeros_like(values), logp.exp() * values).sum(
            dim=-1
        )

    return expectation(logp) - expectation(logq)


def kl_by_loops(logp, logq):
    shape = logp.shape[:-1]
    rows_p, rows_q = logp.reshape(-1, logp.shape[-1]), logq.reshape(-1, logq.shape[-1])
    sums = []
    for row_p, row_q in zip(rows_p.tolist(), rows_q.tolist(), strict=True):
        total = 0.0
        for a, b in zip(row_p, row_q, strict=True):
            if a == -math.inf:
                continue
            total += math.exp(a) * (a - b)
        sums.append(total)
    return torch.tensor(sums).reshape(shape)


def log_partition_by_logsumexp(ref_logps, rewards, beta):
    return (ref_logps + rewards / beta).logsumexp(dim=-1)


def log_partition_by_hand(ref_logps, rewards, beta):
    exponent = ref_logps + rewards / beta
    largest = exponent.max(dim=-1, keepdim=True).values
    return (exponent - largest).exp().sum(-1).log() + largest.squeeze(-1)


def log_partition_by_logaddexp(ref_logps, rewards, beta):
    exponent = ref_logps.double() + rewards.double() / beta
    total = exponent[..., 0]
    for y in range(1, exponent.shape[-1]):
        total = torch.logaddexp(total, exponent[..., y])
    return total


def gibbs_by_log_softmax(ref_logps, rewards, beta):
    return torch.log_softmax(ref_logps + rewards / beta, dim=-1)


def gibbs_by_subtraction(ref_logps, rewards, beta):
    tilted = ref_logps + rewards / beta
    return tilted - torch.logsumexp(tilted, -1, keepdim=True)


def gibbs_by_loops(ref_logps, rewards, beta):
    flat_logps = ref_logps.double().reshape(-1, ref_logps.shape[-1])
    flat_rewards = rewards.double().reshape(-1, ref_logps.shape[-1])
    rows = []
    for logps, r in zip(flat_logps, flat_rewards, strict=True):
        tilted = logps + r / beta
        rows.append(tilted - torch.logsumexp(tilted, 0))
    return torch.stack(rows).reshape(ref_logps.shape)


def objective_term_by_term(logps, ref_logps, rewards, beta):
    p = logps.exp()
    ratio = torch.where(p > 0, logps - ref_logps, torch.zeros_like(logps))
    return (p * rewards).sum(-1) - beta * (p * ratio).sum(-1)


def objective_inside_one_sum(logps, ref_logps, rewards, beta):
    said = logps > -math.inf
    inside = rewards - beta * (logps - ref_logps)
    return torch.where(said, logps.exp() * inside, 0.0).sum(-1)


def objective_by_nansum(logps, ref_logps, rewards, beta):
    earned = torch.einsum("...y,...y->...", logps.exp(), rewards)
    paid = (logps.exp() * (logps - ref_logps)).nansum(-1)
    return earned - beta * paid


RIGHT = {
    "kl_divergence": [kl_by_masking, kl_by_two_entropies, kl_by_loops],
    "log_partition": [
        log_partition_by_logsumexp,
        log_partition_by_hand,
        log_partition_by_logaddexp,
    ],
    "gibbs_policy": [gibbs_by_log_softmax, gibbs_by_subtraction, gibbs_by_loops],
    "objective": [objective_term_by_term, objective_inside_one_sum, objective_by_nansum],
}


def kl_bits(logp, logq):
    return (torch.exp(logp) * torch.log2(logp.exp() / logq.exp())).sum(-1)


def kl_with_clamped_infinities(logp, logq):
    terms = torch.exp(logp) * (logp - logq)
    terms[~torch.isfinite(terms)] = 0
    return terms.sum(-1)


def log_partition_naive(ref_logps, rewards, beta):
    Z = torch.zeros(rewards.shape[:-1], dtype=rewards.dtype)
    for y in range(rewards.shape[-1]):
        Z = Z + torch.exp(ref_logps[..., y]) * torch.exp(rewards[..., y] / beta)
    return torch.log(Z)


def gibbs_naive(ref_logps, rewards, beta):
    weights = torch.exp(ref_logps) * torch.exp(rewards / beta)
    return torch.log(weights / weights.sum(-1, keepdim=True))


def objective_naive(logps, ref_logps, rewards, beta):
    p = torch.exp(logps)
    return (p * rewards).sum(-1) - beta * (p * (logps - ref_logps)).sum(-1)


def objective_swapped(logps, ref_logps, rewards, beta):
    q = ref_logps.exp()
    kl = torch.where(q > 0, q * (ref_logps - logps), 0.0).sum(-1)
    return (logps.exp() * rewards).sum(-1) - beta * kl


WRONG = {
    "kl_divergence": [
        (lambda p, q: (p.exp() * (q - p)).sum(-1), "sign"),
        (lambda p, q: (q.exp() * (q - p)).sum(-1), "swapped"),
        (lambda p, q: (p - q).sum(dim=-1), "not weighted"),
        (lambda p, q: (p.exp() * (p - q)).mean(-1), "mean for sum"),
        (lambda p, q: torch.sum(p * (p - q), -1), "log-probabilities as weights"),
        (lambda p, q: torch.sum(p.exp() * (p - q)), "summed over prompts"),
        (lambda p, q: (p.exp() * (p - q)).sum(-1).mean(), "averaged over prompts"),
        (kl_bits, "bits"),
        (lambda p, q: torch.nn.functional.kl_div(q, p.exp(), reduction="none").sum(-1), None),
        (lambda p, q: (p.exp() * (p - q)).sum(-1), "zero probability"),
        (kl_with_clamped_infinities, "q misses p"),
        (lambda p, q: (p.exp() * (p - q).abs()).sum(-1), None),
    ],
    "log_partition": [
        (lambda ref, r, beta: torch.logsumexp(ref + r, -1), "beta forgotten"),
        (lambda ref, r, beta: torch.logsumexp(ref + beta * r, -1), "times beta"),
        (lambda ref, r, beta: torch.logsumexp(r / beta, -1), "reference forgotten"),
        (lambda ref, r, beta: (ref + r / beta).exp().sum(-1), "Z, not log Z"),
        (lambda ref, r, beta: beta * torch.logsumexp(ref + r / beta, -1), "beta log Z"),
        (
            lambda ref, r, beta: torch.logsumexp(torch.exp(ref) + r / beta, -1),
            "probabilities in the exponent",
        ),
        (lambda ref, r, beta: torch.logsumexp(ref - r / beta, -1), "sign"),
        (
            lambda ref, r, beta: torch.logsumexp(ref + r / beta, tuple(range(r.dim()))),
            "summed over prompts",
        ),
        (log_partition_naive, "overflow"),
        (lambda ref, r, beta: torch.logsumexp(ref + r / beta, 0), None),
    ],
    "gibbs_policy": [
        (lambda ref, r, beta: ref + r / beta, "not normalised"),
        (lambda ref, r, beta: torch.softmax(ref + r / beta, -1), "probabilities"),
        (lambda ref, r, beta: torch.log_softmax(ref + r, -1), "beta forgotten"),
        (lambda ref, r, beta: torch.log_softmax(ref + r * beta, -1), "times beta"),
        (lambda ref, r, beta: torch.log_softmax(r / beta, -1), "reference forgotten"),
        (lambda ref, r, beta: torch.log_softmax(ref - r / beta, -1), "sign"),
        (
            lambda ref, r, beta: (
                ref + r / beta - torch.logsumexp(ref + r / beta, tuple(range(r.dim())))
            ),
            "normalised over prompts",
        ),
        (gibbs_naive, "overflow"),
        (lambda ref, r, beta: torch.log(torch.softmax(ref + r / beta, -1)), "underflow"),
        (lambda ref, r, beta: torch.log_softmax(ref + r / beta, 0), None),
    ],
    "objective": [
        (
            lambda logps, ref, r, beta: (logps.exp() * (r + beta * (logps - ref))).sum(-1),
            "sign of the KL",
        ),
        (lambda logps, ref, r, beta: objective_naive(logps, ref, r, 1.0), "beta forgotten"),
        (lambda logps, ref, r, beta: (logps.exp() * r).sum(-1), "KL forgotten"),
        (objective_swapped, "swapped KL"),
        (
            lambda logps, ref, r, beta: (
                (ref.exp() * r).sum(-1) - beta * (logps.exp() * (logps - ref)).sum(-1)
            ),
            "reward of the reference",
        ),
        (
            lambda logps, ref, r, beta: (
                beta * (logps.exp() * r).sum(-1) - (logps.exp() * (logps - ref)).sum(-1)
            ),
            "beta on the reward",
        ),
        (
            lambda logps, ref, r, beta: objective_naive(logps, ref, r, beta).mean(),
            "averaged over prompts",
        ),
        (objective_naive, "zero probability"),
        (lambda logps, ref, r, beta: (logps * (r - beta * (logps - ref))).sum(-1), None),
    ],
}
