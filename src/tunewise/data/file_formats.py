"""A format of data files that another package adds, by an entry point in the group `tunewise.data_formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.plug_ins import plug_ins, refuse_taken
from tunewise.core.text import first_line
from tunewise.data.table import Table

GROUP = "tunewise.data_formats"


@dataclass(frozen=True)
class FileFormat:
    """Says how the files of some endings are read into rows.

    Attributes:
        endings: such as (".yaml", ".yml"), in lower case.
        rows: reads a file and yields a mapping of column names to values for each row; a `ValueError` says in one
            sentence what is wrong with the file.
    """

    endings: tuple[str, ...]
    rows: Callable[[Path], Iterable[Mapping[str, object]]]

    def read(self, path: Path) -> Table:
        """Read a file as a table whose rows count from 1.

        Raises:
            DataError: the file cannot be read, or a row is not a mapping of names.
        """
        try:
            rows: list[Mapping[str, object]] = [dict(row) for row in self.rows(path)]
        except OSError:
            raise
        except Exception as error:  # the plug-in's own code
            raise DataError(
                f"not a readable {path.suffix} file ({first_line(error)})", path=path, remedy="mend the file"
            ) from error
        if not all(isinstance(name, str) for row in rows for name in row):
            raise DataError(
                "a row has a column whose name is no text", path=path, remedy="mend the plug-in that reads it"
            )
        return Table(str(path), list(enumerate(rows, 1)), unit="row")


def further_readers(own: Iterable[str]) -> dict[str, Callable[[Path], Table]]:
    """Return the readers that plug-ins add, by ending.

    Args:
        own: the endings that tunewise reads itself.

    Raises:
        SettingError: a plug-in cannot be imported, or two read the same ending.
    """
    formats = plug_ins(GROUP, FileFormat)
    refuse_taken([ending for each in formats for ending in each.endings], "the ending", set(own))
    return {ending: each.read for each in formats for ending in each.endings}
