"""JupyterLab on loopback and a headless Chromium that uses it as a student would."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "browser"  # of tests that failed
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
LAPTOP = {"width": 1280, "height": 800}

# What a notebook has to be asked before its cells can be run: a run before the kernel has answered
# does nothing, and says nothing.
READY = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = app.shell.currentWidget;
  await panel.context.ready;
  await panel.revealed;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
RESTART = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.sessionContext.session.kernel.restart();
  await panel.sessionContext.session.kernel.info;
}"""
# Replaces the source of the last code cell that contains a text, and runs that cell.
REPLACE = """async ([code, source]) => {
  const app = window.jupyterapp;
  const notebook = app.shell.currentWidget.content;
  const cells = notebook.widgets.map(cell => cell.model.sharedModel);
  const found = cells.findLastIndex(
    cell => cell.cell_type === 'code' && cell.getSource().includes(code));
  if (found < 0) throw new Error(`no code cell contains ${code}`);
  cells[found].setSource(source ?? cells[found].getSource());
  notebook.deselectAll();
  notebook.activeCellIndex = found;
  return await app.commands.execute('notebook:run-cell');
}"""
# Index and text of the first cell with an error among its outputs, or null.
ERROR = """() => {
  const model = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
  for (const [i, cell] of model.cells.entries())
    for (const output of cell.outputs ?? [])
      if (output.output_type === 'error') return `cell ${i}: ${output.ename}: ${output.evalue}`;
  return null;
}"""


def pytest_collection_modifyitems(items):
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="no Chromium here: apt-get install chromium")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Keeps on the item how its call went, for `student` to look at."""
    report = (yield).get_result()
    if report.when == "call":
        item.failed = report.failed


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab's address, its token, and the folder that it serves: a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder)
    settings = home / "settings" / "@jupyterlab"
    for name, text in {
        # Keep all cells in the page, including those that are scrolled out of sight.
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_urlsafe()
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": token,  # other users of the machine can read a command line
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "OMP_NUM_THREADS": "1",
    }
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
                *(f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"),
            ],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token={token}", server, home / "log")
        yield address, token, folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Student:
    """A page with a notebook in it.

    Attributes:
        page: Playwright's page.
        folder: where the notebooks are, on disk.
    """

    def __init__(self, page, address: str, token: str, folder: Path) -> None:
        self.page, self.address, self.token, self.folder = page, address, token, folder

    def open(self, name: str) -> None:
        """Opens a notebook and waits until its kernel answers."""
        workspace = f"{self.address}/lab/workspaces/{name[:2]}"
        self.page.goto(f"{workspace}/tree/{name}?reset&token={self.token}")
        self.page.wait_for_function("window.jupyterapp !== undefined")
        self.page.wait_for_selector(".jp-NotebookPanel")
        self.page.evaluate(READY)

    def run_all(self) -> None:
        """Runs all cells; fails with the first error that one of them shows."""
        went_well = self.page.evaluate(RUN_ALL)
        assert went_well, self.page.evaluate(ERROR)

    def run_cell(self, code: str, source: str | None = None) -> None:
        """Runs the last code cell that contains `code` once more, with another source if given."""
        went_well = self.page.evaluate(REPLACE, [code, source])
        assert went_well, self.page.evaluate(ERROR)

    def restart_kernel(self) -> None:
        self.page.evaluate(RESTART)

    def cell(self, code: str):
        """The last code cell whose source contains this text."""
        return self.page.locator(
            ".jp-CodeCell",
            has=self.page.locator(".cm-content", has_text=re.compile(re.escape(code))),
        ).last

    def close(self) -> None:
        """Shuts down the kernel and leaves the whole machine to the next notebook."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@pytest.fixture
def student(browser, lab, request) -> Iterator[Student]:
    """A student at a laptop; the screen is kept if the test fails."""
    context = browser.new_context(viewport=LAPTOP)
    context.set_default_timeout(20_000)
    student = Student(context.new_page(), *lab)
    yield student
    if getattr(request.node, "failed", False):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        student.page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    student.close()
    context.close()
