"""Files into documents: plain text, Markdown, HTML, PDF and JSON lines.

What cannot be read in a folder is named with the reason and left out; a file that is asked for by itself must be
readable. Files are taken to be hostile: nothing in them is executed, fetched or followed out of the folder, sizes are
checked before anything is parsed, and nothing recurses as deep as a file wants.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewise.core.errors import DataError, SettingError
from tunewise.core.text import first_line, show
from tunewise.data.readers import kind_of
from tunewise.retrieval.passage import Document

MAX_BYTES = 100_000_000  # larger files are not opened
MAX_MARKUP = 200_000  # tags and entities of a page: each costs a parser about a kilobyte
MAX_SECONDS = 600.0  # for the pages of one PDF
MAX_NAME = 500

_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UTF8 = "save it as UTF-8 text"
_ROW = 'write one {"id": "...", "text": "..."} per line'


@dataclass(frozen=True)
class Reading:
    """What was read, and what was not: the names of files or rows that were skipped, each with the reason."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """Why one file cannot be used, and what to do about it."""

    def __init__(self, problem: str, remedy: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.line = problem, remedy, line


def read(path: str | Path) -> Reading:
    """Read a folder of documents, with the folders in it, or a single file.

    Raises:
        DataError: there is no such path, nothing in the folder can be used, or the single file cannot.
        SettingError: a file needs a library that is not installed.
    """
    path = Path(path)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # forbidden, too long, or not a path at all
        raise DataError(f"the path cannot be used ({first_line(error)})", remedy="check the path") from error
    if not exists:
        raise DataError("no such file or folder", path=show(str(path), 500), remedy="check the path")
    if is_folder:
        return _folder(path)
    try:
        return _file(path, path.name, "")
    except _Refused as refused:
        where = show(str(path), 500)
        raise DataError(refused.problem, path=where, line=refused.line, remedy=refused.remedy) from refused


def _folder(root: Path) -> Reading:
    files, skipped = _listing(root)
    documents: dict[str, Document] = {}
    for name, path in sorted(files):
        try:
            found = _file(path, name, f"{name}#")
            if twice := [document.name for document in found.documents if document.name in documents]:
                raise _Refused(f'there is a document "{show(twice[0])}" already', "rename the file")
        except _Refused as refused:
            line = "" if refused.line is None else f"line {refused.line}: "
            skipped.append((show(name, MAX_NAME), line + refused.problem))
        else:
            documents |= {document.name: document for document in found.documents}
            skipped += found.skipped
    skipped.sort()
    if not documents:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise DataError(
            f"nothing in the folder can be used ({reasons}{more})" if skipped else "the folder holds no documents",
            path=show(str(root), 500),
            remedy=f"add files with text in them, as {_endings()}",
        )
    return Reading(tuple(documents.values()), tuple(skipped))


def _listing(root: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """The files below a folder by name, and what is not followed; hidden ones are left alone."""
    home = root.resolve()
    pending, files, skipped = [root], [], []
    while pending:  # not recursive, as folders can be nested deeper than Python's stack
        folder = pending.pop()
        try:
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        except OSError as error:
            name = show(folder.relative_to(root).as_posix(), MAX_NAME)
            skipped.append((name, f"the folder cannot be listed ({_said(error)})"))
            continue
        for entry in entries:
            name = entry.relative_to(root).as_posix()
            try:
                if entry.is_symlink() and not entry.resolve().is_relative_to(home):
                    skipped.append((show(name, MAX_NAME), "a link that leaves the folder"))
                elif not entry.is_dir():
                    files.append((name, entry))
                elif entry.is_symlink():  # what it leads to is read in its own place
                    skipped.append((show(name, MAX_NAME), "a link to a folder"))
                else:
                    pending.append(entry)
            except (OSError, RuntimeError) as error:  # forbidden, too long, or links in a circle
                skipped.append((show(name, MAX_NAME), f"it cannot be looked at ({_said(error)})"))
    return files, skipped


def _file(path: Path, name: str, rows: str) -> Reading:
    """The documents of one file; `rows` begins the names of those in a .jsonl file."""
    ending = path.suffix.lower()
    if _UNNAMEABLE.search(name):
        raise _Refused("its name holds control characters or is not UTF-8", "rename it")
    if ending != ".jsonl" and ending not in READERS:
        raise _Refused(f'the ending "{show(ending)}" is not one that is read', f"save it as {_endings()}")
    raw = _bytes(path)
    if ending == ".jsonl":
        found = _rows(_decoded(raw), rows)
    else:
        text = _clean(READERS[ending](raw))
        found = Reading((Document(name, text),) if text.strip() else ())
    if not found.documents:
        raise _Refused("it holds no text", "give a file with text in it")
    return found


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise _Refused("not a regular file", "give a file or a folder of files")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _Refused(f"its {size:,} bytes are more than {MAX_BYTES:,}", "split it into smaller files")
        raw = path.read_bytes()
    except OSError as error:
        raise _Refused(f"it cannot be read ({_said(error)})", "check the file and its permissions") from error
    if not raw:
        raise _Refused("it is empty", "give a file with text in it")
    return raw


def _decoded(raw: bytes) -> str:
    """UTF-8 as text, without a byte-order mark."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Refused("it is UTF-16, not UTF-8", _UTF8)
    if b"\0" in raw:
        raise _Refused(f"it is not text: there is a NUL byte at byte offset {raw.index(0)}", _UTF8)
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at byte offset {error.start}"
        raise _Refused(f"it is not UTF-8 ({where})", _UTF8) from None


def _clean(text: str) -> str:
    """One kind of line end, and no control characters but newline and tab."""
    return _CONTROLS.sub("", _BREAKS.sub("\n", text))


def _rows(text: str, prefix: str) -> Reading:
    """The documents of JSON lines; rows without text are skipped."""
    lines: dict[str, int] = {}
    documents, skipped = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, body = _row(line, number)
        if name in lines:
            raise _Refused(
                f'the id "{show(name)}" is that of line {lines[name]} already', "give every row its own", number
            )
        lines[name] = number
        if body.strip():
            documents.append(Document(prefix + name, body))
        else:
            skipped.append((prefix + name, "it holds no text"))
    return Reading(tuple(documents), tuple(skipped))


def _row(line: str, number: int) -> tuple[str, str]:
    """Id and text of one row; a title becomes the text's heading."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _Refused("not valid JSON", _ROW, number) from None
    if not isinstance(row, dict):
        raise _Refused(f"the row is {kind_of(row)}, not an object", _ROW, number)
    if type(row.get("id")) is int:
        row["id"] = str(row["id"])
    name, text = _field(row, "id", number), _field(row, "text", number)
    title = _field(row, "title", number) if row.get("title") is not None else ""
    if not name.strip() or len(name) > MAX_NAME or _UNNAMEABLE.search(name):
        raise _Refused(f'the id "{show(name)}" cannot be cited', "give a short id on one line", number)
    text, title = _clean(text), " ".join(_clean(title).split())
    if not text.strip():
        return name, title
    if not title or text.lstrip("# \n").startswith(title):
        return name, text
    return name, f"# {title}\n\n{text}"


def _field(row: dict[str, object], key: str, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _Refused(f'"{key}" is {kind_of(value) if key in row else "missing"}, not text', _ROW, number)
    return value


# HTML

_DROPPED = {"script", "style", "nav", "template", "svg", "title"}
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_LINES = {"br", "dd", "dt", "li", "option", "tr"}
# fmt: off
_BLOCKS = _HEADINGS.keys() | {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "details", "dialog", "div", "dl",
    "fieldset", "figcaption", "figure", "footer", "form", "head", "header", "hr", "html", "main", "menu", "noscript",
    "ol", "p", "section", "summary", "table", "ul",
}
# fmt: on
# Without an end, html.parser looks for that of a comment or section again from every place where one begins.
_ENDS = "<!-- ]]> -->"


def _html(raw: bytes) -> str:
    markup = _decoded(raw)
    count = markup.count("<") + markup.count("&")
    if count > MAX_MARKUP:
        raise _Refused(f"its {count:,} tags and entities are more than {MAX_MARKUP:,}", "split it into smaller files")
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise SettingError("HTML files need beautifulsoup4: pip install tunewise[rag]") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page = BeautifulSoup(markup + _ENDS, "html.parser", multi_valued_attributes=None)
            return _page_text(page)
    except Exception as error:  # a parser can fail on damaged markup in any way
        raise _Refused(f"not readable as HTML ({first_line(error)})", "save it again or as text") from error


def _page_text(page: Any) -> str:
    """A page in reading order; its title is its heading if it has no other of the first level."""
    from bs4.element import PreformattedString, Tag

    text = _Blocks()
    if page.title and not page.h1:
        text.enter("h1")
        text.add(page.title.get_text())
        text.leave("h1")
    open_tags = [("", iter(page.contents))]
    while open_tags:  # not recursive, as tags can be nested deeper than Python's stack
        name, rest = open_tags[-1]
        node = next(rest, None)
        if node is None:
            open_tags.pop()
            text.leave(name)
        elif isinstance(node, Tag):
            if node.name == "pre":
                text.add_code(node.get_text())
            elif node.name not in _DROPPED:
                text.enter(node.name)
                open_tags.append((node.name, iter(node.contents)))
        elif not isinstance(node, PreformattedString):  # comments and declarations
            text.add(node)
    return str(text)


class _Blocks:
    """Text as it is met in a page: blocks, lines in them, cells in those."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.pieces: list[str] = []  # of the block that is open
        self.mark = ""

    def __str__(self) -> str:
        self.end_block()
        return "\n\n".join(self.blocks)

    def enter(self, name: str) -> None:
        if name in _BLOCKS:
            self.end_block()
            self.mark = _HEADINGS.get(name, self.mark)
        elif name in _LINES:
            self.pieces.append("\n")

    def leave(self, name: str) -> None:
        if name in _BLOCKS:
            self.end_block()
            self.mark = "" if name in _HEADINGS else self.mark
        elif name in _LINES:
            self.pieces.append("\n")
        elif name in {"td", "th"}:
            self.pieces.append("\t")

    def add(self, text: str) -> None:
        self.pieces.append(re.sub(r"\s+", " ", text))

    def add_code(self, text: str) -> None:
        """Code in a fence, so that none of its lines is taken for a heading."""
        self.end_block()
        if text.strip():
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            self.blocks.append(f"{fence}\n{text.strip(chr(10))}\n{fence}")

    def end_block(self) -> None:
        lines = []
        for line in "".join(self.pieces).split("\n"):
            cells = [" ".join(cell.split()) for cell in line.split("\t")]
            lines.append(" | ".join(cell for cell in cells if cell))
        self.pieces = []
        text = (" " if self.mark else "\n").join(line for line in lines if line)
        if text:
            self.blocks.append(self.mark + text)
            self.mark = ""  # a heading that is never closed would make headings of all that follows


# PDF


def _pdf(raw: bytes) -> str:
    """The text of each page, pages apart by blank lines."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise SettingError("PDF files need pypdf: pip install tunewise[rag]") from error
    end = time.monotonic() + MAX_SECONDS
    pages: list[str] = []
    size = 0
    try:
        with _quiet():
            reader = PdfReader(io.BytesIO(raw))
            if reader.is_encrypted:
                raise DependencyError
            for page in reader.pages:
                pages.append(page.extract_text().strip())
                size += len(pages[-1])
                if size > MAX_BYTES or time.monotonic() > end:
                    raise _Refused("its pages unfold to too much to read", "split it into smaller files")
    except _Refused:
        raise
    except DependencyError:  # what pypdf raises for the ciphers that it lacks
        raise _Refused("it is encrypted", "save it without a password") from None
    except Exception as error:  # a damaged file can raise anything: recursion, memory, keys, types
        raise _Refused(f"not a readable PDF ({first_line(error)})", "save it again or as text") from error
    if not any(pages):
        raise _Refused("its pages hold no text, as scans do", "run text recognition (OCR) on it")
    return "\n\n".join(page for page in pages if page)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what pypdf logs about each fault that it mends."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


READERS: dict[str, Callable[[bytes], str]] = {
    ".txt": _decoded,
    ".md": _decoded,
    ".markdown": _decoded,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}


def _endings() -> str:
    return ", ".join(READERS) + " or .jsonl"


def _said(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
