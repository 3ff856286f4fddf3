"""Answers to the exercises of notebook 03, as students write them."""

import torch


def mask_by_cumsum(responses, end_token):
    is_end = (responses == end_token).int()
    return (torch.cumsum(is_end, dim=1) - is_end) == 0


def mask_by_loops(responses, end_token):
    mask = torch.zeros(responses.shape, dtype=torch.bool)
    for b, row in enumerate(responses.tolist()):
        for t, token in enumerate(row):
            mask[b, t] = True
            if token == end_token:
                break
    return mask


def mask_by_first_end(responses, end_token):
    T = responses.shape[1]
    t = torch.arange(T)
    first = torch.where(responses == end_token, t, T).min(dim=1, keepdim=True).values
    return t <= first


def mask_by_shifted_product(responses, end_token):
    goes_on = (responses != end_token).int()
    before = torch.cat([torch.ones_like(goes_on[:, :1]), goes_on[:, :-1]], dim=1)
    return before.cumprod(1).bool()


def next_by_gather(logits, tokens):
    logps = torch.log_softmax(logits, dim=-1)[:, :-1, :]
    return torch.gather(logps, 2, tokens[:, 1:].unsqueeze(2)).squeeze(2)


def next_by_cross_entropy(logits, tokens):
    positions = logits[:, :-1].transpose(1, 2)
    return -torch.nn.functional.cross_entropy(positions, tokens[:, 1:], reduction="none")


def next_by_loops(logits, tokens):
    columns = []
    for t in range(1, tokens.shape[1]):
        row = logits[:, t - 1]
        taken = row[torch.arange(len(row)), tokens[:, t]]
        columns.append(taken - torch.logsumexp(row, dim=-1))
    return torch.stack(columns, dim=1) if columns else logits[:, :0, 0]


def sequence_by_gather(logits, responses, mask):
    logps = torch.log_softmax(logits, dim=-1)
    safe = torch.where(mask, responses, torch.zeros_like(responses))
    taken = torch.gather(logps, 2, safe.unsqueeze(-1)).squeeze(-1)
    return (taken * mask).sum(dim=1)


def sequence_by_cross_entropy(logits, responses, mask):
    targets = responses.masked_fill(~mask, -100)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return -losses.sum(-1)


def sequence_by_loops(logits, responses, mask):
    sums = []
    for b in range(logits.shape[0]):
        total = logits.new_zeros(())
        for t in range(logits.shape[1]):
            if mask[b, t]:
                row = logits[b, t]
                total = total + row[responses[b, t]] - torch.logsumexp(row, dim=0)
        sums.append(total)
    return torch.stack(sums)


def sequence_by_categorical(logits, responses, mask):
    actions = responses.clamp(0, logits.shape[-1] - 1)
    logps = torch.distributions.Categorical(logits=logits).log_prob(actions)
    return torch.where(mask, logps, 0.0).sum(1)


RIGHT = {
    "response_mask": [
        mask_by_cumsum,
        mask_by_loops,
        mask_by_first_end,
        mask_by_shifted_product,
    ],
    "next_token_logps": [next_by_gather, next_by_cross_entropy, next_by_loops],
    "sequence_logps": [
        sequence_by_gather,
        sequence_by_cross_entropy,
        sequence_by_loops,
        sequence_by_categorical,
    ],
}


def mask_before_the_end(responses, end_token):
    return torch.cumprod((responses != end_token).int(), dim=1).bool()


def mask_after_the_end_too(responses, end_token):
    mask = mask_by_cumsum(responses, end_token)
    mask[:, 1:] |= mask[:, :-1].clone()
    return mask


def mask_to_the_last_end(responses, end_token):
    mask = torch.ones_like(responses, dtype=torch.bool)
    for b in range(len(responses)):
        ends = (responses[b] == end_token).nonzero()
        if len(ends):
            mask[b, ends[-1] + 1 :] = False
    return mask


def mask_with_argmax(responses, end_token):
    last = (responses == end_token).float().argmax(dim=1)
    return torch.arange(responses.shape[1])[None] <= last[:, None]


def mask_down_the_batch(responses, end_token):
    is_end = (responses == end_token).long()
    return is_end.cumsum(0) - is_end == 0


def pick(values, tokens):
    return values.gather(2, tokens.unsqueeze(-1)).squeeze(-1)


def next_rolled(logits, tokens):
    later = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
    return pick(logits.log_softmax(-1), later)


def take(values, responses):
    index = responses.clamp(max=values.shape[2] - 1).unsqueeze(2)
    return torch.gather(values, 2, index).squeeze(2)


def masked_logps(logits, responses, mask):
    return torch.where(mask, take(torch.log_softmax(logits, 2), responses), 0.0)


def without_the_last_token(logits, responses, mask):
    later = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return masked_logps(logits, responses, later)


def sequence_detached(logits, responses, mask):
    return masked_logps(logits.detach(), responses, mask).sum(1)


WRONG = {
    "response_mask": [
        (mask_before_the_end, "end token left out"),
        (lambda y, e: ~(y == e), "everything but end tokens"),
        (lambda y, e: y.ne(e + 1), "pads by their id"),
        (mask_after_the_end_too, "one too many"),
        (mask_to_the_last_end, "until the last end token"),
        (mask_with_argmax, "no end token"),
        (mask_down_the_batch, "counted down the batch"),
        (lambda y, e: ~mask_by_cumsum(y, e), None),
        (lambda y, e: mask_by_cumsum(y, e).sum(1), None),
    ],
    "next_token_logps": [
        (lambda z, y: pick(z.log_softmax(-1), y)[:, 1:], "own position"),
        (lambda z, y: pick(z.log_softmax(-1), y), "no shift"),
        (lambda z, y: pick(z.log_softmax(-1), y)[:, :-1], "no shift, cut short"),
        (lambda z, y: pick(z[:, 1:].log_softmax(-1), y[:, :-1]), "wrong direction"),
        (next_rolled, "round the corner"),
        (lambda z, y: pick(z[:, :-1], y[:, 1:]), "not normalised"),
        (lambda z, y: -next_by_gather(z, y), "sign"),
        (lambda z, y: next_by_gather(z, y).detach(), None),
        (lambda z, y: z[:, :-1].log_softmax(-1), None),
        (lambda z, y: pick(z[:, :-1].softmax(-1), y[:, 1:]), None),
    ],
    "sequence_logps": [
        (lambda z, y, m: masked_logps(z, y, m).sum(1) / m.sum(1), "mean over the tokens"),
        (lambda z, y, m: masked_logps(z, y, m).mean(1), "mean over all positions"),
        (lambda z, y, m: take(z.log_softmax(-1), y).sum(-1), "mask forgotten"),
        (
            lambda z, y, m: masked_logps(z[:, :-1], y[:, 1:], m[:, 1:]).sum(-1),
            "shifted twice",
        ),
        (lambda z, y, m: without_the_last_token(z, y, m).sum(1), "last token forgotten"),
        (lambda z, y, m: (take(z, y) * m).sum(1), "not normalised"),
        (
            lambda z, y, m: torch.where(
                m, z.log_softmax(2).gather(2, y.unsqueeze(2)).squeeze(2), 0.0
            ).sum(1),
            "pad as an action",
        ),
        (
            lambda z, y, m: torch.where(m, torch.log(take(z.softmax(2), y)), 0.0).sum(1),
            "underflow",
        ),
        (lambda z, y, m: masked_logps(z, y, m), None),
        (sequence_detached, None),
        (lambda z, y, m: masked_logps(z, y, m).sum(0), None),
    ],
}
