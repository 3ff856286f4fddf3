"""Write files safely: check a path before the work, then replace the old content in one step."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO


def check_output(path: str | os.PathLike) -> Path:
    """Return the file that writing to `path` creates or replaces, with all links resolved.

    Call it before the work whose result goes to `path`. It creates and removes a temporary file
    beside the target, because only this shows that the folder can be written to.

    Raises:
        TypeError: not a string or a path.
        ValueError: a directory, a device, a pipe, the standard output or error of this process, a
            file without write permission, or a folder that is missing or cannot be written to.
    """
    if not isinstance(path, (str, os.PathLike)):  # not by `checks`, which imports torch
        raise TypeError(f"an output path must be a string or a path, got {path!r:.80}")
    target = Path(os.path.realpath(path))
    own_output = map(os.path.realpath, ("/dev/stdout", "/dev/stderr"))
    is_file = os.path.isfile(target) and os.access(target, os.W_OK)
    if os.path.isdir(target):
        problem = "it is a directory; give the name of a file"
    elif (os.path.lexists(target) and not is_file) or str(target) in own_output:
        problem = "it is a device, pipe, protected file or this program's own output; give a file"
    elif not os.path.isdir(target.parent):
        problem = f"there is no folder {str(target.parent)!r:.300}; create it first"
    else:
        try:
            _remove_leftovers(target)
            trial = _temporary(target)
            trial.touch()
            trial.unlink()
            return target
        except OSError as error:
            problem = f"{error.strerror}; give another path"
    raise ValueError(f"cannot write to {str(path)!r:.300}: {problem}")


@contextmanager
def atomic_file(path: str | os.PathLike, text: bool = False) -> Iterator[IO]:
    """Open a buffer in memory whose content replaces `path` when the block ends without an error.

    Readers of `path` see the old content or the new, never a part, even after a power cut. A link
    stays a link: its target is replaced.

    Args:
        path: the file; its folder must exist.
        text: whether to write text (UTF-8) or bytes.

    Raises:
        TypeError, ValueError: a path that cannot be written to, see `check_output`.
        OSError: writing failed, for example on a full disk. The old content is kept.
    """
    target = check_output(path)
    buffer = io.StringIO() if text else io.BytesIO()
    yield buffer
    content = buffer.getvalue()
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if text else content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        os.replace(temporary, target)
    except OSError as error:
        reason = f"could not write the file, any old content is kept: {error.strerror}"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{token_hex(4)}")


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of this target whose process was killed while it wrote them."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d{{1,9}})\.[0-9a-f]{{8}}")
    with suppress(OSError):  # they may be another user's
        for match in filter(None, map(pattern.fullmatch, os.listdir(target.parent))):
            if os.name == "posix" and not _is_running(int(match[1])):
                target.with_name(match[0]).unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except OSError as error:  # without the right to send signals, the process is still there
        return not isinstance(error, ProcessLookupError)
    return True
