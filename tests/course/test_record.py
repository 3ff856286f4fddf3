"""The student's record: it survives, it is whole, and a broken one is set aside."""

import json
import subprocess
import sys

import pytest

from rlhf_toy.course import record
from rlhf_toy.course.record import EXERCISES, PREDICTIONS, keep, recall


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_kept_is_there_for_another_process(folder):
    keep(EXERCISES, "gae", "done")
    keep(PREDICTIONS, "β", 'it "falls"\nto 0')
    code = (
        "from rlhf_toy.course.record import keep, recall\n"
        "keep('exercises', 'luck', 'tried')\nprint(ascii(recall('predictions')))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(there.stdout) == {"β": 'it "falls"\nto 0'}
    assert recall(EXERCISES) == {"gae": "done", "luck": "tried"}
    assert names(folder) == ["my_progress.json"]


def test_reading_and_repeating_write_nothing(folder):
    assert recall(EXERCISES) == {} and names(folder) == []
    keep(EXERCISES, "gae", "done")
    before = (folder / "my_progress.json").stat()
    keep(EXERCISES, "gae", "done")
    assert (folder / "my_progress.json").stat() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"exercises": [], "predictions": {}}',
        b'{"exercises": {"gae": 1}, "predictions": {}}',
        b"[" * 100_000,
    ],
)
def test_a_broken_file_is_set_aside_with_one_sentence(folder, content, capsys):
    (folder / "my_progress.json").write_bytes(content)
    assert recall(EXERCISES) == {}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and len(said) < 250
    assert said.startswith("my_progress.json cannot be used (")
    assert said.endswith("it is now my_progress.broken1.json, and a new one is begun.\n")
    assert (folder / "my_progress.broken1.json").read_bytes() == content
    keep(EXERCISES, "gae", "done")
    assert recall(EXERCISES) == {"gae": "done"} and capsys.readouterr().out == ""
    (folder / "my_progress.json").write_bytes(content)
    recall(EXERCISES)
    assert names(folder) == ["my_progress.broken1.json", "my_progress.broken2.json"]


def test_a_file_that_cannot_be_written_stops_nothing(folder, monkeypatch, capsys):
    (folder / "my_progress.json").mkdir()

    def replace(*_):
        raise PermissionError(1, "no")

    monkeypatch.setattr(record.os, "replace", replace)
    keep(EXERCISES, "gae", "done")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("nor set aside: no.")
    assert second.startswith("Not kept for the next session: cannot write to 'my_progress.json'")


def test_what_a_newer_version_keeps_beside_is_not_lost(folder):
    text = {"exercises": {}, "predictions": {}, "more": {"a": "b"}}
    (folder / "my_progress.json").write_text(json.dumps(text))
    keep(EXERCISES, "gae", "done")
    assert json.loads((folder / "my_progress.json").read_text())["more"] == {"a": "b"}
