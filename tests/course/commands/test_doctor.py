"""`python -m rlhf_toy doctor`."""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rlhf_toy.__main__ import main
from rlhf_toy.course.commands.publish import setup_cell

VERSION = metadata.version("rlhf_toy")


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one notebook for the installed version, and no kernels but Python's."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    _write(folder / "00.ipynb", VERSION)
    return folder


def _write(path: Path, version: str) -> None:
    """Writes a notebook with a setup cell for that version."""
    cell = new_code_cell(setup_cell("https://github.com/a/b", version))
    nbformat.write(new_notebook(cells=[cell]), path)


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    """Lets one distribution seem to have another version, or none."""
    real = metadata.version

    def seeming(asked: str) -> str:
        if asked != name:
            return real(asked)
        if version is None:
            raise metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(metadata, "version", seeming)


def _lines(capsys: pytest.CaptureFixture[str], status: str) -> list[str]:
    """What was printed under one status mark, each with the line after it."""
    lines = capsys.readouterr().out.splitlines()
    return [
        f"{line}\n{following}"
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith(status)
    ]


def test_a_sound_environment_passes(notebooks, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "all is well"
    checked = ("Python ", "numpy ", "torch ", "torch computes on", "ipywidgets ", "nbval ")
    for what in (*checked, "jupyter kernel python3", "the notebooks here (1)"):
        assert f"ok    {what}" in out


@pytest.mark.parametrize(("version", "seen"), [(None, "no scipy"), ("1.0.0", "scipy 1.0.0")])
def test_a_missing_or_old_dependency_fails_with_a_fix(
    notebooks, monkeypatch, capsys, version, seen
):
    _pretend_installed(monkeypatch, "scipy", version)
    assert main(["doctor"]) == 1
    (failure,) = _lines(capsys, "FAIL")
    assert seen in failure
    assert f'fix it with: {sys.executable} -m pip install "scipy' in failure


def test_a_dependency_newer_than_the_range_is_only_a_warning(notebooks, monkeypatch, capsys):
    _pretend_installed(monkeypatch, "ipywidgets", "99.0")
    assert main(["doctor"]) == 0
    (warning,) = _lines(capsys, "warn")
    assert "ipywidgets 99.0" in warning and "fix it with" in warning


def test_colab_s_ipywidgets_passes(notebooks, monkeypatch, capsys):
    _pretend_installed(monkeypatch, "ipywidgets", "7.7.1")
    assert main(["doctor"]) == 0
    assert "ok    ipywidgets 7.7.1" in capsys.readouterr().out


def test_missing_nbval_fails(notebooks, monkeypatch, capsys):
    _pretend_installed(monkeypatch, "nbval", None)
    assert main(["doctor"]) == 1
    assert "no nbval" in _lines(capsys, "FAIL")[0]


def test_a_torch_that_computes_wrongly_fails(notebooks, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (a * b).sum() * 2)
    assert main(["doctor"]) == 1
    assert "wrong gradients" in _lines(capsys, "FAIL")[0]


def test_notebooks_for_another_version_fail(notebooks, capsys):
    _write(notebooks / "01.ipynb", "9.9.9")
    assert main(["doctor"]) == 1
    (failure,) = _lines(capsys, "FAIL")
    assert "01.ipynb (9.9.9)" in failure and "00.ipynb" not in failure
    assert "rlhf_toy publish --repo https://" in failure


def test_notebooks_that_cannot_be_read_fail(notebooks, capsys):
    (notebooks / "01.ipynb").write_bytes(b"\xff\xfe")
    (notebooks / "02.ipynb").mkdir()
    assert main(["doctor"]) == 1
    (failure,) = _lines(capsys, "FAIL")
    assert "01.ipynb (cannot be read: " in failure and "02.ipynb (cannot be read: " in failure
    assert "00.ipynb" not in failure


def test_a_folder_without_notebooks_is_only_a_warning(notebooks, capsys):
    assert main(["doctor", "--notebooks", "elsewhere"]) == 0
    assert "no notebooks here" in _lines(capsys, "warn")[0]


def test_a_kernel_of_another_python_is_a_warning(notebooks, capsys):
    folder = notebooks.parent / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["/elsewhere/python"], "display_name": "x"}')
    assert main(["doctor"]) == 0
    assert "another Python, /elsewhere/python" in _lines(capsys, "warn")[0]


def test_a_folder_that_cannot_be_written_to_fails(notebooks, monkeypatch, capsys):
    def refuse(dir: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main(["doctor"]) == 1
    assert "cannot be written to: Permission denied" in _lines(capsys, "FAIL")[0]
