"""Small JSON files that a run is continued from, each with a checksum of its own.

    {
      "steps": 60,
      "sha256": "..."      of the text above this line, and of where the file belongs
    }

What is damaged, truncated or edited is noticed, because the file must be byte for byte what `write` wrote. That is no
signature: who changes the file and takes the checksum anew is not noticed. Files of earlier versions have no checksum;
`read` takes them as they are, and `is_sealed` tells them apart.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tunewise.core import artifact_writer
from tunewise.core.artifact_reader import JSON_BYTES, dump, read_json, read_plain_file, refusal
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonObject

_SEAL = "sha256"
_log = logging.getLogger("tunewise")
Content = TypeVar("Content")


def write(path: Path, value: JsonObject, *, place: str = "") -> None:
    """Write an object with its checksum, atomically.

    Args:
        path: the file.
        value: the object; it has no key "sha256".
        place: what the file belongs to, such as the name of its folder; it is refused where it is read as another's.

    Raises:
        ValueError: a number is not finite.
        TunewiseError: it could not be written.
    """
    artifact_writer.write_text(path, _sealed(value, place))


def read(path: Path, *, place: str = "", limit_bytes: int = JSON_BYTES) -> JsonObject:
    """Read the object of a file, without its checksum.

    Raises:
        ArtifactError: the file cannot be read as JSON, or is not as it was written.
    """
    value = read_json(path, limit_bytes=limit_bytes)
    if value.pop(_SEAL, None) is not None and read_plain_file(path, limit_bytes) != _sealed(value, place).encode():
        raise refusal(path, "was altered: its checksum does not fit")
    return value


def is_sealed(path: Path, *, limit_bytes: int = JSON_BYTES) -> bool:
    """Return whether a file that can be read has a checksum."""
    return read_json(path, limit_bytes=limit_bytes).get(_SEAL) is not None


def read_or_set_aside(
    path: Path,
    parse: Callable[[JsonObject], Content],
    consequence: str,
    *,
    place: str = "",
    limit_bytes: int = JSON_BYTES,
) -> Content | None:
    """Read a file; None if there is none, and also if it is damaged: it is then moved aside, and a warning says so.

    Args:
        path: the file.
        parse: makes something of its object, or raises `ArtifactError`.
        consequence: what follows from the damage, as in "its trial is run again".
        place: as in `write`.
        limit_bytes: the largest size that is read.
    """
    if not path.is_symlink() and not path.exists():
        return None
    try:
        return parse(read(path, place=place, limit_bytes=limit_bytes))
    except ArtifactError as error:
        set_aside(path, str(error).partition("; ")[0], consequence)
        return None


def set_aside(path: Path, problem: str, consequence: str) -> None:
    """Move a damaged file aside, and say so in a warning."""
    _log.warning("%s; it was moved to %s, and %s", problem, artifact_writer.set_aside(path).name, consequence)


def _sealed(value: JsonObject, place: str) -> str:
    text = dump(value, indent=2)
    digest = hashlib.sha256(f"{place}\n{text}".encode()).hexdigest()
    return dump({**value, _SEAL: digest}, indent=2) + "\n"
