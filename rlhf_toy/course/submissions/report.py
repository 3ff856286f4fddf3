"""What an instructor and the students get to read: a table, the mistakes, a page per student.

Names, hints and examples contain what students wrote, so everything is escaped.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from rlhf_toy.course.exercises import all_exercises
from rlhf_toy.course.exercises.grading import RIGHT, WRONG, Verdict
from rlhf_toy.course.submissions.grader import MISSING, NOT_GRADED, Graded
from rlhf_toy.files import atomic_file

LONGEST_NAME = 60  # of a mistake, which may be the name of a student's exception

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
.wide { max-height: 85vh; overflow: auto; }
thead th { background: #fff; position: sticky; top: 0; z-index: 1; }
th:first-child { background: #fff; left: 0; position: sticky; white-space: nowrap; }
thead th:first-child { z-index: 2; }
th, td { border: 1px solid #ddd; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
td.right { background: #e3f4e3; }
td.wrong { background: #fbe5e1; }
td.the-package-s-own, td.not-graded { background: #fdf3d3; }
td.missing, td.not-attempted { color: #767676; }
pre { background: #f5f5f5; overflow-x: auto; padding: 0.5rem; white-space: pre-wrap; }
img { max-width: 100%; }
footer { color: #555; font-size: 0.85rem; margin-top: 3rem; }
"""


def write_report(graded: Mapping[str, Graded], folder: Path) -> Path:
    """Write table.csv, index.html and feedback/NAME.html for each student into a folder.

    Args:
        graded: by student.
        folder: it exists; files of an earlier report are replaced.

    Returns:
        The path of index.html.
    """
    exercises = shown_exercises(graded)
    pages = _page_names(graded)
    (folder / "feedback").mkdir(exist_ok=True)
    for student, result in graded.items():
        page = folder / "feedback" / pages[student]
        with atomic_file(page, text=True) as file:
            file.write(_feedback_page(student, result, exercises))
    with atomic_file(folder / "table.csv", text=True) as file:
        file.write("\ufeff" + _csv(graded, exercises))  # with the mark that Excel needs for UTF-8
    with atomic_file(folder / "index.html", text=True) as file:
        file.write(_index_page(graded, exercises, pages))
    return folder / "index.html"


def shown_exercises(graded: Mapping[str, Graded]) -> list[str]:
    """Return the exercises of all notebooks that were handed in."""
    every = all_exercises()
    notebooks = {
        every[name].notebook
        for result in graded.values()
        for name, verdict in result.verdicts.items()
        if verdict.status != MISSING
    }
    return [name for name, exercise in every.items() if exercise.notebook in notebooks]


def in_words(verdict: Verdict) -> str:
    """Return a verdict in a few words, such as "wrong: sign"."""
    mistake = f": {verdict.mistake:.{LONGEST_NAME}}" if verdict.mistake else ""
    return f"{verdict.status}{mistake}"


def _csv(graded: Mapping[str, Graded], exercises: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["student", "right", "problems", *exercises])
    for student, result in graded.items():
        verdicts = [result.verdicts[name] for name in exercises]
        right = sum(verdict.status == RIGHT for verdict in verdicts)
        cells = [student, right, "; ".join(result.problems), *map(in_words, verdicts)]
        writer.writerow(map(_not_a_formula, cells))
    return text.getvalue()


def _not_a_formula(cell: object) -> object:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if str(cell).startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _index_page(
    graded: Mapping[str, Graded], exercises: Sequence[str], pages: Mapping[str, str]
) -> str:
    every = all_exercises()
    head = "".join(f"<th>{every[name].notebook}<br>{escape(name)}</th>" for name in exercises)
    rows = []
    for student, result in graded.items():
        verdicts = [result.verdicts[name] for name in exercises]
        link = f'<a href="feedback/{quote(pages[student])}">{escape(student)}</a>'
        cells = "".join(
            f'<td class="{_css(v.status)}" title="{escape(v.hint)}">{escape(in_words(v))}</td>'
            for v in verdicts
        )
        right = sum(verdict.status == RIGHT for verdict in verdicts)
        problems = "<br>".join(map(escape, result.problems))
        rows.append(f"<tr><th>{link}</th><td>{right}</td><td>{problems}</td>{cells}</tr>")
    table = (
        f'<div class="wide"><table><thead><tr><th>student</th><th>right of {len(exercises)}</th>'
        f"<th>problems</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    body = f"<h1>{len(graded)} submissions</h1>{table}<h2>Mistakes</h2>" + (
        "".join(_mistakes(name, graded) for name in exercises) or "<p>None.</p>"
    )
    return _page("Graded submissions", body + _footer(graded))


def _mistakes(name: str, graded: Mapping[str, Graded]) -> str:
    """Return a section with the histogram of an exercise's mistakes, or "" if there are none."""
    verdicts = [result.verdicts[name] for result in graded.values()]
    counts = Counter(v.mistake[:LONGEST_NAME] for v in verdicts if v.status == WRONG).most_common()
    if not counts:
        return ""
    right = sum(verdict.status == RIGHT for verdict in verdicts)
    said = ", ".join(f"{mistake}: {count}" for mistake, count in counts)
    picture = base64.b64encode(_histogram(counts)).decode()
    return (
        f"<h3>{escape(name)}</h3><p>{right} right, {sum(n for _, n in counts)} wrong</p>"
        f'<img alt="{escape(said)}" src="data:image/png;base64,{picture}">'
    )


def _histogram(counts: Sequence[tuple[str, int]]) -> bytes:
    """Return a PNG with a bar for each mistake, the most frequent at the top."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from rlhf_toy.plots import COLOURS, STYLE

    mistakes, numbers = zip(*counts, strict=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.7 + 0.3 * len(counts)))
        axes = figure.add_subplot()
        places = range(len(counts))
        axes.barh(places, numbers, color=COLOURS[0])
        axes.set_yticks(places, mistakes, parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("students")
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _feedback_page(student: str, result: Graded, exercises: Sequence[str]) -> str:
    verdicts = {name: result.verdicts[name] for name in exercises}
    right = sum(verdict.status == RIGHT for verdict in verdicts.values())
    parts = [f"<h1>{escape(student)}</h1><p>Right: {right} of {len(exercises)}.</p>"]
    parts += [f"<p>{escape(problem)}</p>" for problem in result.problems]
    for notebook in dict.fromkeys(all_exercises()[name].notebook for name in exercises):
        parts.append(f"<h2>Notebook {notebook}</h2>")
        for name, verdict in verdicts.items():
            if all_exercises()[name].notebook == notebook:
                parts.append(_feedback(name, verdict))
    return _page(f"Feedback for {student}", "".join(parts))


def _feedback(name: str, verdict: Verdict) -> str:
    said = {MISSING: "No notebook defines this function.", NOT_GRADED: "Could not be graded."}
    text = f"<h3>{escape(name)}: {escape(verdict.status)}</h3>"
    if hint := verdict.hint or said.get(verdict.status):
        text += f"<p>{escape(hint)}</p>"
    if verdict.counterexample:
        text += f"<pre>{escape(str(verdict.counterexample))}</pre>"
    return text


def _footer(graded: Mapping[str, Graded]) -> str:
    unprotected = sorted({text for result in graded.values() for text in result.unprotected})
    if not unprotected:
        said = (
            "Students' code ran without network, could write only to an empty folder, and could "
            "not touch another process."
        )
    else:
        said = f"This system does not allow full protection: {'; '.join(unprotected)}."
    return f"<footer><p>{escape(said)}</p></footer>"


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _css(status: str) -> str:
    return re.sub(r"\W+", "-", status)


def _page_names(students: Mapping[str, Graded]) -> dict[str, str]:
    """Return a file name for each student; no two are the same where case does not count."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for student in students:
        base = re.sub(r"[^\w ().-]+", "_", student)
        # File systems count bytes, at most 255 in a name.
        base = base.encode()[:150].decode(errors="ignore").strip(" .") or "student"
        name, n = base, 1
        while name.casefold() in taken:
            n += 1
            name = f"{base}-{n}"
        taken.add(name.casefold())
        names[student] = f"{name}.html"
    return names
