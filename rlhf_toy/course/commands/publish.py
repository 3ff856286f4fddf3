"""Stamp the course's address and version into all notebooks: what a fork runs once.

The address stands in one place, `pyproject.toml`; this command writes it there, and from there
into the setup cell and the Colab badge of every notebook.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_toy.course.commands.usage import UsageError
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
NO_BADGE = "To run this notebook, open it in Jupyter; the course is at {repo}."

_ADDRESS = re.compile(
    r"https?://[\w.-]+(:\d+)?/[\w.~/%+-]+|ssh://([\w.-]+@)?[\w.-]+(:\d+)?/[\w.~/%+-]+"
    r"|file:///[\w.~/%+:-]+",
    re.ASCII,
)
_GITHUB = re.compile(r"https://github\.com/([\w-]+/[\w.-]+?)", re.ASCII)
_REPOSITORY_LINE = re.compile(r'^Repository = "[^"\n]*"$', re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
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
    """Stamps the checkout's pyproject.toml and notebooks, all of them or none.

    Raises:
        UsageError: an address or a checkout that cannot be used; nothing has been written then.
    """
    repo = normalise_address(args.repo)
    root = _checkout(args.root)
    changes = _stamped_project(root / "pyproject.toml", repo)
    version = tomllib.loads(changes[root / "pyproject.toml"])["project"]["version"]
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise UsageError(f"no notebooks in {root / 'notebooks'}")
    for path in notebooks:
        changes[path] = stamp_notebook(path, repo, version)
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
    """The form of an address that is stamped.

    Args:
        repo: a URL that git can clone from, or a folder on this machine.

    Returns:
        The URL without a slash or, on GitHub, `.git` at its end; a folder's as `file://`.

    Raises:
        UsageError: it is neither, or holds what must not be published (a password).
    """
    if repo and Path(repo).is_dir():
        return Path(repo).resolve().as_uri()
    address = repo.rstrip("/")
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"{repo!r} is neither a folder nor the address of a repository, such as "
            "https://github.com/OWNER/NAME (without user name or password)"
        )
    if address.startswith("https://github.com/"):
        address = address.removesuffix(".git")
        if not _GITHUB.fullmatch(address):
            raise UsageError(f"{repo!r} is not of the form https://github.com/OWNER/NAME")
    return address


def setup_cell(repo: str, version: str) -> str:
    """The source of the cell that every notebook begins with."""
    return SETUP_CELL.format(repo=repo, version=version)


def badge_cell(repo: str, name: str) -> str:
    """The Markdown of the cell that opens the notebook in Colab, where GitHub has it."""
    github = _GITHUB.fullmatch(repo)
    if github:
        return BADGE.format(place=github[1], name=name)
    return NO_BADGE.format(repo=repo)


def tagged_cell(notebook: NotebookNode, tag: str, cell_type: str) -> NotebookNode:
    """The only cell of that type with that tag.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [
        cell
        for cell in notebook.cells
        if tag in cell.metadata.get("tags", []) and cell.cell_type == cell_type
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} {cell_type} cells are tagged {tag!r}; there must be one")
    return found[0]


def stamp_notebook(path: Path, repo: str, version: str) -> str:
    """The text of a notebook with its setup and badge cells written anew, all else as it was.

    Raises:
        UsageError: the file is no valid notebook, or has no such cells.
    """
    import nbformat

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
        tagged_cell(notebook, SETUP_TAG, "code").source = setup_cell(repo, version)
        tagged_cell(notebook, BADGE_TAG, "markdown").source = badge_cell(repo, path.name)
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    return nbformat.writes(notebook) + "\n"


def _checkout(root: Path | None) -> Path:
    """The folder of the checkout: the one given, or the nearest above the working folder."""
    here = Path.cwd()
    for folder in [root] if root else [here, *here.parents]:
        project = folder / "pyproject.toml"
        if project.is_file() and 'name = "rlhf_toy"' in project.read_text(encoding="utf-8"):
            return folder
    raise UsageError(f"{root or here} is not in a checkout of the course: use --root")


def _stamped_project(path: Path, repo: str) -> dict[Path, str]:
    """pyproject.toml with the address written into it."""
    text, count = _REPOSITORY_LINE.subn(
        lambda _: f'Repository = "{repo}"', path.read_text(encoding="utf-8")
    )
    if count != 1:
        raise UsageError(f'{path} has no line `Repository = "…"` to write the address to')
    return {path: text}
