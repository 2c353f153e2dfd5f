"""The comparisons of a folder, read from what `tunewise compare` leaves there: finished, stopped or running."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewise.core.artifact_reader import read_beginning
from tunewise.core.errors import ArtifactError
from tunewise.core.lock import holder
from tunewise.core.text import is_encodable
from tunewise.results.report.charts import Chart, Series, View
from tunewise.results.schema import Comparison
from tunewise.studio.jobs import Job, Jobs

State = Literal["running", "finished", "stopped", "failed"]
_SIGNS = ("compare.json", "trials", "text.json", "budget.json")  # any of which makes a folder a comparison
_TRIAL = re.compile(r"(?P<technique>.+)-seed(?P<seed>\d+)-[0-9a-f]{12}")
_METRICS = 1 << 22  # bytes of a running trial's metrics that are read
_POINTS = 200  # of a running trial's curve
LIVE = "curves"  # the chart that a running trial is drawn into


@dataclass(frozen=True)
class LiveCurve:
    """Holds the training losses of a trial that is running."""

    technique: str
    seed: int
    steps: list[float]
    losses: list[float]

    @property
    def label(self) -> str:
        """Return what it is called in the chart and in the table."""
        return f"{self.technique} (running)"


@dataclass(frozen=True)
class Run:
    """A comparison as its folder holds it now.

    Attributes:
        name: its folder, below the folder of comparisons.
        folder: where it lies.
        result: what it has found so far; None before its first row, or where that cannot be read.
        problem: why the result cannot be read, or why it failed.
        job: the process that this page started for it, if any.
        state: how it stands.
    """

    name: str
    folder: Path
    result: Comparison | None
    problem: str
    job: Job | None
    state: State

    @property
    def words(self) -> list[str]:
        """Return the words of its command; empty if nothing recorded them."""
        if self.job is not None:
            return list(self.job.record.words)
        command = self.result.command if self.result is not None else None
        return list(command[1:]) if command and command[1:2] == ("compare",) else []

    @property
    def data_words(self) -> list[str]:
        """Return the options that name its data, if this page has started it: a file's word is not followed."""
        words, found = list(self.job.record.words) if self.job is not None else [], list[str]()
        for place, word in enumerate(words):
            if word in ("--data", "--columns"):
                found += words[place : place + 2]
            elif word == "--skip-bad-rows":
                found.append(word)
        return found

    @property
    def may_continue(self) -> bool:
        """Whether the page may run its words again: those that it began with, and not those that a file says."""
        return self.state in ("stopped", "failed") and self.job is not None

    @property
    def asked(self) -> list[str]:
        """Return the techniques that it was started with, as far as its words name them."""
        words = self.words
        for place, word in enumerate(words[:-1]):
            if word in ("-t", "--techniques") and words[place + 1] != "all":
                return [name.strip() for name in words[place + 1].split(",") if name.strip()]
        rows = self.result.rows if self.result is not None else ()
        return [row.technique for row in rows]

    @property
    def waiting(self) -> list[str]:
        """Return the techniques that have no row yet."""
        done = {row.technique for row in self.result.rows} if self.result is not None else set()
        return [name for name in self.asked if name not in done]

    def adaptations(self) -> dict[str, Path]:
        """Return the folders of its adaptations that are there, by technique."""
        rows = self.result.scored if self.result is not None else []
        found = {row.technique: self.folder / row.adaptation for row in rows if row.adaptation}
        return {name: path for name, path in found.items() if path.is_dir() and _within(path, self.folder)}


class Runs:
    """The comparisons below one folder; a `compare.json` that has not changed is not read again."""

    def __init__(self, root: Path, jobs: Jobs) -> None:
        self.root, self.jobs = root, jobs
        self._read: dict[Path, tuple[tuple[int, int], Comparison | None, str]] = {}

    def all(self) -> list[Run]:
        """Return the comparisons, the one that changed last first."""
        folders = {path for path in self._folders() if not path.name.startswith(".")}
        folders |= {path for job in self.jobs.all("compare") if (path := self._own(job)) is not None}
        return [self.open(path) for path in sorted(folders, key=_changed, reverse=True)]

    def find(self, name: str) -> Run | None:
        """Return the comparison of a name, or None; a name cannot lead out of the folder."""
        folder = self.root / name
        if not name or not _within(folder, self.root) or not (folder.is_dir() or self.jobs.latest("compare", folder)):
            return None
        return self.open(folder)

    def open(self, folder: Path) -> Run:
        """Read the comparison in a folder."""
        result, problem = self._result(folder)
        job = self.jobs.latest("compare", folder)
        state: State = "stopped"
        if (job is not None and job.is_running) or holder(folder) is not None:
            state = "running"
        elif result is not None and _is_reported(folder):
            state = "finished"
        if state == "stopped" and job is not None and job.state == "failed":
            state, problem = "failed", job.problem
        return Run(folder.relative_to(self.root).as_posix(), folder, result, problem, job, state)

    def stop(self, run: Run) -> None:
        """Ask the process that runs a comparison to end, as Ctrl-C does; also where a terminal has started it."""
        if run.job is not None and run.job.is_running:
            run.job.stop()
        elif (pid := holder(run.folder)) is not None and pid > 0:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def _own(self, job: Job) -> Path | None:
        target = Path(job.record.target) if job.record.target else None
        if target is None or not _within(target, self.root):
            return None
        if not (target.is_dir() or job.is_running or job.state == "failed"):
            return None  # it was removed
        return self.root / target.resolve().relative_to(self.root.resolve())

    def _folders(self) -> list[Path]:
        with suppress(OSError):
            first = [path for path in self.root.iterdir() if path.is_dir() and not path.is_symlink()]
            second = [path for folder in first if not _is_comparison(folder) for path in _subfolders(folder)]
            # A name that is no Unicode cannot be shown, chosen, or given to a command.
            return [path for path in (*first, *second) if _is_comparison(path) and is_encodable(str(path))]
        return []

    def _result(self, folder: Path) -> tuple[Comparison | None, str]:
        path = folder / "compare.json"
        try:
            facts = path.stat()
        except OSError:
            return None, ""
        key = (facts.st_mtime_ns, facts.st_size)
        known = self._read.get(folder)
        if known is None or known[0] != key:
            try:
                known = (key, Comparison.read(path), "")
            except ArtifactError as error:
                known = (key, None, str(error))
            self._read[folder] = known
        return known[1], known[2]


def live_curves(run: Run) -> list[LiveCurve]:
    """Read the losses of the trials that are running, or were when the comparison was stopped."""
    curves = []
    for path in sorted((run.folder / "trials").glob("*/metrics.jsonl")):
        match = _TRIAL.fullmatch(path.parent.name)
        if match is None or (path.parent / "trial.json").exists() or (path.parent / "stage.json").exists():
            continue
        steps, losses = _losses(path)
        if len(steps) > 1:
            curves.append(LiveCurve(match["technique"], int(match["seed"]), steps, losses))
    return curves


def with_live_curves(charts: Sequence[Chart], curves: Sequence[LiveCurve]) -> list[Chart]:
    """Draw the trials that are running into the report's learning curves, or make that chart where there is none."""
    if not curves:
        return list(charts)
    series = [
        Series(
            curve.label,
            "",
            "line",
            curve.steps,
            curve.losses,
            hover=[
                f"{curve.label}, step {step:g}: {loss:.3f}"
                for step, loss in zip(curve.steps, curve.losses, strict=True)
            ],
            variant=place + 2,
        )
        for place, curve in enumerate(curves)
    ]
    drawn = [chart for chart in charts if chart.key == LIVE]
    before = list(drawn[0].views[0].series) if drawn else []
    losses = [loss for one in (*before, *series) for loss in one.y]
    log = min(losses) > 0 and max(losses) > 10 * min(losses)
    view = View("training loss", "step", "training loss", [*before, *series], log_y=log)
    caption = drawn[0].caption if drawn else "Training loss by step."
    chart = Chart(LIVE, "Learning curves", caption, [view])
    return [chart if each.key == LIVE else each for each in charts] if drawn else [*charts, chart]


def _losses(path: Path) -> tuple[list[float], list[float]]:
    points: list[tuple[float, float]] = []
    with suppress(ArtifactError):
        for line in read_beginning(path, _METRICS).splitlines():
            with suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                points.append((float(value["step"]), float(value["loss"])))
    every = -(-len(points) // _POINTS) or 1
    chosen = points[::-every][::-1]
    return [step for step, _ in chosen], [loss for _, loss in chosen]


def _is_reported(folder: Path) -> bool:
    """Tell whether the report was written after the last row, which ends a comparison."""
    with suppress(OSError):
        return (folder / "report.html").stat().st_mtime_ns >= (folder / "compare.json").stat().st_mtime_ns
    return False


def _is_comparison(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in _SIGNS)


def _subfolders(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return []


def _changed(folder: Path) -> float:
    for path in (folder / "compare.json", folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _within(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
