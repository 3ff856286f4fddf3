"""Answers to the exercises of notebook 14, as students write them."""

import torch


def backup_in_one_line(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp(ref_logps + (rewards + values[:, successors]) / beta, dim=-1)


def backup_with_the_largest_taken_out(values, successors, rewards, ref_logps, beta):
    scores = ref_logps + rewards / beta + values[:, successors] / beta
    most = scores.amax(-1, keepdim=True)
    return beta * (most[..., 0] + (scores - most).exp().sum(-1).log())


def backup_by_loops(values, successors, rewards, ref_logps, beta):
    X, S = values.shape
    out = torch.zeros_like(values)
    for x in range(X):
        for s in range(S):
            total = rewards[x, s] + values[x][successors[s]]
            out[x, s] = beta * torch.logsumexp(total / beta + ref_logps[s], 0)
    return out


def kl_by_where(logps, best_logps, tokens, mask, full):
    if full:
        terms = (logps.exp() * (logps - best_logps)).sum(2)
    else:
        index = tokens.unsqueeze(2)
        terms = (logps.gather(2, index) - best_logps.gather(2, index)).squeeze(2)
    sums = torch.where(mask, terms, 0.0).sum(1)
    return sums.mean(), sums.std() / len(sums) ** 0.5


def kl_by_library(logps, best_logps, tokens, mask, full):
    if full:
        terms = torch.nn.functional.kl_div(best_logps, logps, reduction="none", log_target=True)
        terms = terms.sum(-1)
    else:
        terms = torch.take_along_dim(logps - best_logps, tokens[..., None], 2)[..., 0]
    sums = (terms * mask).sum(1)
    return [sums.mean(), (sums.var() / len(sums)).sqrt()]


def kl_by_loops(logps, best_logps, tokens, mask, full):
    sums = []
    for b in range(len(tokens)):
        total = 0.0
        for t in range(tokens.shape[1]):
            if mask[b, t]:
                ratio = logps[b, t] - best_logps[b, t]
                total += float((logps[b, t].exp() * ratio).sum() if full else ratio[tokens[b, t]])
        sums.append(total)
    mean = sum(sums) / len(sums)
    variance = sum((s - mean) ** 2 for s in sums) / (len(sums) - 1)
    return mean, (variance / len(sums)) ** 0.5


RIGHT = {
    "automaton_backup": [backup_in_one_line, backup_with_the_largest_taken_out, backup_by_loops],
    "kl_estimate": [kl_by_where, kl_by_library, kl_by_loops],
}


def backup_average(values, successors, rewards, ref_logps, beta):
    return (ref_logps.exp() * rewards + ref_logps.exp() * values[:, successors]).sum(-1)


def backup_maximum(values, successors, rewards, ref_logps, beta):
    return (values[:, successors] + rewards).amax(-1)


def backup_log_z(values, successors, rewards, ref_logps, beta):
    return torch.logsumexp(ref_logps + (rewards + values[:, successors]) / beta, dim=-1)


def backup_reward_divided(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp(ref_logps + values[:, successors] + rewards / beta, dim=-1)


def backup_all_divided(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp((rewards + values[:, successors] + ref_logps) / beta, dim=-1)


def backup_without_reference(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp((rewards + values[:, successors]) / beta, dim=-1)


def backup_in_place(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp(ref_logps + (rewards + values[:, :, None]) / beta, dim=-1)


def backup_overflow(values, successors, rewards, ref_logps, beta):
    return beta * (ref_logps.exp() * ((rewards + values[:, successors]) / beta).exp()).sum(-1).log()


def backup_of_one_prompt(values, successors, rewards, ref_logps, beta):
    return beta * torch.logsumexp(ref_logps + (rewards + values[:, successors]) / beta, dim=-1)[0]


def _terms(logps, best_logps, tokens, full):
    if full:
        return (logps.exp() * (logps - best_logps)).sum(-1)
    return (logps - best_logps).gather(2, tokens[..., None])[..., 0]


def kl_minus(logps, best_logps, tokens, mask, full):
    sums = -(_terms(logps, best_logps, tokens, full) * mask).sum(1)
    return sums.mean(), sums.std() / len(sums) ** 0.5


def kl_per_token(logps, best_logps, tokens, mask, full):
    means = (_terms(logps, best_logps, tokens, full) * mask).sum(1) / mask.sum(1)
    return means.mean(), means.std() / len(means) ** 0.5


def kl_with_padding(logps, best_logps, tokens, mask, full):
    sums = _terms(logps, best_logps, tokens, full).sum(1)
    return sums.mean(), sums.std() / len(sums) ** 0.5


def kl_with_spread(logps, best_logps, tokens, mask, full):
    sums = (_terms(logps, best_logps, tokens, full) * mask).sum(1)
    return sums.mean(), sums.std()


def kl_never_full(logps, best_logps, tokens, mask, full):
    sums = (_terms(logps, best_logps, tokens, False) * mask).sum(1)
    return sums.mean(), sums.std() / len(sums) ** 0.5


def kl_by_the_optimum(logps, best_logps, tokens, mask, full):
    terms = _terms(logps, best_logps, tokens, False)
    if full:
        terms = (best_logps.exp() * (logps - best_logps)).sum(-1)
    sums = (terms * mask).sum(1)
    return sums.mean(), sums.std() / len(sums) ** 0.5


def kl_with_independent_tokens(logps, best_logps, tokens, mask, full):
    terms = _terms(logps, best_logps, tokens, full)[mask]
    return terms.sum() / len(tokens), len(terms) ** 0.5 * terms.std() / len(tokens)


def kl_of_tokens_as_samples(logps, best_logps, tokens, mask, full):
    terms = _terms(logps, best_logps, tokens, full)[mask]
    return terms.sum() / len(tokens), terms.std() / len(terms) ** 0.5


WRONG = {
    "automaton_backup": [
        (backup_average, "average"),
        (backup_maximum, "maximum"),
        (backup_log_z, "log Z"),
        (backup_reward_divided, "values not divided"),
        (backup_all_divided, "reference divided"),
        (backup_without_reference, "reference forgotten"),
        (backup_in_place, "no successor"),
        (backup_overflow, "overflow"),
        (backup_of_one_prompt, None),
    ],
    "kl_estimate": [
        (kl_minus, "sign"),
        (kl_per_token, "mean over tokens"),
        (kl_with_padding, "mask forgotten"),
        (kl_with_spread, "standard deviation"),
        (kl_never_full, "full ignored"),
        (kl_by_the_optimum, "the optimum's weights"),
        (kl_with_independent_tokens, "tokens independent"),
        (kl_of_tokens_as_samples, None),
    ],
}
