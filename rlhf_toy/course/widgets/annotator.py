"""You are the annotator: compare reviews, and see which taste your answers reveal.

`annotator_files.py` saves the answers, `annotator_pairs.py` chooses the pairs, and `taste.py` fits
the answers.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from gymnasium import Env
from matplotlib.figure import Figure
from torch import Tensor

from rlhf_toy.annotators import Annotator, BradleyTerryAnnotator, check_annotator
from rlhf_toy.checks import check_type
from rlhf_toy.course.widgets.annotator_files import LEFT, RIGHT, TIE, Answer, AnswerFiles, Pair
from rlhf_toy.course.widgets.annotator_pairs import PairPool, pair_differences, sample_pairs
from rlhf_toy.course.widgets.parts import (
    InteractiveCell,
    button,
    in_a_row,
    labelled,
    panels,
    picture,
    png,
    say,
    words,
)
from rlhf_toy.course.widgets.taste import (
    MARGINS,
    Examination,
    draw_taste,
    fit_taste,
    response_features,
    taste_words,
)
from rlhf_toy.envs import WordMDP, unwrap
from rlhf_toy.models import Policy, check_fits
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import make_generator

ENOUGH = 20  # preferences; fewer are too few to train on
CURVE_POINTS = 25  # points of the chart's curve for answers that were read from a file
AT_RANDOM, LEAST_SURE = "at random", "where the fit is least sure"
N_EXAMPLE = 160  # simulated answers behind the figure for readers without a kernel
EMPTY = "(empty review)"


class HumanAnnotator(InteractiveCell):
    """Two reviews side by side, and the taste that your answers reveal.

    In the fit a tie counts as half a win for each side; `preferences` leaves ties out. A new cell
    with the same file continues with the answers in it.

    Args:
        world: the word world, bare or in Gymnasium's wrappers.
        policy: writes the reviews; None for the corpus of fluent reviews.
        pairs: (prompt, left, right) as texts, to be asked about instead.
        path: where the answers are saved, as JSON Lines; ties are in a second file beside it.
        annotator: the simulated annotator whose answers the fit should predict; None for
            `BradleyTerryAnnotator()`.
        seed: of the order of the pairs.

    Attributes:
        answers: all answers so far, in order.
        taste: the fit to them.
        pair: what is being asked about; None if there is nothing left to ask.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a policy of another world, pairs that this world does not have, both a policy
            and pairs, or a bad seed. A file that cannot be used raises nothing: the cell reports it
            and leaves the file as it is.
    """

    def __init__(
        self,
        world: Env,
        policy: Policy | None = None,
        pairs: Iterable[tuple[str, str, str]] | None = None,
        path: str | os.PathLike = "my_preferences.jsonl",
        annotator: Annotator | None = None,
        seed: int = 0,
    ) -> None:
        world = unwrap(world)
        check_type("world", world, WordMDP, "the word world, WordMDP()")
        if policy is not None and pairs is not None:
            raise ValueError("give a policy or pairs, not both: only one can provide the reviews")
        if policy is not None:
            check_type("policy", policy, Policy, "a policy such as a PolicyModel")
            check_fits(policy, world)
        annotator = BradleyTerryAnnotator() if annotator is None else annotator
        check_annotator(annotator)
        check_type("path", path, str | os.PathLike, "a file name")
        self.path = Path(path)
        self._world = world
        self._examination = Examination(world, annotator)
        generator = make_generator(seed, "cpu" if policy is None else policy.device)
        self._pool = PairPool(world, generator, policy, pairs)
        self._skipped: list[tuple[int, Pair]] = []  # each with the number of answers before it
        self.pair: Pair | None = None
        self._make_widgets()
        self._open_files()
        rows = [self.question, self.cards, self.tools, self.news]
        rows += [self.chart, self.line, self.show_annotator]
        super().__init__(ipywidgets.VBox(rows), _example(world, annotator, self._examination))

    # What the notebooks use

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
        return self._files.dataset()

    def rewards(self, responses: Tensor) -> Tensor:
        """Return the fit's rewards of reviews [B, T], for any prompt: [B] in logits, float64."""
        scores = response_features(self._world, responses) @ self.taste.weights
        return torch.as_tensor(scores, device=responses.device)

    @property
    def _n_preferences(self) -> int:
        return 0 if self._files is None else len(self._files.preferred())

    # Widgets

    def _make_widgets(self) -> None:
        self.question = ipywidgets.HTML()
        self.left_card, self.right_card = ipywidgets.HTML(), ipywidgets.HTML()
        self.left = button("prefer left", lambda: self._answer(LEFT), "auto", "primary")
        self.right = button("prefer right", lambda: self._answer(RIGHT), "auto", "primary")
        self.tie = button("tie", lambda: self._answer(TIE), "6.5em")
        self.skip = button("skip", self._skip, "6.5em")
        self.undo = button("undo", self._undo, "6.5em")
        self.next_pair = labelled(
            ipywidgets.Dropdown, "next pair", "20em", options=[AT_RANDOM, LEAST_SURE]
        )
        self.next_pair.observe(lambda _: self._change_order(), "value")
        self.show_annotator = ipywidgets.Checkbox(
            description="show the simulated annotator's taste", indent=False
        )
        self.show_annotator.observe(lambda _: self._draw_chart(), "value")
        sides = [
            ipywidgets.VBox(side, layout={"flex": "1 1 18em", "align_items": "stretch"})
            for side in ([self.left_card, self.left], [self.right_card, self.right])
        ]
        self.cards = in_a_row(sides, max_width="56em")
        tools = [self.tie, self.skip, self.undo, self.next_pair]
        self.tools = in_a_row(tools, max_width="56em")
        self.news, self.line = words(), words()
        self.chart = picture(b"")

    def _open_files(self) -> None:
        """Read the saved answers; without usable files no question is asked."""
        self._files: AnswerFiles | None = None
        try:
            self._files = AnswerFiles(self.path, self._world)
        except (OSError, ValueError) as error:
            self._refit()
            self._ask(None)
            self.next_pair.disabled = True
            text = (
                f"answers cannot be saved in {self.path}: {_reason(error)}. Nothing was changed. "
            )
            text += "Move the file or give another path, and run this cell again."
            say(self.news, text, wrong=True)
            return
        self._refit()
        self._ask(self._choose())
        n, saved = len(self.answers), f"Every answer is saved at once in {self.path}."
        say(self.news, f"{saved} {n} answers are in it; you can continue." if n else saved)

    # What the buttons do

    def _answer(self, verdict: float) -> None:
        pair = self.pair
        if pair is None:
            return
        difference = pair_differences(self._world, [pair])
        p, low, high = self.taste.predict(difference)[:, 0]
        if not self._change(lambda: self._files.add(pair, verdict), "does not count"):
            return
        self._differences = np.concatenate([self._differences, difference])
        self._fit_first(len(self.answers))
        self._ask(self._choose())
        if verdict == RIGHT:
            p, low, high = 1 - p, 1 - high, 1 - low
        name = {LEFT: "left", RIGHT: "right", TIE: "tie"}[verdict]
        side = "left" if verdict == TIE else name
        predicted = f"The fit gave {side} a chance of {p:.0%} ({low:.0%} to {high:.0%})."
        say(self.news, f"Saved: {name}. {predicted} {self._counts()}")

    def _skip(self) -> None:
        if self.pair is None:
            return
        self._skipped.append((len(self.answers), self.pair))
        self._ask(self._choose())
        say(self.news, f"Skipped; this does not count as an answer. {self._counts()}")

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
        if changed:  # the last answer may not be the one that the reader meant
            self._refit()
            self._ask(self.pair)
            say(
                self.news, f"The file was changed elsewhere, so it was read again. {self._counts()}"
            )
            return
        taken: list[Answer] = []
        if self._change(lambda: taken.append(self._files.undo()), "was not taken back"):
            n = len(self.answers)
            self._differences = self._differences[:n]
            self._shares = {k: share for k, share in self._shares.items() if k < n}
            self._fit_first(n)
            self._ask(taken[0].pair)
            say(self.news, f"Taken back, also in the file. {self._counts()}")

    def _change(self, change: Callable[[], object], or_else: str) -> bool:
        """Change the files as they are now; if that fails, say why and return False."""
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
        text = f"the answer {or_else} because {self.path} cannot be used: {_reason(error)}. What "
        say(self.news, text + "was saved is unchanged. Fix this and press again.", wrong=True)

    def _change_order(self) -> None:
        say(self.news, f"From the next pair on: {self.next_pair.value}. {self._counts()}")

    def _counts(self) -> str:
        n, ties = len(self.answers), len(self.answers) - self._n_preferences
        text = f"{n} {'answer' if n == 1 else 'answers'}"
        text += f", {ties} of them {'a tie' if ties == 1 else 'ties'}." if ties else "."
        if not self.is_enough:
            text += f" Training needs {ENOUGH - self._n_preferences} more preferences."
        return text

    # The question

    def _choose(self) -> Pair | None:
        """The next pair that was neither answered nor skipped; None if there is none."""
        done = {answer.pair.key for answer in self.answers}
        done |= {pair.key for _, pair in self._skipped}
        return self._pool.choose(done, self.taste if self.next_pair.value == LEAST_SURE else None)

    def _ask(self, pair: Pair | None) -> None:
        """Show a pair, and the chart as it is now."""
        self.pair = pair
        texts = ("", "") if pair is None else (pair.left, pair.right)
        self.left_card.value, self.right_card.value = map(_card, ("left", "right"), texts)
        if pair is not None:
            asked = f"<b>{html.escape(pair.prompt)}</b>: which review is better?"
        elif self._files is None:
            asked = "No pair to show."
        else:
            asked = "Every pair has been answered or skipped. Thank you!"
        self.question.value = f'<div style="font-size:120%">{asked}</div>'
        for one in (self.left, self.right, self.tie, self.skip):
            one.disabled = pair is None
        self.undo.disabled = not self.answers and not self._skipped
        self._draw_chart()

    # The fit

    def _refit(self) -> None:
        """Fit all answers, and for the curve some of the first ones."""
        self._differences = pair_differences(self._world, [a.pair for a in self.answers])
        n = len(self.answers)
        self._shares: dict[int, float] = {}
        for k in np.unique(np.linspace(0, n, min(n, CURVE_POINTS) + 1).astype(int)).tolist():
            self._fit_first(k)

    def _fit_first(self, n: int) -> None:
        """Fit the first n answers."""
        verdicts = [answer.verdict for answer in self.answers[:n]]
        self.taste = fit_taste(self._differences[:n], verdicts)
        self._shares[n] = 0.5 if n == 0 else self._examination.share(self.taste)

    def _draw_chart(self) -> None:
        taste, shares, examination = self.taste, self._shares, self._examination
        with_annotator = self.show_annotator.value
        self.chart.value = png(
            lambda figure: draw_taste(figure, taste, shares, examination, with_annotator),
            (9.0, 3.8),
        )
        say(self.line, taste_words(taste, shares[len(self.answers)], examination))


def _example(world: WordMDP, annotator: Annotator, examination: Examination) -> bytes:
    """The figure for readers without a kernel: what a simulated annotator's answers reveal."""
    generator = make_generator(1)
    pairs = sample_pairs(world, N_EXAMPLE, generator)  # the corpus never gives equal reviews
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
        axes = panels(top, 2, MARGINS | {"left": 0.015, "top": 0.7, "bottom": 0.2})
        sides = (("left", pairs[0].left), ("right", pairs[0].right))
        for ax, (side, text) in zip(axes, sides, strict=True):
            ax.text(0.5, 0.5, text or EMPTY, ha="center", va="center", fontsize=13)
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


def _card(side: str, text: str) -> str:
    style = "border:1px solid rgba(128,128,128,.7);border-radius:4px;padding:0.7em;"
    style += "text-align:center;font-size:130%;line-height:1.4"
    text = html.escape(text) or EMPTY
    return f'<div role="group" aria-label="{side} review" style="{style}">{text}</div>'


def _reason(error: Exception) -> str:
    """What an error says, without its number."""
    return getattr(error, "strerror", None) or str(error)
