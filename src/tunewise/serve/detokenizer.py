"""Tokens as text while they come: only what no later token can change, and nothing from a stop on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what the first bytes of a character decode to, until the others come


class Text:
    """The text of one answer; `decode` turns ids into text.

    With `strip`, white space at both ends is left out, as answers to questions are shown.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str], strip: bool) -> None:
        self.decode, self.stops, self.strip = decode, tuple(stops), strip
        self.ids: list[int] = []
        self.told = 0
        self.whole = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What is certain now and was not before."""
        self.ids.append(token)
        self.whole = self.decode(self.ids)
        places = [place for stop in self.stops if (place := self.whole.find(stop)) >= 0]
        if places:
            self.whole, self.stopped = self.whole[: min(places)], True
            return self.finish()
        return self._tell(self._certain(self.whole))

    def finish(self) -> str:
        """What is left to tell."""
        end = len(self.whole.rstrip()) if self.strip else len(self.whole)
        return self._tell(end)

    def _certain(self, text: str) -> int:
        """Characters before what may yet change, be the beginning of a stop, or be white space that is left out."""
        held = len(text) - len(text.rstrip(_BROKEN))
        for stop in self.stops:
            held = max(held, *(size for size in range(len(stop)) if text.endswith(stop[:size])))
        certain = text[: len(text) - held]
        return len(certain.rstrip()) if self.strip else len(certain)

    def _tell(self, end: int) -> str:
        start = self.told
        if self.strip and not start:
            start = len(self.whole) - len(self.whole.lstrip())
        if end <= start:
            return ""
        self.told = end
        return self.whole[start:end]
