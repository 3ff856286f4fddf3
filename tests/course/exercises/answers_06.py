"""Answers to the exercises of notebook 06, as students write them."""

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


def kkt_by_formula(logps, ref_logps, rewards, beta, multiplier):
    return rewards - beta * (logps - ref_logps + 1) + multiplier.unsqueeze(-1)


def kkt_by_broadcasting_from_the_left(logps, ref_logps, rewards, beta, multiplier):
    residual = (rewards - beta * logps + beta * ref_logps - beta).movedim(-1, 0)
    return (residual + multiplier).movedim(0, -1)


def kkt_by_loops(logps, ref_logps, rewards, beta, multiplier):
    Y = logps.shape[-1]
    rows = []
    lams = multiplier.reshape(-1)
    for p, q, r, lam in zip(
        logps.reshape(-1, Y), ref_logps.reshape(-1, Y), rewards.reshape(-1, Y), lams, strict=True
    ):
        rows.append([float(r[y] - beta * (p[y] - q[y]) - beta + lam) for y in range(Y)])
    return torch.tensor(rows, dtype=torch.float64).reshape(logps.shape)


RIGHT = {
    "kl_divergence": [kl_by_masking, kl_by_two_entropies, kl_by_loops],
    "log_partition": [
        log_partition_by_logsumexp,
        log_partition_by_hand,
        log_partition_by_logaddexp,
    ],
    "gibbs_policy": [gibbs_by_log_softmax, gibbs_by_subtraction, gibbs_by_loops],
    "kkt_residual": [kkt_by_formula, kkt_by_broadcasting_from_the_left, kkt_by_loops],
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


def kkt_clamped(logps, ref, r, beta, lam):
    p = logps.exp().clamp(min=1e-12)
    return r - beta * (torch.log(p) - ref + 1) + lam[..., None]


def kkt_terms(logps, ref, r, beta, lam):
    p = logps.exp()
    terms = p * r - beta * p * (logps - ref + 1) + lam[..., None] * p
    return torch.where(p > 0, terms, 0.0)


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
    "kkt_residual": [
        (lambda p, q, r, beta, lam: r - beta * (p - q) + lam[..., None], "product rule"),
        (lambda p, q, r, beta, lam: r - beta * (p - q) - 1 + lam[..., None], "one without beta"),
        (
            lambda p, q, r, beta, lam: r - beta * (p - q + 1) - lam[..., None],
            "sign of the multiplier",
        ),
        (lambda p, q, r, beta, lam: r - beta * (1 + p - q), "multiplier forgotten"),
        (lambda p, q, r, beta, lam: r - beta * (q - p + 1) + lam[..., None], "swapped"),
        (lambda p, q, r, beta, lam: r + beta * (p - q + 1) + lam[..., None], "sign of the KL"),
        (lambda p, q, r, beta, lam: r - (p - q + 1) + lam[..., None], "beta forgotten"),
        (lambda p, q, r, beta, lam: r - beta * (p + 1) + lam[..., None], "reference forgotten"),
        (kkt_terms, "times the probability"),
        (
            lambda p, q, r, beta, lam: (r - beta * (p - q + 1) + lam[..., None]).sum(-1),
            "summed over responses",
        ),
        (kkt_clamped, "clamped"),
        (lambda p, q, r, beta, lam: r / beta - (p - q + 1) + lam[..., None], None),
    ],
}
