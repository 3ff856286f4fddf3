"""Atomic writing: the old content or the new, never a part."""

import os
import stat

import pytest

from rlhf_toy.files import atomic_file


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
    with atomic_file(new) as file:
        file.write(b"")
    assert stat.S_IMODE(os.stat(new).st_mode) == stat.S_IMODE(os.stat(plain).st_mode)
    plain.chmod(0o600)
    with atomic_file(plain) as file:
        file.write(b"")
    assert stat.S_IMODE(os.stat(plain).st_mode) == 0o600


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"), atomic_file(tmp_path / "no" / "file"):
        pass
