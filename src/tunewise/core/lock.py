"""Holds a folder or a file for one process; the kernel lets go when the process dies, however it dies.

A folder is held by its file `.lock`, which stays when the folder is released: removing a locked file would let two
processes hold two files of one name. `.lock-holder` beside it has the holder's pid, for the message to a second
process. A file that is appended to is held itself, so that nothing is left beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tunewise.core.errors import RequestError, unwritable
from tunewise.core.operating_system import lock_descriptor, read_only_flags

LOCK_FILES = (".lock", ".lock-holder")
_KERNEL_LOCKS = Path("/proc/locks")


@contextmanager
def lock(folder: Path, shown: Path | None = None) -> Iterator[None]:
    """Hold a folder, which is created if it is missing.

    Args:
        folder: the folder.
        shown: what messages call it; default: the folder.

    Raises:
        RequestError: a live process holds the folder (the message has its pid), or it cannot be locked.
        TunewiseError: the disk is full.
    """
    guard, holder = (folder / name for name in LOCK_FILES)
    held, place = FileLock(guard, timeout=0), shown or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        pid = None
        with suppress(OSError, ValueError):  # the pid only helps the user: failing to read it must not hide the error
            pid = int(holder.read_text())
        raise _in_use(place, pid) from None
    except OSError as error:
        raise unwritable(f"{place} cannot be locked", error, "choose another folder") from error
    try:
        with suppress(OSError):
            holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Hold a file, and yield a descriptor to read and truncate it; it is created empty if it is missing.

    A file that is still empty at the end is removed.

    Raises:
        RequestError: a live process holds it (the message has its pid), or it cannot be opened.
        TunewiseError: the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unwritable(f"{path} cannot be written", error, "choose another --out") from error
    try:
        try:
            lock_descriptor(descriptor)
        except BlockingIOError:
            raise _in_use(path, _holder_of(descriptor)) from None
        yield descriptor
        if not os.fstat(descriptor).st_size:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """Return the process that holds a folder, by the kernel's word where it gives it; None where none does.

    Elsewhere it is the process that the folder names, if that began before it was named. The number is 0 or less for a
    process that this one cannot see, as one in another container.
    """
    guard, named = (folder / name for name in LOCK_FILES)
    try:
        descriptor = os.open(guard, read_only_flags())
    except OSError:
        return None
    try:
        if _KERNEL_LOCKS.is_file():
            return _holder_of(descriptor)
    finally:
        os.close(descriptor)
    import psutil

    with suppress(OSError, ValueError, psutil.Error):
        pid = int(named.read_text()[:20])
        if psutil.Process(pid).create_time() < named.stat().st_mtime + 2:
            return pid
    return None


def remove_unused_folders(folders: Sequence[Path]) -> None:
    """Remove nested folders, innermost first, if the innermost one holds nothing but what `lock` left in it."""
    if folders and folders[0].is_dir() and {path.name for path in folders[0].iterdir()} <= {*LOCK_FILES}:
        for path in [*folders[0].iterdir()]:
            path.unlink()
        for folder in folders:
            with suppress(OSError):  # someone else has put something there
                folder.rmdir()


def _in_use(place: Path, pid: int | None) -> RequestError:
    return RequestError(
        f"{place} is in use by process {pid if pid is not None else 'unknown'}; wait for it, or choose another --out"
    )


def _holder_of(descriptor: int) -> int | None:
    """Return the pid that the kernel names as the holder of a file; None where it does not say."""
    inode = str(os.fstat(descriptor).st_ino)
    with suppress(OSError, ValueError):
        for line in _KERNEL_LOCKS.read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> <start> <end>
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return int(words[4])
    return None
