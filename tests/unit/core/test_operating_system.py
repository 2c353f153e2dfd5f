"""What differs between POSIX and Windows lies in one module, whose Windows side runs here on stand-ins."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tunewise
from tunewise.core import operating_system

SOURCE = Path(tunewise.__file__).parent
POSIX_MODULES = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "crypt", "msvcrt", "winreg"}
POSIX_CALLS = {"fork", "forkpty", "killpg", "setsid", "getpgid", "setpgid", "getuid", "geteuid", "getgid", "chown"}
POSIX_CALLS |= {"pread", "pwrite", "mkfifo", "mknod", "statvfs", "uname", "nice", "wait3", "wait4", "waitid"}
POSIX_CALLS |= {"posix_fallocate", "posix_fadvise", "posix_spawn", "sched_setaffinity", "fdatasync", "fchmod"}
PORTABLE_SIGNALS = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}


def posix_only(tree):
    """What a module uses that only one kind of system has: (line, name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in POSIX_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            yield node.lineno, node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name, owner = node.attr, node.value.id
            foreign_signal = owner == "signal" and name.startswith("SIG") and name not in PORTABLE_SIGNALS
            if foreign_signal or (owner == "os" and (name in POSIX_CALLS or name in ("O_NOFOLLOW", "O_NONBLOCK"))):
                yield node.lineno, f"{owner}.{name}"
        elif isinstance(node, ast.Attribute) and node.attr == "add_signal_handler":
            yield node.lineno, node.attr


def test_only_one_module_calls_what_one_system_has():
    uses = {}
    for path in SOURCE.rglob("*.py"):
        found = list(posix_only(ast.parse(path.read_text("utf-8"))))
        if found:
            uses[path.relative_to(SOURCE).as_posix()] = found
    assert set(uses) == {"core/operating_system.py"}, uses


def test_the_search_finds_what_it_is_for():
    text = "import fcntl, os, signal\nos.fork()\nsignal.SIGKILL\nsignal.SIGTERM\nfrom resource import getrusage\n"
    assert sorted(name for _, name in posix_only(ast.parse(text))) == ["fcntl", "os.fork", "resource", "signal.SIGKILL"]


@pytest.fixture
def windows(monkeypatch):
    """Windows as far as a Linux machine can be it: its modules are stand-ins that remember how they were called."""
    calls = []

    def locking(descriptor, mode, count):
        calls.append((mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)))
        if windows.locked:
            raise PermissionError(13, "Permission denied")

    windows = SimpleNamespace(calls=calls, locked=False)
    monkeypatch.setattr(operating_system, "WINDOWS", True)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    return windows


def test_a_lock_on_windows_is_far_behind_the_end(windows, tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    operating_system.lock_descriptor(descriptor)
    assert windows.calls == [(2, 1, (1 << 31) - 2)] and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    windows.locked = True
    with pytest.raises(BlockingIOError):
        operating_system.lock_descriptor(descriptor)
    os.close(descriptor)


def test_a_folder_is_not_flushed_on_windows(windows, tmp_path):
    operating_system.sync_folder(tmp_path / "missing")  # would be an error elsewhere
    assert not operating_system.was_killed(-9)


def test_a_process_ends_with_its_children_on_windows_too(windows):
    """psutil does it there, and runs here."""
    sleep = "import time; time.sleep(99)"
    starts = f"subprocess.Popen([sys.executable, '-c', '{sleep}'])"
    text = f"import subprocess, sys; print({starts}.pid, flush=True); {sleep}"
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    operating_system.kill_with_children(process)
    assert process.wait() != 0
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":  # dead; nobody has asked for its exit code yet
                raise ProcessLookupError


def test_a_file_is_reserved_without_posix_too(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        operating_system.reserve(file.fileno(), (1 << 20) + 5)
    assert (tmp_path / "file").stat().st_size == (1 << 20) + 5


def test_flags_that_a_system_has_not_are_left_out(monkeypatch):
    with_all = operating_system.read_only_flags()
    assert with_all & os.O_NOFOLLOW and with_all & os.O_NONBLOCK
    no_follow = os.O_NOFOLLOW
    monkeypatch.delattr(os, "O_NOFOLLOW")
    assert operating_system.read_only_flags() == with_all & ~no_follow
