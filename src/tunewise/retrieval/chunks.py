"""Cuts documents into passages at headings, paragraphs and sentences, each as long as a number of tokens allows.

A passage is one span of its document. Headings at its start are not part of the passage but of its heading path, so
that no passage consists of a heading alone. The library semantic-text-splitter does the cutting itself.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from tunewise.core.errors import SettingError
from tunewise.core.progress import Progress, silent
from tunewise.retrieval.passage import Document, Passage

MIN_SIZE = 16  # tokens
MAX_HEADING = 200  # characters; a longer line is taken for text

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_MARKS = " \t\n`~-=_*#|>+:"
_PIECE = 64  # characters per piece, for each token that a passage may have


def split(document: Document, tokenizer: Tokenizer, size: int = 256, overlap: int = 32) -> list[Passage]:
    """Cut a document into passages of at most `size` tokens, in order.

    Args:
        document: what to cut.
        tokenizer: counts the tokens; it is the `backend_tokenizer` of a fast tokenizer of transformers.
        size: tokens per passage, at most; only a single character that has more tokens may exceed it.
        overlap: tokens at the end of a passage, at most, that the next one repeats: as many of its last sentences as
            fit, or of its last words where a sentence is cut.

    Raises:
        SettingError: size or overlap is out of range.

    Examples:
        >>> for passage in split(Document("manual.md", text), tokenizer):
        ...     print(passage.id, passage.heading)
    """
    return _Cutter(tokenizer, size, overlap).cut(document)


def split_all(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    size: int = 256,
    overlap: int = 32,
    report: Progress = silent,
) -> list[Passage]:
    """Cut many documents, and return the passages of all in one list, document by document.

    Raises:
        SettingError: size or overlap is out of range.
    """
    cutter = _Cutter(tokenizer, size, overlap)
    documents = list(documents)
    passages: list[Passage] = []
    for done, document in enumerate(documents, 1):
        passages += cutter.cut(document)
        report("cutting", done, len(documents))
    return passages


class _Cutter:
    """Cuts documents with one tokenizer and one size; the splitters are made when first needed."""

    def __init__(self, tokenizer: Tokenizer, size: int, overlap: int) -> None:
        if size < MIN_SIZE:
            raise SettingError(f"a passage of {size} tokens is too small; allow at least {MIN_SIZE}")
        if not 0 <= overlap < size // 2:
            limit = size // 2 - 1
            raise SettingError(f"an overlap of {overlap} tokens does not fit passages of {size}; give 0 to {limit}")
        if tokenizer.truncation or tokenizer.padding:  # an earlier user may have left them on: counts would be wrong
            tokenizer = Tokenizer.from_str(tokenizer.to_str())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.tokenizer, self.size, self.overlap = tokenizer, size, overlap

    @cached_property
    def plain(self) -> TextSplitter:
        return TextSplitter.from_huggingface_tokenizer(self.tokenizer, self.size, self.overlap)

    @cached_property
    def markdown(self) -> MarkdownSplitter:
        return MarkdownSplitter.from_huggingface_tokenizer(self.tokenizer, self.size, self.overlap)

    def cut(self, document: Document) -> list[Passage]:
        """Cut one document."""
        text = document.text
        headings = _headings(text)
        starts = [heading.start for heading in headings]
        splitter = self.markdown if headings else self.plain
        passages: list[Passage] = []
        for offset, piece in _pieces(text, starts, _PIECE * self.size):
            for position, chunk in splitter.chunk_indices(piece):
                start, end = offset + position, offset + position + len(chunk)
                first, above = _first_character(text, start, end, starts)
                while above >= 0 and first < headings[above].end:  # it starts with a heading, or in the middle of one
                    start = headings[above].end
                    first, above = _first_character(text, start, end, starts)
                start = max(start, text.rfind("\n", start, first) + 1)  # drop blank lines, keep the indent of code
                if not text[first:end].strip(_MARKS):  # nothing, or the rest of a fence, a rule or a table
                    continue
                if passages and end <= passages[-1].end:
                    continue
                if passages and start <= passages[-1].start:  # without its headings the last one is a part of this
                    passages.pop()
                path = headings[above].path if above >= 0 else ""
                passages.append(Passage(document.name, start, end, text[start:end], path))
        return passages


def _pieces(text: str, starts: list[int], size: int) -> Iterator[tuple[int, str]]:
    """Yield a long text in pieces with their offsets; each ends at a heading, paragraph, line, sentence or word.

    For every passage the splitter looks ahead to the end of the section or sentence. Its time would grow with the
    square of the length of a section, which only these pieces bound.
    """
    start = 0
    while len(text) - start > size:
        low, high = start + size // 2, start + size
        heading = bisect_right(starts, high) - 1
        ends = [text.rfind(border, low, high) + 1 for border in ("\n\n", "\n", ". ", " ")]
        if heading >= 0 and starts[heading] > low:
            ends.insert(0, starts[heading])
        end = next((end for end in ends if end), high)
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _first_character(text: str, start: int, end: int, starts: list[int]) -> tuple[int, int]:
    """Return the offset of the first character that is not blank, and the index of the last heading up to it, or -1."""
    first = start + len(text[start:end]) - len(text[start:end].lstrip())
    return first, bisect_right(starts, first) - 1


@dataclass(frozen=True)
class _Heading:
    """Holds the span of a heading's line, text[start:end], and the path of headings down to it."""

    start: int
    end: int
    path: str


def _headings(text: str) -> list[_Heading]:
    """Find the headings that `#` marks at the start of a line, except in fenced code."""
    headings: list[_Heading] = []
    above: list[tuple[int, str]] = []
    fence, start = "", 0
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif len(line) <= MAX_HEADING and (match := _HEADING.fullmatch(line)):
            level = len(match[1])
            above = [*((depth, title) for depth, title in above if depth < level), (level, match[2])]
            headings.append(_Heading(start, start + len(line), " > ".join(title for _, title in above)))
        start += len(line) + 1
    return headings
