"""Which tests meet a mutant, what their end says about it, and tables that no longer fit."""

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutate import find_mutants
from run import order_tests, print_summary, read_equivalent, read_handmade, read_result

FILE = "rlhf_toy/ppo.py"
SOURCES = {FILE: b"a = 1 + b\nc = d(a)\n"}
BASELINE = {
    "seconds": {
        "tests/test_dpo.py::quick": 0.1,
        "tests/test_ppo.py::slow": 3.0,
        "tests/test_ppo.py::elsewhere": 0.1,
        "tests/test_models.py::quickest": 0.01,
        "tests/test_files.py::far": 0.01,
    },
    "lines": {
        FILE: {
            "1": ["", "tests/test_dpo.py::quick", "tests/test_ppo.py::slow"],
            "2": ["tests/test_models.py::quickest"],
        }
    },
}


def test_tests_that_run_the_line_come_first_and_among_them_those_that_mirror_the_file():
    mutant = find_mutants(FILE, SOURCES[FILE])[0]
    assert order_tests(mutant, BASELINE) == [
        "tests/test_ppo.py::slow",
        "tests/test_dpo.py::quick",
        "tests/test_ppo.py::elsewhere",
        "tests/test_models.py::quickest",
    ]


def test_a_line_that_no_test_runs_has_no_tests():
    mutant = find_mutants(FILE, b"\n\n\na = b + c\n")[0]
    assert order_tests(mutant, BASELINE) == []


@pytest.mark.parametrize(
    ("code", "failed", "expected"),
    [(0, "", ("survived", "")), (1, "t", ("killed", "t")), (4, "", ("killed", "the import"))],
)
def test_the_exit_code_of_pytest_says_what_became_of_a_mutant(tmp_path, code, failed, expected):
    (tmp_path / "result.json").write_text(json.dumps({"code": code, "failed": failed}))
    assert tuple(read_result(tmp_path, 0).values()) == expected


@pytest.mark.parametrize(
    ("ended_by", "expected"),
    [
        (signal.SIGPROF, "timeout"),
        (signal.SIGALRM, "timeout"),
        (signal.SIGSEGV, "killed"),
    ],
)
def test_a_signal_that_ended_the_tests_counts(tmp_path, ended_by, expected):
    assert read_result(tmp_path, int(ended_by))["status"] == expected


def test_a_mutant_without_any_test_is_an_error_and_not_a_survivor(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"code": 5, "failed": ""}))
    with pytest.raises(RuntimeError, match="no test was found"):
        read_result(tmp_path, 0)


def handmade(folder: Path, old: str) -> Path:
    path = folder / "handmade.toml"
    path.write_text(f'[[mutant]]\nname = "n"\nfile = "{FILE}"\nold = "{old}"\nnew = "e"\n')
    return path


def test_a_handmade_mutant_replaces_its_text(tmp_path):
    (mutant,) = read_handmade(SOURCES, handmade(tmp_path, "d(a)"))
    assert mutant.apply(SOURCES[FILE]) == b"a = 1 + b\nc = e\n"
    assert (mutant.kind, mutant.lines) == ("n", (2, 2))


@pytest.mark.parametrize(("old", "times"), [("gone", 0), ("a", 2)])
def test_a_handmade_mutant_whose_text_is_not_there_once_stops_everything(tmp_path, old, times):
    with pytest.raises(SystemExit, match=f"is there {times} times. Adapt the entry"):
        read_handmade(SOURCES, handmade(tmp_path, old))


def equivalent(folder: Path, before: str) -> Path:
    path = folder / "equivalent.toml"
    entry = {"file": FILE, "before": before, "after": "a = 2 + b", "reason": "why"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    path.write_text("\n".join(["[[equivalent]]", *lines]))
    return path


def test_a_mutant_is_called_equivalent_by_its_text(tmp_path):
    reasons = read_equivalent(SOURCES, equivalent(tmp_path, "a = 1 + b"))
    assert reasons == {(FILE, "a = 1 + b", "a = 2 + b"): "why"}


def test_an_equivalent_mutant_whose_text_is_gone_stops_everything(tmp_path):
    with pytest.raises(SystemExit, match="is no longer in rlhf_toy"):
        read_equivalent(SOURCES, equivalent(tmp_path, "a = 3"))


def test_the_score_leaves_equivalent_mutants_out(capsys):
    def row(status: str, reason: str = "") -> dict:
        place = {"file": FILE, "line": 1, "kind": "k", "before": "b", "after": "a"}
        return place | {"status": status, "reached": True, "equivalent": reason}

    rows = [row("killed"), row("timeout"), row("survived"), row("survived", "the same")]
    assert print_summary(rows, []) == pytest.approx(2 / 3)
    printed = capsys.readouterr().out
    assert "50.0% of 4 killed" in printed and "66.7% of 3 without" in printed
    assert "equivalent: the same" in printed
