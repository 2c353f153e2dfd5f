"""A finished comparison into a record: what its file lacks is taken from its data and its model again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewise.advice.atlas.records import comparison, record, rows_of
from tunewise.advice.atlas.schema import Record
from tunewise.advice.features import Features, measure, texts_of
from tunewise.core.errors import ArtifactError, SettingError, TunewiseError


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
    try:
        named = (model or str(result["model"]["name"]), data or str(result["task"]["source"]))
        wanted = (str(result["model"]["fingerprint"]), str(result["task"]["fingerprint"]))
        words = [str(word) for word in result["command"] or []]
        float(result["rows"][0]["validation_loss"] or 0)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: not as tunewise writes it ({error!r})") from error
    with _inside(work):
        features = _features(result, named, wanted, words, path)
    return record(result, features, name, path)


def _features(
    result: Mapping[str, Any], named: tuple[str, str], wanted: tuple[str, str], words: list[str], path: Path
) -> Features:
    from tunewise.resolve import DataOptions, ModelOptions, load_model, read_task

    option = _options(words)
    try:
        length = int(option("--max-length") or 0) or None
        base = load_model(named[0], ModelOptions(max_length=length, revision=option("--revision"), device="cpu"))
        reading = DataOptions(columns=option("--columns"), template=option("--template"), metric=option("--metric"))
        task = read_task(named[1], reading)
    except TunewiseError as error:
        raise SettingError(
            f"{path}: its model or data cannot be read again ({error}); give --model and --data"
        ) from error
    for what, mine, theirs in (("model", base.fingerprint, wanted[0]), ("data", task.fingerprint, wanted[1])):
        if mine != theirs:
            raise SettingError(f"{path}: this is not the {what} that was compared on; give the same {what}")
    where = option("--knowledge") or task.knowledge
    bare: Mapping[str, Any] = next((row for row in result["rows"] if row["technique"] == "base"), {})
    return measure(
        base,
        task,
        documents=texts_of(where),
        given=bool(where),
        examples=_examples(result),
        base_loss=bare.get("validation_loss"),
    )


def _examples(result: Mapping[str, Any]) -> float:
    """Training examples that a trial saw; a budget in tokens is told by the steps of the row with the most."""
    steps = max((row.get("training", {}).get("steps", 0) for row in result["rows"]), default=0)
    return float((steps or result["budget"]["steps"]) * rows_of(result))


def _options(words: list[str]) -> Any:
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
