"""Answers to the exercises of notebook 10, as students write them."""

import math

import torch


def backup_by_logsumexp(successors, probabilities, rewards, ref_logps, next_values, beta):
    Q = rewards + (probabilities * next_values[successors]).sum(-1)
    return beta * torch.logsumexp(ref_logps + Q / beta, dim=-1)


def backup_by_hand(successors, probabilities, rewards, ref_logps, next_values, beta):
    future = torch.einsum("sak,sak->sa", probabilities, next_values[successors])
    exponent = ref_logps + (rewards + future) / beta
    largest = exponent.max(dim=1, keepdim=True).values
    return beta * ((exponent - largest).exp().sum(1).log() + largest[:, 0])


def backup_by_loops(successors, probabilities, rewards, ref_logps, next_values, beta):
    S, A, K = successors.shape
    values = []
    for s in range(S):
        exponents = []
        for a in range(A):
            q = float(rewards[s, a])
            for k in range(K):
                q += float(probabilities[s, a, k]) * float(next_values[successors[s, a, k]])
            exponents.append(float(ref_logps[s, a]) + q / beta)
        top = max(exponents)
        values.append(beta * (top + math.log(sum(math.exp(e - top) for e in exponents))))
    return torch.tensor(values)


def backup_as_the_objective_of_its_optimum(
    successors, probabilities, rewards, ref_logps, next_values, beta
):
    Q = (probabilities * (rewards[..., None] + next_values[successors])).sum(-1)
    best = torch.log_softmax(ref_logps + Q / beta, dim=-1)
    inside = torch.where(best > -math.inf, Q - beta * (best - ref_logps), 0.0)
    return (best.exp() * inside).sum(-1)


def advantage_by_filling(policy_logps, ref_logps, mask, beta):
    return torch.where(mask, beta * (policy_logps - ref_logps), 0.0)


def advantage_by_filling_first(policy_logps, ref_logps, mask, beta):
    return beta * policy_logps.masked_fill(~mask, 0) - beta * ref_logps.masked_fill(~mask, 0)


def advantage_by_loops(policy_logps, ref_logps, mask, beta):
    result = torch.zeros_like(policy_logps)
    for b, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            result[b, t] = beta * (policy_logps[b, t] - ref_logps[b, t])
    return result


RIGHT = {
    "soft_backup": [
        backup_by_logsumexp,
        backup_by_hand,
        backup_by_loops,
        backup_as_the_objective_of_its_optimum,
    ],
    "token_advantage": [advantage_by_filling, advantage_by_filling_first, advantage_by_loops],
}


def backup_lucky(succ, p, r, ref, V, beta):
    total = torch.zeros(len(r), dtype=r.dtype)
    for a in range(r.shape[1]):
        for k in range(p.shape[2]):
            chance = torch.exp(ref[:, a]) * p[:, a, k]
            total = total + chance * torch.exp((r[:, a] + V[succ[:, a, k]]) / beta)
    return beta * torch.log(total)


def backup_naive(succ, p, r, ref, V, beta):
    weights = torch.exp(ref) * torch.exp((r + (p * V[succ]).sum(-1)) / beta)
    return beta * torch.log(torch.sum(weights, dim=1))


def q(succ, p, r, V):
    return r + torch.einsum("sak,sak->sa", p, V[succ])


WRONG = {
    "soft_backup": [
        (backup_lucky, "exp before expectation"),
        (lambda succ, p, r, ref, V, beta: torch.amax(q(succ, p, r, V), 1), "hard maximum"),
        (
            lambda succ, p, r, ref, V, beta: torch.sum(torch.exp(ref) * q(succ, p, r, V), 1),
            "mean of the reference",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.log(torch.exp(q(succ, p, r, V) / beta).sum(1))
            ),
            "reference forgotten",
        ),
        (
            lambda succ, p, r, ref, V, beta: torch.logsumexp(ref + q(succ, p, r, V), 1),
            "beta forgotten",
        ),
        (
            lambda succ, p, r, ref, V, beta: torch.logsumexp(ref + q(succ, p, r, V) / beta, 1),
            "beta only inside",
        ),
        (
            lambda succ, p, r, ref, V, beta: beta * torch.logsumexp(ref + q(succ, p, r, V), 1),
            "beta only outside",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref + (r + V[succ].sum(2) / succ.shape[2]) / beta, 1)
            ),
            "outcomes not weighted",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref + (r + V[succ[:, :, 0]]) / beta, 1)
            ),
            "first outcome only",
        ),
        (
            lambda succ, p, r, ref, V, beta: beta * torch.logsumexp(ref + r / beta, 1),
            "future forgotten",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref + (p * V[succ]).sum(-1) / beta, 1)
            ),
            "reward forgotten",
        ),
        (
            lambda succ, p, r, ref, V, beta: V + beta * torch.logsumexp(ref + r / beta, 1),
            "value of the state itself",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref - q(succ, p, r, V) / beta, 1)
            ),
            "sign",
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.log(torch.exp(torch.exp(ref) + q(succ, p, r, V) / beta).sum(1))
            ),
            "probabilities in the exponent",
        ),
        (backup_naive, "overflow"),
        (lambda succ, p, r, ref, V, beta: q(succ, p, r, V).mean(1), None),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref + (r + V[succ].sum(2)) / beta, 1)
            ),
            None,
        ),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.logsumexp(ref + beta * q(succ, p, r, V), 1)
            ),
            None,
        ),
    ],
    "token_advantage": [
        (lambda policy, ref, mask, beta: beta * policy - beta * ref, "mask forgotten"),
        (lambda policy, ref, mask, beta: torch.where(mask, policy - ref, 0.0), "beta forgotten"),
        (
            lambda policy, ref, mask, beta: torch.where(mask, (policy - ref) / beta, 0.0),
            "divided by beta",
        ),
        (lambda policy, ref, mask, beta: torch.where(mask, beta * (ref - policy), 0.0), "sign"),
        (
            lambda policy, ref, mask, beta: torch.where(mask, beta * (policy - ref), 0.0).sum(-1),
            "summed over tokens",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask, torch.cumsum(beta * (policy - ref), 1), 0.0
            ),
            "cumulative sums",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask,
                torch.stack(
                    [
                        torch.where(mask, beta * (policy - ref), 0.0)[:, t:].sum(1)
                        for t in range(mask.shape[1])
                    ],
                    dim=1,
                ),
                0.0,
            ),
            "sums to the end",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask, beta * (torch.exp(policy) - torch.exp(ref)), 0.0
            ),
            "difference of probabilities",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask, beta * torch.exp(policy) / torch.exp(ref), 0.0
            ),
            "ratio without logarithm",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask, beta * (policy - ref) / mask.sum(-1)[:, None].clamp(min=1), 0.0
            ),
            "divided by the length",
        ),
        (
            lambda policy, ref, mask, beta: mask.float() * beta * (policy - ref),
            "NaN behind the mask",
        ),
        (
            lambda policy, ref, mask, beta: torch.where(
                mask, beta * policy.exp() * (policy - ref), 0.0
            ),
            None,
        ),
        (lambda policy, ref, mask, beta: (beta * (policy - ref))[mask], None),
    ],
}
