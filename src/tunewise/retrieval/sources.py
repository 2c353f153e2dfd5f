"""Where documents come from: files, or the world that is shipped with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunewise.core.addresses import shipped
from tunewise.retrieval.documents import Reading, read
from tunewise.retrieval.passage import Document


def gather(where: str) -> Reading:
    """The documents of a folder, a file, or `world:TASK`.

    Raises:
        DataError: they cannot be read.
        SettingError: the world has none for this task, or a library is missing.
    """
    address = shipped(where)
    if address is None:
        return read(where)
    place, name = address
    return Reading(tuple(Document(row["id"], row["text"]) for row in place.documents(name)), ())


def stamp(where: str) -> str:
    """Sixteen hex digits of the names, sizes and times of the files there; empty where there are none."""
    root = Path(where)
    files = sorted(path for path in (root.rglob("*") if root.is_dir() else [root]) if where and path.is_file())
    known = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16] if known else ""
