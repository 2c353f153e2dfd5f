"""An index whose writer is killed at any moment opens again and holds every chunk that was acknowledged.

Each life brings the index from one state of the documents to the next, over and over, and tells before and after each
write what it does. It is killed by SIGKILL at a random moment; adding, changing, removing and building the graph are
all cut off.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import pytest

import figures
from tunewise.retrieval import engines
from tunewise.retrieval import index as indexes
from tunewise.retrieval.index import Index, sync
from tunewise.retrieval.passage import Document, Passage

KILLS, SIZE, BATCH = figures.of(20, 200), 8, 10

LIFE = """
import itertools, json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from test_index_killed import BATCH, Told, Vectors, documents, split
from tunewise.retrieval.index import sync

with Told.open(sys.argv[2]) as index:
    for step in itertools.count(int(sys.argv[3])):
        print(json.dumps(["step", step]), flush=True)
        sync(index, documents(step), split, Vectors(), batch=BATCH)
"""


class Told(Index):
    """An index that tells what it begins and what it has acknowledged."""

    def add(self, passages, vectors, fingerprints):
        print(json.dumps(["adding", dict(fingerprints)]), flush=True)
        super().add(passages, vectors, fingerprints)
        print(json.dumps(["added", dict(fingerprints)]), flush=True)

    def remove(self, document_names):
        names = list(document_names)
        print(json.dumps(["removing", names]), flush=True)
        super().remove(names)
        print(json.dumps(["removed", names]), flush=True)


class Vectors:
    """A vector drawn from a text."""

    fingerprint = "drawn"

    def encode(self, texts, report=None):
        rows = [np.random.default_rng(list(text.encode())).normal(size=SIZE) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), SIZE)


def documents(step):
    """Some sixty documents; in each step a third of them changes and a seventh is missing."""
    return [
        Document(f"{n}.md", "\n".join(f"document {n} version {(step + n) // 3} line {line}" for line in range(n % 6)))
        for n in range(70)
        if (step + n) % 7
    ]


def split(document):
    start = 0
    for line in document.text.splitlines():
        yield Passage(document.name, start, start + len(line), line)
        start += len(line) + 1


class Promises:
    """What the index owes: by document, the fingerprints of which one must be there in full."""

    def __init__(self):
        self.owed, self.exactly, self.known = {}, {}, {}

    def hear(self, kind, what):
        if kind == "step":
            self.known |= {document.fingerprint: document for document in documents(what)}
        for name in what if kind != "step" else ():
            self.exactly.pop(name, None)
            if kind == "adding" and name in self.owed:
                self.owed[name].add(what[name])
            elif kind == "added":
                self.owed[name], self.exactly[name] = {what[name]}, what[name]
            elif kind == "removing":
                self.owed.pop(name, None)
            elif kind == "removed":
                self.exactly[name] = None

    def check(self, index):
        stored, fingerprints = defaultdict(set), index.documents()
        for passage in index.passages():
            assert passage not in stored[passage.document], "no passage is there twice"
            stored[passage.document].add(passage)
        assert index.count() == sum(map(len, stored.values()))
        assert stored.keys() <= fingerprints.keys(), "every passage belongs to a known document"
        for name, fingerprint in self.exactly.items():
            assert fingerprints.get(name) == fingerprint, "what was acknowledged is so"
        for name, fingerprint in fingerprints.items():
            if fingerprint:
                assert stored[name] == set(split(self.known[fingerprint])), "a document is whole or known not to be"
        for name, versions in self.owed.items():
            assert any(set(split(self.known[version])) <= stored[name] for version in versions), "no chunk is lost"


def live(folder, step, lines, share):
    """A life that ends so many lines and a share of the longest wait for one later: what it told in whole lines."""
    arguments = [sys.executable, "-c", LIFE, __file__.rpartition("/")[0], str(folder), str(step)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        output, waits = process.stdout.readline(), [0.02]
        for _ in range(lines):
            started = time.perf_counter()
            output += process.stdout.readline()
            waits.append(time.perf_counter() - started)
        time.sleep(share * max(waits))
        process.kill()
        output += process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [json.loads(line) for line in output[: output.rfind(b"\n") + 1].splitlines()]


@pytest.mark.slow
@pytest.mark.figure("R1")
def test_an_index_killed_at_random_moments_keeps_what_was_acknowledged(tmp_path, monkeypatch, cases):
    monkeypatch.setattr(engines, "INDEXED_KB", 2)  # small, so that the graph is built and merged in every life
    monkeypatch.setattr(engines, "FULL_SCAN_KB", 1)
    folder, rng, promises = tmp_path / "index", random.Random(0), Promises()
    Index.create(folder, "drawn", "drawn", SIZE).close()
    step = 0
    for _ in range(KILLS):
        for kind, what in live(folder, step, rng.randint(0, 45), rng.random()):
            promises.hear(kind, what)
            step = what + 1 if kind == "step" else step
        with Index.open(folder, "drawn") as index:
            promises.check(index)
        assert not list((folder / indexes.SHARD / indexes.UNFINISHED).glob("*")), "nothing is left behind"
        cases.passed()
    with Index.open(folder, "drawn") as index:
        last = documents(step)
        sync(index, last, split, Vectors())
        passages = [passage for document in last for passage in split(document)]
        assert set(index.passages()) == set(passages) and index.count() == len(passages)
        assert index.documents() == {document.name: document.fingerprint for document in last}
        rows = index.dense(Vectors().encode([passage.text for passage in passages]), 1)
        assert [row[0][0] for row in rows] == passages
