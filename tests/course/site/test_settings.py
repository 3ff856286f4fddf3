"""Sphinx's settings for the site."""

import runpy
from pathlib import Path

import pytest

from rlhf_toy.course.site import build

pytest.importorskip("myst_nb", reason="the site needs the extra `site`")

ROOT = Path(__file__).parents[3]
UNPUBLISHED = "https://github.com/your-account/a_course"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function that returns the settings of a course with this address."""

    def read(address: str) -> dict:
        (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "notebooks" / "README.md").write_text("| [00](00_a.ipynb) ★ | Why? |\n")
        monkeypatch.setattr(build, "ROOT", tmp_path)
        return runpy.run_path(str(ROOT / "docs" / "conf.py"))

    return read


@pytest.mark.parametrize("address", [UNPUBLISHED, "https://gitlab.com/me/course", "file:///tmp/x"])
def test_without_an_address_on_github_there_are_no_buttons(settings, address):
    options = settings(address)["html_theme_options"]
    assert not {"launch_buttons", "repository_url"} & set(options)


def test_buttons_follow_the_address(settings):
    options = settings("https://github.com/me/course")["html_theme_options"]
    assert options["repository_url"] == "https://github.com/me/course"
    assert options["launch_buttons"] == {"colab_url": "https://colab.research.google.com"}


def test_mathjax_is_there_without_a_network(settings):
    found = settings(UNPUBLISHED)
    assert not found["mathjax_path"].startswith("http")
    (folder,) = [Path(path) for path in found["html_static_path"] if path != "_static"]
    assert (folder / found["mathjax_path"]).stat().st_size > 1_000_000


def test_a_page_of_the_core_path_has_its_star(settings):
    read = settings(UNPUBLISHED)["_read_notebook"]
    cell = '{"cell_type": "markdown", "metadata": {}, "source": "# A"}'
    for docname, shown in {"notebooks/00_a": "# A ★", "notebooks/01_b": "# A"}.items():
        source = [f'{{"cells": [{cell}]}}']
        read(None, docname, source)
        assert f'"{shown}"'.replace("★", "\\u2605") in source[0]
    other = ["# A"]
    read(None, "glossary", other)
    assert other == ["# A"]
