"""Every notebook in JupyterLab, run from top to bottom, and its widgets used as a student would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

NAMES = sorted(path.name for path in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def train_live(student, code: str) -> None:
    """Starts, pauses, resumes and stops a run, and looks at what the screen says."""
    cell = student.cell(code)
    says = cell.get_by_role("status")

    def button(name: str):
        return cell.get_by_role("button", name=name, exact=True)

    expect(says).to_contain_text("Ready")
    expect(button("Pause")).to_be_disabled()
    before = cell.locator("img").get_attribute("src")
    button("Start").click()
    expect(button("Start")).to_be_disabled()
    expect(says).to_contain_text("the gap is", timeout=90_000)
    expect(cell.locator("img")).not_to_have_attribute("src", before)
    button("Pause").click()
    expect(says).to_contain_text("Paused.", timeout=30_000)
    expect(button("Pause")).to_be_disabled()
    button("Resume").click()
    expect(says).to_contain_text("Running.")
    button("Stop").click()
    expect(says).to_contain_text("Stopped.", timeout=30_000)
    expect(button("New run")).to_be_enabled()


USES: dict[str, list[Callable]] = {
    "06": [partial(train_live, code="LiveTraining.ppo")],
    "08": [partial(train_live, code="LiveTraining.dpo")],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_student_works_through_it(student, name):
    student.open(name)
    student.run_all()
    for use in USES.get(name[:2], ()):
        use(student)
