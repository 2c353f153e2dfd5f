"""Reads the rows of a file anew each time that they are asked for, so that none of them is kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import first_line
from tunewise.data.table import Fault, Row, Survey, Table

Item = Row | Fault | None  # a row, one that cannot be split into cells, or an empty line


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be read.

    Raises:
        DataError: it cannot.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged .gz file
        problem = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise DataError(
            f"the file cannot be read ({problem})", path=path, remedy="check the file and its permissions"
        ) from error


@dataclass(frozen=True)
class FileRows:
    """The rows of a file (or of a split of `datasets`, which has no path), read anew for each pass over them.

    Raises:
        DataError: on a later pass: the file is not what it was on the first one, or cannot be read.
    """

    path: Path | None
    items: Callable[[], Iterator[Item]]
    count: int
    state: tuple[int, int, int] | None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        if self.path is None:
            yield from (item for item in self.items() if isinstance(item, tuple))
            return
        with readable(self.path):
            self._require_same(self.path)
            for item in self.items():
                if isinstance(item, tuple):
                    yield item
            self._require_same(self.path)

    def _require_same(self, path: Path) -> None:
        if _state(path) != self.state:
            raise DataError(
                "the file was changed while it was read", path=path, remedy="begin again when nothing writes to it"
            )


def file_table(
    path: Path | str, items: Callable[[], Iterator[Item]], *, unit: str = "line", notes: Sequence[str] = ()
) -> Table:
    """Read the rows of a file a first time, and return the table of them, which keeps none.

    Args:
        path: the file; a text if the rows are in none, for errors.
        items: begins a pass over the rows.
        unit: what the number of a row counts.
        notes: what was decided on the way, one sentence each.
    """
    file = path if isinstance(path, Path) else None
    state = None if file is None else _state(file)
    survey, faults, empty = Survey(), list[Fault](), 0
    for item in items():
        if isinstance(item, tuple):
            survey.add(item)
        elif item is None:
            empty += 1
        else:
            faults.append(item)
    rows = FileRows(file, items, survey.count, state)
    return Table(str(path), rows, unit, empty, tuple(faults), tuple(notes), surveyed=survey)


def _state(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
