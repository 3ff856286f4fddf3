"""Output paths and atomic writing: what cannot work is refused, what exists is never half lost."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from rlhf_toy.files import atomic_file, check_output


def write(path, content=b"new"):
    with atomic_file(path) as file:
        file.write(content)


@pytest.mark.parametrize(("text", "content"), [(True, "neu und schön\n"), (False, b"\x00\xff")])
def test_the_content_is_there_once_the_block_is_left(tmp_path, text, content):
    path = tmp_path / "file"
    with atomic_file(path, text=text) as file:
        file.write(content)
        assert not path.exists()
    assert (path.read_text("utf-8") if text else path.read_bytes()) == content


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path, text=True) as file:
        file.write("half of the n")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_permissions_are_those_of_any_file_or_of_the_old_one(tmp_path):
    plain, new = tmp_path / "plain", tmp_path / "new"
    plain.touch()
    write(new, b"")
    assert stat.S_IMODE(os.stat(new).st_mode) == stat.S_IMODE(os.stat(plain).st_mode)
    plain.chmod(0o600)
    write(plain, b"")
    assert stat.S_IMODE(os.stat(plain).st_mode) == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, exists):
    folder, link = tmp_path / "elsewhere", tmp_path / "link"
    folder.mkdir()
    target = folder / "target"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    assert check_output(link) == target
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def loop(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return "loop"


def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return "fifo"


def file(tmp_path):
    (tmp_path / "file").touch()
    return "file/sub"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: "missing/file", "there is no folder .*missing'; create it first"),
        (file, "there is no folder .*file'; create it first"),
        (lambda folder: "", "it is a directory"),
        (lambda folder: ".", "it is a directory"),
        (loop, "it is a device, pipe"),
        (fifo, "it is a device, pipe"),
        (lambda folder: "/dev/null", "'/dev/null': it is a device"),
        (lambda folder: "/dev/stdout", "'/dev/stdout': it is a device"),
        (lambda folder: "/proc/file", "give another path"),
        (lambda folder: "n" * 300, "File name too long"),
    ],
)
def test_a_path_that_cannot_work_is_refused_and_nothing_written(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    before = [(p, p.lstat().st_mode) for p in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match=f"cannot write to .*{words}"):
        check_output(path)
    with pytest.raises(ValueError, match="cannot write to"):
        write(path)
    assert [(p, p.lstat().st_mode) for p in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize("path", [None, 3, ["file"]])
def test_what_is_no_path_is_a_type_error(path):
    with pytest.raises(TypeError, match="must be a string or a path, got"):
        check_output(path)


def test_the_standard_output_of_a_program_is_not_replaced(tmp_path):
    path = tmp_path / "printed.txt"
    code = "from rlhf_toy.files import check_output; print('table'); check_output('/dev/stdout')"
    with path.open("wb") as printed:
        done = subprocess.run([sys.executable, "-c", code], stdout=printed, stderr=-1, text=True)
    assert "this program's own output" in done.stderr
    assert path.read_text() == "table\n"


def test_a_folder_or_a_file_without_write_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write to all
    with pytest.raises(ValueError, match="protected file"):
        check_output(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(ValueError, match="Permission denied; give another path"):
        check_output(tmp_path / "new")


def test_a_failed_write_names_the_file_and_keeps_the_old_content(tmp_path):
    # The limit on the size of files stands for a full disk.
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
import resource
from rlhf_toy.files import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
with atomic_file({str(path)!r}, text=True) as file:
    file.write("x" * 10_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *_, message = done.stderr.splitlines()
    assert message.startswith("OSError: ") and message.endswith(f"File too large: '{path}'")
    assert "any old content is kept" in message
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def killed_while_writing(path):
    """Writes in another process, which is killed before its new file takes the old one's place."""
    code = f"""
import os
from rlhf_toy.files import atomic_file
os.replace = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)})
with atomic_file({str(path)!r}) as file:
    file.write(b"never seen")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_at_the_next_write(tmp_path):
    path = tmp_path / "run.ck"
    path.write_bytes(b"old")
    killed_while_writing(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    write(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"run.ck": b"new"}


def test_files_of_running_processes_other_targets_and_other_names_stay(tmp_path):
    killed_while_writing(tmp_path / "other.ck")
    mine = f".run.ck.{os.getpid()}.0123abcd"
    parents = f".run.ck.{os.getppid()}.0123abcd"
    for name in (mine, parents, ".run.ck.notes", ".run.ck.999999999.txt", "run.ck.999.0123abcd"):
        (tmp_path / name).touch()
    before = set(tmp_path.iterdir())
    assert len(before) == 6
    write(tmp_path / "run.ck")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "run.ck"}
