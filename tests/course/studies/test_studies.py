"""Studies: their saved results belong to the code that loads them."""

import json
from dataclasses import dataclass, make_dataclass
from importlib.util import module_from_spec, spec_from_file_location

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from rlhf_toy.course import studies
from rlhf_toy.course.studies import parts


@dataclass(frozen=True)
class Settings:
    """Stands for a trainer's settings."""

    steps: int = 10
    rate: float = 0.5


SOURCE = '''\
"""A study."""
from test_settings import Settings
SEEDS = 2
OFFSET = 0.1
NOTE = "not used"
SETTINGS = Settings(steps=3)

def tasks():
    """Return the tasks."""
    return [{"seed": seed} for seed in range(SEEDS)]

def run(task):
    """Return the result."""
    value = shifted(task["seed"])  # a comment
    return {"value": value}

def shifted(x):
    return x * SETTINGS.rate + OFFSET

def figure(results):
    return NOTE
'''
RESULTS = [{"seed": 0, "value": 0.1}, {"seed": 1, "value": 0.6}]


def make_study(folder, source=SOURCE, settings=Settings):
    """Imports a study from a file of the test's own."""
    path = folder / "small_study.py"
    path.write_text(source.replace("from test_settings import Settings\n", ""))
    module = module_from_spec(spec_from_file_location("small_study", path))
    module.Settings = settings
    module.__loader__.exec_module(module)
    return module


@pytest.fixture
def _same_world(monkeypatch):
    monkeypatch.setattr(parts, "fingerprint", lambda: "the world")


@pytest.mark.usefixtures("_same_world")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SEEDS = 2", "SEEDS = 3"),
        ("OFFSET = 0.1", "OFFSET = 0.2"),
        ("steps=3", "steps=4"),
        ("Settings(steps=3)", "Settings(steps=3, rate=0.25)"),
        ('{"value": value}', '{"value": value, "more": 1}'),
        ("x * SETTINGS.rate", "x / SETTINGS.rate"),
        ('{"seed": seed}', '{"seed": seed + 1}'),
    ],
)
def test_the_fingerprint_changes_with_what_decides_the_results(tmp_path, old, new):
    assert old in SOURCE
    before = studies.fingerprint(make_study(tmp_path))
    assert studies.fingerprint(make_study(tmp_path, SOURCE.replace(old, new))) != before


def other_settings(**defaults):
    """Returns a class that differs from `Settings` in its fields and defaults only."""
    fields = [(name, type(value), value) for name, value in defaults.items()]
    return make_dataclass("Settings", fields, frozen=True)


@pytest.mark.usefixtures("_same_world")
def test_the_fingerprint_changes_with_the_default_of_a_setting_that_is_not_stated(tmp_path):
    before = studies.fingerprint(make_study(tmp_path))
    same, other = other_settings(steps=10, rate=0.5), other_settings(steps=10, rate=0.6)
    assert studies.fingerprint(make_study(tmp_path, settings=same)) == before
    assert studies.fingerprint(make_study(tmp_path, settings=other)) != before


@pytest.mark.usefixtures("_same_world")
def test_the_fingerprint_stays_only_with_a_new_field_that_does_what_was_done_before(
    tmp_path, monkeypatch
):
    before = studies.fingerprint(make_study(tmp_path))

    def with_field(source=SOURCE, **default):
        settings = other_settings(**default, steps=10, rate=0.5)
        return studies.fingerprint(make_study(tmp_path, source, settings))

    assert with_field(bonus=0.0) != before, "nobody said that 0 does what was done before"
    monkeypatch.setattr(parts, "NEW_FIELDS", {"Settings.bonus": 0.0, "OtherSettings.rate": 0.5})
    assert with_field(bonus=0.0) == before
    assert with_field(SOURCE.replace("steps=3", "steps=3, bonus=0.0"), bonus=0.1) == before
    assert with_field(bonus=0.1) != before, "the default is another one"
    assert with_field(SOURCE.replace("steps=3", "steps=3, bonus=0.1"), bonus=0.0) != before
    assert with_field(penalty=0.0) != before


@pytest.mark.usefixtures("_same_world")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another"),
        ('"""Return the result."""', '"""Return something else."""'),
        ('    """Return the result."""\n', ""),
        ('NOTE = "not used"', 'NOTE = "other"'),
        ("return NOTE", "return None"),
        ("x * SETTINGS.rate + OFFSET", "(x * SETTINGS.rate) + OFFSET"),
    ],
)
def test_the_fingerprint_stays_with_comments_docstrings_layout_and_the_figure(tmp_path, old, new):
    assert old in SOURCE
    before = studies.fingerprint(make_study(tmp_path))
    assert studies.fingerprint(make_study(tmp_path, SOURCE.replace(old, new))) == before


@pytest.mark.usefixtures("_same_world")
def test_the_fingerprint_is_the_same_on_every_machine_and_python(tmp_path):
    assert studies.fingerprint(make_study(tmp_path)) == "456f55aec5b1fd2e"


def test_the_fingerprint_covers_the_world(tmp_path, monkeypatch):
    module = make_study(tmp_path)
    monkeypatch.setattr(parts, "fingerprint", lambda: "one world")
    before = studies.fingerprint(module)
    monkeypatch.setattr(parts, "fingerprint", lambda: "another world")
    assert studies.fingerprint(module) != before


def save(path, **content):
    path.write_text(json.dumps({"study": "small", **content}))
    return path


@pytest.mark.usefixtures("_same_world")
def test_a_file_of_this_version_is_read(tmp_path):
    module = make_study(tmp_path)
    path = save(tmp_path / "a.json", fingerprint=studies.fingerprint(module), results=RESULTS)
    assert studies.read(path, module) == RESULTS


@pytest.mark.usefixtures("_same_world")
def test_a_row_without_a_result_is_left_out(tmp_path):
    module = make_study(tmp_path)
    rows = [RESULTS[0], {"seed": 1}, {"value": 0.3}]
    path = save(tmp_path / "a.json", fingerprint=studies.fingerprint(module), results=rows)
    assert studies.read(path, module) == RESULTS[:1]


@pytest.mark.usefixtures("_same_world")
@pytest.mark.parametrize("stamp", [{}, {"fingerprint": "0" * 16}, {"fingerprint": 3}])
def test_a_file_of_another_version_is_refused(tmp_path, stamp):
    module = make_study(tmp_path)
    path = save(tmp_path / "a.json", **stamp, results=RESULTS)
    words = "a.json comes from another version of the study.*Delete the file and run the study"
    with pytest.raises(ValueError, match=words):
        studies.read(path, module)
    assert studies.read(path, module, any_version=True) == RESULTS


@pytest.mark.usefixtures("_same_world")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b'{"study": "small"}',
        b'{"results": 3}',
        b'{"results": [3]}',
        b"[" * 100_000,
    ],
    ids=lambda content: str(content[:20]),
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged .*Delete the file and run") as caught:
        studies.read(path, make_study(tmp_path))
    assert len(str(caught.value)) < 600


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """Lets `load` look for its files in a repository of the test's own; returns their folder."""
    monkeypatch.setattr(studies, "__file__", str(tmp_path / "a" / "b" / "c" / "__init__.py"))
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    monkeypatch.setattr(parts, "fingerprint", lambda: "the world")
    folder = tmp_path / studies.DATA
    folder.mkdir(parents=True)
    module = make_study(tmp_path)
    monkeypatch.setattr(studies, "study", lambda name: module)
    return folder


def test_load_returns_the_results_and_refuses_incomplete_missing_or_other_ones(saved):
    path = saved / "small.json"
    with pytest.raises(FileNotFoundError, match="run `python -m rlhf_toy study small` first"):
        studies.load("small")
    version = studies.fingerprint(studies.study("small"))
    save(path, fingerprint=version, results=RESULTS)
    assert studies.load("small") == RESULTS
    save(path, fingerprint=version, results=[RESULTS[0], {"seed": 1}])
    with pytest.raises(ValueError, match="results of 1 of 2 runs"):
        studies.load("small")
    save(path, fingerprint="another", results=RESULTS)
    with pytest.raises(ValueError, match="another version"):
        studies.load("small")


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="no study is called 'nothing'; there are ppo_parts"):
        studies.load("nothing")


@pytest.mark.parametrize("name", studies.NAMES)
def test_every_study_was_run_as_it_stands_and_can_be_drawn(name):
    module = studies.study(name)
    tasks, found = module.tasks(), studies.load(name)
    assert [{key: row[key] for key in tasks[0]} for row in found] == tasks
    figure = module.figure(found)
    assert isinstance(figure, Figure)
    drawn = [line for axes in figure.axes for line in axes.lines]
    conditions = {json.dumps({**task, "seed": 0}) for task in tasks}
    assert len(drawn) >= len(conditions), "a condition is not in the figure"
    plt.close(figure)
