"""Run a study: all seeds of an experiment of which a notebook runs one, in parallel.

An interrupted study resumes with the runs that have no result yet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlhf_toy.course.commands.usage import UsageError, check_writable

# How far a rerun may be from the saved result, in standard deviations over the condition's seeds.
TOLERANCE = 2.0
MOST_JOBS = 10_000
SECONDS_TO_ANSWER = 10  # for a cluster's scheduler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    from rlhf_toy.course.studies import DATA, NAMES

    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--jobs", type=int, default=-1, help="number of processes (default: one per core)"
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Dask cluster: the address of its scheduler, such as tcp://host:8786, or "
        "`local` for one of --jobs processes on this machine (extra `cluster`)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=DATA,
        metavar="DIR",
        help=f"the folder of the data file (default: {DATA})",
    )
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="run one seed of every condition again and compare with the data file; if all agree, "
        "mark the file as measured with the current code",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing of a study and write its data file, or recheck the file.

    Returns:
        0 for success, 1 if a recheck found other results than the file has.

    Raises:
        UsageError: an option that cannot be used, or a saved file that is damaged or comes from
            another version of the study.
    """
    if args.jobs != -1 and not 1 <= args.jobs <= MOST_JOBS:
        limits = f"from 1 to {MOST_JOBS}, or -1 for one per core"
        raise UsageError(f"--jobs must be {limits}, got {args.jobs}")
    if args.cluster == "":
        raise UsageError("--cluster must be an address, such as tcp://host:8786, or `local`")
    path, unfinished = (args.output / f"{args.name}{end}.json" for end in ("", ".unfinished"))
    if args.recheck and not os.path.isfile(path):
        raise UsageError(f"--recheck: there is no file {path}; run the study without --recheck")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{error.strerror}; give a folder that exists or can be created"
        raise UsageError(f"--output: {args.output}: {problem}") from None
    for file in (path, unfinished):
        check_writable("--output", file)
    from rlhf_toy.course import studies

    module = studies.study(args.name)
    try:
        saved = studies.read(path, module, any_version=True) if args.recheck else []
        if unfinished.exists() and not args.recheck:
            saved = studies.read(unfinished, module)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with _cluster(args.cluster, args.jobs) if args.cluster else nullcontext():
        if args.recheck:
            return _recheck(args.name, module, saved, path, args.jobs)
        results = _run_all(args.name, module, saved, unfinished, args.jobs)
    _write(path, args.name, module, results)
    unfinished.unlink(missing_ok=True)
    print(f"{len(results)} runs are in {path}")
    return 0


@contextmanager
def _cluster(address: str, jobs: int) -> Iterator[None]:
    """Run joblib's tasks on a Dask cluster within the block.

    If a worker dies, its runs are given to another one.

    Raises:
        UsageError: Dask is not installed, no scheduler answers, it has no workers, or they do not
            have this version of the package.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError('--cluster needs an extra: pip install "rlhf_toy[cluster]"') from None
    from joblib import parallel_config

    here = version("rlhf_toy")

    def version_there() -> str:  # pickled by value, as the worker may not have the package
        from importlib import metadata

        try:
            return f"version {metadata.version('rlhf_toy')}"
        except metadata.PackageNotFoundError:
            return "no version"

    with ExitStack() as stack:
        scheduler: Any = address
        if address == "local":
            processes = {"n_workers": None if jobs == -1 else jobs, "threads_per_worker": 1}
            scheduler = stack.enter_context(LocalCluster(**processes, dashboard_address=None))
        try:
            client = stack.enter_context(Client(scheduler, timeout=SECONDS_TO_ANSWER))
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UsageError(f"--cluster: no scheduler answers at {address}: {reason}") from None
        found = client.run(version_there)
        if not found:
            raise UsageError(f"--cluster: the scheduler at {address} has no workers; start some")
        for worker, there in found.items():
            if there != f"version {here}":
                problem = f"worker {worker} has {there} of rlhf_toy, and this is version {here}"
                raise UsageError(f"--cluster: {problem}; install the same one everywhere")
        stack.enter_context(parallel_config(backend="dask"))
        yield


def _run_all(
    name: str, module: ModuleType, saved: list[dict[str, Any]], unfinished: Path, jobs: int
) -> list[dict[str, Any]]:
    """Run the tasks that are not among the saved results; return all results in order.

    Each result is saved in the unfinished file as soon as it is there.
    """
    tasks = module.tasks()
    done = {_key(row, tasks): row for row in saved}
    todo = [task for task in tasks if _key(task, tasks) not in done]
    for result in _measure(module, todo, jobs):
        done[_key(result, tasks)] = result
        keys = [_key(task, tasks) for task in tasks]
        _write(unfinished, name, module, [done[key] for key in keys if key in done])
    return [done[_key(task, tasks)] for task in tasks]


def _recheck(
    name: str, module: ModuleType, saved: list[dict[str, Any]], path: Path, jobs: int
) -> int:
    """Run one seed of every condition again; if the saved results agree, update the fingerprint.

    They agree if no number differs by more than `TOLERANCE`. Equality is too much to ask for:
    processors round differently, and training amplifies that.

    Returns:
        0 if all agree, 1 otherwise; the file is only changed if all agree.
    """
    tasks = module.tasks()
    if [_key(row, tasks) for row in saved] != [_key(task, tasks) for task in tasks]:
        print(f"{path} has other runs than the study has now: run it without --recheck")
        return 1
    seeds: dict[str, list[dict[str, Any]]] = {}  # by condition
    for row in saved:
        seeds.setdefault(_key({**row, "seed": None}, tasks), []).append(row)
    again = [{key: rows[0][key] for key in tasks[0]} for rows in seeds.values()]
    wrong = 0
    for result in _measure(module, again, jobs):
        rows = seeds[_key({**result, "seed": None}, tasks)]
        distance = _distance(rows[0], result, rows)
        wrong += not distance <= TOLERANCE
        print(f"{_key(result, tasks)}: {distance:.2g} standard deviations from the file")
    print(f"{len(again) - wrong} of {len(again)} runs agree with {path}")
    if not wrong:
        _write(path, name, module, saved)
    return 1 if wrong else 0


def _distance(saved: dict[str, Any], now: dict[str, Any], seeds: list[dict[str, Any]]) -> float:
    """Return the largest difference of two results, in standard deviations over the seeds."""
    numbers = [_numbers(row) for row in (saved, now, *seeds)]
    if len({len(row) for row in numbers}) > 1:
        return math.inf
    difference = np.abs(np.subtract(numbers[0], numbers[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = difference / np.std(numbers[2:], axis=0)
    return float(np.max(shares, where=~(difference <= 1e-9), initial=0.0))


def _numbers(result: Any) -> list[float]:
    """Return all numbers of a result, in order, without measured times."""
    if isinstance(result, dict):
        result = [value for name, value in result.items() if not name.endswith("seconds")]
    if isinstance(result, list):
        return [number for value in result for number in _numbers(value)]
    return [result] if isinstance(result, (int, float)) else []


def _measure(module: ModuleType, tasks: list[dict[str, Any]], jobs: int) -> Iterator[dict]:
    """Run tasks in parallel; yield {**task, **result} for each as soon as it is there."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    results = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_run_one)(module.__name__, task) for task in tasks
    )
    for task, result in tqdm(results, total=len(tasks), unit="run"):
        yield {**task, **result}


def _run_one(module: str, task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one task in a process of its own, on one thread and without progress bars."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    with redirect_stderr(StringIO()):
        return task, import_module(module).run(task)


def _key(row: dict[str, Any], tasks: list[dict[str, Any]]) -> str:
    """Return what identifies the task of a row, which may hold its result too."""
    return json.dumps([row[name] for name in tasks[0]])


def _write(path: Path, name: str, module: ModuleType, results: list[dict[str, Any]]) -> None:
    from rlhf_toy.course.studies import fingerprint
    from rlhf_toy.files import atomic_file

    head = f'"study": {json.dumps(name)}, "fingerprint": "{fingerprint(module)}"'
    lines = ",\n".join(json.dumps(result) for result in results)  # one run a line, for the diff
    with atomic_file(path, text=True) as file:
        file.write(f'{{{head}, "results": [\n{lines}\n]}}\n')
