"""Passages on disk and on a server (the client's own local mode stands in for one)."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tunewise.core.errors import ArtifactError, DataError, RequestError, SettingError, TunewiseError
from tunewise.retrieval import engines
from tunewise.retrieval import index as indexes
from tunewise.retrieval.index import Index, sync
from tunewise.retrieval.passage import Document, Passage

SIZE, ADDRESS = 16, "qdrant://somewhere:6333/manuals"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


class Words:
    """An embedder of ours: a text's vector is the sum of a fixed random vector a word."""

    fingerprint = "words"

    def __init__(self):
        self.embedded = []

    def encode(self, texts, report=None):
        self.embedded += texts
        return np.array([vector(text) for text in texts], dtype=np.float32).reshape(len(texts), SIZE)


def vector(text):
    total = np.zeros(SIZE)
    for word in re.findall(r"\w+", text.lower()):
        total += np.random.default_rng(int.from_bytes(word.encode()[:6], "big")).normal(size=SIZE)
    return total / max(np.linalg.norm(total), 1e-9)


def split(document):
    """A passage a line."""
    for match in re.finditer(r"[^\n]+", document.text):
        yield Passage(document.name, *match.span(), match[0], heading=document.name.upper())


CARS = [
    Document("cars/brakes.md", "The brake pads wear out.\nBraking distance grows with speed."),
    Document("cars/engine.md", "The engine burns petrol.\nOil keeps the engine cool."),
    Document("boats/sails.md", "The sails catch the wind.\nReef the sails in a storm."),
]


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return tmp_path / "index"
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)  # the data lives as long as this client
    monkeypatch.setattr(indexes, "client_of", lambda address: (client, address.rpartition("/")[2]))
    return ADDRESS


def create_index(place, **settings):
    return Index.create(place, "words", "words", SIZE, **settings)


def texts_of(rows):
    return [[passage.text for passage, _ in row] for row in rows]


def test_what_is_added_is_found_again_after_reopening(place):
    with create_index(place) as index:
        assert sync(index, CARS, split, Words()) == {"added": 3, "removed": 0, "unchanged": 0, "passages": 6}
    with Index.open(place, "words") as index:
        assert index.count() == 6
        assert index.documents() == {document.name: document.fingerprint for document in CARS}
        assert sorted(index.passages(), key=lambda p: p.id) == sorted(
            (passage for document in CARS for passage in split(document)), key=lambda p: p.id
        )
        queries = np.array([vector("CARS/BRAKES.MD The brake pads wear out."), vector("reef storm")])
        rows = index.dense(queries, 2)
        assert [row[0] for row in texts_of(rows)] == ["The brake pads wear out.", "Reef the sails in a storm."]
        assert rows[0][0][1] == pytest.approx(1.0, abs=1e-4)
        assert rows[0][0][0] == next(iter(split(CARS[0])))
        assert texts_of(index.lexical(["storm", "", "petrol engine", "zebra"], 1)) == [
            ["Reef the sails in a storm."],
            [],
            ["The engine burns petrol."],
            [],
        ]


def test_words_are_weighted_by_rarity_and_ranked_as_in_memory(place):
    from tunewise.retrieval.search import Passages

    passages = [passage for document in CARS for passage in split(document)]
    with create_index(place) as index:
        sync(index, CARS, split, Words())
        for question in ("the engine petrol", "braking distance of the brake", "sails"):
            here = texts_of(index.lexical([question], 3))
            assert here == texts_of(Passages(passages).lexical([question], 3))


def test_among_narrows_to_a_prefix_or_to_names(place):
    with create_index(place) as index:
        sync(index, CARS, split, Words())
        queries = np.array([vector("sails wind storm")])

        def names(among):
            both = index.dense(queries, 9, among) + index.lexical(["the sails engine"], 9, among)
            return [{passage.document for passage, _ in row} for row in both]

        assert names("cars/") == [{"cars/brakes.md", "cars/engine.md"}] * 2
        assert names({"cars/engine.md"}) == [{"cars/engine.md"}] * 2
        assert names(["cars/engine.md", "boats/sails.md"]) == [{"cars/engine.md", "boats/sails.md"}] * 2
        assert names(set()) == [set()] * 2
        assert names("planes/") == [set()] * 2
        assert len({passage.id for passage in index.passages("boats/")}) == 2


def test_a_second_sync_embeds_what_changed_and_removes_what_has_gone(place):
    with create_index(place) as index:
        sync(index, CARS, split, Words())
        changed = Document("cars/engine.md", "The engine is electric.\nOil keeps the engine cool.")
        embedder = Words()
        counts = sync(index, iter([CARS[0], changed]), split, embedder)
        assert counts == {"added": 1, "removed": 1, "unchanged": 1, "passages": 2}
        assert embedder.embedded == [passage.indexed for passage in split(changed)]
        assert index.count() == 4
        assert texts_of(index.lexical(["petrol", "electric", "sails"], 5)) == [[], ["The engine is electric."], []]
        again = Words()
        assert sync(index, [CARS[0], changed], split, again)["unchanged"] == 2
        assert again.embedded == []


def test_a_document_without_passages_is_known(place):
    empty = Document("empty.md", "")
    with create_index(place) as index:
        assert sync(index, [empty], split, Words())["added"] == 1
        assert sync(index, [empty], split, Words())["unchanged"] == 1
        assert index.count() == 0 and index.documents() == {"empty.md": empty.fingerprint}


def test_adding_twice_adds_once_and_small_batches_change_nothing(place):
    with create_index(place) as index:
        passages = list(split(CARS[0]))
        vectors = Words().encode([passage.indexed for passage in passages])
        for _ in range(2):
            index.add(passages, vectors, {CARS[0].name: CARS[0].fingerprint})
        assert index.count() == 2
        assert sync(index, CARS, split, Words(), batch=1)["added"] == 2
        assert index.count() == 6


def test_an_unfinished_document_is_finished_by_the_next_sync(place, monkeypatch):
    with create_index(place) as index:
        sync(index, CARS[:1], split, Words())
        write, calls = index._record, []

        def cut(fingerprints):
            calls.append(fingerprints)
            if len(calls) == 2:
                raise KeyboardInterrupt
            write(fingerprints)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(index, "_record", cut)
            sync(index, CARS, split, Words())
    with Index.open(place) as index:
        assert index.documents()[CARS[0].name] == CARS[0].fingerprint
        assert index.documents()[CARS[1].name] == ""
        assert sync(index, CARS[:2], split, Words()) == {"added": 1, "removed": 1, "unchanged": 1, "passages": 2}
        assert index.count() == 4
        assert texts_of(index.lexical(["sails"], 5)) == [[]]


def test_wrong_requests_are_refused_in_a_sentence(place):
    with create_index(place, chunks={"tokens": 256}) as index:
        with pytest.raises(DataError, match="two documents are named"):
            sync(index, [CARS[0], CARS[0]], split, Words())
        with pytest.raises(ValueError, match="of size 16"):
            index.add([], np.zeros((1, SIZE)), {})
        with pytest.raises(ValueError, match="needs a fingerprint"):
            index.add(list(split(CARS[0])), np.zeros((2, SIZE)), {})
        with pytest.raises(TunewiseError, match="could not be searched"):
            index.dense(np.ones((1, SIZE - 1)), 3)
        other = Words()
        other.fingerprint = "others"
        with pytest.raises(ArtifactError, match=r"built with the embedder words \(words\)"):
            sync(index, CARS, split, other)
    with pytest.raises(ArtifactError, match="built with the embedder"):
        Index.open(place, "others")
    with pytest.raises(ArtifactError, match="other chunk settings"):
        Index.open(place, chunks={"tokens": 128})
    Index.open(place, "words", {"tokens": 256}).close()
    with pytest.raises(RequestError, match="open the index"):
        create_index(place)


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is not an index"):
        Index.open(tmp_path)
    with pytest.raises(ArtifactError, match="is not an index"):
        Index.open(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    with create_index(tmp_path / "index"):
        pass
    facts = tmp_path / "index" / "index.json"
    good = facts.read_text()
    for bad in ("{", "[]", json.dumps({"schema": 99}), json.dumps(json.loads(good) | {"size": "16"})):
        facts.write_text(bad)
        with pytest.raises(ArtifactError):
            Index.open(tmp_path / "index")
    facts.write_text(good)
    (tmp_path / "index" / "points").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is damaged"):
        Index.open(tmp_path / "index")


def test_a_creation_that_was_cut_off_can_be_done_again(tmp_path):
    create_index(tmp_path / "index").close()
    (tmp_path / "index" / "index.json").rename(tmp_path / "index" / indexes._CREATING)
    with create_index(tmp_path / "index") as index:
        assert index.count() == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "points").write_text("not an index's")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty"):
        create_index(tmp_path / "mine")
    assert (tmp_path / "mine" / "points").exists()


def test_one_process_at_a_time(tmp_path):
    opener = "import sys; from tunewise.retrieval.index import Index; Index.open(sys.argv[1])"
    with create_index(tmp_path / "index"):
        with pytest.raises(RequestError, match=f"in use by process {os.getpid()}"):
            Index.open(tmp_path / "index")
        other = subprocess.run([sys.executable, "-c", opener, tmp_path / "index"], capture_output=True, text=True)
        assert f"in use by process {os.getpid()}" in other.stderr
    assert subprocess.run([sys.executable, "-c", opener, tmp_path / "index"]).returncode == 0


def test_the_graph_is_built_without_losing_or_repeating_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "INDEXED_KB", 10)
    monkeypatch.setattr(engines, "FULL_SCAN_KB", 1)
    drawn = np.random.default_rng(0).normal(size=(3000, SIZE)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    passages = [Passage(f"d{n // 10}", n, n + 1, f"passage {n}") for n in range(len(drawn))]
    with create_index(tmp_path / "index") as index:
        for start in range(0, 3000, 1000):
            part = passages[start : start + 1000]
            index.add(part, drawn[start : start + 1000], {passage.document: "1" for passage in part})
            index.optimize()
        index.remove([f"d{n}" for n in range(100)])
        index.optimize()
        assert index.count() == 2000
    with Index.open(tmp_path / "index") as index:
        exact = np.argsort(-(drawn[:50] @ drawn[1000:].T), axis=1)[:, :10] + 1000
        rows = [{passage.start for passage, _ in row} for row in index.dense(drawn[:50], 10)]
        assert (
            np.mean([len(row & set(exact_row)) / 10 for row, exact_row in zip(rows, exact.tolist(), strict=True)])
            > 0.95
        )
        assert {passage.start for passage in index.passages()} == set(range(1000, 3000))


@pytest.mark.parametrize(
    "address", ["qdrant://", "qdrant://host", "qdrant://host:x/name", "http://host/name", "qdrant://host/a/b"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(SettingError, match="qdrant://host:port/collection"):
        Index.connect(address)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(TunewiseError, match=r"qdrant://127\.0\.0\.1:1/none could not be opened"):
        Index.open("qdrant://127.0.0.1:1/none")


def test_a_collection_that_is_no_index_is_refused(monkeypatch):
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("other", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    monkeypatch.setattr(indexes, "client_of", lambda address: (client, address.rpartition("/")[2]))
    monkeypatch.setattr(client, "close", lambda: None)
    for name in ("other", "missing"):
        with pytest.raises(ArtifactError, match="is not an index"):
            Index.open(f"qdrant://somewhere:6333/{name}")
