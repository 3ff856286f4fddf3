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
LONGEST_CELL = 25  # lines
MOST_CELLS, MOST_WORDS, MOST_VERDICTS = 45, 2_200, 2
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


def parsed(source):
    """The syntax tree of a cell, with `pass` for each magic."""
    return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M))


def test_title_question_and_aims_come_first(stem):
    text = prose(stem)
    assert re.match(rf"# {stem[:2]} · .+\n\n\*\*.+\?\*\*", text)
    assert "you can**" in text and "| minutes | builds on |" in text


def test_ledger_items_are_in_the_metadata_and_not_in_the_text(stem):
    items = [item for cell in read(stem).cells for item in cell.metadata.get("ledger", [])]
    assert items and all(re.fullmatch(r"L([1-9]|[12]\d|30)", item) for item in items)
    assert not re.search(r"\bL\d+\b|\blecture\b", prose(stem))


def test_it_is_short_and_prints_numbers(stem):
    assert len(read(stem).cells) <= MOST_CELLS
    texts = [c for c in cells(stem, "markdown") if "badge" not in c.metadata.get("tags", [])]
    assert sum(len(cell.source.split()) for cell in texts) <= MOST_WORDS
    verdicts = [
        verdict
        for cell in cells(stem, "code")
        for output in cell.outputs
        if output.output_type == "stream"
        for verdict in re.findall(r"\b(?:True|False)\b", output.text)
    ]
    assert len(verdicts) <= MOST_VERDICTS


def test_somebody_asks_and_assertions_are_apart(stem):
    assert "> **People ask:**" in prose(stem)
    checks = tagged(stem, "check")
    assert checks
    for cell in cells(stem, "code"):
        asserts = any(isinstance(node, ast.Assert) for node in ast.walk(parsed(cell.source)))
        assert asserts == (cell in checks), cell.source
    assert not any(cell.outputs for cell in checks)


def test_every_figure_has_a_text_for_those_who_cannot_see_it(stem):
    for cell in cells(stem, "code"):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata.get("alt", "")) >= 30, cell.source


def test_every_notebook_has_the_same_setup_cell(stem):
    (setup,) = tagged(stem, "setup")
    (first,) = tagged("00_start_here", "setup")
    assert setup.source == first.source


def test_there_are_predictions_and_an_end(stem):
    text = prose(stem)
    assert text.count("*Predict: ") >= 3
    assert "## Recap" in text and "## Check yourself" in text and "## References" in text
    assert text.count("<details><summary>answer</summary>") == text.count("</details>") == 3


def test_each_prediction_has_a_name_of_its_own_and_is_shown_later():
    asked = []
    for stem in NOTEBOOKS:
        texts = [cell.source for cell in cells(stem, "code")]
        for i, text in enumerate(texts):
            for name in re.findall(r'exercises\.predict\(\s*"(.+?)"', text):
                asked.append(name)
                assert name.startswith(f"{stem[:2]} ")
                assert any(f'exercises.predicted("{name}")' in later for later in texts[i + 1 :])
        shown = re.findall(r'exercises\.predicted\("(.+?)"\)', "\n".join(texts))
        assert set(shown) == {name for name in asked if name[:2] == stem[:2]}
    assert len({name[:2] for name in asked}) >= 3 and len(set(asked)) == len(asked)


def test_the_last_lines_lead_to_the_next_notebook(stem):
    for other in [other for other in NOTEBOOKS if other > stem][:1]:
        assert re.search(rf"Next: \[{other[:2]} · .+\]\({other}\.ipynb\)\s*$", prose(stem))


def test_every_link_to_a_notebook_leads_somewhere(stem):
    for target in re.findall(r"\]\((\w+\.ipynb)\)", prose(stem)):
        assert (ROOT / "notebooks" / target).is_file(), target


def test_cells_are_short(stem):
    for cell in cells(stem, "code"):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_the_notebooks_are_quick():
    """As measured by tests/benchmarks/notebooks.py; run it again when a notebook changes much."""
    table = ROOT / "tests" / "benchmarks" / "notebook_seconds.json"
    seconds = json.loads(table.read_text(encoding="utf-8"))
    assert list(seconds) == list(NOTEBOOKS)
    for stem in NOTEBOOKS:
        assert seconds[stem] <= (90 if stem[:2] in ("08", "12", "14") else 45), stem
    assert sum(seconds.values()) <= 14 * 60


def test_it_was_run_from_top_to_bottom_without_an_error(stem):
    code = cells(stem, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        assert allowed or not any(output.output_type == "error" for output in cell.outputs)


def test_the_file_is_small(stem):
    assert NOTEBOOKS[stem].stat().st_size < 1_000_000
    assert "widgets" not in read(stem).metadata, "the state of the widgets was saved"


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


def test_there_are_a_few_exercises_and_each_answer_is_used(stem):
    code = cells(stem, "code")
    checked = [CHECK.findall(cell.source) for cell in code]
    names = [name for found in checked for name in found]
    fewest = 1 if stem == "00_start_here" else 2
    assert fewest <= len([name for name in names if not name.startswith("repair_")]) <= 4
    assert names == [name for name in exercises.names() if _EXERCISES[name].notebook == stem[:2]]
    for i, found in enumerate(checked):
        for name in found:
            assert "exercise" in code[i].metadata.get("tags", [])
            later = parsed("\n".join(cell.source for cell in code[i + 1 :]))
            used = {node.id for node in ast.walk(later) if isinstance(node, ast.Name)}
            assert name in used, f"{name} is never used after its exercise"


def test_an_untouched_exercise_is_not_attempted(stem):
    for cell in tagged(stem, "exercise"):
        (name,) = CHECK.findall(cell.source)
        assert [output.text for output in cell.outputs] == [f"{name}: not attempted\n"]
