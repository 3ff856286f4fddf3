"""What is done stays done, in the next kernel too."""

import inspect
import textwrap

import pytest

from rlhf_toy.course import exercises, record
from rlhf_toy.course.exercises import _EXERCISES


@pytest.fixture(autouse=True)
def restart(monkeypatch):
    """A function that forgets what the kernel knows."""
    monkeypatch.setattr(exercises, "_states", {})
    return exercises._states.clear


def right(name):
    """A copy of the solution: calling the package's own function is no answer."""
    solution = _EXERCISES[name].solution
    names = vars(inspect.getmodule(solution)).copy()
    exec(textwrap.dedent(inspect.getsource(solution)), names)
    return names[solution.__name__]


def wrong(*_):
    return 0


def untouched(*_): ...


def line(capsys):
    capsys.readouterr()
    exercises.progress()
    (found,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("06")]
    return found


def test_progress_survives_a_restart_of_the_kernel(restart, capsys):
    exercises.check("log_partition", right("log_partition"))
    exercises.check("gibbs_policy", wrong)
    restart()
    exercises.check("kkt_residual", untouched)
    for _ in range(2):
        said = line(capsys)
        assert "log_partition: done" in said and "gibbs_policy: tried" in said
        assert "kl_divergence: open" in said and "kkt_residual: open" in said
        # What follows is worse than what was reached before, and changes nothing.
        exercises.check("log_partition", wrong)
        exercises.check("gibbs_policy", untouched)
        restart()
    exercises.check("gibbs_policy", right("gibbs_policy"))
    restart()
    assert "gibbs_policy: done" in line(capsys)


def test_an_untouched_notebook_writes_nothing():
    exercises.check("log_partition", untouched)
    exercises.progress()
    assert not record.FILE.exists()


def test_without_a_file_progress_lasts_as_long_as_the_kernel(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "FILE", tmp_path / "nowhere" / "my_progress.json")
    mine = right("log_partition")
    assert exercises.check("log_partition", mine) is mine
    assert "Not kept for the next session: cannot write to" in capsys.readouterr().out
    assert "log_partition: done" in line(capsys)


def test_states_that_the_course_does_not_know_count_as_open(capsys):
    record.keep(record.EXERCISES, "log_partition", "perfect")
    record.keep(record.EXERCISES, "an_exercise_of_another_version", "done")
    assert "log_partition: open" in line(capsys)
