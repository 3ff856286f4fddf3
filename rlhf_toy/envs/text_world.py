"""What the three worlds share: prompts, words, responses as tensors, and the Gymnasium interface.

A response is a row of `max_length` word ids. It ends with the end token or at the length limit,
and is padded after its end; nothing after the end counts anywhere. The same functions serve one
Gymnasium step and a batch of a million responses, so that both always agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def response_mask(responses: Tensor, end_token: int | None) -> Tensor:
    """True on a response's tokens up to and including its end token: [..., T] → bool [..., T].

    Only the first end token decides; whatever stands after it does not matter. All tokens are real
    where there is no end token, or none in the row.
    """
    if end_token is None:
        return torch.ones_like(responses, dtype=torch.bool)
    is_end = responses == end_token
    return is_end.cumsum(-1) - is_end.long() == 0


class TextWorld(gym.Env):
    """A world in which a prompt arrives and a response of a few words is given.

    Words have the ids 0 … n_words − 1, the end token (where there is one) the id n_words, so that
    the actions are 0 … n_actions − 1. The models know two kinds of token more: `pad_token` and one
    token per prompt, see `prompt_tokens`.

    Args:
        prompts: the prompts' texts, X of them.
        words: the words' texts, without the end token.
        max_length: T, the largest number of words in a response.
        has_end_token: whether a response can end before the length limit.
        render_mode: `"ansi"` for a text of the state, or None.

    Raises:
        ValueError: no prompt, no word, a text twice, a length below 1, an unknown render mode.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
        prompts: Sequence[str],
        words: Sequence[str],
        max_length: int,
        has_end_token: bool,
        render_mode: str | None = None,
    ) -> None:
        for name, texts in (("prompts", prompts), ("words", words)):
            if not texts or len(set(texts)) < len(texts):
                raise ValueError(f"{name} must be one or more different texts, got {list(texts)}")
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"max_length must be a whole number of at least 1, got {max_length!r}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.prompts, self.words = tuple(prompts), tuple(words)
        self.max_length = max_length
        self.render_mode = render_mode
        self.n_prompts, self.n_words = len(prompts), len(words)
        self.end_token = self.n_words if has_end_token else None
        self.n_actions = self.n_words + has_end_token
        self.pad_token = self.n_actions
        self.vocab_size = self.n_actions + 1 + self.n_prompts

        self.action_space = spaces.Discrete(self.n_actions)
        self.observation_space = spaces.Dict(
            prompt=spaces.Discrete(self.n_prompts),
            response=spaces.MultiDiscrete([self.n_actions + 1] * max_length),
        )
        self._prompt: int | None = None

    @property
    def vocabulary(self) -> str:
        return repr((self.prompts, self.words, self.max_length, self.end_token))

    @property
    def fingerprint(self) -> str:
        return type(self).__name__ + self.vocabulary

    # What a world has to say for itself.

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """True reward r(x, y) of finished responses (L2, L3).

        Args:
            prompts: [B] prompt indices.
            responses: [B, T] token ids; what stands after the end is not looked at.

        Returns:
            [B] rewards in logits, float64.
        """
        raise NotImplementedError

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fluent text for supervised learning: n prompts [n] and responses [n, T] (L5)."""
        raise NotImplementedError

    def transition(self, actions: Tensor, uniforms: Tensor) -> Tensor:
        """The token that is appended when `actions` are taken: here the action itself (L4).

        Args:
            actions: [B] token ids.
            uniforms: [B] numbers in [0, 1), the world's own chance.

        Returns:
            [B] token ids.
        """
        return actions

    @property
    def is_deterministic(self) -> bool:
        """Whether the token that is chosen is always the token that is appended."""
        return True

    # Responses as tensors.

    def prompt_tokens(self, prompts: Tensor) -> Tensor:
        """The tokens [B] by which the models know the prompts with indices [B]."""
        return prompts + self.n_actions + 1

    def response_mask(self, responses: Tensor) -> Tensor:
        """`response_mask` with this world's end token: [..., T] → bool [..., T]."""
        return response_mask(responses, self.end_token)

    def pad(self, responses: Tensor) -> Tensor:
        """Responses [..., T] with the pad token wherever `response_mask` is False."""
        return responses.masked_fill(~self.response_mask(responses), self.pad_token)

    def sample_prompts(self, n: int, generator: torch.Generator) -> Tensor:
        """n prompt indices [n] from d0, which is uniform over the prompts."""
        return torch.randint(self.n_prompts, (n,), generator=generator, device=generator.device)

    @cached_property
    def all_responses(self) -> Tensor:
        """Every response once: [Y, T] token ids, short ones first, then in the words' order.

        The order is that of `response_index`, and of the columns of everything exact.
        """
        rows = []
        for length in range(self.max_length + 1):
            ended = length < self.max_length
            if ended and self.end_token is None:
                continue
            block = torch.full((self.n_words**length, self.max_length), self.pad_token)
            if length:
                words = torch.arange(self.n_words)
                block[:, :length] = torch.cartesian_prod(*[words] * length).reshape(-1, length)
            if ended:
                block[:, length] = self.end_token
            rows.append(block)
        return torch.cat(rows)

    def response_index(self, responses: Tensor) -> Tensor:
        """Where responses [B, T] stand in `all_responses`: [B]."""
        is_word = self.response_mask(responses) & (responses < self.n_words)
        lengths = is_word.sum(-1)
        number = torch.zeros_like(lengths)
        for t in range(self.max_length):
            number = torch.where(is_word[:, t], number * self.n_words + responses[:, t], number)
        if self.end_token is None:
            return number
        return number + self.level_starts.to(lengths.device)[lengths]

    @cached_property
    def level_starts(self) -> Tensor:
        """[T + 1]: how many word strings are shorter than 0, 1 … T words."""
        sizes = [self.n_words**length for length in range(self.max_length)]
        return torch.tensor([0, *np.cumsum(sizes).tolist()])

    # Text.

    def prompt_index(self, prompt: str) -> int:
        """The index of a prompt's text.

        Raises:
            ValueError: this world has no such prompt.
        """
        if prompt not in self.prompts:
            raise ValueError(f"unknown prompt {prompt!r}; the prompts are {list(self.prompts)}")
        return self.prompts.index(prompt)

    def encode(self, text: str) -> Tensor:
        """A response's text as token ids [T], ended and padded.

        Words are separated by blanks. Fewer than T words mean that the end token follows.

        Raises:
            ValueError: an unknown word, or too many words.
        """
        return self.encode_words(text.split())

    def encode_words(self, words: Sequence[str]) -> Tensor:
        """A list of words as token ids [T], ended and padded; errors as for `encode`."""
        unknown = [word for word in words if word not in self.words]
        if unknown:
            raise ValueError(f"unknown word {unknown[0]!r}; the words are {list(self.words)}")
        if len(words) > self.max_length:
            raise ValueError(f"{len(words)} words; a response has {self.max_length} at the most")
        if len(words) < self.max_length and self.end_token is None:
            raise ValueError(f"{len(words)} words; a response has exactly {self.max_length}")
        tokens = torch.full((self.max_length,), self.pad_token)
        tokens[: len(words)] = torch.tensor([self.words.index(w) for w in words], dtype=torch.long)
        if len(words) < self.max_length:
            tokens[len(words)] = self.end_token
        return tokens

    def decode(self, response: Tensor) -> str:
        """The text of one response [T]: its words up to its end."""
        tokens = response[self.response_mask(response)].tolist()
        return " ".join(self.words[token] for token in tokens if token < self.n_words)

    # Gymnasium.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws a prompt, or takes `options={"prompt": index or text}`."""
        super().reset(seed=seed)
        prompt = (options or {}).get("prompt")
        if isinstance(prompt, str):
            prompt = self.prompt_index(prompt)
        if prompt is not None and prompt not in range(self.n_prompts):
            raise ValueError(f"prompt must be 0 … {self.n_prompts - 1}, got {prompt!r}")
        self._prompt = int(self.np_random.integers(self.n_prompts)) if prompt is None else prompt
        self._response = torch.full((self.max_length,), self.pad_token)
        self._length, self._over = 0, False
        return self._observation(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Appends a token. The reward is 0 until the response is over, then r(x, y)."""
        if not self.action_space.contains(action):
            raise ValueError(f"action must be 0 … {self.n_actions - 1}, got {action!r}")
        if self._prompt is None or self._over:
            raise ValueError("the episode is over or has not begun: call reset() first")
        uniform = torch.tensor([self.np_random.random()], dtype=torch.float64)
        token = int(self.transition(torch.tensor([int(action)]), uniform))
        self._response[self._length] = token
        self._length += 1
        self._over = token == self.end_token or self._length == self.max_length
        reward = 0.0
        if self._over:
            prompt = torch.tensor([self._prompt])
            reward = float(self.response_rewards(prompt, self._response[None]))
        return self._observation(), reward, self._over, False, {}

    def render(self) -> str | None:
        """The state as a text, for `render_mode="ansi"`."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='ansi' in gymnasium.make()")
            return None
        if self._prompt is None:
            raise ValueError("nothing to render yet: call reset() first")
        text = f"{self.prompts[self._prompt]}: {self.decode(self._response)}"
        return text + (" <end>" if self._over else " …")

    def _observation(self) -> dict[str, Any]:
        return {"prompt": np.int64(self._prompt), "response": self._response.numpy().copy()}


def unwrap(env: gym.Env) -> TextWorld:
    """The world inside Gymnasium's wrappers.

    Raises:
        TypeError: it is none of this package's worlds.
    """
    world = env.unwrapped if isinstance(env, gym.Env) else env
    if not isinstance(world, TextWorld):
        raise TypeError(f"expected one of the rlhf_toy/ worlds, got {world!r}")
    return world
