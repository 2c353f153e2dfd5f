"""Turns what other programs say of a data set (a file, a Hub id, a split, names of columns) into our options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tunewise.core.text import show
from tunewise.importing.record import Outcome, Setting, left, same, took

_SHARES = "a tenth of the prompts each is held back for {} (a fifth for the test of a small file)"
HELD_BACK = f"where it has no validation or test split, {_SHARES.format('it')}"
OTHER_SPLITS = f"{_SHARES.format('validation and test')}; a folder with a file for each says otherwise"
ONE_FOLDER = "put the files into one folder, as train.jsonl and validation.jsonl, and give it with --data"
SEVERAL = "one data set is read here; write their rows into one file, and give it with --data"
ONLY_ANSWERS = "answers alone are learnt here, never prompts"
OWN_TEMPLATE = "the model's own chat template is used; to use another one, put it into the model's tokenizer"
SYSTEM_PROMPT = "no system prompt is added here; write it into a system column of the data"
_BUILDERS = ("json", "csv", "parquet", "text", "arrow", "pandas")  # names of `datasets` for kinds of files
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIRST_ROWS = re.compile(r"train\[:(\d{1,9})\]")
_MOST_ROWS = re.compile(r"train\[:([89]\d|100)%\]")
_TRAIN = ("train", "all")
_STANDARD = {"messages": ("messages",), "conversations": ("conversations", "conversation")}


def located(path: str, files: object = None, config: str | None = None, split: str | None = None) -> Outcome:
    """Take what `load_dataset` would load.

    Args:
        path: a file, a folder, a Hub id, or a kind of file such as `json`.
        files: the file or files of it, or None.
        config: the name of the Hub's configuration, or None.
        split: the split to train on, or None.
    """
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if isinstance(files, dict) and set(files) == {"train"}:
        files = files["train"]
    if files is not None and not isinstance(files, str):
        return left(
            "one file is read here; write its files into one, or put them into a folder as train.jsonl and so on"
        )
    if re.match(r"(?!hf://)[a-z0-9]{2,}://", path):
        return left("data is read from this machine or the Hub; download it and give it with --data")
    sample = ""
    if split is not None and split not in _TRAIN and not _MOST_ROWS.fullmatch(split):
        first = _FIRST_ROWS.fullmatch(split)
        if split.endswith("%]"):
            return left(f"a share of the rows cannot be chosen; give so many of them, as in --data {show(path)}#1000")
        if first is None:
            return left(
                f"the split {show(split)} cannot be chosen here, splits are found by their names (train, validation, "
                "test); write its rows into a file and give it with --data"
            )
        sample = f"#{int(first[1])}"
    return _read(path, files, config, sample)


def _read(path: str, files: str | None, config: str | None, sample: str) -> Outcome:
    """Take a file, a folder or a Hub id, of which `sample` says how many rows are read."""
    is_hub_id = bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()
    if path in _BUILDERS:
        if files is None:
            return left("no file is named; give it with --data")
        data = files
    elif files is not None:
        data = f"hf://datasets/{path}/{files}" if is_hub_id else str(Path(path) / files)
    elif config is not None and is_hub_id:
        data = f"{path}:{config}"
    else:
        data = path
    remark = HELD_BACK
    if sample:
        remark = f"so many rows, drawn at random and not the first ones; {HELD_BACK}"
    if "/" not in path and not Path(data).suffix and not Path(data).exists():
        remark = f"if this is a data set of the Hub, write it with its owner, owner/{show(path)}; {HELD_BACK}"
    return took({"data": data + sample}, remark)


def columns(names: Mapping[str, str], kind: str | None = None) -> dict[str, Setting]:
    """Return the settings for columns that are not found by themselves: {name here: name in the data}.

    Raises:
        ValueError: the name of a column cannot be written on a command line.
    """
    settings: dict[str, Setting] = {}
    for name, column in names.items():
        if re.search(r"[,=+]", column) or column != column.strip() or not column:
            raise ValueError(f"the column {show(column)} cannot be named here; rename it in the data")
        if column != name and column not in _STANDARD.get(name, ()):
            settings[f"columns.{name}"] = column
    return settings | ({"kind": kind} if kind else {})


def column(name: str, column_name: str) -> Outcome:
    """Take the name of one column."""
    try:
        settings = columns({name: column_name})
    except ValueError as error:
        return left(str(error))
    return took(settings) if settings else same("found by its name")
