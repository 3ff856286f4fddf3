"""The export: a folder with which TRL can go on, whole or not at all."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("trl")

from rlhf_toy.__main__ import main
from rlhf_toy.bridge import from_hugging_face
from rlhf_toy.course.commands import export
from rlhf_toy.course.worlds import make_world
from rlhf_toy.sft import SFTSettings, train_reference


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint and its policy."""
    path = tmp_path_factory.mktemp("runs") / "reference.ck"
    world = make_world("dishes")
    policy, _ = train_reference(world, SFTSettings(steps=60), 0, "cpu", checkpoint=path)
    return path, policy


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "here"
    options = ["--world", "dishes", "--policy", str(trained[0]), "--preferences", "600"]
    assert main(["export", str(folder), *options]) == 0
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_is_the_checkpoint_s(exported, trained):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported / "model")
    back = from_hugging_face(model, make_world("dishes")).state_dict()
    for name, weight in trained[1].state_dict().items():
        assert weight.equal(back[name]), name


def test_the_preferences_are_texts_and_split(exported):
    train, test = rows(exported / "train.jsonl"), rows(exported / "test.jsonl")
    assert (len(train), len(test)) == (540, 60)
    assert {row["prompt"] for row in train} == {"soup", "curry", "salad", "cake"}
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in train + test)
    assert all(
        row[side].startswith(" ") for row in train for side in ("chosen", "rejected") if row[side]
    )


def test_its_dpo_script_closes_some_of_the_gap(exported):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(exported / "train_dpo.py"), "--steps", "8"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    gaps = [float(line.split("gap ")[1].split("%")[0]) for line in lines]
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 6", "step 8"]
    assert 100 > gaps[0] > gaps[-1] > 0
    assert (exported / "trained_dpo" / "config.json").exists()


def refused(arguments, capsys):
    assert main(["export", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_cannot_work_is_refused_before_any_work(trained, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    policy = ["--policy", trained[0]]
    new = tmp_path / "new"
    assert "not empty" in refused([full, "--world", "dishes", *policy], capsys)
    assert "not empty" in refused([full / "mine.txt", "--world", "dishes", *policy], capsys)
    for nowhere in (tmp_path / "no" / "where", full / "mine.txt" / "sub", tmp_path / ("n" * 300)):
        assert "cannot be created" in refused([nowhere, "--world", "dishes", *policy], capsys)
    (full / "loop").symlink_to("loop")
    assert "not empty" in refused([full / "loop", "--world", "dishes", *policy], capsys)
    assert "--world" in refused([new, "--world", "nowhere"], capsys)
    assert "--preferences" in refused([new, "--preferences", "3"], capsys)
    assert "--preferences" in refused([new, "--preferences", "9" * 30], capsys)
    for seed in ("-1", "9" * 30):
        assert "--seed" in refused([new, "--seed", seed], capsys)
    assert "another world" in refused([new, "--world", "reviews", *policy], capsys)
    assert "checkpoint" in refused([new, "--policy", full / "mine.txt"], capsys)
    assert "--policy" in refused([new, "--policy", tmp_path / "nothing.ck"], capsys)
    assert not new.exists() and (full / "mine.txt").read_text() == "keep me"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rlhf_toy.bridge", None)
    assert "rlhf_toy[bridge]" in refused([tmp_path / "new"], capsys)


def test_a_trl_that_is_too_old_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "version", lambda name: "1.9")
    assert "needs trl 1.16 or newer, found 1.9" in refused([tmp_path / "new"], capsys)
