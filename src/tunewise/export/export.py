"""Export an adaptation: write it, read it back and compare; an export that differs is reported and left in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewise.adaptation.artifact import Adaptation, load
from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError, SettingError, TunewiseError
from tunewise.core.progress import Progress, silent
from tunewise.core.version import __version__
from tunewise.data.task import Task
from tunewise.engine.model import DTYPES, Base
from tunewise.export.format import ExportOptions, Format, Written, format_for, format_named
from tunewise.export.parity import (
    TOLERANCE,
    Prompts,
    ReaderOutputs,
    TrainedReader,
    collect_outputs,
    compare_outputs,
    tokenizer_problem,
)
from tunewise.export.parity_record import ParityFigures, ParityRecord
from tunewise.export.provenance import Provenance, facts_of


def export(
    path: str | Path,
    to: str,
    out: str | Path,
    *,
    base: Base | None = None,
    model: str | None = None,
    task: Task | None = None,
    dtype: str | None = None,
    error: float = 0.01,
    rank: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = silent,
) -> ParityRecord:
    """Export an adaptation to a folder, read it back, and compare it with what was trained.

    Example:
        `export("runs/mine", "merged", "export/merged", dtype="bfloat16")["same"]`

    Args:
        path: the adaptation's folder.
        to: the format: see `tunewise.export.format.formats`.
        out: a folder that is empty or does not exist yet.
        base: the loaded base, bare.
        model: where to load the base from, if not the name that the adaptation records.
        task: data whose prompts are compared; default: the data it was fitted on where that can still be read, else
            text that the model writes.
        dtype: type of the stored weights; default: the base's.
        error: for an approximation, the relative Frobenius error allowed to each weight's change.
        rank: for an approximation, its rank, whatever the error; 0: by `error`.
        settings: settings[technique][setting] that can still be changed after training (dylora's rank).
        progress: called as progress(what, done, total).

    Returns:
        What `parity.json` holds; `same` tells whether the export agrees with the trained model.

    Raises:
        SettingError: there is no such format or type, or the folder is not empty.
        TechniqueError: the format cannot express the technique; the message names those that can.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: is not empty; choose another --out")
    format_named(to)
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    if not 0 <= error < 1 or rank < 0:
        raise SettingError(f"error is {error:g} and rank {rank}, but must be from 0 to below 1, and at least 0")
    loaded = load(path, base=base, model=model, settings=settings)
    loaded_base = loaded.attachment.base
    try:
        provenance = facts_of(Path(path))
        options = ExportOptions(DTYPES[dtype] if dtype else loaded_base.model.dtype, error, rank)
        return _export(loaded, provenance, format_for(to, loaded.attachment), folder, task, options, progress)
    finally:
        loaded_base.release()


def _export(
    loaded: Adaptation,
    provenance: Provenance,
    chosen: Format,
    folder: Path,
    task: Task | None,
    options: ExportOptions,
    progress: Progress,
) -> ParityRecord:
    attachment, base = loaded.attachment, loaded.attachment.base
    compared_task, why_no_task = (task, None) if task is not None else _recorded_task(loaded)
    prompts = Prompts.of(loaded, compared_task)
    reader = TrainedReader(attachment, prompts.placeholders)
    trained = collect_outputs(reader, prompts, "running the trained model", progress)
    replaced_weights = {name: tensor.detach().clone() for name, tensor in attachment.replaced_weights().items()}
    with artifact_writer.staged_folder(folder) as stage:
        progress(f"writing {chosen.name}", 0, 0)
        written = chosen.write(loaded, stage, options)
    base.release()
    bare_reader = TrainedReader(Attachment(base, attachment.recipe), [])
    bare = collect_outputs(bare_reader, prompts, "running the base", progress, only_logits=True)
    base.release()

    def compare() -> ParityFigures:
        share = max(TOLERANCE[options.dtype], TOLERANCE[base.model.dtype])
        return _read_and_compare(chosen, folder, base, trained, bare, prompts, share, written, progress)

    with _with_weights(base, replaced_weights), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reading libraries' warnings: nothing that a user of this command can mend
        figures = compare()
    if replaced_weights and chosen.on_base:
        figures["on_the_unquantised_base"] = compare()["max_logit_difference"]
    record: ParityRecord = {
        "schema": 1,
        "tunewise": __version__,
        "format": chosen.name,
        "dtype": str(options.dtype).removeprefix("torch."),
        "adaptation": provenance.to_json(),
        **figures,
        "notes": [*written.notes, *([why_no_task] if why_no_task else [])],
        **written.figures,
    }
    artifact_writer.write_json(folder / "parity.json", record)
    return record


def _read_and_compare(
    chosen: Format,
    folder: Path,
    base: Base,
    trained: ReaderOutputs,
    bare: ReaderOutputs,
    prompts: Prompts,
    share: float,
    written: Written,
    progress: Progress,
) -> ParityFigures:
    """Read the export back and compare it with the trained model.

    Raises:
        TunewiseError: it cannot be read back.
    """
    try:
        reader = chosen.read(folder, base)
    except Exception as error:  # every library that reads raises its own errors; all of them mean the same here
        raise TunewiseError(
            f"{folder}: was written as {chosen.name}, but cannot be read back: {' '.join(str(error).split())[:300]}; "
            "the folder is kept for inspection and must not be used"
        ) from error
    try:
        exported = collect_outputs(reader, prompts, "running the export", progress)
        figures = compare_outputs(reader, trained, exported, bare, prompts, share, written.slack)
        if reader.tokenizer is not None:
            problem = tokenizer_problem(base.tokenizer, reader.tokenizer, prompts)
            figures["tokenizer"] = problem or "same"
            figures["same"] = figures["same"] and problem is None
    finally:
        reader.close()
    return figures


@contextmanager
def _with_weights(base: Base, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the base these weights inside the block, and its own back after it."""
    originals = {name: base.model.get_parameter(name).detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, tensor in weights.items():
                base.model.get_parameter(name).copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in originals.items():
                base.model.get_parameter(name).copy_(tensor)


def _recorded_task(loaded: Adaptation) -> tuple[Task | None, str | None]:
    """Read the task that the adaptation was fitted on, or say why it cannot be read."""
    source = loaded.record.get("style", {}).get("source")
    if not isinstance(source, str) or not source:
        return None, None
    try:
        return Task.read(source), None
    except RequestError as error:
        return None, f"the data it was fitted on cannot be read ({error}), so text that the model writes is compared"
