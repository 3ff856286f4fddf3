"""You are the annotator: compare reviews, and see which taste your answers reveal (L8, L9).

The answers lie in two files. `NAME.jsonl` has the preferences, in the layout of
`PreferenceDataset.save`. That layout has no ties, so they lie beside it in `NAME.ties.jsonl`: the
columns `prompt`, `first`, `second`, and `after`, the number of preferences that had been given
before, which keeps the order of all answers. A skipped pair is no answer and is not saved.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from gymnasium import Env
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.annotators import Annotator, BradleyTerryAnnotator
from rlhf_toy.course.widgets.parts import InteractiveCell, picture, png, say, words
from rlhf_toy.course.widgets.taste import (
    MARGINS,
    Examination,
    Taste,
    draw_taste,
    feature_names,
    fit_taste,
    response_features,
    taste_words,
)
from rlhf_toy.envs import WordMDP, unwrap
from rlhf_toy.files import atomic_file
from rlhf_toy.models import PolicyModel, check_fits, sample
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import make_generator

LEFT, TIE, RIGHT = 1.0, 0.5, 0.0  # verdicts: how much of the win the left response gets
ENOUGH = 20  # preferences; with fewer there is nothing to train on
POOL_SIZE = 500  # pairs that are drawn ahead, among which the least sure one is looked for
CURVE_POINTS = 25  # points of the chart's curve for answers that were read from a file
AT_RANDOM, LEAST_SURE = "at random", "where the fit is least sure"
N_EXAMPLE = 160  # simulated answers behind the figure for readers without a kernel


# The answers and their files


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt, as texts."""

    prompt: str
    left: str
    right: str

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        """The same for the pair with its sides changed."""
        return self.prompt, frozenset((self.left, self.right))


@dataclass(frozen=True)
class Answer:
    """A verdict on a pair, `LEFT`, `RIGHT` or `TIE`, and its line in the file."""

    pair: Pair
    verdict: float
    line: bytes


class AnswerFiles:
    """Answers in the order in which they were given, always as the two files have them.

    Each change writes one file, whole or not at all. Lines that were there stay as they are. If the
    files were changed elsewhere, they are read again first, so that nothing is overwritten.

    Args:
        path: the file of the preferences; it need not exist yet.
        world: whose prompts and words the answers use.

    Raises:
        OSError, ValueError: files that cannot be read, or that are no answers in this world.
    """

    def __init__(self, path: str | os.PathLike, world: WordMDP) -> None:
        self.path = Path(path).absolute()
        self.ties_path = self.path.with_name(f"{self.path.stem}.ties{self.path.suffix}")
        self._world = world
        self._known: tuple[bytes, bytes] | None = None
        self.answers: list[Answer] = []
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {str(self.path.parent)!r}")
        self.refresh()

    def refresh(self) -> bool:
        """Reads the files again if they are not as this object left them; True if so."""
        found = _read(self.path), _read(self.ties_path)
        if found == self._known:
            return False
        # Ties have "after" their place; a preference is one more answer than those before it.
        placed = [(k + 1, answer) for k, answer in enumerate(self._preferences(found[0]))]
        placed += self._ties(found[1])
        self.answers = [a for _, a in sorted(placed, key=lambda p: (p[0], p[1].verdict == TIE))]
        self._known = found
        return True

    def add(self, pair: Pair, verdict: float) -> None:
        """Appends an answer, on disk first."""
        if verdict == TIE:
            row = {"prompt": pair.prompt, "first": pair.left, "second": pair.right}
            row["after"] = sum(answer.verdict != TIE for answer in self.answers)
        else:
            chosen = (pair.left, pair.right) if verdict == LEFT else (pair.right, pair.left)
            row = dict(zip(("prompt", "chosen", "rejected"), (pair.prompt, *chosen), strict=True))
        line = json.dumps(row, ensure_ascii=False).encode()
        self._write([*self.answers, Answer(pair, verdict, line)])

    def undo(self) -> Answer:
        """Takes the last answer away, on disk first, and returns it."""
        last = self.answers[-1]
        self._write(self.answers[:-1])
        return last

    def _write(self, answers: list[Answer]) -> None:
        """Makes the files those of `answers`. Only one of them changes."""
        wanted = [
            b"".join(a.line + b"\n" for a in answers if (a.verdict == TIE) == is_tie)
            for is_tie in (False, True)
        ]
        paths = (self.path, self.ties_path)
        for path, old, new in zip(paths, self._known, wanted, strict=True):
            if new == old:
                continue
            if new:
                with atomic_file(path) as file:
                    file.write(new)
            else:
                path.unlink()  # an empty file would be no dataset
        self.answers, self._known = answers, (wanted[0], wanted[1])

    def _preferences(self, data: bytes) -> list[Answer]:
        if not data:
            return []
        rows = PreferenceDataset.load(self.path, self._world).rows()
        return [
            Answer(Pair(row["prompt"], row["chosen"], row["rejected"]), LEFT, line)
            for row, line in zip(rows, _lines(data), strict=True)
        ]

    def _ties(self, data: bytes) -> list[tuple[int, Answer]]:
        """Each tie after the number of preferences that came before it."""
        ties = []
        for number, line in enumerate(_lines(data), start=1):
            try:
                row = json.loads(line)
                pair = Pair(row["prompt"], row["first"], row["second"])
                self._world.prompt_index(pair.prompt)
                self._world.encode(pair.left), self._world.encode(pair.right)
                ties.append((int(row["after"]), Answer(pair, TIE, line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{self.ties_path}:{number}: no tie: {error}") from None
        return ties


def _read(path: Path) -> bytes:
    """The file's bytes; none if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n") if data else []


# Which pair to ask about


def least_sure(taste: Taste, differences: np.ndarray) -> int:
    """The pair for whose answer the fit's 95 % interval is widest.

    That is not where the fit says 50 %: a pair known to be a toss-up teaches little.

    Args:
        taste: the fit.
        differences: [N, F] features of the left less those of the right, N at least 1.
    """
    _, low, high = taste.predict(differences)
    return int(np.argmax(high - low))


def sample_pairs(
    world: WordMDP, n: int, generator: torch.Generator, policy: PolicyModel | None = None
) -> list[Pair]:
    """At most n pairs of different reviews of the same prompts.

    Args:
        world: where the prompts come from.
        n: how many are drawn; those with the same review twice are left out.
        generator: the source of chance, on the policy's device.
        policy: writes the reviews; None for the world's corpus of fluent ones.
    """
    prompts = world.sample_prompts(n, generator)
    if policy is None:
        reviews, chances = world.fluent_reviews
        drawn = torch.multinomial(chances[prompts], 2, generator=generator)
        sides = reviews[drawn[:, 0]], reviews[drawn[:, 1]]
    else:
        both = sample(policy, world, prompts.repeat(2), generator).responses
        sides = both[:n].cpu(), both[n:].cpu()
    texts = [[world.decode(review) for review in side] for side in sides]
    names = [world.prompts[prompt] for prompt in prompts.tolist()]
    pairs = (Pair(*parts) for parts in zip(names, *texts, strict=True))
    return [pair for pair in pairs if pair.left != pair.right]


def pair_differences(world: WordMDP, pairs: Iterable[Pair]) -> np.ndarray:
    """Features of the left less those of the right: [N, F]."""
    pairs = list(pairs)
    if not pairs:
        return np.zeros((0, len(feature_names(world))))
    texts = [pair.left for pair in pairs] + [pair.right for pair in pairs]
    features = response_features(world, torch.stack([world.encode(text) for text in texts]))
    return features[: len(pairs)] - features[len(pairs) :]


# The cell


class HumanAnnotator(InteractiveCell):
    """Two reviews side by side, and the taste that your answers reveal.

    A tie counts in the fit as half a win each way; `preferences` has none. Whoever makes the cell
    again with the same file goes on with the answers in it.

    Args:
        world: the word world, bare or in Gymnasium's wrappers.
        policy: writes the reviews that are compared; None for the corpus of fluent reviews.
        pairs: (prompt, left, right) as texts, to be asked about instead.
        path: where the answers are saved, as JSON Lines.
        annotator: whose answers the fit is to predict; None for `BradleyTerryAnnotator()`.
        seed: of the order of the pairs.

    Attributes:
        answers: all answers so far, in order.
        taste: the fit to them.

    Raises:
        TypeError, ValueError: a world without reviews, a policy of another world, pairs that this
            world does not have, or both a policy and pairs. A file that cannot be used is no error:
            the cell says so and leaves it as it is.
    """

    def __init__(
        self,
        world: Env,
        policy: PolicyModel | None = None,
        pairs: Iterable[tuple[str, str, str]] | None = None,
        path: str | os.PathLike = "my_preferences.jsonl",
        annotator: Annotator | None = None,
        seed: int = 0,
    ) -> None:
        world = unwrap(world)
        if not isinstance(world, WordMDP):
            raise TypeError(f"expected the word world, WordMDP(), got {world!r}")
        if policy is not None and pairs is not None:
            raise ValueError("give a policy or pairs, not both: one of them says what is compared")
        if policy is not None:
            if not isinstance(policy, PolicyModel):
                raise TypeError(f"policy must be a PolicyModel, got {policy!r}")
            check_fits(policy, world)
        annotator = BradleyTerryAnnotator() if annotator is None else annotator
        if not hasattr(annotator, "preference_probability"):
            raise TypeError(f"annotator must be such as BradleyTerryAnnotator(), got {annotator!r}")
        self.path = Path(path)
        self._world, self._policy = world, policy
        self._generator = make_generator(seed, "cpu" if policy is None else policy.device)
        self._examination = Examination(world, annotator)
        self._is_drawn = pairs is None
        self._set_pool(self._draw() if pairs is None else _check_pairs(world, pairs))
        if pairs is not None:
            order = torch.randperm(len(self._pool), generator=self._generator).tolist()
            self._set_pool([self._pool[i] for i in order])
        self._skipped: list[tuple[int, Pair]] = []  # with the number of answers before
        self.pair: Pair | None = None  # what is being asked about
        self._make_widgets()
        self._open_files()
        rows = [self.question, self.cards, self.tools, self.news]
        rows += [self.chart, self.line, self.show_annotator]
        super().__init__(ipywidgets.VBox(rows), _example(world, annotator, self._examination))

    # What the notebook asks for

    @property
    def answers(self) -> list[Answer]:
        return [] if self._files is None else list(self._files.answers)

    @property
    def is_enough(self) -> bool:
        """Whether there are enough preferences to train on."""
        return self._n_preferences >= ENOUGH

    @property
    def preferences(self) -> PreferenceDataset:
        """Your preferences so far, without the ties, on the CPU.

        Raises:
            ValueError: there are fewer than `ENOUGH`.
        """
        if not self.is_enough:
            raise ValueError(
                f"{self._n_preferences} preferences so far, and training needs at least {ENOUGH}: "
                "give more answers in the cell of HumanAnnotator, then run this cell again"
            )
        given = [answer for answer in self.answers if answer.verdict != TIE]
        sides = [
            (a.pair.left, a.pair.right) if a.verdict == LEFT else (a.pair.right, a.pair.left)
            for a in given
        ]
        return PreferenceDataset(
            self._world,
            torch.tensor([self._world.prompt_index(answer.pair.prompt) for answer in given]),
            torch.stack([self._world.encode(chosen) for chosen, _ in sides]),
            torch.stack([self._world.encode(rejected) for _, rejected in sides]),
        )

    def rewards(self, responses: Tensor) -> Tensor:
        """What the fit gives reviews [B, T] to any prompt: [B] in logits, float64."""
        scores = response_features(self._world, responses) @ self.taste.weights
        return torch.as_tensor(scores, device=responses.device)

    @property
    def _n_preferences(self) -> int:
        return sum(answer.verdict != TIE for answer in self.answers)

    # Widgets

    def _make_widgets(self) -> None:
        self.question = ipywidgets.HTML()
        self.left_card, self.right_card = ipywidgets.HTML(), ipywidgets.HTML()
        self.left = _button("prefer left", "primary", lambda: self._answer(LEFT))
        self.right = _button("prefer right", "primary", lambda: self._answer(RIGHT))
        self.tie = _button("tie", "", lambda: self._answer(TIE))
        self.skip = _button("skip", "", self._skip)
        self.undo = _button("undo", "", self._undo)
        self.next_pair = ipywidgets.Dropdown(
            options=[AT_RANDOM, LEAST_SURE],
            description="next pair",
            style={"description_width": "initial"},
            layout={"width": "20em", "max_width": "98%"},
        )
        self.next_pair.observe(lambda _: self._change_order(), "value")
        self.show_annotator = ipywidgets.Checkbox(
            description="show the simulated annotator's taste", indent=False
        )
        self.show_annotator.observe(lambda _: self._draw_chart(), "value")
        sides = [
            ipywidgets.VBox([card, button], layout={"flex": "1 1 18em", "align_items": "stretch"})
            for card, button in ((self.left_card, self.left), (self.right_card, self.right))
        ]
        row = ipywidgets.Layout(flex_flow="row wrap", max_width="56em")
        self.cards = ipywidgets.HBox(sides, layout=row)
        for button in (self.left, self.right):
            button.layout.width = "auto"
        self.tools = ipywidgets.HBox([self.tie, self.skip, self.undo, self.next_pair], layout=row)
        self.news, self.line = words(), words()
        self.chart = picture(b"")

    def _open_files(self) -> None:
        """Reads the answers that are there; without usable files nothing can be answered."""
        self._files: AnswerFiles | None = None
        try:
            self._files = AnswerFiles(self.path, self._world)
        except (OSError, ValueError) as error:
            self._refit()
            self._ask(None)
            self.next_pair.disabled = True
            text = f"answers cannot be kept in {self.path}: {_reason(error)}. Nothing was changed. "
            text += "Move the file away or give another path, and run this cell again."
            say(self.news, text, wrong=True)
            return
        self._refit()
        self._ask(self._choose())
        n, kept = len(self.answers), f"Every answer is saved at once in {self.path}."
        say(self.news, f"{kept} {n} answers are in it: go on." if n else kept)

    # What the buttons do

    def _answer(self, verdict: float) -> None:
        pair = self.pair
        if pair is None:
            return
        difference = pair_differences(self._world, [pair])
        expected, low, high = self.taste.predict(difference)[:, 0]
        if not self._change(lambda: self._files.add(pair, verdict), "does not count"):
            return
        self._add_to_fit(difference)
        self._ask(self._choose())
        if verdict == TIE:
            what = "a tie; the fit had given the left"
        else:
            what = f"the {'left' if verdict == LEFT else 'right'}; the fit had given it"
        if verdict == RIGHT:
            expected, low, high = 1 - expected, 1 - high, 1 - low
        say(self.news, f"Saved: {what} {expected:.0%} ({low:.0%} to {high:.0%}). {self._counts()}")

    def _skip(self) -> None:
        if self.pair is None:
            return
        self._skipped.append((len(self.answers), self.pair))
        self._ask(self._choose())
        say(self.news, f"Skipped, which is no answer. {self._counts()}")

    def _undo(self) -> None:
        if self.undo.disabled:
            return
        n = len(self.answers)
        if self._skipped and self._skipped[-1][0] == n:
            self._ask(self._skipped.pop()[1])
            say(self.news, f"Here is the skipped pair again. {self._counts()}")
            return
        try:
            changed = self._files.refresh()
        except (OSError, ValueError) as error:
            self._say_failed(error, "was not taken back")
            return
        if changed:  # the last answer may be another than the one that was meant
            self._refit()
            self._ask(self.pair)
            say(self.news, f"The file was changed elsewhere; read again. {self._counts()}")
            return
        taken: list[Answer] = []
        if self._change(lambda: taken.append(self._files.undo()), "was not taken back"):
            self._refit_last()
            self._ask(taken[0].pair)
            say(self.news, f"Taken back, in the file too. {self._counts()}")

    def _change(self, change: Callable[[], object], or_else: str) -> bool:
        """Changes the files as they are now; where that fails, says why and returns False."""
        try:
            if self._files.refresh():
                self._refit()
            change()
        except (OSError, ValueError) as error:
            self._ask(self.pair)
            self._say_failed(error, or_else)
            return False
        return True

    def _say_failed(self, error: Exception, or_else: str) -> None:
        text = f"the answer {or_else}, for {self.path} cannot be used: {_reason(error)}. What was "
        say(self.news, text + "saved is left as it is. Put that right and press again.", wrong=True)

    def _change_order(self) -> None:
        how = self.next_pair.value
        say(self.news, f"From the next pair on: {how}. {self._counts()}")

    def _counts(self) -> str:
        n, ties = len(self.answers), len(self.answers) - self._n_preferences
        text = f"{n} {'answer' if n == 1 else 'answers'}"
        text += f", {ties} of them {'a tie' if ties == 1 else 'ties'}." if ties else "."
        if not self.is_enough:
            text += f" {ENOUGH - self._n_preferences} preferences more to train on them."
        return text

    # Which pair

    def _draw(self) -> list[Pair]:
        return sample_pairs(self._world, POOL_SIZE, self._generator, self._policy)

    def _set_pool(self, pairs: list[Pair]) -> None:
        self._pool, self._pool_differences = pairs, pair_differences(self._world, pairs)

    def _choose(self) -> Pair | None:
        """The next pair that was neither answered nor skipped; None if there is none."""
        done = {answer.pair.key for answer in self.answers}
        done |= {pair.key for _, pair in self._skipped}
        rows = [i for i, pair in enumerate(self._pool) if pair.key not in done]
        if not rows and self._is_drawn:
            self._set_pool(self._draw())
            rows = [i for i, pair in enumerate(self._pool) if pair.key not in done]
        if not rows:
            return None
        if self.next_pair.value == AT_RANDOM:
            return self._pool[rows[0]]
        return self._pool[rows[least_sure(self.taste, self._pool_differences[rows])]]

    def _ask(self, pair: Pair | None) -> None:
        """Shows a pair, and the chart as it is now."""
        self.pair = pair
        texts = ("", "") if pair is None else (pair.left, pair.right)
        self.left_card.value, self.right_card.value = map(_card, ("left", "right"), texts)
        if pair is not None:
            asked = f"<b>{html.escape(pair.prompt)}</b>: which review is better?"
        elif self._files is None:
            asked = "No pair to show."
        else:
            asked = "Every pair is answered or skipped. Thank you!"
        self.question.value = f'<div style="font-size:120%">{asked}</div>'
        for button in (self.left, self.right, self.tie, self.skip):
            button.disabled = pair is None
        self.undo.disabled = not self.answers and not self._skipped
        self._draw_chart()

    # The fit

    def _refit(self) -> None:
        """Fits all answers, and a part of the ways to them for the curve."""
        self._differences = pair_differences(self._world, [a.pair for a in self.answers])
        n = len(self.answers)
        self._shares = {}
        for k in np.unique(np.linspace(0, n, min(n, CURVE_POINTS) + 1).astype(int)).tolist():
            self._fit_first(k)

    def _add_to_fit(self, difference: np.ndarray) -> None:
        self._differences = np.concatenate([self._differences, difference])
        self._fit_first(len(self.answers))

    def _refit_last(self) -> None:
        n = len(self.answers)
        self._differences = self._differences[:n]
        self._shares = {k: share for k, share in self._shares.items() if k < n}
        self._fit_first(n)

    def _fit_first(self, n: int) -> None:
        verdicts = [answer.verdict for answer in self.answers[:n]]
        self.taste = fit_taste(self._differences[:n], verdicts)
        self._shares[n] = 0.5 if n == 0 else self._examination.share(self.taste)

    def _draw_chart(self) -> None:
        shown = self.show_annotator.value
        self.chart.value = _chart(self.taste, self._shares, self._examination, shown)
        share = self._shares[len(self.answers)]
        say(self.line, taste_words(self.taste, share, self._examination))


def _chart(
    taste: Taste, shares: Mapping[int, float], examination: Examination, show_annotator: bool
) -> bytes:
    return png(
        lambda figure: draw_taste(figure, taste, shares, examination, show_annotator), (9.0, 3.8)
    )


def _example(world: WordMDP, annotator: Annotator, examination: Examination) -> bytes:
    """The figure for readers without a kernel: what a simulated annotator's answers reveal."""
    generator = make_generator(1)
    pairs = sample_pairs(world, N_EXAMPLE, generator)  # the corpus gives no review twice
    prompts = torch.tensor([world.prompt_index(pair.prompt) for pair in pairs])
    rewards = [
        world.response_rewards(prompts, torch.stack([world.encode(text) for text in texts]))
        for texts in zip(*((pair.left, pair.right) for pair in pairs), strict=True)
    ]
    verdicts = annotator.prefer(*rewards, generator).double().numpy()
    differences = pair_differences(world, pairs)
    shares = {0: 0.5}
    for n in range(8, N_EXAMPLE + 1, 8):
        taste = fit_taste(differences[:n], verdicts[:n])
        shares[n] = examination.share(taste)

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        top, below = figure.subfigures(2, 1, height_ratios=(1, 3.6))
        axes = top.subplots(1, 2, gridspec_kw=MARGINS | {"left": 0.015, "top": 0.7, "bottom": 0.2})
        for ax, side, text in zip(axes, ("left", "right"), _texts(pairs[0]), strict=True):
            ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"prefer {side}", fontsize=9)
            for spine in ax.spines.values():
                spine.set_visible(True)
        top.suptitle(
            f"{pairs[0].prompt}: which review is better?  "
            f"(Below: after {N_EXAMPLE} answers of a simulated annotator)",
            fontsize=11,
        )
        draw_taste(below, taste, shares, examination, show_annotator=True)

    return png(draw, (9.0, 5.2))


def _texts(pair: Pair) -> tuple[str, str]:
    return tuple(text or "(says nothing)" for text in (pair.left, pair.right))


def _card(side: str, text: str) -> str:
    shown = html.escape(text) or "(says nothing)"
    style = "border:1px solid rgba(128,128,128,.7);border-radius:4px;padding:0.7em;"
    style += "text-align:center;font-size:130%;line-height:1.4"
    return f'<div role="group" aria-label="{side} review" style="{style}">{shown}</div>'


def _button(description: str, style: str, press: Callable[[], None]) -> ipywidgets.Button:
    button = ipywidgets.Button(
        description=description, button_style=style, layout={"width": "6.5em"}
    )
    button.on_click(lambda _: press())
    return button


def _check_pairs(world: WordMDP, pairs: Iterable[tuple[str, str, str]]) -> list[Pair]:
    """The given pairs; raises a ValueError for what the world does not have."""
    checked = []
    for k, row in enumerate(pairs):
        if not isinstance(row, tuple | list) or len(row) != 3 or not all(map(_is_text, row)):
            raise TypeError(f"pairs[{k}] must be (prompt, left, right) as texts, got {row!r}")
        try:
            world.prompt_index(row[0])
            texts = [world.decode(world.encode(text)) for text in row[1:]]
        except ValueError as error:
            raise ValueError(f"pairs[{k}]: {error}") from None
        if texts[0] == texts[1]:
            raise ValueError(f"pairs[{k}] has the same response twice: {texts[0]!r}")
        checked.append(Pair(row[0], *texts))
    if not checked:
        raise ValueError("pairs is empty: give at least one (prompt, left, right)")
    return checked


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _reason(error: Exception) -> str:
    """What an error says, without its number."""
    return getattr(error, "strerror", None) or str(error)
