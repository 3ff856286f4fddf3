"""What is run of a notebook: an exercise's function and what it needs, and nothing else."""

import pytest
from made_up_class import notebook

from rlhf_toy.course.submissions.cells import read_notebook

CHECK = 'f = exercises.check("f", f)'


def run(*cells, name="f"):
    """What the needed statements define."""
    namespace = {}
    for statement in read_notebook(notebook(cells)).needed(name):
        exec(statement.code, namespace)
    namespace.pop("__builtins__", None)
    return namespace


def test_the_last_definition_wins_and_later_imports_do_not():
    found = run(
        "def f(): return 1\n" + CHECK, "def f(): return 2", CHECK, "from math import pi as f"
    )
    assert found["f"]() == 2


def test_an_import_counts_if_it_is_what_is_checked():
    assert run("from math import sqrt as f", CHECK)["f"](4) == 2
    assert run("from math import sqrt as f") == {}


def test_helpers_constants_and_imports_are_found_and_others_are_not_run():
    found = run(
        "import math\nfrom math import *\nSCALE, OTHER = 2, 3\nLATER = 5",
        "raise SystemExit\nworld = 1 / 0\nprint('never')",
        "def helper(x):\n    def inner():\n        return SCALE * x\n    return inner()",
        "x = 1 / 0  # a global of the same name as a local variable",
        "def f(x=LATER):\n    world = 1\n    return [helper(y) + sqrt(world) for y in (x,)]",
        CHECK,
        "LATER = 7",
    )
    assert found["f"]() == [11]
    assert {"math", "x", "world"}.isdisjoint(found)


def test_a_statement_sees_what_was_defined_before_it_and_a_function_what_is_last():
    found = run("a = 1", "b = a + 1", "a = 10", "def f(): return a, b")
    assert found["f"]() == (10, 2)
    assert run("n = 1", "n = n + 1", "n += 1", "def f(): return n")["f"]() == 3


def test_names_mean_what_they_meant_at_the_check():
    """The notebook's own cells may use a helper's name again, for something else."""
    cells = ["def solve(): return 1\ntable = [1]", "def f(): return solve(), table", CHECK]
    assert run(*cells, "solve = 1 / 0", "table.append(2)")["f"]() == (1, [1])
    assert run("def f(): return late()", CHECK, "def late(): return 5")["f"]() == 5


def test_changes_of_a_needed_object_are_run():
    found = run(
        "import torch",
        "table = {}\nwords = []\nother = []",
        "table['a'] = 1\nwords.append('b')\nother.append('c')\ntorch.set_default_dtype(None)",
        "for i in range(3):\n    table[i] = i",
        "def f(): return table, words",
    )
    assert found["f"]() == ({"a": 1, 0: 0, 1: 1, 2: 2}, ["b"])
    assert "other" not in found and "torch" not in found


@pytest.mark.parametrize(
    "cells",
    [
        ["def g(): return 4", 'f = exercises.check("f", g)'],
        ["def g(): return 4", 'exercises.check("f", g)'],
        ["def g(): return 4", 'from x import check\nf = check("f", g)'],
        ["f = lambda: 4"],
        ["if True:\n    def f(): return 4", CHECK],
        ["try:\n    def f(): return 4\nfinally:\n    pass", CHECK],
        ["class F:\n    def __call__(self): return 4", "f = F()", CHECK],
        ["def f(): return 1", "def g(): return 4", "f = g", CHECK],
        ["%%time\ndef f(): return 4\n" + CHECK],
        ['X = """\n%%time is a magic\n"""\ndef f(): return 4 if "magic" in X else 0\n' + CHECK],
        ["!ls\n" * 600, "def f(): return 4\n" + CHECK],
        ["%matplotlib inline\n!ls\ndef f(): return 4\n" + CHECK + "\nf?"],
        ["def f():\n    return 4 \\\n        % 5"],
    ],
)
def test_other_ways_to_write_it(cells):
    assert run(*cells)["f"]() == 4


def test_a_call_of_check_for_another_exercise_is_a_definition():
    cells = ["def g(): return 1", 'g = exercises.check("g", g)', "def f(): return g()", CHECK]
    statements = read_notebook(notebook(cells)).needed("f")
    assert [s.checks for s in statements] == ["", "g", ""]
    assert run(*cells)["f"]() == 1  # its code leaves the student's own function


def test_a_syntax_error_costs_only_its_cell():
    found = read_notebook(notebook(["def g(:\n  pass", "def f(): return 1", "def f(:", "1 +"]))
    assert [s.file for s in found.needed("f")] == ["cell 2"]
    assert "Cell 1 is not Python: " in found.error_of("g")
    assert found.error_of("h") == "" and found.needed("g") == []


def test_a_name_that_only_appears_is_no_answer():
    assert run("f = 3") == {}
    assert run(CHECK) == {}
    assert run("x = f()") == {}
    assert run() == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"[]", b"{}", b'{"cells": 3}', b"\xff\xfe", b"[" * 10**5, b'{"nbformat": "x"}'],
)
def test_what_is_no_notebook_is_refused(content):
    with pytest.raises(ValueError, match="it is not a notebook: "):
        read_notebook(content)


def test_old_and_sloppy_notebooks_are_read():
    old = b'{"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [{"cell_type": "code", "input": "def f(): pass", "outputs": [], "language": "python"}]}]}'  # noqa: E501
    lines = b'\xef\xbb\xbf{"cells": [{"cell_type": "code", "source": ["def f():\\n", "  pass"], "metadata": {}}, {"cell_type": "markdown", "source": "def f(:", "metadata": {}}], "metadata": {}, "nbformat": 4, "nbformat_minor": 2}'  # noqa: E501
    for content in (old, lines):
        assert len(read_notebook(content).needed("f")) == 1
