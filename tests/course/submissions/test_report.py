"""The report: what students wrote is escaped everywhere, and the table can be read by programs."""

import csv
import re
from html.parser import HTMLParser

from rlhf_toy.course.exercises import all_exercises
from rlhf_toy.course.exercises.grading import Counterexample, Verdict
from rlhf_toy.course.submissions.grader import Graded
from rlhf_toy.course.submissions.report import shown_exercises, write_report

EVIL = "<script>alert(1)</script> \"&' $x^ \u202e"


def graded(**verdicts):
    return Graded({name: verdicts.get(name, Verdict("missing")) for name in all_exercises()})


CLASS = {
    EVIL: graded(gae=Verdict("wrong", EVIL, Counterexample({"x": EVIL}, EVIL, EVIL), EVIL)),
    "=cmd|' /C calc'!A0": graded(gae=Verdict("right"), token_rewards=Verdict("not attempted")),
    "Jörg Müller": graded(gae=Verdict("wrong", "hint", mistake="forwards")),
    "\u597d" * 200: graded(token_rewards=Verdict("right")),
    "../../x": graded(gae=Verdict("the package's own", "hint")),
    "jörg müller": graded(gae=Verdict("wrong", "hint", mistake="forwards")),
}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.alts, self.links = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        self.alts += [value for name, value in attributes if name == "alt"]
        self.links += [value for name, value in attributes if name == "href"]


def test_everything_is_escaped(tmp_path):
    write_report(CLASS, tmp_path)
    pages = [tmp_path / "index.html", *sorted((tmp_path / "feedback").iterdir())]
    assert len(pages) == 1 + len(CLASS)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "script" not in Tags(text).found
        assert "<script" not in text.replace("&lt;script", "")
    assert all(path.parent == tmp_path / "feedback" for path in pages[1:])


def test_links_lead_to_the_pages(tmp_path):
    from urllib.parse import unquote

    index = write_report(CLASS, tmp_path)
    links = Tags(index.read_text(encoding="utf-8")).links
    files = [tmp_path / unquote(link) for link in links]
    assert len(set(files)) == len({path.name.casefold() for path in files}) == len(CLASS)
    for path, student in zip(files, CLASS, strict=True):
        from html import escape

        assert f"<h1>{escape(student)}</h1>" in path.read_text(encoding="utf-8")


def test_the_table_is_one_row_a_student_and_no_formula(tmp_path):
    write_report(CLASS, tmp_path)
    with open(tmp_path / "table.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["student", "right", "problems", *shown_exercises(CLASS)]
    assert len(rows) == 1 + len(CLASS)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    gae = rows[0].index("gae")
    assert [row[gae] for row in rows[2:]] == ["right", "wrong: forwards", "missing",
                                             "the package's own", "wrong: forwards"]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["0", "1", "0", "1", "0", "0"]


def test_only_notebooks_that_were_handed_in_are_shown():
    assert shown_exercises(CLASS) == ["token_rewards", "gae", "ppo_clip_loss", "repair_ppo"]
    assert shown_exercises({"a": graded()}) == []


def test_a_histogram_counts_each_mistake(tmp_path):
    index = write_report(CLASS, tmp_path)
    text = index.read_text(encoding="utf-8")
    (alt,) = Tags(text).alts
    assert alt.startswith("forwards: 2, <script>") and alt.endswith(": 1")
    assert "1 right, 3 wrong" in text
    assert len(re.findall("data:image/png;base64", text)) == 1


def test_feedback_has_verdict_hint_and_example_but_not_the_mistake_s_name(tmp_path):
    result = graded(
        gae=Verdict("wrong", "A hint.", Counterexample({"x": "[1]"}, "2", "3"), "forwards")
    )
    result.problems.append("b.ipynb: it is not a notebook")
    write_report({"Anna": result}, tmp_path)
    text = (tmp_path / "feedback" / "Anna.html").read_text(encoding="utf-8")
    for said in (
        "gae: wrong",
        "A hint.",
        "x = [1]\nyours: 2\nright: 3",
        "b.ipynb",
        "Right: 0 of 4.",
    ):
        assert said in text
    assert "forwards" not in text


def test_the_footer_says_what_was_not_protected(tmp_path):
    free = graded(gae=Verdict("right"))
    free.unprotected.append("the network is not cut off")
    for results, said in (
        ({"a": graded()}, "without network"),
        ({"a": graded(), "b": free}, "does not allow full protection: the network is not cut off."),
    ):
        assert said in write_report(results, tmp_path).read_text(encoding="utf-8")
