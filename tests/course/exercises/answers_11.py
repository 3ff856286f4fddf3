"""Answers to the exercises of notebook 11, as students write them."""

from itertools import pairwise

import torch
import torch.nn.functional as F

from rlhf_toy.exact import expected_reward, gibbs_policy, kl_divergence, log_partition, objective


def ipo_in_two_lines(c, r, ref_c, ref_r, beta):
    h = (c - ref_c) - (r - ref_r)
    return ((h - 1 / (2 * beta)) ** 2).mean()


def ipo_by_log_ratios(c, r, ref_c, ref_r, beta):
    policy, reference = c - r, ref_c - ref_r
    return torch.mean(torch.square(policy - reference - 0.5 / beta))


def ipo_by_mse(c, r, ref_c, ref_r, beta):
    h = c - r + ref_r - ref_c
    return F.mse_loss(h, torch.full_like(h, 1 / (2 * beta)))


def simpo_by_logsigmoid(c, r, n, m, beta, gamma):
    return -F.logsigmoid(beta * (c / n - r / m) - gamma).mean()


def simpo_by_softplus(c, r, n, m, beta, gamma):
    return F.softplus(gamma - beta * c / n + beta * r / m).mean()


def simpo_by_a_loop(c, r, n, m, beta, gamma):
    total = 0.0
    for i in range(len(c)):
        total = total - F.logsigmoid(beta * c[i] / n[i] - beta * r[i] / m[i] - gamma)
    return total / len(c)


def split_by_objective(trained, data, endless, ref_logps, rewards, beta):
    best = gibbs_policy(ref_logps, rewards, beta)
    J = [
        objective(p, ref_logps, rewards, beta).mean()
        for p in (best, endless, data, trained, ref_logps)
    ]
    whole = J[0] - J[4]
    return (J[0] - J[1]) / whole, (J[1] - J[2]) / whole, (J[2] - J[3]) / whole


def split_by_kl_to_the_optimum(trained, data, endless, ref_logps, rewards, beta):
    best = gibbs_policy(ref_logps, rewards, beta)
    gap = [kl_divergence(p, best).mean() for p in (endless, data, trained)]
    whole = kl_divergence(ref_logps, best).mean()
    return gap[0] / whole, (gap[1] - gap[0]) / whole, (gap[2] - gap[1]) / whole


def split_by_log_z(trained, data, endless, ref_logps, rewards, beta):
    def J(p):
        return (expected_reward(p, rewards) - beta * kl_divergence(p, ref_logps)).mean()

    values = [beta * log_partition(ref_logps, rewards, beta).mean(), J(endless), J(data)]
    values.append(J(trained))
    whole = values[0] - expected_reward(ref_logps, rewards).mean()
    return tuple((a - b) / whole for a, b in pairwise(values))


def dpo_by_masks(c, r, ref_c, ref_r, cm, rm, beta):
    chosen = ((c - ref_c) * cm).sum(1)
    rejected = ((r - ref_r) * rm).sum(1)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def dpo_by_where(c, r, ref_c, ref_r, cm, rm, beta):
    zero = torch.zeros_like(c)
    policy = torch.where(cm, c, zero).sum(-1) - torch.where(rm, r, zero).sum(-1)
    ref = torch.where(cm, ref_c, zero).sum(-1) - torch.where(rm, ref_r, zero).sum(-1)
    return F.softplus(-beta * (policy - ref)).mean()


def dpo_row_by_row(c, r, ref_c, ref_r, cm, rm, beta):
    margins = [
        (c[i][cm[i]] - ref_c[i][cm[i]]).sum() - (r[i][rm[i]] - ref_r[i][rm[i]]).sum()
        for i in range(len(c))
    ]
    return -F.logsigmoid(beta * torch.stack(margins)).mean()


RIGHT = {
    "ipo_loss": [ipo_in_two_lines, ipo_by_log_ratios, ipo_by_mse],
    "simpo_loss": [simpo_by_logsigmoid, simpo_by_softplus, simpo_by_a_loop],
    "split_gap": [split_by_objective, split_by_kl_to_the_optimum, split_by_log_z],
    "repair_dpo": [dpo_by_masks, dpo_by_where, dpo_row_by_row],
}


def _h(c, r, ref_c, ref_r):
    return c - r - ref_c + ref_r


def _parts(*a):
    return torch.stack(split_by_objective(*a))


def _whole(ref, rewards, beta):
    best = gibbs_policy(ref, rewards, beta)
    return (objective(best, ref, rewards, beta) - objective(ref, ref, rewards, beta)).mean()


def split_of_j_star(*a):
    best = objective(gibbs_policy(*a[3:]), *a[3:]).mean()
    return tuple(part * _whole(*a[3:]) / best for part in split_by_objective(*a))


def _sums(a, masked=True):
    return [
        torch.where(m, t, 0.0).sum(1) if masked else t.sum(1)
        for t, m in zip(a[:4], (a[4], a[5], a[4], a[5]), strict=True)
    ]


def broken(*a, masked=False, sign=-1, detach=True):
    c, r, ref_c, ref_r = _sums(a, masked)
    margin = c - (r.detach() if detach else r) - sign * (ref_c - ref_r)
    return -F.logsigmoid(a[6] * margin).mean()


def dpo_of_means(*a):
    return dpo_row_by_row(*(t / m.sum(1, keepdim=True) for t, m in zip(
        a[:4], (a[4], a[5], a[4], a[5]), strict=True)), *a[4:])  # fmt: skip


WRONG = {
    "ipo_loss": [
        (lambda *a: ((a[4] * _h(*a[:4]) - 0.5 / a[4]) ** 2).mean(), "beta times h"),
        (lambda *a: ((_h(*a[:4]) - 1 / a[4]) ** 2).mean(), "1/beta"),
        (lambda *a: ((_h(*a[:4]) - 0.5 * a[4]) ** 2).mean(), "beta/2"),
        (lambda c, r, x, y, beta: ((c - r - 0.5 / beta) ** 2).mean(), "reference forgotten"),
        (lambda *a: ((0.5 / a[4] - _h(*a[:4])).clamp(min=0) ** 2).mean(), "hinge"),
        (lambda *a: ((_h(*a[:4]) - 0.5 / a[4]) ** 2).sum(), "sum"),
        (lambda *a: (_h(*a[:4]) - 0.5 / a[4]).abs().mean(), None),
    ],
    "simpo_loss": [
        (lambda c, r, n, m, b, g: -F.logsigmoid(b * (c - r) - g).mean(), "not normalised"),
        (lambda c, r, n, m, b, g: -F.logsigmoid(b * (c - r) / n - g).mean(), "one length"),
        (lambda c, r, n, m, b, g: simpo_by_softplus(c, r, m, n, b, g), "lengths swapped"),
        (lambda c, r, n, m, b, g: simpo_by_softplus(c, r, n, m, b, -g), "gamma added"),
        (lambda c, r, n, m, b, g: simpo_by_softplus(c, r, n, m, b, 0.0), "gamma forgotten"),
        (lambda c, r, n, m, b, g: simpo_by_softplus(c, r, n, m, b, b * g), "gamma times beta"),
        (lambda *a: -simpo_by_logsigmoid(*a), None),
    ],
    "split_gap": [
        (lambda *a: split_by_objective(*a)[::-1], "order"),
        (lambda *a: tuple(-_parts(*a)), "sign"),
        (lambda *a: tuple(_parts(*a) * _whole(*a[3:])), "not divided"),
        (split_of_j_star, "divided by J*"),
        (lambda *a: tuple(torch.cumsum(_parts(*a), 0)), "gaps to the optimum"),
        (lambda *a: tuple(_parts(*a).relu()), "clamped"),
        (lambda *a: tuple(_parts(*a) ** 2), None),
    ],
    "repair_dpo": [
        (broken, "still broken"),
        (lambda *a: broken(*a, sign=1, detach=False), "padding"),
        (lambda *a: broken(*a, masked=True, detach=False), "reference's sign"),
        (lambda *a: broken(*a, masked=True, sign=1), "detached"),
        (lambda *a: broken(*a, masked=True, sign=0, detach=False), "reference forgotten"),
        (dpo_of_means, "mean"),
        (lambda *a: -dpo_by_where(*a), None),
    ],
}
