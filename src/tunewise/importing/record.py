"""What became of each setting of a file, and the configuration that they make together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.text import visible
from tunewise.importing.source import Entry

Command: TypeAlias = Literal["fit", "compare"]
Setting: TypeAlias = str | int | float | bool | list[str]
# In the order of the configuration. Names with a point are a technique's settings, as `--set` takes them, or columns.
_FIRST = ("technique", "techniques", "model", "revision", "data", "columns", "kind", "out")
_COLUMNS = "columns."
HEADING = "# Made by tunewise import"


class Fate(StrEnum):
    """What became of a setting."""

    TAKEN = "taken"
    SAME = "needs nothing"
    LEFT = "not taken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Outcome:
    """Says what became of a setting: the settings here that it became, and what there is to say about it."""

    fate: Fate
    settings: Mapping[str, Setting] = field(default_factory=dict)
    remark: str = ""


def took(settings: Mapping[str, Setting], remark: str = "") -> Outcome:
    """Say that a setting became these settings."""
    return Outcome(Fate.TAKEN, settings, remark)


def same(remark: str = "") -> Outcome:
    """Say that nothing has to be done for a setting."""
    return Outcome(Fate.SAME, remark=remark)


def left(remark: str) -> Outcome:
    """Say that a setting has no equivalent, and what to do instead."""
    return Outcome(Fate.LEFT, remark=remark)


@dataclass(frozen=True)
class Line:
    """Holds an entry of the file, or a default of the program, and what became of it."""

    entry: Entry
    outcome: Outcome

    @property
    def became(self) -> str:
        """Return the settings that the entry became, as people read them; empty where there are none."""
        return ", ".join(f"{name}: {_plain(value)}" for name, value in self.outcome.settings.items())

    def to_json(self) -> JsonObject:
        """Return what `tunewise import --json` prints of this line."""
        return {
            "line": self.entry.line,
            "key": self.entry.key,
            "value": self.entry.shown,
            "fate": str(self.outcome.fate),
            "became": dict(self.outcome.settings),
            "remark": self.outcome.remark,
        }


def _plain(value: Setting) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Imported:
    """Holds a file that was imported: the program that it was for, and each line of it.

    Attributes:
        path: the file.
        program: the name of the program.
        command: the command whose configuration this is.
        lines: the settings of the file in its order, then the defaults of the program that count.
    """

    path: Path
    program: str
    command: Command
    lines: tuple[Line, ...]

    @property
    def settings(self) -> dict[str, Setting]:
        """Return all settings by name.

        Raises:
            SettingError: two lines say something different about one setting.
        """
        settings: dict[str, Setting] = {}
        sources: dict[str, Entry] = {}
        for line in self.lines:
            for name, value in line.outcome.settings.items():
                if settings.setdefault(name, value) != value:
                    raise SettingError(
                        f"{line.entry.place}: {line.entry.key} makes {name} {_plain(value)}, and "
                        f"{sources[name].key} makes it {_plain(settings[name])}; keep one of them"
                    )
                sources.setdefault(name, line.entry)
        return settings

    @property
    def missing(self) -> list[str]:
        """List what the command cannot run without and the file did not give."""
        return [name for name in ("model", "data", "out") if name not in self.settings]

    def configuration(self) -> dict[str, object]:
        """Return the settings as `--config` reads them."""
        settings = self.settings
        options: dict[str, object] = {name: value for name, value in settings.items() if "." not in name}
        columns = {k.removeprefix(_COLUMNS): v for k, v in settings.items() if k.startswith(_COLUMNS)}
        recipe = {k: v for k, v in settings.items() if "." in k and not k.startswith(_COLUMNS)}
        options |= {"columns": columns} if columns else {}
        ordered = {name: options[name] for name in _FIRST if name in options}
        return ordered | options | ({"set": recipe} if recipe else {})

    def to_yaml(self) -> str:
        """Return the text of the configuration file."""
        heading = f"{HEADING} from {' '.join(visible(self.path.name).split())} ({self.program}).\n"
        return heading + yaml.safe_dump(self.configuration(), sort_keys=False, allow_unicode=True, width=1000)

    def line_of(self, name: str) -> Line | None:
        """Return the line that a setting comes from."""
        return next((line for line in self.lines if name in line.outcome.settings), None)

    def count(self, fate: Fate) -> int:
        """Return how many settings of the file itself had this fate."""
        return sum(line.outcome.fate is fate and line.entry.line is not None for line in self.lines)

    def to_json(self) -> JsonObject:
        """Return what `tunewise import --json` prints."""
        return {
            "file": str(self.path),
            "program": self.program,
            "command": self.command,
            "configuration": self.configuration(),
            "missing": list(self.missing),
            "lines": [line.to_json() for line in self.lines],
        }
