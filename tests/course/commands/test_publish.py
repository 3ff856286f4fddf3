"""`python -m rlhf_toy publish`."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rlhf_toy.__main__ import main

PROJECT = """\
[project]
name = "rlhf_toy"
version = "1.2.3"

[project.urls]
# The address.
Repository = "https://github.com/old-account/rlhf_toy"
"""
FORK = "https://github.com/a-teacher/my.course"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two notebooks."""
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    for name in ("00_start.ipynb", "01_next.ipynb"):
        cells = [
            new_markdown_cell("# Größe β"),
            new_markdown_cell("old badge", metadata={"tags": ["badge"]}),
            new_code_cell("old setup", metadata={"tags": ["setup", "kept"]}, execution_count=1),
            new_code_cell(
                "print('π')",
                metadata={"tags": ["nbval-ignore-output"]},
                execution_count=2,
                outputs=[new_output("stream", text="π\n")],
            ),
        ]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks" / name)
    return tmp_path


def _digests(folder: Path) -> dict[str, str]:
    """The content of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _cells(checkout: Path, name: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(checkout / "notebooks" / name, as_version=4).cells


def test_address_version_and_badges_are_stamped(checkout):
    assert main(["publish", "--repo", FORK, "--root", str(checkout)]) == 0

    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] == {"Repository": FORK}
    for name in ("00_start.ipynb", "01_next.ipynb"):
        _, badge, setup, _ = _cells(checkout, name)
        assert setup.source.startswith(f'REPO, VERSION = "{FORK}", "1.2.3"\n')
        assert '"git+{REPO}"' in setup.source
        colab = "https://colab.research.google.com/github/a-teacher/my.course/blob/main/notebooks/"
        assert f"({colab}{name})" in badge.source


def test_all_else_stays_as_it_was(checkout):
    before = nbformat.read(checkout / "notebooks" / "00_start.ipynb", as_version=4)
    assert main(["publish", "--repo", FORK, "--root", str(checkout)]) == 0
    after = nbformat.read(checkout / "notebooks" / "00_start.ipynb", as_version=4)

    for cell in (*before.cells[1:3], *after.cells[1:3]):
        cell.source = ""
    assert after == before
    rest = PROJECT.replace("https://github.com/old-account/rlhf_toy", FORK)
    assert (checkout / "pyproject.toml").read_text(encoding="utf-8") == rest


def test_a_second_run_changes_nothing(checkout, capsys):
    main(["publish", "--repo", FORK, "--root", str(checkout)])
    once = _digests(checkout)
    assert main(["publish", "--repo", FORK, "--root", str(checkout)]) == 0
    assert _digests(checkout) == once
    assert "0 of 3 files changed" in capsys.readouterr().out


def test_the_checkout_is_found_from_a_folder_inside_it(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "notebooks")
    assert main(["publish", "--repo", FORK]) == 0
    assert FORK in (checkout / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["/", ".git", ".git/"])
def test_github_addresses_are_stamped_in_one_form(checkout, ending):
    assert main(["publish", "--repo", FORK + ending, "--root", str(checkout)]) == 0
    assert f'Repository = "{FORK}"' in (checkout / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "address", ["https://git.example.org/x/course.git", "ssh://git@example.org/course"]
)
def test_without_github_there_is_no_badge(checkout, address):
    assert main(["publish", "--repo", address, "--root", str(checkout)]) == 0
    _, badge, setup, _ = _cells(checkout, "00_start.ipynb")
    assert "colab" not in badge.source and address in badge.source
    assert f'"{address}"' in setup.source


def test_an_address_that_leads_nowhere_gets_no_link(checkout):
    address = "https://github.com/your-account/course"
    assert main(["publish", "--repo", address, "--root", str(checkout)]) == 0
    badge = _cells(checkout, "00_start.ipynb")[1].source
    assert "http" not in badge and "publish --repo ADDRESS" in badge


def test_a_folder_is_stamped_as_a_file_address(checkout, tmp_path):
    clone = tmp_path / "a clone"
    clone.mkdir()
    assert main(["publish", "--repo", str(clone), "--root", str(checkout)]) == 0
    assert f'"{clone.as_uri()}"' in _cells(checkout, "00_start.ipynb")[2].source


@pytest.mark.parametrize(
    "address",
    [
        "",
        "no-such-folder",
        "git@github.com:a/b.git",
        "https://github.com/only-owner",
        "https://github.com/a/b/tree/main",
        "https://user:secret@github.com/a/b",
        'https://github.com/a/b"; import os',
        "https://example.org/$(reboot)",
        "https://example.org/{VERSION}",
        "ftp://example.org/a",
        f"https://github.com/{'o' * 5_000}/course",
        f"https://github.com/{'o' * 40}/course",
        "f" * 5_000,
    ],
)
def test_an_unusable_address_is_refused_and_nothing_written(checkout, address, capsys):
    before = _digests(checkout)
    assert main(["publish", "--repo", address, "--root", str(checkout)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rlhf_toy: error: --repo: ") and len(message) < 500
    assert _digests(checkout) == before


def _drop_setup_tag(checkout: Path) -> None:
    path = checkout / "notebooks" / "01_next.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace('"setup"', '"other"'))


def _second_badge(checkout: Path) -> None:
    path = checkout / "notebooks" / "01_next.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_markdown_cell("again", metadata={"tags": ["badge"]}))
    nbformat.write(notebook, path)


def _half_a_notebook(checkout: Path) -> None:
    path = checkout / "notebooks" / "01_next.ipynb"
    path.write_text(path.read_text(encoding="utf-8")[:100])


def _no_notebooks(checkout: Path) -> None:
    for path in (checkout / "notebooks").iterdir():
        path.unlink()


def _another_project(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('[project]\nname = "other"\n')


def _no_address(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text(PROJECT.replace("Repository", "Homepage"))


def _broken_project(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text(f"{PROJECT}[[[")


def _no_version(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text(PROJECT.replace("version", "motto"))


def _project_of_bytes(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_bytes(PROJECT.encode() + b"# \xff")


def _folder_for_a_notebook(checkout: Path) -> None:
    (checkout / "notebooks" / "02.ipynb").mkdir()


def _list_for_a_notebook(checkout: Path) -> None:
    (checkout / "notebooks" / "02.ipynb").write_text("[]")


@pytest.mark.parametrize(
    "spoil",
    [
        _broken_project,
        _no_version,
        _project_of_bytes,
        _folder_for_a_notebook,
        _list_for_a_notebook,
        _drop_setup_tag,
        _second_badge,
        _half_a_notebook,
        _no_notebooks,
        _another_project,
        _no_address,
    ],
)
def test_a_checkout_that_cannot_be_stamped_is_left_alone(checkout, spoil, capsys):
    spoil(checkout)
    before = _digests(checkout)
    assert main(["publish", "--repo", FORK, "--root", str(checkout)]) == 2
    assert capsys.readouterr().err.startswith("rlhf_toy: error: ")
    assert _digests(checkout) == before


def test_a_notebook_that_cannot_be_written_is_found_before_any_change(
    checkout, monkeypatch, capsys
):
    last = checkout / "notebooks" / "01_next.ipynb"
    before = _digests(checkout)
    monkeypatch.setattr("os.access", lambda path, mode: path != last)
    assert main(["publish", "--repo", FORK, "--root", str(checkout)]) == 2
    assert f"--root: cannot write to '{last}'" in capsys.readouterr().err
    assert _digests(checkout) == before
