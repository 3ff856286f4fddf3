"""Pool the answers of a class: their agreement, their common taste, and one dataset to train on.

Each student is a file that the annotator's cell has written: `my_preferences.jsonl`, with its ties
beside it, in a folder or zip file named after the student, or a .jsonl file with such a name.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_toy.course.commands.usage import UsageError, check_writable

if TYPE_CHECKING:
    from rlhf_toy.course.pooling import Agreement, ClassTaste
    from rlhf_toy.course.widgets.annotator_files import Answer
    from rlhf_toy.envs import WordMDP

USUAL_NAME = "my_preferences"  # a student's file that is called so is named after its folder
LARGEST = 10**8  # bytes of the .jsonl files in a zip file
SHOWN = 3  # reviews of each kind in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="where the students' files are, at any depth; also single .jsonl and .zip files",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="the file for the preferences of all (JSON Lines)",
    )
    parser.add_argument(
        "--names",
        action="store_true",
        help="list the students, and keep their names in the file (default: names are dropped, and "
        "the preferences are sorted)",
    )


def run(args: argparse.Namespace) -> int:
    """Report on the students' answers, and write their preferences into one file.

    Raises:
        UsageError: files that cannot be used, too few answers, or an output that holds something
            else or would be taken for a student's file. Nothing has been written then.
    """
    try:
        import krippendorff  # noqa: F401
    except ImportError:
        raise UsageError('pool needs an extra: pip install "rlhf_toy[pool]"') from None
    from rlhf_toy.course.pooling import agreement, class_taste
    from rlhf_toy.course.widgets.annotator import ENOUGH
    from rlhf_toy.course.widgets.annotator_files import TIE
    from rlhf_toy.files import atomic_file

    output = check_writable("--output", args.output)
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            files = _find(args.paths, Path(unpacked))
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None
        folders = [path.resolve() for path in args.paths if path.is_dir()]
        if output in files or any(output.is_relative_to(folder) for folder in folders):
            problem = "is, or would be taken for, a student's file; give one in another folder"
            raise UsageError(f"--output: {args.output} {problem}")
        try:
            world = _world(files)
            students = [(name, _answers(path, world)) for path, name in files.items()]
        except (OSError, ValueError) as error:
            raise UsageError(str(error).replace(unpacked, "")) from None
    students = [(name, answers) for name, answers in students if answers]
    preferences = sum(answer.verdict != TIE for _, answers in students for answer in answers)
    if len(students) < 2 or preferences < ENOUGH:
        raise UsageError(
            f"too few answers: students {len(students)} (at least 2 are needed), preferences "
            f"{preferences} (at least {ENOUGH})"
        )
    content = _dataset(students, world, args.names)
    if output.exists() and output.read_bytes() != content.encode():
        raise UsageError(f"--output: {args.output} has other content: delete it or give another")
    with atomic_file(output, text=True) as file:
        file.write(content)

    ties = sum(len(answers) for _, answers in students) - preferences
    print(f"{len(students)} students, {preferences} preferences and {ties} ties")
    if args.names:
        print("\n".join(f"  {name}: {len(answers)} answers" for name, answers in students))
    given = [[(a.pair, a.verdict) for a in answers] for _, answers in students]
    print(f"\n{_agreement_words(agreement(given))}\n")
    print(_taste_table(class_taste(world, given)))
    print(f"\n{args.output} has the {preferences} preferences.")
    return 0


def _find(paths: list[Path], unpacked: Path) -> dict[Path, str]:
    """Return each student's file of preferences, and the student's name.

    Zip files are unpacked into a folder, under their absolute paths. A file need not exist: the
    student may have given ties only.

    Raises:
        UsageError: there are no files, or a path is not a folder, a .jsonl or a .zip file.
    """
    found = {}  # by what remains of their paths below the given folder
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".jsonl", ".zip"))
            files = [(p.relative_to(path), p) for p in inside if p.is_file()]
        elif os.path.isfile(path) and path.suffix.lower() in (".jsonl", ".zip"):
            files = [(Path(path.absolute().parent.name, path.name), path)]
        else:
            raise UsageError(f"{path} is not a folder, a .jsonl file or a .zip file")
        for label, file in files:
            if file.suffix.lower() == ".zip":
                folder = _unzip(file, unpacked)
                inside = sorted(folder.rglob("*.jsonl"))
                found |= {p: label.with_suffix("") / p.relative_to(folder) for p in inside}
            else:
                found[file.resolve()] = label
    students = {}
    for file, label in found.items():
        if any(part.startswith((".", "__MACOSX")) for part in label.parts):  # not a student's
            continue
        file, label = (p.with_name(p.name.replace(".ties.jsonl", ".jsonl")) for p in (file, label))
        is_usual = label.stem == USUAL_NAME and label.parent != Path()
        name = str(label.parent if is_usual else label.with_suffix(""))
        students[file] = os.fsencode(name).decode("utf-8", "replace")  # of an old zip file
    if not students:
        raise UsageError(f"no .jsonl file in {', '.join(map(str, paths))}")
    return students


def _unzip(path: Path, unpacked: Path) -> Path:
    """Unpack the .jsonl files of a zip file, and return their folder."""
    folder = unpacked.joinpath(*path.resolve().parts[1:])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".jsonl")]
            size = sum(member.file_size for member in members)
            if size > LARGEST:
                raise ValueError(
                    f"its answers have {size:,} bytes, at most {LARGEST:,} are allowed"
                )
            archive.extractall(folder, members)
    except Exception as error:  # zipfile raises almost any type where the content is wrong
        raise UsageError(f"{path} cannot be unpacked: {error!s:.200}") from None
    return folder


def _world(files: dict[Path, str]) -> WordMDP:
    """Return the world of most files, by the fingerprint in their first lines.

    Raises:
        ValueError: no file names a world, or one that the course does not know.
    """
    from rlhf_toy.course.worlds import WORLDS
    from rlhf_toy.envs import WordMDP, WordSpec

    named = Counter()
    for path in files:
        # What is wrong with a file is said when it is read in full.
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            with open(path, "rb") as file:
                first = file.readline()
            named[str(json.loads(first)["world"])] += 1
    if not named:
        raise ValueError("no file says which world its answers are from: none has the key 'world'")
    ((fingerprint, _),) = named.most_common(1)
    for spec in WORLDS.values():
        for length in range(1, spec.max_length + 1) if isinstance(spec, WordSpec) else ():
            world = WordMDP(spec, max_length=length)
            if world.fingerprint == fingerprint:
                return world
    raise ValueError(
        f"the answers are from a world with the fingerprint {fingerprint!r:.80}, which is not in "
        "rlhf_toy/course/worlds.py: add its spec there"
    )


def _answers(path: Path, world: WordMDP) -> list[Answer]:
    """Return a student's answers; a student who answered a pair twice means the last one."""
    from rlhf_toy.course.widgets.annotator_files import AnswerFiles

    return list({answer.pair.key: answer for answer in AnswerFiles(path, world).answers}.values())


def _dataset(students: list[tuple[str, list[Answer]]], world: WordMDP, names: bool) -> str:
    """Return the preferences in the format of `PreferenceDataset.save`.

    Without names the lines are sorted: otherwise their order would show who gave them.
    """
    from rlhf_toy.course.widgets.annotator_files import TIE

    lines = []
    for name, answers in students:
        for answer in answers:
            if answer.verdict == TIE:
                continue
            chosen, rejected = answer.pair.ranked(answer.verdict)
            row = {"prompt": answer.pair.prompt, "chosen": chosen, "rejected": rejected}
            row |= {"world": world.fingerprint} | ({"student": name} if names else {})
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines if names else sorted(lines))


def _agreement_words(agreement: Agreement) -> str:
    if not agreement.pairs:
        return "No pair was answered by two students, so their agreement is unknown."
    interval = "" if np.isnan(agreement.half_width) else f" ± {agreement.half_width:.2f}"
    return (
        f"Agreement on the {agreement.pairs} pairs that several students answered:\n"
        f"  Krippendorff's α {agreement.alpha:.2f}{interval} (1: all agree, 0: as by chance)\n"
        f"  two students who answered the same pair agree in {agreement.same:.0%} of the cases"
    )


def _taste_table(taste: ClassTaste) -> str:
    """Return the weights of both fits, and how they order the reviews."""
    lines = [
        "The taste of the class (Bradley–Terry; weights in logits with 95 % intervals)",
        f"{'':<26}{'one fit to all answers':>22}{'mean of own fits':>22}",
    ]
    for name, *columns in zip(taste.features, taste.pooled.T, taste.mean.T, strict=True):
        cells = (f"{w:+.2f} ± {half:.2f}" if w == w else "never asked" for w, half in columns)
        lines.append(f"{name:<26}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append(
        "(A fit to few answers is pulled to 0: of the own fits, read the order, not the size.)"
    )

    scores = taste.borda, taste.utility
    by_borda, by_utility = (np.argsort(-score, kind="stable") for score in scores)
    ranks = np.argsort([by_borda, by_utility], axis=1) + 1  # [2, N]
    order = [np.sign((score[:, None] - score).round(9)) for score in scores]
    differ = (order[0] * order[1] < 0).sum() / max((order[0] * order[1] != 0).sum(), 1)
    moved = np.argsort(-abs(ranks[0] - ranks[1]), kind="stable")[:SHOWN]
    shown = dict.fromkeys([*by_borda[:SHOWN], *by_borda[-SHOWN:], *moved])
    lines += [
        "\nThe best, the worst and the most disputed reviews. Borda: how often it beats a random "
        f"review, by the\none fit. The two orders differ on {differ:.0%} of the pairs of reviews.",
        f"{'':<26}{'Borda':>10}{'rank':>6}{'mean utility':>16}{'rank':>6}",
    ]
    for i in sorted(shown, key=lambda i: ranks[0, i]):
        lines.append(
            f"{taste.reviews[i]:<26}{taste.borda[i]:>10.0%}{ranks[0, i]:>6}"
            f"{taste.utility[i]:>+16.2f}{ranks[1, i]:>6}"
        )
    return "\n".join(lines)
