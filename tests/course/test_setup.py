"""The notebooks' setup helper, without a real installation (that is in tests/notebooks)."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from rlhf_toy.course import setup as notebook

VERSION = metadata.version("rlhf_toy")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Lets distributions seem to have other versions (None: to be missing)."""
    real = metadata.version

    def pretend(**versions: str | None) -> None:
        def seeming(name: str) -> str:
            found = versions.get(name, real(name))
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", seeming)

    return pretend


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Records what pip would have been asked for, with the constraints it would have seen."""
    calls: list[dict] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        after = command.index("-c") + 1
        with open(command[after]) as file:
            calls.append({"wanted": command[after + 1 :], "kept": file.read().split()})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_nothing_is_installed_if_nothing_is_missing(pip, capsys):
    notebook.setup(VERSION)
    assert pip == []
    assert capsys.readouterr().out == f"rlhf_toy {VERSION} is ready\n"


@pytest.mark.parametrize("found", [None, "0.9.0"])
def test_only_what_is_missing_is_installed_and_torch_and_numpy_are_held(
    pip, pretend, monkeypatch, found
):
    monkeypatch.delitem(sys.modules, "gymnasium")
    pretend(gymnasium=found)
    notebook.setup(VERSION)
    (call,) = pip
    assert [wanted.split(">")[0].split("<")[0] for wanted in call["wanted"]] == ["gymnasium"]
    held = [f"{name}=={metadata.version(name)}" for name in ("numpy", "torch")]
    assert sorted(call["kept"]) == held


@pytest.mark.parametrize("name", ["torch", "numpy"])
@pytest.mark.parametrize("found", [None, "1.0"])
def test_torch_and_numpy_are_never_installed(pip, pretend, name, found):
    pretend(**{name: found, "tqdm": None})
    with pytest.raises(RuntimeError, match=rf'pip install "{name}[<>]'):
        notebook.setup(VERSION)
    assert pip == []


def test_ipywidgets_is_left_alone_on_colab(pip, pretend, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    pretend(ipywidgets="7.0.0", tqdm="4.0")
    monkeypatch.delitem(sys.modules, "tqdm")
    notebook.setup(VERSION)
    (call,) = pip
    assert len(call["wanted"]) == 1 and call["wanted"][0].startswith("tqdm")
    assert "ipywidgets==7.0.0" in call["kept"]


def test_what_is_newer_than_the_range_is_left_alone(pip, pretend):
    pretend(scipy="99.0", torch="99.0")
    notebook.setup(VERSION)
    assert pip == []


def test_a_package_that_was_replaced_while_in_use_asks_for_a_restart(pip, pretend, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", ModuleType("scipy"))
    pretend(scipy="1.0.0")
    with pytest.raises(RuntimeError, match=r"scipy was updated, .* restart the kernel"):
        notebook.setup(VERSION)


def test_pip_s_own_words_are_shown_when_it_fails(pretend, monkeypatch):
    pretend(tqdm=None)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"could not install tqdm.*\nERROR: no network"):
        notebook.setup(VERSION)


def test_a_notebook_for_a_newer_package_says_so():
    with pytest.raises(RuntimeError, match=r"needs rlhf_toy 99\.0, but"):
        notebook.setup("99.0")
