"""Passages that outlive the process: in a folder (Qdrant Edge) or on a Qdrant server, behind one interface.

A passage is a point with two vectors, its embedding and its words weighted by BM25, and the passage itself as payload.
A document has a record, a point without vectors that holds its fingerprint. `add` writes in this order, each step
durable before the next relies on it:

1. the documents' records without a fingerprint: from here they are known to be unfinished;
2. their passages; what an earlier version left is removed only after that;
3. their records with the fingerprint: from here they are whole.

`remove` goes the other way. A process killed at any moment leaves whole documents and unfinished ones, which the next
`sync` finishes or removes. A passage's id follows from its span and its document's fingerprint, so that adding it
twice adds it once.

In memory are the int8 vectors and the HNSW graph; embeddings, words and texts stay on the disk. A search takes more
candidates by int8 than were asked for and orders them by their embeddings as they were given.
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
from tunewise.core.errors import ArtifactError, DataError, RequestError, TunewiseError
from tunewise.retrieval.engines import POINTS, Folder, Point, Server, client_of, edge
from tunewise.retrieval.passage import Document, Passage

if TYPE_CHECKING:
    from tunewise.core.progress import Progress
    from tunewise.retrieval.embedder import Embedder

Among: TypeAlias = str | Collection[str] | None  # what document names begin with, or the names themselves
Found: TypeAlias = list[tuple[Passage, float]]

SCHEMA, FACTS, SHARD = 1, "index.json", "points"
UNFINISHED = "temp_segments"  # in the shard: graphs that were being built when the process was killed
EF, OVERSAMPLING = 100, 2.0
K1, B, AVERAGE_WORDS = 1.5, 0.75, 128  # BM25; the engine needs the average length before it has seen a passage
BATCH = 2048  # passages that are embedded, written and acknowledged together
_IDS = uuid.UUID("6f0c1a52-3c1b-5a57-9d0e-0c4f6f7d8b11")


class Index:
    """Passages of documents, found by meaning (`dense`) or by words (`lexical`); closed at the end of a `with`.

    Attributes:
        facts: what the index was made with: embedder, its fingerprint, size of a vector, settings of the chunks.
    """

    def __init__(self, engine: Any, facts: Mapping[str, Any], place: str, held: ExitStack) -> None:
        self._engine, self.facts, self.place, self._held = engine, facts, place, held

    @classmethod
    def create(
        cls,
        place: str | Path,
        embedder_name: str,
        embedder_fingerprint: str,
        size: int,
        chunks: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make an empty index and open it.

        Args:
            place: a new or empty folder, or `qdrant://host:port/collection`.
            embedder_name: the model whose vectors it will hold.
            embedder_fingerprint: the model's fingerprint; no other model's vectors are let in.
            size: the length of a vector.
            chunks: the settings that documents are split with.

        Raises:
            RequestError: something is there already, or another process has it open.
            TunewiseError: it could not be made.
        """
        facts = {"schema": SCHEMA, "embedder": embedder_name, "fingerprint": embedder_fingerprint, "size": size}
        facts["chunks"] = dict(chunks or {})
        if _is_address(place):
            return cls._created_on_server(str(place), facts, size)
        folder = Path(place)
        with ExitStack() as guard:
            guard.enter_context(artifact_writer.lock(folder))
            # A creation that was cut off leaves points without facts; nothing was acknowledged there.
            if {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {SHARD}:
                raise RequestError(f"{folder} is not empty; open the index there or choose a new folder")
            with _told(str(folder), "be made"):
                rmtree(folder / SHARD, ignore_errors=True)
                engine = Folder.made(folder / SHARD, size)
            guard.callback(engine.close)
            artifact_writer.write_json(folder / FACTS, facts)
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
            ArtifactError: there is no index, it is damaged, or it was built with something else.
            RequestError: another process has it open.
        """
        if _is_address(place):
            return cls.connect(str(place), embedder_fingerprint, chunks)
        folder = Path(place)
        if not (folder / FACTS).is_file():
            raise ArtifactError(f"{folder} is no index (it has no {FACTS}); make one there or give another folder")
        facts = artifact_writer.read_json(folder / FACTS)
        _check(facts, str(folder), embedder_fingerprint, chunks)
        with ExitStack() as guard:
            guard.enter_context(artifact_writer.lock(folder))
            rmtree(folder / SHARD / UNFINISHED, ignore_errors=True)  # the engine never looks at it again
            try:
                engine = Folder(edge().EdgeShard.load(str(folder / SHARD)))
            except Exception as error:  # the engine has no errors of its own kinds
                raise ArtifactError(f"{folder} is damaged: {_reason(error)}; make the index again") from error
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
            with _told(address, "be opened"):
                there = client.collection_exists(collection)
                facts = client.get_collection(collection).config.metadata if there else None
            if not facts:
                raise ArtifactError(f"{address} is no index; make one there or give another address")
            _check(facts, address, embedder_fingerprint, chunks)
            return cls(Server(client, collection), facts, address, guard.pop_all())

    @classmethod
    def _created_on_server(cls, address: str, facts: Mapping[str, Any], size: int) -> Self:
        client, collection = client_of(address)
        with ExitStack() as guard:
            guard.callback(client.close)
            with _told(address, "be made"):
                there = client.collection_exists(collection)
                if not there:
                    Server.make(client, collection, size, facts)
            if there:
                raise RequestError(f"{address} is there already; open the index or choose another collection")
            return cls(Server(client, collection), facts, address, guard.pop_all())

    def add(self, passages: Sequence[Passage], vectors: np.ndarray, fingerprints: Mapping[str, str]) -> None:
        """Add whole documents, in place of earlier versions of them; when this returns they will not be lost.

        Args:
            passages: all passages of the documents.
            vectors: their embeddings (n, size).
            fingerprints: of each document by its name, also of documents without passages.
        """
        if np.shape(vectors) != (len(passages), self.facts["size"]):
            raise ValueError(f"{len(passages)} passages need vectors of size {self.facts['size']}, one for each")
        if not fingerprints.keys() >= {passage.document for passage in passages}:
            raise ValueError("every passage's document needs a fingerprint")
        names, engine = list(fingerprints), self._engine
        with _told(self.place, "be written"):
            known = engine.payloads_of([_record_id(name) for name in names])
            again = [payload["name"] for payload in known]
            self._record(dict.fromkeys(names, ""))
            for part in _parts(range(len(passages)), POINTS):
                points = [_point(passages[place], vectors[place], fingerprints) for place in part]
                engine.write(points, replace=False)
            engine.flush()
            if again:
                current = [fingerprints[name] for name in again]
                engine.delete(self._condition(again, unless=self._match("fingerprint", current)))
                engine.flush()
            self._record(fingerprints)

    def remove(self, document_names: Iterable[str]) -> None:
        """Remove documents; names that are not there are passed over."""
        with _told(self.place, "be written"):
            for names in _parts(list(document_names), POINTS):
                self._record(dict.fromkeys(names, ""))
                self._engine.delete(self._condition(names))
                self._engine.flush()
                self._engine.delete_ids([_record_id(name) for name in names])
                self._engine.flush()

    def documents(self) -> dict[str, str]:
        """The fingerprints of documents by name; empty where adding or removing one was cut off."""
        with _told(self.place, "be read"):
            return {found["name"]: found["fingerprint"] for found in self._engine.payloads(self._records())}

    def passages(self, among: Among = None) -> Iterator[Passage]:
        """All passages, in no order."""
        condition = self._condition(among, unless=self._match("kind", ["document"]))
        with _told(self.place, "be read"):
            yield from map(_passage, self._engine.payloads(condition))

    def count(self) -> int:
        """The number of passages."""
        with _told(self.place, "be read"):
            return int(self._engine.count(self._records()))

    def dense(self, vectors: np.ndarray, k: int, among: Among = None) -> list[Found]:
        """The k passages nearest to each vector, with cosines, best first; `among` narrows the documents."""
        kit = self._engine.kit
        quantised = kit.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        params = kit.SearchParams(hnsw_ef=max(EF, 2 * k), quantization=quantised)
        return self._found("dense", np.asarray(vectors, dtype=np.float32).tolist(), k, among, params)

    def lexical(self, texts: Sequence[str], k: int, among: Among = None) -> list[Found]:
        """The k best passages of each text by BM25, best first; passages that share no word are left out."""
        queries = [_bm25().embed_query(text) for text in texts]
        asked = [place for place, query in enumerate(queries) if query.indices]
        found = self._found("words", [self._sparse(queries[place]) for place in asked], k, among, None)
        by_place = dict(zip(asked, found, strict=True))
        return [by_place.get(place, []) for place in range(len(texts))]

    def optimize(self) -> None:
        """Build the graph over what was added and drop what was removed; searches are right without, but slower."""
        with _told(self.place, "be optimized"):
            self._engine.optimize()

    def close(self) -> None:
        """Let go of the folder or the connection."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, using: str, queries: list[Any], k: int, among: Among, params: Any) -> list[Found]:
        if not queries:
            return []
        condition = None if among is None else self._condition(among)
        with _told(self.place, "be searched"):
            rows = self._engine.query(queries, using, k, condition, params)
        return [[(_passage(point.payload), float(point.score)) for point in row] for row in rows]

    def _record(self, fingerprints: Mapping[str, str]) -> None:
        points: list[Point] = [
            (_record_id(name), {}, {"kind": "document", "name": name, "fingerprint": fingerprint})
            for name, fingerprint in fingerprints.items()
        ]
        for part in _parts(points, POINTS):
            self._engine.write(part, replace=True)
        self._engine.flush()

    def _records(self) -> Any:
        return self._engine.kit.Filter(must=[self._match("kind", ["document"])])

    def _condition(self, among: Among, unless: Any = None) -> Any:
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
    """Make the index hold these documents and no others; what is unchanged is not embedded again.

    Args:
        index: the index.
        documents: all documents, which may come one by one.
        split: cuts a document into passages.
        embedder: the embedder that the index was made for.
        report: told of progress.
        batch: passages that are embedded and acknowledged together.

    Returns:
        Counts: documents `added` (new or changed), `removed` and `unchanged`, and `passages` that were embedded.

    Raises:
        ArtifactError: the index was built with another embedder.
        DataError: two documents have one name.
    """
    _check(index.facts, index.place, embedder.fingerprint, None)
    known, total = index.documents(), len(documents) if isinstance(documents, Sized) else 0
    seen, counts = set[str](), {"added": 0, "removed": 0, "unchanged": 0, "passages": 0}
    waiting: dict[str, str] = {}
    passages: list[Passage] = []

    def settle() -> None:
        vectors = embedder.encode([passage.indexed for passage in passages], report)
        index.add(passages, vectors, waiting)
        counts["added"] += len(waiting)
        counts["passages"] += len(passages)
        waiting.clear()
        passages.clear()

    for done, document in enumerate(documents):
        if report:
            report("indexing", done, total)
        if document.name in seen:
            raise DataError(f'two documents are named "{document.name}"', remedy="give each a name of its own")
        seen.add(document.name)
        if known.get(document.name) == document.fingerprint:
            counts["unchanged"] += 1
            continue
        waiting[document.name] = document.fingerprint
        passages += split(document)
        if len(passages) >= batch:
            settle()
    if waiting:
        settle()
    gone = sorted(known.keys() - seen)
    index.remove(gone)
    counts["removed"] = len(gone)
    if counts["added"] or gone:
        index.optimize()
    return counts


def _check(facts: Mapping[str, Any], place: str, fingerprint: str | None, chunks: Mapping[str, Any] | None) -> None:
    kinds = {"embedder": str, "fingerprint": str, "size": int, "chunks": dict}
    if facts.get("schema") != SCHEMA or any(not isinstance(facts.get(key), kind) for key, kind in kinds.items()):
        raise ArtifactError(f"{place} is no index that this version can read; make the index again")
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise ArtifactError(
            f"{place} was built with the embedder {facts['embedder']} ({facts['fingerprint']}) and this one is "
            f"{fingerprint}; use that one or make the index again"
        )
    if chunks is not None and facts["chunks"] != dict(chunks):
        raise ArtifactError(
            f"{place} was built with other chunk settings ({facts['chunks']}); use those or make the index again"
        )


def _point(passage: Passage, vector: np.ndarray, fingerprints: Mapping[str, str]) -> Point:
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


def _parts(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_address(place: str | Path) -> bool:
    return isinstance(place, str) and "://" in place


@cache
def _bm25() -> Any:
    """Words as the search in memory takes them: lower case, all of them, as they are."""
    kit = edge()
    plain = {"stemmer": kit.DisabledStemmer(), "stopwords": kit.StopwordsSet()}
    return kit.Bm25(kit.Bm25Config(k=K1, b=B, avg_len=AVERAGE_WORDS, tokenizer=kit.TokenizerType.Word, **plain))


@contextmanager
def _told(place: str, what: str) -> Iterator[None]:
    """Turn what an engine raises into a sentence."""
    try:
        yield
    except TunewiseError:
        raise
    except Exception as error:  # the engines raise bare exceptions and those of their networks
        raise TunewiseError(f"{place} could not {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
