"""Keeps the results of trials in their folders: `trial.json`, `stage.json`, and `memory.json` while one is running.

`timing.json` is there where a trial ran beside others: what it takes alone, once that was measured.

Each has a checksum that also covers the name of its folder, which stands for all that the result depends on. A record
that is damaged, or another trial's, is moved aside with a warning, and its trial is run again; the other rows stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tunewise.core import artifact_writer, sealed_json
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Count, JsonRecord, NonNegative
from tunewise.results.schema import LIMIT_BYTES, FittedTrial, Stage, TrialRecord

_RECORD, _STAGE, _MEMORY, _TIMING = "trial.json", "stage.json", "memory.json", "timing.json"
_AGAIN = "its trial is run again"


@dataclass(frozen=True, kw_only=True)
class _MemoryNote(JsonRecord):
    """Holds the rung of `tunewise.fitting.settings.ever_lighter` that a trial is tried with."""

    rung: Count


@dataclass(frozen=True, kw_only=True)
class LoneTiming(JsonRecord):
    """Holds what a trial that had `neighbours` takes alone; None where that was not measured, or nothing is trained.

    Where devices are of `mixed` kinds, that is measured on one of them for all trials, the `device`.
    """

    neighbours: Count
    mixed: bool = False
    device: str | None = None
    tokens_per_second: NonNegative | None = None
    seconds_per_example: NonNegative | None = None


def read_timing(folder: Path) -> LoneTiming | None:
    """Read what a trial takes alone; None if it ran alone."""
    path = folder / _TIMING
    return sealed_json.read_or_set_aside(
        path, lambda value: LoneTiming.from_json(value, path), "its seconds stay as they are", place=folder.name
    )


def write_timing(folder: Path, timing: LoneTiming) -> None:
    """Write what a trial takes alone."""
    sealed_json.write(folder / _TIMING, timing.to_json(), place=folder.name)


def read_record(folder: Path) -> TrialRecord | None:
    """Read the record in a trial's folder; None if there is none, or if it was damaged and has been moved aside."""
    path = folder / _RECORD
    return sealed_json.read_or_set_aside(
        path, lambda value: TrialRecord.from_json(value, path), _AGAIN, place=folder.name, limit_bytes=LIMIT_BYTES
    )


def write_record(folder: Path, record: TrialRecord) -> None:
    """Write the record of a trial to its folder."""
    sealed_json.write(folder / _RECORD, record.to_json(), place=folder.name)


def read_stage(folder: Path) -> Stage | None:
    """Read the result of a stage in its folder; None if there is none, or if it was damaged."""
    path = folder / _STAGE
    return sealed_json.read_or_set_aside(path, lambda value: Stage.from_json(value, path), _AGAIN, place=folder.name)


def write_stage(folder: Path, stage: Stage) -> None:
    """Write the result of a stage to its folder."""
    sealed_json.write(folder / _STAGE, stage.to_json(), place=folder.name)


def read_rung(folder: Path) -> int:
    """Read which of the ever lighter settings a trial was last tried with; 0, the first, if nothing says so."""
    path = folder / _MEMORY
    note = sealed_json.read_or_set_aside(
        path, lambda value: _MemoryNote.from_json(value, path), "the trial starts with its own batches again"
    )
    return note.rung if note is not None else 0


def write_rung(folder: Path, rung: int) -> None:
    """Write which of the ever lighter settings a trial is tried with next."""
    sealed_json.write(folder / _MEMORY, _MemoryNote(rung=rung).to_json())


def restart_with_less_memory(folder: Path) -> None:
    """Make a trial start over with settings that take less memory; see `tunewise.fitting.settings.ever_lighter`."""
    rung = read_rung(folder)
    artifact_writer.prune(folder, keep=0)
    write_rung(folder, rung + 1)


def remove_leftovers(trials: Path) -> None:
    """Remove from the folders of trials what killed processes left there; hold the lock of the comparison.

    That is what was being written, and the checkpoints of stages and of trials that are fitted.
    """
    for folder in [path for path in trials.glob("*") if path.is_dir() and not path.is_symlink()]:
        remove_leftovers_of(folder)


def remove_leftovers_of(folder: Path) -> None:
    """Do the same in the folder of one trial, which no process is at."""
    names = (_RECORD, _STAGE, _MEMORY, _TIMING, "metrics.jsonl", "adaptation")
    artifact_writer.remove_leftovers(folder, *names, checkpoints=True)
    if artifact_writer.checkpoint_folders(folder) and (
        read_stage(folder) is not None or isinstance(read_record(folder), FittedTrial)
    ):
        artifact_writer.prune(folder, keep=0)


def unsealed_trials(trials: Path) -> list[str]:
    """Name the folders of trials whose results have no checksum, as those of earlier versions."""
    return sorted({path.parent.name for path in _results(trials) if not _is_sealed(path)})


def set_aside_unsealed(trials: Path, accepted: Collection[str]) -> None:
    """Move the results aside that have no checksum and are not of trials that are accepted without one."""
    for path in _results(trials):
        if path.parent.name not in accepted and not _is_sealed(path):
            sealed_json.set_aside(path, f"{path} has no checksum", _AGAIN)


def _results(trials: Path) -> list[Path]:
    return [path for name in (_RECORD, _STAGE) for path in sorted(trials.glob(f"*/{name}"))]


def _is_sealed(path: Path) -> bool:
    """Return whether a result has a checksum; one that cannot be read is left to `read_record` and `read_stage`."""
    try:
        return sealed_json.is_sealed(path, limit_bytes=LIMIT_BYTES)
    except ArtifactError:
        return True
