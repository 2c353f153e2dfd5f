"""Tokens as text while they are generated: only what no later token can change, and nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"  # what the first bytes of a character decode to, until the others come


class Text:
    """The text of one answer, returned piece by piece; `decode` turns ids into text.

    With `strip`, white space at both ends is left out.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str], strip: bool) -> None:
        self.decode, self.stops, self.strip = decode, tuple(stops), strip
        self.ids: list[int] = []
        self.returned = 0  # characters of `whole` that pieces have returned or left out
        self.whole = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that has become certain by it."""
        self.ids.append(token)
        self.whole = self.decode(self.ids)
        starts = [start for stop in self.stops if (start := self.whole.find(stop)) >= 0]
        if starts:
            self.whole, self.stopped = self.whole[: min(starts)], True
            return self.finish()
        return self._take(self._certain_length(self.whole))

    def finish(self) -> str:
        """Return the rest of the text, when no token follows."""
        return self._take(len(self.whole.rstrip()) if self.strip else len(self.whole))

    def _certain_length(self, text: str) -> int:
        """Count the characters that can be returned now.

        Those after them may still change, be the start of a stop text, or be white space at the end.
        """
        uncertain = len(text) - len(text.rstrip(_INCOMPLETE))
        for stop in self.stops:
            uncertain = max(uncertain, *(size for size in range(len(stop)) if text.endswith(stop[:size])))
        certain = text[: len(text) - uncertain]
        return len(certain.rstrip()) if self.strip else len(certain)

    def _take(self, end: int) -> str:
        """Return the characters up to `end` that were not returned yet."""
        start = self.returned
        if self.strip and not start:
            start = len(self.whole) - len(self.whole.lstrip())
        if end <= start:
            return ""
        self.returned = end
        return self.whole[start:end]
