"""Answers to the exercises of notebook 08, as students write them."""

import torch


def token_rewards_by_scatter(reward, logps, ref_logps, mask, beta):
    rewards = -beta * (logps - ref_logps) * mask
    last = mask.long().sum(1) - 1
    rewards[torch.arange(len(rewards)), last] += reward
    return rewards


def token_rewards_by_loops(reward, logps, ref_logps, mask, beta):
    B, T = logps.shape
    out = torch.zeros(B, T, dtype=logps.dtype)
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                out[b, t] = -beta * (logps[b, t] - ref_logps[b, t])
                if t == T - 1 or not mask[b, t + 1]:
                    out[b, t] += reward[b]
    return out


def token_rewards_by_a_last_mask(reward, logps, ref_logps, mask, beta):
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    is_last = mask & ~following
    kl = torch.where(mask, logps - ref_logps, torch.zeros_like(logps))
    return torch.where(is_last, reward[:, None] - beta * kl, -beta * kl)


def gae_backwards(rewards, values, mask, gamma, lam):
    rewards, values = rewards * mask, values * mask
    T = rewards.shape[1]
    next_value = torch.zeros_like(values[:, 0])
    last = torch.zeros_like(values[:, 0])
    advantages = []
    for t in range(T - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        last = delta + gamma * lam * last
        advantages.insert(0, last)
        next_value = values[:, t]
    advantages = torch.stack(advantages, 1)
    return advantages, advantages + values


def gae_by_definition(rewards, values, mask, gamma, lam):
    rewards, values = rewards * mask, values * mask
    T = rewards.shape[1]
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards + gamma * following - values
    steps = torch.arange(T)
    ahead = steps[None, :] - steps[:, None]
    weights = torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp(min=0).double(), 0.0)
    advantages = delta.double() @ weights.T
    return advantages * mask, (advantages + values) * mask


def gae_in_plain_numbers(rewards, values, mask, gamma, lam):
    advantages, returns = [], []
    for r, v, m in zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True):
        length = sum(m)
        row = [0.0] * len(r)
        for t in range(length - 1, -1, -1):
            nxt = v[t + 1] if t + 1 < length else 0.0
            after = row[t + 1] if t + 1 < length else 0.0
            row[t] = r[t] + gamma * nxt - v[t] + gamma * lam * after
        advantages.append(row)
        returns.append([a + b if k else 0.0 for a, b, k in zip(row, v, m, strict=True)])
    return torch.tensor(advantages), torch.tensor(returns)


def clip_by_minimum(logps, old_logps, advantages, mask, cliprange):
    ratio = torch.exp(logps - old_logps)
    clipped = torch.clamp(ratio, 1 - cliprange, 1 + cliprange)
    objective = torch.min(ratio * advantages, clipped * advantages)
    return -(objective * mask).sum() / mask.sum()


def clip_by_cases(logps, old_logps, advantages, mask, cliprange):
    ratio = (logps - old_logps).exp()
    too_far = torch.where(advantages > 0, ratio > 1 + cliprange, ratio < 1 - cliprange)
    limit = torch.where(advantages > 0, 1 + cliprange, 1 - cliprange).to(ratio.dtype)
    terms = torch.where(too_far, limit * advantages, ratio * advantages)
    return -terms[mask].mean()


def clip_as_two_losses(logps, old_logps, advantages, mask, cliprange):
    ratio = torch.exp(logps - old_logps)
    one = -advantages * ratio
    other = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(one, other)[mask.bool()].mean()


def to_go_by_cumsum(reward, logps, ref_logps, mask, beta):
    paid = beta * (logps - ref_logps) * mask
    before = paid.cumsum(1) - paid
    return (reward[:, None] - (paid.sum(1, keepdim=True) - before)) * mask


def to_go_backwards(reward, logps, ref_logps, mask, beta):
    out = torch.zeros_like(logps)
    still = torch.zeros_like(logps[:, 0])
    for t in reversed(range(logps.shape[1])):
        still = still + torch.where(mask[:, t], beta * (logps[:, t] - ref_logps[:, t]), 0.0)
        out[:, t] = torch.where(mask[:, t], reward - still, 0.0)
    return out


def to_go_by_a_triangle(reward, logps, ref_logps, mask, beta):
    T = logps.shape[1]
    onwards = torch.triu(torch.ones(T, T, dtype=logps.dtype))
    paid = beta * (logps - ref_logps) * mask
    return (reward[:, None] - paid @ onwards.T) * mask


RIGHT = {
    "token_rewards": [
        token_rewards_by_scatter,
        token_rewards_by_loops,
        token_rewards_by_a_last_mask,
    ],
    "gae": [gae_backwards, gae_by_definition, gae_in_plain_numbers],
    "ppo_clip_loss": [clip_by_minimum, clip_by_cases, clip_as_two_losses],
    "repair_ppo": [to_go_by_cumsum, to_go_backwards, to_go_by_a_triangle],
}


def at_last(reward, logps, ref_logps, mask, beta):
    """The reward and the KL term of the right answer; the wrong answers below vary them."""
    place = torch.zeros_like(logps)
    place[torch.arange(len(mask)), mask.long().sum(1) - 1] = 1.0
    return reward[:, None] * place, beta * (logps - ref_logps) * mask


def reward_at_column_minus_one(reward, logps, ref_logps, mask, beta):
    rewards = -beta * (logps - ref_logps) * mask
    rewards[:, -1] += reward
    return rewards


def without_the_last_kl(reward, logps, ref_logps, mask, beta):
    earned, paid = at_last(reward, logps, ref_logps, mask, beta)
    return torch.where(earned != 0, earned, -paid)


def without_mask(reward, logps, ref_logps, mask, beta):
    earned, _ = at_last(reward, logps, ref_logps, mask, beta)
    return earned - beta * (logps - ref_logps)


def deltas(rewards, values, mask, gamma):
    rewards, values = rewards * mask, values * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    return (rewards + gamma * following - values) * mask, values


def discounted(delta, factor):
    out = torch.zeros_like(delta)
    total = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        total = delta[:, t] + factor * total
        out[:, t] = total
    return out


def gae_with(rewards, values, mask, gamma, factor):
    delta, values = deltas(rewards, values, mask, gamma)
    advantages = discounted(delta, factor)
    return advantages, advantages + values


def gae_forwards(rewards, values, mask, gamma, lam):
    delta, values = deltas(rewards, values, mask, gamma)
    advantages = discounted(delta.flip(1), gamma * lam).flip(1) * mask
    return advantages, advantages + values


def gae_with_values_of_padding(rewards, values, mask, gamma, lam):
    rewards = rewards * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    advantages = discounted(rewards + gamma * following - values, gamma * lam)
    return advantages * mask, (advantages + values) * mask


def gae_with_plain_returns(rewards, values, mask, gamma, lam):
    advantages, _ = gae_with(rewards, values, mask, gamma, gamma * lam)
    return advantages, discounted(rewards * mask, 1.0) * mask


def surrogate(logps, old, A, eps):
    ratio = torch.exp(logps - old)
    return torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)


def mean_over(terms, mask):
    return terms[mask].mean()


def clip_of_differences(logps, old, A, mask, eps):
    ratio = logps - old
    return -mean_over(torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A), mask)


WRONG = {
    "token_rewards": [
        (lambda *a: sum(at_last(*a)), "sign"),
        (lambda r, p, q, m, beta: at_last(r, p, q, m, 1)[0] - (p - q) * m, "beta forgotten"),
        (reward_at_column_minus_one, "reward in the last column"),
        (lambda r, p, q, m, beta: (r[:, None] - beta * (p - q)) * m, "reward on every token"),
        (without_the_last_kl, "no KL on the last token"),
        (without_mask, "mask forgotten"),
        (
            lambda r, p, q, m, beta: (
                beta * at_last(r, p, q, m, 1)[0] - at_last(r, p, q, m, beta)[1]
            ),
            "beta on the reward",
        ),
        (lambda *a: at_last(*a)[0] - at_last(*a)[1].abs(), None),
    ],
    "gae": [
        (lambda r, v, m, g, lam: gae_with(r, v, m, g, g), "lambda forgotten"),
        (lambda r, v, m, g, lam: gae_with(r, v, m, g, 0.0), "one step only"),
        (lambda r, v, m, g, lam: gae_with(r, v, m, g, lam), "gamma forgotten in the trace"),
        (gae_forwards, "forwards"),
        (gae_with_values_of_padding, "value after the end"),
        (gae_with_plain_returns, "returns"),
        (lambda r, v, m, g, lam: gae_with(r, v, m, g, g * lam)[0], None),
        (lambda r, v, m, g, lam: gae_with(r, -v, m, g, g * lam), None),
    ],
    "ppo_clip_loss": [
        (lambda p, q, A, m, eps: mean_over(surrogate(p, q, A, eps), m), "sign"),
        (
            lambda p, q, A, m, eps: (
                -mean_over(
                    torch.max((p - q).exp() * A, (p - q).exp().clamp(1 - eps, 1 + eps) * A), m
                )
            ),
            "larger of the two",
        ),
        (
            lambda p, q, A, m, eps: -mean_over((p - q).exp().clamp(1 - eps, 1 + eps) * A, m),
            "clipped only",
        ),
        (lambda p, q, A, m, eps: -mean_over((p - q).exp() * A, m), "not clipped"),
        (lambda p, q, A, m, eps: -surrogate(p, q, A, eps).mean(), "mask forgotten"),
        (clip_of_differences, "difference instead of ratio"),
        (lambda p, q, A, m, eps: -mean_over(surrogate(q, p, A, eps), m), "ratio upside down"),
        (lambda p, q, A, m, eps: -mean_over(surrogate(p.detach(), q, A, eps), m), None),
    ],
    "repair_ppo": [
        (
            lambda r, p, q, m, beta: (
                (r[:, None] - (discounted(beta * (p - q) * m, 1.0) - beta * (p - q) * m)) * m
            ),
            "still broken",
        ),
        (
            lambda r, p, q, m, beta: (
                (r - beta * ((p - q) * m).sum(-1)).unsqueeze(1).expand_as(p) * m
            ),
            "whole KL at every token",
        ),
        (
            lambda r, p, q, m, beta: torch.where(
                m, r[:, None] - torch.cumsum(beta * (p - q) * m, dim=1), 0.0
            ),
            "sums over the past",
        ),
        (
            lambda r, p, q, m, beta: (r[:, None] + discounted(beta * (p - q) * m, 1.0)) * m,
            "sign",
        ),
        (lambda r, p, q, m, beta: (r[:, None] - beta * (p - q)) * m, "own term only"),
        (
            lambda r, p, q, m, beta: (r[:, None] - discounted((p - q) * m, 1.0)) * m,
            "beta forgotten",
        ),
        (lambda r, p, q, m, beta: -discounted(beta * (p - q) * m, 1.0), None),
    ],
}
