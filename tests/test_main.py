"""`python -m rlhf_toy`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlhf_toy import __main__ as command_line
from rlhf_toy.course.commands.usage import UsageError


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlhf_toy", *arguments], capture_output=True, text=True
    )


def test_the_help_names_every_command():
    done = _run("--help")
    assert done.returncode == 0
    for name, module in command_line.COMMANDS.items():
        assert f"\n    {name} " in done.stdout
        assert module.__doc__.splitlines()[0].split()[0] in done.stdout


def test_the_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom rlhf_toy.__main__ import build_parser\nbuild_parser()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["publish"], ["doctor", "--x"]])
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: rlhf_toy")


@pytest.mark.parametrize(("error", "code"), [(UsageError("no such thing"), 2), (None, 1)])
def test_a_command_s_usage_error_is_one_line_without_traceback(monkeypatch, capsys, error, code):
    def run(args):
        if error:
            raise error
        return 1

    monkeypatch.setattr(command_line.COMMANDS["doctor"], "run", run)
    assert command_line.main(["doctor"]) == code
    assert capsys.readouterr().err == ("rlhf_toy: error: no such thing\n" if error else "")


def test_a_mistake_in_the_code_is_not_taken_for_the_user_s(monkeypatch):
    def run(args):
        raise ValueError("a bug")

    monkeypatch.setattr(command_line.COMMANDS["doctor"], "run", run)
    with pytest.raises(ValueError, match="a bug"):
        command_line.main(["doctor"])


def test_a_failed_write_is_one_line_with_the_file_and_exit_code_1(monkeypatch, capsys):
    def run(args):
        raise OSError(28, "No space left on device", "out.json")

    monkeypatch.setattr(command_line.COMMANDS["doctor"], "run", run)
    assert command_line.main(["doctor"]) == 1
    message = "rlhf_toy: error: [Errno 28] No space left on device: 'out.json'\n"
    assert capsys.readouterr().err == message
