"""Grade submissions: each in a process of its own, and each of its functions in another one.

Three kinds of processes. The grader forks one *judge* per submission, which reads the notebooks and
decides on the verdicts. For every exercise the judge forks a *runner*, and only the runner runs
the student's code: with limits, see `sandbox`, and it sends back numbers. So code that patches
torch, the grader or Python itself changes nothing but its own numbers. What remains possible is to
copy the solution; calling it is noticed unless the code hides it on purpose.
"""

from __future__ import annotations

import gc
import hashlib
import json
import linecache
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rlhf_toy.checks import shown
from rlhf_toy.course.exercises import all_exercises
from rlhf_toy.course.exercises.grading import (
    NOT_ATTEMPTED,
    RIGHT,
    WRONG,
    Counterexample,
    Exercise,
    Verdict,
    judge,
    not_callable,
    prepare_to_judge,
    sorted_cases,
)
from rlhf_toy.course.exercises.outcomes import LONGEST_TEXT, Outcome, run_case, where
from rlhf_toy.course.submissions import sandbox
from rlhf_toy.course.submissions.cells import Notebook, Statement, read_notebook
from rlhf_toy.course.submissions.collect import File, Refused, Submission

MISSING, NOT_GRADED = "missing", "not graded"
_WITH_MAGIC = b"""{"cells": [{"cell_type": "code", "source": "%x", "metadata": {}, "outputs": [],
"execution_count": null}], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}"""
SECONDS_OF_A_SUBMISSION = 3600  # on the clock, for all exercises


@dataclass
class Graded:
    """What came out of a submission.

    Attributes:
        verdicts: by exercise; "missing" where no notebook defines the function.
        problems: files that were not read, and why.
        unprotected: what the system did not allow to protect, see `sandbox.isolate`.
    """

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unprotected: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Graded:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            data = json.loads(text)
            verdicts = {name: _verdict(data["verdicts"][name]) for name in all_exercises()}
            return cls(verdicts, list(data["problems"]), list(data["unprotected"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are not the verdicts on a submission: {error}") from None


def prepare() -> None:
    """Compute once what all processes need: the right results, those of known mistakes, imports."""
    import torch

    import rlhf_toy.plots  # noqa: F401, which many cells import

    read_notebook(_WITH_MAGIC)  # imports what it needs
    torch.set_num_threads(1)  # threads do not survive a fork
    for exercise in all_exercises().values():
        prepare_to_judge(exercise)
    gc.collect()
    gc.freeze()  # so that forked processes share this memory


def fingerprint(submission: Submission) -> str:
    """Return what identifies the content of a submission, and the version of the package.

    A file that cannot be read counts with its name.
    """
    digest = hashlib.sha256(_fingerprint_of_package())
    for file in submission.notebooks:
        digest.update(f"\0{file.name}\0".encode())
        with suppress(Refused, OSError):
            digest.update(hashlib.sha256(file.read()).digest())
    digest.update("\0".join(submission.problems).encode())
    return digest.hexdigest()[:32]


@cache
def _fingerprint_of_package() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def grade_all(
    submissions: Sequence[Submission], jobs: int, hidden: Sequence[Path] = ()
) -> Iterator[tuple[Submission, Graded]]:
    """Grade submissions, `jobs` at a time; yield each as soon as it is done.

    Where Linux allows it, students' code does not see what is in `hidden`: the class's files.
    """
    waiting = list(reversed(submissions))
    running: dict[int, _Judge] = {}  # by the file descriptor that it writes to
    selector = selectors.DefaultSelector()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                started = _Judge.start(waiting.pop(), hidden)
                running[started.reader] = started
                selector.register(started.reader, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(timeout=1)}
            for reader, judge_ in list(running.items()):
                is_done = reader in ready and not judge_.receive()
                if is_done or time.monotonic() > judge_.deadline:
                    selector.unregister(reader)
                    del running[reader]
                    yield judge_.submission, judge_.finish()
    finally:
        for judge_ in running.values():
            judge_.stop()


@dataclass
class _Judge:
    """The process that grades a submission, seen from outside."""

    submission: Submission
    pid: int
    reader: int
    folder: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, submission: Submission, hidden: Sequence[Path]) -> _Judge:
        folder = tempfile.mkdtemp(prefix="rlhf_toy-")
        os.chmod(folder, 0o755)
        reader, writer = os.pipe()
        # Python loses an interrupt that comes while it forks, so this one comes afterwards.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            sandbox.leave_after(lambda: _serve(submission, Path(folder), writer, hidden))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.close(writer)
        return cls(submission, pid, reader, folder, time.monotonic() + SECONDS_OF_A_SUBMISSION)

    def receive(self) -> bool:
        """Take what has come; return whether there may be more."""
        piece = os.read(self.reader, 65536)
        self.received += piece
        return bool(piece)

    def finish(self) -> Graded:
        """End the process and return the verdicts."""
        is_late = time.monotonic() > self.deadline
        self.stop()
        graded = Graded(problems=list(self.submission.problems))
        for line in self.received.split(b"\n")[:-1]:
            kind, value = json.loads(line)
            if kind == "verdict":
                graded.verdicts[value["name"]] = _verdict(value["verdict"])
            else:
                (graded.problems if kind == "problem" else graded.unprotected).append(value)
        for name in all_exercises().keys() - graded.verdicts.keys():
            why = f"took more than {SECONDS_OF_A_SUBMISSION} s" if is_late else "was killed"
            graded.verdicts[name] = Verdict(NOT_GRADED, f"The grader's process {why}.")
        return graded

    def stop(self) -> None:
        """Kill the process, and with it those that it started."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reader)
        shutil.rmtree(self.folder, ignore_errors=True)


def _verdict(fields: dict[str, Any]) -> Verdict:
    example = fields["counterexample"]
    return Verdict(**{**fields, "counterexample": example and Counterexample(**example)})


# In the judge's process.


def _serve(submission: Submission, folder: Path, writer: int, hidden: Sequence[Path]) -> None:
    os.setsid()  # an interrupt from the keyboard goes to the grader alone, which then stops us
    contents = {file.name: _content(file) for file in submission.notebooks}  # soon out of sight
    unprotected = sandbox.isolate(folder, hidden)
    with os.fdopen(writer, "w", encoding="utf-8", errors="replace") as pipe:

        def send(kind: str, value: Any) -> None:
            # Not only ASCII, so that broken characters are replaced here and reach no file.
            pipe.write(json.dumps([kind, value], ensure_ascii=False) + "\n")
            pipe.flush()

        for text in unprotected:
            send("unprotected", text)
        work: Callable[[], None] = lambda: _judge_all(contents, folder, send)  # noqa: E731
        if sandbox.PROCESSES in unprotected:
            sandbox.die_with_parent()
            work()
        else:
            sandbox.in_first_process(work)


def _content(file: File) -> bytes | str:
    """Return a notebook's content, or why it cannot be read."""
    try:
        return file.read()
    except (Refused, OSError) as error:
        return str(error)


def _judge_all(
    contents: Mapping[str, bytes | str], folder: Path, send: Callable[[str, Any], None]
) -> None:
    notebooks = []
    for name, content in contents.items():
        try:
            if isinstance(content, str):
                raise ValueError(content)
            notebooks.append(read_notebook(content))
        except ValueError as error:
            send("problem", f"{name}: {error}")
    wrong: set[str] = set()
    for name, exercise in all_exercises().items():
        verdict = _judge_one(exercise, notebooks, wrong, folder)
        if verdict.status not in (RIGHT, MISSING):
            wrong.add(name)
        send("verdict", {"name": name, "verdict": asdict(verdict)})


def _judge_one(
    exercise: Exercise, notebooks: Sequence[Notebook], wrong: set[str], folder: Path
) -> Verdict:
    """Return the verdict on the last attempt in the notebooks, in those that check it if any do."""
    checking = [notebook for notebook in notebooks if exercise.name in notebook.checked]
    verdict = Verdict(MISSING)
    for notebook in reversed(checking or notebooks):
        if statements := notebook.needed(exercise.name):
            verdict = _judge_statements(exercise, statements, wrong, folder)
            if verdict.status != NOT_ATTEMPTED:
                return verdict
    for notebook in reversed(notebooks):
        if error := notebook.error_of(exercise.name):
            return Verdict(WRONG, error, mistake="syntax error")
    return verdict


def _judge_statements(
    exercise: Exercise, statements: Sequence[Statement], wrong: set[str], folder: Path
) -> Verdict:
    result = sandbox.run_limited(lambda writer: _run(exercise, statements, wrong, writer), folder)
    outcomes: list[Outcome] = []
    failure = None  # of a statement that the function may need; "" once it is defined
    for line in result.content.split(b"\n")[:-1][: 1 + len(sorted_cases(exercise))]:
        try:
            kind, value = json.loads(line)
            if kind == "outcome":
                outcomes.append(Outcome.from_json(value))
                continue
            text = str(value)[:LONGEST_TEXT]
        except (ValueError, TypeError, RecursionError, MemoryError):
            hint = "The grader could not read the results. Does your code change Python itself?"
            return Verdict(WRONG, hint, mistake="unreadable results")
        if kind == "no function":
            return not_callable(exercise, text)
        if kind == "not defined":
            hint = f"The function could not be defined: {text}"
            return Verdict(WRONG, hint, mistake="not defined")
        failure = text
    mistake, details = result.problem or "ends the process", result.details or "It ended Python."
    if failure is None:
        hint = f"The cells that the function needs did not get through. {details}"
        return Verdict(WRONG, hint, mistake=mistake)
    hint = f"The call in the example did not return. {details}"
    verdict = judge(exercise, outcomes, hint, mistake)
    if failure and verdict.mistake == "raises NameError":
        verdict = replace(verdict, hint=f"{verdict.hint}. Before that, {failure}")
    return verdict


# In the runner's process, which runs the student's code.


def _run(exercise: Exercise, statements: Sequence[Statement], wrong: set[str], writer: int) -> None:
    with os.fdopen(writer, "wb", buffering=0) as pipe:

        def send(kind: str, value: Any, dumps=json.dumps) -> None:
            pipe.write(dumps([kind, value]).encode() + b"\n")

        namespace, failure = _namespace(statements, wrong)
        if exercise.name not in namespace:
            send("not defined", failure or "nothing defines it")
            return
        fn = namespace[exercise.name]
        if not callable(fn):
            send("no function", shown(fn))
            return
        send("defined", failure)
        for case in sorted_cases(exercise):
            outcome = run_case(exercise, fn, case)
            send("outcome", outcome.to_json())


def _namespace(statements: Sequence[Statement], wrong: set[str]) -> tuple[dict[str, Any], str]:
    """Run statements; return what they define, and how the last one that failed did so.

    As in a notebook, `exercises.check` leaves the solution in place of a wrong answer.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    failure = ""
    for statement in statements:
        lines = statement.source.splitlines(keepends=True)
        linecache.cache[statement.file] = (len(statement.source), None, lines, statement.file)
        if statement.checks in wrong:
            solution = all_exercises()[statement.checks].solution
            namespace.update(dict.fromkeys(statement.defines, solution))
            continue
        try:
            exec(statement.code, namespace)
        except BaseException as error:  # such as SystemExit; the next statements may not need it
            failure = f"{statement.file}: {where(error)}"
    return namespace, failure
