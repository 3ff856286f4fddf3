"""Run notebooks side by side, and keep the outputs of those that need not run again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlhf_toy

if TYPE_CHECKING:
    from nbformat import NotebookNode

PACKAGE = Path(rlhf_toy.__file__).parent


class CellFailed(Exception):
    """A cell failed; the message says which one and why."""


def run_all(
    notebooks: Mapping[Path, NotebookNode], store: Path, timeout: int, jobs: int
) -> dict[Path, str]:
    """Run all notebooks, with a progress bar, and put the outputs into them.

    A notebook does not run if the folder `store` has its outputs: for the same code cells, package,
    data, versions and recorded answers. A failure stops no other notebook.

    Args:
        notebooks: by their files in one folder; their outputs and execution counts change.
        store: the folder of the outputs.
        timeout: the time limit of a cell, in seconds.
        jobs: how many run at the same time, -1 for one per core.

    Returns:
        What went wrong, for each notebook that failed.
    """
    from tqdm.auto import tqdm

    surroundings = _surroundings(next(iter(notebooks)).parent)
    kept = {
        path: store / f"{path.stem}.{_key(notebook, surroundings)}.json"
        for path, notebook in notebooks.items()
    }
    todo = {path: file for path, file in kept.items() if not file.is_file()}
    failures = {}
    # Threads are enough: the work is done by the notebooks' kernels, which are processes.
    pool = ThreadPoolExecutor(os.cpu_count() if jobs == -1 else jobs)
    runs = [
        pool.submit(_run_one, notebooks[path], path, file, timeout) for path, file in todo.items()
    ]
    with tqdm(as_completed(runs), total=len(runs), unit="notebook", disable=not runs) as bar:
        try:
            for done in bar:
                path, seconds, failure = done.result()
                bar.write(f"{path.name} {'failed' if failure else 'ran'} in {seconds:.0f} s")
                if failure:
                    failures[path] = failure
        except KeyboardInterrupt:
            bar.write("Stopped. The notebooks that have run will not run again.")
            # The threads still wait for their kernels, which end as soon as this process has.
            os._exit(130)
    for path in set(kept) - set(failures):
        _restore(notebooks[path], json.loads(kept[path].read_text("utf-8")))
        for older in store.glob(f"{path.stem}.*.json"):
            if older != kept[path]:
                older.unlink()
    return failures


def execute(notebook: NotebookNode, folder: Path, timeout: int) -> None:
    """Run a notebook's cells in order on a fresh kernel of the running Python, on one thread.

    Args:
        notebook: changed in place: outputs, execution counts and the state of its widgets.
        folder: the working folder of the kernel.
        timeout: the time limit of a cell, in seconds.

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
        extra_arguments=["--log-level=ERROR"],  # no warning about encryption from every kernel
        on_cell_start=note_start,
    )
    try:
        asyncio.run(client.async_execute(env={**os.environ, "OMP_NUM_THREADS": "1"}))
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


def _run_one(
    notebook: NotebookNode, path: Path, file: Path, timeout: int
) -> tuple[Path, float, str | None]:
    """Run a notebook and write its outputs to a file.

    Returns:
        The notebook's file, how long it took in seconds, and what went wrong.
    """
    from rlhf_toy.files import atomic_file

    start = time.perf_counter()
    try:
        execute(notebook, path.parent, timeout)
    except CellFailed as error:
        return path, time.perf_counter() - start, str(error)
    drop_widgets(notebook)
    with atomic_file(file, text=True) as kept:
        cells = [[cell.execution_count, cell.outputs] for cell in _code(notebook)]
        json.dump({"language_info": notebook.metadata.language_info, "cells": cells}, kept)
    return path, time.perf_counter() - start, None


def _restore(notebook: NotebookNode, run: dict[str, Any]) -> None:
    """Put the outputs of a run into a notebook."""
    from nbformat import from_dict

    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = run["language_info"]
    for cell, (count, outputs) in zip(_code(notebook), run["cells"], strict=True):
        cell.execution_count, cell.outputs = count, from_dict(outputs)


def _code(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Return the code cells of a notebook."""
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def _key(notebook: NotebookNode, surroundings: str) -> str:
    """Return a digest of all that a notebook's outputs depend on."""
    code = [[cell.source, cell.metadata.get("tags", [])] for cell in _code(notebook)]
    return hashlib.sha256(json.dumps([surroundings, code]).encode()).hexdigest()[:16]


def _surroundings(folder: Path) -> str:
    """Return a digest of what the notebooks in a folder use: code, data, versions, answers."""
    installed = sorted(f"{package.name} {package.version}" for package in metadata.distributions())
    digest = hashlib.sha256(f"{platform.python_version()} {installed}".encode())
    data = PACKAGE.parent / "figures" / "data"
    for path in sorted([*PACKAGE.rglob("*.py"), *data.glob("*.json"), *folder.glob("*.jsonl")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
