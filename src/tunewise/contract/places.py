"""Names what techniques use besides the model: documents, an embedder, a reranker.

Such a name is an address, a Hub id or a path. It is followed where a user gives it, and never because a file holds it:
whoever wrote the file would choose what this machine connects to, downloads and reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tunewise.core.errors import SettingError
from tunewise.core.text import show

# What the techniques do that use such a place.
USES_OF_PLACES = {
    "knowledge": "search documents",
    "embedder": "search by embeddings",
    "reranker": "order what they found by a cross-encoder",
}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Holds what a user gives for techniques to use; each field is a setting of the techniques that use such a thing.

    Attributes:
        knowledge: a folder or file of documents, an index, or `qdrant://host:port/collection`.
        embedder: a sentence-transformers model, a folder or a Hub id.
        reranker: a cross-encoder, a folder or a Hub id.

    Examples:
        >>> Places(knowledge="documents", embedder="sentence-transformers/all-MiniLM-L6-v2").knowledge
        'documents'
    """

    knowledge: str | None = None
    embedder: str | None = None
    reranker: str | None = None

    def given(self) -> Mapping[str, str]:
        """Return those that are given, by the name of the setting."""
        return {name: value for name, value in asdict(self).items() if value}


def not_followed(what: str, name: str, option: str) -> SettingError:
    """Make the error for a name that only a file gives: what it names, and the option that gives it."""
    return SettingError(
        f'the {what} "{show(name, 300)}" is named by a file alone, and what only a file names is neither loaded nor '
        f"connected to; give it with {option}, if it is meant"
    )
