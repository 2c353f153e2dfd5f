"""Reads files into documents: plain text, Markdown, HTML, PDF and JSON lines.

A file in a folder that cannot be read is left out and named with the reason; a single file must be readable. Files are
taken to be hostile: no link is followed out of the folder and sizes are checked before anything is read. `parsers`
turns their bytes into text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tunewise.core.errors import DataError
from tunewise.core.text import first_line, show
from tunewise.data.table import kind_of
from tunewise.retrieval.parsers import MAX_BYTES, PARSERS, UnusableFile, clean, decode
from tunewise.retrieval.passage import Document

MAX_NAME = 500  # characters

_BAD_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WRITE_ROWS = 'write one {"id": "...", "text": "..."} per line'


@dataclass(frozen=True)
class Reading:
    """Holds the documents that were read, and (name, reason) of each file or row that was skipped."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def read(path: str | Path) -> Reading:
    """Read a folder of documents, with the folders in it, or a single file.

    Raises:
        DataError: there is no such path, nothing in the folder can be used, or the single file cannot.
        SettingError: a file needs a library that is not installed.
    """
    path = Path(path)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # no permission, too long, or not a path at all
        raise DataError(f"the path cannot be used ({first_line(error)})", remedy="check the path") from error
    if not exists:
        raise DataError("no such file or folder", path=show(str(path), 500), remedy="check the path")
    if is_folder:
        return _read_folder(path)
    try:
        return _read_file(path, path.name, "")
    except UnusableFile as error:
        shown_path = show(str(path), 500)
        raise DataError(error.problem, path=shown_path, line=error.line, remedy=error.remedy) from error


def _read_folder(root: Path) -> Reading:
    """Read all files below a folder; raises `DataError` if none can be used."""
    files, skipped = _list_files(root)
    documents: dict[str, Document] = {}
    for name, path in sorted(files):
        try:
            reading = _read_file(path, name, f"{name}#")
            if taken := [document.name for document in reading.documents if document.name in documents]:
                raise UnusableFile(f'there is a document "{show(taken[0])}" already', "rename the file")
        except UnusableFile as error:
            line = "" if error.line is None else f"line {error.line}: "
            skipped.append((show(name, MAX_NAME), line + error.problem))
        else:
            documents |= {document.name: document for document in reading.documents}
            skipped += reading.skipped
    skipped.sort()
    if not documents:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise DataError(
            f"nothing in the folder can be used ({reasons}{more})" if skipped else "the folder holds no documents",
            path=show(str(root), 500),
            remedy=f"add files with text in them, as {_endings()}",
        )
    return Reading(tuple(documents.values()), tuple(skipped))


def _list_files(root: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """List (name, path) of files below a folder, and (name, reason) of what is skipped; hidden files are ignored."""
    home = root.resolve()
    pending, files, skipped = [root], [], []
    while pending:  # not recursive, as folders can be nested deeper than Python's stack
        folder = pending.pop()
        try:
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        except OSError as error:
            name = show(folder.relative_to(root).as_posix(), MAX_NAME)
            skipped.append((name, f"the folder cannot be listed ({_os_message(error)})"))
            continue
        for entry in entries:
            name = entry.relative_to(root).as_posix()
            try:
                if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                    skipped.append((show(name, MAX_NAME), "a link that leaves the folder"))
                elif not entry.is_dir():
                    files.append((name, entry))
                elif entry.is_symlink():  # its target is read where it is
                    skipped.append((show(name, MAX_NAME), "a link to a folder"))
                else:
                    pending.append(entry)
            except (OSError, RuntimeError) as error:  # no permission, too long, or a loop of links
                skipped.append((show(name, MAX_NAME), f"it cannot be inspected ({_os_message(error)})"))
    return files, skipped


def _read_file(path: Path, name: str, row_prefix: str) -> Reading:
    """Read the documents of one file; in a .jsonl file their names are `row_prefix` and their ids."""
    ending = path.suffix.lower()
    if _BAD_NAME.search(name):
        raise UnusableFile("its name holds control characters or is not UTF-8", "rename it")
    if ending != ".jsonl" and ending not in PARSERS:
        raise UnusableFile(f'the ending "{show(ending)}" is not one that is read', f"save it as {_endings()}")
    raw = _read_bytes(path)
    if ending == ".jsonl":
        reading = _parse_rows(decode(raw), row_prefix)
    else:
        text = clean(PARSERS[ending](raw))
        reading = Reading((Document(name, text),) if text.strip() else ())
    if not reading.documents:
        raise UnusableFile("it holds no text", "give a file with text in it")
    return reading


def _read_bytes(path: Path) -> bytes:
    """Read a regular file of limited size that is not empty."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise UnusableFile("not a regular file", "give a file or a folder of files")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UnusableFile(f"its {size:,} bytes are more than {MAX_BYTES:,}", "split it into smaller files")
        raw = path.read_bytes()
    except OSError as error:
        raise UnusableFile(f"it cannot be read ({_os_message(error)})", "check the file and its permissions") from error
    if not raw:
        raise UnusableFile("it is empty", "give a file with text in it")
    return raw


def _parse_rows(text: str, prefix: str) -> Reading:
    """Parse JSON lines into documents; rows without text are skipped."""
    line_of: dict[str, int] = {}
    documents, skipped = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, body = _parse_row(line, number)
        if name in line_of:
            raise UnusableFile(
                f'the id "{show(name)}" is that of line {line_of[name]} already', "give every row its own id", number
            )
        line_of[name] = number
        if body.strip():
            documents.append(Document(prefix + name, body))
        else:
            skipped.append((prefix + name, "it holds no text"))
    return Reading(tuple(documents), tuple(skipped))


def _parse_row(line: str, number: int) -> tuple[str, str]:
    """Return id and text of one row; a title becomes the text's heading."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UnusableFile("not valid JSON", _WRITE_ROWS, number) from None
    if not isinstance(row, dict):
        raise UnusableFile(f"the row is {kind_of(row)}, not an object", _WRITE_ROWS, number)
    if type(row.get("id")) is int:
        row["id"] = str(row["id"])
    name, text = _field(row, "id", number), _field(row, "text", number)
    title = _field(row, "title", number) if row.get("title") is not None else ""
    if not name.strip() or len(name) > MAX_NAME or _BAD_NAME.search(name):
        raise UnusableFile(f'the id "{show(name)}" cannot be cited', "give a short id on one line", number)
    text, title = clean(text), " ".join(clean(title).split())
    if not text.strip():
        return name, title
    if not title or text.lstrip("# \n").startswith(title):
        return name, text
    return name, f"# {title}\n\n{text}"


def _field(row: dict[str, object], key: str, number: int) -> str:
    """Return a field of a row that must be text."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UnusableFile(f'"{key}" is {kind_of(value) if key in row else "missing"}, not text', _WRITE_ROWS, number)
    return value


def _endings() -> str:
    return ", ".join(PARSERS) + " or .jsonl"


def _os_message(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
