"""A check leaves the session as it was, and what the session did changes no verdict."""

import io
import os
import random
import sys
import threading
import time
import timeit
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlhf_toy.course import exercises
from rlhf_toy.course.exercises import kernel


def right(ref_logps, rewards, beta):
    return torch.logsumexp(ref_logps + rewards / beta, -1)


def grade(fn):
    return exercises.grade("log_partition", fn)


def state():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "digits": np.get_printoptions()["precision"],
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda: os.chdir("/"),
        lambda: sys.setrecursionlimit(5000),
        lambda: setattr(sys, "stdout", None),
        lambda: setattr(sys, "stderr", io.StringIO()),
        lambda: os.environ.update(HOME="/nowhere", NEW="1"),
        lambda: os.environ.pop("PATH"),
        lambda: sys.path.insert(0, "/nowhere"),
        lambda: warnings.simplefilter("ignore"),
        lambda: np.set_printoptions(precision=2),
        lambda: (torch.manual_seed(1), np.random.seed(1), random.seed(1)),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_grad_enabled(False),
    ],
)
def test_nothing_leaks_out_of_a_check(spoil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fn(ref_logps, rewards, beta):
        result = right(ref_logps, rewards, beta)
        spoil()
        return result

    before = state()
    grade(fn)
    assert state() == before


def test_a_deleted_working_folder_does_not_stop_a_check(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert grade(right).status == "right"


def wrong_loss(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    margin = policy_chosen_logps - policy_rejected_logps
    return -F.logsigmoid(beta * margin).mean()


def right_loss(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    margin = policy_chosen_logps - ref_chosen_logps - policy_rejected_logps + ref_rejected_logps
    return torch.logaddexp(torch.zeros_like(margin), -beta * margin).mean()


def test_replacing_a_function_of_torch_changes_no_verdict(monkeypatch):
    assert exercises.grade("dpo_loss", right_loss).status == "right"
    before = exercises.grade("dpo_loss", wrong_loss)
    exercises.grading._known.cache_clear()
    mine = lambda x: 0 * x  # noqa: E731
    monkeypatch.setattr(F, "logsigmoid", mine)
    monkeypatch.setattr(torch, "allclose", lambda *a, **k: True)
    monkeypatch.setattr(torch.Tensor, "double", lambda x: 0 * x, raising=False)
    monkeypatch.setattr(torch.Tensor, "mean", lambda x, *a: 0 * x.sum(), raising=False)
    assert exercises.grade("dpo_loss", wrong_loss).status == before.status == "wrong"
    assert F.logsigmoid is mine  # the session keeps its own function


def test_a_replaced_function_does_not_make_a_right_answer_wrong(monkeypatch):
    exercises.grading._known.cache_clear()
    monkeypatch.setattr(F, "logsigmoid", lambda x: 0 * x)
    monkeypatch.delattr(F, "softplus")
    assert exercises.grade("dpo_loss", right_loss).status == "right"
    assert not hasattr(F, "softplus")


def test_methods_that_a_tensor_inherits_are_restored_too(monkeypatch):
    own = torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, "sum", lambda x: "mine", raising=False)
    with kernel.originals():
        assert torch.ones(2).sum() == 2
    assert torch.ones(2).sum() == "mine"
    monkeypatch.undo()
    assert torch.Tensor.sum is own


def running():
    return {thread for thread in threading.enumerate() if "quietly" in thread.name}


def test_an_interrupt_from_the_keyboard_stops_the_function(monkeypatch):
    join = threading.Thread.join
    calls = []

    def interrupted(thread, timeout=None):
        calls.append(timeout)
        if len(calls) == 1:
            join(thread, 0.2)
            raise KeyboardInterrupt
        return join(thread, timeout)

    def forever(ref_logps, rewards, beta):
        while True:
            pass

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade(forever)
    assert not running()


def test_a_loop_that_catches_everything_is_stopped_or_said_to_run(monkeypatch):
    monkeypatch.setattr(kernel, "SECONDS_AT_MOST", 0.2)
    stop = threading.Event()

    def forever(ref_logps, rewards, beta):
        while not stop.is_set():
            try:
                while not stop.is_set():
                    time.sleep(0.001)
            except BaseException:
                pass

    verdict = grade(forever)
    assert verdict.mistake == "does not return"
    assert ("restart the kernel" in verdict.hint) == bool(running())
    stop.set()


def test_a_function_that_waits_is_said_to_run_in_the_background(monkeypatch):
    monkeypatch.setattr(kernel, "SECONDS_AT_MOST", 0.2)
    stop = threading.Event()
    verdict = grade(lambda ref_logps, rewards, beta: stop.wait(60))
    assert "still runs in the background: restart the kernel" in verdict.hint
    stop.set()


def test_time_in_c_code_is_told_from_an_endless_loop(monkeypatch):
    """C code that holds Python's lock: nothing can stop it, so the check waits and says so."""
    monkeypatch.setattr(kernel, "SECONDS_AT_MOST", 0.2)
    one_million = min(timeit.repeat(lambda: sum(range(10**6)), number=1, repeat=9))
    start = time.perf_counter()
    verdict = grade(lambda *arguments: sum(range(round(2 / one_million) * 10**6)))
    seconds = time.perf_counter() - start
    assert seconds > 1.2  # so it was not stopped in time
    assert "busy in a single call, such as sum(range(10**9))" in verdict.hint
    assert "It took " in verdict.hint and "within 0.2 s" in verdict.hint
