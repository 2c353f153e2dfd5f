"""Stores passages and searches them: in a folder (Qdrant Edge) or on a Qdrant server, behind one interface.

A passage is a point with two vectors, its embedding and its words weighted by BM25, and the passage itself as payload.
A document has a record, a point without vectors that holds its fingerprint. `add` writes in this order, and each step
is durable before the next one relies on it:

1. the documents' records without a fingerprint, which mark them as unfinished;
2. their passages; those of an earlier version are removed only after that;
3. their records with the fingerprint, which mark them as complete.

`remove` goes the other way. A process killed at any moment leaves complete and unfinished documents, and the next
`sync` finishes or removes the unfinished ones. A passage's id is derived from its span and its document's fingerprint,
so that adding it twice stores it once.

The int8 vectors and the HNSW graph are in memory; embeddings, words and texts stay on the disk. A search takes more
candidates by int8 than requested and orders them by their full embeddings.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, DataError, RequestError, SettingError, TunewiseError
from tunewise.core.lock import lock
from tunewise.core.text import one_line, show
from tunewise.retrieval.engines import POINTS, Folder, Point, Server, client_of, edge
from tunewise.retrieval.passage import Document, Passage
from tunewise.retrieval.search import Scored

if TYPE_CHECKING:
    from tunewise.core.progress import Progress
    from tunewise.retrieval.embedder import Embedder

Among: TypeAlias = str | Collection[str] | None  # a prefix of document names, the names themselves, or all

SCHEMA, FACTS, SHARD = 1, "index.json", "points"
_CREATING = ".creating"  # stands in the folder while the shard is created, which is then ours to remove
UNFINISHED = "temp_segments"  # in the shard: graphs that a killed process was building
EF, OVERSAMPLING = 100, 2.0  # candidates in the HNSW graph; int8 candidates per requested passage
K1, B, AVERAGE_WORDS = 1.5, 0.75, 128  # BM25; the engine needs the average length in advance
BATCH = 2048  # passages that are embedded, written and acknowledged together
_IDS = uuid.UUID("6f0c1a52-3c1b-5a57-9d0e-0c4f6f7d8b11")


class Index:
    """Stores passages of documents and finds them by meaning (`dense`) or by words (`lexical`); use it in a `with`.

    Attributes:
        facts: what the index was created with: embedder, its fingerprint, size of a vector, settings of the chunks.
        place: the folder or address.

    Examples:
        >>> with Index.open("manual-index") as index:
        ...     hits = index.lexical(["how to bleed the brakes"], k=3)
    """

    def __init__(self, engine: Any, facts: Mapping[str, Any], place: str, resources: ExitStack) -> None:
        self._engine, self.facts, self.place, self._resources = engine, facts, place, resources

    @classmethod
    def create(
        cls,
        place: str | Path,
        embedder_name: str,
        embedder_fingerprint: str,
        size: int,
        chunks: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create an empty index and open it.

        Args:
            place: a new or empty folder, or `qdrant://host:port/collection`.
            embedder_name: the model whose vectors it will hold.
            embedder_fingerprint: the model's fingerprint; vectors of other models are refused.
            size: the length of a vector.
            chunks: the settings that documents are split with.

        Raises:
            RequestError: something is there already, or another process has it open.
            TunewiseError: the index could not be created.
        """
        facts = {"schema": SCHEMA, "embedder": embedder_name, "fingerprint": embedder_fingerprint, "size": size}
        facts["chunks"] = dict(chunks or {})
        if _is_address(place):
            return cls._create_on_server(str(place), facts, size)
        folder = Path(place)
        with ExitStack() as guard:
            guard.enter_context(lock(folder))
            # An interrupted creation leaves points without facts; none of them was acknowledged.
            interrupted = {SHARD} if (folder / _CREATING).is_file() else set()
            if {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - interrupted:
                raise RequestError(f"{folder} is not empty; open the index there or choose a new folder")
            with _explain_errors(str(folder), "be created"):
                (folder / _CREATING).touch()
                rmtree(folder / SHARD, ignore_errors=True)
                engine = Folder.create(folder / SHARD, size)
            guard.callback(engine.close)
            artifact_writer.write_json(folder / FACTS, facts)
            (folder / _CREATING).unlink()
            return cls(engine, facts, str(folder), guard.pop_all())

    @classmethod
    def open(
        cls, place: str | Path, embedder_fingerprint: str | None = None, chunks: Mapping[str, Any] | None = None
    ) -> Self:
        """Open an index; one process at a time can hold a folder.

        Args:
            place: the folder, or `qdrant://host:port/collection`.
            embedder_fingerprint: the embedder that it must have been built with.
            chunks: the chunk settings that it must have been built with.

        Raises:
            ArtifactError: there is no index, it is damaged, or it was built in another way.
            RequestError: another process has it open.
        """
        if _is_address(place):
            return cls.connect(str(place), embedder_fingerprint, chunks)
        folder = Path(place)
        if not (folder / FACTS).is_file():
            raise ArtifactError(f"{folder} is not an index (it has no {FACTS}); build one there or give another folder")
        facts = artifact_writer.read_json(folder / FACTS)
        _check(facts, str(folder), embedder_fingerprint, chunks)
        with ExitStack() as guard:
            guard.enter_context(lock(folder))
            rmtree(folder / SHARD / UNFINISHED, ignore_errors=True)  # the engine never reads it again
            artifact_writer.remove_leftovers(folder, FACTS)
            (folder / _CREATING).unlink(missing_ok=True)
            try:
                engine = Folder(edge().EdgeShard.load(str(folder / SHARD)), folder / SHARD)
            except Exception as error:  # the engine has no error types of its own
                raise ArtifactError(f"{folder} is damaged: {one_line(error)}; build the index again") from error
            guard.callback(engine.close)
            return cls(engine, facts, str(folder), guard.pop_all())

    @classmethod
    def connect(
        cls, address: str, embedder_fingerprint: str | None = None, chunks: Mapping[str, Any] | None = None
    ) -> Self:
        """Open an index on a server, as `open` does; the address is `qdrant://host:port/collection`."""
        client, collection = client_of(address)
        with ExitStack() as guard:
            guard.callback(client.close)
            with _explain_errors(address, "be opened"):
                exists = client.collection_exists(collection)
                facts = client.get_collection(collection).config.metadata if exists else None
            if not facts:
                raise ArtifactError(f"{address} is not an index; build one there or give another address")
            _check(facts, address, embedder_fingerprint, chunks)
            return cls(Server(client, collection), facts, address, guard.pop_all())

    @classmethod
    def _create_on_server(cls, address: str, facts: Mapping[str, Any], size: int) -> Self:
        client, collection = client_of(address)
        with ExitStack() as guard:
            guard.callback(client.close)
            with _explain_errors(address, "be created"):
                exists = client.collection_exists(collection)
                if not exists:
                    Server.create(client, collection, size, facts)
            if exists:
                raise RequestError(f"{address} exists already; open the index or choose another collection")
            return cls(Server(client, collection), facts, address, guard.pop_all())

    def check_embedder(self, fingerprint: str) -> None:
        """Raise `ArtifactError` unless the index was built with the embedder of this fingerprint."""
        _check(self.facts, self.place, fingerprint, None)

    def needs_embedder(self, by_words: str) -> SettingError:
        """Make the error for a search by meaning without an embedder; `by_words` is how words alone are searched.

        The index names its embedder, and is a file: no model is loaded because of it.
        """
        name = show(self.facts["embedder"], 300)
        return SettingError(
            f"{self.place} was built with the embedder {name}; give it with --embedder {name}, or search by words "
            f"alone ({by_words})"
        )

    def add(self, passages: Sequence[Passage], vectors: np.ndarray, fingerprints: Mapping[str, str]) -> None:
        """Add documents, in place of earlier versions of them; they are durable when this returns.

        Args:
            passages: all passages of the documents.
            vectors: their embeddings (n, size).
            fingerprints: the fingerprint of each document by its name, also of documents without passages.
        """
        if np.shape(vectors) != (len(passages), self.facts["size"]):
            raise ValueError(f"{len(passages)} passages need one vector of size {self.facts['size']} each")
        if not fingerprints.keys() >= {passage.document for passage in passages}:
            raise ValueError("every passage's document needs a fingerprint")
        names, engine = list(fingerprints), self._engine
        with _explain_errors(self.place, "be written"):
            records = engine.payloads_of([_record_id(name) for name in names])
            replaced = [payload["name"] for payload in records]
            self._record(dict.fromkeys(names, ""))
            for batch in _batches(range(len(passages)), POINTS):
                points = [_point(passages[index], vectors[index], fingerprints) for index in batch]
                engine.write(points, replace=False)
            engine.flush()
            if replaced:
                current = [fingerprints[name] for name in replaced]
                engine.delete(self._condition(replaced, unless=self._match("fingerprint", current)))
                engine.flush()
            self._record(fingerprints)

    def remove(self, document_names: Iterable[str]) -> None:
        """Remove documents by name; unknown names are ignored."""
        with _explain_errors(self.place, "be written"):
            for names in _batches(list(document_names), POINTS):
                self._record(dict.fromkeys(names, ""))
                self._engine.delete(self._condition(names))
                self._engine.flush()
                self._engine.delete_ids([_record_id(name) for name in names])
                self._engine.flush()

    def documents(self) -> dict[str, str]:
        """Return the fingerprints of documents by name; an unfinished document has an empty one."""
        with _explain_errors(self.place, "be read"):
            return {record["name"]: record["fingerprint"] for record in self._engine.payloads(self._records())}

    def passages(self, among: Among = None) -> Iterator[Passage]:
        """Yield all passages, in no particular order; `among` narrows the documents."""
        condition = self._condition(among, unless=self._match("kind", ["document"]))
        with _explain_errors(self.place, "be read"):
            yield from map(_passage, self._engine.payloads(condition))

    def count(self) -> int:
        """Return the number of passages."""
        with _explain_errors(self.place, "be read"):
            return int(self._engine.count(self._records()))

    def dense(self, vectors: np.ndarray, k: int, among: Among = None) -> list[Scored]:
        """Return the k passages nearest to each of the vectors (n, size), with cosines, best first.

        `among` narrows the documents.
        """
        kit = self._engine.kit
        quantised = kit.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        params = kit.SearchParams(hnsw_ef=max(EF, 2 * k), quantization=quantised)
        return self._search("dense", np.asarray(vectors, dtype=np.float32).tolist(), k, among, params)

    def lexical(self, texts: Sequence[str], k: int, among: Among = None) -> list[Scored]:
        """Return the k best passages for each text by BM25, best first; passages that share no word are left out."""
        queries = [_bm25().embed_query(text) for text in texts]
        with_words = [i for i, query in enumerate(queries) if query.indices]
        results = self._search("words", [self._sparse(queries[i]) for i in with_words], k, among, None)
        result_of = dict(zip(with_words, results, strict=True))
        return [result_of.get(i, []) for i in range(len(texts))]

    def optimize(self) -> None:
        """Build the graph over what was added and drop what was removed; without it searches are correct but slower."""
        with _explain_errors(self.place, "be optimized"):
            self._engine.optimize()

    def close(self) -> None:
        """Release the folder or close the connection."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _search(self, using: str, queries: list[Any], k: int, among: Among, params: Any) -> list[Scored]:
        """Run queries against the vectors called `using`."""
        if not queries:
            return []
        condition = None if among is None else self._condition(among)
        with _explain_errors(self.place, "be searched"):
            rows = self._engine.query(queries, using, k, condition, params)
        return [[(_passage(point.payload), float(point.score)) for point in row] for row in rows]

    def _record(self, fingerprints: Mapping[str, str]) -> None:
        """Write the records of documents; an empty fingerprint marks one as unfinished."""
        points: list[Point] = [
            (_record_id(name), {}, {"kind": "document", "name": name, "fingerprint": fingerprint})
            for name, fingerprint in fingerprints.items()
        ]
        for batch in _batches(points, POINTS):
            self._engine.write(batch, replace=True)
        self._engine.flush()

    def _records(self) -> Any:
        """Return the condition that records of documents meet and passages do not."""
        return self._engine.kit.Filter(must=[self._match("kind", ["document"])])

    def _condition(self, among: Among, unless: Any = None) -> Any:
        """Return the condition of passages of these documents that do not meet `unless`."""
        kit, must = self._engine.kit, []
        if isinstance(among, str):
            must = [kit.FieldCondition(key="document", match=kit.MatchPrefix(prefix=among))]
        elif among is not None:
            must = [self._match("document", sorted(among))]
        return kit.Filter(must=must, must_not=[unless] if unless else None)

    def _match(self, key: str, values: Sequence[str]) -> Any:
        kit = self._engine.kit
        return kit.FieldCondition(key=key, match=kit.MatchAny(any=list(values)))

    def _sparse(self, words: Any) -> Any:
        return self._engine.kit.SparseVector(indices=list(words.indices), values=list(words.values))


def sync(
    index: Index,
    documents: Iterable[Document],
    split: Callable[[Document], Iterable[Passage]],
    embedder: Embedder,
    report: Progress | None = None,
    batch: int = BATCH,
) -> dict[str, int]:
    """Make the index hold exactly these documents; unchanged ones are not embedded again.

    Args:
        index: the index to change.
        documents: all documents; an iterator is read one by one.
        split: cuts a document into passages.
        embedder: the embedder that the index was built with.
        report: receives progress.
        batch: passages that are embedded and written together.

    Returns:
        Counts: documents `added` (new or changed), `removed` and `unchanged`, and `passages` that were embedded.

    Raises:
        ArtifactError: the index was built with another embedder.
        DataError: two documents have one name.
    """
    index.check_embedder(embedder.fingerprint)
    indexed, total = index.documents(), len(documents) if isinstance(documents, Sized) else 0
    seen, counts = set[str](), {"added": 0, "removed": 0, "unchanged": 0, "passages": 0}
    pending: dict[str, str] = {}  # fingerprints of documents that are not written yet
    passages: list[Passage] = []

    def write_pending() -> None:
        vectors = embedder.encode([passage.indexed for passage in passages], report)
        index.add(passages, vectors, pending)
        counts["added"] += len(pending)
        counts["passages"] += len(passages)
        pending.clear()
        passages.clear()

    for done, document in enumerate(documents):
        if report:
            report("indexing", done, total)
        if document.name in seen:
            raise DataError(f'two documents are named "{document.name}"', remedy="give each a name of its own")
        seen.add(document.name)
        if indexed.get(document.name) == document.fingerprint:
            counts["unchanged"] += 1
            continue
        pending[document.name] = document.fingerprint
        passages += split(document)
        if len(passages) >= batch:
            write_pending()
    if pending:
        write_pending()
    removed = sorted(indexed.keys() - seen)
    index.remove(removed)
    counts["removed"] = len(removed)
    if counts["added"] or removed:
        index.optimize()
    return counts


def _check(facts: Mapping[str, Any], place: str, fingerprint: str | None, chunks: Mapping[str, Any] | None) -> None:
    """Raise `ArtifactError` unless an index can be read and was built with this embedder and these chunk settings."""
    kinds = {"embedder": str, "fingerprint": str, "size": int, "chunks": dict}
    if facts.get("schema") != SCHEMA or any(not isinstance(facts.get(key), kind) for key, kind in kinds.items()):
        raise ArtifactError(f"{place} is not an index that this version can read; build the index again")
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise ArtifactError(
            f"{place} was built with the embedder {facts['embedder']} ({facts['fingerprint']}) and this one is "
            f"{fingerprint}; use that one or build the index again"
        )
    if chunks is not None and facts["chunks"] != dict(chunks):
        raise ArtifactError(
            f"{place} was built with other chunk settings ({facts['chunks']}); use those or build the index again"
        )


def _point(passage: Passage, vector: np.ndarray, fingerprints: Mapping[str, str]) -> Point:
    """Turn a passage and its embedding (size) into a point."""
    fingerprint, words = fingerprints[passage.document], _bm25().embed_document(passage.indexed)
    payload = {
        "document": passage.document,
        "fingerprint": fingerprint,
        "start": passage.start,
        "end": passage.end,
        "text": passage.text,
        "heading": passage.heading,
    }
    return str(uuid.uuid5(_IDS, f"{passage.id}\0{fingerprint}")), {"dense": vector, "words": words}, payload


def _passage(payload: Mapping[str, Any]) -> Passage:
    return Passage(payload["document"], payload["start"], payload["end"], payload["text"], payload["heading"])


def _record_id(name: str) -> str:
    return str(uuid.uuid5(_IDS, name))


def _batches(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_address(place: str | Path) -> bool:
    return isinstance(place, str) and "://" in place


@cache
def _bm25() -> Any:
    """Return a BM25 encoder with the words of the search in memory: lower case, without stemming or stop words."""
    kit = edge()
    unfiltered = {"stemmer": kit.DisabledStemmer(), "stopwords": kit.StopwordsSet()}
    return kit.Bm25(kit.Bm25Config(k=K1, b=B, avg_len=AVERAGE_WORDS, tokenizer=kit.TokenizerType.Word, **unfiltered))


@contextmanager
def _explain_errors(place: str, action: str) -> Iterator[None]:
    """Turn what an engine raises into the sentence "PLACE could not ACTION"."""
    try:
        yield
    except TunewiseError:
        raise
    except Exception as error:  # the engines raise bare exceptions and network errors
        raise TunewiseError(f"{place} could not {action}: {one_line(error)}") from error
