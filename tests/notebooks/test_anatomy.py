"""What every notebook must have, and what must not be in any."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from rlhf_toy.course import exercises
from rlhf_toy.course.exercises import _EXERCISES

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
COURSE = [stem for stem in NOTEBOOKS if stem != "00_start_here"]
LONGEST_CELL = 27  # lines
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:<>\\})\]-])/(?:[A-Za-z][\w.-]*/)+")
CHECK = re.compile(r'exercises\.check\("(\w+)", \w+\)')


@pytest.fixture(params=NOTEBOOKS)
def stem(request):
    return request.param


def read(stem):
    return nbformat.read(NOTEBOOKS[stem], as_version=4)


def cells(stem, kind):
    return [cell for cell in read(stem).cells if cell.cell_type == kind]


def tagged(stem, tag):
    return [cell for cell in cells(stem, "code") if tag in cell.metadata.get("tags", [])]


def prose(stem):
    return "\n\n".join(cell.source for cell in cells(stem, "markdown"))


def test_title_question_and_table_come_first(stem):
    text = prose(stem)
    assert re.match(rf"# {stem[:2]} · .+\n\n\*\*.+\?\*\*", text)
    assert "you can**" in text and "| teaches | minutes | builds on |" in text
    assert re.search(r"\| L\d+", text)


def test_every_notebook_has_the_same_setup_cell(stem):
    (setup,) = tagged(stem, "setup")
    (first,) = tagged("00_start_here", "setup")
    assert setup.source == first.source


def test_there_are_predictions_a_theory_check_and_an_end(stem):
    text = prose(stem)
    assert text.count("*Predict: ") >= 3
    assert "## The theory, checked" in text
    assert "## Recap" in text and "## Check yourself" in text and "## References" in text
    assert text.count("<details><summary>answer</summary>") == text.count("</details>") == 3


def test_the_last_lines_lead_to_the_next_notebook(stem):
    following = [other for other in NOTEBOOKS if int(other[:2]) == int(stem[:2]) + 1]
    for other in following:
        assert re.search(rf"Next: \[{other[:2]} · .+\]\({other}\.ipynb\)\s*$", prose(stem))


def test_every_link_to_a_notebook_leads_somewhere(stem):
    for target in re.findall(r"\]\((\w+\.ipynb)\)", prose(stem)):
        assert (ROOT / "notebooks" / target).is_file(), target


def test_cells_are_short(stem):
    for cell in cells(stem, "code"):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_it_was_run_from_top_to_bottom_without_an_error(stem):
    code = cells(stem, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        assert allowed or not any(output.output_type == "error" for output in cell.outputs)


def test_the_file_is_small(stem):
    assert NOTEBOOKS[stem].stat().st_size < 1_000_000


def test_something_is_compared_when_the_outputs_are_checked(stem):
    compared = [
        cell
        for cell in cells(stem, "code")
        if "nbval-ignore-output" not in cell.metadata.get("tags", [])
        and any(output.output_type == "stream" for output in cell.outputs)
    ]
    assert len(compared) >= 4


def test_no_figure_and_no_claim_failed(stem):
    for cell in cells(stem, "code"):
        for output in cell.outputs:
            if output.output_type == "stream" and "nbval-ignore-output" not in cell.metadata.get(
                "tags", []
            ):
                assert not re.search(r": False$", output.text, re.M), output.text


def test_nothing_belongs_to_one_machine(stem):
    for cell in read(stem).cells:
        shown = [cell.source]
        for output in cell.get("outputs", []):
            data = {kind: x for kind, x in output.get("data", {}).items() if "image" not in kind}
            shown.append(json.dumps([output.get("text"), output.get("traceback"), data]))
        for text in shown:
            assert not ABSOLUTE_PATH.search(text), ABSOLUTE_PATH.search(text)


def test_an_absolute_path_is_recognised():
    for text in ('File "/home/me/nb.py"', "see /tmp/a", "/opt/course/x"):
        assert ABSOLUTE_PATH.search(text)
    for text in ("https://a.b/c/d", "π/π_ref", "figures/data/x.json", "</div>", "1/2/3"):
        assert not ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("stem", COURSE)
def test_there_are_two_to_four_exercises_and_each_answer_is_used(stem):
    code = cells(stem, "code")
    checked = [CHECK.findall(cell.source) for cell in code]
    names = [name for found in checked for name in found]
    assert 2 <= len([name for name in names if not name.startswith("repair_")]) <= 4
    assert names == [name for name in exercises.names() if _EXERCISES[name].notebook == stem[:2]]
    for i, found in enumerate(checked):
        for name in found:
            assert "exercise" in code[i].metadata.get("tags", [])
            later = ast.parse(
                "\n".join(
                    line
                    for cell in code[i + 1 :]
                    for line in cell.source.splitlines()
                    if not line.lstrip().startswith(("%", "!"))
                )
            )
            used = {node.id for node in ast.walk(later) if isinstance(node, ast.Name)}
            assert name in used, f"{name} is never used after its exercise"


@pytest.mark.parametrize("stem", COURSE)
def test_an_untouched_exercise_is_not_attempted(stem):
    for cell in tagged(stem, "exercise"):
        (name,) = CHECK.findall(cell.source)
        assert [output.text for output in cell.outputs] == [f"{name}: not attempted\n"]
