"""Answers to the exercises of notebook 07, as students write them."""

import torch


def loss_in_one_line(logps, advantages, mask):
    return -(advantages.detach() * logps * mask).sum(1).mean()


def loss_by_responses(logps, advantages, mask):
    response_logps = torch.where(mask, logps, 0.0).sum(dim=-1)
    return -(advantages.squeeze(1).detach() * response_logps).sum() / len(logps)


def loss_by_a_loop(logps, advantages, mask):
    total = 0.0
    for row, advantage, real in zip(logps, advantages, mask, strict=True):
        total = total - advantage[0].detach() * row[real].sum()
    return total / logps.shape[0]


def loss_as_an_average_of_rows(logps, advantages, mask):
    with torch.no_grad():
        weights = advantages * mask
    return torch.einsum("bt,bt->b", weights, -logps).mean()


def rloo_by_the_sum(rewards):
    G = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (G - 1)
    return rewards - others


def rloo_by_a_factor(rewards):
    G = rewards.shape[1]
    return G / (G - 1) * (rewards - rewards.mean(dim=1, keepdim=True))


def rloo_by_loops(rewards):
    out = torch.zeros_like(rewards)
    for x, row in enumerate(rewards.tolist()):
        for i, r in enumerate(row):
            others = row[:i] + row[i + 1 :]
            out[x, i] = r - sum(others) / len(others)
    return out


def rloo_by_a_matrix(rewards):
    G = rewards.shape[1]
    leave_out = (torch.ones(G, G) - torch.eye(G)).to(rewards) / (G - 1)
    return rewards - rewards @ leave_out


def grpo_by_keepdim(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scale:
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_by_hand(rewards, scale):
    G = rewards.shape[1]
    mean = rewards.sum(1) / G
    centred = rewards - mean[:, None]
    std = ((centred**2).sum(1) / (G - 1)).sqrt()
    return centred / (std[:, None] + 1e-4) if scale else centred


def grpo_row_by_row(rewards, scale):
    rows = []
    for row in rewards:
        advantage = row - row.mean()
        if scale:
            advantage = advantage / (torch.std(row) + 0.0001)
        rows.append(advantage)
    return torch.stack(rows)


RIGHT = {
    "policy_gradient_loss": [
        loss_in_one_line, loss_by_responses, loss_by_a_loop, loss_as_an_average_of_rows,
    ],
    "rloo_advantages": [rloo_by_the_sum, rloo_by_a_factor, rloo_by_loops, rloo_by_a_matrix],
    "grpo_advantages": [grpo_by_keepdim, grpo_by_hand, grpo_row_by_row],
}  # fmt: skip


def loss_without_a_minus(logps, advantages, mask):
    return (advantages.detach() * torch.where(mask, logps, 0.0)).sum(1).mean()


def loss_over_tokens(logps, advantages, mask):
    return -(advantages.detach() * logps)[mask].mean()


def loss_over_padding_too(logps, advantages, mask):
    return torch.where(mask, -logps * advantages.detach(), 0.0).mean()


def loss_broadcast(logps, advantages, mask):
    response_logps = (logps * mask).sum(-1)
    return (-advantages.detach() * response_logps).mean()


def loss_over_each_response(logps, advantages, mask):
    per_response = (logps * mask).sum(1) / mask.sum(1)
    return -(advantages[:, 0].detach() * per_response).mean()


def loss_summed(logps, advantages, mask):
    return -(advantages.detach() * logps)[mask].sum()


def loss_with_padding(logps, advantages, mask):
    return -(advantages.detach() * logps).sum(1).mean()


def loss_of_probabilities(logps, advantages, mask):
    p = torch.where(mask, logps, 0.0).sum(1).exp()
    return -(advantages[:, 0].detach() * p).mean()


def loss_with_live_advantages(logps, advantages, mask):
    return -(advantages[:, 0] * (logps * mask).sum(1)).mean()


def loss_per_response_returned(logps, advantages, mask):
    return -(advantages.detach() * logps * mask).sum(1)


def rloo_with_itself(rewards):
    return rewards - rewards.mean(1, keepdim=True)


def rloo_over_g(rewards):
    others = rewards.sum(1, keepdim=True) - rewards
    return rewards - others / rewards.shape[1]


def rloo_down_the_columns(rewards):
    X = len(rewards)
    total = rewards.sum(0, keepdim=True)
    return rewards - (total - rewards) / (X - 1 if X > 1 else 1)


def rloo_of_the_batch(rewards):
    n = rewards.shape[0] * rewards.shape[1]
    return rewards - (rewards.sum() - rewards) / (n - 1)


def rloo_turned_round(rewards):
    G = rewards.shape[1]
    return (rewards.sum(1, keepdim=True) - rewards) / (G - 1) - rewards


def rloo_baseline(rewards):
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def rloo_normalised(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


def rloo_against_the_best(rewards):
    return rewards - rewards.max(1, keepdim=True).values


def grpo_always(rewards, scale):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_never(rewards, scale):
    return rewards - rewards.mean(1, keepdim=True)


def grpo_reversed(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred if scale else centred / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_population(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred**2).mean(1, keepdim=True).sqrt()
    return centred / (std + 1e-4) if scale else centred


def grpo_variance(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) ** 2 + 1e-4) if scale else centred


def grpo_of_the_batch(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (torch.std(rewards) + 1e-4) if scale else centred


def grpo_leave_one_out(rewards, scale):
    G = rewards.shape[1]
    centred = G / (G - 1) * (rewards - rewards.mean(1, keepdim=True))
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def grpo_without_epsilon(rewards, scale):
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / rewards.std(1, keepdim=True) if scale else centred


def grpo_transposed(rewards, scale):
    centred = rewards - rewards.mean(0)
    return centred / (rewards.abs().mean() + 1e-4) if scale else centred


WRONG = {
    "policy_gradient_loss": [
        (loss_without_a_minus, "sign"),
        (loss_over_tokens, "mean over tokens"),
        (loss_over_padding_too, "mean over all places"),
        (loss_broadcast, "every advantage with every response"),
        (loss_over_each_response, "mean over each response"),
        (loss_summed, "sum over responses"),
        (loss_with_padding, "mask forgotten"),
        (loss_of_probabilities, "probabilities"),
        (loss_with_live_advantages, "advantages not detached"),
        (loss_per_response_returned, None),
    ],
    "rloo_advantages": [
        (rloo_with_itself, "own reward in the baseline"),
        (rloo_over_g, "divided by G"),
        (rloo_down_the_columns, "over the prompts"),
        (rloo_of_the_batch, "over the batch"),
        (rloo_turned_round, "sign"),
        (rloo_baseline, "only the baseline"),
        (rloo_normalised, "divided by the standard deviation"),
        (rloo_against_the_best, None),
    ],
    "grpo_advantages": [
        (grpo_always, "always scaled"),
        (grpo_never, "never scaled"),
        (grpo_reversed, "scale reversed"),
        (grpo_population, "population standard deviation"),
        (grpo_variance, "variance"),
        (grpo_of_the_batch, "standard deviation of the batch"),
        (grpo_leave_one_out, "mean of the others"),
        (grpo_without_epsilon, "division by zero"),
        (grpo_transposed, None),
    ],
}
