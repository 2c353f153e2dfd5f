"""Asks of the operating system what POSIX and Windows do differently; nothing else calls what only one of them has.

On Windows a lock is on a byte far behind the end of a file, since others cannot read a locked byte there; a folder
cannot be flushed; and a process that is ended has no signal.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

WINDOWS = os.name == "nt"
_FAR = (1 << 31) - 2  # the byte that stands for a file in a lock on Windows
_READING = threading.Lock()  # where a read is two calls


def processor_name() -> str:
    """Return the processor's model, such as "AMD EPYC 7B13", or its architecture where the system does not name it."""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def lock_descriptor(descriptor: int) -> None:
    """Lock an open file for this process, without waiting; the lock ends with the descriptor.

    Raises:
        BlockingIOError: another process holds it.
    """
    if WINDOWS:
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_only_flags() -> int:
    """Return the flags to open a file that may be hostile: no link is followed, and a pipe does not block.

    Where the system has no such flags, 0 takes their place, and what was opened is checked all the same.
    """
    flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    return os.O_RDONLY | sum(getattr(os, name, 0) for name in flags)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that names in it survive a power failure; Windows writes them through by itself."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, nbytes: int) -> None:
    """Give a file its size and its blocks, so that no later write to its mapping can find the disk full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
        return
    block = bytes(1 << 20)
    for start in range(0, nbytes, len(block)):
        os.write(descriptor, block[: nbytes - start])


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read a part of a file, also beside other threads and processes that read it through the same descriptor."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _READING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def peak_resident_bytes() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    if WINDOWS:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def end_at_once() -> None:
    """End this process as if the power had failed: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGTERM if WINDOWS else signal.SIGKILL)


def was_killed(exit_code: int) -> bool:
    """Return whether a child's exit code says that SIGKILL ended it; Windows has no such thing."""
    return not WINDOWS and exit_code == -signal.SIGKILL


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to_cores(cores: Collection[int]) -> None:
    """Let this process, and what it starts, run on these cores only; nothing happens where that cannot be said."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def can_help() -> bool:
    """Return whether a process can be divided into two that share what is in memory."""
    return hasattr(os, "fork")


class Helper:
    """A copy of this process that does one thing and ends; it shares the memory that neither of them changes.

    It runs no other thread, so what it does must not wait for one.

    Args:
        work: what it does; an error ends it without a word, and the caller does the work itself.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._ended, parent = False, os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _die_with(parent)
                work()
                code = 0
            finally:
                os._exit(code)

    def wait_for(self, path: Path) -> bool:
        """Wait until it has made a file; False if it ended without."""
        while not path.exists():
            if self._has_ended():
                return path.exists()
            time.sleep(0.01)
        return True

    def _has_ended(self) -> bool:
        if not self._ended:
            self._ended = os.waitpid(self._pid, os.WNOHANG)[0] != 0
        return self._ended

    def end(self) -> None:
        """End it, if it has not."""
        if not self._has_ended():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._ended = True


def _die_with(parent: int) -> None:
    """Have this process end when the one that started it does, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_tree(pid: int) -> None:
    """End a process and everything that it started, whatever sessions they are in."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()


def end_group_at_once() -> None:
    """End this process as `end_at_once` does, and those with it that are in the process group that it leads."""
    if not WINDOWS and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    end_at_once()


def kill_with_children(process: subprocess.Popen[str]) -> None:
    """End a process that was started in a session of its own, and everything that it started."""
    if WINDOWS:
        kill_tree(process.pid)
        process.kill()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
