"""A prediction is asked for, kept, and shown beside the result."""

import pytest

from rlhf_toy.course import record
from rlhf_toy.course.widgets import parts
from rlhf_toy.course.widgets.prediction import Prediction


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FILE", tmp_path / "my_progress.json")
    return record.FILE


def said(cell):
    return cell.box.children[0].value


def test_a_prediction_is_shown_beside_the_result_and_kept():
    asked = Prediction("kl", "Does the KL keep rising?")
    before = asked.reminder()
    assert "Your prediction: (none)" in said(before)
    asked.field.value = "no, it <turns>"
    for reminder in (before, asked.reminder()):
        assert "Your prediction: no, it &lt;turns&gt;" in said(reminder)
    again = Prediction("kl", "Does the KL keep rising?")
    assert again.field.value == "no, it <turns>"
    assert Prediction("other", "And β?").field.value == ""


def test_without_a_prediction_nothing_is_written(own_record):
    Prediction("kl", "Does the KL keep rising?").reminder()
    assert not own_record.exists()


def test_the_saved_output_is_the_same_whatever_was_predicted(monkeypatch):
    shown = []
    monkeypatch.setattr(parts, "display", lambda data, raw: shown.append(data))
    for text in ("", "a secret"):
        asked = Prediction("kl", "Is KL < 0 possible?")
        asked.field.value = text
        for cell in (asked, asked.reminder()):
            cell._ipython_display_()
    outputs = [{k: v for k, v in data.items() if k != parts.WIDGET_VIEW} for data in shown]
    assert outputs[:2] == outputs[2:]
    assert outputs[0]["text/html"].startswith("<b>Is KL &lt; 0 possible?</b>")
    assert "secret" not in str(outputs) and "image/png" not in outputs[0]


@pytest.mark.parametrize("arguments", [(1, "q"), ("a", None)])
def test_texts_are_expected(arguments):
    with pytest.raises(TypeError, match="must be a string"):
        Prediction(*arguments)
