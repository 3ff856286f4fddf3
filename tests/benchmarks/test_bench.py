"""The benchmark's arithmetic: what is counted, medians and ratios, and the rows of its file."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import bench
import contests


def contest(operations=None):
    return contests.Contest("DPO", "a step", lambda: 1.0, {"TRL": lambda: 2.0}, operations)


def test_operations_are_two_for_each_multiply_add_of_the_matrix_products():
    layer = torch.nn.Linear(3, 5)
    x = torch.randn(7, 3, requires_grad=True)
    forward = 2 * 7 * 3 * 5
    assert contests.operations(lambda: layer(x)) == forward
    # The backward pass has one product for the weights and one for the input.
    assert contests.operations(lambda: layer(x).sum().backward()) == 3 * forward
    assert contests.operations(lambda: x + x) == 0


def test_only_the_steps_after_the_warm_up_count():
    stamps = [0.0, 50.0, 51.0, 53.0, 56.0, 60.0]  # a slow first step
    assert contests.between(stamps, warm=1) == pytest.approx(2_500)  # of 1, 2, 3, 4 s
    assert contests.between(stamps, warm=1, each=2) == pytest.approx(5_000)  # of 3, 7 s


def test_each_contender_has_a_row_with_ratios_within_rounds():
    ours, theirs = [1.0, 2.0, 4.0], {"a": [10.0, 10.0, 10.0], "b": [1.0, 2.0, 4.0]}
    a, b = bench.to_rows(contest(4e6), ours, theirs, rate=1e10)
    assert (a["ours_ms"], a["ours_range_ms"]) == (2.0, [1.0, 4.0])
    assert (a["contender"], a["theirs_ms"], a["ratio"], a["ratio_range"]) == ("a", 10, 5, [2.5, 10])
    assert (b["contender"], b["ratio"], b["ratio_range"]) == ("b", 1.0, [1.0, 1.0])
    assert a["share_of_sgemm"] == pytest.approx(0.2)  # 4e6 operations in 2 ms, of 1e10 a second
    (row,) = bench.to_rows(contest(), ours, {"a": ours}, rate=1e10)
    assert row["share_of_sgemm"] is None


def test_the_table_and_the_file_have_every_row():
    rows = bench.to_rows(contest(1e7), [1.0, 2.0, 4.0], {"a": [10.0] * 3, "b": [1.0] * 3}, 1e10)
    lines = bench.to_text(rows).splitlines()
    one_blank = [" ".join(line.split()) for line in lines]
    assert one_blank[0] == "ours, ms theirs, ms ratio of sgemm contender"
    assert one_blank[1] == "DPO 2 (1 – 4) 10 (10 – 10) 5.0 (2.5 – 10.0) 50% a"
    assert lines[2].endswith("b")
    written = json.loads(json.dumps({"machine": {}, "rows": rows}))
    assert written["rows"] == rows


def test_a_missing_library_is_named_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr(bench, "NEEDED", ("torch", "a_library_that_is_not_there"))
    monkeypatch.setattr(bench, "Contests", None)  # cannot be called
    assert bench.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("make bench also needs a_library_that_is_not_there: install the extras")
    assert error.count("\n") == 1
