"""Protect the student's session from the function that is checked, and the check from the session.

A function runs in a thread, which is stopped when it takes too long. That works at its next line of
Python. C code that never returns, such as sum(range(10**12)), cannot be stopped from inside the
process; if it also holds Python's lock, the whole session waits for it.
"""

from __future__ import annotations

import builtins
import ctypes
import math
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_toy.course.exercises.outcomes import Outcome, TimeIsOver

SECONDS_AT_MOST = 1.5  # for a student's function, over all cases


@dataclass(frozen=True)
class Timed:
    """What a function had done when it ended or was stopped.

    Attributes:
        outcomes: of the cases that it finished.
        seconds: how long it ran.
        still_runs: whether it could not be stopped.
    """

    outcomes: list[Outcome]
    seconds: float
    still_runs: bool

    def why(self) -> str:
        """Say why not all cases are finished."""
        said = f"Your function did not return within {SECONDS_AT_MOST} s. "
        if self.still_runs:
            return said + (
                "It cannot be stopped and still runs in the background: restart the kernel. It "
                "may wait for something, or have a loop that catches every exception."
            )
        if self.seconds > SECONDS_AT_MOST + 1:
            return said + (
                f"It took {self.seconds:.0f} s until it could be stopped, so it was probably "
                "busy in a single call, such as sum(range(10**9)). Is there a huge number?"
            )
        return said + "Does it have a loop that never ends?"


def within_time(work: Callable[[list[Outcome]], None]) -> Timed:
    """Run `work`, which adds outcomes to a list, in a thread; stop it when its time is over.

    An interrupt from the keyboard stops it too, and goes on to the caller.
    """
    found: list[Outcome] = []

    def quietly():
        with suppress(TimeIsOver):
            work(found)

    thread = threading.Thread(target=quietly, daemon=True)
    start = time.monotonic()
    thread.start()
    try:
        thread.join(SECONDS_AT_MOST)
    finally:
        _stop(thread)
    return Timed(list(found), time.monotonic() - start, thread.is_alive())


def _stop(thread: threading.Thread) -> None:
    """Raise TimeIsOver in a thread, and again where it was caught."""
    for _ in range(10):
        if not thread.is_alive():
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(TimeIsOver)
        )
        thread.join(0.05)


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


# How to read and to restore each state that the whole process shares.
_SHARED: tuple[tuple[Callable, Callable], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (np.get_printoptions, lambda options: np.set_printoptions(**options)),
    (os.getcwd, os.chdir),
    (lambda: dict(os.environ), _restore_environment),
    (lambda: list(sys.path), lambda old: sys.path.__setitem__(slice(None), old)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: (sys.stdin, sys.stdout, sys.stderr), lambda old: vars(sys).update(
        zip(("stdin", "stdout", "stderr"), old, strict=True))),
    (lambda: list(warnings.filters), lambda old: warnings.filters.__setitem__(slice(None), old)),
)  # fmt: skip


@contextmanager
def states_kept() -> Iterator[None]:
    """Restore on leaving: random states, default dtype, working folder, output and the like."""
    before = []
    for read, restore in _SHARED:
        with suppress(OSError):  # the working folder may have been deleted
            before.append((restore, read()))
    try:
        yield
    finally:
        for restore, state in before:
            with suppress(OSError):
                restore(state)


def _contents(place: object) -> dict[str, object]:
    """Return the attributes of a module, or of a class and those that it inherits from."""
    layers = reversed(place.__mro__) if isinstance(place, type) else [place]
    return {name: value for layer in layers for name, value in vars(layer).items()}


_PLACES = (builtins, math, np, torch, torch.Tensor, torch.linalg, torch.nn.functional)
_ORIGINALS = [(place, _contents(place)) for place in _PLACES]


@contextmanager
def originals() -> Iterator[None]:
    """Within the block, torch and the like are as they were when this module was imported.

    So a cell that replaces `torch.nn.functional.logsigmoid` does not change what is right.
    """
    replaced = []
    for place, before in _ORIGINALS:
        now = _contents(place)
        for name, value in before.items():
            if now.get(name) is not value:
                replaced.append((place, name, name in vars(place), now.get(name)))
                setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, is_own, value in replaced:
            setattr(place, name, value) if is_own else delattr(place, name)
