"""Answers to the exercises of notebook 13, as students write them."""

import math

import torch


def advantage_by_conditional_probabilities(logps, ref_logps, responses, y, beta):
    result = []
    for t in range(len(y)):
        before = (responses[:, :t] == y[:t]).all(1)
        after = (responses[:, : t + 1] == y[: t + 1]).all(1)
        one = torch.logsumexp(logps[after], 0) - torch.logsumexp(logps[before], 0)
        other = torch.logsumexp(ref_logps[after], 0) - torch.logsumexp(ref_logps[before], 0)
        result.append(beta * (one - other))
    return torch.stack(result)


def advantage_by_masking(logps, ref_logps, responses, y, beta):
    begins = torch.cumprod((responses == y).long(), dim=1).bool()
    one, other = (
        torch.where(begins, table[:, None], -math.inf).logsumexp(0) for table in (logps, ref_logps)
    )
    ratio = one - other
    return beta * torch.cat([ratio[:1], ratio[1:] - ratio[:-1]])


def advantage_by_loops(logps, ref_logps, responses, y, beta):
    def mass(table, t):
        rows = [i for i, row in enumerate(responses.tolist()) if row[:t] == y.tolist()[:t]]
        return float(table[rows].logsumexp(0))

    T = len(y)
    up = [mass(logps, t + 1) - mass(logps, t) for t in range(T)]
    down = [mass(ref_logps, t + 1) - mass(ref_logps, t) for t in range(T)]
    return torch.tensor([beta * (a - b) for a, b in zip(up, down, strict=True)])


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


def luck_by_where(rewards, q_values, values, mask):
    return torch.where(mask, rewards + values[:, 1:] - q_values, 0.0).sum(-1)


def luck_by_differences(rewards, q_values, values, mask):
    skill = q_values - values[:, :-1]
    return ((rewards + values.diff(dim=1) - skill) * mask).sum(1)


def luck_by_loops(rewards, q_values, values, mask):
    result = torch.zeros(len(rewards), dtype=rewards.dtype)
    for b in range(len(rewards)):
        for t in range(int(mask[b].sum())):
            result[b] += rewards[b, t] + values[b, t + 1] - q_values[b, t]
    return result


RIGHT = {
    "token_advantage": [
        advantage_by_conditional_probabilities,
        advantage_by_masking,
        advantage_by_loops,
    ],
    "soft_backup": [backup_by_logsumexp, backup_by_hand, backup_by_loops],
    "luck": [luck_by_where, luck_by_differences, luck_by_loops],
}


def log_mass(table, responses, y, t):
    return torch.logsumexp(table[(responses[:, :t] == y[:t]).all(1)], 0)


def log_ratio(p, ref, responses, y, t):
    return log_mass(p, responses, y, t) - log_mass(ref, responses, y, t)


def advantage_without_reference(p, ref, responses, y, beta):
    masses = [log_mass(p, responses, y, t) for t in range(len(y) + 1)]
    return beta * torch.stack(masses).diff()


def advantage_of_beginnings(p, ref, responses, y, beta):
    return beta * torch.stack([log_ratio(p, ref, responses, y, t + 1) for t in range(len(y))])


def advantage_out_of_context(p, ref, responses, y, beta):
    places = [responses[:, t] == y[t] for t in range(len(y))]
    return beta * torch.stack([torch.logsumexp(p[s], 0) - ref[s].exp().sum().log() for s in places])


def advantage_naive(p, ref, responses, y, beta):
    result = []
    for t in range(len(y)):
        before = (responses[:, :t] == y[:t]).all(1)
        after = (responses[:, : t + 1] == y[: t + 1]).all(1)
        one = p[after].exp().sum() / p[before].exp().sum()
        other = ref[after].exp().sum() / ref[before].exp().sum()
        result.append(beta * (one.log() - other.log()))
    return torch.stack(result)


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


def steps(values, mask):
    return torch.where(mask, values, 0.0).sum(1)


WRONG = {
    "token_advantage": [
        (advantage_without_reference, "reference forgotten"),
        (
            lambda p, ref, all_, y, beta: advantage_by_masking(ref, p, all_, y, beta),
            "sign",
        ),
        (advantage_of_beginnings, "beginnings"),
        (
            lambda p, ref, all_, y, beta: beta * log_ratio(p, ref, all_, y, len(y)),
            "summed",
        ),
        (advantage_out_of_context, "context forgotten"),
        (advantage_naive, "underflow"),
        (lambda p, ref, all_, y, beta: advantage_by_masking(p, ref, all_, y, beta**2), None),
    ],
    "soft_backup": [
        (backup_lucky, "exp before expectation"),
        (lambda succ, p, r, ref, V, beta: torch.amax(q(succ, p, r, V), 1), "hard maximum"),
        (
            lambda succ, p, r, ref, V, beta: (
                beta * torch.log(torch.exp(q(succ, p, r, V) / beta).sum(1))
            ),
            "reference forgotten",
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
            lambda succ, p, r, ref, V, beta: V + beta * torch.logsumexp(ref + r / beta, 1),
            "value of the state itself",
        ),
        (backup_naive, "overflow"),
        (lambda succ, p, r, ref, V, beta: q(succ, p, r, V).mean(1), None),
    ],
    "luck": [
        (lambda r, Q, V, mask: steps(r + V[:, :-1] - Q, mask), "not shifted"),
        (lambda r, Q, V, mask: steps(r - Q, mask), "future forgotten"),
        (lambda r, Q, V, mask: steps(Q - V[:, : Q.shape[1]], mask), "skill"),
        (lambda r, Q, V, mask: -steps(r + V[:, 1:] - Q, mask), "sign"),
        (lambda r, Q, V, mask: torch.where(mask, r + V[:, 1:] - Q, 0.0), "not summed"),
        (lambda r, Q, V, mask: (r - Q + V[:, 1:]).sum(dim=1), "mask forgotten"),
        (lambda r, Q, V, mask: steps(V[:, 1:] - Q, mask), None),
    ],
}
