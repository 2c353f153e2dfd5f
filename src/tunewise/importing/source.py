"""Reads another program's configuration file as entries with their lines; nothing is trusted before it is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from tunewise.core.errors import SettingError
from tunewise.core.text import show
from tunewise.core.yaml_text import MOST_CHARACTERS, PlacedValue, YamlTextError, read_placed_yaml

HIDDEN = "(hidden)"
_SECRET_NAMES = re.compile(
    r"token$|secret|password|passwd|credential|api_?key|access_?key|webhook|^env$", re.IGNORECASE
)
_SECRET_VALUES = re.compile(r"\b(hf|sk|ghp|gho|glpat|xox[a-z])[_-][A-Za-z0-9_-]{16,}")
_TOKENS_OF_TEXT = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|eot|add_(bos|eos))_token$")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # OmegaConf's: ${output_dir}
_MOST_EXPANSIONS, _LONGEST_EXPANDED = 8, 2_000


@dataclass(frozen=True)
class Entry:
    """Holds one setting of the file.

    Attributes:
        path: the file.
        key: its name, behind the names of the mappings around it: `model.lora_rank`.
        value: its value, of any type that YAML has.
        line: the number of its line, or None where the program's default stands for it.
    """

    path: Path
    key: str
    value: object
    line: int | None

    @property
    def shown(self) -> str:
        """Return the value as people may see it: on one line, shortened, and never a secret."""
        if self.value is None:
            return ""
        text = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        if _has_secret(self.key.rpartition(".")[2], self.value) or _SECRET_VALUES.search(text):
            return HIDDEN
        return show(" ".join(text.split()), 80)

    @property
    def place(self) -> str:
        """Return the file and the line, for an error."""
        return f"{self.path} line {self.line}" if self.line else f"{self.path}"

    def error(self, must_be: str) -> SettingError:
        """Make the error for a value of the wrong type."""
        return SettingError(f"{self.place}: {show(self.key)} is {self.shown or 'empty'} but must be {must_be}")

    def refusal(self, reason: str) -> SettingError:
        """Make the error for a file that asks for what cannot be done here."""
        return SettingError(f"{self.place}: {show(self.key)} is {self.shown}, and {reason}")


def _has_secret(name: str, value: object) -> bool:
    """Tell whether a name, or one within the value, is that of a key or a password."""
    if isinstance(value, dict):
        return _has_secret(name, None) or any(_has_secret(str(inner), value[inner]) for inner in value)
    return bool(_SECRET_NAMES.search(name)) and not _TOKENS_OF_TEXT.search(name)


@dataclass(frozen=True)
class Source:
    """Holds the entries of a file, in its order, by their keys."""

    path: Path
    entries: Mapping[str, Entry]

    def value(self, key: str) -> object:
        """Return the value of a key, or None where the file does not have it or leaves it empty."""
        return self.entries[key].value if key in self.entries else None

    def entry(self, key: str, default: object = None) -> Entry:
        """Return the entry of a key, with the default as its value where the file has none or leaves it empty."""
        found = self.entries.get(key, Entry(self.path, key, None, None))
        return found if found.value is not None else replace(found, value=default)


def read_file(path: Path) -> PlacedValue:
    """Read the file as settings with their lines.

    Raises:
        SettingError: it cannot be read, or holds no settings.
    """
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file; give the configuration file of another program")
    try:
        with path.open(encoding="utf-8-sig") as file:
            root = read_placed_yaml(file.read(MOST_CHARACTERS + 1))
    except (OSError, UnicodeDecodeError, YamlTextError) as error:
        raise SettingError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root.value, dict) or not root.parts:
        raise SettingError(f"{path}: must hold settings, one `name: value` per line")
    return root


def all_keys(root: PlacedValue, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a mapping and of the mappings in it, behind the names of those around them."""
    for name, part in root.parts.items() if isinstance(root.value, dict) else ():
        yield prefix + name
        yield from all_keys(part, f"{prefix}{name}.")


def entries_of(path: Path, root: PlacedValue, known: Mapping[str, object], aliases: Mapping[str, str]) -> Source:
    """Take a file apart into entries.

    A mapping is taken apart unless it is known as a whole, and so is a list that holds one mapping and nothing else. A
    key that has another name in `aliases` is found by that name.

    Raises:
        SettingError: a key is given under two names.
    """
    entries: dict[str, Entry] = {}

    def add(prefix: str, placed: PlacedValue) -> None:
        for name, part in placed.parts.items():
            key = prefix + name
            only = part.parts.get("0") if isinstance(part.value, list) and len(part.value) == 1 else None
            inner = only if only is not None and isinstance(only.value, dict) else part
            canonical = aliases.get(key, key)
            deeper = any(other.startswith(f"{canonical}.") for other in known)
            if isinstance(inner.value, dict) and inner.parts and (deeper or rule_key(canonical, known) is None):
                add(f"{key}.", inner)
                continue
            entry = Entry(path, key, part.value, part.line)
            if canonical in entries:
                raise SettingError(
                    f"{entry.place}: {show(key)} says the same as {show(entries[canonical].key)} in line "
                    f"{entries[canonical].line}; keep one of them"
                )
            entries[canonical] = entry

    add("", root)
    return Source(path, entries)


def rule_key(key: str, known: Mapping[str, object]) -> str | None:
    """Return the key under which a setting is known: its own, or the first pattern such as `vllm_*` that it matches."""
    if key in known:
        return key
    return next((pattern for pattern in known if "*" in pattern and fnmatchcase(key, pattern)), None)


def expanded(source: Source) -> Source:
    """Return the source with OmegaConf's references to other entries, such as `${output_dir}/logs`, written out.

    Raises:
        SettingError: a reference goes round in a circle, or grows too long.
    """
    entries = {}
    for key, entry in source.entries.items():
        value = entry.value
        for _ in range(_MOST_EXPANSIONS):
            if not isinstance(value, str) or not (match := _REFERENCE.search(value)):
                break
            other = source.entries.get(match[1])
            if other is None:
                break
            value = other.value if match[0] == value else value.replace(match[0], str(other.value))
            if isinstance(value, str) and len(value) > _LONGEST_EXPANDED:
                break
        else:
            raise SettingError(f"{entry.place}: {show(entry.key)} refers to itself through other settings")
        if isinstance(value, str) and len(value) > _LONGEST_EXPANDED:
            raise SettingError(f"{entry.place}: {show(entry.key)} grows too long; write the value out")
        entries[key] = replace(entry, value=value)
    return Source(source.path, entries)
