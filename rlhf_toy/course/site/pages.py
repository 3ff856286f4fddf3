"""The text of the site's pages, as far as it is made from notebooks and data files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rlhf_toy.course.commands.publish import BADGE_TAG, SETUP_TAG

if TYPE_CHECKING:
    from nbformat import NotebookNode

STAR = "★"  # marks the core path
FOLDED = {SETUP_TAG, "check"}  # cells with these tags open only on request
ASK = "**People ask:**"
SIDES = ("ours", "theirs")  # of the benchmark

_ASKED = re.compile(rf"^> {re.escape(ASK)}.*(?:\n>.*)*", re.MULTILINE)
_STARRED = re.compile(rf"^\| \[[^]]+\]\((\w+)\.ipynb\) {STAR} \|", re.MULTILINE)
_BOX = """
({address})=
::::{{admonition}} People ask
{text}
::::
"""


def notebook_page(text: str, stem: str, is_core: bool) -> str:
    """Return the notebook from which a notebook's page is made.

    Cells for setup and checks are folded, figures get their texts, answers may hold formulas, and
    each question that people ask gets a box with an address. The link to Colab goes, since the site
    has a button for it.

    Args:
        text: the notebook's JSON.
        stem: its name without suffix.
        is_core: whether it belongs to the core path, which a star behind the title shows.
    """
    notebook = json.loads(text)
    cells, numbers = [], itertools.count(1)
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        tags = metadata.get("tags", [])
        if BADGE_TAG in tags:
            continue
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            if is_core and not cells:
                source = re.sub(r"^# .*", rf"\g<0> {STAR}", source)
            # Without blank lines around it, an answer would be HTML, and its formulas not set.
            source = re.sub(r"</summary>\s*", "</summary>\n\n", source)
            source = re.sub(r"\s*</details>", "\n\n</details>", source)
            cell["source"] = _ASKED.sub(
                lambda quote: "".join(
                    _BOX.format(address=_address(stem, next(numbers)), text=box)
                    for box in _boxes(quote[0])
                ),
                source,
            )
        if FOLDED.intersection(tags):
            metadata["tags"] = [*tags, "hide-cell"]
        if "alt" in metadata:
            metadata["mystnb"] = {"image": {"alt": metadata["alt"]}}
        cells.append(cell)
    return json.dumps({**notebook, "cells": cells})


def core_path(readme: str) -> set[str]:
    """Return the names without suffix of the notebooks that have a star in the README's table."""
    return set(_STARRED.findall(readme))


def headline(notebook: NotebookNode) -> tuple[str, str]:
    """Return a notebook's first heading and the paragraph after it, each "" if there is none."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    _, _, after = f"\n{text}".partition("\n# ")
    title, _, rest = after.partition("\n")
    paragraphs = (part.strip() for part in re.split(r"\n\s*\n", rest))
    prose = (part for part in paragraphs if part and not part.startswith(("#", "[![")))
    return title.strip(), " ".join(next(prose, "").strip("*").split())


def notebook_table(notebooks: Mapping[str, NotebookNode], core: set[str]) -> str:
    """Return the table of the notebooks, which have their names without suffix as keys."""
    rows = []
    for stem, notebook in notebooks.items():
        title, question = headline(notebook)
        rows.append(
            (f"[{title or stem}](notebooks/{stem}.ipynb) {STAR * (stem in core)}", question)
        )
    return table(("notebook", "question"), rows)


def people_ask(notebooks: Mapping[str, NotebookNode]) -> str:
    """Return a list of all questions, each with a link to the box that answers it."""
    lines = []
    for stem, notebook in notebooks.items():
        cells = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        boxes = [box for cell in cells for quote in _ASKED.findall(cell) for box in _boxes(quote)]
        if boxes:
            lines += ["", f"## {headline(notebook)[0] or stem}", ""]
        for number, box in enumerate(boxes, 1):
            question, mark, _ = box.partition("?*")
            lines.append(f"- [{' '.join(question.split())}{mark}](#{_address(stem, number)})")
    return "\n".join(lines) + "\n"


def split_readme(readme: str) -> tuple[str, str]:
    """Split the README of the notebooks into the syllabus and the instructor's guide."""
    linked = re.sub(r"\]\((?=\w+\.ipynb)", "](notebooks/", readme)
    syllabus, heading, guide = linked.partition("# For instructors")
    syllabus = re.sub(r"\A# .*", "# Syllabus", syllabus.rstrip().removesuffix("---"))
    return syllabus, heading + guide


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = [[str(x).replace("|", r"\|").replace("\n", " ") for x in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def benchmark(data: Mapping[str, Any]) -> str:
    """Return the table of the benchmark, what is counted, and the machine, from its data file."""
    head = ("", "beside", "ours, ms", "theirs, ms", "ratio", "share of sgemm")
    rows, counted = [], {}
    for row in data["rows"]:
        times = (_with_range(row[f"{side}_ms"], row.get(f"{side}_range_ms")) for side in SIDES)
        share = "" if row["share_of_sgemm"] is None else f"{row['share_of_sgemm']:.0%}"
        ratio = _with_range(row["ratio"], row.get("ratio_range"))
        rows.append((row["name"], row["contender"], *times, ratio, share))
        counted[row["name"]] = row.get("counts", "")
    lines = [f"- {name}: {what}\n" for name, what in counted.items() if what]
    lines += ["\n## The machine\n\n"]
    lines += [f"- {_words(key)}: {_shown(value)}\n" for key, value in data["machine"].items()]
    return f"{table(head, rows)}\n{''.join(lines)}"


def claims(data: Mapping[str, Any]) -> str:
    """Return the board of claims and a card for each, from the content of their data file."""
    board, cards = [], []
    for row in data["rows"]:
        fields = {_words(key): _shown(value) for key, value in row.items()}
        name = _words(fields.pop("name"))
        board.append((name, fields["claim"], f"**{fields['verdict']}**"))
        cards.append(f"\n## {name}\n\n")
        cards += [f"- *{key}*: {value}\n" for key, value in fields.items()]
    return table(("", "claim", "verdict"), board) + "".join(cards)


def docstring(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText with headings that napoleon reads.

    Outside code, `|` and `*` are mathematics and no markup. What is returned may have a colon in
    its text, before which napoleon would expect a type.
    """
    code_or_sign = re.compile(r"(`+[^`]+`+)|([|*])")
    escaped = [code_or_sign.sub(lambda m: m[1] or rf"\{m[2]}", line) for line in lines]
    return [re.sub(r"^(\s*)(Returns|Yields):$", r"\1:returns:", line) for line in escaped]


def _boxes(quote: str) -> list[str]:
    """Return what a quotation says after each "People ask:"; the question comes first."""
    text = re.sub(r"^> ?", "", quote, flags=re.MULTILINE)
    return [box.strip() for box in text.split(ASK)[1:]]


def _address(stem: str, number: int) -> str:
    """Return the address of the box with this number in a notebook."""
    return f"ask-{stem}-{number}".replace("_", "-")


def _words(name: str) -> str:
    """Return a name from code as words."""
    return name.replace("_", " ")


def _with_range(value: float, ends: list[float] | None) -> str:
    """Return a median with its range, if that is known."""
    return f"{value:.3g} ({ends[0]:.3g} – {ends[1]:.3g})" if ends else f"{value:.3g}"


def _shown(value: object) -> str:
    """Return a value of a data file as a reader wants it."""
    if isinstance(value, dict):
        return "; ".join(f"{_words(key)} {_shown(x)}" for key, x in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
