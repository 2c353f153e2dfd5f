"""The two places where an index keeps its points: a folder (Qdrant Edge) and a Qdrant server, with the same methods."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tunewise.core.errors import SettingError

Point: TypeAlias = tuple[str, dict[str, Any], dict[str, Any]]  # id, vectors by name, payload

M, EF_CONSTRUCT = 16, 128
INDEXED_KB = 10_000  # embeddings that are beside the graph are compared one by one until they take this much
FULL_SCAN_KB = 10_000  # where a filter leaves less than this, the graph is not used
MERGED_KB = 1 << 30  # segments of any size are merged: one graph is searched faster than many
POINTS = 1000  # of one write


class Folder:
    """A shard of Qdrant Edge. It keeps no log of its own: what `flush` has returned for is on the disk."""

    def __init__(self, shard: Any) -> None:
        self.kit, self._shard = edge(), shard
        self._count: int | None = None  # kept between writes: counting takes longer than searching

    @classmethod
    def made(cls, folder: Path, size: int) -> Folder:
        """An empty shard."""
        kit = edge()
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
        return cls(shard)

    def write(self, points: Sequence[Point], *, replace: bool) -> None:
        """Put points there; without `replace`, those that are there already stay as they are."""
        mode = self.kit.UpdateMode.Upsert if replace else self.kit.UpdateMode.InsertOnly
        own = [self.kit.Point(*point) for point in points]
        self._update(self.kit.UpdateOperation.upsert_points(own, update_mode=mode))

    def delete(self, condition: Any) -> None:
        """Delete the points that meet a condition."""
        self._update(self.kit.UpdateOperation.delete_points_by_filter(condition))

    def delete_ids(self, ids: list[str]) -> None:
        """Delete points by their ids; unknown ones are passed over."""
        self._update(self.kit.UpdateOperation.delete_points(ids))

    def payloads_of(self, ids: list[str]) -> list[dict[str, Any]]:
        """The payloads of these points, of those that are there."""
        return [record.payload for record in self._shard.retrieve(ids, with_payload=True, with_vector=False)]

    def payloads(self, condition: Any) -> Iterator[dict[str, Any]]:
        """The payloads of all points that meet a condition."""
        offset, first = None, True
        while first or offset is not None:
            request = self.kit.ScrollRequest(offset=offset, limit=10 * POINTS, filter=condition, with_payload=True)
            records, offset = self._shard.scroll(request)
            first = False
            yield from (record.payload for record in records)

    def count(self, records: Any) -> int:
        """The number of points that are no `records`."""
        if self._count is None:
            every, own = (self._shard.count(self.kit.CountRequest(filter=condition)) for condition in (None, records))
            self._count = int(every - own)
        return self._count

    def query(self, queries: list[Any], using: str, k: int, condition: Any, params: Any) -> list[Any]:
        """For each query the k best points by the vectors called `using`."""
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
        self._count = None
        self._shard.update(operation)

    def optimize(self) -> None:
        """Build the graph and drop what was deleted."""
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        """Let go of the folder."""
        self._shard.close()


class Server:
    """A collection on a Qdrant server, which flushes and optimizes by itself."""

    def __init__(self, client: Any, collection: str) -> None:
        from qdrant_client import models

        self.kit: Any = models
        self._client, self._collection = client, collection

    @staticmethod
    def make(client: Any, collection: str, size: int, facts: Mapping[str, Any]) -> None:
        """An empty collection."""
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
        """Put points there; without `replace`, those that are there already stay as they are."""
        mode = self.kit.UpdateMode.UPSERT if replace else self.kit.UpdateMode.INSERT_ONLY
        own = [
            self.kit.PointStruct(id=name, vector=self._plain(vectors), payload=payload)
            for name, vectors, payload in points
        ]
        self._client.upsert(self._collection, own, wait=True, update_mode=mode)

    def delete(self, condition: Any) -> None:
        """Delete the points that meet a condition."""
        self._client.delete(self._collection, self.kit.FilterSelector(filter=condition), wait=True)

    def delete_ids(self, ids: list[str]) -> None:
        """Delete points by their ids; unknown ones are passed over."""
        self._client.delete(self._collection, self.kit.PointIdsList(points=ids), wait=True)

    def payloads_of(self, ids: list[str]) -> list[dict[str, Any]]:
        """The payloads of these points, of those that are there."""
        return [record.payload for record in self._client.retrieve(self._collection, ids, with_payload=True)]

    def payloads(self, condition: Any) -> Iterator[dict[str, Any]]:
        """The payloads of all points that meet a condition."""
        offset, first = None, True
        while first or offset is not None:
            records, offset = self._client.scroll(self._collection, condition, limit=POINTS, offset=offset)
            first = False
            yield from (record.payload for record in records)

    def count(self, records: Any) -> int:
        """The number of points that are no `records`."""
        every, own = (self._client.count(self._collection, condition).count for condition in (None, records))
        return int(every - own)

    def query(self, queries: list[Any], using: str, k: int, condition: Any, params: Any) -> list[Any]:
        """For each query the k best points by the vectors called `using`."""
        requests = [
            self.kit.QueryRequest(query=query, using=using, filter=condition, params=params, limit=k, with_payload=True)
            for query in queries
        ]
        return [found.points for found in self._client.query_batch_points(self._collection, requests)]

    def flush(self) -> None:
        """Nothing: a write was waited for."""

    def optimize(self) -> None:
        """Nothing: the server does it in the background."""

    def _plain(self, vectors: Mapping[str, Any]) -> dict[str, Any]:
        if not vectors:
            return {}
        words = self.kit.SparseVector(indices=list(vectors["words"].indices), values=list(vectors["words"].values))
        return {"dense": vectors["dense"].tolist(), "words": words}


def client_of(address: str) -> tuple[Any, str]:
    """A client of the server and the name of the collection."""
    problem = SettingError(f'"{address}" is no address of an index; write qdrant://host:port/collection')
    parts = urlsplit(address)
    collection = parts.path.strip("/")
    try:
        port = parts.port or 6333
    except ValueError as error:
        raise problem from error
    if parts.scheme != "qdrant" or not parts.hostname or not collection or "/" in collection:
        raise problem
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise SettingError("an index on a server needs qdrant-client: pip install tunewise[rag]") from error
    return QdrantClient(host=parts.hostname, port=port, timeout=60, check_compatibility=False), collection


def edge() -> Any:
    """The embedded engine."""
    try:
        import qdrant_edge
    except ImportError as error:
        raise SettingError("an index needs qdrant-edge-py: pip install tunewise[rag]") from error
    return qdrant_edge
