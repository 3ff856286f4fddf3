"""The exercises of notebook 03: one step of the token MDP, and the chain rule."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy import losses
from rlhf_toy.course.exercises.grading import Case, Exercise, Mistake, make_cases
from rlhf_toy.envs import WordMDP
from rlhf_toy.training import make_generator


def step_word_mdp(
    world: WordMDP, prompt: int, response: Tensor, action: int
) -> tuple[Tensor, float, bool]:
    """Take one step of the token MDP: append a token, and pay the reward when the response ends.

    Args:
        world: defines the words, the length limit and the rewards.
        prompt: index of the prompt.
        response: [max_length] token ids of the words so far, padded with `world.pad_token`.
        action: id of the token to append, a word or `world.end_token`.

    Returns:
        next response [max_length]; reward in logits, 0 until the response is over; whether it is
        over.
    """
    length = int((response != world.pad_token).sum())
    next_response = response.clone()
    next_response[length] = action
    terminated = action == world.end_token or length + 1 == world.max_length
    reward = 0.0
    if terminated:
        reward = float(world.response_rewards(torch.tensor([prompt]), next_response[None]))
    return next_response, reward, terminated


# (prompt, words so far, next word or "<end>"), in worlds with at most 3 and at most 5 tokens.
_SHORT_STEPS = (
    ("concert", "", "loud"),
    ("film", "", "<end>"),  # an empty review
    ("library", "very", "loud"),
    ("meeting", "long", "<end>"),
    ("film", "not very", "bad"),  # reaches the limit
    ("nap", "good and", "long"),
    ("film", "very good", "<end>"),  # an end token in the last position
)
_LONG_STEPS = (
    ("holiday", "not", "loud"),
    ("concert", "loud and great", "<end>"),
    ("library", "dull but not", "loud"),
    ("meeting", "not good but very", "long"),  # reaches the limit
)
_LONG_CORNERS = (
    (
        "film",
        "good good good good",
        "good",
    ),  # repetition and broken grammar cost more than the praise earns
    ("concert", "great and very loud", "<end>"),
)


def _steps(world: WordMDP, steps: tuple) -> list[tuple]:
    """Return (world, prompt, response, action) for each step."""
    calls = []
    for prompt, so_far, word in steps:
        words = [world.words.index(w) for w in so_far.split()]
        response = torch.full((world.max_length,), world.pad_token)
        response[: len(words)] = torch.tensor(words, dtype=torch.long)
        action = world.end_token if word == "<end>" else world.words.index(word)
        calls.append((world, world.prompt_index(prompt), response, action))
    return calls


def _step_cases() -> list[Case]:
    short, long = WordMDP(max_length=3), WordMDP()
    plain = _steps(short, _SHORT_STEPS) + _steps(long, _LONG_STEPS)
    return make_cases(("world", "prompt", "response", "action"), plain, _steps(long, _LONG_CORNERS))


def _judged(world, prompt, response) -> float:
    return float(world.response_rewards(torch.tensor([prompt]), response[None]))


def _step(world, prompt, response, action, position=None, over=None, paid=None, judged=None):
    """Take the right step, except for what is passed in: position, end, payment or judge."""
    length = int((response != world.pad_token).sum())
    after = response.clone()
    after[length if position is None else position(length, world)] = action
    at_end, at_limit = action == world.end_token, length + 1 == world.max_length
    terminated = at_end or at_limit if over is None else over(at_end, length, world)
    pays = terminated if paid is None else paid(at_end, at_limit)
    if not pays:
        return after, 0.0, terminated
    reward = _judged(world, prompt, after) if judged is None else judged(response, after)
    return after, reward, terminated


def _end_not_written(world, prompt, response, action):
    if action != world.end_token:
        return step_word_mdp(world, prompt, response, action)
    return response.clone(), _judged(world, prompt, response), True


_STEP = Exercise(
    name="step_word_mdp",
    notebook="03",
    hints=(
        "Answer three questions: where does the token go, is the response over, and what is the "
        "reward?",
        "Count the tokens that are not padding. The count is also the index of the next free "
        "position.",
        "A response is over after the end token, or when it has max_length tokens. Only then is "
        "there a reward, and it is that of the whole new response.",
    ),
    solution=step_word_mdp,
    cases=_step_cases,
    mistakes=(
        Mistake(
            "reward at every step",
            "You pay a reward before the response is over. Only complete reviews are judged, so "
            "until then the reward is 0.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: True
            ),
        ),
        Mistake(
            "no reward",
            "Your reward is 0 even when the response is over. How would the policy learn which "
            "reviews are good?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: False
            ),
        ),
        Mistake(
            "not over at the limit",
            "A response of max_length tokens is over, even without an end token. Do you count "
            "the token that you just appended?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, over=lambda at_end, length, world: at_end
            ),
        ),
        Mistake(
            "over only at the limit",
            "The end token ends a response, no matter how short it is.",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                over=lambda at_end, length, world: length + 1 == world.max_length,
            ),
        ),
        Mistake(
            "over one word early",
            "You end the response while there is still room for one more token. Is your length "
            "the one before the step, or after it?",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                over=lambda at_end, length, world: at_end or length + 2 >= world.max_length,
            ),
        ),
        Mistake(
            "five words in every world",
            "You always use a limit of 5 tokens, but it differs between worlds. Which attribute "
            "of the world holds it?",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                over=lambda at_end, length, world: at_end or length + 1 == 5,
            ),
        ),
        Mistake(
            "nothing paid at the limit",
            "You pay nothing for a response that is over because it reached the length limit. It "
            "gets its reward too.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: at_end
            ),
        ),
        Mistake(
            "end token not written",
            "You do not write the end token into the response. It is a token like any other: the "
            "next state contains it, and the reward depends on it.",
            _end_not_written,
        ),
        Mistake(
            "last word overwritten",
            "Your new token overwrites the last word. What is the index of the first free "
            "position?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: length - 1
            ),
        ),
        Mistake(
            "always the first place",
            "You always write the new token to the first position, even if there is a word in it.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: 0
            ),
        ),
        Mistake(
            "always the last place",
            "You always write the new token to the last position, which leaves a gap of pads "
            "before it.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: -1
            ),
        ),
        Mistake(
            "pads counted",
            "You use the number of pads as the position of the new token. Which tokens should "
            "you count instead?",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                position=lambda length, world: world.max_length - length,
            ),
        ),
        Mistake(
            "old response judged",
            "You judge the response as it was before this step, without the new token.",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                judged=lambda before, after: _judged(world, prompt, before),
            ),
        ),
        Mistake(
            "prompt ignored",
            "You judge every review as if it answered prompt 0. But people like a loud concert "
            "and dislike a loud library.",
            lambda world, prompt, response, action: _step(
                world,
                prompt,
                response,
                action,
                judged=lambda before, after: _judged(world, 0, after),
            ),
        ),
    ),
    returns=("next response", "reward", "terminated"),
)


def _logits(*shape: int, seed: int) -> Tensor:
    draws = torch.randn(shape, generator=make_generator(seed), dtype=torch.float64)
    return (100 * draws).round() / 100  # two digits: no two at one position are equal


def _tokens(*shape: int, n_actions: int, seed: int) -> Tensor:
    return torch.randint(n_actions, shape, generator=make_generator(seed))


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _sequence_cases() -> list[Case]:
    """Return cases of (logits, responses, mask)."""
    plain = [
        # One token of two; then two tokens, with readable numbers.
        (torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[0]]), _mask(1, T=1)),
        (torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double(), torch.tensor([[1, 1]]), _mask(2, T=2)),
        # Valid actions in masked positions, so that a forgotten mask changes the result.
        (_logits(2, 3, 3, seed=1), torch.tensor([[2, 1, 0], [0, 2, 2]]), _mask(2, 3, T=3)),
        (_logits(1, 3, 4, seed=2), torch.tensor([[3, 0, 1]]), _mask(2, T=3)),
        (
            _logits(4, 5, 6, seed=3).float(),
            _tokens(4, 5, n_actions=6, seed=4),
            _mask(1, 5, 3, 4, T=5),
        ),
    ]
    pads = torch.tensor([[2, 3, 3], [0, 1, 2]])  # the pad token is 3, one beyond the actions
    garbage = _logits(2, 3, 3, seed=5).masked_fill(~_mask(1, 3, T=3)[..., None], 30.0)
    garbage[0, 1:, 0] = -30.0
    sure = torch.tensor([[[1000.0, -1000.0], [0.0, 0.0]]]).double()
    large = torch.tensor([[[1000.0, 1000.0], [-1000.0, -1001.0]]]).double()
    corners = [
        (_logits(2, 3, 3, seed=6), pads, _mask(1, 3, T=3)),
        (garbage, pads, _mask(1, 3, T=3)),
        (sure, torch.tensor([[1, 0]]), _mask(2, T=2)),  # certain of one, and the other was written
        (large, torch.tensor([[1, 0]]), _mask(2, T=2)),
    ]
    return make_cases(("logits", "responses", "mask"), plain, corners)


def _of_tokens(values: Tensor, responses: Tensor) -> Tensor:
    """Return the entries of values [B, T, A] at the tokens that were written, shape [B, T]."""
    actions = responses.clamp(max=values.shape[-1] - 1)
    return values.gather(-1, actions[..., None])[..., 0]


def _token_sum(values: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    return _of_tokens(values, responses).masked_fill(~mask, 0.0).sum(-1)


def _pads_gathered(logits: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    logps = logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]
    return (logps * mask).sum(-1)


def _without_last(mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True) - 1)


_SEQUENCE = Exercise(
    name="sequence_logps",
    notebook="03",
    hints=(
        "log_softmax over the last dimension turns logits into log-probabilities.",
        "Each position has A log-probabilities. You need the one of the token that was written, "
        "and gather picks it out.",
        "Before you gather, replace the pads by any valid id. After it, set what you gathered "
        "there to 0.",
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
            "shifted by one",
            "You pair the logits of each position with the token of the next. Here logits[:, t] "
            "already belong to the token responses[:, t].",
            lambda logits, responses, mask: _token_sum(
                logits[:, :-1].log_softmax(-1), responses[:, 1:], mask[:, 1:]
            ),
        ),
        Mistake(
            "last token forgotten",
            "You leave out the last real token of each response. It counts even if it is the end "
            "token, because stopping is a decision too.",
            lambda logits, responses, mask: _token_sum(
                logits.log_softmax(-1), responses, _without_last(mask)
            ),
        ),
        Mistake(
            "not normalised",
            "You add raw logits. They equal log-probabilities only up to a constant, a different "
            "one at each position.",
            lambda logits, responses, mask: _token_sum(logits, responses, mask),
        ),
        Mistake(
            "sum of probabilities",
            "You add probabilities. What do you add along a sequence: probabilities, or their "
            "logarithms?",
            lambda logits, responses, mask: _token_sum(logits.softmax(-1), responses, mask),
        ),
        Mistake(
            "probability, not its logarithm",
            "This is the probability π(y|x) itself. Return its logarithm.",
            lambda logits, responses, mask: losses.sequence_logps(logits, responses, mask).exp(),
        ),
        Mistake(
            "softmax over positions",
            "Your softmax runs over the positions. Which dimension of the logits lists the "
            "tokens that the policy chooses from?",
            lambda logits, responses, mask: _token_sum(logits.log_softmax(1), responses, mask),
        ),
        Mistake(
            "likeliest token",
            "You take the most likely token of each position. Which token was actually written?",
            lambda logits, responses, mask: (
                logits.log_softmax(-1).amax(-1).masked_fill(~mask, 0.0).sum(-1)
            ),
        ),
        Mistake(
            "summed over the batch",
            "You return one number for the whole batch. Return one log-probability for each "
            "response.",
            lambda logits, responses, mask: losses.sequence_logps(logits, responses, mask).sum(),
        ),
        Mistake(
            "sign",
            "A log-probability is never above 0. Your result has the opposite sign, like a loss.",
            lambda logits, responses, mask: -losses.sequence_logps(logits, responses, mask),
        ),
        Mistake(
            "pad as an action",
            "This works until there is a pad token. Its id is larger than that of any action, so "
            "there is no logit to gather. If you apply the mask only after that, it is too late.",
            _pads_gathered,
        ),
        Mistake(
            "underflow",
            "This works until a probability is too small for floating point. Then the softmax is "
            "0 and its logarithm is −∞. Torch has a function that does both in one step.",
            lambda logits, responses, mask: _token_sum(logits.softmax(-1).log(), responses, mask),
        ),
    ),
    differentiable=("logits",),
)

EXERCISES = (_STEP, _SEQUENCE)
