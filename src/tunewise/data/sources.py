"""Reads tables from a file, a folder with one file per split, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tunewise.core.addresses import path_at
from tunewise.core.errors import DataError
from tunewise.core.extras import install_command, installed
from tunewise.core.text import first_line, listed, show
from tunewise.data.columnar import dataset_table, is_saved_dataset, read_saved_dataset
from tunewise.data.readers import is_data_file, read_file, read_splits, stem_of
from tunewise.data.split_names import is_split_name, splits_of
from tunewise.data.table import Table, joined

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_SAMPLED = re.compile(r"(.+)#([0-9]+)", re.DOTALL)
_HUB_FILE = re.compile(r"([^/]+/[^/]+)/(.+)")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")  # train-00000-of-00002, as on the Hub
_DESCRIPTIONS = ("dataset_info", "dataset_infos", "dataset_dict", "state")  # JSON files that describe a data set


def sample_size(source: str) -> tuple[str, int | None]:
    """Split `data#500` into ("data", 500); the size is None without "#" or if a file has exactly that name.

    A leading `~` becomes the user's home folder.

    Raises:
        DataError: the number is not a valid sample size.
    """
    source = _from_home(source)
    match = _SAMPLED.fullmatch(source)
    if match is None or _exists(source):
        return source, None
    digits = match[2].lstrip("0")
    if not digits or len(digits) > 15:
        raise DataError(
            f"a sample of {show(match[2])} examples cannot be taken",
            path=show(match[1], 500),
            remedy="write for example #500",
        )
    return match[1], int(digits)


def _from_home(source: str) -> str:
    """Replace a leading `~`; nothing else of an address is touched."""
    if not source.startswith("~"):
        return source
    try:
        return str(path_at(source))
    except RuntimeError:  # there is no such user
        return source


def name_of(source: str) -> str:
    """Return a short name: the stem of a file, or the name of a folder or Hub data set."""
    if _exists(source):
        path = Path(source).resolve()
        return stem_of(path) if path.is_file() else path.name
    return Path(source.removeprefix("hf://datasets/").partition(":")[0]).name


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # too long, or not a path at all
        return False


def read_tables(source: str) -> dict[str, Table]:
    """Read a file, a folder with one file per split, or a data set of the Hugging Face Hub.

    Returns:
        One table per split of "train", "validation" and "test" that exists, or a single one named "all".

    Raises:
        DataError: there is no such file, folder or data set, or it cannot be read.
    """
    if source.startswith("hf://"):
        return _hub_address(source)
    try:
        path = Path(source)
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return read_splits(path)
        local_owner = Path(source.partition("/")[0]).is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"the path cannot be used ({first_line(error)})", remedy="check the path") from error
    looks_like_file = is_data_file(path)
    if _HUB_ID.fullmatch(source) and not looks_like_file and not local_owner:
        return _hub_set(source)
    raise DataError(
        "no such file or folder",
        path=show(source, 500),
        remedy="check the path, or give a Hub id such as org/name",
    )


def _folder(folder: Path) -> dict[str, Table]:
    """Read a folder with the files of each split, or with a single data file.

    A split may be one file, several numbered parts, or a folder of parts. All of it may be in a folder `data`.
    """
    if is_saved_dataset(folder):
        return _saved(folder)
    files = _files(folder)
    groups = _by_stem(files)
    splits, notes = splits_of(groups, str(folder), {stem: paths[0].name for stem, paths in groups.items()})
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not splits:
        parts = {path.name: files_of for path in folders if is_split_name(path.name) and (files_of := _files(path))}
        splits, notes = splits_of(parts, str(folder))
        groups |= parts
    if "train" in splits:
        notes += _left_out(folder, files, [path for stem in splits.values() for path in groups[stem]])
        # In the order of the splits, so that the first error is about the file that matters most.
        tables = {split: _joined(folder, groups[stem], f"the {split} split") for split, stem in splits.items()}
        return _with_notes(tables, notes)
    data = _without_documentation(files)
    groups = _by_stem(data)
    if not splits and len(groups) == 1:
        paths = next(iter(groups.values()))
        tables = read_splits(paths[0]) if len(paths) == 1 else {"all": _joined(folder, paths, "the data")}
        return _with_notes(tables, [])
    if not splits and not groups and (folder / "data").is_dir():
        return _with_notes(_folder(folder / "data"), [f'the data was read from the folder "data" of {folder.name}'])
    holds = listed(path.name for path in data) or "no data file"
    inside = [path.name for path in folders if "train" in splits_of(_by_stem(_files(path)), str(path))[0]]
    raise DataError(
        f"the folder holds no train file (it holds {holds})",
        path=folder,
        remedy=f"give one of its folders {listed(inside)}"
        if inside
        else "name the files train.jsonl, validation.jsonl and test.jsonl, or give one file",
    )


def _files(folder: Path) -> list[Path]:
    """List the data files of a folder; those that describe a data set hold no rows."""
    return sorted(
        path
        for path in folder.iterdir()
        if is_data_file(path)
        and path.is_file()
        and not path.name.startswith(".")
        and stem_of(path).lower() not in _DESCRIPTIONS
    )


def _without_documentation(files: list[Path]) -> list[Path]:
    """Return the files without notes such as SOURCE.txt, which do not make a lone data file ambiguous."""
    return [path for path in files if path.suffix.lower() != ".txt"] or files


def _by_stem(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by their names without ending and without the number of a part."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        stem = stem_of(path)
        part = _SHARD.fullmatch(stem)
        groups.setdefault(part[1] if part else stem, []).append(path)
    return groups


def _joined(folder: Path, paths: list[Path], what: str) -> Table:
    """Read the file or the parts of a split; `what` names it in an error."""
    if len(paths) == 1:
        return _with_part_note(read_file(paths[0]), paths)
    numbers = [_SHARD.fullmatch(stem_of(path)) for path in paths]
    places = [match[2] for match in numbers if match]
    whole = [path for path, match in zip(paths, numbers, strict=True) if match is None]
    in_own_folder = paths[0].parent != folder
    if len(set(places)) < len(places) or (whole and not in_own_folder):
        raise DataError(
            f"{show(paths[0].name)} and {show(paths[1].name)} are both {what}",
            path=folder,
            remedy="keep one of them",
        )
    return _with_part_note(joined(str(paths[0].parent), [read_file(path) for path in paths]), paths)


def _with_part_note(table: Table, paths: list[Path]) -> Table:
    """Tell where parts are missing."""
    match = _SHARD.fullmatch(stem_of(paths[0]))
    if match is None or len(paths) == int(match[3]):
        return table
    note = f"only {len(paths)} of the {int(match[3])} parts of {show(match[1])} are there"
    return replace(table, notes=(*table.notes, note))


def _left_out(folder: Path, files: list[Path], read: list[Path]) -> list[str]:
    """Tell which data files of a folder were not read; text beside data of another kind is documentation."""
    others = [path for path in files if path not in read]
    if any(path.suffix.lower() != ".txt" for path in read):
        others = [path for path in others if path.suffix.lower() != ".txt"]
    return [f"files of {folder.name} that were not read: {listed(path.name for path in others)}"] if others else []


def _with_notes(tables: Mapping[str, Table], notes: list[str]) -> dict[str, Table]:
    """Add notes to the first table."""
    first = next(iter(tables))
    return {**tables, first: replace(tables[first], notes=(*notes, *tables[first].notes))}


def _saved(folder: Path) -> dict[str, Table]:
    """Read a folder that `save_to_disk` of `datasets` wrote."""
    return _named_splits(read_saved_dataset(folder), str(folder))


def _named_splits(tables: Mapping[str, Table], source: str) -> dict[str, Table]:
    """Choose the splits of a data set by their names; a single table is all of it."""
    filled = {name: table for name, table in tables.items() if table.rows}
    splits, notes = splits_of(filled, source)
    if "train" in splits and len(splits) > 1:
        chosen = {split: filled[name] for split, name in splits.items()}
    elif "train" in splits or len(filled) == 1:
        chosen = {"all": filled[splits["train"]] if "train" in splits else next(iter(filled.values()))}
    else:
        raise DataError(
            f"the data set has no train split (it has {listed(tables)})", path=source, remedy="choose another one"
        )
    others = [name for name, table in filled.items() if not any(table is read for read in chosen.values())]
    return _with_notes(chosen, [*notes, *([f"splits that were not read: {listed(others)}"] if others else [])])


def _hub_address(source: str) -> dict[str, Table]:
    """Read `hf://datasets/org/name`, or one file of it with the same readers as a local file."""
    if not source.startswith("hf://datasets/"):
        raise DataError(
            "not the address of a data set",
            path=show(source, 500),
            remedy="write hf://datasets/org/name[/file]",
        )
    name = source.removeprefix("hf://datasets/")
    file = _HUB_FILE.fullmatch(name)
    if file is None:
        return _hub_set(name)
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(file[1], file[2], repo_type="dataset")
    except Exception as error:  # network, authentication, cache and name errors all mean the same here
        raise _hub_error(source, error) from error
    return read_splits(Path(path))


def _hub_set(source: str) -> dict[str, Table]:
    name, _, config = source.partition(":")
    if not installed("datasets"):
        raise _without_datasets(source)
    try:
        import datasets

        loaded = datasets.load_dataset(name, config or None)
        tables = {str(split): dataset_table(f"{source} {split}", data) for split, data in loaded.items()}
    except Exception as error:  # network, authentication, cache and name errors all mean the same here
        raise _hub_error(source, error) from error
    return _named_splits(tables, source)


def _without_datasets(source: str) -> DataError:
    return DataError(
        "no such file or folder here, and data sets of the Hugging Face Hub need datasets, which is not installed",
        path=source,
        remedy=f"{install_command('datasets')}, or give a local file",
    )


def _hub_error(source: str, error: Exception) -> DataError:
    return DataError(
        f"no such file or folder here, and it cannot be read from the Hugging Face Hub ({first_line(error)})",
        path=source,
        remedy="check the name and the network, or give a local file",
    )
