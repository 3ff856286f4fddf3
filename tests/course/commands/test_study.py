"""`python -m rlhf_toy study`: all runs of a study, in parallel, resumable, in one small file."""

import json

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from rlhf_toy.__main__ import main
from rlhf_toy.course import studies
from rlhf_toy.course.commands import study


class Sums:
    """A study that only adds, and remembers what it was asked."""

    __name__ = "sums"

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def tasks(self):
        return [{"a": a, "seed": seed} for a in (1, 2) for seed in (0, 1)]

    def run(self, task):
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(task)
        return {"sum": task["a"] + task["seed"]}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on a study of the test's own, in one process."""

    def command(module):
        monkeypatch.setattr(studies, "study", lambda name: module)
        monkeypatch.setattr(study, "_run_one", lambda name, task: (task, module.run(task)))
        return main(["study", studies.NAMES[0], "--jobs", "1", "--output", str(tmp_path / "data")])

    return command


def results(tmp_path, name):
    return json.loads((tmp_path / "data" / f"{name}.json").read_text())["results"]


EXPECTED = [
    {"a": 1, "seed": 0, "sum": 1},
    {"a": 1, "seed": 1, "sum": 2},
    {"a": 2, "seed": 0, "sum": 2},
    {"a": 2, "seed": 1, "sum": 3},
]


def test_all_runs_come_into_one_file_in_their_order(run, tmp_path, capsys):
    assert run(Sums()) == 0
    assert results(tmp_path, studies.NAMES[0]) == EXPECTED
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f"{studies.NAMES[0]}.json"]
    assert capsys.readouterr().out.startswith("4 runs are in ")


def test_a_killed_study_goes_on_with_what_is_still_to_do(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Sums(fails_at=2))
    assert len(results(tmp_path, f"{studies.NAMES[0]}.unfinished")) == 2
    again = Sums()
    assert run(again) == 0
    assert again.asked == Sums().tasks()[2:]
    assert results(tmp_path, studies.NAMES[0]) == EXPECTED


@pytest.mark.parametrize(
    "options",
    [["no_such_study"], ["{name}", "--jobs", "0"], ["{name}", "--jobs", "-2"], []],
)
def test_what_cannot_be_used_is_refused(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [option.format(name=studies.NAMES[0]) for option in options]
    try:
        code = main(["study", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_for_the_data(tmp_path, capsys):
    path = tmp_path / "data"
    path.write_text("mine")
    assert main(["study", studies.NAMES[0], "--output", str(path)]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="there are ppo_parts"):
        studies.load("nothing")


@pytest.mark.parametrize("name", studies.NAMES)
def test_every_study_was_run_as_it_stands_and_can_be_drawn(name):
    module = studies.study(name)
    tasks, found = module.tasks(), studies.load(name)
    assert [{key: row[key] for key in tasks[0]} for row in found] == tasks
    assert len(json.dumps(tasks)) > 0
    drawn = module.figure(found)
    assert isinstance(drawn, Figure)
    plt.close(drawn)
