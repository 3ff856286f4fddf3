"""Run code that has not been read, in a process of its own with limits.

What every POSIX system has: a process group that is killed as a whole, and limits of time, memory,
open files, size of files and number of processes. Where Linux allows it, also a filter that refuses
sockets, and namespaces: without network, without a hold on other processes, and with a file system
that is read-only except for an empty folder. `isolate` says what the system did not allow.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import resource
import select
import shutil
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

SECONDS = 5  # of the processor, for one exercise
SECONDS_ON_THE_CLOCK = 60  # for code that sleeps; far more, as the machine may be busy
BYTES_OF_MEMORY = 1_000_000_000  # on top of what the grader itself uses
BYTES_OF_A_FILE = 1_000_000
MEGABYTES_OF_THE_FOLDER = 16
BYTES_OF_RESULTS = 4_000_000
NOBODY = 65534

# Each protection that a system may lack, as people should read it.
NETWORK = "the network is not cut off"
PROCESSES = "code can end your other processes"
SOCKETS = "code can talk to programs of this machine that listen in a file, such as Docker"
FILES = "code can write to other folders with your rights"
FORKS = "the number of processes is not limited, only their time"

# From Linux's headers; the numbers of these system calls are the same on all processors.
_NEW_FILES, _NEW_IPC, _NEW_USER = 0x00020000, 0x08000000, 0x10000000
_NEW_PROCESSES, _NEW_NETWORK = 0x20000000, 0x40000000
_MS_REC_PRIVATE, _MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = (
    0x44000,
    442,
    -100,
    0x8000,
    1,
)
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _CAPABILITY_VERSION, _MAY_READ = 1, 8, 0x20080522, 1 << 2

# What a submission may not ask Linux for, by processor: sockets, which also lead to programs of
# this machine such as D-Bus, and mounts, whose memory no limit counts. The numbers are those of
# socket, mount, unshare, io_uring_setup and fsopen.
_REFUSED = {
    "x86_64": (0xC000003E, (41, 165, 272, 425, 430)),
    "aarch64": (0xC00000B7, (198, 40, 97, 425, 430)),
}


@dataclass(frozen=True)
class Result:
    """What a process left behind.

    Attributes:
        content: what it wrote.
        problem: "" if it ended by itself with exit code 0, otherwise what happened, in a few words.
        details: the same in a sentence.
    """

    content: bytes
    problem: str = ""
    details: str = ""


def isolate(folder: Path, hidden: Sequence[Path] = ()) -> list[str]:
    """Put this process's future children into namespaces of their own, as far as allowed.

    The next child is the first process of its namespace: when it ends, all others in it do. Only
    `folder` can be written to from then on, and it is empty, as are the folders in `hidden`.

    Returns:
        The protections that are missing.
    """
    missing = [] if os.getuid() or _can_become_nobody() else [FORKS]
    if not _can_refuse_calls():
        missing.append(SOCKETS)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        spaces = _NEW_FILES | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK
        user, group = os.getuid(), os.getgid()
        if not (user == 0 and libc.unshare(spaces) == 0):
            _check(libc.unshare(_NEW_USER))  # in which everybody may have the others
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            _check(libc.unshare(spaces))
            if user == 0 and FORKS not in missing:  # root of a container cannot become nobody here
                missing.append(FORKS)
    except (OSError, AttributeError):  # forbidden, or not Linux
        return [*missing, NETWORK, PROCESSES, FILES]
    try:
        _check(libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))
        attributes = (ctypes.c_uint64 * 4)(_READ_ONLY)  # to set; to clear; propagation; user
        _check(libc.syscall(
            _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes)
        ))  # fmt: skip
        size = f"size={MEGABYTES_OF_THE_FOLDER}m,mode=777".encode()
        for place in filter(os.path.exists, hidden):
            kind = (b"tmpfs", b"tmpfs", 1) if place.is_dir() else (b"/dev/null", None, 0x1000)
            _check(libc.mount(kind[0], os.fsencode(place), kind[1], kind[2], None))
        _check(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, size))
    except OSError:
        missing.append(FILES)
    return missing


def in_first_process(work: Callable[[], None]) -> None:
    """After `isolate`: run `work` in the first process of the namespace, and wait for it."""
    die_with_parent()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        leave_after(work)
    os.waitpid(pid, 0)


def die_with_parent() -> None:
    """Let the system kill this process when its parent ends; only Linux can."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_after(work: Callable[[], None]) -> NoReturn:
    """Run `work` and end this process, whatever happens, without running anything else in it."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_limited(work: Callable[[int], None], folder: Path) -> Result:
    """Run `work` in a new process with limits, in an empty folder, and return what it wrote.

    Args:
        work: gets the file descriptor to write to. No other one is open in its process.
        folder: where the empty folder is made.
    """
    place = folder / f"run{time.monotonic_ns()}"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        leave_after(lambda: (_prepare(place, writer), work(3)))
    os.close(writer)
    content, is_late, is_long = bytearray(), False, False
    for piece in _pieces(reader, time.monotonic() + SECONDS_ON_THE_CLOCK):
        content += piece
        if is_long := len(content) > BYTES_OF_RESULTS:
            break
    else:
        is_late = not _has_ended(pid)
    status, seconds = _end(pid)
    os.close(reader)
    shutil.rmtree(place, ignore_errors=True)
    if is_long:
        how = "returns too much", f"It returned more than {BYTES_OF_RESULTS // 1_000_000} MB."
    elif is_late:
        used = f"{SECONDS_ON_THE_CLOCK} s on the clock, and used {seconds:.1f} s of the processor"
        how = "does not end" if seconds > 1 else "waits", f"It did not end within {used}."
    else:
        how = _how_it_ended(status, seconds)
    return Result(bytes(content), *how)


def _pieces(reader: int, deadline: float) -> Iterator[bytes]:
    """Yield what comes through a pipe until it is closed or the time is over."""
    while (left := deadline - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        piece = os.read(reader, 65536)
        if not piece:
            return
        yield piece


def _has_ended(pid: int) -> bool:
    """Return whether a child ends within a second, without taking its exit status."""
    for _ in range(100):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.01)
    return False


def _end(pid: int) -> tuple[int, float]:
    """Kill a process and all that it started; return its status and its processor time."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if os.getpid() == 1:  # of our own namespace, so these are all processes of the submission
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    with suppress(ChildProcessError):  # the first process inherits orphans
        while os.getpid() == 1:
            os.waitpid(-1, 0)
    return status, used.ru_utime + used.ru_stime


def _how_it_ended(status: int, seconds: float) -> tuple[str, str]:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and seconds < SECONDS - 1:
        return "is killed", "It was killed, perhaps for want of memory."
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return "does not end", f"It did not end within {SECONDS} s of processor time."
    if code < 0:
        return "crashes", f"It crashed Python ({signal.Signals(-code).name})."
    return ("ends the process", f"It ended Python with exit code {code}.") if code else ("", "")


def _prepare(place: Path, writer: int) -> None:
    """Give the process its limits and its empty folder, and close what it could disturb."""
    os.setsid()
    os.dup2(writer, 3)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    os.closerange(4, max(1024, silence + 1, writer + 1))
    os.chdir(place)
    os.environ.clear()
    os.environ.update(HOME=str(place), TMPDIR=str(place), PATH=os.defpath, OMP_NUM_THREADS="1")
    _give_up_rights()
    with suppress(OSError):  # `isolate` has said so
        _refuse_calls()
    die_with_parent()  # after the change of rights, which cancels it
    used = _memory_in_use()
    for name, soft, hard in (
        ("RLIMIT_CPU", SECONDS, SECONDS + 1),
        ("RLIMIT_AS", used + BYTES_OF_MEMORY, used + BYTES_OF_MEMORY),
        ("RLIMIT_FSIZE", BYTES_OF_A_FILE, BYTES_OF_A_FILE),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_NPROC", 0, 0),
    ):
        with suppress(ValueError, OSError):  # a lower limit may be set already
            resource.setrlimit(getattr(resource, name), (soft, hard))


def _can_refuse_calls() -> bool:
    """Try `_refuse_calls` in a process of its own."""

    def attempt() -> None:
        with suppress(OSError):
            _refuse_calls()
            os._exit(0)
        os._exit(1)

    pid = os.fork()
    if pid == 0:
        leave_after(attempt)
    return os.waitpid(pid, 0)[1] == 0


def _refuse_calls() -> None:
    """Let the calls in `_REFUSED` fail from now on, by a filter that cannot be removed (seccomp).

    Raises:
        OSError: the system has no such filter, or it is not known for this processor.
    """
    if platform.machine() not in _REFUSED:
        raise OSError(f"no filter is known for {platform.machine()}")
    processor, calls = _REFUSED[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    refuse, kill, allow = 0x00050000 | errno.EPERM, 0x80000000, 0x7FFF0000
    steps = [(load, 0, 0, 4), (equal, 1, 0, processor), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the other ABI of x86-64
    for call in calls:
        steps += [(equal, 0, 1, call), (give, 0, 0, refuse)]
    steps.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    _check(libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0))  # PR_SET_SECCOMP


def _memory_in_use() -> int:
    """Return the size of this process's address space; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _can_become_nobody() -> bool:
    """Return whether another user could still import what is installed."""
    with suppress(OSError):
        rights = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1]
        if int(rights, 16) & _MAY_READ:
            return True
    return _is_readable_by_all()


def _is_readable_by_all() -> bool:
    """Return whether everybody may read what is installed."""
    import torch

    import rlhf_toy

    files = [Path(os.path.realpath(module.__file__)) for module in (torch, rlhf_toy, os)]
    return all(
        path.stat().st_mode & (0o004 if path.is_file() else 0o001)
        for file in files
        for path in (file, *file.parents)
    )


def _give_up_rights() -> None:
    """As root become nobody, whom a limit of processes binds; else leave the namespaces' owner."""
    if os.getuid() == 0 and _can_become_nobody():
        with suppress(OSError):  # a container may not allow it
            _become_nobody()
            return
    with suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).unshare(_NEW_USER)


def _become_nobody() -> None:
    """Give up all rights of root, except for the one to read, if what is installed needs it."""
    wanted = (0,) if _is_readable_by_all() else (_MAY_READ, 0)  # if not there to keep, none is kept
    libc = ctypes.CDLL(None)
    os.setgroups([])
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION)
    for rights in wanted:
        if libc.capset(header, (ctypes.c_uint32 * 6)(rights, rights)) == 0:
            break


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
