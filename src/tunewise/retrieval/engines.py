"""Keeps the points of an index in a folder (Qdrant Edge) or on a Qdrant server, behind the same methods.

A point is an id, vectors by name ("dense", an embedding, and "words", sparse BM25 weights) and a payload.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.core.extras import require

Vectors: TypeAlias = dict[str, Any]  # by name: "dense" an array of floats, "words" indices and values
Payload: TypeAlias = dict[str, Any]
Point: TypeAlias = tuple[str, Vectors, Payload]  # id, vectors by name, payload

M, EF_CONSTRUCT = 16, 128  # of the HNSW graph
INDEXED_KB = 10_000  # below this size, new embeddings are compared one by one instead of joining the graph
FULL_SCAN_KB = 10_000  # if a filter leaves less than this, all of it is compared and the graph is not used
MERGED_KB = 1 << 30  # segments of any size are merged: one graph is searched faster than many
POINTS = 1000  # per write
_EMPTY_BYTES = 8 << 20  # of a shard without points, at most


class Folder:
    """Keeps points in a folder, as a shard of Qdrant Edge.

    The shard has no write-ahead log: writes are on the disk only when `flush` has returned. The engine maps its files
    into memory, where a full disk is a bus error that ends the process; so there must be room before it writes.
    """

    def __init__(self, shard: Any, folder: Path) -> None:
        self.kit, self._shard, self._folder = edge(), shard, folder
        self._count: int | None = None  # kept between writes: counting takes longer than searching

    @classmethod
    def create(cls, folder: Path, size: int) -> Folder:
        """Create an empty shard for vectors of this size in a new folder.

        Raises:
            TunewiseError: the disk has no room for it.
        """
        kit = edge()
        artifact_writer.check_space(folder, _EMPTY_BYTES)
        vectors = kit.EdgeVectorParams(
            size=size,
            distance=kit.Distance.Cosine,
            memory=kit.Memory.Cold,
            quantization_config=kit.ScalarQuantizationConfig(kit.ScalarType.Int8, memory=kit.Memory.Pinned),
        )
        config = kit.EdgeConfig(
            vectors={"dense": vectors},
            sparse_vectors={"words": kit.EdgeSparseVectorParams(modifier=kit.Modifier.Idf, memory=kit.Memory.Cold)},
            hnsw_config=kit.HnswIndexConfig(
                M, EF_CONSTRUCT, FULL_SCAN_KB, max_indexing_threads=os.cpu_count() or 1, memory=kit.Memory.Cached
            ),
            optimizers=kit.EdgeOptimizersConfig(
                default_segment_number=2, max_segment_size=MERGED_KB, indexing_threshold=INDEXED_KB
            ),
            payload_memory=kit.Memory.Cold,
            wal_enabled=False,
        )
        folder.mkdir()
        shard = kit.EdgeShard.create(str(folder), config)
        for key, prefix in (("document", True), ("kind", False)):
            schema = kit.KeywordIndexParams(prefix=prefix, memory=kit.Memory.Cold)
            shard.update(kit.UpdateOperation.create_field_index(key, schema))
        shard.flush()
        return cls(shard, folder)

    def write(self, points: Sequence[Point], *, replace: bool) -> None:
        """Write points; without `replace`, points whose id exists stay as they are."""
        mode = self.kit.UpdateMode.Upsert if replace else self.kit.UpdateMode.InsertOnly
        artifact_writer.check_space(self._folder, sum(map(_stored_bytes, points)))
        edge_points = [self.kit.Point(*point) for point in points]
        self._update(self.kit.UpdateOperation.upsert_points(edge_points, update_mode=mode))

    def delete(self, condition: Any) -> None:
        """Delete the points that meet a condition."""
        self._update(self.kit.UpdateOperation.delete_points_by_filter(condition))

    def delete_ids(self, ids: list[str]) -> None:
        """Delete points by their ids; unknown ids are ignored."""
        self._update(self.kit.UpdateOperation.delete_points(ids))

    def payloads_of(self, ids: list[str]) -> list[Payload]:
        """Return the payloads of those of these points that exist."""
        return [record.payload for record in self._shard.retrieve(ids, with_payload=True, with_vector=False)]

    def payloads(self, condition: Any) -> Iterator[Payload]:
        """Yield the payloads of all points that meet a condition."""
        offset, first = None, True
        while first or offset is not None:
            request = self.kit.ScrollRequest(offset=offset, limit=10 * POINTS, filter=condition, with_payload=True)
            records, offset = self._shard.scroll(request)
            first = False
            yield from (record.payload for record in records)

    def count(self, records: Any) -> int:
        """Return the number of points that do not meet the condition `records`."""
        if self._count is None:
            requests = [self.kit.CountRequest(filter=condition) for condition in (None, records)]
            points, matching = map(self._shard.count, requests)
            self._count = int(points - matching)
        return self._count

    def query(self, queries: list[Any], using: str, k: int, condition: Any, params: Any) -> list[Any]:
        """Return for each query the k best points by the vectors called `using`."""
        kit = self.kit
        requests = [
            kit.QueryRequest(
                limit=k, query=kit.Query.Nearest(query, using=using), filter=condition, params=params, with_payload=True
            )
            for query in queries
        ]
        return list(self._shard.query_batch(kit.QueryBatchRequest(requests)))

    def flush(self) -> None:
        """Return when everything written is on the disk."""
        self._shard.flush()

    def _update(self, operation: Any) -> None:
        """Carry out a write; the count is taken anew after it."""
        self._count = None
        self._shard.update(operation)

    def optimize(self) -> None:
        """Build the graph and drop what was deleted; for a while everything is on the disk twice."""
        artifact_writer.check_space(self._folder, _bytes_below(self._folder))
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        """Release the folder."""
        self._shard.close()


def _stored_bytes(point: Point) -> int:
    """Return about how many bytes a point takes: its vectors, the int8 copy and the graph, and the payload."""
    _, vectors, payload = point
    numbers = 5 * len(vectors["dense"]) + 12 * len(vectors["words"].indices) if vectors else 0
    return numbers + 8 * M + 2 * sum(len(str(value).encode("utf-8", "replace")) for value in payload.values())


def _bytes_below(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk; sparse files count what is written."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


class Server:
    """Keeps points in a collection on a Qdrant server, which flushes and optimizes by itself."""

    def __init__(self, client: Any, collection: str) -> None:
        from qdrant_client import models

        self.kit: Any = models
        self._client, self._collection = client, collection

    @staticmethod
    def create(client: Any, collection: str, size: int, facts: Mapping[str, Any]) -> None:
        """Create an empty collection for vectors of this size; `facts` become its metadata."""
        from qdrant_client import models

        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        client.create_collection(
            collection,
            vectors_config={
                "dense": models.VectorParams(
                    size=size,
                    distance=models.Distance.COSINE,
                    on_disk=True,
                    quantization_config=models.ScalarQuantization(scalar=int8),
                )
            },
            sparse_vectors_config={
                "words": models.SparseVectorParams(
                    modifier=models.Modifier.IDF, index=models.SparseIndexParams(on_disk=True)
                )
            },
            hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB),
            on_disk_payload=True,
            metadata=dict(facts),
        )
        for key, prefix in (("document", True), ("kind", False)):
            schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, prefix=prefix, on_disk=True)
            client.create_payload_index(collection, key, field_schema=schema)

    def write(self, points: Sequence[Point], *, replace: bool) -> None:
        """Write points; without `replace`, points whose id exists stay as they are."""
        mode = self.kit.UpdateMode.UPSERT if replace else self.kit.UpdateMode.INSERT_ONLY
        structs = [
            self.kit.PointStruct(id=name, vector=self._server_vectors(vectors), payload=payload)
            for name, vectors, payload in points
        ]
        self._client.upsert(self._collection, structs, wait=True, update_mode=mode)

    def delete(self, condition: Any) -> None:
        """Delete the points that meet a condition."""
        self._client.delete(self._collection, self.kit.FilterSelector(filter=condition), wait=True)

    def delete_ids(self, ids: list[str]) -> None:
        """Delete points by their ids; unknown ids are ignored."""
        self._client.delete(self._collection, self.kit.PointIdsList(points=ids), wait=True)

    def payloads_of(self, ids: list[str]) -> list[Payload]:
        """Return the payloads of those of these points that exist."""
        return [record.payload for record in self._client.retrieve(self._collection, ids, with_payload=True)]

    def payloads(self, condition: Any) -> Iterator[Payload]:
        """Yield the payloads of all points that meet a condition."""
        offset, first = None, True
        while first or offset is not None:
            records, offset = self._client.scroll(self._collection, condition, limit=POINTS, offset=offset)
            first = False
            yield from (record.payload for record in records)

    def count(self, records: Any) -> int:
        """Return the number of points that do not meet the condition `records`."""
        points, matching = (self._client.count(self._collection, condition).count for condition in (None, records))
        return int(points - matching)

    def query(self, queries: list[Any], using: str, k: int, condition: Any, params: Any) -> list[Any]:
        """Return for each query the k best points by the vectors called `using`."""
        requests = [
            self.kit.QueryRequest(query=query, using=using, filter=condition, params=params, limit=k, with_payload=True)
            for query in queries
        ]
        return [response.points for response in self._client.query_batch_points(self._collection, requests)]

    def flush(self) -> None:
        """Do nothing: every write was waited for."""

    def optimize(self) -> None:
        """Do nothing: the server optimizes in the background."""

    def _server_vectors(self, vectors: Vectors) -> Vectors:
        """Turn a point's vectors into the types of the client."""
        if not vectors:
            return {}
        words = self.kit.SparseVector(indices=list(vectors["words"].indices), values=list(vectors["words"].values))
        return {"dense": vectors["dense"].tolist(), "words": words}


def client_of(address: str) -> tuple[Any, str]:
    """Return a client of the server and the name of the collection.

    Raises:
        SettingError: the address has another form, or qdrant-client is not installed.
    """
    problem = SettingError(f'"{address}" is not the address of an index; write qdrant://host:port/collection')
    parts = urlsplit(address)
    collection = parts.path.strip("/")
    try:
        port = parts.port or 6333
    except ValueError as error:
        raise problem from error
    if parts.scheme != "qdrant" or not parts.hostname or not collection or "/" in collection:
        raise problem
    require("an index on a server", "qdrant_client")
    from qdrant_client import QdrantClient

    return QdrantClient(host=parts.hostname, port=port, timeout=60, check_compatibility=False), collection


def edge() -> Any:
    """Return the module of the embedded engine; raises `SettingError` if it is not installed."""
    require("an index", "qdrant_edge")
    import qdrant_edge

    return qdrant_edge
