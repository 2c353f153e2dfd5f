"""Reads the cells of one row under a layout, and refuses what is missing, blank or not what it should be."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.core.text import show
from tunewise.data.columns import ColumnLayout
from tunewise.data.examples import Message
from tunewise.data.table import BadRow, Fault, SpelledFloat, kind_of

_AS_TEXT = "write it as text"


@dataclass(frozen=True)
class Cells:
    """Holds a row with its layout.

    Attributes:
        layout: what the columns mean.
        number: the row's number in its file.
        row: the cells by column; those that are absent are null.
        told: what happened in all rows that a note tells, with how often; a note is "3 " and then the text.
    """

    layout: ColumnLayout
    number: int
    row: Mapping[str, object]
    told: Counter[str]

    def error(self, slot: str, problem: str, remedy: str, inside: str = "") -> BadRow:
        """Make the error about a place in a cell, such as "[0].content"."""
        return BadRow(Fault(self.number, problem, remedy, self.layout.columns[slot] + inside))

    def value(self, slot: str) -> object:
        """Return the raw value, or None if the row has none."""
        name = self.layout.columns.get(slot)
        return None if name is None else self.row.get(name)

    def text(self, slot: str) -> str:
        """Return the text of a column that must have some."""
        return self._combined(slot) if slot in self.layout.joined else self.check(slot, self.value(slot))

    def optional(self, slot: str) -> str:
        """Return the text of a column that may be absent, null or blank, which all give ""."""
        if slot in self.layout.joined:
            return self._combined(slot, is_optional=True)
        value = self.value(slot)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        return self.check(slot, value)

    def check(self, slot: str, value: object, inside: str = "") -> str:
        """Return the value if it is text that can be used; `inside` is its place in the cell, as in "[0].content"."""
        if not isinstance(value, str):
            if value is None and not inside and self.layout.columns[slot] not in self.row:
                problem = f'the row lacks "{show(self.layout.columns[slot])}"'
                raise BadRow(Fault(self.number, problem, "add it or remove the row"))
            raise self.error(slot, f"{kind_of(value)} where text is needed", _AS_TEXT, inside)
        if not value or value.isspace():
            raise self.error(slot, "the text is empty", "fill it in or remove the row", inside)
        return self.clean(slot, value, inside)

    def clean(self, slot: str, value: str, inside: str = "") -> str:
        """Return text, which may be empty, unless it holds a character that no model can read."""
        if "\0" in value:
            raise self.error(slot, "the text holds a NUL character", "remove it", inside)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.error(slot, "the text holds half of a surrogate pair", "remove it", inside) from None
        return value

    def answer(self, slot: str, value: object, inside: str = "") -> str:
        """Return an answer or a label as text; numbers and true/false are taken as the file spells them."""
        if isinstance(value, str):
            return self.check(slot, value, inside)
        text = number_text(value)
        if text is None:
            return self.check(slot, None if isinstance(value, float) and math.isnan(value) else value, inside)
        if slot != "label" or isinstance(value, float):  # labels are often numbers, and shown as they are
            self.told[f'numbers in the column "{show(self.layout.columns[slot])}" were taken as text'] += 1
        return text

    def name(self, slot: str) -> str:
        """Return the name or number in a column that may be absent; anything else gives ""."""
        value = self.value(slot)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def items(self, slot: str, value: object, inside: str = "") -> list[object]:
        """Return a value that must be a list."""
        if not isinstance(value, list):
            if value is None and not inside and self.layout.columns[slot] not in self.row:
                self.check(slot, None)
            raise self.error(slot, f"{kind_of(value)} where a list is needed", "write it as a list", inside)
        return value

    def json_text(self, slot: str, value: object, inside: str = "") -> str:
        """Return a value as JSON text."""
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise self.error(slot, "the value cannot be written as JSON", "write it as JSON text", inside) from None
        return self.clean(slot, text, inside)

    def system(self) -> list[Message]:
        """Return the system message of the column for it, as a list of one or none."""
        text = self.optional("system")
        return [Message("system", text)] if text else []

    def filled(self, prompt: str) -> str:
        """Return the prompt in the user's template, with the columns that it names."""
        template = self.layout.template
        if template is None:
            return prompt
        values = {key: self._part(column) for key, column in template.columns.items()}
        return template.fill(values | {"prompt": prompt})

    def _combined(self, slot: str, *, is_optional: bool = False) -> str:
        """Return the text that several columns make: the user's template, or a line for each column with its name."""
        template = self.layout.template
        parts = {name: self._part(name) for name in self.layout.joined[slot]}
        if not any(parts.values()):
            if is_optional:
                return ""
            raise self.error(slot, "the text is empty", "fill it in or remove the row")
        if template is not None and not template.has_prompt:
            return template.fill({key: parts[column] for key, column in template.columns.items()})
        return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)

    def _part(self, column: str) -> str:
        """Return the text or number of a column that is a part of the prompt, or "" where it is absent or blank."""
        value = self.row.get(column)
        text = value if isinstance(value, str) else "" if value is None else number_text(value)
        if text is None:
            fault = Fault(self.number, f"{kind_of(value)} where text is needed", _AS_TEXT, column)
            raise BadRow(fault)
        if not text or text.isspace():
            self.told[f'prompts lack the column "{show(column)}", which is empty there'] += 1
            return ""
        try:
            text.encode()
        except UnicodeEncodeError:
            problem = "the text holds half of a surrogate pair"
            raise BadRow(Fault(self.number, problem, "remove it", column)) from None
        if "\0" in text:
            raise BadRow(Fault(self.number, "the text holds a NUL character", "remove it", column))
        return text


def number_text(value: object) -> str | None:
    """Return a finite number or true/false as text, spelled as in the file; None for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value.spelling if isinstance(value, SpelledFloat) else str(value)
    return None
