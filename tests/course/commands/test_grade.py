"""`python -m rlhf_toy grade`: a class of twelve, resuming, and wrong command lines."""

import os
import shutil
import subprocess
import sys

import pytest
from made_up_class import class_of_12, complaints, hand_in

from rlhf_toy.course.commands import command_line
from rlhf_toy.course.exercises import all_exercises
from rlhf_toy.course.exercises.grading import Counterexample, Verdict
from rlhf_toy.course.submissions import grader
from rlhf_toy.course.submissions.collect import collect
from rlhf_toy.course.submissions.grader import Graded


def test_a_class_of_twelve(tmp_path):
    made = class_of_12()
    folder, output = tmp_path / "Übung 8", tmp_path / "graded"
    folder.mkdir()
    hand_in(made, folder)
    command = [sys.executable, "-m", "rlhf_toy", "grade", str(folder), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"12 submissions: see {(output / 'index.html').as_uri()}" in done.stdout
    found = complaints(made, output)
    assert not found, "\n".join(found)
    assert len(list((output / "feedback").iterdir())) == 12


class Unchanged:
    """Stands in for the grading itself, and records which students would be graded."""

    def __init__(self, monkeypatch):
        self.students, self.verdict = [], Verdict("missing")
        monkeypatch.setattr(grader, "prepare", lambda: None)
        monkeypatch.setattr(grader, "grade_all", self)

    def __call__(self, submissions, jobs, hidden):
        assert jobs >= 1 and [path.name for path in hidden] == ["in", "out"]
        for submission in submissions:
            self.students.append(submission.student)
            yield submission, Graded(dict.fromkeys(all_exercises(), self.verdict))


def test_only_what_is_new_or_damaged_is_graded_again(tmp_path, monkeypatch, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    for name in ("Anna", "Ben", "Cem"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.ipynb").write_text(name)
    seen = Unchanged(monkeypatch)
    arguments = ["grade", str(folder), "--output", str(output)]

    def again():
        seen.students.clear()
        assert command_line.main(arguments) == 0
        return seen.students

    assert again() == ["Anna", "Ben", "Cem"]
    assert again() == []
    (folder / "Ben" / "a.ipynb").write_text("Ben, second try")
    assert again() == ["Ben"]
    (folder / "Dana.ipynb").write_text("Dana")
    assert again() == ["Dana"]
    damaged = output / "finished" / f"{grader.fingerprint(collect(folder)[0])}.json"
    for content in ("", "{", "[]", '{"verdicts": {}}', '{"verdicts": 3, "problems": []}'):
        damaged.write_text(content)
        assert again() == ["Anna"]
    shutil.rmtree(output)
    seen.verdict = Verdict("not graded", "The grader's process was killed.")
    for _ in range(2):
        assert again() == ["Anna", "Ben", "Cem", "Dana"]


def test_a_graded_submission_survives_the_way_through_a_file():
    example = Counterexample({"x": "[1, é]"}, "2", "3")
    verdicts = {name: Verdict("right") for name in all_exercises()}
    verdicts["gae"] = Verdict("wrong", "hint", example, "sign")
    graded = Graded(verdicts, ["a.ipynb: no"], ["the network is not cut off"])
    assert Graded.from_json(graded.to_json()) == graded


def error(arguments, capsys):
    assert command_line.main(["grade", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("rlhf_toy: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_wrong_command_line_is_refused_before_any_work(tmp_path, capsys):
    folder, empty = tmp_path / "in", tmp_path / "empty"
    for path in (folder, empty, tmp_path / "out" / "index.html"):
        path.mkdir(parents=True)
    (folder / "a.ipynb").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))
    for source, output, said in (
        (tmp_path / "no such", tmp_path / "new", "there is no folder or zip file"),
        (tmp_path / "file", tmp_path / "new", "neither a folder nor a zip file"),
        (empty, tmp_path / "new", "there is nothing to grade in"),
        (folder, folder, "with the submissions; give another"),
        (folder, folder / "graded", "with the submissions; give another"),
        (folder, tmp_path / "link" / "graded", "with the submissions; give another"),
        (folder, tmp_path / "file", "is not a folder; give another"),
        (folder, tmp_path / "file" / "graded", "is not a folder; give another"),
        (folder, tmp_path / "out", "index.html"),
    ):
        assert said in error([source, "--output", output], capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission_is_refused(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{}")
    assert "no right to create a folder in" in error([tmp_path, "--output", "/sys/new"], capsys)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_another_system_than_linux_is_refused(tmp_path, capsys, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert "grade needs Linux" in error([tmp_path, "--output", tmp_path / "new"], capsys)


def test_the_output_is_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["grade", "folder"])
    assert stopped.value.code == 2
