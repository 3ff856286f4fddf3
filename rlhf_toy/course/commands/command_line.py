"""The parser of `python -m rlhf_toy COMMAND`, and what it does with a command's errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from rlhf_toy.course.commands import (
    claims,
    course,
    doctor,
    export,
    grade,
    pool,
    publish,
    study,
    tour,
)
from rlhf_toy.course.commands.usage import UsageError

COMMANDS = {
    "tour": tour,
    "doctor": doctor,
    "course": course,
    "study": study,
    "claims": claims,
    "publish": publish,
    "export": export,
    "grade": grade,
    "pool": pool,
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser: one sub-command for each module of `rlhf_toy.course.commands`."""
    parser = argparse.ArgumentParser(
        prog="rlhf_toy", description="RLHF in worlds that are small enough to solve exactly."
    )
    parser.add_argument("--version", action="version", version=version("rlhf_toy"))
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name (default: those of this process).

    Returns:
        The exit code: 0 for success, 1 if the command or writing a file failed, 2 for a usage
        error.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        print(f"rlhf_toy: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk: the message names the file
        print(f"rlhf_toy: error: {error}", file=sys.stderr)
        return 1
