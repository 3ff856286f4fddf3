"""Answers to the exercises of notebook 09, as students write them."""

import torch


def slope_by_moments(logps, true, proxy):
    p = logps.exp()
    return (p * true * proxy).sum(-1) - (p * true).sum(-1) * (p * proxy).sum(-1)


def slope_centred_twice(logps, true, proxy):
    p = torch.exp(logps)
    a = true - (p * true).sum(-1, keepdim=True)
    b = proxy - (p * proxy).sum(-1, keepdim=True)
    return torch.einsum("...y,...y,...y->...", p, a, b)


def slope_by_autograd(logps, true, proxy):
    t = torch.zeros((), dtype=logps.dtype, requires_grad=True)
    rows = []
    for lp, r, s in zip(*(a.reshape(-1, a.shape[-1]) for a in (logps, true, proxy)), strict=True):
        value = ((lp + t * s).softmax(-1) * r).sum()
        rows.append(torch.autograd.grad(value, t)[0])
    return torch.stack(rows).view(logps.shape[:-1])


def attack_with_where(proxy, true, ref_logps, floor):
    return torch.where(ref_logps.exp() >= floor, proxy - true, -torch.inf).argmax(1)


def attack_by_logarithm(proxy, true, ref_logps, floor):
    error = proxy - true
    error[ref_logps < torch.tensor(floor, dtype=torch.float64).log()] = float("-inf")
    return error.max(dim=-1).indices


def attack_by_loops(proxy, true, ref_logps, floor):
    found = []
    for x in range(len(proxy)):
        allowed = [y for y in range(proxy.shape[1]) if ref_logps[x, y].exp() >= floor]
        found.append(max(allowed, key=lambda y: float(proxy[x, y] - true[x, y])))
    return torch.tensor(found)


def worst_by_amin(scores, ref_logps):
    mean = (ref_logps.exp() * scores).sum(-1, keepdim=True)
    return (scores - mean).amin(dim=0)


def worst_by_einsum(scores, ref_logps):
    mean = torch.einsum("kxy,xy->kx", scores, ref_logps.exp())
    return torch.min(scores - mean.unsqueeze(-1), dim=0).values


def worst_by_a_loop(scores, ref_logps):
    worst = torch.full_like(ref_logps, torch.inf)
    for table in scores:
        worst = torch.minimum(worst, table - (ref_logps.exp() * table).sum(1)[:, None])
    return worst


RIGHT = {
    "reward_slope": [slope_by_moments, slope_centred_twice, slope_by_autograd],
    "attack": [attack_with_where, attack_by_logarithm, attack_by_loops],
    "worst_of_ensemble": [worst_by_amin, worst_by_einsum, worst_by_a_loop],
}


def correlation(logps, true, proxy):
    spread = slope_by_moments(logps, true, true) * slope_by_moments(logps, proxy, proxy)
    return slope_by_moments(logps, true, proxy) / spread**0.5


def attack_with_zeros(proxy, true, ref_logps, floor):
    return torch.where(ref_logps.exp() >= floor, proxy - true, 0.0).argmax(1)


def attack_once(proxy, true, ref_logps, floor):
    return torch.where(ref_logps.exp() >= floor, proxy - true, -torch.inf).flatten().argmax()


def centred(scores, ref_logps):
    return scores - (ref_logps.exp() * scores).sum(-1, keepdim=True)


def one_constant(scores, ref_logps):
    mean = (ref_logps.exp() * scores).sum(-1).mean(-1)
    return (scores - mean[:, None, None]).amin(0)


WRONG = {
    "reward_slope": [
        (lambda p, r, s: (p.exp() * r * s).sum(-1), "means not subtracted"),
        (lambda p, r, s: ((r - r.mean(-1, True)) * (s - s.mean(-1, True))).mean(-1), "uniform"),
        (lambda p, r, s: slope_by_moments(p, s, s), "slope of the proxy"),
        (lambda p, r, s: slope_centred_twice(p, r, s) / r.shape[-1], "mean for sum"),
        (correlation, "correlation"),
        (lambda p, r, s: slope_by_moments(p, r, s).sum(), "summed over prompts"),
        (lambda p, r, s: slope_by_moments(p, r, -s), "sign"),
        (lambda p, r, s: 2 * slope_by_moments(p, r, s), None),
    ],
    "attack": [
        (lambda s, r, p, f: torch.where(p.exp() >= f, s, -torch.inf).argmax(1), "highest proxy"),
        (lambda s, r, p, f: attack_with_where(r, s, p, f), "most underrated"),
        (
            lambda s, r, p, f: attack_with_where((s - r).abs(), 0 * r, p, f),
            "absolute value",
        ),
        (lambda s, r, p, f: (s - r).argmax(1), "floor ignored"),
        (attack_with_zeros, "zero for rare ones"),
        (attack_once, "one for all prompts"),
        (
            lambda s, r, p, f: torch.where(p.exp() >= f, s - r, -torch.inf).max(1).values,
            "the error, not its place",
        ),
        (lambda s, r, p, f: torch.where(p.exp() < f, s - r, -torch.inf).argmax(1), None),
    ],
    "worst_of_ensemble": [
        (lambda s, p: torch.min(s, dim=0).values, "not centred"),
        (lambda s, p: (s - s.mean(-1).unsqueeze(-1)).amin(0), "plain mean"),
        (one_constant, "one constant for all prompts"),
        (lambda s, p: centred(s.amin(0), p), "centred too late"),
        (lambda s, p: centred(s, p).mean(0), "mean of the models"),
        (lambda s, p: centred(s, p).max(0).values, "best of the models"),
        (lambda s, p: (s - (p * s).sum(-1, keepdim=True)).amin(0), "logarithms as weights"),
        (lambda s, p: centred(s, p)[0], None),
    ],
}
