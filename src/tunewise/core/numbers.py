"""Reads numbers that people and models write in text, exactly and in time that is linear in the text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

_LONGEST = 400  # characters of one number, and its largest exponent; what is beyond is not read as a number
_SIGNS = str.maketrans({
    **dict.fromkeys("−–﹣－", "-"), "＋": "+", "．": ".", "٫": ".", "٬": ",", **dict.fromkeys("⁄∕／", "/"),
    **dict.fromkeys("％٪", "%"),
})  # fmt: skip
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,50})\}\{(\d{1,50})\}")
_GROUPING = "'’\u00a0\u2009\u202f"  # white space and apostrophes that stand between groups of three digits
# A minus sign after a letter, a digit or a closing bracket joins or subtracts (10-5), and digits that follow a Latin
# letter are part of a name (H2O). Repetition is possessive, so that no text is read twice.
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}%])(?P<sign>[-+]))?
    [$€£¥₹]?
    (?<![A-Za-z_\d])
    (?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}[ ]?/[ ]?\d))?
    (?P<digits>\d(?:\d|[,.{_GROUPING}](?=\d))*+|\.\d++)
    (?:[eE](?P<exponent>[-+]?\d++)(?![A-Za-z])|[ ]?[×x*·⋅][ ]?10(?:\^|\*\*)\{{?(?P<power>[-+]?\d++)\}}?)?
    (?:[ ]?/[ ]?(?P<denominator>\d++)(?![\d.,]*\d))?
    (?P<percent>[ ]?\\?%)?
    """,
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{2,3})*+(?<=,\d{3})")
_MARK = "####"  # precedes the final answer in GSM8K and data of its kind


@dataclass(frozen=True)
class Number:
    """Holds a number of a text exactly; of a percentage, `value` is the number before the sign."""

    value: Fraction
    is_percentage: bool = False

    def equals(self, other: Number) -> bool:
        """Compare exactly; a percentage equals its number and its hundredth, as 50 % equals 50 and 0.5."""
        if self.is_percentage == other.is_percentage:
            return self.value == other.value
        percentage, plain = (self, other) if self.is_percentage else (other, self)
        return plain.value in (percentage.value, percentage.value / 100)


def is_finite(value: float) -> bool:
    """Tell whether a number is finite as a float; a whole number can be larger than any float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def final_number(text: str) -> Number | None:
    """Return the last number of a text, or the first one after its last "####"; None if there is none.

    Understood are signs (also the Unicode minus), thousands separators, a decimal point or comma, fractions and mixed
    numbers (3/4, 1 1/2, ½), powers of ten (1e3, 1.5 × 10^3), percentages and currency signs before a number.
    """
    _, mark, after = text.rpartition(_MARK)
    numbers = (number for match in _NUMBER.finditer(_plain(after)) if (number := _number_of(match)) is not None)
    if mark and (first := next(numbers, None)) is not None:
        return first
    last = None
    for number in numbers:
        last = number
    return last


def are_numbers(answers: Iterable[str]) -> bool:
    """Tell whether there are answers, and each is a number or ends in "#### " and a number; 007 is a name."""
    listed = list(answers)
    return bool(listed) and all(map(_is_number, listed))


def _is_number(answer: str) -> bool:
    _, mark, after = answer.rpartition(_MARK)
    text = _plain(after).strip()
    match = _NUMBER.fullmatch(text)
    if match is None or _number_of(match) is None:
        return False
    return bool(mark) or re.match(r"0\d", match["digits"]) is None


def _plain(text: str) -> str:
    """Write signs, fractions and LaTeX's spelling of both in ASCII."""
    if not text.isascii():
        text = "".join(_vulgar_fraction(c) if unicodedata.category(c) == "No" else c for c in text).translate(_SIGNS)
    return _LATEX_FRACTION.sub(r"\1/\2", text.replace("{,}", ",").replace("\\$", "$"))


def _vulgar_fraction(character: str) -> str:
    """Return " 1/2" for ½, and other characters as they are."""
    is_fraction = unicodedata.decomposition(character).startswith("<fraction>")
    return " " + unicodedata.normalize("NFKC", character).replace("⁄", "/") if is_fraction else character


def _number_of(match: re.Match[str]) -> Number | None:
    exponent = match["exponent"] or match["power"] or "0"
    if len(match[0]) > _LONGEST or abs(int(exponent)) > _LONGEST:
        return None
    value = _decimal(match["digits"])
    if value is None:
        return None
    if match["denominator"] is not None:
        if int(match["denominator"]) == 0:
            return None
        value /= int(match["denominator"])
    if match["whole"] is not None:
        value += int(match["whole"])
    value *= Fraction(10) ** int(exponent)
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _decimal(digits: str) -> Fraction | None:
    """Return the value of digits with separators; None where they are no number, as in the version 3.11.2."""
    digits = re.sub(f"[{_GROUPING}]", "", digits)
    points, commas = digits.count("."), digits.count(",")
    if points > 1 and commas <= 1 and _THOUSANDS.fullmatch(digits.partition(",")[0].replace(".", ",")):
        digits, points, commas = digits.replace(".", "").replace(",", "."), commas, 0  # 1.234.567,8
    elif points == commas == 1 and digits.index(".") < digits.index(","):
        digits, commas = digits.replace(".", "").replace(",", "."), 0  # 1.234,5
    if points > 1:
        return None
    whole = digits.partition(".")[0]
    if commas and _THOUSANDS.fullmatch(whole):
        digits = digits.replace(",", "")
    elif commas == 1 and not points:
        digits = digits.replace(",", ".")  # 3,5
    elif commas:
        digits = digits.rpartition(",")[2]  # 1,2,3 is a list
    return Fraction(digits if not digits.startswith(".") else "0" + digits)
