"""`python -m rlhf_toy course`."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_toy.__main__ import main
from rlhf_toy.course.commands.course import headline, link_to_pages

WIDGET = """\
import ipywidgets
slider = ipywidgets.IntSlider()
ipywidgets.interact(lambda x: print(1 / (x - {bad})), x=slider)
slider"""


def _write(folder: Path, name: str, *cells: nbformat.NotebookNode) -> Path:
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), folder / name)
    return folder / name


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """A folder with two notebooks that run."""
    folder = tmp_path / "notebooks"
    opening = "[![badge](x)](y)\n\n# First *things* & more\n\nWhat is `RLHF`,\nthen?\n\n## Later"
    _write(
        folder,
        "00_first.ipynb",
        new_markdown_cell(opening),
        new_code_cell("value = 6\nvalue * 7"),
        new_markdown_cell("[next](01_second.ipynb) [part](./01_second.ipynb#b) [no](other.ipynb)"),
    )
    _write(folder, "01_second.ipynb", new_code_cell("'value' in globals()"))
    return folder


def _course(notebooks: Path, output: Path | str, *options: str) -> int:
    return main(
        [
            "course",
            "--notebooks",
            str(notebooks),
            "--output",
            str(output),
            "--timeout",
            "60",
            *options,
        ]
    )


def test_all_notebooks_run_into_pages_and_an_index(notebooks, tmp_path, capsys):
    output = tmp_path / "build" / "course"
    assert _course(notebooks, output) == 0

    index = (output / "index.html").read_text(encoding="utf-8")
    assert '<a href="00_first.html">First things &amp; more</a>' in index
    assert "What is RLHF, then?" in index
    assert '<a href="01_second.html">01_second</a>' in index
    assert index.count("ran in ") == 2
    first = (output / "00_first.html").read_text(encoding="utf-8")
    assert "42" in first
    assert 'href="01_second.html"' in first and 'href="01_second.html#b"' in first
    assert 'href="other.ipynb"' in first
    # Each notebook has a kernel of its own.
    assert "False" in (output / "01_second.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1].endswith((output / "index.html").as_uri())
    assert sorted(path.name for path in output.parent.iterdir()) == ["course"]


def test_the_notebooks_themselves_are_left_alone(notebooks, tmp_path):
    before = {path: path.read_bytes() for path in notebooks.iterdir()}
    assert _course(notebooks, tmp_path / "course") == 0
    assert {path: path.read_bytes() for path in notebooks.iterdir()} == before


def test_a_failure_names_notebook_and_cell_and_spares_the_earlier_pages(
    notebooks, tmp_path, capsys
):
    output = tmp_path / "course"
    assert _course(notebooks, output) == 0
    good = {path.name: path.read_bytes() for path in output.iterdir()}
    spoilt = _write(
        notebooks,
        "01_second.ipynb",
        new_markdown_cell("text"),
        new_code_cell("print('so far')"),
        new_code_cell("raise ValueError('no luck')"),
    )
    _write(notebooks, "02_third.ipynb", new_code_cell("1 + 1"))
    capsys.readouterr()

    assert _course(notebooks, output, "--in-place") == 1

    out, err = capsys.readouterr()
    assert f"{spoilt}: cell 3 failed: ValueError: no luck" in err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == good
    failed = tmp_path / "course-failed"
    assert (failed / "index.html").as_uri() in out
    index = (failed / "index.html").read_text(encoding="utf-8")
    assert "cell 3 failed" in index and "not run: shown with its saved outputs" in index
    assert "so far" in (failed / "01_second.html").read_text(encoding="utf-8")
    assert (failed / "02_third.html").is_file()
    # Nothing is saved in the notebooks unless all of them ran.
    first = nbformat.read(notebooks / "00_first.ipynb", as_version=4)
    assert first.cells[1].outputs == []


def test_a_kernel_that_dies_is_a_failure(tmp_path, capsys):
    _write(tmp_path / "notebooks", "00.ipynb", new_code_cell("import os; os._exit(1)"))
    assert _course(tmp_path / "notebooks", tmp_path / "course") == 1
    assert "cell 1 failed: its kernel died" in capsys.readouterr().err


def test_a_cell_that_takes_too_long_is_a_failure(tmp_path, capsys):
    _write(tmp_path / "notebooks", "00.ipynb", new_code_cell("import time; time.sleep(60)"))
    assert _course(tmp_path / "notebooks", tmp_path / "course", "--timeout", "1") == 1
    assert "cell 1 failed: it took more than 1 s" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "99999999999999999999"])
def test_a_time_limit_that_cannot_work_is_a_usage_error(seconds, notebooks, tmp_path):
    assert _course(notebooks, tmp_path / "course", "--timeout", seconds) == 2


@pytest.mark.parametrize(("bad", "code"), [(0, 1), (5, 0)])
def test_an_error_that_a_widget_caught_is_a_failure(tmp_path, capsys, bad, code):
    _write(tmp_path / "notebooks", "00.ipynb", new_code_cell(WIDGET.format(bad=bad)))
    assert _course(tmp_path / "notebooks", tmp_path / "course") == code
    assert ("ZeroDivisionError" in capsys.readouterr().err) == bool(code)


def test_outputs_saved_in_place_are_the_same_at_every_run(notebooks, tmp_path):
    tagged = new_code_cell(WIDGET.format(bad=5), metadata={"tags": ["kept"]})
    path = _write(notebooks, "02_widget.ipynb", tagged)
    assert _course(notebooks, tmp_path / "course", "--in-place") == 0
    once = {path: path.read_bytes() for path in notebooks.iterdir()}
    assert _course(notebooks, tmp_path / "course", "--in-place") == 0
    assert {path: path.read_bytes() for path in notebooks.iterdir()} == once
    cell = nbformat.read(path, as_version=4).cells[0]
    assert (cell.id, cell.metadata, cell.execution_count) == (tagged.id, tagged.metadata, 1)
    assert "42" in once[notebooks / "00_first.ipynb"].decode()


def test_a_widget_leaves_its_static_figure(tmp_path):
    cell = """\
import ipywidgets
from rlhf_toy.course.widgets.parts import InteractiveCell, png
slider = ipywidgets.IntSlider()
InteractiveCell(ipywidgets.VBox([slider]), png(lambda figure: figure.add_subplot().plot([1, 2])))
"""
    path = _write(tmp_path / "notebooks", "00.ipynb", new_code_cell(cell))
    assert _course(tmp_path / "notebooks", tmp_path / "course", "--in-place") == 0
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    page = (tmp_path / "course" / "00.html").read_text(encoding="utf-8").split("</head>")[1]
    assert page.count("data:image/png;base64,") == 1
    assert "widget-view" not in page


def _is_refused(notebooks: Path, output: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command, which must refuse before it writes anything; returns the message."""
    above = notebooks.parent
    before = {path: path.is_file() and path.read_bytes() for path in above.rglob("*")}
    assert _course(notebooks, output) == 2
    assert {path: path.is_file() and path.read_bytes() for path in above.rglob("*")} == before
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rlhf_toy: error: ") and err.count("\n") == 1
    return err


def test_a_folder_with_other_content_is_not_replaced(notebooks, tmp_path, capsys):
    output = tmp_path / "precious"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    assert "--output: " in _is_refused(notebooks, str(output), capsys)


@pytest.mark.parametrize("output", [".", "/", "", "..", "afile", "afile/sub", "/proc/a", "n" * 300])
def test_an_output_that_cannot_work_is_refused(output, notebooks, tmp_path, monkeypatch, capsys):
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    (working / "afile").write_text("mine")
    assert "--output: " in _is_refused(notebooks, output, capsys)


def test_a_notebook_that_cannot_be_saved_in_place_is_refused(notebooks, tmp_path, capsys):
    last = notebooks / "01_second.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: path != last)  # root may write to all files
        assert _course(notebooks, tmp_path / "course", "--in-place") == 2
    assert f"--in-place: cannot write to '{last}'" in capsys.readouterr().err
    assert not (tmp_path / "course").exists()


def test_pages_go_where_a_link_points(notebooks, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "pages")
    assert _course(notebooks, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pages" / "index.html").is_file()


def test_a_folder_without_notebooks_is_a_usage_error(tmp_path, capsys):
    assert _course(tmp_path / "nowhere", tmp_path / "course") == 2
    assert "no notebooks in" in capsys.readouterr().err
    assert not (tmp_path / "course").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[]", b"3", b'{"nbformat": 4}', b"\xff\xfe", None], ids=str
)
def test_a_file_that_is_not_a_notebook_is_a_usage_error(content, notebooks, tmp_path, capsys):
    path = notebooks / "02_broken.ipynb"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    message = _is_refused(notebooks, str(tmp_path / "course"), capsys)
    assert f"{path} is not a notebook that can be read" in message


def test_a_notebook_without_heading_has_no_headline():
    assert headline(new_notebook(cells=[new_markdown_cell("words"), new_code_cell("# x")])) == (
        "",
        "",
    )


def test_only_links_to_the_course_s_notebooks_change():
    page = '<a href="a.ipynb">a.ipynb</a> <a href="https://x.org/a.ipynb">x</a>'
    expected = '<a href="a.html">a.ipynb</a> <a href="https://x.org/a.ipynb">x</a>'
    assert link_to_pages(page, {"a.ipynb"}) == expected
