"""Exporting: write, read back, compare; what does not agree is said, and kept to be looked at."""

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
from tunewise.export.format import Asked, Format, Written, find, known
from tunewise.export.parity import TOLERANCE, Measured, Prompts, Trained, measure, tokenizer_problem, verdict
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
) -> dict[str, Any]:
    """Export an adaptation to a folder, read it back, and compare it with what was trained.

    Args:
        path: the adaptation's folder.
        to: the format: see `tunewise.export.format.formats`.
        out: a folder that is empty or not there yet.
        base: the loaded base, bare.
        model: where to load the base from, if not the name that the adaptation records.
        task: data whose prompts are compared; default: the data it was fitted on where that is still there, else text
            that the model writes.
        dtype: type of the stored weights; default: the base's.
        error: for an approximation, the relative Frobenius error allowed to each weight's change.
        rank: for an approximation, its rank, whatever the error; 0: by `error`.
        settings: settings[technique][setting] that can still be changed after training (dylora's rank).
        progress: called as progress(what, done, total).

    Returns:
        What `parity.json` holds; `same` says whether they agree.

    Raises:
        SettingError: no such format or type, or a folder that is not empty.
        TechniqueError: the format cannot express it; the message says which can.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder}: is not empty; choose another --out")
    known(to)
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f'dtype "{dtype}" is not one of {", ".join(DTYPES)}')
    if not 0 <= error < 1 or rank < 0:
        raise SettingError(f"error is {error:g} and rank {rank}, but must be from 0 to below 1, and at least 0")
    loaded = load(path, base=base, model=model, settings=settings)
    held = loaded.attachment.base
    try:
        facts = facts_of(Path(path))
        return _export(
            loaded, facts, to, folder, task, DTYPES[dtype] if dtype else held.model.dtype, error, rank, progress
        )
    finally:
        held.release()


def _export(
    loaded: Adaptation,
    facts: Provenance,
    to: str,
    folder: Path,
    task: Task | None,
    dtype: torch.dtype,
    error: float,
    rank: int,
    progress: Progress,
) -> dict[str, Any]:
    form, attachment, base = find(to, loaded.attachment), loaded.attachment, loaded.attachment.base
    chosen, why = (task, None) if task is not None else _recorded(loaded)
    prompts = Prompts.of(loaded, chosen)
    reader = Trained(attachment, prompts.before)
    trained = measure(reader, prompts, "asking the trained model", progress)
    ground = {name: tensor.detach().clone() for name, tensor in attachment.ground().items()}
    with artifact_writer.filled(folder) as stage:
        progress(f"writing {to}", 0, 0)
        written = form.write(loaded, stage, Asked(dtype, error, rank))
    base.release()
    bare = measure(Trained(Attachment(base, attachment.recipe), []), prompts, "asking the base", progress, briefly=True)
    base.release()
    share = max(TOLERANCE[dtype], TOLERANCE[base.model.dtype])
    with _standing_on(base, ground), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that read: nothing that a user of this command can act on
        found = _compared(form, folder, base, trained, bare, prompts, share, written, progress)
    if ground and form.on_base:
        found["on_the_unquantised_base"] = _compared(
            form, folder, base, trained, bare, prompts, share, written, progress
        )["max_logit_difference"]
    result = {
        "schema": 1,
        "tunewise": __version__,
        "format": to,
        "dtype": str(dtype).removeprefix("torch."),
        "adaptation": facts.to_json(),
        **found,
        "notes": [*written.notes, *([why] if why else [])],
        **(written.facts or {}),
    }
    artifact_writer.write_json(folder / "parity.json", result)
    return result


def _compared(
    form: Format,
    folder: Path,
    base: Base,
    trained: Measured,
    bare: Measured,
    prompts: Prompts,
    share: float,
    written: Written,
    progress: Progress,
) -> dict[str, Any]:
    try:
        reader = form.read(folder, base)
    except Exception as error:  # each format's reader raises what it likes; all of it means the same
        raise TunewiseError(
            f"{folder}: was written as {form.name}, but cannot be read back: {' '.join(str(error).split())[:300]}; "
            "it is kept to be looked at, and must not be used"
        ) from error
    try:
        measured = measure(reader, prompts, "asking the export", progress)
        found = verdict(reader, trained, measured, bare, prompts, share, written.slack)
        if reader.tokenizer is not None:
            problem = tokenizer_problem(base.tokenizer, reader.tokenizer, prompts)
            found |= {"tokenizer": problem or "same", "same": found["same"] and problem is None}
    finally:
        reader.close()
    return found


@contextmanager
def _standing_on(base: Base, ground: Mapping[str, Tensor]) -> Iterator[None]:
    """The base with these weights in place of its own, which come back after."""
    held = {name: base.model.get_parameter(name).detach().clone() for name in ground}
    try:
        with torch.no_grad():
            for name, tensor in ground.items():
                base.model.get_parameter(name).copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in held.items():
                base.model.get_parameter(name).copy_(tensor)


def _recorded(loaded: Adaptation) -> tuple[Task | None, str | None]:
    """The task that the adaptation was fitted on, or why it is not to be had."""
    source = loaded.record.get("style", {}).get("source")
    if not isinstance(source, str) or not source:
        return None, None
    try:
        return Task.read(source), None
    except RequestError as error:
        return None, f"the data it was fitted on cannot be read ({error}), so text that the model writes is compared"
