"""Reads data files into rows, each row with its line number, by the ending of their names.

A value is exactly what the file says; it gets its meaning in `formats`. What a format leaves open (NaN, repeated keys,
other encodings) is refused with its line, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import show
from tunewise.data.columnar import read_arrow, read_excel, read_parquet
from tunewise.data.file_formats import further_readers
from tunewise.data.file_rows import readable
from tunewise.data.json_files import read_json, read_json_lines
from tunewise.data.separated import read_separated
from tunewise.data.table import Table, joined
from tunewise.data.text_files import is_packed, read_text

_TEXT_READERS: dict[str, Callable[[Path], Table | dict[str, Table]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": lambda path: read_separated(path, ","),
    ".tsv": lambda path: read_separated(path, "\t"),
    ".txt": read_text,
}
_READERS = _TEXT_READERS | {f"{ending}.gz": reader for ending, reader in _TEXT_READERS.items()}
_READERS |= {".parquet": read_parquet, ".arrow": read_arrow, ".xlsx": read_excel}


def _reader_for(path: Path) -> Callable[[Path], Table | dict[str, Table]] | None:
    """Return the reader for a file's ending, of tunewise's own or of a plug-in; None if there is none."""
    ending = ending_of(path)
    return _READERS.get(ending) or (further_readers(_READERS).get(ending) if ending else None)


def ending_of(path: Path) -> str:
    """Return the ending that says what a file holds, such as ".jsonl" or ".jsonl.gz"."""
    return "".join(path.suffixes[-2:] if is_packed(path) else path.suffixes[-1:]).lower()


def stem_of(path: Path) -> str:
    """Return the name of a data file without its ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


def is_data_file(path: Path) -> bool:
    """Tell whether a path has the ending of a file that can be read."""
    return _reader_for(path) is not None


def read_splits(path: Path) -> dict[str, Table]:
    """Read one local file with the reader for its ending.

    Returns:
        One table, named "all"; or those named "train", "validation" and "test" of a JSON file that holds splits.

    Raises:
        DataError: the ending is unknown, or the file is empty, damaged, or not what its ending says.
    """
    reader = _reader_for(path)
    if reader is None:
        endings = [*_READERS, *further_readers(_READERS)]
        raise DataError(
            f'the ending "{show(ending_of(path))}" is not one that can be read',
            path=path,
            remedy=f"save it as one of {' '.join(ending for ending in endings if not ending.endswith('.gz'))}",
        )
    if not path.is_file():
        raise DataError("not a regular file", path=path, remedy="give a file or a folder of files")
    with readable(path):
        content = reader(path)
    tables = {"all": content} if isinstance(content, Table) else content
    if not any(len(table.rows) or table.faults for table in tables.values()):
        raise DataError("the file holds no rows", path=path, remedy="add at least one row of data")
    return tables


def read_file(path: Path) -> Table:
    """Read all rows of one local file as `read_splits` does, as one table.

    Raises:
        DataError: as `read_splits`.
    """
    return joined(str(path), list(read_splits(path).values()))
