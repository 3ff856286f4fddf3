"""What the trainers share: seeds, devices, minibatches, history, progress and checkpoints."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_toy.files import atomic_file


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; with None, CUDA where there is one and the CPU elsewhere.

    Raises:
        ValueError: no such device, or this machine has none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from None
    return picked


def make_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A source of chance of its own: nothing here touches the global random state.

    Raises:
        ValueError: the seed is no whole number between 0 and 2**63 − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number between 0 and 2**63 - 1, got {seed!r}")
    return torch.Generator(device=device).manual_seed(seed)


def check_settings(
    settings: Any, counts: Sequence[str], positive: Sequence[str], shares: Sequence[str] = ()
) -> None:
    """Raises a ValueError unless the named fields are what they have to be.

    Args:
        settings: a trainer's dataclass.
        counts: fields that must be whole numbers of at least 1.
        positive: fields that must be finite and above 0.
        shares: fields that must be above 0 and below 1.
    """
    for name in counts:
        number = getattr(settings, name)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    for name in positive:
        number = getattr(settings, name)
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} must be a finite number above 0, got {number!r}")
    for name in shares:
        number = getattr(settings, name)
        if not 0 < number < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {number!r}")


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=make_generator((seed * 1_000_003 + epoch) % 2**63))


def minibatch(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The rows [batch_size] of step `step`: each epoch is a new permutation of n rows.

    It depends on nothing but its arguments, so that a run can go on from any step. The last rows of
    an epoch that fill no batch are left out; where n < batch_size, a batch is all n rows.
    """
    batch_size = min(batch_size, n)
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


def linear_decay(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    step: int,
    steps: int,
    warmup_steps: int = 0,
) -> None:
    """Sets the learning rate of a step: it falls linearly, to reach 0 after the last.

    During the first `warmup_steps` it is scaled by a factor that rises linearly to 1.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * warmup * (1 - step / steps)


class History:
    """Metrics by name and step, in the order in which they were recorded."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def record(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Adds metrics of a step; a second call for the same step extends its row."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        for name, value in metrics.items():
            self.rows[-1][name] = (
                value.detach().item() if isinstance(value, Tensor) else float(value)
            )

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps at which a metric was recorded, and its values.

        Raises:
            KeyError: it never was.
        """
        rows = [row for row in self.rows if name in row]
        if not rows:
            names = sorted({name for row in self.rows for name in row})
            raise KeyError(f"no metric {name!r}; there are {names}")
        return [row["step"] for row in rows], [row[name] for row in rows]

    def last(self, name: str) -> float:
        """A metric's last value; a KeyError if it was never recorded."""
        return self.series(name)[1][-1]

    def labelled(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The last value of each metric in {metric: label} that has one, as {label: text}."""
        recent: dict[str, float] = {}
        for row in self.rows[-100:]:
            recent |= row
        return {label: f"{recent[name]:.3g}" for name, label in labels.items() if name in recent}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


class BestSoFar:
    """The weights with which a model had its lowest loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.loss = float("inf")
        self.weights = _copy(model)

    def offer(self, model: torch.nn.Module, loss: float) -> None:
        """Takes the model's weights if this loss is the lowest so far."""
        if loss < self.loss:
            self.loss, self.weights = loss, _copy(model)

    def restore(self, model: torch.nn.Module) -> None:
        """Gives the best weights back to the model."""
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss, self.weights = state["loss"], state["weights"]


def _copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def digest(*values: Any) -> str:
    """A short fingerprint of tensors, modules and plain values, for `Run`."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.nn.Module):
            sha.update(digest(*value.state_dict().values()).encode())
        elif isinstance(value, Tensor):
            sha.update(str((value.dtype, tuple(value.shape))).encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()[:16]


# Looks at a run after each step: steps done so far, the policy being trained, the history.
Watch = Callable[[int, torch.nn.Module, History], None]


class Run:
    """The steps of a training run, which can be killed at any moment and goes on where it was.

    Args:
        name: what the progress bar and the checkpoint call the run.
        settings: the trainer's frozen dataclass.
        seed: of the run.
        inputs: fingerprint of what else decides the result (data, models), see `digest`.
        parts: everything that changes during the run and has `state_dict` and `load_state_dict`.
        generator: the run's source of chance.
        history: where metrics are recorded; its last row is shown beside the progress bar.
        checkpoint: a file to save to and to go on from, or None. The folder must exist.
        checkpoint_every: steps between two savings.
        watch: called after every step with the number of steps done so far, the part named
            `policy` and the history, in place of the progress bar. The run waits until it returns.
            What it raises ends the run, which is saved first, so that it can go on from this step.

    Raises:
        ValueError: the checkpoint is unreadable, or belongs to a run with other settings, seed or
            inputs.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        seed: int,
        inputs: str,
        parts: Mapping[str, Any],
        generator: torch.Generator,
        history: History,
        checkpoint: str | os.PathLike | None,
        checkpoint_every: int = 25,
        watch: Watch | None = None,
    ) -> None:
        self.name, self.history, self.generator = name, history, generator
        self.parts = {**parts, "history": history}
        self.identity = {"run": name, "seed": seed, "inputs": inputs, **asdict(settings)}
        self.path = None if checkpoint is None else Path(checkpoint)
        self.every = checkpoint_every
        self.watch = watch
        self.step = 0
        self.is_over = False
        if self.path is not None and self.path.exists():
            self._load()
        elif self.path is not None and not self.path.parent.is_dir():
            raise ValueError(
                f"no folder {str(self.path.parent)!r} for the checkpoint: make it first"
            )

    def steps(self, total: int, shown: Mapping[str, str]) -> Iterator[int]:
        """Yields the steps that are still to do, with checkpoints and a progress bar or the watch.

        Args:
            total: the number of steps of the whole run.
            shown: metrics to show beside the bar, as {metric: short label}.
        """
        if self.is_over:
            return
        silent = self.watch is not None
        with tqdm(total=total, initial=self.step, desc=self.name, disable=silent) as bar:
            while self.step < total and not self.is_over:
                yield self.step
                self.step += 1
                bar.update()
                bar.set_postfix(self.history.labelled(shown), refresh=False)
                if self.step % self.every == 0 and self.step < total:
                    self._save()
                self._call_watch()
        self.is_over = True
        self._save()

    def stop(self) -> None:
        """Makes the step that is under way the last one."""
        self.is_over = True

    def _call_watch(self) -> None:
        if self.watch is None:
            return
        try:
            self.watch(self.step, self.parts["policy"], self.history)
        except BaseException:
            self._save()
            raise

    def _save(self) -> None:
        if self.path is None:
            return
        state = {
            "identity": self.identity,
            "step": self.step,
            "is_over": self.is_over,
            "generator": self.generator.get_state(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_file(self.path) as file:
            torch.save(state, file)

    def _load(self) -> None:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except (
            RuntimeError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            EOFError,
            KeyError,
            TypeError,
        ) as error:
            raise ValueError(f"{self.path} is no checkpoint of this package: {error}") from None
        differing = [
            f"{name} is {identity.get(name)!r} there and {self.identity.get(name)!r} here"
            for name in {**identity, **self.identity}
            if identity.get(name) != self.identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(differing)}. "
                "Give another path, or remove the file to start anew."
            )
        self.step, self.is_over = state["step"], state["is_over"]
        self.generator.set_state(state["generator"])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
