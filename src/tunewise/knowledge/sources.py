"""Where documents come from: files, or the world that is shipped with the package."""

from __future__ import annotations

from tunewise.knowledge.documents import Reading, read
from tunewise.knowledge.passage import Document

SHIPPED = "world:"


def gather(where: str) -> Reading:
    """The documents of a folder, a file, or `world:TASK`.

    Raises:
        DataError: they cannot be read.
        SettingError: the world has none for this task, or a library is missing.
    """
    if not where.startswith(SHIPPED):
        return read(where)
    from tunewise.world import documents

    found = documents(where.removeprefix(SHIPPED))
    return Reading(tuple(Document(row["id"], row["text"]) for row in found), ())
