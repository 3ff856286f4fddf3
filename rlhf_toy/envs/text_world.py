"""What all worlds share: prompts, words, responses as tensors, and the Gymnasium interface.

A response is a row of `max_length` token ids. It ends with the end token or at the length limit and
is padded after its end. Tokens after the end are never looked at. One Gymnasium step and a batch of
a million responses go through the same functions, so their results always agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlhf_toy import checks

MOST_RESPONSES = 1_000_000  # to a prompt: what enumeration may hold in memory


def response_mask(responses: Tensor, end_token: int | None) -> Tensor:
    """Return True on a response's tokens up to and including its end: [..., T] → bool [..., T].

    Only the first end token counts; tokens after it do not matter. In a row without an end token,
    all tokens are True.

    Raises:
        TypeError: `responses` is not a tensor.
    """
    checks.check_tensors(responses=responses)
    if end_token is None:
        return torch.ones_like(responses, dtype=torch.bool)
    is_end = responses == end_token
    return is_end.cumsum(-1) - is_end.long() == 0


def digest(*parts: Any) -> str:
    """A short hexadecimal digest of anything JSON can hold, the same on every machine."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


class TextWorld(gym.Env):
    """A world in which a prompt arrives and a response of a few words is given.

    Words have the ids 0 … n_words − 1 and the end token, if there is one, the id n_words; together
    they are the actions 0 … n_actions − 1. The models also know `pad_token` and one token for each
    prompt, see `prompt_tokens`.

    Args:
        prompts: the texts of the X prompts.
        words: the texts of the words, without the end token.
        max_length: T, the largest number of words in a response.
        has_end_token: whether a response can end before the length limit.
        render_mode: `"ansi"` for a text of the state, or None.

    Attributes:
        world_spec: the world's data, a frozen dataclass that every subclass sets (Gymnasium keeps
            its own registration in `spec`).

    Raises:
        TypeError: texts that are not a tuple or list, or a `max_length` that is not an integer.
        ValueError: no text, a text twice, a length below 1, or an unknown render mode.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}
    world_spec: Any

    def __init__(
        self,
        prompts: Sequence[str],
        words: Sequence[str],
        max_length: int,
        has_end_token: bool,
        render_mode: str | None = None,
    ) -> None:
        self.prompts = checks.check_texts("prompts", prompts)
        self.words = checks.check_texts("words", words)
        checks.check_count("max_length", max_length)
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.max_length, self.render_mode = int(max_length), render_mode
        self.n_prompts, self.n_words = len(self.prompts), len(self.words)
        self.end_token = self.n_words if has_end_token else None
        self.n_actions = self.n_words + has_end_token
        self.pad_token = self.n_actions
        self.vocab_size = self.n_actions + 1 + self.n_prompts

        self.action_space = spaces.Discrete(self.n_actions)
        self.observation_space = spaces.Dict(
            prompt=spaces.Discrete(self.n_prompts),
            response=spaces.MultiDiscrete([self.n_actions + 1] * self.max_length),
        )
        self._prompt: int | None = None

    @property
    def vocabulary(self) -> str:
        """A digest of what a model of this world must share: prompts, words, length, end token."""
        return digest(self.prompts, self.words, self.max_length, self.end_token)

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides rewards and transitions: class, length and spec.

        A subclass with more settings overrides this and digests them too.
        """
        return digest(type(self).__name__, self.vocabulary, asdict(self.world_spec))

    # Subclasses implement the first two, and the others where the world is stochastic.

    def response_rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Return the true reward r(x, y) of each response.

        Args:
            prompts: [B] prompt indices.
            responses: [B, T] token ids. A row that is padded without an end token counts as cut
                off there.

        Returns:
            [B] rewards in logits, float64.

        Raises:
            TypeError: not tensors.
            ValueError: an empty batch, shapes that do not fit, ids out of range, or a pad token
                where a word or the end token must be.
        """
        raise NotImplementedError

    def sample_corpus(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample text for supervised learning: n prompts [n] and responses to them [n, T]."""
        raise NotImplementedError

    def transition(self, actions: Tensor, uniforms: Tensor) -> Tensor:
        """Return the token that is appended for each action; here it is the action itself.

        Args:
            actions: [B] token ids.
            uniforms: [B] numbers in [0, 1), the randomness of a stochastic world.

        Returns:
            [B] token ids.

        Raises:
            TypeError: not tensors.
            ValueError: shapes that differ, or an action out of range.
        """
        checks.check_same_shape(actions=actions, uniforms=uniforms)
        checks.check_ids("actions", actions, self.n_actions)
        return actions

    @property
    def is_deterministic(self) -> bool:
        """Whether the token that is appended is always the token that was chosen."""
        return True

    # Responses as tensors.

    def prompt_tokens(self, prompts: Tensor, dim: int | None = None) -> Tensor:
        """The tokens by which the models know prompt indices, of `dim` dimensions: [...] → [...].

        Raises:
            TypeError: not a tensor.
            ValueError: ids out of range, or another number of dimensions than `dim`.
        """
        checks.check_ids("prompts", prompts, self.n_prompts, dim)
        return prompts + self.n_actions + 1

    def response_mask(self, responses: Tensor, dim: int | None = None) -> Tensor:
        """`response_mask` with this world's end token: [..., T] → bool [..., T].

        Raises:
            TypeError: not a tensor.
            ValueError: rows that are not T tokens long, none at all, ids out of range, or another
                number of dimensions than `dim`.
        """
        mask = response_mask(responses, self.end_token)
        if responses.shape[-1:] != (self.max_length,):
            row = f"a row of {self.max_length} tokens"
            raise ValueError(f"a response must be {row}, got {checks.shown(responses)}")
        until_end = responses.where(mask, 0)
        checks.check_ids("responses up to their end", until_end, self.pad_token + 1, dim)
        return mask

    def written_mask(self, prompts: Tensor | None, responses: Tensor) -> Tensor:
        """Check responses [B, T], and prompts [B] if given; return where a token was written.

        This is `response_mask` without the pads of a row that was cut off.

        Raises:
            TypeError, ValueError: see `response_rewards`.
        """
        mask = self.response_mask(responses, 2) & (responses != self.pad_token)
        if prompts is not None:
            checks.check_ids("prompts", prompts, self.n_prompts, 1)
            if len(prompts) != len(responses):
                raise ValueError(f"got {len(prompts)} prompts for {len(responses)} responses")
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            pad = f"the pad token {self.pad_token}"
            raise ValueError(f"responses must have a token first and none after {pad}")
        return mask

    def pad(self, responses: Tensor) -> Tensor:
        """Responses [..., T] with the pad token wherever `response_mask` is False."""
        mask = self.response_mask(responses)
        return responses.masked_fill(~mask, self.pad_token)

    def sample_prompts(self, n: int, generator: torch.Generator) -> Tensor:
        """Sample n prompt indices [n]; all prompts are equally likely."""
        checks.check_count("n", n)
        checks.check_generator(generator)
        return torch.randint(self.n_prompts, (n,), generator=generator, device=generator.device)

    @property
    def n_responses(self) -> int:
        """Y, the number of different responses to a prompt."""
        lengths = range(self.max_length if self.end_token is None else 0, self.max_length + 1)
        return sum(self.n_words**length for length in lengths)

    def check_enumerable(self) -> None:
        """Raise a ValueError if there are too many responses to put them into a table."""
        if self.n_responses > MOST_RESPONSES:
            found = f"{float(self.n_responses):.2g} responses to a prompt are too many to enumerate"
            advice = "take a smaller max_length, or the functions for automata in rlhf_toy.exact"
            raise ValueError(f"{found} (at most {MOST_RESPONSES:,} are possible): {advice}")

    @cached_property
    def all_responses(self) -> Tensor:
        """Every response once: [Y, T] token ids, short ones first, then in the order of the words.

        `response_index` and the columns of all exact tables use the same order.

        Raises:
            ValueError: there are too many.
        """
        self.check_enumerable()
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
        """Where responses [B, T] are in `all_responses`: [B]; errors as in `response_rewards`.

        Raises a ValueError as well where there are too many responses to enumerate.
        """
        self.check_enumerable()
        is_word = self.written_mask(None, responses) & (responses < self.n_words)
        lengths = is_word.sum(-1)
        number = torch.zeros_like(lengths)
        for t in range(self.max_length):
            number = torch.where(is_word[:, t], number * self.n_words + responses[:, t], number)
        if self.end_token is None:
            return number
        return number + self.level_starts.to(lengths.device)[lengths]

    @cached_property
    def level_starts(self) -> Tensor:
        """[T + 1] numbers of word strings with fewer than 0, 1 … T words.

        Raises:
            ValueError: there are too many responses to enumerate.
        """
        self.check_enumerable()
        sizes = [self.n_words**length for length in range(self.max_length)]
        return torch.tensor([0, *np.cumsum(sizes).tolist()])

    # Text.

    def prompt_index(self, prompt: str) -> int:
        """The index of a prompt's text.

        Raises:
            TypeError: not a text.
            ValueError: this world has no such prompt.
        """
        checks.check_type("prompt", prompt, str, "a text")
        if prompt not in self.prompts:
            raise ValueError(f"unknown prompt {prompt!r}; the prompts are {list(self.prompts)}")
        return self.prompts.index(prompt)

    def encode(self, text: str) -> Tensor:
        """A response's text as token ids [T], with end token and padding.

        Words are separated by blanks. With fewer than T words, the end token follows.

        Raises:
            TypeError: not a text.
            ValueError: an unknown word, or too many words.
        """
        checks.check_type("text", text, str, "a text")
        return self.encode_words(text.split())

    def encode_words(self, words: Sequence[str]) -> Tensor:
        """A list of words as token ids [T], with end token and padding; errors as for `encode`."""
        checks.check_type("words", words, list | tuple, "a list of words")
        unknown = [word for word in words if word not in self.words]
        if unknown:
            raise ValueError(f"unknown word {unknown[0]!r}; the words are {list(self.words)}")
        if len(words) > self.max_length:
            raise ValueError(f"{len(words)} words; a response has at most {self.max_length}")
        if len(words) < self.max_length and self.end_token is None:
            raise ValueError(f"{len(words)} words; a response has exactly {self.max_length}")
        tokens = torch.full((self.max_length,), self.pad_token)
        tokens[: len(words)] = torch.tensor([self.words.index(w) for w in words], dtype=torch.long)
        if len(words) < self.max_length:
            tokens[len(words)] = self.end_token
        return tokens

    def decode(self, response: Tensor) -> str:
        """The text of one response [T]: its words up to its end; errors as in `response_mask`."""
        tokens = response[self.response_mask(response, 1)].tolist()
        return " ".join(self.words[token] for token in tokens if token < self.n_words)

    # Gymnasium.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode with a random prompt, or with `options={"prompt": index or text}`."""
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
        """Append a token. The reward is 0 until the response is over, then r(x, y)."""
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
    """Return the world itself, whether it is given bare or inside Gymnasium's wrappers.

    Raises:
        TypeError: it is not one of this package's worlds.
    """
    world = env.unwrapped if isinstance(env, gym.Env) else env
    if not isinstance(world, TextWorld):
        wanted = "one of the rlhf_toy/ worlds, such as WordMDP()"
        raise TypeError(f"expected {wanted}, got {checks.shown(world)}")
    return world
