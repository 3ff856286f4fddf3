"""The bandit: a prompt arrives, and one of K whole responses is the arm that is pulled.

To make another bandit, write another `BanditSpec` and pass it to `PromptBandit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_toy.checks import check_number, check_texts, check_type, freeze, shown
from rlhf_toy.envs.text_world import TextWorld


@dataclass(frozen=True, kw_only=True)
class BanditSpec:
    """A bandit as data. Tables have a row for each prompt and a column for each response.

    Attributes:
        prompts: X texts.
        responses: Y texts.
        taste: [X][Y] true rewards, in logits.
        habits: [X][Y] logits of the corpus: how often it gives each response, good or bad.

    Raises:
        TypeError: texts or numbers of the wrong kind.
        ValueError: no text, a text twice, a table of another shape, a number that is not finite.
    """

    prompts: Sequence[str]
    responses: Sequence[str]
    taste: Sequence[Sequence[float]]
    habits: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        freeze(self, check_texts, "prompts", "responses")
        shape = len(self.prompts), len(self.responses)
        for name in ("taste", "habits"):
            table = np.array(getattr(self, name), dtype=object)
            if table.shape != shape:
                rows = f"{shape[0]} rows, one a prompt, of {shape[1]} numbers"
                raise ValueError(f"{name} must have {rows}, got {shown(getattr(self, name))}")
            for number in table.flat:
                check_number(f"each entry of {name}", number)
            object.__setattr__(self, name, tuple(tuple(map(float, row)) for row in table))


QUESTIONS = BanditSpec(
    prompts=(
        "How do I boil an egg?",
        "Is the earth flat?",
        "Tell me a joke.",
        "What is 7 times 8?",
    ),
    responses=(
        "Seven minutes in boiling water.",
        "No; it is very nearly a ball.",
        "A neural network walks into a bar and overfits.",
        "Fifty-six.",
        "I am not sure, sorry.",
        "What a great question! Thank you so much for asking!",
        "As everybody knows, yes, absolutely.",
        "Ask somebody else.",
    ),
    taste=(
        (2.5, -1.0, 0.0, -1.0, 0.0, -0.5, -1.5, -2.0),
        (-1.0, 2.5, 0.5, -1.0, -0.5, -0.5, -2.5, -2.0),
        (-0.5, -0.5, 2.0, -0.5, 0.0, -0.5, -1.0, -1.5),
        (-1.0, -1.0, 0.0, 2.0, 0.0, -0.5, -1.5, -2.0),
    ),
    habits=(
        (0.0, -1.0, -1.0, -1.0, 1.0, 1.0, -0.5, 0.0),
        (-1.0, 0.0, -0.5, -1.0, 0.5, 0.5, 1.0, 0.0),
        (-1.0, -1.0, 0.0, -1.0, 0.5, 1.0, 0.0, 0.5),
        (-1.0, -1.0, -1.0, 0.5, 1.0, 0.5, 0.5, 0.0),
    ),
)
HABITS = QUESTIONS.habits  # the notebooks' reference policy, in logits


class PromptBandit(TextWorld):
    """Answer a prompt with one of K ready responses.

    ## Description
    A contextual bandit: a prompt arrives, one whole response is chosen, and the hidden taste says
    how much it is liked. This is the bandit view of a language model, whose arms are the responses.
    A response is a single token here, so everything that works on words works on arms.

    ## Action Space
    `Discrete(K)`, `Discrete(8)` for `QUESTIONS`: the response, in the order of the spec.

    ## Observation Space
    `Dict`: `prompt`, the prompt's index, and `response`, one token id: the arm that was pulled, or
    before that the pad token K.

    ## Rewards
    The true reward r(x, y) of the response to the prompt, in logits: an entry of the spec's
    `taste`.

    ## Starting State
    A random prompt, all equally likely, or that of `reset(options={"prompt": ...})`, an index or a
    text.

    ## Episode End
    The episode terminates after one response. It is never truncated.

    ## Arguments
    * `spec=QUESTIONS`: the prompts, the responses, the taste and the habits, see `BanditSpec`.
    * `render_mode=None`: `"ansi"` gives the prompt and the response as a text.
    """

    def __init__(self, spec: BanditSpec = QUESTIONS, render_mode: str | None = None) -> None:
        check_type("spec", spec, BanditSpec, "a BanditSpec such as QUESTIONS")
        super().__init__(spec.prompts, spec.responses, 1, False, render_mode)
        self.world_spec = spec
        self._taste = torch.tensor(spec.taste, dtype=torch.float64)

    def encode(self, text: str) -> Tensor:
        """The response with this text as token ids [1]; a ValueError if there is none."""
        return self.encode_words([text])

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the true reward of each response, see `TextWorld.response_rewards`."""
        self.written_mask(prompts, responses)
        return self._taste.to(responses.device)[prompts, responses[:, 0]]

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample n prompts [n] and habitual responses [n, 1]."""
        prompts = self.sample_prompts(n, generator)
        weights = torch.tensor(self.world_spec.habits, device=prompts.device).softmax(-1)[prompts]
        return prompts, torch.multinomial(weights, 1, generator=generator)
