"""Runs a command on several devices of this machine: one process for each, of which the first prints and writes.

The processes find one another by the variables that torchrun sets, so that the same command also runs under torchrun or
a cluster's launcher; then `--devices` is left out. If one of them ends badly, or gives no sign of life, all are ended:
the others would wait for it for ever. They are also ended if nothing goes on in any of them, as where one hangs in a
driver or on a disk that is gone, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunewise.cli.console import echo, how_to_continue
from tunewise.cli.signs_of_life import HEARTBEAT, SILENCE, STALLED, Unchanged, progress_beside, silent, stalled
from tunewise.core.errors import SettingError
from tunewise.core.text import show

_LAUNCHER = "TUNEWISE_RANK_OF"  # the launcher's process number, in the environment of the processes it started
_GRACE = 3.0  # seconds that the others get to end by themselves
LOST = 75  # the exit code of a process that ends because another one did, for which the launcher speaks


def is_rank() -> bool:
    """Whether this process is one of several that a launcher started for one run."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_launched() -> bool:
    """Whether `run_on` started this process."""
    return _LAUNCHER in os.environ


def gpu_memory() -> float | None:
    """Return the bytes of memory of the smallest GPU that is seen here; None where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return min((float(torch.cuda.mem_get_info(number)[1]) for number in range(count)), default=None)


def run_on(devices: int, further: Sequence[str] = ()) -> None:
    """Run this very command once for each device, and exit as it did; return at once where there is nothing to start.

    Args:
        devices: how many.
        further: words that the command gets besides its own.

    Raises:
        SettingError: the number makes no sense, or a launcher has started several processes already.
    """
    if devices < 1:
        raise SettingError(f"devices is {devices} but must be at least 1")
    if is_launched() or devices == 1:
        return
    if is_rank():
        raise SettingError(
            f"--devices is {devices}, but {os.environ['WORLD_SIZE']} processes were started already; leave it out "
            "under torchrun"
        )
    _require_devices(devices)
    with tempfile.TemporaryDirectory(prefix="tunewise-") as folder:
        sys.exit(_Run(devices, Path(folder), further).watch())


def _require_devices(devices: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < devices:
        raise SettingError(f"--devices is {devices}, but torch sees {torch.cuda.device_count()} GPUs here")


class _Run:
    """The processes of one run; what all but the first print is kept in files."""

    def __init__(self, devices: int, folder: Path, further: Sequence[str]) -> None:
        self.folder, self._further = folder, further
        port = _free_port()
        self.processes = [self._start(rank, devices, port) for rank in range(devices)]
        self._signs, self._doings = Unchanged(), Unchanged()

    def _start(self, rank: int, devices: int, port: int) -> subprocess.Popen[bytes]:
        """Start one process; the number of threads is shared out where the user did not choose it."""
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // devices)),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            _LAUNCHER: str(os.getpid()),
            HEARTBEAT: str(self._pulse(rank)),
        }
        self._pulse(rank).touch()
        self._progress(rank).touch()
        with contextlib.ExitStack() as files:
            stdout = subprocess.DEVNULL if rank else None
            stderr = files.enter_context(self._errors(rank).open("wb")) if rank else None
            command = [sys.executable, "-m", "tunewise.cli", *sys.argv[1:], *self._further]
            return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)

    def _pulse(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.alive"

    def _progress(self, rank: int) -> Path:
        return progress_beside(self._pulse(rank))

    def _errors(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    def watch(self) -> int:
        """Wait for all processes, end them all when one fails, and return the exit code of the run."""
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._watch()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> int:
        while True:
            codes = [process.poll() for process in self.processes]
            if all(code == 0 for code in codes):
                return 0
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                return self._ended(failed)
            running = [rank for rank, code in enumerate(codes) if code is None]
            signs = self._signs.seconds({rank: _touched(self._pulse(rank)) for rank in running})
            if quiet := [rank for rank in running if signs[rank] > SILENCE]:
                return _failed(silent(quiet[0], len(codes)))
            doings = self._doings.seconds({rank: _touched(self._progress(rank)) for rank in running})
            if min(doings.values()) > STALLED:
                return _failed(stalled(len(codes)))
            time.sleep(0.1)

    def _ended(self, failed: list[int]) -> int:
        """Say why the run ends, unless the first process has said so itself; return its exit code."""
        deadline = time.monotonic() + _GRACE
        while self.processes[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first = self.processes[0].poll()
        killed = [rank for rank, process in enumerate(self.processes) if (process.poll() or 0) < 0]
        if first is not None and first > 0 and not killed and first != LOST:
            return first
        rank = next((rank for rank in (*killed, *failed) if self.processes[rank].returncode != LOST), failed[0])
        code = self.processes[rank].returncode
        how = f"was {_killed(code)}" if code < 0 else f"ended: {self._last_words(rank)}"
        return _failed(f"failed: device {rank} {how}; all were stopped; to continue: {how_to_continue()}")

    def _last_words(self, rank: int) -> str:
        lines = self._errors(rank).read_text("utf-8", errors="replace").strip().splitlines() if rank else []
        return show(lines[-1], 500) if lines else "nothing was said"

    def _pass_on(self, number: int, _: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()


def _failed(sentence: str) -> int:
    echo(sentence, err=True)
    return 1


def _touched(path: Path) -> float:
    return path.stat().st_mtime


def _killed(code: int) -> str:
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended with code {code}"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
