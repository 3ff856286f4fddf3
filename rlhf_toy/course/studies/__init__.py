"""Studies: what a notebook claims about chance, measured with more seeds than it has seconds for.

One file a study. Each has `tasks()`, the settings of its runs; `run(task)`, one of them, on one
thread and from the task's seed; and `figure(results)`, which draws the results. `python -m rlhf_toy
study NAME` runs all tasks and writes figures/data/NAME.json, which `load` reads.
"""

from __future__ import annotations

import json
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = ("ppo_parts", "overoptimisation", "dpo_or_ppo")
DATA = Path("figures") / "data"  # in the repository


def study(name: str) -> ModuleType:
    """The module of a study.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"no study is called {name!r}; there are {', '.join(NAMES)}")
    return import_module(f"rlhf_toy.course.studies.{name}")


def load(name: str) -> list[dict[str, Any]]:
    """The results of a study as they were last measured: for each run {**task, **result}.

    Raises:
        ValueError: there is no study of this name.
        FileNotFoundError: it has not been run yet.
    """
    study(name)
    beside = Path(__file__).parents[3] / DATA / f"{name}.json"
    installed = [
        Path(file.locate())
        for file in metadata.files("rlhf_toy") or ()
        if file.name == beside.name and "share" in file.parts
    ]
    for path in (beside, *installed):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))["results"]
    raise FileNotFoundError(f"{beside} is not there: run `python -m rlhf_toy study {name}` first")
