"""One technique, one setting, one seed: fitted, measured and written down.

A trial has two halves. `fit` trains, saves the adaptation and takes the validation loss; `finish` scores the test
split, once, and what was forgotten. A search fits many trials and finishes its winners alone; either half is skipped
when its result is already on disk.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tunewise import adaptation, store
from tunewise.errors import TunewiseError
from tunewise.evaluate import describe, encoder_for, loss, score
from tunewise.forward import why_not_packed
from tunewise.model import Base
from tunewise.pack import Sequence
from tunewise.remedies import Memory
from tunewise.retention import Retention
from tunewise.seeds import generator
from tunewise.task import Example, Task
from tunewise.technique import Attachment, Report, Study, Technique
from tunewise.train import TrainSettings, steps_for_tokens, train

_PROBED = 200  # examples of a probe that are scored


def _silent(what: str, done: int, total: int) -> None:
    return None


class Cache:
    """What the trials of one comparison share: the base, the task, its samples, and sequences tokenised once.

    `probe` is a task that the base could do before; what is left of it is measured after each trial. `remembered` is
    text for the remedies for forgetting.
    """

    def __init__(
        self,
        base: Base,
        task: Task,
        *,
        validation: int,
        test: int,
        retention: Retention | None,
        probe: Task | None = None,
        remembered: Many[str] | None = None,
    ) -> None:
        self.base, self.task, self.retention, self.probe = base, task, retention, probe
        self.remembered = remembered
        self.probed = sample(probe.test, _PROBED) if probe is not None else ()
        self.validation = sample(task.validation, validation)
        self.test = sample(task.test, test)
        self._plain: dict[tuple[int, int], list[Sequence]] = {}
        self.cut: dict[int, int] = {}
        self.memory: Memory | None = None

    def train_sequences(self, attachment: Attachment) -> list[Sequence]:
        """The training split for this attachment; shared by all that do not touch the text."""
        rendered = [attachment.render(example) for example in self.task.train]
        room = attachment.virtual_tokens, attachment.virtual_suffix
        if any(new is not old for new, old in zip(rendered, self.task.train, strict=True)):
            return encoder_for(attachment, self.task).encode(rendered)
        if room not in self._plain:
            self._plain[room] = encoder_for(attachment, self.task).encode(rendered)
        return self._plain[room]


def sample(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """The same `count` examples for everyone, in their order."""
    if len(examples) <= count:
        return examples
    chosen = torch.randperm(len(examples), generator=generator(0, "sample"))[:count].sort().values
    return tuple(examples[index] for index in chosen.tolist())


@dataclass(frozen=True)
class Trial:
    """What is to be run; `key` names it by everything that its result depends on."""

    technique: Technique
    seed: int
    settings: TrainSettings
    tokens: int | None = None  # training tokens; overrides settings.max_steps

    def key(self, cache: Cache) -> str:
        """Folder name: technique, seed, and a hash of base, task, samples, recipe and training settings."""
        facts = {
            "base": cache.base.fingerprint,
            "window": cache.base.window,
            "task": cache.task.fingerprint,
            "metric": cache.task.metric,
            "samples": [len(cache.validation), len(cache.test)],
            "technique": self.technique.to_json(),
            "settings": asdict(self.settings) if self.technique.trains else None,
            "tokens": self.tokens,
            "retention": cache.retention.fingerprint if cache.retention is not None else None,
            "seed": self.seed,
        }
        if stamp := self.technique.stamp(cache.task):
            facts["files"] = stamp
        if self.settings.remembers:
            facts["remembered"] = cache.remembered
        if cache.probe is not None:
            facts["probe"] = cache.probe.fingerprint
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.technique.name}-seed{self.seed}-{digest[:12]}"


def run(trial: Trial, cache: Cache, trials: Path, *, finish: bool, report: Report = _silent) -> dict[str, Any]:
    """The record of a trial, from disk where it is there already. A failure is a record too, with its reason."""
    folder = trials / trial.key(cache)
    path = folder / "trial.json"
    record: dict[str, Any] = store.read_json(path, limit_bytes=1 << 28) if path.is_file() else {}
    wanted = "score" if finish else "validation_loss"
    if record.get("status") == "ok" and wanted in record:
        return record
    try:
        record = _run(trial, cache, folder, record if record.get("status") == "ok" else {}, finish, report)
    except (
        TunewiseError,
        MemoryError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and not isinstance(error, TunewiseError):
            raise  # a full or vanished disk fails the comparison, not the technique
        record = {**_identity(trial), "status": "failed", "reason": _reason(error)}
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(path, record)
    return record


def _reason(error: BaseException) -> str:
    """One line; what is not our own error keeps its type's name."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory; use a smaller --batch-size with more --accumulate ({text[:200]})"
    return text if isinstance(error, TunewiseError) else f"{type(error).__name__}: {text[:300]}"


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        **trial.technique.to_json(),
        "family": trial.technique.family,
        "seed": trial.seed,
        "learning_rate": getattr(trial.technique, "learning_rate", None),
    }


def _run(
    trial: Trial, cache: Cache, folder: Path, before: Mapping[str, Any], finish: bool, report: Report
) -> dict[str, Any]:
    base = cache.base
    target = folder / "adaptation"
    try:
        if before and target.is_dir():
            attachment = adaptation.load(target, base=base).attachment
            record = dict(before)
        else:
            if trial.settings.remembers and cache.memory is None:
                cache.memory = Memory.of(base, cache.remembered)
            _tidy()
            attachment = trial.technique.attach(base, generator(trial.seed, "attach"))
            record = _fit(trial, cache, attachment, folder, report)
        if finish:
            record |= _finish(cache, attachment, record, report)
        return record
    finally:
        base.release()


def _fit(trial: Trial, cache: Cache, attachment: Attachment, folder: Path, report: Report) -> dict[str, Any]:
    base, task = cache.base, cache.task
    record: dict[str, Any] = {**_identity(trial), "status": "ok", "reason": None, "label": attachment.label}
    with peak_memory(base.device) as memory:
        started = time.perf_counter()
        attachment.learn(Study(task, trial.seed, lambda: loss(attachment, task, cache.validation), report))
        training: dict[str, Any] = {
            "steps": 0,
            "tokens": 0,
            "labelled_tokens": 0,
            "final_loss": None,
            "cut": 0,
        }
        if trial.technique.trains:
            sequences = cache.train_sequences(attachment)
            steps = trial.settings.max_steps
            if trial.tokens is not None:
                steps = steps_for_tokens(sequences, trial.settings, trial.seed, trial.tokens)
            settings = TrainSettings(**{**asdict(trial.settings), "max_steps": steps})
            done = train(
                attachment,
                sequences,
                settings,
                seed=trial.seed,
                folder=folder,
                resume=True,
                on_step=lambda step, value: report("training", step, steps),
                memory=cache.memory,
            )
            training = {
                "steps": done.steps,
                "tokens": done.tokens,
                "labelled_tokens": done.labelled_tokens,
                "final_loss": done.final_loss,
                "cut": sum(sequence.cut for sequence in sequences),
            }
        seconds = time.perf_counter() - started
        record["validation_loss"] = loss(attachment, task, cache.validation)
        record["findings"] = attachment.findings(lambda: loss(attachment, task, cache.validation))
    adaptation.save(attachment, task, folder / "adaptation", {"trial": _identity(trial), "training": training})
    store.prune(folder, keep=0)
    weights = sum(file.stat().st_size for file in (folder / "adaptation").iterdir() if file.name in _OWN_FILES)
    record["training"] = training
    record["packed"] = why_not_packed(base) or True
    record["cost"] = {
        "train_seconds": seconds,
        "peak_memory_bytes": memory[0],
        "optimised_parameters": sum(p.numel() for p in attachment.params().values()),
        "stored_parameters": sum(t.numel() for t in attachment.state().values()),
        "artifact_bytes": weights,
    }
    return record


_OWN_FILES = ("adaptation.json", "weights.safetensors", "rows.jsonl")


def _finish(cache: Cache, attachment: Attachment, record: dict[str, Any], report: Report) -> dict[str, Any]:
    with peak_memory(cache.base.device) as memory:
        found = score(attachment, cache.task, cache.test, progress=lambda done, total: report("scoring", done, total))
    forgetting: dict[str, Any] | None = cache.retention.compare(attachment) if cache.retention is not None else None
    if forgetting is not None and cache.probe is not None:
        found_again = score(
            attachment,
            cache.probe,
            cache.probed,
            progress=lambda done, total: report("probing", done, total),
            as_given=True,
        )
        forgetting["probe"] = found_again.mean
    cost = {
        **record["cost"],
        "scoring_peak_memory_bytes": memory[0],
        "seconds_per_example": found.seconds_per_example,
        "prompt_tokens": found.prompt_tokens,
    }
    return {
        "score": describe(found),
        "nll": found.nll,
        "per_example": found.per_example,
        "forgetting": forgetting,
        "cost": cost,
    }


def _tidy() -> None:
    """Give freed memory back to the system, so that the next trial's peak is its own."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_BASELINE = psutil.Process().memory_info().rss  # before any base is loaded: the interpreter and its libraries


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Fills its one-item list with the peak in bytes: of the device, or of this process beyond its own start.

    On Linux the kernel's own high-water mark is reset and read; elsewhere it covers the process's whole life.
    """
    found = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device)
        return
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        with suppress(OSError):  # a container may forbid it; the mark then covers the process's whole life
            mark.write_text("5")
    yield found
    found[0] = max(_high_water() - _BASELINE, 0)


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
