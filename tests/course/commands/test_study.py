"""`python -m rlhf_toy study`: all runs of a study, in parallel, resumable, in one small file."""

import json
import os
import signal
import sys
import threading
from importlib.util import find_spec

import pytest

from rlhf_toy.__main__ import main
from rlhf_toy.course import studies
from rlhf_toy.course.commands import study


class Sums:
    """A study that only adds, and remembers what it was asked."""

    __name__ = "sums"

    def __init__(self, fails_at=None, version="this version", offset=0.0):
        self.asked, self.fails_at, self.version, self.offset = [], fails_at, version, offset

    def tasks(self):
        return [{"a": a, "seed": seed} for a in (1, 2) for seed in (0, 1)]

    def run(self, task):
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(task)
        return {"sum": task["a"] + task["seed"] + self.offset, "seconds": len(self.asked)}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on a study of the test's own, in one process."""

    monkeypatch.setattr(studies, "fingerprint", lambda module: module.version)

    def command(module, *options):
        monkeypatch.setattr(studies, "study", lambda name: module)
        monkeypatch.setattr(study, "_run_one", lambda name, task: (task, module.run(task)))
        options = ["--jobs", "1", "--output", str(tmp_path / "data"), *options]
        return main(["study", NAME, *options])

    return command


NAME = studies.NAMES[0]


def results(tmp_path, name):
    saved = json.loads((tmp_path / "data" / f"{name}.json").read_text())
    assert (saved["study"], saved["fingerprint"]) == (NAME, "this version")
    return saved["results"]


EXPECTED = [
    {"a": 1, "seed": 0, "sum": 1.0, "seconds": 1},
    {"a": 1, "seed": 1, "sum": 2.0, "seconds": 2},
    {"a": 2, "seed": 0, "sum": 2.0, "seconds": 3},
    {"a": 2, "seed": 1, "sum": 3.0, "seconds": 4},
]


def test_all_runs_come_into_one_file_in_their_order(run, tmp_path, capsys):
    assert run(Sums()) == 0
    assert results(tmp_path, NAME) == EXPECTED
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f"{NAME}.json"]
    assert capsys.readouterr().out.startswith("4 runs are in ")


def test_a_killed_study_goes_on_with_what_is_still_to_do(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Sums(fails_at=2))
    assert len(results(tmp_path, f"{NAME}.unfinished")) == 2
    again = Sums()
    assert run(again) == 0
    assert again.asked == Sums().tasks()[2:]
    found = results(tmp_path, NAME)
    assert [row["sum"] for row in found] == [row["sum"] for row in EXPECTED]
    assert not (tmp_path / "data" / f"{NAME}.unfinished.json").exists()


def test_a_row_without_a_result_is_run_again(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Sums(fails_at=2))
    path = tmp_path / "data" / f"{NAME}.unfinished.json"
    saved = json.loads(path.read_text())
    del saved["results"][0]["sum"], saved["results"][0]["seconds"]
    path.write_text(json.dumps(saved))
    again = Sums()
    assert run(again) == 0
    tasks = Sums().tasks()
    assert again.asked == [tasks[0], *tasks[2:]]


def stop_after_two(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Sums(fails_at=2))
    return tmp_path / "data" / f"{NAME}.unfinished.json"


def test_results_of_two_versions_are_never_mixed(run, tmp_path, capsys):
    path = stop_after_two(run, tmp_path)
    before = path.read_bytes()
    changed = Sums(version="another version")
    assert run(changed) == 2
    message = capsys.readouterr().err
    assert f"{path} comes from another version of the study" in message
    assert "Delete the file and run the study again" in message
    assert changed.asked == [] and path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"results": 3}'])
def test_a_damaged_unfinished_file_is_a_usage_error(run, tmp_path, capsys, content):
    path = stop_after_two(run, tmp_path)
    path.write_text(content)
    module = Sums()
    assert run(module) == 2
    assert f"rlhf_toy: error: {path} is damaged" in capsys.readouterr().err
    assert module.asked == [] and path.read_text() == content


def test_a_recheck_runs_one_seed_of_each_condition_and_stamps_what_agrees(run, tmp_path, capsys):
    assert run(Sums(version="an older version")) == 0
    now = Sums(offset=0.5)  # a standard deviation: the two seeds of a condition differ by 1
    assert run(now, "--recheck") == 0
    assert now.asked == [{"a": 1, "seed": 0}, {"a": 2, "seed": 0}]
    out = capsys.readouterr().out
    assert "[1, 0]: 1 standard deviations from the file\n" in out
    assert "2 of 2 runs agree with" in out
    assert results(tmp_path, NAME) == EXPECTED


@pytest.mark.parametrize("tasks", [None, [{"a": 1, "seed": 0}]])
def test_a_recheck_that_finds_something_else_changes_nothing(run, tmp_path, capsys, tasks):
    run(Sums(version="an older version"))
    path = tmp_path / "data" / f"{NAME}.json"
    before = path.read_bytes()
    now = Sums(offset=1.1)
    if tasks:
        now.offset, now.tasks = 0.0, lambda: tasks
    assert run(now, "--recheck") == 1
    out = capsys.readouterr().out
    assert ("0 of 2 runs agree" in out) if tasks is None else ("has other runs" in out)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "distance"),
    [
        ({}, 0.0),
        ({"gap": 1.0}, 1.0),
        ({"gap": -1.0}, 3.0),
        ({"rl": {"kl": [0.0, 4.0]}}, 1.5),
        ({"seconds": 99.0}, 0.0),
        ({"constant": 5 + 1e-12}, 0.0),
        ({"constant": 6}, float("inf")),
        ({"rl": {"kl": [0.0]}}, float("inf")),
        ({"gap": float("nan")}, float("nan")),
    ],
)
def test_a_rerun_s_distance_is_measured_in_standard_deviations(changed, distance):
    rows = [
        {"gap": 0.5, "rl": {"kl": [0.0, 1.0]}, "constant": 5, "seconds": 3.0},
        {"gap": 1.5, "rl": {"kl": [0.0, 5.0]}, "constant": 5, "seconds": 9.0},
    ]
    found = study._distance(rows[0], {**rows[0], **changed}, rows)
    assert found == pytest.approx(distance, nan_ok=True)


def test_without_a_file_there_is_nothing_to_recheck(run, tmp_path, capsys):
    module = Sums()
    assert run(module, "--recheck") == 2
    assert "--recheck: there is no file" in capsys.readouterr().err
    assert module.asked == [] and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["no_such_study"],
        ["{name}", "--jobs", "0"],
        ["{name}", "--jobs", "-2"],
        ["{name}", "--jobs", "9" * 30],
        ["{name}", "--cluster", ""],
    ],
)
def test_what_cannot_be_used_is_refused(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [option.format(name=NAME) for option in options]
    try:
        code = main(["study", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["afile", "afile/sub", "/proc/data", "n" * 300])
def test_an_output_that_cannot_work_is_refused(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("mine")
    assert main(["study", NAME, "--output", output]) == 2
    assert capsys.readouterr().err.startswith("rlhf_toy: error: --output: ")
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]
    assert (tmp_path / "afile").read_text() == "mine"


def test_a_data_file_that_is_a_folder_is_refused(run, tmp_path, capsys):
    (tmp_path / "data" / f"{NAME}.json").mkdir(parents=True)
    module = Sums()
    assert run(module) == 2
    assert "it is a directory" in capsys.readouterr().err
    assert module.asked == []


@pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra cluster")
class TestCluster:
    """On a Dask cluster of two worker processes."""

    def test_the_results_are_those_of_local_processes_bit_for_bit(self, tmp_path):
        options = ["--jobs", "2", "--output"]
        assert main(["study", "estimators", *options, str(tmp_path / "local")]) == 0
        cluster = [str(tmp_path / "cluster"), "--cluster", "local"]
        assert main(["study", "estimators", *options, *cluster]) == 0
        local, there = (tmp_path / name / "estimators.json" for name in ("local", "cluster"))
        assert local.read_bytes() == there.read_bytes()

    def test_a_worker_that_is_killed_costs_only_time(self, tmp_path):
        from distributed import Client, LocalCluster

        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            with Client(cluster) as client:
                victim = min(client.run(os.getpid).values())
            killer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
            killer.start()
            options = ["--output", str(tmp_path), "--cluster", cluster.scheduler_address]
            assert main(["study", "estimators", *options]) == 0
            assert not killer.is_alive(), "the study was over before the worker was killed"
        assert len(studies.read(tmp_path / "estimators.json", studies.study("estimators"))) > 5

    def test_what_cannot_work_is_said_in_one_sentence(self, tmp_path, capsys, monkeypatch):
        from distributed import LocalCluster

        monkeypatch.setattr(study, "SECONDS_TO_ANSWER", 1)
        output = ["--output", str(tmp_path), "--cluster"]
        assert main(["study", "estimators", *output, "tcp://127.0.0.1:1"]) == 2
        assert "no scheduler answers at tcp://127.0.0.1:1" in capsys.readouterr().err
        assert main(["study", "estimators", *output, "nonsense://x"]) == 2
        assert "no scheduler answers" in capsys.readouterr().err
        with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
            assert main(["study", "estimators", *output, cluster.scheduler_address]) == 2
            assert "has no workers" in capsys.readouterr().err
        with LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False
        ) as cluster:
            monkeypatch.setattr(study, "version", lambda name: "9.9")
            assert main(["study", "estimators", *output, cluster.scheduler_address]) == 2
            error = capsys.readouterr().err
            assert "this is version 9.9" in error and len(error.splitlines()) == 1
        assert not list(tmp_path.glob("*.json"))


def test_a_missing_dask_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["study", NAME, "--output", str(tmp_path), "--cluster", "local"]) == 2
    assert "rlhf_toy[cluster]" in capsys.readouterr().err
