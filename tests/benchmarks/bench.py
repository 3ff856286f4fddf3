"""How fast this package is beside TRL, transformers and choix: `make bench`, some ten minutes.

The sides of each contest in `contests.py` take turns for `ROUNDS` rounds, so what else the machine
does hits both. Each gives one time a round; shown are the median and the range over the rounds, of
both times and of the ratio within a round. `counts` says what a time is of.

Ours is also held against the machine's rate of matrix products in single precision, with as many
threads. The table goes to the screen and, with the machine, to `figures/data/bench.json`. Times are
of this machine at this moment: run nothing beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from contests import Contest, Contests, milliseconds
from tqdm.auto import tqdm

from rlhf_toy.files import atomic_file, check_output

TABLE = Path(__file__).parents[2] / "figures" / "data" / "bench.json"
NEEDED = ("torch", "numpy", "scipy", "transformers", "trl", "choix")
ROUNDS = 7
SIZE = 1_024  # of the matrices whose product gives the machine's rate


def spread(values: list[float]) -> tuple[float, list[float]]:
    """The median of some values, and their range."""
    return statistics.median(values), [min(values), max(values)]


def to_rows(
    contest: Contest, ours: list[float], theirs: dict[str, list[float]], rate: float
) -> list[dict[str, Any]]:
    """Return a row of the table for each contender.

    Args:
        contest: what was timed.
        ours: milliseconds of each round.
        theirs: the same for each contender.
        rate: the machine's floating-point operations per second.
    """
    our_ms, our_range = spread(ours)
    share = contest.operations and contest.operations / (our_ms / 1e3) / rate
    rows = []
    for contender, times in theirs.items():
        their_ms, their_range = spread(times)
        ratio, ratio_range = spread([b / a for a, b in zip(ours, times, strict=True)])
        rows.append(
            {
                "name": contest.name,
                "counts": contest.counts,
                "contender": contender,
                "ours_ms": our_ms,
                "ours_range_ms": our_range,
                "theirs_ms": their_ms,
                "theirs_range_ms": their_range,
                "ratio": ratio,
                "ratio_range": ratio_range,
                "operations": contest.operations,
                "share_of_sgemm": share,
            }
        )
    return rows


def to_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for the screen."""

    def ms(row: dict[str, Any], side: str) -> str:
        low, high = row[f"{side}_range_ms"]
        return f"{row[f'{side}_ms']:.4g} ({low:.4g} – {high:.4g})"

    cells = [("", "ours, ms", "theirs, ms", "ratio", "of sgemm", "contender")]
    for row in rows:
        low, high = row["ratio_range"]
        ratio = f"{row['ratio']:.1f} ({low:.1f} – {high:.1f})"
        share = "" if row["share_of_sgemm"] is None else f"{row['share_of_sgemm']:.0%}"
        times = ms(row, "ours"), ms(row, "theirs")
        cells.append((row["name"], *times, ratio, share, row["contender"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join(lines)


def machine(rate: float) -> dict[str, Any]:
    """Describe this machine, and the versions that were timed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "sgemm_gflops": rate / 1e9,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in NEEDED},
    }


@contextlib.contextmanager
def silence() -> Any:
    """Let what the trainers print and warn about go nowhere."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def main() -> int:
    """Run all contests, print the table, and write it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        advice = 'install the extras: pip install "rlhf_toy[dev,bridge]"'
        print(f"make bench also needs {', '.join(missing)}: {advice}", file=sys.stderr)
        return 2
    check_output(TABLE)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before its first import
    logging.disable(logging.WARNING)
    matrices = torch.randn(2, SIZE, SIZE)
    rates, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        print("preparing …", file=sys.stderr)
        with silence():
            contests = Contests(Path(folder)).all()
        turns = sum(1 + len(contest.theirs) for contest in contests)
        with tqdm(total=ROUNDS * turns) as bar:
            for contest in contests:
                sides = {"": contest.ours, **contest.theirs}
                times: dict[str, list[float]] = {name: [] for name in sides}
                products = []
                for number in range(ROUNDS):
                    order = list(sides)[:: 1 if number % 2 else -1]
                    for name in order:
                        bar.set_description(f"{contest.name}, {name or 'ours'}")
                        with silence():
                            times[name].append(sides[name]())
                        bar.update()
                    products.append(milliseconds(partial(torch.mm, *matrices)))
                rates.append(2 * SIZE**3 / (statistics.median(products) / 1e3))
                rows += to_rows(contest, times.pop(""), times, rates[-1])
    print(to_text(rows))
    with atomic_file(TABLE, text=True) as file:
        file.write(
            json.dumps({"machine": machine(statistics.median(rates)), "rows": rows}, indent=1)
            + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
