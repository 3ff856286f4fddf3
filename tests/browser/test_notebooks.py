"""Every notebook in JupyterLab, run from top to bottom in a browser."""

from pathlib import Path

import pytest

NAMES = sorted(path.name for path in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_all_cells_run(student, name):
    student.open(name)
    student.run_all()
