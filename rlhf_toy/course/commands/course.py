"""Run all notebooks and make the course's site from them."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_toy.course.commands.usage import (
    UsageError,
    check_jobs,
    check_writable,
    read_notebook,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Only a folder with this file in it was made here and may be replaced or tidied.
MARKER = ".rlhf_toy_course"

LONGEST_TIMEOUT = 10**6  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    folders = {
        "notebooks": ("notebooks", "the notebooks"),
        "output": ("build/course", "the pages"),
        "cache": ("build/cache", "what the next run can use again"),
    }
    for name, (default, what) in folders.items():
        parser.add_argument(
            f"--{name}",
            type=Path,
            default=Path(default),
            metavar="DIR",
            help=f"the folder of {what} (default: {default})",
        )
    parser.add_argument(
        "--timeout",
        type=int,
        default=1800,
        metavar="SECONDS",
        help="the time limit of one cell (default: 1800)",
    )
    parser.add_argument(
        "--jobs", type=int, default=-1, help="number of processes (default: one per core)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--in-place",
        action="store_true",
        help="if no cell fails, save the outputs in the notebooks too",
    )
    which.add_argument(
        "--saved", action="store_true", help="run nothing, and show the outputs that are saved"
    )


def run(args: argparse.Namespace) -> int:
    """Run the notebooks side by side, and make the site if no cell failed.

    Notebooks that have not changed since the last run do not run again. If a cell fails, the pages
    of an earlier run stay as they are.

    Returns:
        0 if the pages are there, 1 if a cell or Sphinx failed.

    Raises:
        UsageError: there are no notebooks, one cannot be read or saved, a folder cannot be used, or
            Sphinx is not installed. Nothing has been written then.
    """
    from rlhf_toy.course.site import build, execution

    if not 0 < args.timeout <= LONGEST_TIMEOUT:
        raise UsageError(f"--timeout must be from 1 to {LONGEST_TIMEOUT}, got {args.timeout}")
    check_jobs(args.jobs)
    try:
        paths = sorted(args.notebooks.glob("*.ipynb"))
    except OSError as error:
        raise UsageError(f"--notebooks: cannot read the folder: {error.strerror}") from None
    if not paths:
        raise UsageError(f"no notebooks in {args.notebooks}")
    notebooks = {path: read_notebook(path) for path in paths}
    for path in paths if args.in_place else ():
        check_writable("--in-place", path)
    if not build.DOCS.is_dir():
        raise UsageError(f"{build.ROOT} is not a checkout of the course: it has no folder docs")
    if importlib.util.find_spec("myst_nb") is None:
        raise UsageError("Sphinx is not installed: pip install -e .[site] -c constraints.txt")
    output, cache = (Path(os.path.realpath(folder)) for folder in (args.output, args.cache))
    if output.is_relative_to(cache) or cache.is_relative_to(output):
        raise UsageError(f"--output: {output} and --cache {cache} must not contain one another")
    _check_folder("--output", output)
    _check_folder("--cache", cache)

    for folder in ("executed", "sphinx"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    (cache / MARKER).touch()
    if not args.saved:
        failures = execution.run_all(notebooks, cache / "executed", args.timeout, args.jobs)
        for path, failure in sorted(failures.items()):
            print(f"{path}: {failure}", file=sys.stderr)
        if failures:
            print(f"No pages were made; those of an earlier run, if any, are still in {output}")
            return 1
    if args.in_place:
        _save(notebooks)
    build.write_changed(build.sources(notebooks), cache / "sphinx" / "source")
    pages = build.run_sphinx(cache / "sphinx", args.jobs)
    if pages is None:
        print("Sphinx could not make the pages: see its message above", file=sys.stderr)
        return 1
    _put_in_place(pages, output)
    print(f"The course is at {(output / 'index.html').as_uri()}")
    return 0


def _save(notebooks: Mapping[Path, NotebookNode]) -> None:
    """Write the outputs into the notebooks."""
    import nbformat

    from rlhf_toy.files import atomic_file

    for path, notebook in notebooks.items():
        with atomic_file(path) as file:
            file.write((nbformat.writes(notebook) + "\n").encode())


def _check_folder(option: str, folder: Path) -> None:
    """Check that a folder, given by its absolute path, may be replaced or made.

    Raises:
        UsageError: it holds anything but what was made here, or cannot be created.
    """
    if Path.cwd().is_relative_to(folder):
        raise UsageError(f"{option}: {folder} contains the working folder; choose another folder")
    try:
        is_empty = folder.is_dir() and not any(folder.iterdir())
        if os.path.lexists(folder) and not (is_empty or (folder / MARKER).is_file()):
            raise UsageError(f"{option}: {folder} has other content; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.").cleanup()
    except OSError as error:
        raise UsageError(f"{option}: cannot create {folder}: {error.strerror}") from None


def _put_in_place(pages: Path, output: Path) -> None:
    """Copy the pages to a fresh folder and exchange the old folder for it."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as attic:
        fresh = shutil.copytree(pages, Path(attic) / "new")
        (fresh / MARKER).touch()
        if output.exists():
            os.replace(output, Path(attic) / "old")
        os.replace(fresh, output)
