"""Turns a finished comparison into a record; the features that its file lacks are measured on its model and data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunewise.advice.atlas.records import comparison, record, rows_of
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features, measure, texts_of
from tunewise.core.addresses import path_at, shipped
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.text import show
from tunewise.data.sources import sample_size
from tunewise.results.schema import Comparison


def pack(
    folder: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    work: Path | None = None,
    name: str | None = None,
) -> Record:
    """Make the record of the comparison in a folder.

    Args:
        folder: the `--out` folder of a finished `tunewise compare`.
        model: folder or name of the model; default: the one that the comparison names, if it is on this machine.
        data: the data; default: the one that the comparison names, if it is on this machine.
        work: the folder that the comparison was run in, for its relative paths.
        name: name of the record; default: MODEL.TASK.

    Raises:
        ArtifactError: the comparison is not as tunewise writes it.
        RequestError: its model or data cannot be read any more, or has changed.
    """
    path, result = folder / "compare.json", comparison(folder)
    with _working_in(work):
        features = _features(result, model, data, path)
    return record(result, features, name, path)


def _features(result: Comparison, model: str | None, data: str | None, path: Path) -> Features:
    from tunewise.engine.model import load_base
    from tunewise.fitting.metrics import METRICS
    from tunewise.resolve import DataOptions, read_task

    option = _options_of(result.command or ())
    try:
        length = int(option("--max-length") or 0) or None
        base = load_base(
            model or result.model.name,
            max_length=length,
            revision=option("--revision"),
            device="cpu",
            resize_embeddings="--resize-embeddings" in (result.command or ()),
            download=model is not None,
        )
        metric = option("--metric")
        data_options = DataOptions(
            columns=option("--columns"),
            template=option("--template"),
            kind=option("--kind"),
            skip_bad_rows="--skip-bad-rows" in (result.command or ()),
            metric=metric if metric in METRICS else None,  # no feature depends on it, and a file's own could be code
        )
        task = replace(read_task(data or _present(result.task.source), data_options), label_list=result.task.label_list)
    except TunewiseError as error:
        raise SettingError(
            f"{path}: its model or data cannot be read again ({error}); give --model and --data"
        ) from error
    for kind, present, compared in (
        ("model", base.fingerprint, result.model.fingerprint),
        ("data", task.fingerprint, result.task.fingerprint),
    ):
        if present != compared:
            raise SettingError(f"{path}: this is not the {kind} that was compared on; give the same {kind}")
    where = option("--knowledge") or task.knowledge
    bare = next((row for row in result.scored if row.technique == "base"), None)
    return measure(
        base,
        task,
        documents=texts_of(where),
        given=bool(where),
        examples=_examples(result, path),
        base_loss=bare.validation_loss if bare is not None else None,
    )


def _present(source: str) -> str:
    """Return the data that a comparison names, if it is on this machine; raises `SettingError` otherwise."""
    if shipped(source) is None and not path_at(sample_size(source)[0]).exists():
        raise SettingError(
            f"{show(source, 300)} is not on this machine, and data that only a file names is not downloaded"
        )
    return source


def _examples(result: Comparison, path: Path) -> float:
    """Count the training examples that one trial saw: most steps of any row, or of the budget, x rows per step."""
    steps = max((row.training.steps for row in result.scored if row.training is not None), default=0)
    return float((steps or result.budget.steps) * rows_of(result, path))


def _options_of(words: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function from an option to its value in the recorded command; None if it was not given."""

    def value(name: str) -> str | None:
        for place, word in enumerate(words):
            if word == name and place + 1 < len(words):
                return words[place + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None

    return value


@contextmanager
def _working_in(folder: Path | None) -> Iterator[None]:
    """Change the working directory for a block; None leaves it."""
    before = Path.cwd()
    if folder is not None:
        if not folder.is_dir():
            raise SettingError(f"{folder}: there is no such folder")
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
