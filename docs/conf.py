"""Sphinx's settings for the course's site; `python -m rlhf_toy course` assembles the sources."""

import importlib.util
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

from rlhf_toy.course.commands.publish import github_place
from rlhf_toy.course.site import pages
from rlhf_toy.course.site.build import ROOT

project = "rlhf_toy"
author = "the rlhf_toy authors"
release = installed_version("rlhf_toy")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["parts"]  # included by other pages

nb_execution_mode = "off"  # `course` has run the notebooks
nb_code_prompt_show = "Setup or check: show the cell"  # no other cell is folded
nb_code_prompt_hide = "Setup or check: hide the cell"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every name of the package must lead somewhere. Pages about other packages would need a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?s)(?!rlhf_toy\.).*"),
    ("py:.*", r"rlhf_toy\..*\b_\w+"),  # private
]
default_role = "py:obj"  # what stands in `backticks` in a docstring
add_module_names = False
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"

html_theme = "sphinx_book_theme"
html_title = "RLHF, exactly"
html_show_copyright = False
html_context = {"default_mode": "auto"}  # light or dark like the reader's system
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}

# MathJax comes with the site, so that formulas need no network. The package that has it is a Sphinx
# extension too, but as an extension it would keep Sphinx from reading several pages at once.
_mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).with_name("static")
mathjax_path = "mathjax/tex-chtml.js"
html_static_path = ["_static", str(_mathjax)]
html_css_files = ["site.css"]

# Buttons for GitHub and Colab, once `publish` has written an address.
_project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
if github_place(_project["urls"]["Repository"]):
    html_theme_options |= {
        "repository_url": _project["urls"]["Repository"],
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }

_core = pages.core_path((ROOT / "notebooks" / "README.md").read_text("utf-8"))


def _read_notebook(app, docname, source):
    folder, _, stem = docname.rpartition("/")
    if folder == "notebooks":
        source[0] = pages.notebook_page(source[0], stem, stem in _core)


def _read_docstring(app, what, name, obj, options, lines):
    lines[:] = pages.docstring(lines)


def setup(app):
    """Have Sphinx call the functions that prepare notebooks and docstrings."""
    # All pages are made again if these functions, or the core path, have changed.
    prepared_by = Path(pages.__file__).read_text("utf-8") + str(sorted(_core))
    app.add_config_value("prepared_by", prepared_by, "env")
    app.connect("source-read", _read_notebook)
    app.connect("autodoc-process-docstring", _read_docstring, priority=400)  # before napoleon
