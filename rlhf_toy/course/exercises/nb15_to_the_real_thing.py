"""The exercises of notebook 15: two KL weights that agree, and the tokens of a chat that count."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.course.exercises.inputs import float64

USER, ASSISTANT, END, PAD = 20, 21, 10, 11


def token_mean_beta(beta: Tensor, mask: Tensor) -> Tensor:
    """Return β′ for which β′ · (mean KL over all tokens) is β · (mean over responses of the sum).

    Args:
        beta: scalar, KL weight of a response's sum.
        mask: bool [B, T], True for real tokens.
    """
    return beta * mask.sum() / len(mask)


def completion_mask(ids: Tensor, assistant: int, end: int) -> Tensor:
    """Return which tokens [B, T] the assistant wrote: after its marker, up to and with its end."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    writes = torch.zeros(len(ids), dtype=torch.bool)
    for t in range(ids.shape[1]):
        mask[:, t] = writes
        writes = (writes | (ids[:, t] == assistant)) & (ids[:, t] != end)
    return mask


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _beta_cases() -> list[Case]:
    betas, lengths = (1.0, 0.5, 0.05), ((2, 3), (1, 4, 2), (2, 2, 7, 3, 1))
    plain = [(float64(b)[0], _mask(*n, T=8)) for b, n in zip(betas, lengths, strict=True)]
    return make_cases(("beta", "mask"), plain, [(float64(0.3)[0], _mask(3, T=3))])


def _chat_cases() -> list[Case]:
    one = [USER, 4, END, ASSISTANT, 5, 6, END, PAD]
    two = [USER, 1, END, ASSISTANT, 2, END, USER, 3, 7, END, ASSISTANT, 8, 9, END, PAD]
    cut = [USER, 2, END, ASSISTANT, 3, 5, 4, 6]  # the limit came before the end
    plain = [(torch.tensor(rows), ASSISTANT, END) for rows in ([one], [two], [one, cut])]
    corners = [(torch.tensor([[USER, 2, END, ASSISTANT], [PAD] * 4]), ASSISTANT, END)]
    return make_cases(("ids", "assistant", "end"), plain, corners)


def _last_turn(ids: Tensor, assistant: int, end: int) -> Tensor:
    markers_later = (ids == assistant).flip(1).cumsum(1).flip(1)
    return completion_mask(ids, assistant, end) & (markers_later == 0)


_TOKEN_MEAN_BETA = Exercise(
    "token_mean_beta",
    "15",
    (
        "Write both penalties with the sum of the KL over all tokens of the batch. What is left?",
        "One divides that sum by the number of tokens, the other by the number of responses.",
    ),
    token_mean_beta,
    _beta_cases,
    tuple(Mistake(*row) for row in (
        ("inverse", "You divide by the length. Is a mean larger or smaller than a sum?",
         lambda b, m: b * len(m) / m.sum()),
        ("padding", "You count padding as tokens. What does the mean divide by?",
         lambda b, m: b * m.shape[1]),
        ("total", "You multiply by all tokens. Over how many responses does the other average?",
         lambda b, m: b * m.sum()),
        ("longest", "You take the longest response. Which length makes the two sums equal?",
         lambda b, m: b * m.sum(1).max()),
        ("harmonic", "You average 1/length. Does the mean over all tokens weigh responses alike?",
         lambda b, m: b / (1 / m.sum(1)).mean()),
        ("responses", "You multiply by the number of responses. Where is their length?",
         lambda b, m: b * len(m)),
    )),
)  # fmt: skip
_COMPLETION_MASK = Exercise(
    "completion_mask",
    "15",
    (
        "Walk through a chat from left to right. After which token does the assistant write?",
        "When does it stop? Is the token that stops it its own choice?",
    ),
    completion_mask,
    _chat_cases,
    tuple(Mistake(*row) for row in (
        ("end left out", "Your loss never sees the end token. Who then teaches it to stop?",
         lambda i, a, e: completion_mask(i, a, e) & (i != e)),
        ("marker", "You train the marker too. Who writes it, model or template?",
         lambda i, a, e: completion_mask(i, a, e) | (i == a)),
        ("after first", "You keep all that follows the first marker. Who wrote the next question?",
         lambda i, a, e: (i == a).cumsum(1) > (i == a).long()),
        ("last turn", "You keep the last answer only. Did the model write the earlier ones?",
         _last_turn),
        ("everything", "You train on the prompt too. Which tokens did the model choose?",
         lambda i, a, e: i != PAD),
        ("shifted", "You mark the position before each token. Is the mask for ids or for logits?",
         lambda i, a, e: completion_mask(i, a, e).roll(-1, 1)),
    )),
)  # fmt: skip
EXERCISES = (_TOKEN_MEAN_BETA, _COMPLETION_MASK)
