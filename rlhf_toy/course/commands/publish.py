"""Write the course's address and version into all notebooks; a fork runs this once.

The command writes the address to `pyproject.toml`, and address and version to the setup cell and
the Colab badge of every notebook.
"""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_toy.course.commands.usage import UsageError, check_writable, read_notebook
from rlhf_toy.files import atomic_file

if TYPE_CHECKING:
    from nbformat import NotebookNode

SETUP_TAG = "setup"
BADGE_TAG = "badge"

SETUP_CELL = """\
REPO, VERSION = "{repo}", "{version}"
from importlib import metadata

from packaging.version import Version

try:
    installed = metadata.version("rlhf_toy")
except metadata.PackageNotFoundError:
    installed = "0"
if Version(installed) < Version(VERSION):
    %pip install --quiet --no-deps "git+{{REPO}}"
from rlhf_toy.course.setup import setup

setup(VERSION)"""

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{place}/blob/main/notebooks/{name})"
)
UNPUBLISHED = "your-account/"  # in the course's own repository, until a fork has an address
NOT_YET = (
    "*A link to Colab appears here once the course has an address: "
    "`python -m rlhf_toy publish --repo ADDRESS`.*"
)
NO_BADGE = "To run this notebook, open it in Jupyter; the course is at {repo}."

_ADDRESS = re.compile(
    r"https?://[\w.-]+(:\d+)?/[\w.~/%+-]+|ssh://([\w.-]+@)?[\w.-]+(:\d+)?/[\w.~/%+-]+"
    r"|file:///[\w.~/%+:-]+",
    re.ASCII,
)
_GITHUB = re.compile(r"https://github\.com/([\w-]{1,39}/[\w.-]{1,100})", re.ASCII)
_REPOSITORY_LINE = re.compile(r'^Repository = "[^"\n]*"$', re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--repo",
        required=True,
        metavar="URL",
        help="where the course can be cloned from, such as https://github.com/OWNER/NAME, "
        "or a folder on this machine",
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="the checkout (default: the one you are in)"
    )


def run(args: argparse.Namespace) -> int:
    """Write address and version to pyproject.toml and all notebooks, or refuse before any change.

    Raises:
        UsageError: the address or the checkout cannot be used. Nothing has been written then.
    """
    repo = normalise_address(args.repo)
    root = _checkout(args.root)
    project, version = _stamped_project(root / "pyproject.toml", repo)
    changes = {root / "pyproject.toml": project}
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise UsageError(f"no notebooks in {root / 'notebooks'}")
    for path in notebooks:
        changes[path] = stamp_notebook(path, repo, version)
    for path in changes:
        check_writable("--root", path)
    changed = 0
    for path, text in changes.items():
        data = text.encode()
        if path.read_bytes() != data:
            with atomic_file(path) as file:
                file.write(data)
            changed += 1
    print(f"{repo}, version {version}: {changed} of {len(changes)} files changed in {root}")
    return 0


def normalise_address(repo: str) -> str:
    """Return the form of an address that goes into the notebooks.

    Args:
        repo: a URL that git can clone from, or a folder on this machine.

    Returns:
        The URL without a final slash and, on GitHub, without `.git`; for a folder, `file://…`.

    Raises:
        UsageError: it is neither, or it contains a user name or password.
    """
    if os.path.isdir(repo):  # Path.is_dir raises an error where the text is too long for a path
        return Path(repo).resolve().as_uri()
    address = repo.rstrip("/")
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--repo: {repo!r:.200} is neither a folder nor the address of a repository, such as "
            "https://github.com/OWNER/NAME (without user name or password)"
        )
    if address.startswith("https://github.com/"):
        address = address.removesuffix(".git")
        if not _GITHUB.fullmatch(address):
            raise UsageError(
                f"--repo: {repo!r:.200} must have the form https://github.com/OWNER/NAME"
            )
    return address


def setup_cell(repo: str, version: str) -> str:
    """Return the source of the setup cell, with which every notebook begins."""
    return SETUP_CELL.format(repo=repo, version=version)


def github_place(repo: str) -> str | None:
    """Return OWNER/NAME if the course has been published on GitHub, else None."""
    github = _GITHUB.fullmatch(repo)
    return github[1] if github and not github[1].startswith(UNPUBLISHED) else None


def badge_cell(repo: str, name: str) -> str:
    """Return the Markdown of the badge cell: a link to Colab if the course is on GitHub."""
    place = github_place(repo)
    if place:
        return BADGE.format(place=place, name=name)
    return NOT_YET if _GITHUB.fullmatch(repo) else NO_BADGE.format(repo=repo)


def tagged_cell(notebook: NotebookNode, tag: str, cell_type: str) -> NotebookNode:
    """Return the only cell of this type with this tag.

    Raises:
        ValueError: there is no such cell, or more than one.
    """
    found = [
        cell
        for cell in notebook.cells
        if tag in cell.metadata.get("tags", []) and cell.cell_type == cell_type
    ]
    if len(found) != 1:
        raise ValueError(f"exactly one {cell_type} cell must be tagged {tag!r}, found {len(found)}")
    return found[0]


def stamp_notebook(path: Path, repo: str, version: str) -> str:
    """Return the text of a notebook with new setup and badge cells and no other change.

    Raises:
        UsageError: the file is not a valid notebook, or a cell is missing.
    """
    import nbformat

    notebook = read_notebook(path)
    try:
        tagged_cell(notebook, SETUP_TAG, "code").source = setup_cell(repo, version)
        tagged_cell(notebook, BADGE_TAG, "markdown").source = badge_cell(repo, path.name)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return nbformat.writes(notebook) + "\n"


def _checkout(root: Path | None) -> Path:
    """Return the checkout: the folder given, or the nearest one above the working folder."""
    here = Path.cwd()
    for folder in [root] if root else [here, *here.parents]:
        project = folder / "pyproject.toml"
        if os.path.isfile(project) and b'name = "rlhf_toy"' in project.read_bytes():
            return folder
    raise UsageError(f"{root or here} is not in a checkout of the course: give one with --root")


def _stamped_project(path: Path, repo: str) -> tuple[str, str]:
    """Return the text of pyproject.toml with the address in it, and the version it declares."""
    try:
        text, count = _REPOSITORY_LINE.subn(
            lambda _: f'Repository = "{repo}"', path.read_text(encoding="utf-8")
        )
        version = tomllib.loads(text)["project"]["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a pyproject.toml with a version: {error}") from None
    if count != 1:
        raise UsageError(f'{path} must have one line `Repository = "…"`, found {count}')
    return text, version
