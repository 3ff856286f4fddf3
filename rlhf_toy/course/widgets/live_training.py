"""Training, live: PPO or DPO with buttons, and the exact gap as it falls.

`live_run.py` has the thread and its state, `live_chart.py` the chart, `live_text.py` the words.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import ipywidgets
import torch
from gymnasium import Env

from rlhf_toy.checkpoints import digest
from rlhf_toy.checks import check_type
from rlhf_toy.course.widgets.live_chart import EARLIER_STYLES, draw_gap
from rlhf_toy.course.widgets.live_run import LiveRun, Settings
from rlhf_toy.course.widgets.live_text import (
    describe,
    measured_words,
    responses_of,
    responses_table,
)
from rlhf_toy.course.widgets.parts import (
    InteractiveCell,
    button,
    in_a_row,
    labelled,
    log_slider,
    picture,
    png,
    say,
    words,
)
from rlhf_toy.dpo import DPOSettings, train_dpo
from rlhf_toy.envs import TextWorld, unwrap
from rlhf_toy.models import PolicyModel, check_fits
from rlhf_toy.ppo import PPOSettings, Reward, train_ppo
from rlhf_toy.preferences import PreferenceDataset
from rlhf_toy.training import History, make_generator, pick_device, reward_digest

# Half a minute on a laptop.
PPO_SETTINGS = PPOSettings(iterations=50, batch_size=512, num_mini_batches=8, measure_every=5)
DPO_SETTINGS = DPOSettings(  # fine-tuning the reference's own weights
    steps=125,
    learning_rate=5e-4,
    warmup_steps=40,
    weight_decay=0.01,
    ema_decay=0.0,
    measure_every=10,
)


class LiveTraining(InteractiveCell):
    """A training run with buttons; make it with `LiveTraining.ppo(…)` or `LiveTraining.dpo(…)`.

    Training runs in a thread, so other cells can run meanwhile. Pause and Stop end the thread after
    the current step; Resume continues bit for bit. Each choice of β and learning rate is a run of
    its own: when a choice comes back, Start continues its run. Only one cell trains at a time;
    starting or making another one pauses it.

    Attributes:
        run: the `LiveRun`, whose state, settings, policy and history this cell has too.
        state: "ready", "running", "paused", "stopped", "done" or "failed".
        settings: of the current run.
        policy: a copy of the policy as last measured, paused or stopped; at the end, what the
            trainer returned. Before the first step, the reference.
        history: of the current run, see `train_ppo` and `train_dpo`.
    """

    def __init__(
        self, name: str, run: LiveRun, world: TextWorld, earlier: History | None = None
    ) -> None:
        """Show a run; `ppo` and `dpo` make it and check what they are given.

        Args:
            name: of the method.
            run: what the buttons control.
            world: the world in which responses are sampled.
            earlier: history of another run to draw for comparison.
        """
        self.run, self._name, self._world = run, name, world
        self._initial = run.settings
        self._reference_says = responses_of(run.reference, world)
        self._runs = {} if earlier is None else {"an earlier run": earlier}
        self._make_widgets()
        first = self._drawing()
        self.chart = picture(first)
        rows = [self.sliders, self.buttons, self.progress, self.chart, self.line, self.says]
        super().__init__(ipywidgets.VBox(rows), first)
        self._show_state("Press Start.")
        self._show_responses()
        run.notify = self._follow

    @classmethod
    def ppo(
        cls,
        world: Env,
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
            earlier: history of a run to draw for comparison, also in the static figure.
            folder: where runs are saved, so they outlive the kernel. None: a temporary folder.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a reference for another world, a world that slips, a reward that does not
                return one number for each response, or a bad seed, device or folder.
        """
        world = unwrap(world)
        check_type("settings", settings, PPOSettings, "PPOSettings(…)")
        kinds = "a RewardModel or a function such as world.response_rewards"
        check_type("reward", reward, Callable, kinds)
        _check(world, reference, earlier, seed)
        device = pick_device(device)
        train = partial(train_ppo, world, reference, reward, seed=seed, device=device)
        key = digest("PPO", reference, reward_digest(reward, world, device), seed)
        run = LiveRun("PPO", train, reference, settings, settings.iterations, key, folder)
        return cls("PPO", run, world, earlier)

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

        Arguments and errors as for `ppo`; too few pairs to split are a ValueError too.
        """
        check_type("preferences", preferences, PreferenceDataset, "a PreferenceDataset")
        check_type("settings", settings, DPOSettings, "DPOSettings(…)")
        world = preferences.world
        _check(world, reference, earlier, seed)
        preferences.split(1 - settings.held_out, seed)  # raises for too few pairs
        device = pick_device(device)
        train = partial(
            train_dpo, preferences, reference, seed=seed, device=device, start=reference
        )
        key = digest("DPO", reference, *preferences.columns, seed)
        run = LiveRun("DPO", train, reference, settings, settings.steps, key, folder)
        return cls("DPO", run, world, earlier)

    @property
    def state(self) -> str:
        return self.run.state

    @property
    def settings(self) -> Settings:
        return self.run.settings

    @property
    def policy(self) -> PolicyModel:
        return self.run.policy

    @property
    def history(self) -> History:
        return self.run.history

    def wait(self, timeout: float | None = None) -> str:
        """Wait until nothing is being trained, at most `timeout` seconds; return the state."""
        return self.run.wait(timeout)

    # Controls

    def _make_widgets(self) -> None:
        beta, rate = self.settings.beta, self.settings.learning_rate
        slow = {"continuous_update": False}
        self.beta = log_slider("β (KL weight)", beta, beta / 10, beta * 10, **slow)
        self.learning_rate = log_slider(
            "learning rate", rate, rate / 10**1.5, rate * 10**1.5, **slow
        )
        for one in (self.beta, self.learning_rate):
            one.observe(lambda _: self._hold_sliders(), "value")
        self.start = button("Start", self._start)
        self.pause = button("Pause", lambda: self.run.ask_for("paused"))
        self.resume = button("Resume", self.run.resume)
        self.stop = button("Stop", lambda: self.run.ask_for("stopped"))
        self.new_run = button("New run", self._new_run)
        self.sliders = in_a_row([self.beta, self.learning_rate])
        self.buttons = in_a_row([self.start, self.pause, self.resume, self.stop, self.new_run])
        self.progress = labelled(ipywidgets.IntProgress, "", "24em", max=self.run.steps)
        self.line, self.says = words(), ipywidgets.HTML()

    # A press can still arrive after its button was disabled: the run looks at its state first.

    def _start(self) -> None:
        chosen = {"beta": self.beta.value, "learning_rate": self.learning_rate.value}
        # Three digits, as the sliders show them.
        rounded = {name: float(f"{value:.3g}") for name, value in chosen.items()}
        self.run.start(replace(self._initial, **rounded))
        self._hold_sliders()

    def _hold_sliders(self) -> None:
        """Put the sliders back to the run's settings; a late move can arrive after Start."""
        if self.state != "ready":
            self.beta.value = self.settings.beta
            self.learning_rate.value = self.settings.learning_rate

    def _new_run(self) -> None:
        """Archive the run, so that other settings can be chosen."""
        history = self.run.reset()
        if history is None:
            return
        label = describe(self._name, self.settings)
        self._runs.pop(label, None)
        runs = [(label, history), *self._runs.items()]
        self._runs = dict(runs[: len(EARLIER_STYLES)])
        self._show_state("Press Start. The last run is saved: its settings bring it back.")
        self._show_measurement()

    # Display

    def _follow(self, event: str) -> None:
        """Show what has changed in the run."""
        {
            "step": self._show_progress,
            "state": self._show_state,
            "measured": self._show_measurement,
        }[event]()

    def _show_state(self, text: str | None = None) -> None:
        """Set buttons, sliders and the line of text to the state."""
        state, ending = self.state, self.run.ending
        self.beta.disabled = self.learning_rate.disabled = state != "ready"
        self.start.disabled = state != "ready"
        self.pause.disabled = state != "running" or ending is not None
        self.resume.disabled = state not in ("paused", "stopped", "failed")
        self.stop.disabled = state not in ("running", "paused") or ending is not None
        self.new_run.disabled = state not in ("stopped", "done", "failed")
        self._show_progress()
        if self.run.error is not None:
            error = (
                f"the run ended with {self.run.error}. What was saved is kept: Resume, or New run."
            )
            say(self.line, error, wrong=True)
            return
        doing = {"paused": "pausing after this step", "stopped": "stopping after this step"}
        run = "" if state == "ready" else f" {describe(self._name, self.settings)}."
        best = state == "done" and getattr(self.settings, "early_stopping", False)
        text = measured_words(self.history, best) if text is None else text
        say(self.line, f"{doing.get(ending, state).capitalize()}.{run} {text}")

    def _show_progress(self) -> None:
        self.progress.value = self.run.step
        self.progress.description = f"step {self.run.step} of {self.run.steps}"

    def _show_measurement(self) -> None:
        self.chart.value = self._drawing()
        self._show_responses()

    def _show_responses(self) -> None:
        now = responses_of(self.policy, self._world)
        self.says.value = responses_table(self._reference_says, now)

    def _drawing(self) -> bytes:
        label = describe(self._name, self.settings)
        earlier = {name: run for name, run in self._runs.items() if name != label}
        steps = self.run.steps
        return png(lambda figure: draw_gap(figure, self.history, steps, label, earlier), (8.5, 3.8))


def _check(world: TextWorld, reference: PolicyModel, earlier: History | None, seed: int) -> None:
    check_type("reference", reference, PolicyModel, "a PolicyModel")
    check_fits(reference, world)
    check_type("earlier", earlier, History | None, "the history of a run or None")
    make_generator(seed)  # raises for a bad seed
    if not world.is_deterministic:
        raise ValueError(
            "the exact gap needs a deterministic world: use WordMDP(), or a world with slip=0"
        )
