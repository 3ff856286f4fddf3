"""The setup cell, run in an empty folder by an environment that has no rlhf_toy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from rlhf_toy.course.commands.publish import setup_cell

ROOT = Path(__file__).parents[2]
USE_CELL = "import rlhf_toy\nprint(rlhf_toy.__file__)"
VERSIONS_CELL = (
    "from importlib.metadata import distribution\n"
    "for name in ('torch', 'numpy'):\n"
    "    print(distribution(name).locate_file('').resolve())"
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository that holds the working tree as it is now, to install from."""
    folder = tmp_path_factory.mktemp("clone") / "rlhf_toy"
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "rlhf_toy", folder / "rlhf_toy", ignore=shutil.ignore_patterns("__pycache__")
    )
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "the course"], check=True)
    return folder


class Environment:
    """A virtual environment that sees this one's packages, all but those left out."""

    def __init__(self, folder: Path, without: tuple[str, ...] = ()) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.site = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        links = folder / "links"
        links.mkdir()
        hidden = ("rlhf_toy", "__editable__", "pip", *without)
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            name = entry.name.split("-")[0]
            if name not in hidden and "rlhf_toy" not in entry.name and entry.suffix != ".pth":
                (links / entry.name).symlink_to(entry)
        (self.site / "links.pth").write_text(f"{links}\n")
        self.folder = folder

    def run_cells(self, *sources: str) -> list[str]:
        """Runs code cells as a notebook in an empty folder, and returns what each printed."""
        here = self.folder / "empty"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
        nbformat.write(notebook, here / "notebook.ipynb")
        command = [str(self.python), "-m", "nbconvert", "--to=notebook", "--execute", "--inplace"]
        done = subprocess.run(
            [*command, "notebook.ipynb"],
            cwd=here,
            env=_environment(self.folder),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [
            "".join(output.get("text", "") for output in cell.outputs)
            for cell in nbformat.read(here / "notebook.ipynb", as_version=4).cells
        ]

    def installed(self) -> set[str]:
        """The names of the distributions in the environment's own folder, pip's own left out."""
        names = {path.name.split("-")[0] for path in self.site.glob("*.dist-info")}
        return names - {"pip", "setuptools"}


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment variables, less what would show the kernel another Python."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "JUPYTER_DATA_DIR": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipy")}


def _current_version() -> str:
    """The version that the working tree declares."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_notebook_installs_the_package_where_it_is_missing(tmp_path, repository):
    environment = Environment(tmp_path / "env", without=("tqdm",))
    cell = setup_cell(repository.as_uri(), _current_version())

    setup_output, package_file, places = environment.run_cells(cell, USE_CELL, VERSIONS_CELL)

    assert setup_output.splitlines()[-1] == f"rlhf_toy {_current_version()} is ready"
    assert Path(package_file.strip()).is_relative_to(environment.site)
    # tqdm was missing and is there now; torch and numpy are still the ones from outside.
    assert environment.installed() == {"rlhf_toy", "tqdm"}
    assert environment.site.resolve() not in map(Path, places.split())

    # The second time there is nothing to do.
    assert environment.run_cells(cell) == [f"rlhf_toy {_current_version()} is ready\n"]


def test_an_older_version_of_the_package_is_replaced(tmp_path, repository):
    environment = Environment(tmp_path / "env")
    (environment.site / "rlhf_toy").mkdir()
    (environment.site / "rlhf_toy" / "__init__.py").write_text("")
    info = environment.site / "rlhf_toy-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rlhf_toy\nVersion: 0.0.1\n")
    (info / "RECORD").write_text(
        "rlhf_toy/__init__.py,,\nrlhf_toy-0.0.1.dist-info/METADATA,,\n"
        "rlhf_toy-0.0.1.dist-info/RECORD,,\n"
    )

    outputs = environment.run_cells(setup_cell(repository.as_uri(), _current_version()), USE_CELL)

    assert outputs[0].splitlines()[-1] == f"rlhf_toy {_current_version()} is ready"
    assert not info.exists()
    assert environment.installed() == {"rlhf_toy"}
