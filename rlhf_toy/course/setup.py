"""What every notebook's setup cell calls, and the versions that the package needs.

Nothing here needs more than `packaging`, so that it works where much else is missing.
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

# Whoever has these has chosen them (a CUDA build, Colab's own); a wrong copy costs gigabytes
# and a restart, so that they are only ever reported.
NEVER_INSTALLED = ("torch", "numpy")


@dataclass(frozen=True)
class Dependency:
    """A package that the course needs, and what there is of it.

    Attributes:
        requirement: the name and the range of versions.
        installed: the version that is installed, or None.
    """

    requirement: Requirement
    installed: Version | None

    @property
    def name(self) -> str:
        """The package's name."""
        return self.requirement.name

    @property
    def is_lacking(self) -> bool:
        """Whether it is missing, or older than the range allows."""
        return self.installed is None or any(
            self.installed < Version(bound.version)
            for bound in self.requirement.specifier
            if bound.operator == ">="
        )

    @property
    def is_untried(self) -> bool:
        """Whether it is newer than the range, so that nobody has tried it with the course."""
        return not self.is_lacking and not self.requirement.specifier.contains(
            self.installed, prereleases=True
        )

    def __str__(self) -> str:
        found = f"{self.name} {self.installed}" if self.installed else f"no {self.name}"
        return f"{found} (needed: {self.requirement})"


def installed_version(name: str) -> Version | None:
    """The version of an installed distribution, or None where there is none."""
    try:
        return Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def dependencies() -> list[Dependency]:
    """What the installed package declares that it needs at run time, extras left out."""
    declared = map(Requirement, metadata.requires("rlhf_toy") or [])
    return [
        Dependency(requirement, installed_version(requirement.name))
        for requirement in declared
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def setup(notebook_version: str) -> None:
    """Makes a notebook ready: checks the packages, installs what is lacking, sets the style.

    torch and numpy are never touched, nor is ipywidgets on Colab, whose own version 7 is the
    one that works there; what is newer than the tested range is left alone.

    Args:
        notebook_version: the version of rlhf_toy that the notebook was written for.

    Raises:
        RuntimeError: something is lacking that is not installed from here, or could not be; the
            message says what to do.
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
    lacking = [d for d in needed if d.is_lacking]
    for dependency in lacking:
        if dependency.name in NEVER_INSTALLED:
            raise RuntimeError(
                f"Found {dependency}. The setup never installs {dependency.name}, so as not to "
                f'replace yours: run `pip install "{dependency.requirement}"`, then restart the '
                "kernel."
            )
    _install([d for d in lacking if d not in fixed], keep=[d for d in fixed if d.installed])

    from rlhf_toy import plots

    plots.use_style()
    print(f"rlhf_toy {version} is ready")


def _install(lacking: list[Dependency], keep: list[Dependency]) -> None:
    """Installs what is lacking with pip, holding the packages to keep at their versions."""
    if not lacking:
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{d.name}=={d.installed}\n" for d in keep))
        wanted = [str(d.requirement) for d in lacking]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {', '.join(wanted)}:\n{done.stderr.strip()}")
    stale = [d.name for d in lacking if d.installed and d.name in sys.modules]
    if stale:
        raise RuntimeError(
            f"{', '.join(stale)} was replaced by a newer version while the old one was in use: "
            "restart the kernel and run this cell again."
        )
