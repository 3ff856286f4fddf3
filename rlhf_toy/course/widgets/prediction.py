"""A prediction: asked for before a result, kept, and shown beside it."""

from __future__ import annotations

import html

import ipywidgets

from rlhf_toy.checks import check_type
from rlhf_toy.course import record
from rlhf_toy.course.widgets.parts import InteractiveCell, labelled, say, words


class Prediction(InteractiveCell):
    """A line in which to write a prediction; `reminder` shows it beside the result.

    The prediction is kept when the line is left, and is there again after a restart of the kernel.

    Args:
        name: under which it is kept; no two predictions of the course have the same.
        question: what to predict.

    Attributes:
        field: the line; an empty one is fine.

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
        static = f"<b>{html.escape(question)}</b> (Here you write down your prediction.)"
        box = ipywidgets.VBox([ipywidgets.HTML(f"<b>{html.escape(question)}</b>"), self.field])
        super().__init__(box, static)

    def reminder(self) -> InteractiveCell:
        """Return a cell that says what was predicted, and follows what is still changed."""
        line = words()

        def follow(_: object = None) -> None:
            say(line, f"Your prediction: {self.field.value.strip() or '(none)'}")

        self.field.observe(follow, "value")
        follow()
        return InteractiveCell(ipywidgets.VBox([line]), "(Your prediction is shown here.)")
