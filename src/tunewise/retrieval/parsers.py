"""Turns the bytes of plain text, Markdown, HTML and PDF files into text.

Files are taken to be hostile: nothing in them is executed or fetched, sizes are checked before anything is parsed, and
no loop here recurses as deep as a file is nested.
"""

from __future__ import annotations

import io
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tunewise.core.extras import require
from tunewise.core.text import first_line

MAX_BYTES = 100_000_000  # larger files are not opened
MAX_MARKUP = 200_000  # tags and entities in an HTML page; each costs the parser about a kilobyte
MAX_SECONDS = 600.0  # for all pages of one PDF

_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SAVE_AS_UTF8 = "save it as UTF-8 text"


class UnusableFile(Exception):
    """Says why one file cannot be used (`problem`, in its `line` if that is known) and what to do (`remedy`)."""

    def __init__(self, problem: str, remedy: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.line = problem, remedy, line


def decode(raw: bytes) -> str:
    """Decode UTF-8, without a byte-order mark; raises `UnusableFile` for anything else."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnusableFile("it is UTF-16, not UTF-8", _SAVE_AS_UTF8)
    if b"\0" in raw:
        raise UnusableFile(f"it is not text: there is a NUL byte at byte offset {raw.index(0)}", _SAVE_AS_UTF8)
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at byte offset {error.start}"
        raise UnusableFile(f"it is not UTF-8 ({where})", _SAVE_AS_UTF8) from None


def clean(text: str) -> str:
    """Make all line ends newlines, and remove control characters other than newline and tab."""
    return _CONTROLS.sub("", _BREAKS.sub("\n", text))


# HTML.

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
# html.parser searches the rest of a page anew for every unclosed comment or section; these ends keep that linear.
_ENDS = "<!-- ]]> -->"


def _html(raw: bytes) -> str:
    """Parse an HTML page into Markdown-like text."""
    markup = decode(raw)
    count = markup.count("<") + markup.count("&")
    if count > MAX_MARKUP:
        raise UnusableFile(
            f"its {count:,} tags and entities are more than {MAX_MARKUP:,}", "split it into smaller files"
        )
    require("HTML files", "bs4")
    from bs4 import BeautifulSoup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page = BeautifulSoup(markup + _ENDS, "html.parser", multi_valued_attributes=None)
            return _page_text(page)
    except Exception as error:  # a parser can fail on damaged markup in any way
        raise UnusableFile(f"not readable as HTML ({first_line(error)})", "save it again or as text") from error


def _page_text(page: Any) -> str:
    """Return a page's text in reading order; the title becomes its heading if it has no other of the first level."""
    from bs4.element import PreformattedString, Tag

    blocks = _Blocks()
    if page.title and not page.h1:
        blocks.enter("h1")
        blocks.add(page.title.get_text())
        blocks.leave("h1")
    open_tags = [("", iter(page.contents))]
    while open_tags:  # not recursive, as tags can be nested deeper than Python's stack
        name, children = open_tags[-1]
        node = next(children, None)
        if node is None:
            open_tags.pop()
            blocks.leave(name)
        elif isinstance(node, Tag):
            if node.name == "pre":
                blocks.add_code(node.get_text())
            elif node.name not in _DROPPED:
                blocks.enter(node.name)
                open_tags.append((node.name, iter(node.contents)))
        elif not isinstance(node, PreformattedString):  # comments and declarations
            blocks.add(node)
    return str(blocks)


class _Blocks:
    """Collects the text of a page, while it is read, into blocks of lines of cells."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.pieces: list[str] = []  # of the open block
        self.mark = ""  # of the open heading, as in "## "

    def __str__(self) -> str:
        self.end_block()
        return "\n\n".join(self.blocks)

    def enter(self, name: str) -> None:
        """Take note of an opening tag."""
        if name in _BLOCKS:
            self.end_block()
            self.mark = _HEADINGS.get(name, self.mark)
        elif name in _LINES:
            self.pieces.append("\n")

    def leave(self, name: str) -> None:
        """Take note of a closing tag."""
        if name in _BLOCKS:
            self.end_block()
            self.mark = "" if name in _HEADINGS else self.mark
        elif name in _LINES:
            self.pieces.append("\n")
        elif name in {"td", "th"}:
            self.pieces.append("\t")

    def add(self, text: str) -> None:
        """Add text to the open block, with its white space collapsed."""
        self.pieces.append(re.sub(r"\s+", " ", text))

    def add_code(self, text: str) -> None:
        """Add code in a fence, so that none of its lines is taken for a heading."""
        self.end_block()
        if text.strip():
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            self.blocks.append(f"{fence}\n{text.strip(chr(10))}\n{fence}")

    def end_block(self) -> None:
        """Close the open block and keep it if it has text."""
        lines = []
        for line in "".join(self.pieces).split("\n"):
            cells = [" ".join(cell.split()) for cell in line.split("\t")]
            lines.append(" | ".join(cell for cell in cells if cell))
        self.pieces = []
        text = (" " if self.mark else "\n").join(line for line in lines if line)
        if text:
            self.blocks.append(self.mark + text)
            self.mark = ""  # an unclosed heading must not turn all that follows into headings


# PDF.


def _pdf(raw: bytes) -> str:
    """Return the text of all pages, with a blank line between them."""
    require("PDF files", "pypdf")
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    deadline = time.monotonic() + MAX_SECONDS
    pages: list[str] = []
    characters = 0
    try:
        with _pypdf_silenced():
            reader = PdfReader(io.BytesIO(raw))
            if reader.is_encrypted:
                raise DependencyError
            for page in reader.pages:
                pages.append(page.extract_text().strip())
                characters += len(pages[-1])
                if characters > MAX_BYTES or time.monotonic() > deadline:
                    raise UnusableFile("its pages hold too much text", "split it into smaller files")
    except UnusableFile:
        raise
    except DependencyError:  # what pypdf raises for the ciphers that it lacks
        raise UnusableFile("it is encrypted", "save it without a password") from None
    except Exception as error:  # a damaged file can raise anything: recursion, memory, keys, types
        raise UnusableFile(f"not a readable PDF ({first_line(error)})", "save it again or as text") from error
    if not any(pages):
        raise UnusableFile("its pages hold no text, as scans do", "run text recognition (OCR) on it")
    return "\n\n".join(page for page in pages if page)


@contextmanager
def _pypdf_silenced() -> Iterator[None]:
    """Suppress what pypdf logs and warns about each fault that it repairs."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


PARSERS: dict[str, Callable[[bytes], str]] = {
    ".txt": decode,
    ".md": decode,
    ".markdown": decode,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}
