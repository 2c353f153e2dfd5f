"""A place that cannot be written: whether it is the disk's fault or the request's."""

import errno
import os
from contextlib import ExitStack

import pytest

from tunewise.core import artifact_writer, lock
from tunewise.core.errors import RequestError, TunewiseError

PLACES = {
    "a folder's lock": lambda folder: ExitStack().enter_context(lock.lock(folder / "out")),
    "a file's lock": lambda folder: ExitStack().enter_context(lock.lock_file(folder / "out.jsonl")),
    "a folder for results": lambda folder: artifact_writer.output_folder(folder / "out"),
}


@pytest.mark.parametrize("write", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(
    ("number", "is_request"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EACCES, True), (errno.EROFS, True)]
)
def test_a_full_disk_is_no_wrong_request(write, number, is_request, tmp_path, monkeypatch):
    def refused(*arguments, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refused)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(TunewiseError, match=os.strerror(number)) as raised:
        write(tmp_path)
    assert isinstance(raised.value, RequestError) == is_request
    assert ("free some space" in str(raised.value)) != is_request
