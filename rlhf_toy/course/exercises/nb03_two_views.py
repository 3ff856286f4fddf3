"""The exercises of notebook 03: the mask, the shift by one, and the chain rule."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.envs.text_world import response_mask
from rlhf_toy.training import make_generator


def next_token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each token after the first, given those before it.

    Args:
        logits: [B, L, A] of the next token, at each position that the network has read.
        tokens: [B, L] what it read. The first token may be one that is never predicted.

    Returns:
        [B, L − 1] log-probabilities in nats.
    """
    logps = logits[:, :-1].log_softmax(-1)
    return logps.gather(-1, tokens[:, 1:, None])[..., 0]


def _tokens(*shape: int, n: int, seed: int) -> Tensor:
    return torch.randint(n, shape, generator=make_generator(seed))


def _logits(*shape: int, seed: int) -> Tensor:
    draws = torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)
    return (100 * draws).round() / 100  # two digits: no two at one position are equal


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _of_tokens(values: Tensor, responses: Tensor) -> Tensor:
    """Return the entries of values [B, T, A] at the tokens that were written, shape [B, T]."""
    actions = responses.clamp(max=values.shape[-1] - 1)
    return values.gather(-1, actions[..., None])[..., 0]


# The mask


def _mask_cases() -> list[Case]:
    """Return cases of (responses, end_token). The pad has the id after the end token's, if any."""
    plain = [
        (torch.tensor([[0, 2]]), 2),
        (torch.tensor([[1, 0, 3, 4], [2, 3, 4, 4]]), 3),
        (torch.tensor([[0, 1, 2], [3, 4, 4], [0, 3, 4]]), 3),  # cut off, empty, and in between
        (torch.tensor([[2, 3, 1, 0], [1, 3, 2, 3]]), 3),  # words after the end
        (torch.tensor([[5, 2, 7, 7], [5, 7, 7, 7]]), 7),  # pads with the id of the end token
        (_tokens(4, 6, n=4, seed=1), 3),
    ]
    corners = [
        (torch.tensor([[0], [1], [2]]), 1),
        (torch.tensor([[0, 0, 0], [1, 0, 1]]), 0),  # the end token has the first id
        (torch.tensor([[2, 1, -100, -100]]), 1),
    ]
    return make_cases(("responses", "end_token"), plain, corners)


def _positions(responses: Tensor) -> Tensor:
    return torch.arange(responses.shape[-1]).expand(responses.shape)


def _until_argmax(responses: Tensor, end_token: int) -> Tensor:
    first = (responses == end_token).int().argmax(-1, keepdim=True)
    return _positions(responses) <= first


def _until_last_end(responses: Tensor, end_token: int) -> Tensor:
    is_end = responses == end_token
    ends_later = is_end.flip(-1).cumsum(-1).flip(-1) > 0
    return ends_later | ~is_end.any(-1, keepdim=True)


_MASK = Exercise(
    name="response_mask",
    notebook="03",
    hints=(
        "Which positions hold the end token? Compare the whole tensor with its id.",
        "cumsum along a row counts how many end tokens there were up to each position.",
        "A token is real if there was no end token before it. The end token itself is not before "
        "itself.",
    ),
    solution=response_mask,
    cases=_mask_cases,
    mistakes=(
        Mistake(
            "end token left out",
            "Your mask stops just before the end token. If it is never trained on, how does the "
            "model learn to stop?",
            lambda responses, end_token: (responses == end_token).cumsum(-1) == 0,
        ),
        Mistake(
            "everything but end tokens",
            "You leave out every end token and keep all the rest. What about the tokens that come "
            "after the end?",
            lambda responses, end_token: responses != end_token,
        ),
        Mistake(
            "pads by their id",
            "You recognise pads by their id. What if words, or more end tokens, follow the first "
            "end token?",
            lambda responses, end_token: responses != end_token + 1,
        ),
        Mistake(
            "one too many",
            "You also keep the token right after the end token. Which count includes the token "
            "itself, and which does not?",
            lambda responses, end_token: (
                ((responses == end_token).cumsum(-1) - (responses == end_token).long()).cumsum(-1)
                <= 1
            ),
        ),
        Mistake(
            "until the last end token",
            "You keep everything up to the last end token. Where does the response end if there "
            "are several?",
            _until_last_end,
        ),
        Mistake(
            "no end token",
            "You find the first end token with argmax. What does argmax return in a row that has "
            "none?",
            _until_argmax,
        ),
        Mistake(
            "counted down the batch",
            "You count end tokens from one response to the next. Which dimension runs along the "
            "words of a response?",
            lambda responses, end_token: response_mask(responses.T, end_token).T,
        ),
    ),
)

# The shift


def _shift_cases() -> list[Case]:
    """Return cases of (logits, tokens)."""
    plain = [
        (torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double(), torch.tensor([[0, 1]])),
        (_logits(1, 3, 3, seed=1), torch.tensor([[2, 0, 1]])),
        (_logits(3, 5, 4, seed=2), _tokens(3, 5, n=4, seed=3)),
        (_logits(2, 4, 6, seed=4).float(), _tokens(2, 4, n=6, seed=5)),
    ]
    prompts = _tokens(2, 4, n=3, seed=6)
    prompts[:, 0] = torch.tensor([3, 7])  # first tokens that the network never predicts
    surprising = torch.tensor([[[1000.0, -1000.0], [0.0, 0.0], [5.0, 5.0]]]).double()
    corners = [
        (_logits(2, 4, 3, seed=7), prompts),
        (surprising, torch.tensor([[0, 1, 0]])),
        (_logits(2, 1, 3, seed=8), torch.tensor([[1], [2]])),  # a prompt alone
    ]
    return make_cases(("logits", "tokens"), plain, corners)


_SHIFT = Exercise(
    name="next_token_logps",
    notebook="03",
    hints=(
        "The network read L tokens, and the first was never predicted. How many can you score?",
        "Cut the logits at one end and the tokens at the other, so that each row of logits meets "
        "the token that it predicts.",
        "log_softmax turns logits into log-probabilities, and gather picks the one of each token.",
    ),
    solution=next_token_logps,
    cases=_shift_cases,
    mistakes=(
        Mistake(
            "own position",
            "You score each token with the logits of its own position, where the network has "
            "already read it. At which position was it predicted?",
            lambda logits, tokens: _of_tokens(logits[:, 1:].log_softmax(-1), tokens[:, 1:]),
        ),
        Mistake(
            "no shift",
            "You have as many results as tokens, so each token meets the logits of its own "
            "position. At which position was it predicted?",
            lambda logits, tokens: _of_tokens(logits.log_softmax(-1), tokens),
        ),
        Mistake(
            "no shift, cut short",
            "You cut the last position from both, so each token still meets the logits of its own "
            "position. Which end of the tokens has to go?",
            lambda logits, tokens: _of_tokens(logits[:, :-1].log_softmax(-1), tokens[:, :-1]),
        ),
        Mistake(
            "wrong direction",
            "You score each token with the logits of the position after it. Does the network "
            "predict what comes next, or what came before?",
            lambda logits, tokens: _of_tokens(logits[:, 1:].log_softmax(-1), tokens[:, :-1]),
        ),
        Mistake(
            "round the corner",
            "Your last position scores the first token: roll moves it round to the end. What is "
            "there to score after the last token?",
            lambda logits, tokens: _of_tokens(logits.log_softmax(-1), tokens.roll(-1, 1)),
        ),
        Mistake(
            "not normalised",
            "You return raw logits. They equal log-probabilities only up to a constant, a new one "
            "at each position. Which function removes it?",
            lambda logits, tokens: _of_tokens(logits[:, :-1], tokens[:, 1:]),
        ),
        Mistake(
            "sign",
            "A log-probability is never above 0, and yours is never below. Did you return a loss?",
            lambda logits, tokens: -next_token_logps(logits, tokens),
        ),
    ),
    differentiable=("logits",),
)

# The chain rule


def _sequence_cases() -> list[Case]:
    """Return cases of (logits, responses, mask)."""
    plain = [
        # One token of two; then two tokens, with readable numbers.
        (torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[0]]), _mask(1, T=1)),
        (torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double(), torch.tensor([[1, 1]]), _mask(2, T=2)),
        # Valid actions in masked positions, so that a forgotten mask changes the result.
        (_logits(2, 3, 3, seed=1), torch.tensor([[2, 1, 0], [0, 2, 2]]), _mask(2, 3, T=3)),
        (_logits(1, 3, 4, seed=2), torch.tensor([[3, 0, 1]]), _mask(2, T=3)),
        (_logits(4, 5, 6, seed=3).float(), _tokens(4, 5, n=6, seed=4), _mask(1, 5, 3, 4, T=5)),
    ]
    pads = torch.tensor([[2, 3, 3], [0, 1, 2]])  # the pad token is 3, one beyond the actions
    garbage = _logits(2, 3, 3, seed=5).masked_fill(~_mask(1, 3, T=3)[..., None], 30.0)
    garbage[0, 1:, 0] = -30.0
    sure = torch.tensor([[[1000.0, -1000.0], [0.0, 0.0]]]).double()
    corners = [
        (_logits(2, 3, 3, seed=6), pads, _mask(1, 3, T=3)),
        (garbage, pads, _mask(1, 3, T=3)),
        (sure, torch.tensor([[1, 0]]), _mask(2, T=2)),  # certain of one, and the other was written
    ]
    return make_cases(("logits", "responses", "mask"), plain, corners)


def _token_sum(values: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    return _of_tokens(values, responses).masked_fill(~mask, 0.0).sum(-1)


def _pads_gathered(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    return (logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0] * mask).sum(-1)


def _without_last(mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True) - 1)


_SEQUENCE = Exercise(
    name="sequence_logps",
    notebook="03",
    hints=(
        "Get the log-probability of each token first, as in exercise 2, but without the shift.",
        "Before you gather, replace the pads by any valid id. Set what you gathered there to 0.",
        "The chain rule multiplies probabilities. What happens to their logarithms?",
    ),
    solution=losses.sequence_logps,
    cases=_sequence_cases,
    mistakes=(
        Mistake(
            "mean over the tokens",
            "This is the mean over the tokens. The chain rule multiplies probabilities. What "
            "happens to their logarithms?",
            lambda logits, responses, mask: (
                losses.sequence_logps(logits, responses, mask) / mask.sum(-1)
            ),
        ),
        Mistake(
            "mean over all positions",
            "You divide by the number of positions, pads included. Should the result depend on "
            "how many pads there are?",
            lambda logits, responses, mask: (
                losses.sequence_logps(logits, responses, mask) / mask.shape[-1]
            ),
        ),
        Mistake(
            "mask forgotten",
            "You also count tokens after the end of a response. Which positions does the mask "
            "leave out?",
            lambda logits, responses, mask: _token_sum(
                logits.log_softmax(-1), responses, torch.ones_like(mask)
            ),
        ),
        Mistake(
            "shifted twice",
            "You shift again and pair the logits of each position with the next token. Which token "
            "do logits[:, t] belong to here?",
            lambda logits, responses, mask: _token_sum(
                logits[:, :-1].log_softmax(-1), responses[:, 1:], mask[:, 1:]
            ),
        ),
        Mistake(
            "last token forgotten",
            "You leave out the last real token of each response. Is stopping not a decision too?",
            lambda logits, responses, mask: _token_sum(
                logits.log_softmax(-1), responses, _without_last(mask)
            ),
        ),
        Mistake(
            "not normalised",
            "You add raw logits. They equal log-probabilities only up to a constant, a new one at "
            "each position. Which function removes it?",
            lambda logits, responses, mask: _token_sum(logits, responses, mask),
        ),
        Mistake(
            "pad as an action",
            "This works until there is a pad token. Its id is larger than that of any action, so "
            "there is no logit to gather. Is it enough to apply the mask after that?",
            _pads_gathered,
        ),
        Mistake(
            "underflow",
            "This works until a probability is too small for floating point. Then the softmax is 0 "
            "and its logarithm −∞. Which function of torch does both in one step?",
            lambda logits, responses, mask: _token_sum(logits.softmax(-1).log(), responses, mask),
        ),
    ),
    differentiable=("logits",),
)

EXERCISES = (_MASK, _SHIFT, _SEQUENCE)
