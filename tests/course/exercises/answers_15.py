"""Answers to the exercises of notebook 15, as students write them."""

import torch


def beta_by_counting(beta, mask):
    tokens, responses = mask.sum(), mask.shape[0]
    return beta * tokens / responses


def beta_by_mean_length(beta, mask):
    return beta * mask.double().sum(1).mean()


def beta_by_a_loop(beta, mask):
    n = 0
    for row in mask.tolist():
        n += sum(row)
    return float(beta) * n / len(mask)


def mask_by_walking(ids, assistant, end):
    mask = torch.zeros_like(ids).bool()
    for row, chat in enumerate(ids.tolist()):
        inside = False
        for t, token in enumerate(chat):
            mask[row, t] = inside
            if token == assistant:
                inside = True
            elif token == end:
                inside = False
    return mask


def mask_by_last_marker(ids, assistant, end):
    place = torch.arange(1, ids.shape[1] + 1)
    seen = [torch.where(ids == token, place, 0).cummax(1).values for token in (assistant, end)]
    started, ended = (last.roll(1, 1) for last in seen)
    started[:, 0] = ended[:, 0] = 0
    return started > ended


def mask_as_lists(ids, assistant, end):
    rows = []
    for chat in ids.tolist():
        keep, writes = [], False
        for token in chat:
            keep.append(writes)
            writes = (writes or token == assistant) and token != end
        rows.append(keep)
    return torch.tensor(rows)


RIGHT = {
    "token_mean_beta": [beta_by_counting, beta_by_mean_length, beta_by_a_loop],
    "completion_mask": [mask_by_walking, mask_by_last_marker, mask_as_lists],
}


def only_the_last(ids, assistant, end):
    mask = mask_by_walking(ids, assistant, end)
    for row, chat in enumerate(ids.tolist()):
        if assistant in chat:
            last = len(chat) - 1 - chat[::-1].index(assistant)
            mask[row, :last] = False
    return mask


def all_that_follows(ids, assistant, end):
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, chat in enumerate(ids.tolist()):
        if assistant in chat:
            mask[row, chat.index(assistant) + 1 :] = True
    return mask


def for_logits(ids, assistant, end):
    mask = mask_by_walking(ids, assistant, end)
    return torch.cat([mask[:, 1:], mask[:, :1]], 1)


WRONG = {
    "token_mean_beta": [
        (lambda beta, mask: beta / mask.double().sum(1).mean(), "inverse"),
        (lambda beta, mask: beta * mask.numel() / len(mask), "padding"),
        (lambda beta, mask: beta * mask.sum(), "total"),
        (lambda beta, mask: beta * max(row.sum() for row in mask), "longest"),
        (lambda beta, mask: beta * len(mask) / (1 / mask.sum(1)).sum(), "harmonic"),
        (lambda beta, mask: mask.shape[0] * beta, "responses"),
        (lambda beta, mask: beta * 1, None),
        (lambda beta, mask: beta * mask.sum() / (len(mask) + 1), None),
    ],
    "completion_mask": [
        (lambda ids, a, e: mask_by_walking(ids, a, e) & ~(ids == e), "end left out"),
        (lambda ids, a, e: mask_by_walking(ids, a, e) + (ids == a), "marker"),
        (all_that_follows, "after first"),
        (only_the_last, "last turn"),
        (lambda ids, a, e: ids < 11, None),
        (lambda ids, a, e: ids != 11, "everything"),
        (for_logits, "shifted"),
    ],
}
