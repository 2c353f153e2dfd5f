"""A finished comparison into a record: what its file lacks is taken from its data and its model again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunewise.advice.atlas.records import comparison, record, rows_of
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features, measure, texts_of
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.results.schema import Comparison


def pack(
    folder: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    work: Path | None = None,
    name: str | None = None,
) -> Record:
    """The record of the comparison in a folder.

    Args:
        folder: the `--out` of a finished `tunewise compare`.
        model: where the model is now; default: where it was.
        data: where the data is now; default: where it was.
        work: the folder that the comparison was run in, which its paths start from.
        name: of the record.

    Raises:
        ArtifactError: the comparison is not as tunewise writes it.
        RequestError: its model or data is not there any more, or has changed.
    """
    path, result = folder / "compare.json", comparison(folder)
    with _inside(work):
        features = _features(result, model or result.model.name, data or result.task.source, path)
    return record(result, features, name, path)


def _features(result: Comparison, model: str, data: str, path: Path) -> Features:
    from tunewise.resolve import DataOptions, ModelOptions, load_model, read_task

    option = _options(result.command or ())
    try:
        length = int(option("--max-length") or 0) or None
        base = load_model(model, ModelOptions(max_length=length, revision=option("--revision"), device="cpu"))
        reading = DataOptions(columns=option("--columns"), template=option("--template"), metric=option("--metric"))
        task = read_task(data, reading)
    except TunewiseError as error:
        raise SettingError(
            f"{path}: its model or data cannot be read again ({error}); give --model and --data"
        ) from error
    for what, mine, theirs in (
        ("model", base.fingerprint, result.model.fingerprint),
        ("data", task.fingerprint, result.task.fingerprint),
    ):
        if mine != theirs:
            raise SettingError(f"{path}: this is not the {what} that was compared on; give the same {what}")
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


def _examples(result: Comparison, path: Path) -> float:
    """Training examples that a trial saw; a budget in tokens is told by the steps of the row with the most."""
    steps = max((row.training.steps for row in result.scored if row.training is not None), default=0)
    return float((steps or result.budget.steps) * rows_of(result, path))


def _options(words: Sequence[str]) -> Callable[[str], str | None]:
    """What an option of the recorded command was given."""

    def value(name: str) -> str | None:
        for place, word in enumerate(words):
            if word == name and place + 1 < len(words):
                return words[place + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None

    return value


@contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    before = Path.cwd()
    if folder is not None:
        if not folder.is_dir():
            raise SettingError(f"{folder}: there is no such folder")
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
