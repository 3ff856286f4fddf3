"""Files that a run is saved to: whole or not at all, and refused for any other run."""

import random
from dataclasses import dataclass

import pytest
import torch

from rlhf_toy.checkpoints import Checkpoint, digest


@dataclass(frozen=True)
class Settings:
    steps: int = 60
    rate: float = 0.5


STATE = {"state": {"step": 3, "weights": torch.arange(4.0)}, "history": {"rows": [{"loss": 0.5}]}}


def checkpoint(path, name="walk", settings=Settings(), seed=0, **inputs):
    return Checkpoint(path, name, settings, seed, **{"inputs": "same"} | inputs)


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "walk.pt"
    assert checkpoint(path).load() is None
    checkpoint(path).save(STATE)
    found = checkpoint(path).load()
    assert torch.equal(found["state"].pop("weights"), torch.arange(4.0))
    assert found == {"state": {"step": 3}, "history": STATE["history"]}
    checkpoint(path).save({"state": 4})
    assert checkpoint(path).load() == {"state": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["walk.pt"]


def test_without_a_path_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(None).save(STATE)
    assert checkpoint(None).load() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "run"}, "run is 'walk' there and 'run' here"),
        ({"settings": Settings(rate=0.4)}, "rate is 0.5 there and 0.4 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"inputs": "other"}, "inputs is '.*' there and '.*' here"),
        ({"more": torch.zeros(1)}, "more is None there and '.*' here"),
        ({"seed": 1, "settings": Settings(steps=2)}, "seed is .*; steps is 60 there and 2 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, change, words):
    path = tmp_path / "walk.pt"
    checkpoint(path).save(STATE)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"walk\.pt belongs to another run: {words}"):
        checkpoint(path, **change).load()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 broken zip"])
def test_an_unreadable_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "walk.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint(path).load()


@pytest.mark.parametrize("where", [0, 40, 100, 500, -1])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_checkpoint_is_refused_with_its_name(tmp_path, where, damage):
    path = tmp_path / "walk.pt"
    checkpoint(path).save(STATE)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[where] ^= 1
    else:
        content = content[:where]
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"walk\.pt is (damaged|no checkpoint)"):
        checkpoint(path).load()
    assert path.read_bytes() == bytes(content)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "walk.pt"
    link = checkpoint(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"walk\.pt cannot be read: Is a directory"):
        link.load()


def test_a_checkpoint_with_arbitrary_objects_is_not_unpickled(tmp_path):
    path = tmp_path / "walk.pt"
    checkpoint(path).save({"state": random.Random(0)})
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint(path).load()


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "walk.pt"
    checkpoint(path).save(STATE)
    before = path.read_bytes()

    def fails(state, file):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(OSError, match="disk full"):
            checkpoint(path).save({"state": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.pt"]
    assert checkpoint(path).load()["state"]["step"] == 3


@pytest.mark.parametrize(("path", "words"), [("missing/walk.pt", "no folder"), (".", "directory")])
def test_a_path_that_cannot_be_written_to_is_refused_at_once(tmp_path, path, words):
    with pytest.raises(ValueError, match=words):
        checkpoint(tmp_path / path)


def test_a_digest_tells_values_apart():
    one = torch.arange(4)
    others = [one + 1, one.float(), one.view(2, 2), torch.nn.Linear(2, 2), "0123", (one, one), 4]
    digests = [digest(value) for value in (one, *others)]
    assert len(set(digests)) == len(digests)
    assert digest(one.clone()) == digest(one)
    assert digest((one, "a")) == digest((one.clone(), "a")) != digest((one, "b"))
    assert digest(one, 4) != digest(one) != digest(4, one)


def test_the_digest_of_a_module_is_that_of_its_weights():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = digest(one)
    assert before != digest(other)
    other.load_state_dict(one.state_dict())
    assert digest(other) == before
    with torch.no_grad():
        other.bias[1] += 1e-6
    assert digest(other) != before
