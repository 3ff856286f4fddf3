"""`python -m rlhf_toy course`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_toy.__main__ import main
from rlhf_toy.course.site import build, execution

pytest.importorskip("myst_nb", reason="the site needs the extra `site`")

WIDGET = """\
import ipywidgets
slider = ipywidgets.IntSlider()
ipywidgets.interact(lambda x: print(1 / (x - {bad})), x=slider)
slider"""
CONF = """\
extensions = ["myst_nb"]
nb_execution_mode = "off"
exclude_patterns = ["parts", "syllabus.md", "instructors.md"]
"""
INDEX = """\
# Index

```{toctree}
:glob:
notebooks/*
bench
claims
```
"""


def _write(folder: Path, name: str, *cells: nbformat.NotebookNode) -> Path:
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), folder / name)
    return folder / name


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """A folder with two notebooks that run."""
    folder = tmp_path / "notebooks"
    _write(
        folder,
        "00_first.ipynb",
        new_markdown_cell("# First\n\nWhat is `RLHF`?"),
        new_code_cell("value = 6\nvalue * 7"),
        new_markdown_cell("[next](01_second.ipynb)"),
    )
    _write(
        folder,
        "01_second.ipynb",
        new_markdown_cell("# Second"),
        new_code_cell("'value' in globals()"),
    )
    return folder


@pytest.fixture
def plain_pages(monkeypatch):
    """In place of Sphinx, which takes seconds: each page is the text of its source."""

    def copy(folder: Path, jobs: int) -> Path:
        html = folder / "html"
        for path in (folder / "source").rglob("*"):
            if path.is_file():
                page = html / path.relative_to(folder / "source").with_suffix(".html")
                page.parent.mkdir(parents=True, exist_ok=True)
                page.write_bytes(path.read_bytes())
        return html

    monkeypatch.setattr(build, "run_sphinx", copy)


def _course(notebooks: Path, output: Path | str, *options: str) -> int:
    cache = notebooks.parent / "cache"
    folders = ["--notebooks", str(notebooks), "--output", str(output), "--cache", str(cache)]
    return main(["course", *folders, "--timeout", "60", "--jobs", "1", *options])


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sphinx_makes_pages_of_the_notebooks_that_have_run(notebooks, tmp_path, monkeypatch, capfd):
    docs, output = tmp_path / "docs", tmp_path / "build" / "course"
    docs.mkdir()
    for name, text in {"conf.py": CONF, "index.md": INDEX}.items():
        (docs / name).write_text(text)
    for name in build.MADE_FROM_DATA:
        (docs / f"{name}.md").write_text(f"# {name}\n\n```{{include}} parts/{name}.md\n```\n")
    monkeypatch.setattr(build, "DOCS", docs)
    monkeypatch.setattr(build, "DATA", tmp_path)
    (tmp_path / "bench.json").write_text('{"machine": {"cpu": "old"}, "rows": []}')

    assert _course(notebooks, output) == 0

    out, err = capfd.readouterr()
    assert "WARNING" not in err
    assert out.splitlines()[-1] == f"The course is at {(output / 'index.html').as_uri()}"
    index = (output / "index.html").read_text(encoding="utf-8")
    assert 'href="notebooks/00_first.html">First</a>' in index and ">bench</a>" in index
    assert not (output / "claims.html").exists(), "there are no data for it"
    first = (output / "notebooks" / "00_first.html").read_text(encoding="utf-8")
    assert "42" in first and 'href="01_second.html"' in first
    # Each notebook has a kernel of its own.
    assert "False" in (output / "notebooks" / "01_second.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in output.parent.iterdir()) == ["course"]

    good = _content(output)
    (docs / "conf.py").write_text("raise RuntimeError('no luck')")
    assert _course(notebooks, output) == 1
    assert "no luck" in capfd.readouterr().err
    assert _content(output) == good


def test_only_what_has_changed_runs_again(notebooks, tmp_path, plain_pages, monkeypatch):
    ran = []

    def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> None:
        ran.append(notebook.cells[0].source.split("\n")[0])
        notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text=f"run {len(ran)}")]
        notebook.metadata.language_info = {"name": "python"}

    monkeypatch.setattr(execution, "execute", execute)
    before = _content(notebooks)
    assert _course(notebooks, tmp_path / "course") == 0
    assert ran == ["# First", "# Second"]
    assert _content(notebooks) == before
    pages = _content(tmp_path / "course")
    assert _course(notebooks, tmp_path / "course") == 0
    assert len(ran) == 2 and _content(tmp_path / "course") == pages

    # New prose is shown with the outputs of the last run; new code runs.
    second = [new_markdown_cell("# 2nd"), new_code_cell("'value' in globals()")]
    _write(notebooks, "01_second.ipynb", *second)
    assert _course(notebooks, tmp_path / "course") == 0
    page = (tmp_path / "course" / "notebooks" / "01_second.html").read_text(encoding="utf-8")
    assert len(ran) == 2 and "# 2nd" in page and "run 2" in page
    second[1].source = "'value' not in globals()"
    _write(notebooks, "01_second.ipynb", *second)
    assert _course(notebooks, tmp_path / "course") == 0
    assert ran[2:] == ["# 2nd"]
    # So does everything if a student has answered as an annotator, or the package has changed.
    (notebooks / "my_preferences.jsonl").write_text("{}")
    assert _course(notebooks, tmp_path / "course") == 0
    assert len(ran) == 5
    package = tmp_path / "package"
    package.mkdir()
    (package / "new.py").write_text("")
    monkeypatch.setattr(execution, "PACKAGE", package)
    assert _course(notebooks, tmp_path / "course") == 0
    assert len(ran) == 7
    assert len(list((tmp_path / "cache" / "executed").iterdir())) == 2


def test_a_page_goes_with_its_notebook(notebooks, tmp_path, plain_pages):
    assert _course(notebooks, tmp_path / "course", "--saved") == 0
    source = tmp_path / "cache" / "sphinx" / "source" / "notebooks"
    times = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    assert set(times) == {"00_first.ipynb", "01_second.ipynb"}
    (notebooks / "01_second.ipynb").unlink()
    assert _course(notebooks, tmp_path / "course", "--saved") == 0
    left = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    assert left == {"00_first.ipynb": times["00_first.ipynb"]}, (
        "what has not changed is not written"
    )


def test_failures_name_notebook_and_cell_and_spare_the_earlier_pages(
    notebooks, tmp_path, plain_pages, capsys
):
    output = tmp_path / "course"
    assert _course(notebooks, output) == 0
    good = _content(output)
    spoilt = _write(
        notebooks,
        "01_second.ipynb",
        new_markdown_cell("text"),
        new_code_cell("print('so far')"),
        new_code_cell("raise ValueError('no luck')"),
    )
    dead = _write(notebooks, "02_third.ipynb", new_code_cell("import os; os._exit(1)"))
    whole = _write(notebooks, "03_fourth.ipynb", new_code_cell("1 + 1"))
    capsys.readouterr()

    assert _course(notebooks, output, "--in-place") == 1

    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"{spoilt}: cell 3 failed: ValueError: no luck",
        f"{dead}: cell 1 failed: its kernel died",
    ]
    assert _content(output) == good
    # Nothing is saved in the notebooks unless all of them ran.
    assert nbformat.read(whole, as_version=4).cells[0].outputs == []


def test_a_cell_that_takes_too_long_is_a_failure(tmp_path, plain_pages, capsys):
    _write(tmp_path / "notebooks", "00.ipynb", new_code_cell("import time; time.sleep(60)"))
    assert _course(tmp_path / "notebooks", tmp_path / "course", "--timeout", "1") == 1
    assert "cell 1 failed: it took more than 1 s" in capsys.readouterr().err


def test_notebooks_run_side_by_side_on_one_thread_each(tmp_path, plain_pages):
    wait = """\
import os, pathlib, time
pathlib.Path("{mine}").touch()
while not pathlib.Path("{other}").exists():
    time.sleep(0.1)
os.environ["OMP_NUM_THREADS"]"""
    for mine, other in (("a", "b"), ("b", "a")):
        code = new_code_cell(wait.format(mine=mine, other=other))
        _write(tmp_path / "notebooks", f"{mine}.ipynb", code)
    assert _course(tmp_path / "notebooks", tmp_path / "course", "--in-place", "--jobs", "2") == 0
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        (output,) = nbformat.read(path, as_version=4).cells[0].outputs
        assert output.data["text/plain"] == "'1'"


def test_ctrl_c_stops_at_once_and_leaves_no_kernel(notebooks, tmp_path):
    code = "import os, pathlib, time\npathlib.Path('pid').write_text(f'{os.getpid()} ')"
    _write(notebooks, "00_first.ipynb", new_code_cell(f"{code}\ntime.sleep(99)"))
    options = ["--notebooks", notebooks, "--output", tmp_path / "course", "--jobs", "1"]
    command = [sys.executable, "-m", "rlhf_toy", "course", *options, "--cache", tmp_path / "cache"]
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    ) as process:
        pid = notebooks / "pid"
        while not (pid.exists() and pid.read_text().endswith(" ")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            assert "Stopped." in process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):  # not at once, but within seconds
        for _ in range(300):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)


def test_saved_outputs_are_shown_without_a_run(tmp_path, plain_pages):
    cell = new_code_cell("1 + 1", outputs=[nbformat.v4.new_output("stream", text="saved")])
    _write(tmp_path / "notebooks", "00.ipynb", cell)
    assert _course(tmp_path / "notebooks", tmp_path / "course", "--saved") == 0
    assert "saved" in (tmp_path / "course" / "notebooks" / "00.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds", ["0", "-1", "99999999999999999999"])
def test_a_time_limit_that_cannot_work_is_a_usage_error(seconds, notebooks, tmp_path):
    assert _course(notebooks, tmp_path / "course", "--timeout", seconds) == 2


@pytest.mark.parametrize(("bad", "code"), [(0, 1), (5, 0)])
def test_an_error_that_a_widget_caught_is_a_failure(tmp_path, plain_pages, capsys, bad, code):
    _write(tmp_path / "notebooks", "00.ipynb", new_code_cell(WIDGET.format(bad=bad)))
    assert _course(tmp_path / "notebooks", tmp_path / "course") == code
    assert ("ZeroDivisionError" in capsys.readouterr().err) == bool(code)


def test_outputs_saved_in_place_are_the_same_at_every_run(tmp_path, plain_pages):
    notebooks = tmp_path / "notebooks"
    tagged = new_code_cell(WIDGET.format(bad=5), metadata={"tags": ["kept"]})
    path = _write(notebooks, "00.ipynb", tagged, new_code_cell("6 * 7"))
    assert _course(notebooks, tmp_path / "course", "--in-place") == 0
    once = _content(notebooks)
    for file in (tmp_path / "cache" / "executed").iterdir():
        file.unlink()  # so that everything runs again
    assert _course(notebooks, tmp_path / "course", "--in-place") == 0
    assert _content(notebooks) == once
    cell = nbformat.read(path, as_version=4).cells[0]
    assert (cell.id, cell.metadata, cell.execution_count) == (tagged.id, tagged.metadata, 1)
    assert '"42"' in once[path].decode()


def test_a_widget_leaves_its_static_figure(tmp_path, plain_pages):
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


def test_pages_go_where_a_link_points(notebooks, tmp_path, plain_pages):
    (tmp_path / "link").symlink_to(tmp_path / "pages")
    assert _course(notebooks, tmp_path / "link", "--saved") == 0
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


def test_folders_that_contain_each_other_are_refused(notebooks, tmp_path, capsys):
    message = _is_refused(notebooks, str(tmp_path / "cache" / "pages"), capsys)
    assert "must not contain one another" in message


def test_a_cache_folder_with_other_content_is_not_touched(notebooks, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("years of work")
    assert "--cache: " in _is_refused(notebooks, str(tmp_path / "course"), capsys)


def test_running_nothing_cannot_be_saved(notebooks, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        _course(notebooks, tmp_path / "course", "--saved", "--in-place")
    assert end.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_without_sphinx_or_its_sources_one_sentence_says_what_to_do(
    notebooks, tmp_path, monkeypatch, capsys
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install -e .[site]" in _is_refused(notebooks, str(tmp_path / "course"), capsys)
    monkeypatch.setattr(build, "DOCS", tmp_path / "nowhere")
    assert "not a checkout" in _is_refused(notebooks, str(tmp_path / "course"), capsys)
