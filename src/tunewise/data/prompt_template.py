"""Reads a template that names columns of the data, such as "{premise} So {hypothesis}?"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tunewise.core.errors import SettingError
from tunewise.core.text import listed
from tunewise.data.table import Table

_BRACES = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"\w[\w .-]*")
_MEANINGS = ("prompt", "labels")  # of braces that name no column


@dataclass(frozen=True)
class PromptTemplate:
    """Holds the user's template where it names columns.

    Attributes:
        text: what is filled for each row and becomes the prompt.
        columns: the name in braces and the column that it stands for.
        around: the template around that prompt, which the model's side fills.
    """

    text: str
    columns: Mapping[str, str]
    around: str

    @property
    def has_prompt(self) -> bool:
        """Tell whether the text holds the row's prompt beside the columns."""
        return "{prompt}" in self.text

    def fill(self, values: Mapping[str, str]) -> str:
        """Put values into the braces; braces inside a value stay as they are."""
        return _BRACES.sub(lambda match: values.get(match[1], match[0]), self.text)


def names_prompt(template: str) -> bool:
    """Tell whether a template holds `{prompt}` or may name columns."""
    names = _BRACES.findall(template)
    return "prompt" in names or any(name not in _MEANINGS and _NAME.fullmatch(name) for name in names)


def prompt_template(table: Table, template: str | None) -> PromptTemplate | None:
    """Return the template if it names columns of a table.

    Raises:
        DataError: it names what is neither a column nor `prompt` or `labels`.
        SettingError: `{labels}` stands between two columns.
    """
    if template is None:
        return None
    by_lower = {name.strip().lower(): name for name in table.name_counts}
    columns: dict[str, str] = {}
    unknown: list[str] = []
    for name in dict.fromkeys(_BRACES.findall(template)):
        if name in _MEANINGS:
            continue
        column = name if name in table.name_counts else by_lower.get(name.strip().lower())
        if column is not None:
            columns[name] = column
        elif _NAME.fullmatch(name):
            unknown.append(name)
    if unknown:
        raise table.error(
            f"the template names {listed(unknown)}, which is no column",
            f"use {{prompt}}, {{labels}} or the columns {listed(table.name_counts)}",
        )
    if not columns:
        return None
    filled = [match for match in _BRACES.finditer(template) if match[1] in columns or match[1] == "prompt"]
    # The model's side fills in the labels, so what holds them stays around the prompt.
    start = filled[0].start() if "{labels}" in template[: filled[0].start()] else 0
    end = filled[-1].end() if "{labels}" in template[filled[-1].end() :] else len(template)
    if "{labels}" in template[start:end]:
        raise SettingError("template: {labels} stands between columns; write it before or after all of them")
    return PromptTemplate(template[start:end], columns, template[:start] + "{prompt}" + template[end:])
