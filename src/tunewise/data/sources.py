"""Reads tables from a file, a folder with one file per split, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import first_line, listed, show
from tunewise.data.readers import READERS, Table, read_file

_SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_SAMPLED = re.compile(r"(.+)#([0-9]+)", re.DOTALL)
_HUB_FILE = re.compile(r"([^/]+/[^/]+)/(.+)")


def sample_size(source: str) -> tuple[str, int | None]:
    """Split `data#500` into ("data", 500); the size is None without "#" or if a file has exactly that name.

    Raises:
        DataError: the number is not a valid sample size.
    """
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


def name_of(source: str) -> str:
    """Return a short name: the stem of a file, or the name of a folder or Hub data set."""
    if _exists(source):
        path = Path(source).resolve()
        return path.stem if path.is_file() else path.name
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
            return {"all": read_file(path)}
        local_owner = Path(source.partition("/")[0]).is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"the path cannot be used ({first_line(error)})", remedy="check the path") from error
    looks_like_file = path.suffix.lower() in READERS
    if _HUB_ID.fullmatch(source) and not looks_like_file and not local_owner:
        return _hub_set(source)
    raise DataError(
        "no such file or folder",
        path=show(source, 500),
        remedy="check the path, or give a Hub id such as org/name",
    )


def _folder(folder: Path) -> dict[str, Table]:
    """Read a folder with one file per split, or with a single data file; other files are ignored."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in READERS and path.is_file() and not path.name.startswith(".")
    )
    splits: dict[str, Path] = {}
    for path in files:
        split = _SPLITS.get(path.stem.lower())
        if split in splits:
            raise DataError(
                f"{splits[split].name} and {path.name} are both the {split} split",
                path=folder,
                remedy="keep one of them",
            )
        if split is not None:
            splits[split] = path
    if "train" in splits:
        # In this order, so that the first error is about the file that matters most.
        return {split: read_file(splits[split]) for split in _SPLITS if split in splits}
    # Notes such as SOURCE.txt do not make a lone data file ambiguous.
    data = [path for path in files if path.suffix.lower() != ".txt"] or files
    if not splits and len(data) == 1:
        return {"all": read_file(data[0])}
    raise DataError(
        f"the folder holds no train file (it holds {listed(p.name for p in data) or 'no data file'})",
        path=folder,
        remedy="name the files train.jsonl, validation.jsonl and test.jsonl, or give one file",
    )


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
    return {"all": read_file(Path(path))}


def _hub_set(source: str) -> dict[str, Table]:
    name, _, config = source.partition(":")
    try:
        import datasets

        loaded = datasets.load_dataset(name, config or None)
        tables = {str(split): _hub_rows(f"{source} {split}", data) for split, data in loaded.items()}
    except Exception as error:  # network, authentication, cache and name errors all mean the same here
        raise _hub_error(source, error) from error
    splits = {_SPLITS[split]: table for split, table in tables.items() if split in _SPLITS and table.rows}
    if "train" in splits and len(splits) > 1:
        return splits
    if len(tables) == 1 or "train" in splits:
        return {"all": splits.get("train") or next(iter(tables.values()))}
    raise DataError(
        f"the data set has no train split (it has {listed(tables)})", path=source, remedy="choose another one"
    )


def _hub_rows(path: str, data: object) -> Table:
    """Return the rows of one split; class numbers become the names that the data set declares for them."""
    from datasets import ClassLabel, Dataset

    if not isinstance(data, Dataset):
        raise TypeError("its splits are not tables")
    rows: list[dict[str, object]] = data.to_list()
    for column, feature in data.features.items():
        if isinstance(feature, ClassLabel):
            for row in rows:
                number = row[column]
                if isinstance(number, int) and 0 <= number < len(feature.names):
                    row[column] = feature.names[number]
    return Table(path, list(enumerate(rows, 1)), unit="row")


def _hub_error(source: str, error: Exception) -> DataError:
    return DataError(
        f"no such file or folder here, and it cannot be read from the Hugging Face Hub ({first_line(error)})",
        path=source,
        remedy="check the name and the network, or give a local file",
    )
