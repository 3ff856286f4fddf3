"""Time every notebook as it is, on one thread: `python tests/benchmarks/notebooks.py`.

Writes the CPU seconds of each to `notebook_seconds.json` beside this file; a test holds them to the
limits. CPU seconds vary less than those of the clock when something else is running.
"""

from __future__ import annotations

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the kernels start

import resource
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TABLE = Path(__file__).with_name("notebook_seconds.json")


def cpu_seconds() -> float:
    """CPU seconds of all kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the notebooks one after the other."""
    seconds = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        before = cpu_seconds()
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        seconds[path.stem] = round(cpu_seconds() - before, 1)
        print(f"{path.stem:<28} {seconds[path.stem]:6.1f} s", flush=True)
    print(f"{'sum':<28} {sum(seconds.values()):6.1f} s")
    TABLE.write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
