"""Count how many small faults in the core the unit tests notice: `make mutants`.

Each mutant (see `mutate.py`) is written into a copy of the repository, and the tests that can reach
it run there until one fails, those most likely to fail first. What a test reaches is measured once,
with coverage.py, before any mutant. Every mutant runs in a process forked from this one, which has
torch imported already; a test that takes far longer than it should counts as a failed one.

First come the mutants of `handmade.toml`, which once survived, then a fixed random sample. The
table is written to build/mutants.json as it grows. Exit code 1: a handmade mutant survived, the
score without the mutants of `equivalent.toml` is too low, or a test fails without any mutant.

Neither of the usual libraries fits. mutmut 3.8 changes function bodies only, so no default of a
settings class, removes no statement (a forgotten `clip_grad_norm_`), and draws no sample.
cosmic-ray 8.7 spends 60 % of its 4,400 mutants on swaps of operators (each by eleven others, those
in annotations too), removes neither statements nor arguments, and runs one shell command for each
mutant, whichever file it is in.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import argparse
import contextlib
import gc
import importlib
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path

import coverage
import pytest
from mutate import Mutant, draw, find_mutants, make_mutant, one_line

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = ROOT / "build" / "mutants.json"
FILES = (
    *("losses/*.py", "exact/*.py", "ppo.py", "dpo.py", "reward_model.py", "sft.py"),
    *("policy_gradient.py", "sampling.py", "training.py", "annotators.py", "preferences.py"),
)
NOT_THE_CORE = ("course", "notebooks", "browser", "benchmarks", "mutants")
NOT_COPIED = (".git", ".venv*", "build", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
# What the package and its tests import: the mutants find it in memory.
PRELOADED = (
    *("torch", "scipy.optimize", "scipy.stats", "gymnasium", "matplotlib.pyplot", "tqdm.auto"),
    *("hypothesis", "choix", "nbformat", "transformers.models.gpt2.modeling_gpt2"),
)
SLOW = 10.0  # CPU seconds: a test that takes longer, such as one of killed processes, is left out
MEMORY = 16 * 2**30  # bytes of address space of a mutant
GOAL = 0.95


class Baseline:
    """Runs every test of the core once, unchanged: how long it takes, and the lines it runs."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.coverage = coverage.Coverage(data_file=None, include=[str(folder / f) for f in files])
        self.folder, self.files = folder, files
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = sum(os.times()[:4])
        result = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        return result

    def pytest_runtest_logreport(self, report):
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def run(self) -> dict:
        self.coverage.start()
        run_pytest(self.folder, ["tests"], self)
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {file: data.contexts_by_lineno(str(self.folder / file)) for file in self.files}
        return {"failed": self.failed, "seconds": self.seconds, "lines": lines}


class UntilOneFails:
    """Runs the given tests in their order, each within a time limit, and stops at a failure."""

    def __init__(self, limits: dict[str, float], folder: Path) -> None:
        self.limits, self.folder, self.failed = limits, folder, ""

    def pytest_collection_modifyitems(self, items):
        rank = {test: i for i, test in enumerate(self.limits)}
        items[:] = sorted((i for i in items if i.nodeid in rank), key=lambda i: rank[i.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        set_clock(self.limits[item.nodeid])
        return (yield)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = report.nodeid

    def run(self) -> dict:
        set_clock(30)  # to import and collect
        files = list(dict.fromkeys(test.split("::")[0] for test in self.limits))
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        code = run_pytest(self.folder, ["-x", *files], self)
        return {"code": code, "failed": self.failed}


def set_clock(seconds: float) -> None:
    """Ends this process after so much CPU time, or ten times as much time on the clock.

    No handler is set, so the signals end it even inside a C function.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def run_pytest(folder: Path, arguments: list[str], plugin) -> int:
    """Runs tests of a copy of the repository in this process, with that copy's package."""
    from hypothesis import Phase, settings

    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    settings.register_profile(
        "mutants", deadline=None, derandomize=True, database=None, phases=(*Phase,)[:3]
    )
    settings.load_profile("mutants")
    ignored = [f"--ignore=tests/{name}" for name in NOT_THE_CORE]
    options = ["-q", "--tb=short", "--disable-plugin-autoload", "-p", "no:cacheprovider"]
    options.append(f"--basetemp={folder / '.tmp'}")
    return int(pytest.main([*options, *ignored, *arguments], plugins=[plugin]))


def fork(work, folder: Path) -> int:
    """Runs `work()` in a process of its own; what it returns goes to result.json."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        log = os.open(folder / "log.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(log, stream)
        (folder / "result.json").write_text(json.dumps(work()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def read_result(folder: Path, status: int) -> dict:
    """What the process left: killed by a failing test, by the clock or by a crash, or survived."""
    if os.WIFSIGNALED(status):
        is_late = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return {"status": "timeout" if is_late else "killed", "by": "" if is_late else "a crash"}
    if status:
        raise RuntimeError((folder / "log.txt").read_text())
    result = json.loads((folder / "result.json").read_text())
    if result["code"] == pytest.ExitCode.OK:
        return {"status": "survived", "by": ""}
    if result["code"] == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise RuntimeError(f"no test was found, see {folder / 'log.txt'}")
    return {"status": "killed", "by": result["failed"] or "the import"}


def order_tests(mutant: Mutant, baseline: dict) -> list[str]:
    """The tests of every file that reaches the mutated one, the sharpest first.

    These are the tests that run its line, then those that mirror its file, then the quick ones. A
    line that no test runs has none.
    """
    lines = baseline["lines"][mutant.file]
    span = [str(line) for line in range(mutant.lines[0], mutant.lines[1] + 1)]
    covering = {test for line in span for test in lines.get(line, ())}
    if not covering:
        return []
    reaching = {test.split("::")[0] for tests in lines.values() for test in tests if test}
    path = Path(mutant.file.replace("rlhf_toy/", "tests/", 1))
    mirror = str(path.with_name(f"test_{path.stem}"))

    def rank(test: str) -> tuple[bool, bool, float]:
        return test not in covering, not test.startswith(mirror), baseline["seconds"][test]

    return sorted((t for t in baseline["seconds"] if t.split("::")[0] in reaching), key=rank)


def read_handmade(sources: dict[str, bytes], path: Path = HERE / "handmade.toml") -> list[Mutant]:
    """The mutants that a person wrote; an error if the code no longer has their text."""
    mutants = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        source, old = sources.get(entry["file"], b""), entry["old"].encode()
        if source.count(old) != 1:
            raise SystemExit(
                f"handmade.toml, {entry['name']!r}: the text {entry['old']!r} must be in "
                f"{entry['file']} exactly once, and is there {source.count(old)} times. "
                "Adapt the entry to the code."
            )
        start = source.index(old)
        mutants.append(
            make_mutant(entry["file"], source, start, start + len(old), entry["new"], entry["name"])
        )
    return mutants


def read_equivalent(
    sources: dict[str, bytes], path: Path = HERE / "equivalent.toml"
) -> dict[tuple[str, str, str], str]:
    """Why no test can notice a mutant, by its file, its line before and its line after."""
    reasons = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", []):
        if entry["before"] not in one_line(sources.get(entry["file"], b"").decode()):
            raise SystemExit(
                f"equivalent.toml: {entry['before']!r} is no longer in {entry['file']}. "
                "Adapt the entry to the code, or remove it."
            )
        reasons[entry["file"], entry["before"], entry["after"]] = entry["reason"]
    return reasons


def run_all(mutants: list[Mutant], sources, baseline: dict, folders: list[Path], report) -> None:
    """Runs the mutants, as many side by side as there are folders; calls report(mutant, result)."""
    waiting, free = list(reversed(mutants)), list(folders)
    running: dict[int, tuple[Mutant, Path]] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                tests = order_tests(mutant, baseline)
                if not tests:
                    unreached = {"status": "survived", "by": "", "reached": False, "seconds": 0.0}
                    report(mutant, unreached)
                    continue
                folder = free.pop()
                (folder / mutant.file).write_bytes(mutant.apply(sources[mutant.file]))
                # A shared fixture may have been counted with another test: so 30 s for any.
                limits = {test: 30 + 3 * baseline["seconds"][test] for test in tests}
                pid = fork(UntilOneFails(limits, folder).run, folder)
                running[pid] = mutant, folder
            if running:
                pid, status, used = os.wait4(-1, 0)
                mutant, folder = running.pop(pid)
                end_group(pid)
                seconds = round(used.ru_utime + used.ru_stime, 1)
                report(mutant, read_result(folder, status) | {"reached": True, "seconds": seconds})
                (folder / mutant.file).write_bytes(sources[mutant.file])
                (folder / "result.json").unlink(missing_ok=True)
                free.append(folder)
    finally:
        for pid in running:
            end_group(pid)


def end_group(pid: int) -> None:
    """Ends what a forked process has left: itself if it still runs, and its own children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def share(rows: list[dict]) -> float:
    return sum(row["status"] != "survived" for row in rows) / max(1, len(rows))


def print_summary(rows: list[dict], handmade: list[dict]) -> float:
    print(f"\n{'file':<36}{'mutants':>8}{'killed':>8}{'timeout':>8}{'survived':>9}")
    for file in sorted({row["file"] for row in rows}):
        counts = Counter(row["status"] for row in rows if row["file"] == file)
        cells = [counts.total(), counts["killed"], counts["timeout"], counts["survived"]]
        print(f"{file:<36}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}{cells[3]:>9}")
    for row in [row for row in handmade + rows if row["status"] == "survived"]:
        why = "" if row["reached"] else ", no test runs it"
        print(f"\nsurvived: {row['file']}:{row['line']} ({row['kind']}{why})")
        print(f"  - {row['before']}\n  + {row['after']}")
        if row["equivalent"]:
            print(f"  equivalent: {row['equivalent']}")
    different = [row for row in rows if not row["equivalent"]]
    print(f"\nhandmade: {share(handmade):.1%} of {len(handmade)} killed")
    print(f"sample:   {share(rows):.1%} of {len(rows)} killed")
    print(f"          {share(different):.1%} of {len(different)} without the equivalent ones")
    return share(different)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mutation testing of the core.")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="mutants side by side")
    parser.add_argument("--only", default="", help="only mutants whose file contains this text")
    parser.add_argument("--survivors", action="store_true", help="only what survived last time")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    return parser.parse_args()


def main() -> int:
    args, begin = parse(), time.monotonic()
    paths = sorted(path for name in FILES for path in (ROOT / "rlhf_toy").glob(name))
    sources = {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}
    found = [mutant for file, source in sources.items() for mutant in find_mutants(file, source)]
    handmade, equivalent = read_handmade(sources), read_equivalent(sources)
    mutants = handmade + draw(found, sources, args.sample, args.seed)
    mutants = [mutant for mutant in mutants if args.only in mutant.file]
    if args.survivors:
        rows = json.loads(TABLE.read_text(encoding="utf-8"))["mutants"]
        again = {(r["file"], r["before"], r["after"]) for r in rows if r["status"] == "survived"}
        mutants = [m for m in mutants if (m.file, m.before, m.after) in again]
    print(f"{len(mutants)} mutants to run; {len(found)} were found in {len(sources)} files")
    if args.list:
        for mutant in mutants:
            print(f"{mutant.file}:{mutant.lines[0]} {mutant.kind}")
            print(f"  - {mutant.before}\n  + {mutant.after}")
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so clean up
    rows: list[dict] = []

    def report(mutant: Mutant, result: dict) -> None:
        key = mutant.file, mutant.before, mutant.after
        place = {"file": mutant.file, "line": mutant.lines[0], "kind": mutant.kind}
        change = {"before": mutant.before, "after": mutant.after}
        is_handmade = mutant in handmade
        rows.append({**place, **change, **result, "equivalent": equivalent.get(key, "")})
        rows[-1]["handmade"] = is_handmade
        print(
            f"[{len(rows):>3}/{len(mutants)}] {result['status']:<8} {result['seconds']:>5.1f} s  "
            f"{mutant.file}:{mutant.lines[0]}  {mutant.before[:60]}  →  {mutant.after[:60]}",
            flush=True,
        )
        TABLE.parent.mkdir(exist_ok=True)
        table = {"seed": args.seed, "sample": args.sample, "mutants": rows}
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False), encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folders = [Path(temporary) / str(number) for number in range(args.workers)]
        shutil.copytree(ROOT, folders[0], ignore=shutil.ignore_patterns(*NOT_COPIED))
        for name in PRELOADED:
            importlib.import_module(name)
        gc.freeze()
        pid = fork(Baseline(folders[0], list(sources)).run, folders[0])
        try:
            _, status = os.waitpid(pid, 0)
        finally:
            end_group(pid)
        if status:
            raise SystemExit((folders[0] / "log.txt").read_text())
        baseline = json.loads((folders[0] / "result.json").read_text())
        for folder in folders[1:]:
            shutil.copytree(folders[0], folder, ignore=shutil.ignore_patterns(".tmp"))
        seconds, failed = baseline["seconds"], baseline["failed"]
        slow = [test for test in seconds if seconds[test] > SLOW]
        print(f"{len(seconds)} tests in {sum(seconds.values()):.0f} s of CPU time")
        print("left out, as too slow:", *slow or ["none"], sep="\n  ")
        print("left out, as they fail without any mutant:", *failed or ["none"], sep="\n  ")
        for test in {*slow, *failed}:
            seconds.pop(test, None)
        print(f"{time.monotonic() - begin:.0f} s until the first mutant", flush=True)
        run_all(mutants, sources, baseline, folders, report)
    chosen = [row for row in rows if row["handmade"]]
    score = print_summary([row for row in rows if not row["handmade"]], chosen)
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes; the table is in {TABLE}")
    return int(score < GOAL or share(chosen) < 1 or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
