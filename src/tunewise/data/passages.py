"""Cuts a few long texts into passages, so that a book can be split into train, validation and test.

Texts are otherwise kept whole: what fits into a model's window is decided by its tokens, where they are known.
"""

from __future__ import annotations

from collections.abc import Iterator

from tunewise.data.example_collection import ExampleCollection
from tunewise.data.examples import Example

PASSAGE = 2000  # characters
_SHORTEST = 200  # where a text is short; a tenth of it otherwise
_ENOUGH = 30  # texts that are split as they are
_BOUNDARIES = (("\n\n", "\r\n\r\n"), ("\n", ". ", "! ", "? ", "。", "！", "？", "।"), (" ", "\t"))


def cut_long_texts(collection: ExampleCollection) -> tuple[ExampleCollection, str | None]:
    """Cut long texts where there are too few to hold some back, and say so in a note."""
    texts: set[str] = set()
    for example in collection.examples:
        texts.add(example.answer)
        if len(texts) >= _ENOUGH:
            return collection, None
    size = max(_SHORTEST, min(PASSAGE, sum(map(len, texts)) // 10))
    counts = [sum(1 for _ in _passages(example.answer, size)) for example in collection.examples]
    long = [count for count in counts if count > 1]
    if not long:
        return collection, None
    passages = (passage for example in collection.examples for passage in _passages(example.answer, size))
    parts = ExampleCollection.of((Example((), passage) for passage in passages), collection.kind)
    what = "1 long text was" if len(long) == 1 else f"{len(long)} long texts were"
    count = sum(long)
    return parts, f"{what} cut into {count} passages of about {size:,} characters, so that some can be held back"


def _passages(text: str, size: int) -> Iterator[str]:
    """Yield the passages of a text, which together are the text; one that is not much too long stays whole."""
    start = 0
    while len(text) - start > size * 3 // 2:
        end = _boundary(text, start, size)
        if text[start:end].strip() and text[end:].strip():
            yield text[start:end]
            start = end
        else:
            break
    yield text[start:]


def _boundary(text: str, start: int, size: int) -> int:
    """Return where a passage from `start` ends: at a paragraph, a line or sentence, or a space in its second half."""
    earliest, latest = start + size // 2, start + size
    for marks in _BOUNDARIES:
        ends = [place + len(mark) for mark in marks if (place := text.rfind(mark, earliest, latest)) >= 0]
        if ends:
            return max(ends)
    return latest
