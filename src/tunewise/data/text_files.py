"""Reads the lines of text files, packed or not, and plain text as rows."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.data.file_rows import Item, file_table
from tunewise.data.table import Table

MAX_LINE = 10 * 1024 * 1024  # bytes
MAX_UNPACKED = 4 * 1024**3  # bytes of a .gz file
BOM = b"\xef\xbb\xbf"
_BLOCK = 1024 * 1024  # bytes
_SAVE = "save it as UTF-8 text"


def is_packed(path: Path) -> bool:
    """Tell whether a file is packed with gzip, by its ending."""
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if is_packed(path) else path.open("rb")


def _refuse_unpacked(path: Path, size: int) -> None:
    if is_packed(path) and size > MAX_UNPACKED:
        raise DataError(
            f"the file holds more than {MAX_UNPACKED // 1024**3} GiB when unpacked",
            path=path,
            remedy="unpack it and give the unpacked file, or a part of it",
        )


def whole_text(path: Path) -> str:
    """Return all of a file's text."""
    with _open(path) as file:
        raw = file.read(MAX_UNPACKED + 1 if is_packed(path) else -1)
    _refuse_unpacked(path, len(raw))
    return _decode(raw, path, 1, 0)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines, with their ends, and their numbers.

    Whole blocks are decoded at a time, because a file may have millions of lines of two bytes.
    """
    number = offset = 0
    with _open(path) as file:
        while block := file.read(_BLOCK) + file.readline(MAX_LINE + 1):
            for raw_line, raw in enumerate(io.BytesIO(block) if len(block) > MAX_LINE else (), number + 1):
                if len(raw) > MAX_LINE:
                    raise DataError(
                        "the line is longer than 10 MB", path=path, line=raw_line, remedy="write one row per line"
                    )
            for line in io.StringIO(_decode(block, path, number + 1, offset), newline="\n"):
                number += 1
                yield number, line
            offset += len(block)
            _refuse_unpacked(path, offset)


def _decode(raw: bytes, path: Path, line: int, offset: int) -> str:
    """Decode UTF-8 bytes that start at this line and byte offset of the file; a byte-order mark is dropped."""
    skipped = len(BOM) if offset == 0 and raw.startswith(BOM) else 0
    try:
        text = raw[skipped:].decode("utf-8")
        bad = raw.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start + skipped
    if bad < 0:
        return text
    kind = "a NUL byte" if raw[bad] == 0 else f"byte 0x{raw[bad]:02x}, which is not UTF-8 there,"
    bad_line = line + raw.count(b"\n", 0, bad)
    raise DataError(f"{kind} at byte offset {offset + bad}", path=path, line=bad_line, remedy=_SAVE)


def read_text(path: Path) -> Table:
    """Read plain text as one row per line that is not blank."""
    return file_table(path, lambda: _text_rows(path))


def _text_rows(path: Path) -> Iterator[Item]:
    for number, line in numbered_lines(path):
        if line.isspace() or not line:
            yield None
        else:
            yield number, {"text": line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")}
