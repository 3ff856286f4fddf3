"""What commands share: how they refuse an argument, and how they read a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

MOST_PREFERENCES = 10_000_000  # that a command collects


class UsageError(ValueError):
    """A mistake in a command line: printed as one line without a traceback, with exit code 2.

    Commands raise it while they check their arguments, before they write anything.
    """


def check_writable(option: str, path: Path) -> Path:
    """Return the file that writing to `path` would create or replace, see `files.check_output`.

    Raises:
        UsageError: it cannot be written; the message names the option.
    """
    from rlhf_toy.files import check_output

    try:
        return check_output(path)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def read_notebook(path: Path) -> NotebookNode:
    """Read and validate a notebook.

    Raises:
        UsageError: the file cannot be read or is not a notebook, or Jupyter is not installed.
    """
    try:
        import nbformat
    except ImportError:
        raise UsageError("Jupyter is not installed: pip install jupyter") from None

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises almost any type where the content is wrong
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{path} is not a notebook that can be read: {reason:.200}") from None
    return notebook
