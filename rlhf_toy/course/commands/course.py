"""Run all notebooks from top to bottom and save them as a folder of HTML pages."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_toy.course.commands.usage import UsageError, check_writable, read_notebook

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Only a folder with this file in it was made here and may be replaced.
MARKER = ".rlhf_toy_course"

LONGEST_TIMEOUT = 10**6  # seconds

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rlhf_toy</title>
<style>
body {{ font: 1.05rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }}
ul {{ list-style: none; padding: 0; }}
li {{ margin: 1.2rem 0; }}
li p {{ margin: 0.2rem 0; }}
.note {{ color: #666; font-size: 0.9rem; }}
.failed {{ color: #b00020; }}
</style>
</head>
<body>
<h1>Reinforcement learning from human feedback</h1>
<ul>
{items}
</ul>
</body>
</html>
"""  # noqa: E501
ITEM = '<li><a href="{href}">{title}</a><p>{question}</p><p class="note{mark}">{note}</p></li>'


class CellFailed(Exception):
    """A cell failed; the message says which one and why."""


@dataclass(frozen=True)
class Outcome:
    """The result of running one notebook.

    Attributes:
        path: the notebook's file.
        notebook: its content, with outputs up to the first failure.
        note: how long it took, or why it failed or did not run.
        failed: whether one of its cells failed.
    """

    path: Path
    notebook: NotebookNode
    note: str
    failed: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--notebooks",
        type=Path,
        default=Path("notebooks"),
        metavar="DIR",
        help="the folder of the notebooks (default: notebooks)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/course"),
        metavar="DIR",
        help="the folder for the pages (default: build/course)",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=1800,
        metavar="SECONDS",
        help="the time limit of one cell (default: 1800)",
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="if no cell fails, save the outputs in the notebooks too",
    )


def run(args: argparse.Namespace) -> int:
    """Run the notebooks in order until one fails; write a page for each, and an index.

    If a cell fails, the pages go to a separate folder (`…-failed`), and the pages of an earlier
    run stay. Notebooks that did not run are shown with their saved outputs.

    Returns:
        0 if every cell ran, 1 otherwise.

    Raises:
        UsageError: there are no notebooks, one cannot be read or saved, or the folder for the
            pages cannot be used. Nothing has been written then.
    """
    if not 0 < args.timeout <= LONGEST_TIMEOUT:
        raise UsageError(f"--timeout must be from 1 to {LONGEST_TIMEOUT}, got {args.timeout}")
    paths = sorted(args.notebooks.glob("*.ipynb"))
    if not paths:
        raise UsageError(f"no notebooks in {args.notebooks}")
    notebooks = {path: read_notebook(path) for path in paths}
    for path in paths if args.in_place else ():
        check_writable("--in-place", path)
    output, failed_output = _check_output(args.output)
    outcomes = _run_all(notebooks, args.timeout)
    for outcome in outcomes:
        drop_widgets(outcome.notebook)
    error = next((outcome for outcome in outcomes if outcome.failed), None)
    index = write_pages(outcomes, failed_output if error else output)
    if error:
        print(f"{error.path}: {error.note}", file=sys.stderr)
        print(f"Stopped there. The pages so far are at {index.as_uri()}")
        return 1
    if args.in_place:
        _save(outcomes)
    print(f"The course is at {index.as_uri()}")
    return 0


def execute(
    notebook: NotebookNode, folder: Path, timeout: int, on_cell: Callable[[], object]
) -> None:
    """Run a notebook's cells in order on a fresh kernel of the running Python.

    Args:
        notebook: changed in place: outputs, execution counts and the state of its widgets.
        folder: the working folder of the kernel.
        timeout: the time limit of a cell, in seconds.
        on_cell: called after each code cell.

    Raises:
        CellFailed: a cell raised an error, a widget caught one in its callback, the kernel died,
            or a cell took too long.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisPython(AsyncKernelManager):
        """Starts the running Python; ignores the kernels installed on the machine."""

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir="", **get_kernel_dict())

    current = 0

    def note_start(cell: NotebookNode, cell_index: int) -> None:
        nonlocal current
        current = cell_index

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisPython,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=note_start,
        on_cell_executed=lambda **_: on_cell(),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
        raise CellFailed(f"cell {current + 1} failed: {reason}") from None
    except CellTimeoutError:
        raise CellFailed(f"cell {current + 1} failed: it took more than {timeout} s") from None
    except DeadKernelError:
        raise CellFailed(f"cell {current + 1} failed: its kernel died") from None
    for model in notebook.metadata.get("widgets", {}).values():
        for widget in model["state"].values():
            for output in widget["state"].get("outputs") or []:
                if output.get("output_type") == "error":
                    reason = f"{output['ename']}: {output['evalue']}"
                    raise CellFailed(f"a widget's callback failed: {reason}")


def drop_widgets(notebook: NotebookNode) -> None:
    """Replace each widget by its static figure or text; remove the widgets that have none.

    A widget shows nothing without a kernel, and its id changes in every run.
    """
    from rlhf_toy.course.widgets.parts import WIDGET_VIEW

    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if {"image/png", "text/html"} & {*output.get("data", {})}:
                    output.data.pop(WIDGET_VIEW, None)
            cell.outputs = [o for o in cell.outputs if WIDGET_VIEW not in o.get("data", {})]


def write_pages(outcomes: Iterable[Outcome], output: Path) -> Path:
    """Write a page for each notebook and an index; replace the folder as a whole.

    Returns:
        The index's absolute path.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True)
    outcomes = list(outcomes)
    fresh = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        fresh.chmod(0o755)
        (fresh / MARKER).touch()
        names = {outcome.path.name for outcome in outcomes}
        for outcome in outcomes:
            resources = {"metadata": {"name": outcome.path.stem, "path": str(outcome.path.parent)}}
            page, _ = exporter.from_notebook_node(outcome.notebook, resources)
            page_path = fresh / outcome.path.with_suffix(".html").name
            page_path.write_text(link_to_pages(page, names), encoding="utf-8")
        (fresh / "index.html").write_text(index_page(outcomes), encoding="utf-8")
        _put_in_place(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return output / "index.html"


def index_page(outcomes: Iterable[Outcome]) -> str:
    """Return the HTML of the list of notebooks: title, question, and how long each took."""
    items = []
    for outcome in outcomes:
        title, question = headline(outcome.notebook)
        items.append(
            ITEM.format(
                href=escape(outcome.path.with_suffix(".html").name),
                title=escape(title or outcome.path.stem),
                question=escape(question),
                mark=" failed" if outcome.failed else "",
                note=escape(outcome.note),
            )
        )
    return PAGE.format(items="\n".join(items))


def headline(notebook: NotebookNode) -> tuple[str, str]:
    """Return a notebook's first heading and the paragraph after it, each "" if there is none."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    _, _, after = f"\n{text}".partition("\n# ")
    title, _, rest = after.partition("\n")
    paragraphs = (part.strip() for part in re.split(r"\n\s*\n", rest))
    prose = (part for part in paragraphs if part and not part.startswith(("#", "[![")))
    return _plain(title), _plain(next(prose, ""))


def link_to_pages(page: str, names: set[str]) -> str:
    """Turn links to notebooks of the course into links to their pages."""

    def page_link(match: re.Match) -> str:
        is_ours = f"{match['stem']}.ipynb" in names
        return f'href="{match["stem"]}.html' if is_ours else match[0]

    return re.sub(r'href="(?:\./)?(?P<stem>[\w.-]+)\.ipynb(?=["#])', page_link, page)


def _run_all(notebooks: dict[Path, NotebookNode], timeout: int) -> list[Outcome]:
    """Run notebooks until one fails, with a progress bar over the code cells."""
    from tqdm.auto import tqdm

    outcomes: list[Outcome] = []
    total = sum(cell.cell_type == "code" for nb in notebooks.values() for cell in nb.cells)
    with tqdm(total=total, unit="cell") as bar:
        for path, notebook in notebooks.items():
            if any(outcome.failed for outcome in outcomes):
                outcomes.append(Outcome(path, notebook, "not run: shown with its saved outputs"))
                continue
            bar.set_description(path.stem)
            start = time.perf_counter()
            try:
                execute(notebook, path.parent, timeout, bar.update)
            except CellFailed as error:
                outcomes.append(Outcome(path, notebook, str(error), failed=True))
            else:
                took = time.perf_counter() - start
                outcomes.append(Outcome(path, notebook, f"ran in {took:.0f} s"))
    return outcomes


def _save(outcomes: Iterable[Outcome]) -> None:
    """Write the outputs into the notebooks."""
    import nbformat

    from rlhf_toy.files import atomic_file

    for outcome in outcomes:
        with atomic_file(outcome.path) as file:
            file.write((nbformat.writes(outcome.notebook) + "\n").encode())


def _check_output(output: Path) -> tuple[Path, Path]:
    """Return the absolute folders of the pages, for success and for failure.

    Raises:
        UsageError: one holds anything but pages made here, or cannot be created.
    """
    output = output.resolve()
    if Path.cwd().is_relative_to(output):
        raise UsageError(f"--output: {output} contains the working folder; choose another folder")
    folders = (output, output.with_name(f"{output.name}-failed"))
    try:
        for folder in folders:
            is_empty = folder.is_dir() and not any(folder.iterdir())
            if folder.exists() and not is_empty and not (folder / MARKER).is_file():
                raise UsageError(f"--output: {folder} has other content; choose another folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.").cleanup()
    except OSError as error:
        raise UsageError(f"--output: cannot create {output}: {error.strerror}") from None
    return folders


def _put_in_place(fresh: Path, output: Path) -> None:
    """Move a folder to its place; only then delete what was there before."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as attic:
        if output.exists():
            os.replace(output, Path(attic) / "old")
        os.replace(fresh, output)


def _plain(markdown: str) -> str:
    """Return the words of some Markdown in one line, without markup."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"[*`]", "", text).split())
