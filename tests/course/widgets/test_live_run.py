"""A run in a thread: pausing, resuming, failing and archiving, with a trainer that only counts."""

import threading

import pytest

from rlhf_toy.checkpoints import digest
from rlhf_toy.course.widgets.live_run import LiveRun, measurements
from rlhf_toy.dpo import DPOSettings
from rlhf_toy.envs import WordMDP
from rlhf_toy.models import GPTConfig, PolicyModel
from rlhf_toy.training import History, make_generator

REFERENCE = PolicyModel(
    GPTConfig.for_world(WordMDP(max_length=1), n_layer=1, n_head=1, n_embd=8), make_generator(0)
)
SETTINGS = DPOSettings(steps=4)
PATIENCE = 20  # seconds after which a thread that has not ended fails its test


class Counter:
    """A trainer of four steps that waits for a permit before each, and saves its step in a file."""

    def __init__(self):
        self.permits, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        self.error = None

    def allow(self, n=1):
        self.permits.release(n)

    def __call__(self, settings, checkpoint, watch):
        history = History()
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for step in range(done + 1, settings.steps + 1):
            self.waiting.release()
            assert self.permits.acquire(timeout=PATIENCE)
            if self.error is not None:
                raise self.error
            history.record(step, {"exact/gap": 1 / step} if step % 2 == 0 else {"loss": 0.0})
            checkpoint.write_text(str(step))
            watch(step, REFERENCE, history)
        return REFERENCE, history


@pytest.fixture
def counter():
    counter = Counter()
    yield counter
    counter.allow(100)
    if LiveRun.active is not None:
        LiveRun.active.wait(PATIENCE)


def make(counter, folder=None):
    return LiveRun("count", counter, REFERENCE, SETTINGS, 4, "key", folder)


def test_a_run_goes_through_its_steps_and_tells_its_observer(counter):
    run, events = make(counter), []
    run.notify = events.append
    assert (run.state, run.step, run.history.rows) == ("ready", 0, [])
    counter.allow(4)
    run.start(SETTINGS)
    assert run.wait(PATIENCE) == "done"
    assert run.step == 4 and LiveRun.active is None
    assert events.count("step") == 4 and events.count("measured") == 3  # the end draws once more
    assert events[0] == events[-1] == "state"
    assert [row["step"] for row in measurements(run.history)] == [2, 4]


def test_a_pause_ends_the_thread_after_its_step_and_resume_continues(counter):
    run = make(counter)
    run.start(SETTINGS)
    assert counter.waiting.acquire(timeout=PATIENCE)
    run.ask_for("paused")
    assert (run.state, run.ending) == ("running", "paused")
    counter.allow()
    assert run.wait(PATIENCE) == "paused"
    assert (run.step, run.ending, LiveRun.active) == (1, None, None)
    run.ask_for("stopped")
    assert run.state == "stopped"
    counter.allow(3)
    run.resume()
    assert run.wait(PATIENCE) == "done" and run.step == 4


def test_what_does_not_fit_the_state_changes_nothing(counter):
    run = make(counter)
    run.resume()
    run.ask_for("paused")
    assert run.state == "ready" and run.reset() is None
    run.start(SETTINGS)
    thread = run.thread
    run.start(DPOSettings(steps=4, beta=2.0))
    run.resume()
    assert run.thread is thread and run.settings == SETTINGS and run.reset() is None


def test_starting_or_making_another_run_pauses_this_one(counter):
    run, other = make(counter), Counter()
    run.start(SETTINGS)
    assert counter.waiting.acquire(timeout=PATIENCE)
    second = make(other)
    assert run.ending == "paused" and second.state == "ready"
    counter.allow()
    assert run.wait(PATIENCE) == "paused"
    run.resume()
    assert counter.waiting.acquire(timeout=PATIENCE)
    other.allow(4)
    second.start(SETTINGS)
    counter.allow()
    assert run.wait(PATIENCE) == "paused" and second.wait(PATIENCE) == "done"


def test_a_failure_is_kept_in_words_and_can_be_resumed(counter):
    run = make(counter)
    counter.error = RuntimeError("no memory left")
    counter.allow()
    run.start(SETTINGS)
    assert run.wait(PATIENCE) == "failed"
    assert run.error == "RuntimeError: no memory left"
    counter.error = None
    counter.allow(4)
    run.resume()
    assert run.wait(PATIENCE) == "done" and run.error is None


def test_an_archived_run_gives_its_history_and_its_settings_bring_it_back(counter):
    run = make(counter)
    counter.allow(4)
    run.start(SETTINGS)
    run.wait(PATIENCE)
    rows = run.history.rows
    assert run.reset().rows == rows
    assert (run.state, run.step, run.history.rows) == ("ready", 0, [])
    assert digest(run.policy) == digest(REFERENCE)
    run.start(SETTINGS)  # needs no permit: all its steps are in the file
    assert run.wait(PATIENCE) == "done"


def test_only_a_pause_or_a_stop_can_be_asked_for(counter):
    with pytest.raises(ValueError, match="state must be one of 'paused', 'stopped', got 'done'"):
        make(counter).ask_for("done")


def test_a_folder_must_exist(counter, tmp_path):
    assert make(counter, tmp_path).folder == tmp_path
    with pytest.raises(ValueError, match=r"no folder .*make it first"):
        make(counter, tmp_path / "no")
    with pytest.raises(TypeError, match="folder must be the path of a folder or None, got 3"):
        make(counter, 3)
