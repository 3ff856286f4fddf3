"""Grade the notebooks of a class: a table of verdicts, the mistakes, and feedback for each student.

An interrupted run resumes: a submission whose notebooks have not changed is not graded again.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_toy.course.commands.usage import UsageError, check_writable

if TYPE_CHECKING:
    from rlhf_toy.course.submissions.collect import Submission
    from rlhf_toy.course.submissions.grader import Graded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="what was handed in: notebooks, a folder or zip per student, or the zip of a learning "
        "platform; also a zip file itself",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets index.html, table.csv, feedback/ and finished/, which lets a run resume",
    )


def run(args: argparse.Namespace) -> int:
    """Grade all submissions that are not finished, then write the report.

    Returns:
        0 for success, 130 after an interrupt from the keyboard.

    Raises:
        UsageError: there is nothing to grade, the output cannot be written, or this system has no
            way to run code apart.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("grade needs Linux: run it in WSL on Windows, in a container on a Mac")
    finished = _check_output(args.folder, args.output)
    # One thread per process and no GPU, whose threads would not survive a fork; libraries read this
    # when they are loaded.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    from rlhf_toy.course.submissions.collect import collect

    try:
        submissions = collect(args.folder)
    except OSError as error:
        raise UsageError(f"{args.folder} cannot be read: {error.strerror}") from None
    if not submissions:
        raise UsageError(
            f"there is nothing to grade in {args.folder}: expected notebooks, folders or zip files"
        )
    for folder in (finished, args.output / "feedback"):
        folder.mkdir(parents=True, exist_ok=True)
    from rlhf_toy.course.submissions.report import write_report

    try:
        graded = _grade(submissions, finished, [args.folder, args.output])
    except KeyboardInterrupt:
        print("\nInterrupted: run the same command again to continue.", file=sys.stderr)
        return 130  # as shells say it
    index = write_report({s.student: graded[s.student] for s in submissions}, args.output)
    print(f"{len(submissions)} submissions: see {index.resolve().as_uri()}")
    return 0


def _check_output(source: Path, output: Path) -> Path:
    """Return the folder for finished submissions; raise a UsageError if paths cannot be used."""
    if not os.path.exists(source):
        raise UsageError(f"there is no folder or zip file {source}")
    if not source.is_dir() and source.suffix.lower() != ".zip":
        raise UsageError(f"{source} is neither a folder nor a zip file")
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UsageError(f"--output: {output} is in {source}, with the submissions; give another")
    place = output.resolve()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"--output: {place} is not a folder; give another")
    if place == output.resolve():
        for name in ("index.html", "table.csv"):
            check_writable("--output", output / name)
    elif not os.access(place, os.W_OK):
        raise UsageError(f"--output: no right to create a folder in {place}; give another")
    return output / "finished"


def _grade(submissions: list[Submission], finished: Path, hidden: list[Path]) -> dict[str, Graded]:
    """Return what came out of each student's submission; save each as soon as it is there."""
    import joblib
    from tqdm.auto import tqdm

    from rlhf_toy.course.submissions import grader
    from rlhf_toy.files import atomic_file

    paths = {s.student: finished / f"{grader.fingerprint(s)}.json" for s in submissions}

    def saved(submission: Submission) -> Graded | None:
        with suppress(OSError, ValueError):
            text = paths[submission.student].read_text(encoding="utf-8")
            return grader.Graded.from_json(text)

    # Students' code runs in copies of this process, so no verdicts are kept here meanwhile.
    waiting, ungraded = [s for s in submissions if saved(s) is None], {}
    tqdm.monitor_interval = 0  # no thread beside this one, as threads do not survive a fork
    done = len(submissions) - len(waiting)
    with tqdm(total=len(submissions), initial=done, unit="submission") as bar:
        if waiting:
            grader.prepare()
        for submission, result in grader.grade_all(waiting, joblib.cpu_count(), hidden):
            if any(verdict.status == grader.NOT_GRADED for verdict in result.verdicts.values()):
                # For want of memory perhaps, so it is tried again next time.
                ungraded[submission.student] = result
            else:
                with atomic_file(paths[submission.student], text=True) as file:
                    file.write(result.to_json())
            bar.update()
    return {s.student: ungraded.get(s.student) or saved(s) for s in submissions}
