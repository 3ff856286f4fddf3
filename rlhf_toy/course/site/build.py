"""Assemble the sources of the site, and run Sphinx on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import rlhf_toy
from rlhf_toy.course.site import pages

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(rlhf_toy.__file__).parents[1]  # a checkout: an installed package has no docs
DOCS = ROOT / "docs"
DATA = ROOT / "figures" / "data"
# Pages about a data file that may not be there yet; then they are left out.
MADE_FROM_DATA = {"bench": pages.benchmark, "claims": pages.claims}


def sources(notebooks: Mapping[Path, NotebookNode]) -> dict[str, bytes]:
    """Return the files from which Sphinx makes the site, by their paths in its source folder.

    They are those of docs/, the notebooks, and the parts of pages that are made from notebooks and
    data files.
    """
    import nbformat

    files = {
        path.relative_to(DOCS).as_posix(): path.read_bytes()
        for path in DOCS.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files["figures/frontier.png"] = (ROOT / "figures" / "frontier.png").read_bytes()
    by_stem = {path.stem: notebook for path, notebook in notebooks.items()}
    readme = (ROOT / "notebooks" / "README.md").read_text("utf-8")
    texts = {f"notebooks/{stem}.ipynb": nbformat.writes(nb) for stem, nb in by_stem.items()}
    texts["parts/notebooks.md"] = pages.notebook_table(by_stem, pages.core_path(readme))
    texts["parts/people_ask.md"] = pages.people_ask(by_stem)
    texts["syllabus.md"], texts["instructors.md"] = pages.split_readme(readme)
    for name, page in MADE_FROM_DATA.items():
        data = DATA / f"{name}.json"
        if data.is_file():
            texts[f"parts/{name}.md"] = page(json.loads(data.read_text("utf-8")))
        else:
            del files[f"{name}.md"]
            files["index.md"] = files["index.md"].replace(f"\n{name}\n".encode(), b"\n")
    return files | {name: text.encode() for name, text in texts.items()}


def write_changed(files: Mapping[str, bytes], folder: Path) -> None:
    """Make a folder hold these files and no others; do not touch those that stay as they are.

    Sphinx then reads again only what has changed.
    """
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def run_sphinx(folder: Path, jobs: int) -> Path | None:
    """Make the pages; Sphinx says on the screen what it finds wrong.

    Args:
        folder: a folder with the sources in `source`; what the next run can use again stays here.
        jobs: the number of processes, -1 for one per core.

    Returns:
        The folder of the pages, or None if Sphinx failed.
    """
    source, html, doctrees = (str(folder / name) for name in ("source", "html", "doctrees"))
    processes = "auto" if jobs == -1 else str(jobs)
    options = ["-q", "-b", "html", "-j", processes, "-d", doctrees]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options, source, html])
    return Path(html) if done.returncode == 0 else None
