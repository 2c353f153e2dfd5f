"""Keeps encoded rows in one file that is mapped into memory, for more rows than memory holds.

    TWROWS01 | token ids, row after row | bits of what is labelled | where rows begin | lengths of prompts | truncated
             | JSON: how large each part is, and the fingerprint of the rows | its length in 8 bytes | TWROWEND

Rows are encoded by several processes, a chunk each in turn, into a file that gets its name when it is whole. Trials,
workers and the ranks of one training read the same file and share its pages. It takes about two bytes a token for
vocabularies below 65,536, where lists of Python's numbers take 175.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from filelock import FileLock

from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Count, JsonRecord
from tunewise.core.operating_system import Helper, can_help, usable_cores
from tunewise.core.progress import Progress, silent
from tunewise.data.examples import Example
from tunewise.engine.encoding import TokenSequence

MOST_IN_MEMORY = 50_000  # rows that are kept as lists; more are kept in a file
CHUNK = 2_000  # rows that a process encodes at a time
_BEGIN, _END = b"TWROWS01", b"TWROWEND"

Encode = Callable[[Sequence[Example], int], Sequence[TokenSequence]]  # of some examples, and how many are before them


@dataclass(frozen=True, kw_only=True)
class _Parts(JsonRecord):
    """Says how large the parts of a row file are."""

    rows: Count
    tokens: Count
    wide: bool  # whether token ids take four bytes
    fingerprint: str


class RowFile(Sequence[TokenSequence]):
    """The rows of a file, each read when it is asked for.

    Raises:
        ArtifactError: the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._parts, start = _parts_of(path), len(_BEGIN)
            bits = -(-self._parts.tokens // 8)
            ids = np.dtype("<u4") if self._parts.wide else np.dtype("<u2")
            rows = self._parts.rows
            kinds: list[tuple[np.dtype[Any], int]] = [
                (ids, self._parts.tokens),
                (np.dtype("u1"), bits),
                (np.dtype("<i8"), rows + 1),
                (np.dtype("<i4"), rows),
                (np.dtype("u1"), rows),
            ]
            mapped = np.memmap(path, dtype=np.uint8, mode="r")
            views: list[np.ndarray[Any, Any]] = []
            for kind, count in kinds:
                end = start + kind.itemsize * count
                views.append(np.frombuffer(mapped[start:end], dtype=kind))
                start = end
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: is no whole file of rows ({error})") from error
        self._ids, self._bits, self._starts, self._prompts, self._truncated = views

    def __len__(self) -> int:
        return self._parts.rows

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...
    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        first, last = int(self._starts[place]), int(self._starts[place + 1])
        bits = np.unpackbits(self._bits[first // 8 : -(-last // 8)])[first % 8 :][: last - first]
        return TokenSequence(
            self._ids[first:last].tolist(),
            bits.astype(bool).tolist(),
            int(self._prompts[place]),
            bool(self._truncated[place]),
        )

    @property
    def tokens(self) -> int:
        """The tokens of all rows."""
        return self._parts.tokens

    @property
    def truncated(self) -> int:
        """How many rows were shortened to fit the window."""
        return int(self._truncated.sum())

    @property
    def fingerprint(self) -> str:
        """Tells these rows from others, as `fingerprint_of` does for a list of them."""
        return self._parts.fingerprint


def fingerprint_of(rows: Iterable[TokenSequence]) -> str:
    """Return a SHA-256 in hex over the ids and the labels of rows in their order."""
    if isinstance(rows, RowFile):
        return rows.fingerprint
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_bytes_of(row))
    return digest.hexdigest()


def tokens_of(rows: Sequence[TokenSequence]) -> int:
    """Count the tokens of rows."""
    return rows.tokens if isinstance(rows, RowFile) else sum(len(row.ids) for row in rows)


def truncated_of(rows: Sequence[TokenSequence]) -> int:
    """Count the rows that were shortened."""
    return rows.truncated if isinstance(rows, RowFile) else sum(row.truncated for row in rows)


def _bytes_of(row: TokenSequence) -> bytes:
    return len(row.ids).to_bytes(8, "little") + array("q", row.ids).tobytes() + bytes(row.labelled)


def row_file(
    path: Path, examples: Sequence[Example], encode: Encode, *, largest_id: int, progress: Progress = silent
) -> RowFile:
    """Return the rows of a file, which is written first where it is not there; one process writes, others wait.

    Args:
        path: the file; its name stands for all that the rows depend on.
        examples: what is encoded.
        encode: encodes some of them, with the number of those before them.
        largest_id: the largest token id that can occur.
        progress: is told how many rows are encoded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        with suppress(ArtifactError):
            return RowFile(path)
        _write(path, examples, encode, largest_id > np.iinfo(np.uint16).max, progress)
    return RowFile(path)


def _write(path: Path, examples: Sequence[Example], encode: Encode, wide: bool, progress: Progress) -> None:
    """Write the file of rows under another name, and give it its own when it is on the disk."""
    for left in path.parent.glob(f"{path.name}.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    unfinished, kind = path.with_name(f"{path.name}.unfinished"), np.dtype("<u4") if wide else np.dtype("<u2")
    digest, labelled, lengths, prompts, truncated = hashlib.sha256(), _Bits(), array("q", [0]), array("i"), bytearray()
    with unfinished.open("wb") as file:
        file.write(_BEGIN)
        for chunk in _chunks(path, examples, encode, progress):
            for row in chunk:
                digest.update(_bytes_of(row))
                labelled.add(row.labelled)
                lengths.append(lengths[-1] + len(row.ids))
                prompts.append(row.prompt)
                truncated.append(row.truncated)
                file.write(np.asarray(row.ids, dtype=kind).tobytes())
        for part in (labelled.packed(), lengths, prompts, truncated):
            file.write(part if isinstance(part, bytes | bytearray) else part.tobytes())
        parts = _Parts(rows=len(prompts), tokens=lengths[-1], wide=wide, fingerprint=digest.hexdigest())
        _write_end(file, parts)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _write_end(file: BinaryIO, parts: _Parts) -> None:
    text = json.dumps(parts.to_json()).encode()
    file.write(text + len(text).to_bytes(8, "little") + _END)


def _parts_of(path: Path) -> _Parts:
    with path.open("rb") as file:
        begin = file.read(len(_BEGIN))
        file.seek(-8 - len(_END), os.SEEK_END)
        length, end = int.from_bytes(file.read(8), "little"), file.read(len(_END))
        if begin != _BEGIN or end != _END or length > 1 << 12:
            raise ArtifactError(f"{path}: is no whole file of rows")
        file.seek(-8 - len(_END) - length, os.SEEK_END)
        return _Parts.from_json(json.loads(file.read(length)), path)


class _Bits:
    """Packs yes and no, eight to a byte."""

    def __init__(self) -> None:
        self._bytes, self._rest = bytearray(), list[bool]()

    def add(self, values: Sequence[bool]) -> None:
        """Take in values behind those before."""
        waiting = [*self._rest, *values]
        whole = len(waiting) // 8 * 8
        self._bytes += np.packbits(np.asarray(waiting[:whole], dtype=bool)).tobytes()
        self._rest = waiting[whole:]

    def packed(self) -> bytes:
        """Return all of them, the last byte filled up with no."""
        return bytes(self._bytes) + np.packbits(np.asarray(self._rest, dtype=bool)).tobytes()


def _chunks(
    path: Path, examples: Sequence[Example], encode: Encode, progress: Progress
) -> Iterator[Sequence[TokenSequence]]:
    """Encode the examples in chunks, by as many processes as there are cores, and yield them in their order."""
    starts = range(0, len(examples), CHUNK)
    count = min(len(usable_cores()), len(starts)) if can_help() else 0
    helpers = [Helper(_encode_every(path, examples, encode, starts, place, count)) for place in range(count)]
    try:
        for place, start in enumerate(starts):
            part = path.with_name(f"{path.name}.part-{place}")
            helper = helpers[place % count] if count > 1 else None
            if helper is not None and helper.wait_for(part):
                yield _read_part(part)
                part.unlink()
            else:  # what a helper could not do is done here, where an error says what is wrong
                yield encode(examples[start : start + CHUNK], start)
            progress("encoding the training examples", min(start + CHUNK, len(examples)), len(examples))
    finally:
        for helper in helpers:
            helper.end()


def _encode_every(
    path: Path, examples: Sequence[Example], encode: Encode, starts: range, first: int, step: int
) -> Callable[[], None]:
    """Return what one of several processes does: encode every `step`-th chunk into a file of its own."""

    def work() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the tokenizer stayed in the other process
        for place in range(first, len(starts), step):
            rows = encode(examples[starts[place] : starts[place] + CHUNK], starts[place])
            part = path.with_name(f"{path.name}.part-{place}")
            hidden = part.with_name(f"{part.name}.tmp")
            lines = ([row.ids, [*map(int, row.labelled)], row.prompt, row.truncated] for row in rows)
            hidden.write_text("".join(json.dumps(line) + "\n" for line in lines), "ascii")
            hidden.replace(part)

    return work


def _read_part(part: Path) -> list[TokenSequence]:
    rows = []
    with part.open(encoding="ascii") as file:
        for line in file:
            ids, labelled, prompt, truncated = json.loads(line)
            rows.append(TokenSequence(ids, [*map(bool, labelled)], prompt, truncated))
    return rows
