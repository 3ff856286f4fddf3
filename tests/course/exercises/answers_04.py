"""Answers to the exercises of notebook 04, as students write them."""

import torch


def return_by_product(rewards, squares, mask):
    return (rewards[squares] * mask).sum(dim=1)


def return_by_visits(rewards, squares, mask):
    steps = torch.nn.functional.one_hot(squares, len(rewards)) * mask.unsqueeze(-1)
    return steps.sum(1).to(rewards.dtype) @ rewards


def return_by_loops(rewards, squares, mask):
    returns = []
    for path, real in zip(squares, mask, strict=True):
        total = rewards.new_zeros(())
        for square, is_real in zip(path.tolist(), real.tolist(), strict=True):
            if is_real:
                total = total + rewards[square]
        returns.append(total)
    return torch.stack(returns)


def return_by_gather(rewards, squares, mask):
    table = rewards.expand(len(squares), -1)
    return torch.gather(table, 1, squares).masked_fill(~mask, 0).sum(1)


def backup_by_indexing(values, rewards, successors, is_end):
    q = rewards[successors] + values[successors]
    return q.max(dim=1).values * ~is_end


def backup_by_amax(values, rewards, successors, is_end):
    new = (rewards + values)[successors].amax(-1)
    new[is_end] = 0
    return new


def backup_by_loops(values, rewards, successors, is_end):
    new = []
    for s in range(len(values)):
        if is_end[s]:
            new.append(0.0)
        else:
            new.append(max(float(rewards[n] + values[n]) for n in successors[s].tolist()))
    return torch.tensor(new)


RIGHT = {
    "path_return": [return_by_product, return_by_visits, return_by_loops, return_by_gather],
    "value_backup": [backup_by_indexing, backup_by_amax, backup_by_loops],
}


def mean_of_real_steps(rewards, squares, mask):
    return (rewards[squares] * mask).sum(1) / mask.sum(1)


def at_the_end(rewards, squares, mask):
    last = (mask.sum(1) - 1).clamp(min=0)
    reached = rewards[squares[torch.arange(len(squares)), last]]
    return reached * mask.any(1)


def without_the_end(rewards, squares, mask):
    later = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return (rewards[squares] * later).sum(1)


def as_a_set(rewards, squares, mask):
    totals = []
    for path, real in zip(squares, mask, strict=True):
        seen = sorted(set(path[real].tolist()))
        totals.append(sum((rewards[s] for s in seen), rewards.new_zeros(())))
    return torch.stack(totals)


def return_detached(rewards, squares, mask):
    return (rewards.detach()[squares] * mask).sum(1)


def best(numbers, successors):
    return numbers[successors].max(1).values


def without_ends(new, is_end):
    return new.masked_fill(is_end, 0)


def in_place(values, rewards, successors, is_end):
    values[:] = without_ends(best(rewards + values, successors), is_end)
    return values


WRONG = {
    "path_return": [
        (mean_of_real_steps, "mean over the steps"),
        (lambda r, s, m: (r[s] * m).mean(1), "mean over all positions"),
        (lambda r, s, m: r[s].sum(1), "mask forgotten"),
        (lambda r, s, m: (r[s] * (s > 0)).sum(1), "square 0 taken for padding"),
        (at_the_end, "last square only"),
        (without_the_end, "last square left out"),
        (lambda r, s, m: (r[s[:, 1:]] * m[:, 1:]).sum(1), "first square left out"),
        (as_a_set, "each square once"),
        (lambda r, s, m: torch.sum(r[s] * m), "summed over the batch"),
        (lambda r, s, m: r[s][m].sum(), "summed over the batch"),
        (lambda r, s, m: (r[s] * m).sum(dim=0), "sum over the wrong dimension"),
        (lambda r, s, m: r[s] * m, None),
        (return_detached, None),
        (lambda r, s, m: -(r[s] * m).sum(1), None),
    ],
    "value_backup": [
        (lambda v, r, n, e: best(r + v, n), "ends keep earning"),
        (lambda v, r, n, e: torch.where(e, r, best(r + v, n)), "ends keep earning"),
        (
            lambda v, r, n, e: without_ends(best((r + v).masked_fill(e, 0), n), e),
            "no reward on stepping onto an end",
        ),
        (lambda v, r, n, e: without_ends(r + best(v, n), e), "reward of the square it leaves"),
        (lambda v, r, n, e: without_ends(best(r, n), e), "next reward only"),
        (lambda v, r, n, e: without_ends(best(v, n), e), "no reward"),
        (lambda v, r, n, e: without_ends(best(r, n) + best(v, n), e), "two separate maxima"),
        (lambda v, r, n, e: without_ends((r + v)[n].mean(1), e), "mean over the actions"),
        (lambda v, r, n, e: without_ends((r + v)[n].amin(1), e), "worst action"),
        (lambda v, r, n, e: without_ends((r + v)[n].argmax(1), e), "action instead of value"),
        (in_place, None),
        (lambda v, r, n, e: (r + v)[n], None),
        (lambda v, r, n, e: v + without_ends(best(r + v, n), e), None),
    ],
}
