"""Word by word: write a response with buttons, and see what is known about each state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import ipywidgets
import numpy as np
import torch
from gymnasium import Env
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.checks import check_count, check_type
from rlhf_toy.course.widgets.parts import Explorer, button, in_a_row, labelled, panels, say, words
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import n_states
from rlhf_toy.models import Policy, RewardModel, check_fits
from rlhf_toy.plots import COLOUR

END = "<end>"
LIKELIEST = 3  # how many of the next words the text names
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.16, "top": 0.9, "wspace": 0.22}

# Arithmetic


@dataclass(frozen=True)
class State:
    """One state of the token MDP, and what is known there; float64, nats and logits.

    Attributes:
        prompt: index of the prompt.
        tokens: ids written so far, including the end token if it has been written.
        is_over: whether the response is finished.
        index: the state's index, see `n_states`.
        logp: log π_ref of the tokens so far; log π_ref(y|x) if it is over.
        next_logps: [A] log π_ref of every next token; None if it is over.
        true_rewards: the response's reward if it ended after 0, 1, 2 … of its words.
        learned_rewards: the same from the reward model; None without one.
    """

    prompt: int
    tokens: tuple[int, ...]
    is_over: bool
    index: int
    logp: float
    next_logps: Tensor | None
    true_rewards: tuple[float, ...]
    learned_rewards: tuple[float, ...] | None


def look_at(
    world: TextWorld,
    reference: Policy,
    prompt: int,
    tokens: tuple[int, ...],
    reward_model: RewardModel | None = None,
) -> State:
    """Return the state after some tokens.

    Args:
        world: a deterministic world with an end token.
        reference: π_ref.
        prompt: index of the prompt.
        tokens: ids so far, at most T; none after an end token.
        reward_model: r_φ, if there is one.

    Raises:
        TypeError, ValueError: a prompt or token that the world does not have, more than T tokens,
            or tokens after an end token.
    """
    check_count("prompt", prompt, 0, world.n_prompts - 1)
    for i, token in enumerate(tokens):
        check_count(f"tokens[{i}]", token, 0, world.end_token)
    if len(tokens) > world.max_length or world.end_token in tokens[:-1]:
        raise ValueError(
            f"tokens must be at most {world.max_length}, with none after the end token "
            f"{world.end_token}, got {tokens}"
        )
    n_words = len(tokens) - (world.end_token in tokens)
    is_over = n_words < len(tokens) or n_words == world.max_length
    response = torch.full((1, world.max_length), world.pad_token)
    response[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    beginnings = _ended_beginnings(world, response[0], n_words)
    prompts = torch.full((n_words + 1,), prompt)
    learned = None
    with torch.inference_mode():
        device = reference.device
        logits = reference(prompts[:1].to(device), response.to(device))
        logps = logits[0].double().log_softmax(-1).cpu()  # [T, A]; row t belongs to state s_t
        if reward_model is not None:
            device = reward_model.device
            scores = reward_model(prompts.to(device), beginnings.to(device))
            learned = tuple(scores.double().tolist())
    here = prompt * int(world.level_starts[-1]) + int(world.response_index(beginnings[-1:]))
    return State(
        prompt=prompt,
        tokens=tokens,
        is_over=is_over,
        index=n_states(world) - 1 if is_over else here,
        logp=float(logps[torch.arange(len(tokens)), list(tokens)].sum()),
        next_logps=None if is_over else logps[len(tokens)].clone(),
        true_rewards=tuple(world.response_rewards(prompts, beginnings).tolist()),
        learned_rewards=learned,
    )


def _ended_beginnings(world: TextWorld, response: Tensor, n_words: int) -> Tensor:
    """The first 0, 1 … n words of a response [T], each ended: [n + 1, T]."""
    beginnings = torch.full((n_words + 1, world.max_length), world.pad_token)
    for length, row in enumerate(beginnings):
        row[:length] = response[:length]
        row[length : length + 1] = world.end_token  # an empty slice where the response is full
    return beginnings


# Words


def token_names(world: TextWorld) -> list[str]:
    """Return the names of the actions, in their order."""
    return [*world.words, END]


def written_words(world: TextWorld, state: State) -> str:
    """Write the response as the world renders it."""
    names = token_names(world)
    said = [names[token] for token in state.tokens]
    if not state.is_over:
        said.append("…")
    return f"{world.prompts[state.prompt]}: {' '.join(said)}"


def state_words(world: TextWorld, state: State) -> str:
    """Describe the state as the MDP sees it."""
    pads = (world.pad_token,) * (world.max_length - len(state.tokens))
    ids = ", ".join(map(str, (*state.tokens, *pads)))
    if state.is_over:
        where = f"over: state {state.index:,}, where every response ends. No steps left"
    else:
        left = world.max_length - len(state.tokens)
        steps = "step" if left == 1 else "steps"
        where = (
            f"state {state.index:,} of 0 … {n_states(world) - 1:,}. Not over, {left} {steps} left"
        )
    return (
        f"As the MDP sees it: prompt {state.prompt}, tokens ({ids}), where {world.pad_token} is an "
        f"empty place; {where}."
    )


def value_words(world: TextWorld, state: State) -> str:
    """Describe rewards and log-probabilities in numbers."""
    reward = f"true reward {_signed(state.true_rewards[-1])}"
    if state.learned_rewards is not None:
        reward += f", learned reward {_signed(state.learned_rewards[-1])}"
    so_far = f"{_logp(state.logp)} nats, probability {_probability(state.logp)}"
    if state.is_over:
        return f"Paid now: {reward} logits. log π_ref of the response: {so_far}."
    at_end = _logp(state.logp + float(state.next_logps[world.end_token]))
    names = token_names(world)
    likeliest = ", ".join(
        f"{names[token]} {_probability(float(state.next_logps[token]))}"
        for token in state.next_logps.topk(LIKELIEST).indices.tolist()
    )
    return (
        f"If it ended here: {reward} logits; nothing is paid yet. log π_ref so far: {so_far}; "
        f"with {END} {at_end}. Likeliest next: {likeliest}."
    )


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _logp(value: float) -> str:
    return _signed(value).removeprefix("+")


def _probability(logp: float) -> str:
    """A probability as a percentage, or as "1 in n" where that would be 0.0 %."""
    if logp < math.log(0.001):
        return f"1 in {math.exp(-logp):,.0f}" if logp > -30 else "next to 0"
    return f"{math.exp(logp):.1%}"


# Drawing


def draw_state(figure: Figure, world: TextWorld, state: State) -> None:
    """Draw π_ref of every next word, and the rewards of the response's beginnings.

    Args:
        figure: an empty figure.
        world: the world of the state.
        state: what to draw.
    """
    left, right = panels(figure, 2, MARGINS)
    _draw_next(left, world, state)
    _draw_rewards(right, world, state)


def _draw_next(axes: Axes, world: TextWorld, state: State) -> None:
    names = token_names(world)
    rows = np.arange(len(names))
    if state.next_logps is None:
        text = "over: there is no next word"
        axes.text(0.5, len(names) / 2, text, ha="center", va="center")
    else:
        shares = state.next_logps.exp().tolist()
        # The end token is not a word, so its bar looks different.
        bars = axes.barh(rows, shares, 0.75, color=COLOUR["reference"])
        bars[world.end_token].set(facecolor="0.3", hatch="//", edgecolor="w")
        for row, share in zip(rows, shares, strict=True):
            axes.text(share + 0.01, row, f"{share:.1%}", va="center", fontsize=8)
    axes.set_yticks(rows, names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("probability")
    axes.set_title("π_ref of the next word", fontsize=10)
    axes.grid(visible=False, axis="y")


def _draw_rewards(axes: Axes, world: TextWorld, state: State) -> None:
    lines = [("true reward", state.true_rewards, "o-", COLOUR["true reward"])]
    if state.learned_rewards is not None:
        lines.append(("learned reward", state.learned_rewards, "s--", COLOUR["learned reward"]))
    for name, rewards, style, colour in lines:
        axes.plot(range(len(rewards)), rewards, style, color=colour, label=name, markersize=7)
    n_words = len(state.true_rewards) - 1
    if state.is_over:
        axes.plot(
            n_words, state.true_rewards[-1], "*", color="black", markersize=15, label="paid now"
        )
    shown = [world.words[token] for token in state.tokens[:n_words]]
    places = ["(nothing)", *shown, *[""] * (world.max_length - n_words)]
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_xticks(range(world.max_length + 1), places, fontsize=9)
    axes.set_xlim(-0.4, world.max_length + 0.4)
    low, high = (f(r for _, rewards, *_ in lines for r in rewards) for f in (min, max))
    # The same limits for most responses: a new word should move the curve, not the axis.
    axes.set_ylim(min(low - 0.4, -2.5), max(high + 0.9, 2.9))
    axes.set_xlabel("words so far")
    axes.set_ylabel("logits")
    axes.set_title("reward, if it ended after this word", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, ncols=3)


# The widget


class WordByWord(Explorer):
    """Buttons for the words of a response, and all that is known about the state after each word.

    The words stay when the prompt changes, to compare the same response under two prompts.

    Args:
        world: a deterministic world with an end token, such as `WordMDP()`, bare or in wrappers.
        reference: π_ref.
        reward_model: r_φ, if there is one already.
        prompt: text of the first prompt; the world's first by default.
        start: words that are already written, separated by spaces.

    Attributes:
        state: the `State` that is shown.
        prompt: the menu of prompts.
        buttons: by the words that they write, `END` for the end token.
        undo, reset: the buttons that take back one word, or all.
        written, line, mdp: the response, its numbers and its MDP state as texts.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a world that slips or has no end token, a model of another world, or an unknown
            prompt or word.
    """

    SIZE = (9.0, 3.5)

    def __init__(
        self,
        world: Env,
        reference: Policy,
        reward_model: RewardModel | None = None,
        prompt: str | None = None,
        start: str = "",
    ) -> None:
        world = self._world = _check_world(unwrap(world))
        check_type("reference", reference, Policy, "a policy such as a PolicyModel")
        check_fits(reference, world)
        if reward_model is not None:
            check_type("reward_model", reward_model, RewardModel, "a RewardModel")
            check_fits(reward_model, world)
        check_type("start", start, str, "words separated by spaces, such as 'not very'")
        self._reference, self._reward_model = reference, reward_model
        prompts, index = list(world.prompts), 0 if prompt is None else world.prompt_index(prompt)
        self._tokens = tuple(t for t in world.encode(start).tolist() if t < world.n_words)
        self.prompt = labelled(ipywidgets.Dropdown, "prompt", "16em", options=prompts, index=index)
        self.buttons = {
            name: button(name, partial(self._append, token), "5.5em")
            for token, name in enumerate(token_names(world))
        }
        self.undo = button("↶ undo", lambda: self._write(self._tokens[:-1]), "5.5em")
        self.reset = button("reset", lambda: self._write(()), "5.5em")
        # The end disables all words and its own button; the next tab stop is then undo.
        self.vocabulary = in_a_row([*self.buttons.values(), self.undo, self.reset])
        self.written, self.mdp = words(), words()
        super().__init__([self.prompt, self.vocabulary, self.written], [self.prompt], [self.mdp])

    def _append(self, token: int) -> None:
        # A press can still arrive after its button was disabled.
        if not self.state.is_over:
            self._write((*self._tokens, token))

    def _write(self, tokens: tuple[int, ...]) -> None:
        self._tokens = tokens
        self._show()

    def _compute(self) -> None:
        self.state = look_at(
            self._world, self._reference, self.prompt.index, self._tokens, self._reward_model
        )

    def _draw(self, figure: Figure) -> None:
        draw_state(figure, self._world, self.state)

    def _describe(self) -> str:
        return value_words(self._world, self.state)

    def _speak(self) -> None:
        """Set texts and buttons to the state."""
        super()._speak()
        say(self.written, written_words(self._world, self.state))
        say(self.mdp, state_words(self._world, self.state))
        for one in self.buttons.values():
            one.disabled = self.state.is_over
        self.undo.disabled = self.reset.disabled = not self._tokens


def _check_world(world: TextWorld) -> TextWorld:
    if world.end_token is None:
        raise ValueError(
            f"{type(world).__name__} has no end token, so its responses are not written word by "
            "word: use WordMDP()"
        )
    if not world.is_deterministic:
        raise ValueError(
            "in a world with random transitions a click would sometimes write another word: use "
            "WordMDP(), or slip=0"
        )
    return world
