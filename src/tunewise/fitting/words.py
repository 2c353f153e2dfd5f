"""Splits text of any script into words, for scores that count words.

Scripts that write no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Myanmar) are split by character, as
sacrebleu's tokenizer for Chinese does. A combining mark, such as a Hindi vowel sign, stays with the character before.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache

# How Unicode's names of their characters begin.
_UNSPACED = (
    *("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "CJK RADICAL", "KANGXI RADICAL", "IDEOGRAPHIC", "BOPOMOFO"),
    *("HIRAGANA", "KATAKANA", "HENTAIGANA", "THAI", "LAO", "KHMER", "MYANMAR", "YI ", "TANGUT", "NUSHU"),
)
# Forms of one character for layout only, such as full-width Latin, half-width kana, ligatures and Arabic letters as
# they join. Superscripts and fractions are none: 5² is not 52.
_LAYOUT_FORMS = ("<wide>", "<narrow>", "<compat>", "<noBreak>", "<initial>", "<medial>", "<final>", "<isolated>")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGN_OR_POINT = re.compile(r"(?<![\w)\].-])-(?=[$€£¥]?\.?\d)|(?<=\d)\.(?=\d)|(?<![\w.])\.(?=\d)")
_JOINERS = "\u200c\u200d"  # they shape the letters beside them


def rouge_words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation; of ASCII text those of rouge-score's own tokenizer.

    Symbols such as emoji are words too. A text that has nothing else, such as "+", gives its characters, where
    rouge-score finds no words at all.
    """
    words: list[str] = []
    extends_last = takes_marks = False
    folded = _folded(text).casefold() if not text.isascii() else text.lower()
    for character in unicodedata.normalize("NFC", folded):
        kind = _kind(character)
        if kind == "joiner":
            continue
        if (kind == "letter" and extends_last) or (kind == "mark" and takes_marks):
            words[-1] += character
        elif kind != "none":
            words.append(character)
        if kind == "mark":
            extends_last = extends_last or not takes_marks
            takes_marks = True
        else:
            extends_last, takes_marks = kind == "letter", kind != "none"
    return words or [character for character in folded if not character.isspace()]


def spaced(text: str) -> str:
    """Return a text with spaces around every character of a script that has none; any other text is not changed."""
    if text.isascii() or not any(map(_is_unspaced, text)):
        return text
    parts: list[str] = []
    after_unspaced = False
    for character in text:
        if not unicodedata.category(character).startswith("M"):
            is_unspaced = _is_unspaced(character)
            if is_unspaced or after_unspaced:
                parts.append(" ")
            after_unspaced = is_unspaced
        parts.append(character)
    return "".join(parts)


def squad_words(text: str, *, without_articles: bool = True) -> list[str]:
    """Return the words of a text as SQuAD's official script does, in lower case, without punctuation and articles.

    Unlike there, Unicode's punctuation is removed too, the sign and the decimal point of a number stay, and scripts
    without spaces are split by character.
    """
    folded = unicodedata.normalize("NFC", _folded(text)).replace("−", "-").lower()
    of_numbers = {match.start() for match in _SIGN_OR_POINT.finditer(folded)}
    plain = "".join(c for place, c in enumerate(folded) if not _is_punctuation(c) or place in of_numbers)
    return spaced(_ARTICLES.sub(" ", plain) if without_articles else plain).split()


@lru_cache(maxsize=1 << 16)
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _folded(text: str) -> str:
    """Replace characters that are only another form of one for layout."""
    return text if text.isascii() else "".join(map(_without_layout_form, text))


@lru_cache(maxsize=1 << 16)
def _without_layout_form(character: str) -> str:
    is_layout_form = unicodedata.decomposition(character).startswith(_LAYOUT_FORMS)
    return unicodedata.normalize("NFKC", character) if is_layout_form else character


@lru_cache(maxsize=1 << 16)
def _is_unspaced(character: str) -> bool:
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """Return "letter" (letters and digits), "single" (a word of its own), "mark", "joiner" or "none"."""
    category = unicodedata.category(character)
    if category.startswith("M"):
        return "mark"
    if category[0] in "LN" or category == "Co":
        return "single" if _is_unspaced(character) and category != "Nd" else "letter"
    if category.startswith("S") and not character.isascii():
        return "single"
    return "joiner" if character in _JOINERS else "none"
