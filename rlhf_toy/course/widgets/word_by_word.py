"""Word by word: click a response together, and see what policy, rewards and MDP make of it (L4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ipywidgets
import numpy as np
import torch
from gymnasium import Env
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.course.widgets.parts import InteractiveCell, picture, png, say, words
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.exact import n_states
from rlhf_toy.models import PolicyModel, RewardModel, check_fits
from rlhf_toy.plots import COLOURS

END = "<end>"
LIKELIEST = 3  # next words that the line of text names
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.16, "top": 0.9, "wspace": 0.22}

# Arithmetic


@dataclass(frozen=True)
class State:
    """One state of the token MDP, and what is known there; float64, nats and logits.

    Attributes:
        prompt: index of the prompt.
        tokens: ids written so far, the end token among them once it stands.
        is_over: whether the response is finished.
        index: the state's number, see `n_states`.
        logp: log π_ref of the tokens so far; log π_ref(y|x) once it is over.
        next_logps: [A] log π_ref of every next token; None once it is over.
        true_rewards: what the response would be worth if it ended after 0, 1, 2 … of its words.
        learned_rewards: the same by the reward model; None without one.
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
    reference: PolicyModel,
    prompt: int,
    tokens: tuple[int, ...],
    reward_model: RewardModel | None = None,
) -> State:
    """The state after some tokens.

    Args:
        world: a deterministic world with an end token.
        reference: π_ref.
        prompt: index of the prompt.
        tokens: ids so far, at most T; nothing after an end token.
        reward_model: r_φ, if there is one.
    """
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
        logps = logits[0].double().log_softmax(-1).cpu()  # [T, A]; row t is for the state s_t
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
        row[length : length + 1] = world.end_token  # nothing where the response is full
    return beginnings


# Words


def token_names(world: TextWorld) -> list[str]:
    """What the actions are called, in their order."""
    return [*world.words, END]


def written_words(world: TextWorld, state: State) -> str:
    """The response as a text, as the world renders it."""
    names = token_names(world)
    said = [names[token] for token in state.tokens]
    if not state.is_over:
        said.append("…")
    return f"{world.prompts[state.prompt]}: {' '.join(said)}"


def state_words(world: TextWorld, state: State) -> str:
    """The state as the MDP sees it."""
    pads = (world.pad_token,) * (world.max_length - len(state.tokens))
    ids = ", ".join(map(str, (*state.tokens, *pads)))
    if state.is_over:
        where = f"over: state {state.index:,}, where every response ends. No step is left"
    else:
        left = world.max_length - len(state.tokens)
        steps = "step" if left == 1 else "steps"
        where = (
            f"state {state.index:,} of 0 … {n_states(world) - 1:,}. Not over, {left} {steps} left"
        )
    return (
        f"As the MDP sees it: prompt {state.prompt}, tokens ({ids}), {world.pad_token} for a free "
        f"place; {where}."
    )


def value_words(world: TextWorld, state: State) -> str:
    """Rewards and log-probabilities in numbers."""
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
    """A probability as a percentage, or as one in so many where that would be 0.0 %."""
    if logp < math.log(0.001):
        return f"1 in {math.exp(-logp):,.0f}" if logp > -30 else "next to 0"
    return f"{math.exp(logp):.1%}"


# Drawing


def draw_state(figure: Figure, world: TextWorld, state: State) -> None:
    """π_ref of every next word, and the rewards of the response's beginnings.

    Args:
        figure: an empty figure.
        world: whose words these are.
        state: what is drawn.
    """
    # Margins by hand: to work them out takes longer than all the rest of the drawing.
    figure.set_layout_engine("none")
    left, right = figure.subplots(1, 2, gridspec_kw=MARGINS)
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
        # The end token is no word: it looks otherwise.
        bars = axes.barh(rows, shares, 0.75, color=COLOURS[0])
        bars[world.end_token].set(facecolor="0.45", hatch="//", edgecolor="w")
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
    lines = [("true reward", state.true_rewards, "o-", COLOURS[2])]
    if state.learned_rewards is not None:
        lines.append(("learned reward", state.learned_rewards, "s--", COLOURS[1]))
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
    # The same height for most responses, so that a new word moves the curve and not the axis.
    axes.set_ylim(min(low - 0.4, -2.5), max(high + 0.9, 2.9))
    axes.set_xlabel("words so far")
    axes.set_ylabel("logits")
    axes.set_title("reward, if it ended after this word", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, ncols=3)


# The widget


class WordByWord(InteractiveCell):
    """Buttons for the words of a response, and what the course knows about each state on its path.

    The words stay when the prompt changes, so that the same response can be read under another.

    Args:
        world: a deterministic world with an end token, such as `WordMDP()`; wrappers are allowed.
        reference: π_ref.
        reward_model: r_φ, if there is one already.
        prompt: text of the prompt to start with; the world's first by default.
        start: words that are written already, separated by blanks.

    Attributes:
        state: what is shown, as a `State`.

    Raises:
        TypeError, ValueError: arguments of another kind, a world that slips or has no end token, a
            model of another world, an unknown prompt or word.
    """

    def __init__(
        self,
        world: Env,
        reference: PolicyModel,
        reward_model: RewardModel | None = None,
        prompt: str | None = None,
        start: str = "",
    ) -> None:
        self._world = _check_world(unwrap(world))
        _check_model("reference", reference, PolicyModel, self._world)
        if reward_model is not None:
            _check_model("reward_model", reward_model, RewardModel, self._world)
        self._reference, self._reward_model = reference, reward_model
        prompt_index = 0 if prompt is None else self._world.prompt_index(prompt)
        self._tokens = _check_start(self._world, start)
        self._make_widgets(prompt_index)
        self.state = self._look()
        first = self._drawing()
        self.chart = picture(first)
        self.written, self.line, self.mdp = words(), words(), words()
        rows = [self.prompt, self.vocabulary, self.written, self.chart, self.line, self.mdp]
        super().__init__(ipywidgets.VBox(rows), first)
        self._speak()

    def _make_widgets(self, prompt: int) -> None:
        self.prompt = ipywidgets.Dropdown(
            options=list(self._world.prompts),
            index=prompt,
            description="prompt",
            style={"description_width": "initial"},
            layout={"width": "16em", "max_width": "98%"},
        )
        self.prompt.observe(lambda _: self._show(), "value")
        self.undo, self.reset = _button("↶ undo"), _button("reset")
        self.undo.on_click(lambda _: self._write(self._tokens[:-1]))
        self.reset.on_click(lambda _: self._write(()))
        self.buttons = {name: _button(name) for name in token_names(self._world)}
        for token, button in enumerate(self.buttons.values()):
            button.on_click(lambda _, token=token: self._append(token))
        row = ipywidgets.Layout(flex_flow="row wrap")
        # The end disables the words, its own button too: the keyboard's next stop is then undo.
        buttons = [*self.buttons.values(), self.undo, self.reset]
        self.vocabulary = ipywidgets.HBox(buttons, layout=row)

    def _append(self, token: int) -> None:
        # A press may come in late, when its button is disabled already.
        if not self.state.is_over:
            self._write((*self._tokens, token))

    def _write(self, tokens: tuple[int, ...]) -> None:
        self._tokens = tokens
        self._show()

    def _show(self) -> None:
        """Looks at the state and shows it. A button would swallow an error: it is said instead."""
        try:
            self.state = self._look()
            self.chart.value = self._drawing()
            self._speak()
        except Exception as error:
            text = f"{type(error).__name__}: {error}. Run this cell again, to start afresh."
            say(self.line, text, wrong=True)

    def _look(self) -> State:
        return look_at(
            self._world, self._reference, self.prompt.index, self._tokens, self._reward_model
        )

    def _drawing(self) -> bytes:
        return png(lambda figure: draw_state(figure, self._world, self.state), (9.0, 3.5))

    def _speak(self) -> None:
        """Sets the texts and the buttons to the state."""
        say(self.written, written_words(self._world, self.state))
        say(self.line, value_words(self._world, self.state))
        say(self.mdp, state_words(self._world, self.state))
        for button in self.buttons.values():
            button.disabled = self.state.is_over
        self.undo.disabled = self.reset.disabled = not self._tokens


def _button(description: str) -> ipywidgets.Button:
    return ipywidgets.Button(description=description, layout={"width": "5.5em"})


def _check_world(world: TextWorld) -> TextWorld:
    if world.end_token is None:
        raise ValueError(
            f"{type(world).__name__} has no end token, so its responses are not written word by "
            "word: take WordMDP()"
        )
    if not world.is_deterministic:
        raise ValueError(
            "in a world with stochastic transitions a click would write another word at times: "
            "take WordMDP(), or slip=0"
        )
    return world


def _check_model(name: str, model: object, kind: type, world: TextWorld) -> None:
    if not isinstance(model, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {model!r}")
    check_fits(model, world)


def _check_start(world: TextWorld, start: str) -> tuple[int, ...]:
    """The tokens of the words to start with."""
    if not isinstance(start, str):
        raise TypeError(f"start must be words as a text, such as 'not very', got {start!r}")
    response = world.encode(start)
    return tuple(token for token in response.tolist() if token < world.n_words)
