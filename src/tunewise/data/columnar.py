"""Reads tables whose cells have types: Parquet, Arrow and Excel files, and data sets of `datasets`.

Class numbers become the names that `datasets` stored beside them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.core.errors import DataError
from tunewise.core.extras import OPTIONAL, install_command, installed
from tunewise.core.text import first_line, listed, show
from tunewise.data.table import Table
from tunewise.data.text_files import MAX_UNPACKED

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, object]
_SAVED = ("dataset_dict.json", "state.json")  # of a folder that `save_to_disk` wrote


def _require(path: Path, files: str, package: str) -> None:
    """Refuse a file whose reader is an optional package that is missing."""
    if not installed(package):
        raise DataError(
            f"{files} are read by {OPTIONAL[package][1]}, which is not installed",
            path=path,
            remedy=f"{install_command(package)}, or save it as CSV or JSON Lines",
        )


def read_parquet(path: Path) -> Table:
    """Read a Parquet file."""
    _require(path, "Parquet files", "pyarrow")
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            data = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        return _arrow_table(path, data)
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything: Arrow errors, Unicode, memory, overflow
        raise DataError(
            f"not a readable Parquet file ({first_line(error)})", path=path, remedy="write the file again"
        ) from error


def read_arrow(path: Path) -> Table:
    """Read an Arrow file, in the form of a stream (which `datasets` writes) or of a file."""
    _require(path, "Arrow files", "pyarrow")
    import pyarrow

    try:
        with path.open("rb") as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            opened = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
            return _arrow_table(path, opened.read_all())
    except DataError:
        raise
    except Exception as error:  # as of Parquet
        raise DataError(
            f"not a readable Arrow file ({first_line(error)})", path=path, remedy="write the file again"
        ) from error


def _arrow_table(path: Path, data: pyarrow.Table) -> Table:
    names: list[str] = data.column_names
    if len(set(names)) != len(names):
        raise DataError(
            f"a column name occurs twice among {listed(names)}", path=path, remedy="rename one of the columns"
        )
    return _named_table(str(path), data.to_pylist(), _class_names(data.schema.metadata))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Return the names of each column of classes, from what `datasets` writes beside an Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError):  # nothing is stored, or not as `datasets` writes it
        return {}


def _named_table(path: str, rows: list[Row], names: Mapping[str, Sequence[str]]) -> Table:
    """Make a table of rows, with names in place of class numbers; -1 stands for a label that is not known."""
    for row in rows:
        for column, value in row.items():
            if isinstance(value, list | dict):
                row[column] = _without_absent(value)
    for column, classes in names.items():
        for row in rows:
            number = row.get(column)
            if isinstance(number, int) and -1 <= number < len(classes):
                row[column] = classes[number] if number >= 0 else None
    return Table(path, list(enumerate(rows, 1)), unit="row")


def _without_absent(value: object) -> object:
    """Return a nested value without the keys that are null: Arrow gives all objects of a column the same keys."""
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    return [_without_absent(item) for item in value] if isinstance(value, list) else value


def dataset_table(path: str, data: object) -> Table:
    """Return the rows of a split that `datasets` loaded."""
    from datasets import ClassLabel, Dataset

    if not isinstance(data, Dataset):
        raise TypeError("its splits are not tables")
    classes = {name: feature.names for name, feature in data.features.items() if isinstance(feature, ClassLabel)}
    return _named_table(path, data.to_list(), classes)


def is_saved_dataset(folder: Path) -> bool:
    """Tell whether `save_to_disk` of `datasets` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED)


def read_saved_dataset(folder: Path) -> dict[str, Table]:
    """Read a folder that `save_to_disk` wrote, by its own names of the splits; without splits, it is named "all"."""
    _require(folder, "saved data sets", "datasets")
    try:
        import datasets

        loaded = datasets.load_from_disk(str(folder))
        splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"all": loaded}
        return {
            str(split): dataset_table(str(folder if split == "all" else folder / str(split)), data)
            for split, data in splits.items()
        }
    except Exception as error:  # a damaged file can raise anything
        raise DataError(
            f"not a readable data set of datasets ({first_line(error)})",
            path=folder,
            remedy="write it again with save_to_disk",
        ) from error


def read_excel(path: Path) -> Table:
    """Read the first sheet of an Excel workbook, whose first row is the header; formulas are read by their values."""
    _require(path, "Excel files", "openpyxl")
    import openpyxl

    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(part.file_size for part in packed.infolist())
        if unpacked > MAX_UNPACKED:
            raise DataError("the workbook is too large when unpacked", path=path, remedy="save it as CSV")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        first, *others = book.worksheets
        lines = [
            (number, cells) for number, cells in enumerate(first.iter_rows(values_only=True), 1) if _has_cell(cells)
        ]
        left_out = [sheet.title for sheet in others if any(map(_has_cell, sheet.iter_rows(values_only=True)))]
        total = first.max_row or 0
        book.close()
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise DataError(
            f"not a readable Excel workbook ({first_line(error)})", path=path, remedy="save it again, or as CSV"
        ) from error
    if not lines:
        return Table(str(path), [], unit="row")
    (_, header), *body = lines
    names = {place: str(name) for place, name in enumerate(header) if name is not None}
    if len(set(names.values())) != len(names):
        raise DataError(
            f"a column name occurs twice among {listed(names.values())}", path=path, remedy="rename one of the columns"
        )
    rows: list[tuple[int, Mapping[str, object]]] = [
        (number, {name: cells[place] for place, name in names.items()}) for number, cells in body
    ]
    notes = [f"sheets of {show(path.name)} that were not read: {listed(left_out)}"] if left_out else []
    return Table(str(path), rows, "row", max(total - len(lines), 0), notes=tuple(notes))


def _has_cell(cells: Sequence[object]) -> bool:
    """Tell whether anything stands in a row of a sheet."""
    return any(cell is not None for cell in cells)
