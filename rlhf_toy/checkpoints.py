"""Files that a run is saved to, and fingerprints of what decides its result."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_toy.checks import shown
from rlhf_toy.files import atomic_file, check_output

CHECKPOINT_HEAD = b"rlhf_toy checkpoint, sha256 "


def digest(*values: Any) -> str:
    """Return a short fingerprint of tensors, modules and plain values."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, nn.Module):
            sha.update(digest(*value.state_dict().values()).encode())
        elif isinstance(value, tuple):
            sha.update(digest(*value).encode())
        elif isinstance(value, Tensor):
            sha.update(str((value.dtype, tuple(value.shape))).encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()[:16]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return what a checkpoint holds: the run's `identity`, its `state` and `history`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is not a checkpoint, or is damaged.
    """
    try:
        head, _, content = Path(path).read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not head.startswith(CHECKPOINT_HEAD):
        raise ValueError(f"{path} is no checkpoint of this package; give another path")
    if head[len(CHECKPOINT_HEAD) :] != hashlib.sha256(content).hexdigest().encode():
        reason = "its content does not match its checksum"
        raise ValueError(f"{path} is damaged: {reason}. Remove the file to start again.")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no checkpoint of this package: {error}") from None


class Checkpoint:
    """A file that a run is saved to, and resumes from.

    It starts with a checksum of its content, and holds the identity of the run: a file of a run
    with another name, seed, settings, data or reward is refused.

    Args:
        path: the file. Its folder must exist. None: nothing is saved.
        name: of the kind of run, which progress bar and error messages show too.
        settings, seed: of the run; settings are the trainer's frozen dataclass.
        inputs: what else decides the result: tensors, models, plain values, or tuples of them.

    Raises:
        TypeError, ValueError: a path that cannot be written to, see `check_output`.
    """

    def __init__(
        self, path: str | os.PathLike | None, name: str, settings: Any, seed: int, **inputs: Any
    ) -> None:
        self.path, self.name = path, name
        if path is not None:
            self.path = check_output(path)
            found = {key: digest(value) for key, value in inputs.items()}
            self.identity = {"run": name, "seed": seed, **found, **asdict(settings)}

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **state}, buffer)
        content = buffer.getvalue()
        with atomic_file(self.path) as file:
            file.write(CHECKPOINT_HEAD + hashlib.sha256(content).hexdigest().encode() + b"\n")
            file.write(content)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is no file yet.

        Raises:
            ValueError: the file is not a checkpoint, is damaged, or belongs to another run.
        """
        if self.path is None:
            return None
        try:
            state = read_checkpoint(self.path)
        except FileNotFoundError:
            return None
        there = state.pop("identity")
        differing = [
            f"{name} is {shown(there.get(name))} there and {shown(self.identity.get(name))} here"
            for name in {**there, **self.identity}
            if there.get(name) != self.identity.get(name)
        ]
        if differing:
            reason = f"belongs to another run: {'; '.join(differing)}"
            raise ValueError(f"{self.path} {reason}. Give another path, or remove the file.")
        return state
