"""Find each student's notebooks in a folder or in the zip files that learning platforms give.

Nothing is extracted: files in a zip are read in memory, up to a limit, so neither their paths nor
their size can do harm.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MOST_BYTES_OF_A_NOTEBOOK = 20_000_000
MOST_BYTES_OF_A_ZIP = 50_000_000  # inside another zip, as it is read into memory
MOST_NOTEBOOKS_OF_A_STUDENT = 50
MOST_FILES_OF_A_STUDENT = 1_000  # in a zip of the student's own
MOST_FILES_OF_A_CLASS = 100_000
DEEPEST_ZIP = 3  # the platform's zip, the student's zip in it, and one more

# "Jörg Müller_12345_assignsubmission_file_", and on Canvas "mullerjorg_LATE_123_456_08_ppo.ipynb".
_MOODLE = re.compile(r"(?P<who>.+)_(?P<id>\d+)_assignsubmission_[a-z]+_?.*", re.DOTALL)
_CANVAS = re.compile(r"(?P<who>[^_]+)_(?:LATE_)?(?P<id>\d+)_(?P<file>\d+)_.+", re.DOTALL)
_IGNORED = {"__MACOSX", ".ipynb_checkpoints", "__pycache__"}


class Refused(Exception):
    """A file that is not read; the message says why."""


@dataclass(frozen=True)
class File:
    """A file that was handed in.

    Attributes:
        path: on disk: the file itself, or the outermost zip that holds it.
        members: its name in that zip, preceded by the names of zips between them.
        parts: the folders and zips that lead to it, and its name, for people.
        problem: why it is not read, if it is not.
    """

    path: Path
    members: tuple[str, ...]
    parts: tuple[str, ...]
    problem: str = ""

    @property
    def name(self) -> str:
        """The path below the folder that was searched."""
        return "/".join(self.parts)

    def read(self) -> bytes:
        """Return the content of a notebook.

        Raises:
            Refused: it is too large, or the zip is damaged or encrypted.
            OSError: it cannot be read.
        """
        if self.problem:
            raise Refused(self.problem)
        if not self.members:
            with open(self.path, "rb") as file:
                return _limited(file.read(MOST_BYTES_OF_A_NOTEBOOK + 1), MOST_BYTES_OF_A_NOTEBOOK)
        source: Path | io.BytesIO = self.path
        for zip_name in self.members[:-1]:
            with _opened(source) as archive:
                source = io.BytesIO(_read_member(archive, zip_name, MOST_BYTES_OF_A_ZIP))
        with _opened(source) as archive:
            return _read_member(archive, self.members[-1], MOST_BYTES_OF_A_NOTEBOOK)


@dataclass
class Submission:
    """What a student handed in: notebooks, in the order of their names, and files not read."""

    student: str
    notebooks: list[File] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(source: Path) -> list[Submission]:
    """Return the submissions in a folder or a zip file, sorted by student.

    A student is a folder, a zip or a notebook directly below, or what Moodle's and Canvas's names
    say. A single zip that holds folders is taken for the whole class.

    Raises:
        OSError: the folder cannot be listed.
    """
    is_zip = source.is_file()
    files = list(
        _in_zip(source, source, (), (), [MOST_FILES_OF_A_CLASS]) if is_zip else _on_disk(source)
    )
    while files and _is_wrapper({file.parts[0] for file in files}, files):
        files = [File(f.path, f.members, f.parts[1:], f.problem) for f in files]
    found: dict[str, Submission] = {}
    is_alone = len({file.parts[0] for file in files}) == 1
    # Canvas gives every file a number of its own, unlike "week_5_1_anna" and "week_5_1_ben".
    matches = filter(None, map(_canvas, {part for file in files for part in file.parts}))
    may_be_canvas = max(Counter(match["file"] for match in matches).values(), default=1) == 1
    for file in sorted(files, key=lambda file: file.name):
        student = _student(file, may_be_canvas, is_alone)
        submission = found.setdefault(student, Submission(student))
        if file.problem:
            submission.problems.append(f"{file.name}: {file.problem}")
        elif file.name.endswith(".ipynb"):
            submission.notebooks.append(file)
    for submission in found.values():
        if len(submission.notebooks) > MOST_NOTEBOOKS_OF_A_STUDENT:
            del submission.notebooks[MOST_NOTEBOOKS_OF_A_STUDENT:]
            read = f"only the first {MOST_NOTEBOOKS_OF_A_STUDENT} notebooks were read"
            submission.problems.append(read)
        if not submission.notebooks and not submission.problems:
            submission.problems.append("no notebook was handed in")
    return [found[student] for student in sorted(found, key=str.casefold)]


def _is_wrapper(first: set[str], files: list[File]) -> bool:
    """Return whether all files are in one zip that is not a student's: it holds folders or zips."""
    (name, *others) = first
    is_zip = name.lower().endswith(".zip") or all(len(file.members) for file in files)
    return bool(
        not others
        and is_zip
        and not (_MOODLE.fullmatch(name) or _canvas(name))
        and all(len(file.parts) > 2 or (file.problem and len(file.parts) > 1) for file in files)
    )


def _student(file: File, may_be_canvas: bool, is_alone: bool) -> str:
    first = file.parts[0]
    is_zip = first.lower().endswith(".zip")
    for i, part in enumerate(file.parts):
        # Canvas's names look like others, so they count only at the top of the folder, or of its
        # only zip.
        is_canvas = may_be_canvas and i <= (is_zip and is_alone)
        if match := _MOODLE.fullmatch(part) or (_canvas(part) if is_canvas else None):
            return f"{match['who']} ({match['id']})"
    return PurePosixPath(first).stem if is_zip or len(file.parts) == 1 else first


def _canvas(part: str) -> re.Match | None:
    return _CANVAS.fullmatch(part) if part.lower().endswith((".ipynb", ".zip")) else None


def _on_disk(folder: Path) -> Iterator[File]:
    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        unread.append(Path(error.filename))

    unread: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        links = [name for name in folders if Path(place, name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        names += links
        for name in sorted(names):
            path = Path(place, name)
            parts = tuple(map(_readable, path.relative_to(folder).parts))
            if _is_ignored(name):
                continue
            if path.is_symlink() or not path.is_file():
                yield File(path, (), parts, "it is a link or a device, and was not followed")
            elif name.lower().endswith(".zip"):
                yield from _in_zip(path, path, (), parts, [MOST_FILES_OF_A_CLASS])
            else:
                yield File(path, (), parts)
    for path in unread:
        parts = tuple(map(_readable, path.relative_to(folder).parts))
        yield File(path, (), parts, "it is a folder that cannot be read")


def _in_zip(
    source: Path | io.BytesIO, path: Path, above: tuple[str, ...], parts: tuple[str, ...],
    budget: list[int],
) -> Iterator[File]:  # fmt: skip
    """Yield the files of a zip and of zips in it; what cannot be read is yielded as a problem.

    Args:
        source: the zip's file, or its content.
        path: the outermost zip.
        above: names of the zips that lead to this one.
        parts: the same for people, from the searched folder on.
        budget: how many files may still come, in one item.
    """
    try:
        with _opened(source) as archive:
            for info in archive.infolist():
                name = _member_name(info)
                inside = (*parts, *(part for part in PurePosixPath(name).parts if part != "/"))
                budget[0] -= 1
                if budget[0] < 0:
                    raise Refused("it holds too many files")
                if info.is_dir() or any(map(_is_ignored, PurePosixPath(name).parts)):
                    continue
                here, inside = (*above, info.filename), inside or (path.name,)
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    tidy = tuple(part for part in inside if part not in ("..", "."))
                    problem = "its path leads out of the zip, and was not read"
                    yield File(path, here, tidy or (path.name,), problem)
                elif not name.lower().endswith(".zip"):
                    yield File(path, here, inside)
                elif len(here) >= DEEPEST_ZIP:
                    yield File(path, here, inside, "zips are nested too deeply")
                else:
                    yield from _in_inner_zip(archive, info, path, here, inside, budget)
    except Refused as error:
        yield File(path, above, parts or (path.name,), str(error))


def _in_inner_zip(archive, info, path, here, inside, budget) -> Iterator[File]:
    """Yield the files of a zip in a zip; a student's zip has a smaller budget of its own."""
    try:
        content = io.BytesIO(_read_member(archive, info.filename, MOST_BYTES_OF_A_ZIP))
    except Refused as error:
        yield File(path, here, inside, str(error))
        return
    own = [MOST_FILES_OF_A_STUDENT] if len(here) == 1 else budget
    yield from _in_zip(content, path, here, inside, own)


def _opened(source: Path | io.BytesIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Refused(f"it is not a zip file that can be read: {error}") from None


def _read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return the content of a file in a zip; a zip bomb is only unpacked up to the limit."""
    try:
        with archive.open(name) as file:
            return _limited(file.read(most + 1), most)
    except Refused:
        raise
    # A damaged zip can raise any of these, an encrypted one RuntimeError.
    except (
        zipfile.BadZipFile,
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        raise Refused(f"it cannot be read: {error}") from None


def _limited(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise Refused(f"it is larger than {most // 1_000_000} MB")
    return content


def _member_name(info: zipfile.ZipInfo) -> str:
    """Return a name in a zip; without a flag it is often UTF-8 all the same."""
    name = info.filename
    if not info.flag_bits & 0x800:  # zipfile read it as cp437
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return _readable(name.replace("\\", "/"))


def _readable(name: str) -> str:
    """Return a name with composed umlauts, and with a mark for bytes that are no characters."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", name)


def _is_ignored(part: str) -> bool:
    return part in _IGNORED or (part.startswith(".") and part not in (".", ".."))
