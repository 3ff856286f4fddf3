"""Training, live: PPO or DPO from buttons, with the exact gap as it falls (L10 – L14, L24, L27)."""

from __future__ import annotations

import atexit
import copy
import html
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from rlhf_toy.course.widgets.parts import InteractiveCell, picture, png, say, words
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import TextWorld
from rlhf_toy.models import PolicyModel, check_fits, sample
from rlhf_toy.ppo import PPOSettings, Reward, train_ppo
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import History, digest, make_generator, pick_device

GAP = "exact/gap"
HIGHEST_SHOWN = 2.0  # gaps above it leave the chart; the words still have them
N_EARLIER = 3  # earlier runs that stay in the chart
EARLIER_STYLES = ("-", "-.", ":")
N_PROMPTS = 3  # prompts whose responses are shown
SAMPLE_SEED = 0
# Half a minute on a laptop.
PPO_SETTINGS = PPOSettings(iterations=50, batch_size=512, measure_every=5)
DPO_SETTINGS = DPOSettings(steps=125, warmup_steps=40, measure_every=10)

Settings = PPOSettings | DPOSettings
Train = Callable[..., tuple[PolicyModel, History]]  # given settings, checkpoint and watch by name


# The chart


def gap_series(history: History) -> tuple[list[int], list[float]]:
    """The steps at which the gap was measured, and the gaps; 1 at step 0, the reference."""
    measured = measurements(history)
    return [0, *(row["step"] for row in measured)], [1.0, *(row[GAP] for row in measured)]


def measurements(history: History) -> list[dict[str, float]]:
    """The rows of a history that have an exact measurement."""
    return [row for row in list(history.rows) if GAP in row]


def draw_gap(
    figure: Figure, history: History, steps: int, label: str, earlier: Mapping[str, History]
) -> None:
    """The exact gap by step, with its limit.

    Args:
        figure: an empty figure.
        history: of the run that is shown.
        steps: how many the run has in all.
        label: what the legend calls the run.
        earlier: histories of other runs, by the names that the legend gives them.
    """
    axes = figure.subplots()
    axes.axhline(1, color="0.45", linewidth=1.2, linestyle="--", label="reference: gap 100 %")
    axes.axhline(0, color="black", linewidth=1.6, label="optimum: gap 0, the limit")
    for style, (name, other) in zip(EARLIER_STYLES, earlier.items(), strict=False):
        axes.plot(*gap_series(other), style, color="0.55", label=name)
    at, gaps = gap_series(history)
    if len(at) > 1:
        axes.plot(at, gaps, "o-", color="#009E73", markersize=5, label=label)
        axes.annotate(
            f"{gaps[-1]:.1%}", (at[-1], gaps[-1]), (0, 9), textcoords="offset points", ha="center"
        )
    shown = [gap for h in (history, *earlier.values()) for gap in gap_series(h)[1]]
    highest = max((gap for gap in shown if math.isfinite(gap)), default=1.0)
    longest = max(steps, *(gap_series(h)[0][-1] for h in (history, *earlier.values())))
    axes.set(xlim=(0, 1.04 * longest), ylim=(-0.06, min(1.12 * highest, HIGHEST_SHOWN)))
    # A formatter without mathematical text, whose parser two threads must not use at once.
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="step", ylabel="exact gap to J*")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)


# The words


def describe(name: str, settings: Settings) -> str:
    """A run in a few words."""
    return f"{name}, β = {settings.beta:.3g}, learning rate {settings.learning_rate:.3g}"


def measured_words(history: History, best_held_out: bool = False) -> str:
    """The last exact measurement as a sentence.

    Args:
        history: of the run.
        best_held_out: take the measurement at the lowest held-out loss instead, the policy that
            DPO with early stopping hands back.
    """
    rows = measurements(history)
    if not rows:
        return "Nothing is measured yet."
    row = min(rows, key=lambda row: row["held_out/loss"]) if best_held_out else rows[-1]
    which = ", whose policy was best on the held-out pairs and is kept," if best_held_out else ""
    return (
        f"At step {row['step']}{which} the gap is {row[GAP]:.1%}: "
        f"exact KL {row['exact/kl']:.2f} nats, true reward {row['exact/reward']:.2f} logits."
    )


def responses_of(policy: PolicyModel, world: TextWorld) -> list[tuple[str, str, float]]:
    """Prompt, response and true reward (logits), for the first prompts and always the same seed."""
    with torch.inference_mode():
        prompts = torch.arange(min(N_PROMPTS, world.n_prompts), device=policy.device)
        generator = make_generator(SAMPLE_SEED, policy.device)
        responses = sample(policy, world, prompts, generator).responses
        rewards = world.response_rewards(prompts, responses)
    texts = [world.decode(response) for response in responses.cpu()]
    return [
        (world.prompts[x], text or "(nothing)", float(reward))
        for x, text, reward in zip(prompts.tolist(), texts, rewards, strict=True)
    ]


def responses_table(
    reference: Sequence[tuple[str, str, float]], policy: Sequence[tuple[str, str, float]]
) -> str:
    """Responses of two policies to the same prompts, as HTML; see `responses_of`."""
    head = "<tr><th>prompt</th><th>the reference says</th><th>the policy says</th></tr>"
    rows = []
    for (prompt, before, reward_before), (_, now, reward_now) in zip(
        reference, policy, strict=True
    ):
        cells = (prompt, f"{before} ({reward_before:+.2f})", f"{now} ({reward_now:+.2f})")
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = "The same dice for both, with the true reward in logits:"
    return (
        "<style>.rlhf-live td, .rlhf-live th {padding: 0 1.5em 0 0; text-align: left}</style>"
        f'<div class="rlhf-live" style="line-height:1.5">{caption}<table>{head}{body}</table></div>'
    )


# The widget


class _Halt(Exception):
    """Ends a run whose student asked for a pause or a stop."""


class LiveTraining(InteractiveCell):
    """A training run with buttons: `LiveTraining.ppo(…)` or `LiveTraining.dpo(…)`.

    Training runs in a thread of its own, so that other cells can run. Pause and Stop end the thread
    after the step that is under way, once the run is saved; Resume calls the trainer again, which
    goes on bit for bit. Each choice of β and learning rate is a run of its own, with its own file:
    when a choice comes back, Start goes on where its run was. One cell trains at a time; starting
    or making another pauses it.

    Attributes:
        state: "ready", "running", "paused", "stopped", "done" or "failed".
        settings: of the run that is shown.
        policy: a copy of the policy as last measured, paused or stopped; at the end, what the
            trainer returned. Before a run, the reference.
        history: of the run that is shown, see `train_ppo` and `train_dpo`.
    """

    _training: ClassVar[LiveTraining | None] = None  # the cell whose thread is alive

    def __init__(
        self,
        name: str,
        train: Train,
        world: TextWorld,
        reference: PolicyModel,
        settings: Settings,
        steps: int,
        key: str,
        earlier: History | None = None,
        folder: str | os.PathLike | None = None,
    ) -> None:
        """Most notebooks want `ppo` or `dpo`, which check what they are given.

        Args:
            name: of the method.
            train: the trainer, given settings, checkpoint and watch.
            world: where responses are sampled.
            reference: π_ref.
            settings: where the sliders start, and everything that has no slider.
            steps: how many a run has.
            key: fingerprint of what else decides a run's result.
            earlier: history of a run to draw for comparison.
            folder: where runs are saved. None: a temporary one, gone with the kernel.

        Raises:
            TypeError: `earlier` is no `History`.
            ValueError: no such folder.
        """
        if not isinstance(earlier, History | None):
            raise TypeError(f"earlier must be the history of a run or None, got {earlier!r}")
        self.folder = self._run_folder(folder)
        self._name, self._train, self._world, self._key = name, train, world, key
        self._initial, self.settings, self._steps = settings, settings, steps
        self._reference = copy.deepcopy(reference)
        self._reference_says = responses_of(self._reference, world)
        self._runs = {} if earlier is None else {"an earlier run": earlier}
        self.thread: threading.Thread | None = None
        self._lock = threading.RLock()  # the buttons' thread and the training thread share states
        self._wanted: str | None = None  # the state that a press of Pause or Stop asked for
        self._prepare()
        self._make_widgets()
        _pause_the_other(self)
        first = self._drawing()
        self.chart = picture(first)
        rows = [self.sliders, self.buttons, self.progress, self.chart, self.line, self.says]
        super().__init__(ipywidgets.VBox(rows), first)
        self._show_state("Press Start.")
        self._show_responses()

    @classmethod
    def ppo(
        cls,
        world: TextWorld,
        reference: PolicyModel,
        reward: Reward,
        settings: PPOSettings = PPO_SETTINGS,
        earlier: History | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        folder: str | os.PathLike | None = None,
    ) -> LiveTraining:
        """PPO, live; `world` to `settings`, `seed` and `device` as for `train_ppo`.

        Args:
            earlier: history of a run to draw for comparison, and in the static figure.
            folder: where runs are saved, to outlive the kernel. None: a temporary folder.

        Raises:
            TypeError: an argument of another kind.
            ValueError: a reference for another world, a world that slips, a bad seed, device or
                folder.
        """
        _check_kinds(world=(world, TextWorld), settings=(settings, PPOSettings))
        if not callable(reward):
            raise TypeError(
                "reward must be a RewardModel or a function of prompts and responses such as "
                f"world.response_rewards, got {reward!r}"
            )
        _check_common(world, reference, seed)
        device = pick_device(device)
        train = partial(train_ppo, world, reference, reward, seed=seed, device=device)
        judge = reward if isinstance(reward, torch.nn.Module) else _probe(world, reward, device)
        key = digest("PPO", reference, judge, seed)
        steps = settings.iterations
        return cls("PPO", train, world, reference, settings, steps, key, earlier, folder)

    @classmethod
    def dpo(
        cls,
        preferences: PreferenceDataset,
        reference: PolicyModel,
        settings: DPOSettings = DPO_SETTINGS,
        earlier: History | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        folder: str | os.PathLike | None = None,
    ) -> LiveTraining:
        """DPO, live; `preferences` to `settings`, `seed` and `device` as for `train_dpo`.

        Arguments and errors as for `ppo`.
        """
        _check_kinds(preferences=(preferences, PreferenceDataset), settings=(settings, DPOSettings))
        world = preferences.world
        _check_common(world, reference, seed)
        preferences.split(1 - settings.held_out, seed)  # raises where there are too few pairs
        device = pick_device(device)
        train = partial(train_dpo, preferences, reference, seed=seed, device=device)
        pairs = (preferences.prompts, preferences.chosen, preferences.rejected)
        key = digest("DPO", reference, *pairs, seed)
        return cls("DPO", train, world, reference, settings, settings.steps, key, earlier, folder)

    def wait(self, timeout: float | None = None) -> str:
        """Waits until nothing is being trained, or for so many seconds; returns the state."""
        thread = self.thread
        if thread is not None:
            thread.join(timeout)
        return self.state

    # Controls

    def _make_widgets(self) -> None:
        self.beta = _log_slider("β (KL weight)", self.settings.beta, decades=1.0)
        self.learning_rate = _log_slider("learning rate", self.settings.learning_rate, decades=1.5)
        self.start = _button("Start", self._start)
        self.pause = _button("Pause", lambda: self._ask_for("paused"))
        self.resume = _button("Resume", self._resume)
        self.stop = _button("Stop", lambda: self._ask_for("stopped"))
        self.new_run = _button("New run", self._reset)
        for slider in (self.beta, self.learning_rate):
            slider.observe(lambda _: self._hold_sliders(), "value")
        row = ipywidgets.Layout(flex_flow="row wrap")
        self.sliders = ipywidgets.HBox([self.beta, self.learning_rate], layout=row)
        buttons = [self.start, self.pause, self.resume, self.stop, self.new_run]
        self.buttons = ipywidgets.HBox(buttons, layout=row)
        self.progress = ipywidgets.IntProgress(
            max=self._steps, style={"description_width": "initial"}, layout={"width": "24em"}
        )
        self.line, self.says = words(), ipywidgets.HTML()

    # A press may come in late, when its button is disabled already: each looks at the state first.

    def _start(self) -> None:
        if self.state != "ready":
            return
        chosen = {"beta": self.beta.value, "learning_rate": self.learning_rate.value}
        # Three digits, as the sliders show them.
        rounded = {name: float(f"{value:.3g}") for name, value in chosen.items()}
        self.settings = replace(self._initial, **rounded)
        self._launch()

    def _resume(self) -> None:
        if self.state in ("paused", "stopped", "failed"):
            self._launch()

    def _launch(self) -> None:
        """Starts the thread: from the first step, or from where the run of these settings was."""
        _pause_the_other(self)
        with self._lock:
            LiveTraining._training = self
            self._wanted, self.state = None, "running"
            self.thread = threading.Thread(target=self._work, daemon=True, name="live-training")
            self._show_state("The first step is on its way.")
            self._hold_sliders()
            self.thread.start()

    def _hold_sliders(self) -> None:
        """Puts the sliders back to a run's settings; a late move may come in after Start."""
        if self.state != "ready":
            self.beta.value = self.settings.beta
            self.learning_rate.value = self.settings.learning_rate

    def _ask_for(self, state: str) -> None:
        """Has the thread end after its step, in this state; a paused run is stopped at once."""
        with self._lock:
            if self.state == "running":
                self._wanted = state
            elif self.state == "paused":
                self.state = state
            self._show_state()

    def _reset(self) -> None:
        """Lays the run aside, to choose other settings."""
        with self._lock:
            if self.state not in ("stopped", "done", "failed"):
                return
            label = describe(self._name, self.settings)
            self._runs.pop(label, None)
            self._runs = dict([(label, self.history), *self._runs.items()][:N_EARLIER])
            self._prepare()
            self._show_state("Press Start. The last run is kept: its settings bring it back.")
            self._show_measurement()

    def _prepare(self) -> None:
        self.state = "ready"
        self.policy, self.history, self._step = copy.deepcopy(self._reference), History(), 0

    # The thread

    def _work(self) -> None:
        """What the thread does: trains until something ends it, and says what that was."""
        wrong = None
        try:
            state = self._train_on()
            self._show_measurement()
        except BaseException as error:
            state, wrong = "failed", f"the run ended with {type(error).__name__}: {error}"
        with self._lock:
            if LiveTraining._training is self:
                LiveTraining._training = None
            self.state, self._wanted = state, None
            self._show_state(wrong=wrong)

    def _train_on(self) -> str:
        """Trains from where the run is; returns the state in which that ended."""
        run = {"settings": self.settings, "checkpoint": self._path(), "watch": self._look}
        try:
            self.policy, self.history = self._train(**run)
        except _Halt:
            return self._wanted
        self._step = self._steps
        return "done"

    def _look(self, step: int, policy: PolicyModel, history: History) -> None:
        """What the trainer calls after every step."""
        self._step, self.history = step, history
        is_measured = any(row["step"] == step and GAP in row for row in history.rows[-1:])
        is_halting = self._wanted is not None and step < self._steps
        if is_measured or is_halting:
            self.policy = copy.deepcopy(policy)
        if is_halting:
            raise _Halt
        self._show_progress()
        if is_measured:
            with self._lock:
                self._show_state()
            self._show_measurement()

    def _run_folder(self, folder: str | os.PathLike | None) -> Path:
        if folder is None:
            path = Path(tempfile.mkdtemp(prefix="rlhf_toy-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
            return path
        if not Path(folder).is_dir():
            raise ValueError(f"no folder {str(folder)!r} to save runs in: make it first")
        return Path(folder)

    def _path(self) -> Path:
        return self.folder / f"{self._name}-{digest(self._key, self.settings)}.pt"

    # What is seen

    def _show_state(self, text: str | None = None, wrong: str | None = None) -> None:
        """Sets buttons, sliders and the line of text to the state."""
        state, is_ending = self.state, self._wanted is not None
        self.beta.disabled = self.learning_rate.disabled = state != "ready"
        self.start.disabled = state != "ready"
        self.pause.disabled = state != "running" or is_ending
        self.resume.disabled = state not in ("paused", "stopped", "failed")
        self.stop.disabled = state not in ("running", "paused") or is_ending
        self.new_run.disabled = state not in ("stopped", "done", "failed")
        self._show_progress()
        if wrong is not None:
            say(self.line, f"{wrong}. What was saved is kept: Resume, or New run.", wrong=True)
            return
        ending = {"paused": "pausing after this step", "stopped": "stopping after this step"}
        doing = ending.get(self._wanted, state)
        run = "" if state == "ready" else f" {describe(self._name, self.settings)}."
        best = state == "done" and getattr(self.settings, "early_stopping", False)
        text = measured_words(self.history, best) if text is None else text
        say(self.line, f"{doing.capitalize()}.{run} {text}")

    def _show_progress(self) -> None:
        self.progress.value = self._step
        self.progress.description = f"step {self._step} of {self._steps}"

    def _show_measurement(self) -> None:
        self.chart.value = self._drawing()
        self._show_responses()

    def _show_responses(self) -> None:
        self.says.value = responses_table(
            self._reference_says, responses_of(self.policy, self._world)
        )

    def _drawing(self) -> bytes:
        label = describe(self._name, self.settings)
        earlier = {name: run for name, run in self._runs.items() if name != label}
        return png(
            lambda figure: draw_gap(figure, self.history, self._steps, label, earlier), (8.5, 3.8)
        )


def _log_slider(description: str, value: float, decades: float) -> ipywidgets.FloatLogSlider:
    """A slider whose middle is `value`, and which goes so many powers of ten up and down."""
    middle = math.log10(value)
    return ipywidgets.FloatLogSlider(
        value=value,
        min=middle - decades,
        max=middle + decades,
        step=0.05,
        description=description,
        readout_format=".3g",
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "26em"},
    )


def _button(description: str, press: Callable[[], None]) -> ipywidgets.Button:
    button = ipywidgets.Button(description=description, layout={"width": "7.5em"})
    button.on_click(lambda _: press())
    return button


def _pause_the_other(cell: LiveTraining) -> None:
    """Pauses the cell that is training, unless it is this one: two would share the processor."""
    other = LiveTraining._training
    if other is not None and other is not cell:
        other._ask_for("paused")


@atexit.register
def _pause_at_exit() -> None:
    """Saves the run of a kernel that shuts down; a thread torn out of its step would crash it."""
    cell = LiveTraining._training
    if cell is not None:
        cell._ask_for("paused")
        cell.wait(5)


def _check_kinds(**given: tuple[Any, type]) -> None:
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of the class {kind.__name__}, got {value!r}")


def _check_common(world: TextWorld, reference: PolicyModel, seed: int) -> None:
    _check_kinds(reference=(reference, PolicyModel))
    check_fits(reference, world)
    make_generator(seed)  # raises for a bad seed
    if not world.is_deterministic:
        raise ValueError(
            "the gap is measured exactly in deterministic worlds only: take WordMDP(), or slip=0"
        )


def _probe(world: TextWorld, reward: Reward, device: torch.device) -> Tensor:
    """What a reward function says of some responses; a ValueError if that is no reward of each."""
    responses = world.all_responses[:: 1 + len(world.all_responses) // 500].to(device)
    prompts = torch.arange(len(responses), device=device) % world.n_prompts
    rewards = reward(prompts, responses)
    if not isinstance(rewards, Tensor) or rewards.shape != prompts.shape:
        got = list(rewards.shape) if isinstance(rewards, Tensor) else repr(rewards)
        raise ValueError(
            f"reward must turn prompts [B] and responses [B, T] into a tensor [B], got {got} "
            f"for B = {len(prompts)}"
        )
    return rewards
