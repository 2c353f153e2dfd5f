"""Encoded rows in a mapped file: the same rows as a list, however they were written."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import still_running
from tunewise.core.errors import DataError
from tunewise.engine import row_file as row_files
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.row_file import fingerprint_of, row_file, tokens_of, truncated_of

ROWS = st.lists(
    st.integers(0, 12).flatmap(
        lambda size: st.builds(
            TokenSequence,
            st.lists(st.integers(0, 65_535), min_size=size, max_size=size),
            st.lists(st.booleans(), min_size=size, max_size=size),
            st.integers(0, 12),
            st.booleans(),
        )
    ),
    max_size=30,
)


def written(folder, rows, largest=65_535, encode=None):
    """A file of rows, which stand for the examples that they are encoded from."""
    return row_file(
        folder / "rows-x.bin", rows, encode or (lambda examples, before: list(examples)), largest_id=largest
    )


@given(rows=ROWS, wide=st.booleans())
def test_a_file_gives_the_rows_that_were_written(tmp_path_factory, rows, wide):
    stored = written(tmp_path_factory.mktemp("rows"), rows, 1 << 20 if wide else 65_535)
    assert len(stored) == len(rows) and list(stored) == rows and stored[-3:] == rows[-3:]
    assert fingerprint_of(stored) == fingerprint_of(rows)
    assert (tokens_of(stored), truncated_of(stored)) == (tokens_of(rows), truncated_of(rows))
    with pytest.raises(IndexError):
        stored[len(rows)]


@pytest.fixture
def many(monkeypatch):
    """Rows of several chunks."""
    monkeypatch.setattr(row_files, "CHUNK", 10)
    return [TokenSequence([place, place % 7, 3], [False, True, place % 2 > 0], 1) for place in range(95)]


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_several_processes_write_the_same_file(many, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(row_files, "usable_cores", lambda: list(range(cores)))
    who = tmp_path / "who"

    def encode(examples, before):
        with who.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return list(examples)

    assert list(written(tmp_path, many, encode=encode)) == many
    assert len({*who.read_text().split()}) == cores and (str(os.getpid()) in who.read_text()) == (cores == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows-x.bin", "rows-x.lock", "who"]
    who.unlink()
    assert list(written(tmp_path, many, encode=encode)) == many and not who.exists(), "what is there is not made again"


def test_an_error_of_a_row_is_that_of_a_list_and_leaves_no_file(many, tmp_path):
    def encode(examples, before):
        if any(row.ids[0] == 57 for row in examples):
            raise DataError("the chat template refuses row 57")
        return list(examples)

    with pytest.raises(DataError, match="refuses row 57"):
        written(tmp_path, many, encode=encode)
    assert not (tmp_path / "rows-x.bin").exists()


@pytest.mark.parametrize("damage", [lambda text: text[:-1], lambda text: text[: len(text) // 2], lambda text: b""])
def test_a_file_that_is_not_whole_is_written_again(many, tmp_path, damage):
    path = written(tmp_path, many).path
    path.write_bytes(damage(path.read_bytes()))
    assert list(written(tmp_path, many)) == many


KILLED = """
import sys, time
from pathlib import Path
from tunewise.engine import row_file
from tunewise.engine.encoding import TokenSequence

row_file.CHUNK = 10
row_file.usable_cores = lambda: [0, 1]

def slow(examples, before):
    time.sleep(0.2)
    return list(examples)

rows = [TokenSequence([place, place % 7, 3], [False, True, place % 2 > 0], 1) for place in range(95)]
row_file.row_file(Path(sys.argv[1]) / "rows-x.bin", rows, slow, largest_id=9)
"""


@pytest.mark.slow
def test_killed_in_the_middle_its_helpers_end_and_the_next_one_begins_anew(many, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path])
    while not (tmp_path / "rows-x.bin.unfinished").exists():
        assert process.poll() is None
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not still_running(helpers) and not (tmp_path / "rows-x.bin").exists()
    assert list(written(tmp_path, many)) == many
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows-x.bin", "rows-x.lock"]


def test_an_examples_number_counts_those_in_earlier_chunks(many, tmp_path):
    seen = []
    helpless = lambda: False  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "can_help", helpless)
        written(tmp_path, many, encode=lambda examples, before: (seen.append(before), list(examples))[1])
    assert seen == list(range(0, 95, 10))
