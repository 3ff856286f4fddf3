"""Check what papers claim, each in a world small enough to be exact, and print the board."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_toy.course.commands.usage import UsageError, check_writable

SHORT = ("paper", "claim", "predicted")  # what the whole board says about a claim
LONG = ("paper", "claim", "read", "world", "predicted", "rule")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="check one claim and print all of its card"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the board to FILE as well")


def run(args: argparse.Namespace) -> int:
    """Check one claim or all, print what came out, and write the board's file.

    Raises:
        UsageError: an unknown claim, a file that cannot be written, or --json with one claim.
    """
    if args.json and args.name:
        raise UsageError("--json writes the whole board: leave out NAME, or leave out --json")
    target = check_writable("--json", args.json) if args.json else None
    from rlhf_toy.course.claims import NAMES, claim
    from rlhf_toy.files import atomic_file

    if args.name not in (None, *NAMES):
        raise UsageError(f"no claim is called {args.name!r:.80}; there are {', '.join(NAMES)}")
    rows = []
    for name in [args.name] if args.name else NAMES:
        rows.append(claim(name).row())
        print(card(rows[-1], LONG if args.name else SHORT), flush=True)
    if not args.name:
        print(summary(rows))
    if target:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # one a line
        with atomic_file(target, text=True) as file:
            file.write(f'{{"rows": [\n{lines}\n]}}\n')
    return 0


def card(row: dict[str, Any], texts: Sequence[str]) -> str:
    """Return one claim as text: its name, some of its texts, and what came out in this world."""
    lines = {text: row[text] for text in texts}
    lines["measured"] = "; ".join(f"{name}: {x:.3g}" for name, x in row["measured"].items())
    lines["verdict"] = f"{row['verdict'].upper()} (in this world; {row['seconds']:.1f} s)"
    lines["perturbed"] = f"{row['verdict_if_perturbed']} with this change: {row['perturbed']}"
    lines["found"], lines["not tested"] = row["found"], row["not_tested"]
    if texts == SHORT:
        del lines["found"], lines["not tested"]
    wrapped = [
        textwrap.fill(f"{label:<11}{text}", 100, subsequent_indent=" " * 13, initial_indent="  ")
        for label, text in lines.items()
    ]
    return "\n".join([row["name"], *wrapped, ""])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many claims got which verdict."""
    counts = Counter(row["verdict"] for row in rows)
    found = ", ".join(f"{number} × {verdict}" for verdict, number in counts.most_common())
    return f"{len(rows)} claims in these worlds: {found}. For all of a card, give its NAME."
