"""Gathers documents from files, or from the world that is shipped with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunewise.core.addresses import shipped
from tunewise.retrieval.documents import Reading, read
from tunewise.retrieval.passage import Document


def gather(where: str) -> Reading:
    """Return the documents of a folder, a file, or `world:TASK`.

    Raises:
        DataError: the documents cannot be read.
        SettingError: the world has no documents for this task, or a library is missing.
    """
    address = shipped(where)
    if address is None:
        return read(where)
    owner, name = address
    return Reading(tuple(Document(row["id"], row["text"]) for row in owner.documents(name)), ())


def file_stamp(where: str) -> str:
    """Return 16 hex digits that stand for the names, sizes and times of the files there, or "" if there are none."""
    root = Path(where)
    files = sorted(path for path in (root.rglob("*") if root.is_dir() else [root]) if where and path.is_file())
    states = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16] if states else ""
