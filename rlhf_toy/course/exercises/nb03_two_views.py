"""The exercises of notebook 03: one step of the token MDP, and the chain rule (L4)."""

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
    """One transition of the token MDP: append, and pay at the end (L4).

    Args:
        world: whose words, lengths and rewards these are.
        prompt: index of the prompt.
        response: [max_length] token ids of the words so far, then `world.pad_token`.
        action: the token to append: a word or `world.end_token`.

    Returns:
        the next response [max_length], the reward in logits (0 until the response is over), and
        whether it is over.
    """
    length = int((response != world.pad_token).sum())
    next_response = response.clone()
    next_response[length] = action
    terminated = action == world.end_token or length + 1 == world.max_length
    reward = 0.0
    if terminated:
        reward = float(world.response_rewards(torch.tensor([prompt]), next_response[None]))
    return next_response, reward, terminated


# (prompt, words so far, next word or "<end>") for worlds of 3 and of 5 words.
_SHORT_STEPS = (
    ("concert", "", "loud"),
    ("film", "", "<end>"),  # says nothing
    ("library", "very", "loud"),
    ("meeting", "long", "<end>"),
    ("film", "not very", "bad"),  # reaches the limit
    ("nap", "good and", "long"),
    ("film", "very good", "<end>"),  # an end token in the last place
)
_LONG_STEPS = (
    ("holiday", "not", "loud"),
    ("concert", "loud and great", "<end>"),
    ("library", "dull but not", "loud"),
    ("meeting", "not good but very", "long"),  # reaches the limit
)
_LONG_CORNERS = (
    ("film", "good good good good", "good"),  # word salad costs more than it earns
    ("concert", "great and very loud", "<end>"),
)


def _steps(world: WordMDP, steps: tuple) -> list[tuple]:
    """world, prompt, response, action for each of some steps."""
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
    """The right step, with a position, an end or a payment of its own."""
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
        "Three questions: where does the token go, is the response over, and what is paid?",
        "As many words stand as there are tokens that are no pad. That is the next free place.",
        "Two things end a response: the end token, and max_length tokens. Then, and only then, the "
        "new response as a whole is judged.",
    ),
    solution=step_word_mdp,
    cases=_step_cases,
    mistakes=(
        Mistake(
            "reward at every step",
            "You pay before the response is over. Nobody judges half a review: until then the "
            "reward is 0.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: True
            ),
        ),
        Mistake(
            "no reward",
            "The reward is 0 even when the response is over. Who tells the policy what it was "
            "worth?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: False
            ),
        ),
        Mistake(
            "not over at the limit",
            "A response of max_length words is over, though nobody wrote the end token. Do you "
            "count the word that was just appended?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, over=lambda at_end, length, world: at_end
            ),
        ),
        Mistake(
            "over only at the limit",
            "The end token ends a response, however short it is.",
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
            "The response is over while there is still room for one more word. Is your length that "
            "before the step, or after it?",
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
            "Your limit is 5 words, but worlds differ. Where does this one say how long a response "
            "may be?",
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
            "A response that ran into the limit is over, but it is not paid. Judge it as well.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, paid=lambda at_end, at_limit: at_end
            ),
        ),
        Mistake(
            "end token not written",
            "The end token is a token of the response like any other: the next state has it, and "
            "the judge looks for it.",
            _end_not_written,
        ),
        Mistake(
            "last word overwritten",
            "The new token takes the place of the last word. Which is the first free place?",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: length - 1
            ),
        ),
        Mistake(
            "always the first place",
            "The new token always goes to the first place, whatever stands there already.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: 0
            ),
        ),
        Mistake(
            "always the last place",
            "The new token always goes to the last place, and leaves a gap of pads before it.",
            lambda world, prompt, response, action: _step(
                world, prompt, response, action, position=lambda length, world: -1
            ),
        ),
        Mistake(
            "pads counted",
            "The token goes to the place whose number is the count of pads. Which tokens should "
            "you count?",
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
            "The response is judged as it was before this step, without its last token.",
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
            "Every review is judged as one of prompt 0. A loud concert is not a loud library.",
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
    return (100 * draws).round() / 100  # two digits, so that no two of a place are equal


def _tokens(*shape: int, n_actions: int, seed: int) -> Tensor:
    return torch.randint(n_actions, shape, generator=make_generator(seed))


def _mask(*lengths: int, T: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def _sequence_cases() -> list[Case]:
    """logits, responses, mask."""
    plain = [
        # One token of two; then two tokens, with readable numbers.
        (torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[0]]), _mask(1, T=1)),
        (torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double(), torch.tensor([[1, 1]]), _mask(2, T=2)),
        # Masked places that hold tokens which are actions, so that forgetting the mask shows.
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
        (sure, torch.tensor([[1, 0]]), _mask(2, T=2)),  # sure of one, and the other was written
        (large, torch.tensor([[1, 0]]), _mask(2, T=2)),
    ]
    return make_cases(("logits", "responses", "mask"), plain, corners)


def _of_tokens(values: Tensor, responses: Tensor) -> Tensor:
    """The entries [B, T] of values [B, T, A] for the tokens that were written."""
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
        "Logits become log-probabilities with log_softmax over the last dimension.",
        "Of each position's A log-probabilities you need one, that of the token that was written: "
        "gather.",
        "Put some valid id in the place of the pads before you gather, and 0 in the place of what "
        "you gathered there.",
    ),
    solution=losses.sequence_logps,
    cases=_sequence_cases,
    mistakes=(
        Mistake(
            "mean over the tokens",
            "This is a mean over the tokens. The chain rule multiplies probabilities: what does "
            "that do to their logarithms?",
            lambda logits, responses, mask: (
                losses.sequence_logps(logits, responses, mask) / mask.sum(-1)
            ),
        ),
        Mistake(
            "mean over all positions",
            "You divide by the number of positions, pads included. Should the result depend on how "
            "far a response is padded?",
            lambda logits, responses, mask: (
                losses.sequence_logps(logits, responses, mask) / mask.shape[-1]
            ),
        ),
        Mistake(
            "mask forgotten",
            "Tokens after the end are counted as well. Which places does the mask leave out?",
            lambda logits, responses, mask: _token_sum(
                logits.log_softmax(-1), responses, torch.ones_like(mask)
            ),
        ),
        Mistake(
            "shifted by one",
            "Each position is read with the next one's token. Here logits[:, t] are already those "
            "of the token responses[:, t].",
            lambda logits, responses, mask: _token_sum(
                logits[:, :-1].log_softmax(-1), responses[:, 1:], mask[:, 1:]
            ),
        ),
        Mistake(
            "last token forgotten",
            "The last real token of each response is left out. To stop is a decision too, and has "
            "a probability.",
            lambda logits, responses, mask: _token_sum(
                logits.log_softmax(-1), responses, _without_last(mask)
            ),
        ),
        Mistake(
            "not normalised",
            "These are sums of raw logits. Logits are log-probabilities only up to a constant for "
            "each position.",
            lambda logits, responses, mask: _token_sum(logits, responses, mask),
        ),
        Mistake(
            "sum of probabilities",
            "You add probabilities. Which do add up along a path, probabilities or their "
            "logarithms?",
            lambda logits, responses, mask: _token_sum(logits.softmax(-1), responses, mask),
        ),
        Mistake(
            "probability, not its logarithm",
            "This is π(y|x) itself, a product. Its logarithm is asked for.",
            lambda logits, responses, mask: losses.sequence_logps(logits, responses, mask).exp(),
        ),
        Mistake(
            "softmax over positions",
            "The softmax runs over the positions. Which dimension of logits are the alternatives "
            "among which one token was chosen?",
            lambda logits, responses, mask: _token_sum(logits.log_softmax(1), responses, mask),
        ),
        Mistake(
            "likeliest token",
            "You take each position's likeliest token. Which token was written?",
            lambda logits, responses, mask: (
                logits.log_softmax(-1).amax(-1).masked_fill(~mask, 0.0).sum(-1)
            ),
        ),
        Mistake(
            "summed over the batch",
            "One number for the whole batch. Each response has a log-probability of its own.",
            lambda logits, responses, mask: losses.sequence_logps(logits, responses, mask).sum(),
        ),
        Mistake(
            "sign",
            "A log-probability is never above 0. This is a loss, with the opposite sign.",
            lambda logits, responses, mask: -losses.sequence_logps(logits, responses, mask),
        ),
        Mistake(
            "pad as an action",
            "Right, until a pad token turns up whose id is beyond the last action: there is no "
            "such logit to gather. The mask comes too late if it comes after that.",
            _pads_gathered,
        ),
        Mistake(
            "underflow",
            "Right, until a probability is too small for a float: its softmax is 0, and the "
            "logarithm of that is -inf. There is a function that does both in one.",
            lambda logits, responses, mask: _token_sum(logits.softmax(-1).log(), responses, mask),
        ),
    ),
    differentiable=("logits",),
)

EXERCISES = (_STEP, _SEQUENCE)
