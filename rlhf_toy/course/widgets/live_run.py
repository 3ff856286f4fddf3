"""A training run in a thread of its own, which can be paused, stopped and resumed."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from rlhf_toy.checkpoints import digest
from rlhf_toy.checks import check_choice, check_type
from rlhf_toy.dpo import DPOSettings
from rlhf_toy.models import PolicyModel
from rlhf_toy.ppo import PPOSettings
from rlhf_toy.training import History

GAP = "exact/gap"

Settings = PPOSettings | DPOSettings
Train = Callable[..., tuple[PolicyModel, History]]  # called with settings, checkpoint and watch


def measurements(history: History) -> list[dict[str, float]]:
    """Return the rows of a history that have an exact measurement."""
    return [row for row in list(history.rows) if GAP in row]


class _Halt(Exception):
    """Ends the trainer's call after a pause or stop was asked for."""


class LiveRun:
    """A training run in a thread, one at a time: starting or making another one pauses it.

    `ask_for` ends the thread after the current step, when the trainer has saved the run; `resume`
    calls the trainer again, which continues bit for bit. Each choice of settings is a run of its
    own, with its own file: when a choice comes back, `start` continues its run.

    Args:
        name: of the method; the names of the files begin with it.
        train: the trainer, called with `settings`, `checkpoint` and `watch`.
        reference: π_ref, the policy before the first step.
        settings: of the first run.
        steps: the number of steps of a run.
        key: fingerprint of everything besides the settings that decides a run's result.
        folder: where runs are saved; None for a temporary folder, deleted with this object.

    Attributes:
        state: "ready", "running", "paused", "stopped", "done" or "failed".
        ending: the state that the thread was asked to end in after its step, or None.
        error: why the run failed, or None.
        settings: of the current run.
        policy: a copy of the policy as last measured, paused or stopped; at the end, what the
            trainer returned. Before the first step, the reference.
        history: of the current run, see `train_ppo` and `train_dpo`.
        step: the number of steps done.
        notify: called, also from the thread, with "step", "state" or "measured" after a change.

    Raises:
        TypeError: a folder that is not a path.
        ValueError: a folder that does not exist.
    """

    active: ClassVar[LiveRun | None] = None  # the run whose thread is alive

    def __init__(
        self,
        name: str,
        train: Train,
        reference: PolicyModel,
        settings: Settings,
        steps: int,
        key: str,
        folder: str | os.PathLike | None = None,
    ) -> None:
        self._name, self._train, self._key = name, train, key
        self.settings, self.steps = settings, steps
        self.reference = copy.deepcopy(reference)
        self.folder = self._make_folder(folder)
        self.notify: Callable[[str], None] = lambda event: None
        self.thread: threading.Thread | None = None
        self.ending: str | None = None
        self._lock = threading.RLock()  # the main thread and the training thread share the state
        self._clear()
        self._pause_the_other()

    def start(self, settings: Settings) -> None:
        """Start the run of these settings, or continue it if it was begun before."""
        if self.state == "ready":
            self.settings = settings
            self._launch()

    def resume(self) -> None:
        """Continue a run that was paused or stopped, or that failed."""
        if self.state in ("paused", "stopped", "failed"):
            self._launch()

    def ask_for(self, state: str) -> None:
        """End the thread after its step, in the state "paused" or "stopped"."""
        check_choice("state", state, ("paused", "stopped"))
        with self._lock:
            if self.state == "running":
                self.ending = state
            elif self.state == "paused":
                self.state = state
            self.notify("state")

    def reset(self) -> History | None:
        """Archive a run that is over or stopped; return its history, or None if it is neither."""
        if self.state not in ("stopped", "done", "failed"):
            return None
        history = self.history
        self._clear()
        return history

    def wait(self, timeout: float | None = None) -> str:
        """Wait until the thread has ended, at most `timeout` seconds; return the state."""
        if self.thread is not None:
            self.thread.join(timeout)
        return self.state

    def _clear(self) -> None:
        self.state, self.error, self.step = "ready", None, 0
        self.policy, self.history = copy.deepcopy(self.reference), History()

    def _pause_the_other(self) -> None:
        """Pause the run that is training, unless it is this one: two would share the processor."""
        if LiveRun.active not in (None, self):
            LiveRun.active.ask_for("paused")

    def _launch(self) -> None:
        self._pause_the_other()
        with self._lock:
            LiveRun.active = self
            self.state, self.ending, self.error = "running", None, None
            self.thread = threading.Thread(target=self._work, daemon=True, name="live-training")
            self.notify("state")
            self.thread.start()

    # The thread

    def _work(self) -> None:
        """Train until something ends the run, and record what that was."""
        error = None
        try:
            state = self._train_on()
            self.notify("measured")
        except BaseException as caught:
            state, error = "failed", f"{type(caught).__name__}: {caught}"
        with self._lock:
            if LiveRun.active is self:
                LiveRun.active = None
            self.state, self.ending, self.error = state, None, error
            self.notify("state")

    def _train_on(self) -> str:
        """Train from the current step; return the state in which the training ended."""
        try:
            self.policy, self.history = self._train(
                settings=self.settings, checkpoint=self._path(), watch=self._look
            )
        except _Halt:
            return self.ending
        self.step = self.steps
        return "done"

    def _look(self, step: int, policy: PolicyModel, history: History) -> None:
        """What the trainer calls after every step."""
        self.step, self.history = step, history
        is_measured = any(row["step"] == step and GAP in row for row in history.rows[-1:])
        is_halting = self.ending is not None and step < self.steps
        if is_measured or is_halting:
            self.policy = copy.deepcopy(policy)
        if is_halting:
            raise _Halt
        self.notify("step")
        if is_measured:
            with self._lock:
                self.notify("state")
            self.notify("measured")

    # Files

    def _make_folder(self, folder: str | os.PathLike | None) -> Path:
        if folder is None:
            path = Path(tempfile.mkdtemp(prefix="rlhf_toy-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
            return path
        check_type("folder", folder, str | os.PathLike, "the path of a folder or None")
        if not Path(folder).is_dir():
            raise ValueError(f"no folder {str(folder)!r} to save runs in: make it first")
        return Path(folder)

    def _path(self) -> Path:
        return self.folder / f"{self._name}-{digest(self._key, self.settings)}.pt"


@atexit.register
def _pause_at_exit() -> None:
    """Save the run of a kernel that shuts down; a thread killed in its step would crash it."""
    run = LiveRun.active
    if run is not None:
        run.ask_for("paused")
        run.wait(5)
