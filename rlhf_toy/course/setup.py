"""The setup cell of every notebook, and the versions of the packages that the course needs.

This file imports only `packaging`, because it has to work where other packages are missing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

# The installed copy was probably chosen (a CUDA build, Colab's own), and replacing it costs
# gigabytes and a restart. So the setup only reports a problem with these.
NEVER_INSTALLED = ("torch", "numpy")


@dataclass(frozen=True)
class Dependency:
    """A package that the course needs, and its installed version.

    Attributes:
        requirement: the name and the range of versions that the course supports.
        installed: the installed version, or None if it is not installed.
    """

    requirement: Requirement
    installed: Version | None

    @property
    def name(self) -> str:
        """The package's name."""
        return self.requirement.name

    @property
    def is_missing(self) -> bool:
        """Whether it is not installed, or too old."""
        return self.installed is None or any(
            self.installed < Version(bound.version)
            for bound in self.requirement.specifier
            if bound.operator == ">="
        )

    @property
    def is_untested(self) -> bool:
        """Whether it is newer than the range that was tested with the course."""
        return not self.is_missing and not self.requirement.specifier.contains(
            self.installed, prereleases=True
        )

    def __str__(self) -> str:
        found = f"{self.name} {self.installed}" if self.installed else f"no {self.name}"
        return f"{found} (needed: {self.requirement})"


def installed_version(name: str) -> Version | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def dependencies() -> list[Dependency]:
    """Return the run-time dependencies that the installed package declares, without extras."""
    declared = map(Requirement, metadata.requires("rlhf_toy") or [])
    return [
        Dependency(requirement, installed_version(requirement.name))
        for requirement in declared
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def setup(notebook_version: str) -> None:
    """Prepare a notebook: check the packages, install missing ones, set the plotting style.

    It never installs torch or numpy, nor ipywidgets on Colab, where only Colab's own version 7
    works. A package that is newer than the tested range is left alone.

    Args:
        notebook_version: the version of rlhf_toy that the notebook was written for.

    Raises:
        RuntimeError: a package is missing and was not or could not be installed; the message says
            what to do.
    """
    version = metadata.version("rlhf_toy")
    if Version(version) < Version(notebook_version):
        raise RuntimeError(
            f"This notebook needs rlhf_toy {notebook_version}, but {version} is installed and "
            "could not be replaced: see pip's message above, then restart the kernel."
        )
    needed = dependencies()
    on_colab = "google.colab" in sys.modules
    fixed = [d for d in needed if d.name in NEVER_INSTALLED + ("ipywidgets",) * on_colab]
    missing = [d for d in needed if d.is_missing]
    for dependency in missing:
        if dependency.name in NEVER_INSTALLED:
            raise RuntimeError(
                f"Found {dependency}. The setup does not install {dependency.name}: run "
                f'`pip install "{dependency.requirement}"`, then restart the kernel.'
            )
    _install([d for d in missing if d not in fixed], keep=[d for d in fixed if d.installed])

    from rlhf_toy import plots

    plots.use_style()
    print(f"rlhf_toy {version} is ready")


def _install(missing: list[Dependency], keep: list[Dependency]) -> None:
    """Install packages with pip, without changing the versions of those to keep."""
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{d.name}=={d.installed}\n" for d in keep))
        wanted = [str(d.requirement) for d in missing]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(wanted)}:\n{done.stderr.strip()}")
    stale = [d.name for d in missing if d.installed and d.name in sys.modules]
    if stale:
        raise RuntimeError(
            f"{', '.join(stale)} was updated, but this kernel still uses the old version: "
            "restart the kernel and run this cell again."
        )
