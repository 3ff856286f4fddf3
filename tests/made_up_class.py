"""A made-up class: submissions with answers whose verdicts are known.

Right answers and mistakes come from the answers that the tests of the exercises use, so they cover
each exercise and each named mistake. They are put into the course's own notebooks.
"""

from __future__ import annotations

import csv
import io
import json
import random
import runpy
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
from hostile_code import ANY, CELLS, HOSTILE, NEED_NAMESPACES, PATCHES, RIGHT_GAE, Expected

from rlhf_toy.course.exercises import all_exercises

ROOT = Path(__file__).parents[1]


@dataclass
class Student:
    """A student, what they hand in, and what should come out.

    Attributes:
        name: as the table should show it.
        files: name → content; zips and folders are made from them.
        expected: by exercise; "missing" for the others.
        problem: what the table should say about files that cannot be read.
    """

    name: str
    files: dict[str, bytes]
    expected: dict[str, Expected] = field(default_factory=dict)
    problem: str = ""


@cache
def answers(notebook: str) -> dict:
    return runpy.run_path(str(ROOT / f"tests/course/exercises/answers_{notebook}.py"))


@cache
def course_notebook(number: str) -> tuple[str, tuple[tuple[str, bool], ...]]:
    """File name, and (source, whether it is an exercise) of each code cell."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return path.name, tuple(
        (cell.source, "exercise" in cell.metadata.get("tags", []))
        for cell in cells
        if cell.cell_type == "code"
    )


def notebook(sources: Iterable[str]) -> bytes:
    """A notebook with these code cells, without ids, which get lost."""
    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": [],
         "execution_count": None}
        for source in sources
    ]  # fmt: skip
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def filled_in(number: str, bodies: dict[str, str]) -> bytes:
    """A notebook of the course with these cells in place of exercises, by the exercise's name."""
    sources = [(ROOT / f"tests/course/exercises/answers_{number}.py").read_text(encoding="utf-8")]
    for source, is_exercise in course_notebook(number)[1]:
        name = next((n for n in bodies if is_exercise and f'check("{n}"' in source), None)
        sources.append(bodies[name] if name else source)
    return notebook(sources)


def cell(name: str, call: str) -> str:
    """An exercise's cell whose function returns a call of another one."""
    return f"""from rlhf_toy.course import exercises


def {name}(*arguments):
    return {call}(*arguments)


print({name})
{name} = exercises.check("{name}", {name})
"""


def student(name: str, choose: Callable[[str], tuple[str, int]], numbers: Iterable[str]) -> Student:
    """A student who answers each exercise of some notebooks.

    Args:
        choose: from an exercise's name to ("RIGHT" or "WRONG", which of these answers).
    """
    made = Student(name, {})
    for number in numbers:
        bodies = {}
        for exercise in all_exercises().values():
            if exercise.notebook == number:
                kind, i = choose(exercise.name)
                options = answers(number)[kind][exercise.name]
                i %= len(options)
                part = "[0]" if kind == "WRONG" else ""
                bodies[exercise.name] = cell(exercise.name, f'{kind}["{exercise.name}"][{i}]{part}')
                made.expected[exercise.name] = (
                    ("right", "") if kind == "RIGHT" else ("wrong", options[i][1] or ANY)
                )
        made.files[course_notebook(number)[0]] = filled_in(number, bodies)
    return made


def gae_cell(body: str) -> str:
    return f"""from rlhf_toy.course import exercises
import torch


def gae(rewards, values, mask, gamma, lam):
    {body}
    return {RIGHT_GAE}


gae = exercises.check("gae", gae)
"""


def with_gae(name: str, source: str, expected: Expected) -> Student:
    """Right answers to the notebook on PPO, except for one."""
    made = student(name, lambda _: ("RIGHT", 0), ["08"])
    bodies = {n: cell(n, f'RIGHT["{n}"][0]') for n in made.expected}
    made.files[course_notebook("08")[0]] = filled_in("08", {**bodies, "gae": source})
    made.expected["gae"] = expected
    return made


def hostile(kinds: Iterable[str]) -> list[Student]:
    made = []
    for kind in kinds:
        if kind in HOSTILE:
            body, expected = HOSTILE[kind]
            made.append(with_gae(kind, gae_cell(body), expected))
        elif kind in CELLS:
            source, expected = CELLS[kind]
            check = 'from rlhf_toy.course import exercises\ngae = exercises.check("gae", gae)'
            made.append(with_gae(kind, f"{source}\n{check}", expected))
        else:
            source = PATCHES[kind] + "\ndef gae(*arguments):\n    return torch.zeros(1), 0\n"
            check = 'gae = exercises.check("gae", gae)\n'
            source = f"import torch\nfrom rlhf_toy.course import exercises\n{source}\n{check}"
            # The patch is a statement of its own, which gae does not need, so it is made to.
            used = source.replace(
                "return torch.zeros", "torch, exercises, patched; return torch.zeros"
            )
            patch = PATCHES[kind].strip().replace("\n", "\n    ")
            used = used.replace(PATCHES[kind], f"\ndef patch():\n    {patch}\npatched = patch()\n")
            made.append(with_gae(kind, used, ("wrong", ANY)))
    return made


def broken() -> list[Student]:
    """Submissions of which something cannot be read."""
    good = student("", lambda _: ("RIGHT", 1), ["06"])
    name, content = next(iter(good.files.items()))
    cells = json.loads(content)
    for part in cells["cells"]:
        if 'check("kkt_residual"' in part["source"]:
            part["source"] = "def kkt_residual(logps:\n    return"
        if 'check("gibbs_policy"' in part["source"]:
            part["source"] = "%%time\n" + part["source"] + "\n!ls\n%timeit 1\n"
    one_cell = json.dumps(cells).encode()
    slip = zipped({"../../evil.ipynb": content, name: content})
    bomb = zipped({"bomb.ipynb": b"0" * 30_000_000, name: content})
    cut = zipped({name: content})[:-300]
    deep = b"[" * 100_000
    made = [
        Student("one bad cell", {name: one_cell},
                good.expected | {"kkt_residual": ("wrong", "syntax error")}),
        Student("no notebook", {"answers.pdf": b"%PDF-1.4"}, problem="no notebook was handed in"),
        Student("not JSON", {"a.ipynb": b"hello"}, problem="it is not a notebook"),
        Student("empty", {"a.ipynb": b""}, problem="it is not a notebook"),
        Student("a list", {"a.ipynb": b"[]"}, problem="it is not a notebook"),
        Student("bytes", {"a.ipynb": bytes(range(256))}, problem="it is not a notebook"),
        Student("deep", {"a.ipynb": deep}, problem="it is not a notebook"),
        Student("large", {"a.ipynb": b" " * 20_000_001}, problem="larger than 20 MB"),
        Student("one file is broken", {"a.ipynb": b"{}", name: content}, good.expected,
                problem="a.ipynb: it is not a notebook"),
        Student("zip slip", {"hand in.zip": slip}, good.expected, problem="out of the zip"),
        Student("zip bomb", {"hand in.zip": bomb}, good.expected, problem="larger than 20 MB"),
        Student("cut zip", {"hand in.zip": cut}, problem="not a zip file that can be read"),
        Student("stubs", {name: notebook(s for s, _ in course_notebook("06")[1])},
                {n: ("not attempted", "") for n in good.expected}),
        Student("two attempts", {f"a {name}": content,
                f"b {name}": notebook(s for s, _ in course_notebook("06")[1])}, good.expected),
    ]  # fmt: skip
    return made


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def class_of_80() -> list[Student]:
    """Right answers, every named mistake, hostile and broken submissions, and mixtures."""
    every = sorted({exercise.notebook for exercise in all_exercises().values()})
    most = max(len(a) for n in every for a in answers(n)["WRONG"].values())
    made = [student(f"right {i}", lambda _, i=i: ("RIGHT", i), every) for i in range(3)]
    made += [student(f"wrong {i}", lambda _, i=i: ("WRONG", i), every) for i in range(most)]
    made += hostile([*HOSTILE, *CELLS, *PATCHES]) + broken()
    for i in range(80 - len(made)):
        draw = random.Random(i)
        choose = lambda _, draw=draw: (draw.choice(["RIGHT", "WRONG"]), draw.randrange(99))  # noqa: E731
        made.append(student(f"Zoë Åström {i}", choose, draw.sample(every, 8)))
    return made


def class_of_12() -> list[Student]:
    """One student of each kind, with the notebooks on the optimum and on PPO at most."""
    names = ["loops in C", "ends Python", "kills", "forks", "reads the class", "reaches out"]
    names += ["calls the package", "patches the grader"]
    spoilt = {made.name: made for made in broken()}
    return [
        student("Jörg Müller", lambda _: ("RIGHT", 2), ["06", "08"]),
        student("Zoë Åström", lambda _: ("WRONG", 1), ["06", "08"]),
        *hostile(names),
        spoilt["one bad cell"],
        spoilt["zip slip"],
    ]


def hand_in(students: Iterable[Student], folder: Path) -> None:
    """Write the files, a third each in folders, in a platform's zip, and as a zip per student."""
    platform: dict[str, bytes] = {}
    for i, made in enumerate(students):
        if i % 3 == 0:
            for name, content in made.files.items():
                path = folder / made.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        elif i % 3 == 1:
            made_folder = f"{made.name}_{1000 + i}_assignsubmission_file_"
            platform |= {f"{made_folder}/{name}": c for name, c in made.files.items()}
            made.name = f"{made.name} ({1000 + i})"
        else:
            (folder / f"{made.name}.zip").write_bytes(zipped(made.files))
    if platform:
        (folder / "Kurs Übung 8.zip").write_bytes(zipped(platform))


def complaints(students: Iterable[Student], output: Path) -> list[str]:
    """What in the graded table is not as expected."""
    with open(output / "table.csv", encoding="utf-8-sig", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    page = (output / "index.html").read_text(encoding="utf-8")
    is_protected = "does not allow full protection" not in page
    students = list(students)
    found = [] if len(rows) == len(students) else [f"the table has {len(rows)} rows"]
    for made in students:
        if not is_protected and made.name.split(" (")[0] in NEED_NAMESPACES:
            continue
        if made.name not in rows:
            found.append(f"{made.name} is not in the table")
            continue
        row = rows[made.name]
        if made.problem not in row["problems"] or (row["problems"] and not made.problem):
            found.append(f"{made.name}: problems are {row['problems']!r}, not {made.problem!r}")
        for name in row.keys() & all_exercises().keys():
            status, mistake = made.expected.get(name, ("missing", ""))
            if mistake == ANY:
                named = {known.name for known in all_exercises()[name].mistakes}
                is_right = row[name].startswith(f"{status}: ") and row[name][7:] not in named
            else:
                is_right = row[name] == (f"{status}: {mistake}" if mistake else status)
            if not is_right:
                found.append(f"{made.name}: {name}: {row[name]!r}, not {status}: {mistake}")
    return found
