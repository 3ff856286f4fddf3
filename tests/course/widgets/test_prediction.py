"""A prediction is asked for, kept, and shown beside the result."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from rlhf_toy.course import record
from rlhf_toy.course.commands.course import drop_widgets
from rlhf_toy.course.exercises import predict, predicted
from rlhf_toy.course.widgets import parts, prediction


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FILE", tmp_path / "my_progress.json")
    monkeypatch.setattr(prediction, "_asked", {})
    return record.FILE


def said(cell):
    return cell.box.children[0].value


def test_a_prediction_is_shown_beside_the_result_and_kept():
    asked = predict("kl", "Does the KL keep rising?")
    before = predicted("kl")
    assert "Your prediction: (none)" in said(before)
    asked.field.value = "no, it <turns>"
    for reminder in (before, predicted("kl")):
        assert "Your prediction: no, it &lt;turns&gt;" in said(reminder)
    prediction._asked.clear()  # as after a restart of the kernel
    assert "no, it &lt;turns&gt;" in said(predicted("kl"))  # the question's cell was not run
    assert predict("kl", "Does the KL keep rising?").field.value == "no, it <turns>"
    assert predict("other", "And β?").field.value == ""


def test_without_a_prediction_nothing_is_written(own_record):
    predict("kl", "Does the KL keep rising?")
    predicted("kl")
    assert not own_record.exists()


def test_the_saved_output_is_the_same_whatever_was_predicted(monkeypatch):
    shown = []
    monkeypatch.setattr(parts, "display", lambda data, raw: shown.append(data))
    for text in ("", "a secret"):
        asked = predict("kl", "Is KL < 0 possible?")
        asked.field.value = text
        for cell in (asked, predicted("kl")):
            cell._ipython_display_()
    outputs = [{k: v for k, v in data.items() if k != parts.WIDGET_VIEW} for data in shown]
    assert outputs[:2] == outputs[2:]
    assert outputs[0]["text/html"].startswith("<b>Is KL &lt; 0 possible?</b>")
    assert "secret" not in str(outputs) and "image/png" not in outputs[0]


def test_a_saved_notebook_keeps_the_question_without_the_widget():
    data = {parts.WIDGET_VIEW: {}, "text/html": "<b>Is it?</b>", "text/plain": "<Prediction>"}
    cell = new_code_cell(outputs=[new_output("display_data", data=data)])
    drop_widgets(new_notebook(cells=[cell]))
    del data[parts.WIDGET_VIEW]
    assert [output.data for output in cell.outputs] == [data]


@pytest.mark.parametrize("function", [predict, predicted])
def test_texts_are_expected(function):
    with pytest.raises(TypeError, match="name must be a string, got 1"):
        function(*[1, "q"][: 2 if function is predict else 1])
    with pytest.raises(TypeError, match="question must be a string, got None"):
        predict("a", None)
