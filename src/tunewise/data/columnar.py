"""Reads tables whose cells have types: Parquet, Arrow and Excel files, and data sets of `datasets`.

Class numbers become the names that `datasets` stored beside them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tunewise.core.errors import DataError
from tunewise.core.extras import OPTIONAL, install_command, installed
from tunewise.core.text import first_line, listed, show
from tunewise.data.file_rows import Item, file_table
from tunewise.data.table import Table
from tunewise.data.text_files import MAX_UNPACKED

if TYPE_CHECKING:
    import pyarrow

Cells = dict[str, object]
Batches = tuple["pyarrow.Schema", Iterable["pyarrow.RecordBatch"]]
_AT_ONCE = 1000  # rows whose cells are in memory at once
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
    return _arrow_table(path, "Parquet", _parquet_batches)


def read_arrow(path: Path) -> Table:
    """Read an Arrow file, in the form of a stream (which `datasets` writes) or of a file."""
    _require(path, "Arrow files", "pyarrow")
    return _arrow_table(path, "Arrow", _arrow_batches)


def _parquet_batches(file: BinaryIO) -> Batches:
    import pyarrow.parquet

    data = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
    return data.schema_arrow, data.iter_batches(batch_size=_AT_ONCE, use_threads=False)


def _arrow_batches(file: BinaryIO) -> Batches:
    import pyarrow

    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    if is_stream:
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema, stream
    opened = pyarrow.ipc.open_file(file)
    return opened.schema, map(opened.get_batch, range(opened.num_record_batches))


def _arrow_table(path: Path, form: str, batches_of: Callable[[BinaryIO], Batches]) -> Table:
    """Read the rows of a file batch by batch, with names in place of class numbers."""

    def rows() -> Iterator[Item]:
        try:
            with path.open("rb") as file:
                schema, batches = batches_of(file)
                names: list[str] = schema.names
                if len(set(names)) != len(names):
                    raise DataError(
                        f"a column name occurs twice among {listed(names)}",
                        path=path,
                        remedy="rename one of the columns",
                    )
                yield from enumerate(_named(_rows_of(batches), _class_names(schema.metadata)), 1)
        except DataError:
            raise
        except Exception as error:  # a damaged file can raise anything: Arrow errors, Unicode, memory, overflow
            raise DataError(
                f"not a readable {form} file ({first_line(error)})", path=path, remedy="write the file again"
            ) from error

    return file_table(path, rows, unit="row")


def _rows_of(batches: Iterable[pyarrow.RecordBatch]) -> Iterator[Cells]:
    for batch in batches:
        for start in range(0, batch.num_rows, _AT_ONCE):
            yield from batch.slice(start, _AT_ONCE).to_pylist()


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


def _named(rows: Iterable[Cells], names: Mapping[str, Sequence[str]]) -> Iterator[Cells]:
    """Yield rows with names in place of class numbers; -1 stands for a label that is not known."""
    for row in rows:
        for column, value in row.items():
            if isinstance(value, list | dict):
                row[column] = _without_absent(value)
        for column, classes in names.items():
            number = row.get(column)
            if isinstance(number, int) and -1 <= number < len(classes):
                row[column] = classes[number] if number >= 0 else None
        yield row


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
    as_arrow = data.with_format("arrow")

    def rows() -> Iterator[Item]:
        batches = (as_arrow[start : start + _AT_ONCE] for start in range(0, len(data), _AT_ONCE))
        cells = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(_named(cells, classes), 1)

    return file_table(path, rows, unit="row")


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
