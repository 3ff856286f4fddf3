"""Every notebook runs to its end with all exercises solved, by answers as students write them."""

import inspect
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECK = re.compile(r'exercises\.check\("(\w+)", \w+\)')


def solved(notebook: nbformat.NotebookNode, answers: dict) -> list[str]:
    """Puts an answer into each exercise's cell; returns the exercises' names."""
    names = []
    for cell in notebook.cells:
        if "exercise" in cell.metadata.get("tags", []):
            (name,) = CHECK.findall(cell.source)
            answer = answers[name][0]
            cell.source = "\n".join(
                [
                    "import math",
                    "import torch",
                    "from rlhf_toy.course import exercises",
                    inspect.getsource(answer),
                    f'{name} = exercises.check("{name}", {answer.__name__})',
                ]
            )
            names.append(name)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_solved_notebook_runs_to_its_end(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    answers = ROOT / "tests" / "course" / "exercises" / f"answers_{path.stem[:2]}.py"
    right = runpy.run_path(str(answers))["RIGHT"] if answers.exists() else {}
    names = solved(notebook, right)
    if not names:
        pytest.skip("no exercises in this notebook")
    # Its own folder: the progress that it keeps must not mix with a student's in notebooks/.
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = [  # a busy machine may deliver a line in pieces
        "".join(output.text for output in cell.outputs)
        for cell in notebook.cells
        if "exercise" in cell.metadata.get("tags", [])
    ]
    assert printed == [f"{name}: right\n" for name in names]
    record = json.loads((tmp_path / "my_progress.json").read_text(encoding="utf-8"))
    assert record["exercises"] == dict.fromkeys(names, "done")
