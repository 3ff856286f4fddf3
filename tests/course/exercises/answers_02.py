"""Answers to the exercises of notebook 02, as students write them."""

import math

import numpy as np
import torch


def gradient_by_index_add(rewards, winners, losers):
    surprise = 1 - torch.sigmoid(rewards[winners] - rewards[losers])
    gradient = torch.zeros_like(rewards)
    gradient.index_add_(0, winners, -surprise)
    gradient.index_add_(0, losers, surprise)
    return gradient / len(winners)


def gradient_by_autograd(rewards, winners, losers):
    r = rewards.clone().requires_grad_()
    loss = -torch.nn.functional.logsigmoid(r[winners] - r[losers]).mean()
    return torch.autograd.grad(loss, r)[0]


def gradient_by_loops(rewards, winners, losers):
    out = [0.0] * len(rewards)
    for i, j in zip(winners.tolist(), losers.tolist(), strict=True):
        p = 1 / (1 + math.exp(float(rewards[j] - rewards[i])))
        out[i] -= (1 - p) / len(winners)
        out[j] += (1 - p) / len(winners)
    return out


def gradient_by_one_hot(rewards, winners, losers):
    n = len(rewards)
    edges = torch.nn.functional.one_hot(winners, n) - torch.nn.functional.one_hot(losers, n)
    edges = edges.to(rewards)
    return -(edges * torch.sigmoid(-edges @ rewards)[:, None]).mean(0)


def centre_by_spreading_labels(rewards, winners, losers):
    label = list(range(len(rewards)))
    for _ in label:
        for i, j in zip(winners.tolist(), losers.tolist(), strict=True):
            label[i] = label[j] = min(label[i], label[j])
    label = torch.tensor(label)
    return torch.stack(
        [r - rewards[label == a].mean() for r, a in zip(rewards, label, strict=True)]
    )


def centre_by_projection(rewards, winners, losers):
    eye = torch.eye(len(rewards), dtype=rewards.dtype)
    edges = eye[winners] - eye[losers]
    return torch.linalg.pinv(edges) @ edges @ rewards


def centre_by_search(rewards, winners, losers):
    out = rewards.clone()
    pairs = list(zip(winners.tolist(), losers.tolist(), strict=True))
    for start in range(len(rewards)):
        group, open_ = {start}, [start]
        while open_:
            here = open_.pop()
            near = {j for i, j in pairs if i == here} | {i for i, j in pairs if j == here}
            open_.extend(near - group)
            group |= near
        out[start] -= rewards[sorted(group)].mean()
    return out


def newton_by_pinv(rewards, winners, losers):
    eye = torch.eye(len(rewards), dtype=rewards.dtype)
    edges = eye[winners] - eye[losers]
    p = torch.sigmoid(edges @ rewards)
    gradient = -((1 - p)[:, None] * edges).mean(0)
    hessian = edges.T @ torch.diag(p * (1 - p)) @ edges / len(p)
    return rewards - torch.linalg.pinv(hessian, hermitian=True) @ gradient


def newton_by_autograd(rewards, winners, losers):
    def loss(r):
        return torch.nn.functional.softplus(r[losers] - r[winners]).mean()

    gradient = torch.autograd.functional.jacobian(loss, rewards)
    hessian = torch.autograd.functional.hessian(loss, rewards)
    return rewards - torch.linalg.pinv(hessian, hermitian=True) @ gradient


def newton_by_loops(rewards, winners, losers):
    n, r = len(rewards), rewards.numpy()
    g, h = np.zeros(n), np.zeros((n, n))
    for i, j in zip(winners.tolist(), losers.tolist(), strict=True):
        p = 1 / (1 + np.exp(r[j] - r[i]))
        g[i] -= 1 - p
        g[j] += 1 - p
        h[i, i] += p * (1 - p)
        h[j, j] += p * (1 - p)
        h[i, j] -= p * (1 - p)
        h[j, i] -= p * (1 - p)
    return torch.tensor(r - np.linalg.lstsq(h, g, rcond=1e-10)[0])


RIGHT = {
    "bradley_terry_gradient": [
        gradient_by_index_add,
        gradient_by_autograd,
        gradient_by_loops,
        gradient_by_one_hot,
    ],
    "centre_rewards": [centre_by_spreading_labels, centre_by_projection, centre_by_search],
    "newton_step": [newton_by_pinv, newton_by_autograd, newton_by_loops],
}


def add_up(rewards, winners, losers, force):
    gradient = torch.zeros_like(rewards)
    return gradient.index_add_(0, winners, -force).index_add_(0, losers, force)


def p_of(r, w, x):
    return 1 / (1 + torch.exp(r[x] - r[w]))


def overwritten(r, w, x):
    g = torch.zeros_like(r)
    g[w] = g[w] - (1 - p_of(r, w, x))
    g[x] = g[x] + (1 - p_of(r, w, x))
    return g / w.numel()


def winners_only(r, w, x):
    g = torch.zeros_like(r)
    for i, s in zip(w.tolist(), (1 - p_of(r, w, x)).tolist(), strict=True):
        g[i] -= s
    return g / len(w)


def groups(r, w, x, directed=False):
    """Which items each item reaches: lists of indices."""
    reach = torch.eye(len(r)).bool()
    for _ in range(len(r)):
        for i, j in zip(w.tolist(), x.tolist(), strict=True):
            reach[:, j] |= reach[:, i]
            if not directed:
                reach[:, i] |= reach[:, j]
    return [torch.nonzero(row).flatten() for row in reach]


def by_group(r, w, x, shift, directed=False):
    return torch.stack([a - shift(r[g]) for a, g in zip(r, groups(r, w, x, directed), strict=True)])


def alone_unmoved(r, w, x):
    found = groups(r, w, x)
    return torch.stack(
        [a - r[g].mean() if len(g) > 1 else a for a, g in zip(r, found, strict=True)]
    )


def direct_opponents(r, w, x):
    pairs = list(zip(w.tolist(), x.tolist(), strict=True))
    out = r.clone()
    for i in range(len(r)):
        near = {i} | {b for a, b in pairs if a == i} | {a for a, b in pairs if b == i}
        out[i] -= r[sorted(near)].mean()
    return out


def mutual(r, w, x):
    reached = [set(g.tolist()) for g in groups(r, w, x, directed=True)]
    out = r.clone()
    for i, mine in enumerate(reached):
        out[i] -= r[[j for j in sorted(mine) if i in reached[j]]].mean()
    return out


def derivatives(r, w, x):
    loss = lambda r: -torch.log(torch.sigmoid(r[w] - r[x])).mean()  # noqa: E731
    gradient = torch.autograd.functional.jacobian(loss, r)
    return gradient, torch.autograd.functional.hessian(loss, r)


def solve(h, g):
    return torch.linalg.pinv(h, rtol=1e-10, hermitian=True) @ g


def newton(r, w, x, change, sign=-1):
    g, h = derivatives(r, w, x)
    return r + sign * solve(change(h), g)


def weighted_by_p(r, w, x):
    eye = torch.eye(len(r), dtype=r.dtype)
    e = eye[w] - eye[x]
    h = torch.einsum("n,ni,nj->ij", p_of(r, w, x), e, e) / len(w)
    return r - solve(h, derivatives(r, w, x)[0])


def first_fixed(r, w, x):
    g, h = derivatives(r, w, x)
    out = r.clone()
    out[1:] -= solve(h[1:, 1:], g[1:])
    return out


WRONG = {
    "bradley_terry_gradient": [
        (lambda r, w, x: -add_up(r, w, x, 1 - p_of(r, w, x)) / len(w), "sign"),
        (lambda r, w, x: add_up(r, w, x, p_of(r, w, x)) / len(w), "probability for surprise"),
        (lambda r, w, x: add_up(r, w, x, torch.ones(len(w)).to(r)) / len(w), "counts only"),
        (lambda r, w, x: add_up(r, w, x, p_of(r, w, x) * p_of(r, x, w)) / len(w), "curvature"),
        (lambda r, w, x: add_up(r, w, x, p_of(r, x, w)), "sum for mean"),
        (lambda r, w, x: add_up(r, w, x, p_of(r, x, w)) / len(r), None),
        (winners_only, "winners only"),
        (overwritten, "overwritten"),
        (lambda r, w, x: (torch.sigmoid(r[w] - r[x]) - 1) / len(w), None),  # one per comparison
    ],
    "centre_rewards": [
        (lambda r, w, x: r - sum(r) / len(r), "one mean for all"),
        (lambda r, w, x: by_group(r, w, x, lambda g: g[0]), "first item at zero"),
        (lambda r, w, x: by_group(r, w, x, lambda g: g.max()), None),
        (lambda r, w, x: by_group(r, w, x, lambda g: torch.logsumexp(g, 0)), "softmax"),
        (alone_unmoved, "never compared"),
        (direct_opponents, "direct opponents"),
        (lambda r, w, x: by_group(r, w, x, torch.mean, directed=True), "downwards only"),
        (mutual, "both ways"),
        (lambda r, w, x: by_group(r, w, x, torch.median), None),
    ],
    "newton_step": [
        (lambda r, w, x: r - derivatives(r, w, x)[0], "gradient step"),
        (lambda r, w, x: newton(r, w, x, lambda h: h, sign=1), "sign"),
        (lambda r, w, x: -solve(derivatives(r, w, x)[1], derivatives(r, w, x)[0]), "step only"),
        (lambda r, w, x: newton(r, w, x, lambda h: torch.diag(torch.diag(h))), "diagonal only"),
        (lambda r, w, x: newton(r, w, x, lambda h: len(w) * h), "sum and mean"),
        (lambda r, w, x: newton(r, w, x, torch.abs), "sign between items"),
        (weighted_by_p, "p for p (1 − p)"),
        (first_fixed, "first item fixed"),
        (lambda r, w, x: newton(r, w, x, lambda h: h + torch.eye(len(r))), None),  # damped
    ],
}
