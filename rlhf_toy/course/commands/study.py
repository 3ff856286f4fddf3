"""Run a study: what a notebook shows in seconds, with all seeds, in parallel.

It can be killed at any moment: called again, it goes on with the runs that are still to do.
"""

from __future__ import annotations

import argparse
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_toy.course.commands.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    from rlhf_toy.course.studies import DATA, NAMES

    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--jobs", type=int, default=-1, help="processes (default: one a core)")
    parser.add_argument(
        "--output", type=Path, default=DATA, metavar="DIR", help=f"the data's folder ({DATA})"
    )


def run(args: argparse.Namespace) -> int:
    """Runs what is still to do of a study, and writes its data file.

    Raises:
        UsageError: an option that cannot be used.
    """
    if args.jobs == 0 or args.jobs < -1:
        raise UsageError(f"--jobs must be at least 1, or -1 for one a core, got {args.jobs}")
    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"--output: {args.output} is no folder")
    from rlhf_toy.course.studies import study

    args.output.mkdir(parents=True, exist_ok=True)
    path, unfinished = (args.output / f"{args.name}{end}.json" for end in ("", ".unfinished"))
    results = _run_all(study(args.name), unfinished, args.jobs)
    _write(path, args.name, results)
    unfinished.unlink(missing_ok=True)
    print(f"{len(results)} runs are in {path}")
    return 0


def _run_all(module: ModuleType, unfinished: Path, jobs: int) -> list[dict[str, Any]]:
    """The results of all tasks, in their order; each is saved as soon as it is there."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    tasks, done = module.tasks(), {}
    if unfinished.exists():
        for result in json.loads(unfinished.read_text(encoding="utf-8"))["results"]:
            done[_key({name: result[name] for name in tasks[0] if name in result})] = result
    open_tasks = [task for task in tasks if _key(task) not in done]
    results = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_run_one)(module.__name__, task) for task in open_tasks
    )
    with tqdm(results, total=len(tasks), initial=len(tasks) - len(open_tasks), unit="run") as bar:
        for task, result in bar:
            done[_key(task)] = {**task, **result}
            _write(unfinished, module.__name__, [done[_key(t)] for t in tasks if _key(t) in done])
    return [done[_key(task)] for task in tasks]


def _run_one(module: str, task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run, in a process of its own: on one thread, and without its trainers' bars."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    with redirect_stderr(StringIO()):
        return task, import_module(module).run(task)


def _key(task: dict[str, Any]) -> str:
    return json.dumps(task, sort_keys=True)


def _write(path: Path, name: str, results: list[dict[str, Any]]) -> None:
    from rlhf_toy.files import atomic_file

    lines = ",\n".join(json.dumps(result) for result in results)  # one run a line, for the diff
    with atomic_file(path, text=True) as file:
        file.write(f'{{"study": {json.dumps(name)}, "results": [\n{lines}\n]}}\n')
