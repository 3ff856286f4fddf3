"""The repository's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from rlhf_toy.course.commands.publish import (
    BADGE_TAG,
    SETUP_TAG,
    badge_cell,
    setup_cell,
    tagged_cell,
)

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PINS = ("constraints.txt", "constraints-colab.txt")
ONLY_FOR_NOTEBOOKS = {"jupyter", "nbval"}


def _requirements(name: str) -> dict[str, Requirement]:
    """The requirements of a file, by their names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({requirement.name.lower() for requirement in found}) == len(found)
    return {requirement.name.lower(): requirement for requirement in found}


def test_requirements_are_the_package_s_dependencies_and_what_runs_notebooks():
    declared = {str(Requirement(line)) for line in PROJECT["dependencies"]}
    listed = _requirements("requirements.txt")
    assert declared == {str(r) for name, r in listed.items() if name not in ONLY_FOR_NOTEBOOKS}
    assert ONLY_FOR_NOTEBOOKS.issubset(listed)


@pytest.mark.parametrize("file", PINS)
def test_every_pin_is_one_exact_public_version(file):
    for requirement in _requirements(file).values():
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "*" not in pin.version and "+" not in pin.version


@pytest.mark.parametrize("file", PINS)
def test_every_range_admits_the_pinned_version(file):
    extras = PROJECT["optional-dependencies"]
    ranges = [*_requirements("requirements.txt").values()]
    beside = extras["bridge"] + extras["cluster"] if file == "constraints.txt" else []
    ranges += map(Requirement, extras["dev"] + extras["pool"] + beside)
    pins = _requirements(file)
    for wanted in ranges:
        (pin,) = pins[wanted.name.lower()].specifier
        assert wanted.specifier.contains(pin.version), f"{wanted} against {pin}"


def test_colab_s_lane_has_an_ipywidgets_that_works_there():
    (pin,) = _requirements("constraints-colab.txt")["ipywidgets"].specifier
    assert pin.version.startswith("7.")


def test_the_lowest_tested_python_is_the_lowest_that_is_declared():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tested = re.search(r'python-version: "([\d.]+)"', workflow)[1]
    assert PROJECT["requires-python"] == f">={tested}"


def test_both_kinds_of_ci_run_the_same_script():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    steps = re.findall(r"^make ([\w-]+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == ["lint", "test", "test-colab"]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in workflow


def _make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def test_what_runs_weekly_is_a_make_target_and_explained():
    workflow = (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8")
    weekly = re.search(r"target: \[(.+)\]", workflow)[1].split(", ")
    explained = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## ")
    (section,) = [text for text in explained if text.startswith("What runs weekly")]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == sorted(weekly)
    assert set(weekly) <= _make_targets()


def test_the_makefile_explains_each_of_its_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = _make_targets()
    assert {"lint", "test", "test-colab"} <= targets
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    assert set(phony.split()) == targets
    assert set(re.findall(r'@echo "make ([\w-]+) ', makefile)) == targets - {"help"}


def test_the_address_is_only_in_pyproject_and_the_stamped_notebooks():
    address = PROJECT["urls"]["Repository"]
    texts = [
        path
        for pattern in ("*", "rlhf_toy/**/*.py", "tests/**/*.py", ".ci/*", ".github/**/*.yml")
        for path in ROOT.glob(pattern)
        if path.is_file() and path.name != "pyproject.toml"
    ]
    assert [path for path in texts if address in path.read_text(encoding="utf-8")] == []


def test_the_citation_names_this_version_and_licence():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {PROJECT['version']}\n" in text
    assert "license: MIT\n" in text and "MIT License" in (ROOT / "LICENSE").read_text()


def test_both_readmes_list_every_notebook_in_order():
    files = [path.name for path in NOTEBOOKS]
    for readme, folder in (("README.md", "notebooks/"), ("notebooks/README.md", "")):
        text = (ROOT / readme).read_text(encoding="utf-8")
        listed = re.findall(rf"^\| \[[^]]+\]\({folder}(\w+\.ipynb)\)", text, re.MULTILINE)
        assert listed and listed == files, readme


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_executed_in_order(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    assert not any("execution" in cell.metadata for cell in code), "timings differ at every run"
    assert text == nbformat.writes(notebook) + "\n"
    assert len(text.encode()) < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stamped_with_the_course_s_address_and_version(path):
    notebook = nbformat.read(path, as_version=4)
    address, version = PROJECT["urls"]["Repository"], PROJECT["version"]
    assert tagged_cell(notebook, SETUP_TAG, "code").source == setup_cell(address, version)
    assert tagged_cell(notebook, BADGE_TAG, "markdown").source == badge_cell(address, path.name)
