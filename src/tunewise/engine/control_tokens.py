"""Keeps text from acting as control tokens: what spells one is hidden from a chat template, and stays text.

A hidden token is spelled in private-use characters of the same number, which a template passes on, and is tokenized as
the text that it is afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_HIDDEN = 0xF0000  # the first character of the private-use plane that hidden characters are moved to


class ControlTokens:
    """Hides the control tokens that a text spells, so that they stay text.

    Args:
        tokenizer: all of its special tokens are control tokens.
        structure: texts of a chat template; added tokens that occur in them are control tokens too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, structure: Sequence[str] = ()) -> None:
        added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        names = {token.content for token in added if token.special or any(token.content in t for t in structure)}
        names |= {str(token) for token in tokenizer.all_special_tokens}
        ordered = sorted(filter(None, names), key=len, reverse=True)
        splitting = {token.content for token in added if token.special and not token.normalized}
        self._spelled, self._splitting = _any_of(ordered), _any_of([name for name in ordered if name in splitting])
        self._hidden = _any_of([_moved(name, _HIDDEN) for name in ordered])

    def hide(self, text: str) -> str:
        """Return the text with every control token in it hidden."""
        return self._spelled.sub(lambda match: _moved(match[0], _HIDDEN), text)

    def show(self, text: str) -> str:
        """Return the text as it was before `hide`."""
        return self._hidden.sub(lambda match: _moved(match[0], -_HIDDEN), text)

    def hides(self, text: str) -> bool:
        """Tell whether something in the text is hidden."""
        return self._hidden.search(text) is not None

    def last(self, text: str) -> int | None:
        """Return where the last token begins that a tokenizer splits a text at before all else; None if none does.

        What stands before it and what stands from there on are tokenized independently.
        """
        return max((match.start() for match in self._splitting.finditer(text)), default=None)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Split a text into pieces of template and text, and pieces (True) that spell a control token."""
        pieces, end = list[tuple[str, bool]](), 0
        for match in self._hidden.finditer(text):
            pieces += [(text[end : match.start()], False), (_moved(match[0], -_HIDDEN), True)]
            end = match.end()
        return [(piece, plain) for piece, plain in [*pieces, (text[end:], False)] if piece]


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in names) or r"(?!)")


def _moved(text: str, distance: int) -> str:
    return "".join(chr(ord(character) + distance) for character in text)
