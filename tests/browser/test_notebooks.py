"""Every notebook in JupyterLab, run from top to bottom, and its widgets used as a student would."""

from __future__ import annotations

import urllib.error
import urllib.request
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


def answer_pairs(student, code: str) -> None:
    """Twenty preferences, one of them undone; they are saved, and survive a new kernel."""
    cell = student.cell(code)
    news = cell.get_by_role("status").first

    def button(name: str):
        return cell.get_by_role("button", name=name, exact=True)

    expect(button("undo")).to_be_disabled()
    before = cell.locator("img").get_attribute("src")
    for n in range(1, 21):
        if n == 11:
            cell.get_by_label("next pair").select_option("where the fit is least sure")
            expect(news).to_contain_text("From the next pair on")
        button("prefer left" if n % 3 else "prefer right").click()
        expect(news).to_contain_text(f"{n} answer")
    expect(cell.locator("img")).not_to_have_attribute("src", before)
    button("undo").click()
    expect(news).to_contain_text("19 answers")
    button("skip").click()
    expect(news).to_contain_text("Skipped")
    file = student.folder / "my_preferences.jsonl"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 19
    student.restart_kernel()
    student.run_all()
    expect(news).to_contain_text("19 answers are in it")
    expect(button("undo")).to_be_enabled()
    button("prefer left").click()
    expect(news).to_contain_text("20 answers")


def answer_ten_pairs(student, code: str) -> None:
    """All ten pairs; then there is nothing left to ask."""
    cell = student.cell(code)
    news = cell.get_by_role("status").first
    left, right = (
        cell.get_by_role("button", name=f"prefer {side}", exact=True) for side in ("left", "right")
    )
    for n in range(1, 11):
        (left if n % 3 else right).click()
        expect(news).to_contain_text(f"{n} answer")
    expect(left).to_be_disabled()
    expect(cell).to_contain_text("Every pair has been answered")


def predict(student, name: str, asks: str) -> None:
    """Writes a prediction; it is shown beside the result, and survives a new kernel."""
    question, result = f'exercises.predict("{name}"', f'exercises.predicted("{name}")'
    field = student.cell(question).get_by_label("Your prediction:")
    reminder = student.cell(result).get_by_role("status").last
    expect(student.cell(question)).to_contain_text(asks)
    expect(field).to_have_value("")
    expect(reminder).to_have_text("Your prediction: (none)")
    field.fill("about 0.7, I think")
    field.press("Enter")
    expect(reminder).to_have_text("Your prediction: about 0.7, I think")
    assert "0.7, I think" in (student.folder / "my_progress.json").read_text(encoding="utf-8")
    student.restart_kernel()
    student.run_cell(question)
    expect(field).to_have_value("about 0.7, I think")
    student.run_cell(result, result)
    expect(reminder).to_have_text("Your prediction: about 0.7, I think")


def until(page, condition: Callable[[], bool], what: str) -> None:
    """Waits until a condition holds, at most ten seconds."""
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail(f"did not come: {what}")


def move_sliders(student, code: str) -> None:
    """Moves each slider with the keyboard; picture and words follow, and outputs do not pile up."""
    cell = student.cell(code)
    says, handles, image = (
        cell.get_by_role("status"),
        cell.locator(".noUi-handle"),
        cell.locator("img"),
    )
    expect(handles.first).to_be_visible()
    for i in range(handles.count()):
        handle = handles.nth(i)
        said, drawn = says.all_inner_texts(), image.get_attribute("src")
        at, highest = (float(handle.get_attribute(f"aria-value{end}")) for end in ("now", "max"))
        handle.press("ArrowRight" if at < highest else "ArrowLeft")
        until(student.page, lambda: says.all_inner_texts() != said, f"new words, slider {i}")  # noqa: B023
        until(student.page, lambda: image.get_attribute("src") != drawn, f"chart, slider {i}")  # noqa: B023
    assert image.count() == 1
    assert cell.locator(".jp-OutputArea-child").count() == 1


def write_words(student, code: str) -> None:
    """Writes a review by its buttons, takes a word back, ends it, and starts afresh."""
    cell = student.cell(code)
    says = cell.get_by_role("status")

    def button(name: str):
        return cell.get_by_role("button", name=name, exact=True)

    button("reset").click()
    expect(button("reset")).to_be_disabled()
    for word in ("very", "good"):
        button(word).click()
    expect(says.first).to_contain_text("very good")
    cell.get_by_role("button", name="undo").click()
    expect(says.first).not_to_contain_text("good")
    button("great").press("Enter")
    expect(says.first).to_contain_text("very great")
    button("<end>").press("Enter")
    expect(button("great")).to_be_disabled()
    # The button that had the focus is disabled; the keyboard goes on from there.
    student.page.keyboard.press("Tab")
    expect(cell.get_by_role("button", name="undo")).to_be_focused()
    button("reset").click()
    expect(button("great")).to_be_enabled()
    expect(says.first).not_to_contain_text("great")


def type_a_review(student, code: str) -> None:
    """Types words, and one that is none; the map follows, and the mistake is said in words."""
    cell = student.cell(code)
    says, field = cell.get_by_role("status").last, cell.get_by_label("review")
    drawn = cell.locator("img").get_attribute("src")
    field.fill("not bad")
    field.press("Enter")
    expect(cell.locator("img")).not_to_have_attribute("src", drawn)
    expect(says).to_contain_text("Most praise")
    field.fill("good soup")
    field.press("Enter")
    expect(says).to_contain_text("Not possible: unknown word 'soup'")
    field.fill("good")
    field.press("Enter")
    expect(says).to_contain_text("Most praise: good")
    cell.get_by_label("prompt").select_option("nap")
    expect(says).to_contain_text("r − V*(start)")


def move_first_slider(cell) -> None:
    cell.locator(".noUi-handle").first.press("ArrowRight")


def write_a_word(cell) -> None:
    cell.get_by_role("button", name="reset", exact=True).first.click()
    cell.get_by_role("button", name="great", exact=True).first.click()


def type_a_word(cell) -> None:
    field = cell.get_by_label("review").first
    field.fill("great")
    field.press("Enter")


def show_twice(student, code: str, change: Callable) -> None:
    """Runs the cell again, then shows its widget twice: what changes in one view does in both."""
    cell = student.cell(code)
    images, says = cell.locator("img"), cell.get_by_role("status")

    def sources() -> list[str | None]:
        return [image.get_attribute("src") for image in images.all()]

    student.run_cell(code)
    expect(images).to_have_count(1)
    expect(says.first).not_to_be_empty()
    lines = says.count()
    # Not `_`, which a notebook may use for what it throws away.
    student.run_cell(code, f"*_, last = Out.values()\ndisplay(last, last)  # {code}")
    expect(images).to_have_count(2)
    expect(says).to_have_count(2 * lines)
    said, drawn = says.all_inner_texts(), sources()
    change(cell)
    until(
        student.page,
        lambda: not set(drawn) & set(sources()) and said != says.all_inner_texts(),
        "a change in both views",
    )
    until(
        student.page,
        lambda: says.all_inner_texts()[:lines] == says.all_inner_texts()[lines:],
        "the same words in both views",
    )


USES: dict[str, list[Callable]] = {
    "00": [
        partial(answer_ten_pairs, code="HumanAnnotator("),
        partial(predict, name="00 accuracy", asks="Which accuracy"),
    ],
    "01": [
        partial(move_sliders, code="RatersAndScales()"),
        partial(answer_pairs, code="HumanAnnotator("),
        partial(show_twice, code="RatersAndScales()", change=move_first_slider),
    ],
    "03": [
        partial(write_words, code="WordByWord("),
        partial(show_twice, code="WordByWord(", change=write_a_word),
    ],
    "05": [partial(write_words, code="WordByWord(")],
    "06": [
        partial(move_sliders, code="GibbsExplorer()"),
        partial(show_twice, code="GibbsExplorer()", change=move_first_slider),
    ],
    "08": [
        partial(move_sliders, code="ClipExplorer()"),
        partial(show_twice, code="ClipExplorer()", change=move_first_slider),
        partial(train_live, code="LiveTraining.ppo"),
    ],
    "10": [
        partial(move_sliders, code="DPOGradient()"),
        partial(show_twice, code="DPOGradient()", change=move_first_slider),
        partial(train_live, code="LiveTraining.dpo"),
    ],
    "13": [
        partial(type_a_review, code="WhoSaidWhat("),
        partial(show_twice, code="WhoSaidWhat(", change=type_a_word),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_student_works_through_it(student, name):
    for kept in ("my_preferences.jsonl", "my_progress.json"):  # by another notebook's test
        (student.folder / kept).unlink(missing_ok=True)
    student.open(name)
    student.run_all()
    for use in USES.get(name[:2], ()):
        use(student)


def test_nobody_gets_in_without_the_token(lab):
    address, token, _ = lab
    request = f"{address}/api/contents"
    with urllib.request.urlopen(f"{request}?token={token}") as answer:
        assert answer.status == 200
    for wrong in (request, f"{request}?token=", f"{request}?token={token[:-1]}"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(wrong)
        assert refused.value.code == 403
        refused.value.close()
