"""`python -m rlhf_toy`."""

import subprocess
import sys

from rlhf_toy.course.commands.command_line import COMMANDS


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlhf_toy", *arguments], capture_output=True, text=True
    )


def test_the_help_names_every_command():
    done = _run("--help")
    assert done.returncode == 0
    for name, module in COMMANDS.items():
        assert f"\n    {name} " in done.stdout
        assert module.__doc__.splitlines()[0].split()[0] in done.stdout


def test_the_exit_code_is_the_command_s():
    assert _run("no-such-command").returncode == 2
