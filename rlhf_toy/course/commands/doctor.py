"""Check the environment, and suggest a fix for whatever does not work."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from rlhf_toy.course.setup import dependencies, installed_version

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        status: `OK`, `WARN` or `FAIL`.
        text: one line.
        fix: a command that fixes it, or None if there is nothing to fix.
    """

    status: str
    text: str
    fix: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--notebooks",
        type=Path,
        default=Path("notebooks"),
        metavar="DIR",
        help="the folder of the notebooks (default: notebooks)",
    )


def run(args: argparse.Namespace) -> int:
    """Run every check and print what it found.

    Returns:
        0 if nothing failed, 1 otherwise.
    """
    findings = [finding for check in CHECKS for finding in check(args.notebooks)]
    for finding in findings:
        print(f"{finding.status:<5} {finding.text}")
        if finding.fix:
            print(f"      fix it with: {finding.fix}")
    failures = sum(finding.status == FAIL for finding in findings)
    warnings = sum(finding.status == WARN for finding in findings)
    print(
        f"\n{failures} failures, {warnings} warnings" if failures or warnings else "\nall is well"
    )
    return 1 if failures else 0


def check_python(_: Path) -> Iterator[Finding]:
    """Check that the package supports this version of Python."""
    version = Version(".".join(map(str, sys.version_info[:3])))
    needed = SpecifierSet(metadata.metadata("rlhf_toy")["Requires-Python"])
    if version in needed:
        yield Finding(OK, f"Python {version}")
    else:
        yield Finding(
            FAIL,
            f"Python {version} (needed: {needed})",
            "make clean; make lab PYTHON=python3.11  # or any newer Python",
        )


def check_dependencies(_: Path) -> Iterator[Finding]:
    """Check that every dependency is installed in a supported version."""
    for dependency in dependencies():
        fix = _pip_install(str(dependency.requirement))
        if dependency.is_missing:
            yield Finding(FAIL, str(dependency), fix)
        elif dependency.is_untested:
            yield Finding(WARN, f"{dependency}: newer than the versions tested", fix)
        else:
            yield Finding(OK, str(dependency))


def check_torch(_: Path) -> Iterator[Finding]:
    """Check that torch computes and differentiates, and say on which device."""
    reinstall = _pip_install("--force-reinstall torch")
    try:
        import torch

        from rlhf_toy.training import pick_device

        device = pick_device()
        x = torch.arange(3.0, device=device, requires_grad=True)
        (x @ x).backward()
        right = x.grad.tolist() == [0.0, 2.0, 4.0]
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(FAIL, f"torch does not compute: {_first_line(error)}", reinstall)
        return
    if not right:
        yield Finding(FAIL, f"torch computes wrong gradients on {device}", reinstall)
    else:
        yield Finding(OK, f"torch computes on {device}; CPU threads: {torch.get_num_threads()}")


def check_jupyter(_: Path) -> Iterator[Finding]:
    """Check that notebooks can be opened, run and tested."""
    for name, purpose in (
        ("jupyterlab", "to open the notebooks"),
        ("nbval", "to test the notebooks"),
    ):
        version = installed_version(name)
        if version is None:
            yield Finding(FAIL, f"no {name} ({purpose})", _pip_install("jupyter nbval"))
        else:
            yield Finding(OK, f"{name} {version} ({purpose})")


def check_kernel(_: Path) -> Iterator[Finding]:
    """Check that the kernel `python3`, which the notebooks use, is this Python."""
    install = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        yield Finding(FAIL, "no jupyter kernel python3", _pip_install("jupyter"))
        return
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Finding(FAIL, "no jupyter kernel python3", install)
        return
    # A bare name means the Python that starts the kernel.
    if Path(command).name == command or Path(command) == Path(sys.executable):
        yield Finding(OK, "jupyter kernel python3 is this Python")
    else:
        yield Finding(
            WARN,
            f"jupyter kernel python3 is another Python, {command}",
            f"{sys.executable} -m jupyter kernelspec remove python3",
        )


def check_folder(_: Path) -> Iterator[Finding]:
    """Check that the working folder can be written to."""
    try:
        with tempfile.TemporaryFile(dir="."):
            yield Finding(OK, "this folder can be written to")
    except OSError as error:
        yield Finding(
            FAIL, f"this folder cannot be written to: {error.strerror}", "cd ~  # or chmod u+w ."
        )


def check_notebooks(folder: Path) -> Iterator[Finding]:
    """Check that the notebooks were written for the installed version of the package."""
    installed = metadata.version("rlhf_toy")
    if not os.path.isdir(folder):  # a notebook runs this from its own folder
        folder = Path()
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        yield Finding(WARN, "no notebooks here", "cd into the course's folder")
        return
    others = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            others.append(f"{path.name} (cannot be read: {_first_line(error):.100})")
            continue
        # In the file the quotes of the cell's source are escaped.
        stamp = re.search(r'REPO, VERSION = .*?, \\"([^"\\]*)\\"', text)
        if stamp is None or stamp[1] != installed:
            others.append(f"{path.name} ({stamp[1] if stamp else 'no version'})")
    if others:
        yield Finding(
            FAIL,
            f"notebooks not written for rlhf_toy {installed}: {', '.join(others)}",
            f"{sys.executable} -m rlhf_toy publish --repo {_address()}",
        )
    else:
        yield Finding(OK, f"the notebooks here ({len(paths)}) are for rlhf_toy {installed}")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    check_python,
    check_dependencies,
    check_torch,
    check_jupyter,
    check_kernel,
    check_folder,
    check_notebooks,
)


def _pip_install(what: str) -> str:
    """Return the command that installs something for this Python."""
    quoted = what if re.fullmatch(r"[\w -]+", what) else f'"{what}"'
    return f"{sys.executable} -m pip install {quoted}"


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _address() -> str:
    """Return the course's address from the metadata of the installed package."""
    urls = metadata.metadata("rlhf_toy").get_all("Project-URL") or []
    return next((url.split(", ", 1)[1] for url in urls if url.startswith("Repository, ")), "URL")
