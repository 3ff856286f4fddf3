"""A prediction: asked for before a result, kept, and shown beside it."""

from __future__ import annotations

import html

import ipywidgets

from rlhf_toy.checks import check_type
from rlhf_toy.course import record
from rlhf_toy.course.widgets.parts import InteractiveCell, labelled, say, words

_asked: dict[str, Prediction] = {}  # in this session


class Prediction(InteractiveCell):
    """A question, and a line for what the reader predicts.

    The prediction is kept when the line is left, and comes back after a restart of the kernel.

    Args:
        name: under which it is kept; no two predictions of the course have the same.
        question: what to predict.

    Attributes:
        field: the line; it may stay empty.

    Raises:
        TypeError: the name or the question is not a string.
    """

    def __init__(self, name: str, question: str) -> None:
        check_type("name", name, str, "a string")
        check_type("question", question, str, "a string")
        self.field = labelled(
            ipywidgets.Text,
            "Your prediction:",
            "40em",
            value=record.recall(record.PREDICTIONS).get(name, ""),
            continuous_update=False,  # when the line is left, not at every letter
        )
        self.field.observe(
            lambda change: record.keep(record.PREDICTIONS, name, change["new"]), "value"
        )
        asked = f"<b>{html.escape(question)}</b>"
        static = f"{asked} (Here you write down your prediction.)"
        super().__init__(ipywidgets.VBox([ipywidgets.HTML(asked), self.field]), static)
        _asked[name] = self


class Reminder(InteractiveCell):
    """What was predicted under a name; it follows what is written after it was shown."""

    def __init__(self, name: str) -> None:
        check_type("name", name, str, "a string")
        field = (_asked.get(name) or Prediction(name, "")).field
        line = words()

        def follow(_: object = None) -> None:
            say(line, f"Your prediction: {field.value.strip() or '(none)'}")

        field.observe(follow, "value")
        follow()
        super().__init__(ipywidgets.VBox([line]), "(Your prediction is shown here.)")
