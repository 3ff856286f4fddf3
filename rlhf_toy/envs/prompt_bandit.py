"""The bandit: a prompt arrives, one of K responses is the arm.

Everything an instructor may want to change stands at the top of this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_toy.envs.text_world import TextWorld

# The prompts, the responses, and how they meet.
PROMPTS = (
    "How do I boil an egg?",
    "Is the earth flat?",
    "Tell me a joke.",
    "What is 7 times 8?",
)
RESPONSES = (
    "Seven minutes in boiling water.",
    "No; it is very nearly a ball.",
    "A neural network walks into a bar and overfits.",
    "Fifty-six.",
    "I am not sure, sorry.",
    "What a great question! Thank you so much for asking!",
    "As everybody knows, yes, absolutely.",
    "Ask somebody else.",
)
# The hidden taste: the true reward of each response (columns) to each prompt (rows), in logits.
TASTE = (
    (2.5, -1.0, 0.0, -1.0, 0.0, -0.5, -1.5, -2.0),
    (-1.0, 2.5, 0.5, -1.0, -0.5, -0.5, -2.5, -2.0),
    (-0.5, -0.5, 2.0, -0.5, 0.0, -0.5, -1.0, -1.5),
    (-1.0, -1.0, 0.0, 2.0, 0.0, -0.5, -1.5, -2.0),
)
# How often the corpus gives each response to each prompt: habits, in logits, not quality.
HABITS = (
    (0.0, -1.0, -1.0, -1.0, 1.0, 1.0, -0.5, 0.0),
    (-1.0, 0.0, -0.5, -1.0, 0.5, 0.5, 1.0, 0.0),
    (-1.0, -1.0, 0.0, -1.0, 0.5, 1.0, 0.0, 0.5),
    (-1.0, -1.0, -1.0, 0.5, 1.0, 0.5, 0.5, 0.0),
)


class PromptBandit(TextWorld):
    """Answer a prompt with one of K ready responses.

    ## Description
    A contextual bandit: a prompt arrives, one whole response is chosen, and the hidden taste says
    how much it is liked. This is the bandit view of a language model, whose arms are the responses
    (L3). A response is one token here, so that everything that runs on words runs on arms.

    ## Action Space
    `Discrete(8)`: the response, in the order of `RESPONSES`.

    ## Observation Space
    `Dict`: `prompt`, the prompt's index, and `response`, one token id: the arm that was pulled, or
    the pad token 8 before.

    ## Rewards
    The true reward r(x, y) of the response to the prompt, in logits: an entry of `TASTE`.

    ## Starting State
    A prompt drawn uniformly, or that of `reset(options={"prompt": ...})`, an index or a text.

    ## Episode End
    The episode terminates after one response. It is never truncated.

    ## Arguments
    * `render_mode=None`: `"ansi"` gives the prompt and the response as a text.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(PROMPTS, RESPONSES, 1, has_end_token=False, render_mode=render_mode)
        self._taste = torch.tensor(TASTE, dtype=torch.float64)

    def encode(self, text: str) -> Tensor:
        """The response with this text as token ids [1]; a ValueError if there is none."""
        return self.encode_words([text])

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """True reward of each response, see `TextWorld.response_rewards`."""
        return self._taste.to(responses.device)[prompts, responses[:, 0]]

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n prompts [n] and habitual responses [n, 1], see `TextWorld.sample_corpus`."""
        prompts = self.sample_prompts(n, generator)
        weights = torch.tensor(HABITS, device=prompts.device).softmax(-1)[prompts]
        return prompts, torch.multinomial(weights, 1, generator=generator)
