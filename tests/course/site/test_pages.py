"""The text of the site's pages."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_toy.course.site import pages

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"
ASKED = """\
Before.

> **People ask:** *Why does `|y|`
> matter?* (trl 1.) It does:
>
> $$x>1$$
>
> **People ask:** *Two words* (in brackets) *in one?* Yes.

After.

> A quotation that nobody asked."""


def notebook(*cells):
    return new_notebook(cells=list(cells))


def page(*cells, is_core=False):
    text = nbformat.writes(notebook(*cells))
    return nbformat.reads(pages.notebook_page(text, "07_a_b", is_core), as_version=4).cells


def tagged(new_cell, source, *tags):
    return new_cell(source, metadata={"tags": list(tags)})


def test_setup_and_checks_are_folded_and_nothing_else():
    sources = {"setup": "1", "check": "2", "exercise": "3", "nbval-ignore-output": "4"}
    cells = page(
        *(tagged(new_code_cell, source, tag) for tag, source in sources.items()), new_code_cell("5")
    )
    folded = ["hide-cell" in cell.metadata.get("tags", []) for cell in cells]
    assert folded == [True, True, False, False, False]
    assert [cell.source for cell in cells] == list("12345")


def test_the_link_to_colab_goes():
    (cell,) = page(tagged(new_markdown_cell, "[Colab](x)", "badge"), new_code_cell("1"))
    assert cell.source == "1"


def test_a_figure_gets_its_text():
    (cell,) = page(new_code_cell("plot()", metadata={"alt": "A curve."}))
    assert cell.metadata["mystnb"] == {"image": {"alt": "A curve."}}


@pytest.mark.parametrize("is_core", [True, False])
def test_only_the_title_of_the_core_path_has_a_star(is_core):
    first, second = page(
        new_markdown_cell("# 07 · A\n\n# B"), new_markdown_cell("# C"), is_core=is_core
    )
    assert first.source == f"# 07 · A{' ★' if is_core else ''}\n\n# B"
    assert second.source == "# C"


def test_each_question_gets_a_box_with_an_address():
    first, second = page(
        new_markdown_cell(ASKED), new_markdown_cell("> **People ask:** *A third?* No.")
    )
    boxes = re.findall(
        r"\((ask-\S+)\)=\n::::\{admonition\} People ask\n(.*?)\n::::", first.source, re.S
    )
    assert boxes == [
        ("ask-07-a-b-1", "*Why does `|y|`\nmatter?* (trl 1.) It does:\n\n$$x>1$$"),
        ("ask-07-a-b-2", "*Two words* (in brackets) *in one?* Yes."),
    ]
    assert first.source.startswith("Before.\n") and "\nAfter.\n" in first.source
    assert first.source.endswith("> A quotation that nobody asked.")
    assert "(ask-07-a-b-3)=" in second.source


def test_an_answer_is_apart_from_its_html():
    answer = "1. Why?\n\n<details><summary>answer</summary>\nBecause $x$.\n</details>\n\n2. How?"
    (cell,) = page(new_markdown_cell(answer))
    assert "</summary>\n\nBecause $x$.\n\n</details>\n\n2. How?" in cell.source


def test_the_list_of_questions_leads_to_the_boxes():
    asked = notebook(new_markdown_cell("# 07 · A"), new_markdown_cell(ASKED))
    text = pages.people_ask({"06_quiet": notebook(new_markdown_cell("# No")), "07_a_b": asked})
    assert text.split("\n") == [
        "",
        "## 07 · A",
        "",
        "- [*Why does `|y|` matter?*](#ask-07-a-b-1)",
        "- [*Two words* (in brackets) *in one?*](#ask-07-a-b-2)",
        "",
    ]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_question_of_a_notebook_is_lost(path):
    source = nbformat.read(path, as_version=4)
    count = sum(cell.source.count("People ask:") for cell in source.cells)
    listed = pages.people_ask({path.stem: source})
    assert len(re.findall(r"^- \[\*.+\?\*\]\(#ask-[\w-]+\)$", listed, re.M)) == count > 0
    shown = pages.notebook_page(path.read_text(encoding="utf-8"), path.stem, False)
    assert shown.count("{admonition} People ask") == count and "People ask:**" not in shown


def test_the_stars_of_the_readme_are_the_core_path():
    readme = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    core = pages.core_path(readme)
    assert len(core) == readme.split("# For instructors")[0].count(") ★ |") > 0
    assert "00_start_here" in core and "01_preferences_not_ratings" not in core


def test_the_table_of_notebooks_has_titles_questions_and_stars():
    opening = "# 00 · *A* | B\n\n**What is\nRLHF?**\n\nMore."
    text = pages.notebook_table(
        {"00_a": notebook(new_markdown_cell(opening)), "01_b": notebook(new_code_cell("# x"))},
        {"00_a"},
    )
    assert text.splitlines()[2:] == [
        r"| [00 · *A* \| B](notebooks/00_a.ipynb) ★ | What is RLHF? |",
        "| [01_b](notebooks/01_b.ipynb)  |  |",
    ]


def test_a_notebook_without_heading_has_no_headline():
    bare = notebook(new_markdown_cell("words"), new_code_cell("# x"))
    assert pages.headline(bare) == ("", "")


def test_the_readme_becomes_two_pages():
    first = "# Notebooks\n\n[00](00_a.ipynb) [x](https://x.org)\n\n---\n\n"
    readme = first + "# For instructors\n\nBe kind.\n"
    syllabus, guide = pages.split_readme(readme)
    assert syllabus == "# Syllabus\n\n[00](notebooks/00_a.ipynb) [x](https://x.org)\n\n"
    assert guide == "# For instructors\n\nBe kind.\n"


def test_the_benchmark_is_a_table_and_its_machine():
    row = {
        "name": "DPO step",
        "counts": "256 pairs",
        "contender": "TRL",
        "ours_ms": 17.123,
        "ours_range_ms": [16.0, 18.25],
        "theirs_ms": 92.0,
        "ratio": 5.373,
        "ratio_range": [5.0, 6.0],
        "share_of_sgemm": 0.4,
    }
    data = {"machine": {"cpu": "A", "sgemm_gflops": 50.123}, "rows": [row]}
    assert pages.benchmark(data).splitlines() == [
        "|  | beside | ours, ms | theirs, ms | ratio | share of sgemm |",
        "| --- | --- | --- | --- | --- | --- |",
        "| DPO step | TRL | 17.1 (16 – 18.2) | 92 | 5.37 (5 – 6) | 40% |",
        "",
        "- DPO step: 256 pairs",
        "",
        "## The machine",
        "",
        "- cpu: A",
        "- sgemm gflops: 50.1",
    ]
    row["share_of_sgemm"] = None
    assert "| 5.37 (5 – 6) |  |" in pages.benchmark(data)


def test_the_claims_are_a_board_and_cards():
    row = {
        "name": "hidden_context",
        "claim": "P(a|b) falls.",
        "measured": {"A ahead by": 0.4142, "n": 3},
        "verdict": "holds",
    }
    assert pages.claims({"rows": [row]}).splitlines() == [
        "|  | claim | verdict |",
        "| --- | --- | --- |",
        r"| hidden context | P(a\|b) falls. | **holds** |",
        "",
        "## hidden context",
        "",
        "- *claim*: P(a|b) falls.",
        "- *measured*: A ahead by 0.414; n 3",
        "- *verdict*: holds",
    ]


def test_mathematics_in_a_docstring_is_no_markup():
    lines = ["log π(y|x) *is* `a|b` and ``c*d``", "    Returns:", "        A tensor: one number."]
    assert pages.docstring(lines) == [
        r"log π(y\|x) \*is\* `a|b` and ``c*d``",
        "    :returns:",
        "        A tensor: one number.",
    ]


def test_a_page_is_a_valid_notebook():
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = pages.notebook_page(path.read_text(encoding="utf-8"), path.stem, True)
        nbformat.validate(json.loads(text))
