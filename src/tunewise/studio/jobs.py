"""Work that takes long, each a process of the command line itself: started, watched, stopped and found again.

A job runs in a session of its own, so that it outlives the page. Its folder holds what it was started with
(`job.json`) and what it printed (`stdout`, `stderr`); a page that is started again reads all of it from there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tunewise.core import artifact_reader, artifact_writer
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.json_record import JsonObject, JsonRecord, nullable
from tunewise.core.text import visible

State = Literal["running", "done", "failed", "stopped"]
_KEPT = 60  # folders of jobs that are over
_TAIL = 1 << 16  # bytes of what it printed that are looked at
_OUTPUT = 1 << 26  # bytes of a result at most
_PROGRESS = re.compile(r"\[\d\d:\d\d:\d\d\] (.*)")
_ENDED = re.compile(r"(?:interrupted|stopped by SIG\w+); to continue: ")


@dataclass(frozen=True, kw_only=True)
class JobRecord(JsonRecord):
    """Holds what a job was started with; `born` is when the system says that its process began."""

    kind: str
    words: tuple[str, ...]
    target: str | None = nullable()
    pid: int
    born: float
    started: float


@dataclass
class Job:
    """A process of the command line, running or over.

    Attributes:
        folder: where it is recorded; its name identifies it.
        record: what it was started with.
        process: the process, where this page has started it.
    """

    folder: Path
    record: JobRecord
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Tell whether its process lives; a number that the system has given to another process does not count."""
        if self.process is not None:
            return self.process.poll() is None
        return lives(self.record.pid, self.record.born)

    @property
    def state(self) -> State:
        """Return how it stands; what is over was a success if its process or its output says so."""
        if self.is_running:
            return "running"
        if _ENDED.search(self._tail("stderr")):
            return "stopped"
        code = self.process.returncode if self.process is not None else None
        if code is not None:
            return "done" if code == 0 else "stopped" if code < 0 else "failed"
        return "failed" if self.error else "done"

    @property
    def progress(self) -> str:
        """Return what it reported last."""
        lines = _PROGRESS.findall(self._tail("stderr"))
        return str(lines[-1]) if lines else ""

    @property
    def messages(self) -> list[str]:
        """Return what it said besides its progress."""
        lines = self._tail("stderr").splitlines()
        return [line for line in lines if line.strip() and not _PROGRESS.fullmatch(line)]

    @property
    def error(self) -> str:
        """Return why it failed, as its own last sentence; empty if it gave no reason."""
        problems = [line for line in self.messages if line.startswith(("wrong request: ", "failed: ", "Usage:"))]
        return problems[-1].removeprefix("wrong request: ").removeprefix("failed: ") if problems else ""

    @property
    def problem(self) -> str:
        """Return why it failed, with something to say in any case."""
        last = self.messages[-1:] or ["it ended without a word"]
        return self.error or last[0]

    def output(self) -> object:
        """Read the JSON that it printed; None if there is none."""
        with suppress(ArtifactError, OSError, ValueError):
            return json.loads(artifact_reader.read_plain_file(self.folder / "stdout", _OUTPUT))
        return None

    def result(self) -> JsonObject | None:
        """Read the JSON object that it printed; None if there is none."""
        value = self.output()
        return value if isinstance(value, dict) else None

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does in a terminal; what runs can be continued."""
        if self.is_running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.record.pid, signal.SIGTERM)

    def _tail(self, name: str) -> str:
        with suppress(OSError), (self.folder / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            return visible(file.read().decode("utf-8", "replace").replace("\r", ""))
        return ""


def lives(pid: int, born: float | None = None) -> bool:
    """Tell whether a process lives; with `born`, whether it is the one that began then."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (born is None or abs(process.create_time() - born) < 2)
    except (psutil.Error, ValueError):  # the latter for what is no number of a process
        return False


class Jobs:
    """The jobs of a workspace, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the jobs that another page, or this one before it was started again, has left."""
        for path in sorted(self.folder.glob("*/job.json")):
            if path.parent.name not in self._jobs:
                with suppress(ArtifactError):
                    record = JobRecord.from_json(artifact_reader.read_json(path), path)
                    self._jobs[path.parent.name] = Job(path.parent, record)

    def all(self, kind: str | None = None, target: Path | None = None) -> list[Job]:
        """Return the jobs of a kind, or for a folder, newest first."""
        wanted = None if target is None else str(target.resolve())
        chosen = [
            job
            for job in self._jobs.values()
            if (kind is None or job.record.kind == kind) and wanted in (None, job.record.target)
        ]
        return sorted(chosen, key=lambda job: -job.record.started)

    def latest(self, kind: str, target: Path | None = None) -> Job | None:
        """Return the newest job of a kind, or None."""
        return next(iter(self.all(kind, target)), None)

    def start(
        self,
        kind: str,
        words: Sequence[str],
        *,
        target: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Start the command line with these words, without a shell and in a session of its own.

        Args:
            kind: what it is for.
            words: the command and its arguments, without `tunewise`.
            target: the folder that it is about.
            environment: variables that it gets in addition.

        Raises:
            SettingError: a word cannot be given to a command.
        """
        if "\0" in "".join(words):
            raise SettingError("a NUL character is in what was given; type it again")
        self._prune()
        folder = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, mode=0o700)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunewise.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            born = psutil.Process(process.pid).create_time()
        except psutil.Error:
            born = time.time()
        record = JobRecord(
            kind=kind,
            words=tuple(words),
            target=str(target.resolve()) if target is not None else None,
            pid=process.pid,
            born=born,
            started=time.time(),
        )
        artifact_writer.write_json(folder / "job.json", record.to_json())
        job = Job(folder, record, process)
        self._jobs[folder.name] = job
        return job

    def end(self, chosen: Callable[[Job], bool]) -> None:
        """Stop the running jobs that are chosen."""
        for job in self._jobs.values():
            if chosen(job):
                job.stop()

    def _prune(self) -> None:
        over = [job for job in self.all() if not job.is_running]
        for job in over[_KEPT:]:
            shutil.rmtree(job.folder, ignore_errors=True)
            self._jobs.pop(job.folder.name, None)
