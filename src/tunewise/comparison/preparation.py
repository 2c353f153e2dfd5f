"""Keeps what a technique reads before its first step, and what that took, for the trainings of one search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tunewise.contract.study import Readings
from tunewise.core import artifact_writer, sealed_json
from tunewise.core.json_record import Count, JsonRecord, NonNegative


@dataclass(frozen=True, kw_only=True)
class PreparationCost(JsonRecord):
    """Holds what a preparation took when it was first made: tokens that were read, and the peak of memory meanwhile.

    `trial` is the name of the folder of the trial or stage that made it.
    """

    trial: str
    tokens: Count
    seconds: NonNegative
    peak_memory_bytes: Count


@dataclass(frozen=True)
class Preparation:
    """Holds what was read before a training; where a search was killed, its cost is still on disk.

    `folder` is where trainings on other data than the task's keep their checkpoints, and where the cost is. `maker` is
    the folder of the trial that the cost is laid to, which is the first of the row's with this preparation.
    """

    folder: Path
    readings: Readings
    maker: str | None = None

    def cost(self, made: PreparationCost) -> PreparationCost:
        """Return what this preparation took when it was first made, which is just now if nothing is on disk."""
        path = self.folder / "cost.json"
        first = sealed_json.read_or_set_aside(
            path, lambda value: PreparationCost.from_json(value, path), "the cost is that of the preparation just made"
        )
        if first is None and made.tokens:
            sealed_json.write(path, made.to_json())
        return first or made


@dataclass
class Preparations:
    """Holds the preparations of the row that runs.

    Trainings share a preparation where base, task, seed, training settings, and those settings of the recipe are the
    same that what it reads depends on (`Technique.preparation`). `maker` is the folder of the first trial of the row
    with the same preparation as the one that is about to run: its cost is laid to that one, in whatever order and in
    however many processes they run.
    """

    maker: str | None = field(default=None, init=False)
    _of_row: dict[str, Preparation] = field(default_factory=dict, init=False)
    _keeps: bool = field(default=False, init=False)
    _row: str = field(default="", init=False)
    _seat: int | None = field(default=None, init=False)  # of one worker among several

    @contextmanager
    def row(self, trials: Path, technique: str, *, keeps: bool) -> Iterator[None]:
        """Begin a row; when it is over, what was read is forgotten, and what is on disk of it is removed.

        What belongs to other rows stays: one that was killed goes on after those before it have ended once more.

        Args:
            trials: the folder of the trials.
            technique: the row's name.
            keeps: whether what is read is kept for further trainings, as a search has them.
        """
        self._of_row, self._keeps = {}, keeps
        try:
            yield
            folder = _folder_of(trials, technique)
            artifact_writer.remove_runs(folder)
            with suppress(OSError):  # another row's is there, or nothing
                folder.parent.rmdir()
        finally:
            self._of_row, self._keeps, self.maker = {}, False, None

    def enter(self, technique: str, *, keeps: bool, maker: str, seat: int) -> None:
        """Begin a trial of a row in one of several workers, each of which prepares in a folder of its own.

        Args:
            technique: the row's name; what was read for another row is forgotten.
            keeps: whether what is read is kept for further trials of the row.
            maker: the folder of the row's first trial with the same preparation.
            seat: the worker's number.
        """
        if technique != self._row:
            self._of_row, self._row = {}, technique
        self._keeps, self.maker, self._seat = keeps, maker, seat

    def of(self, facts: object, trials: Path, technique: str) -> Preparation:
        """Return a row's preparation of trainings to which these facts, in JSON's types, apply."""
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        name = key if self._seat is None else f"{key}-{self._seat}"
        new = Preparation(_folder_of(trials, technique) / name, Readings(self._keeps), self.maker)
        return self._of_row.setdefault(key, new) if self._keeps else new


def remove_all(trials: Path) -> None:
    """Remove what preparations left on disk, once every row is over."""
    artifact_writer.remove_runs(_folder(trials))


def _folder(trials: Path) -> Path:
    return trials.parent / "preparing"


def _folder_of(trials: Path, technique: str) -> Path:
    return _folder(trials) / technique.replace(":", "-")
