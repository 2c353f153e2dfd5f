"""Encodes the training split for an attachment: as a list, or in a mapped file where there are more rows than that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tunewise.contract.attachment import Attachment
from tunewise.core.progress import Progress, silent
from tunewise.data.example_collection import kept
from tunewise.data.examples import Example, content_bytes
from tunewise.data.task import Task
from tunewise.engine import row_file
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.run_text import RunText
from tunewise.fitting.scoring import encoder_for

FOLDER = "rows"  # in the folder of a fit or of a comparison


def rendered_examples(attachment: Attachment, task: Task) -> Sequence[Example]:
    """Return the training split as an attachment renders it: the very same where it leaves all examples as they are."""
    if all(attachment.render(example) is example for example in task.train):
        return task.train
    return kept(map(attachment.render, task.train), task.kind)


def encoded_rows(
    attachment: Attachment,
    task: Task,
    folder: Path | None,
    progress: Progress = silent,
    rendered: Sequence[Example] | None = None,
) -> Sequence[TokenSequence]:
    """Return the training split as an attachment reads it.

    Args:
        attachment: its virtual tokens take up part of the window.
        task: the data.
        folder: where files of rows are kept, one for everything that reads the same; None: rows stay in memory.
        progress: is told how many rows are encoded.
        rendered: what `rendered_examples` returned, if it was called already.
    """
    if rendered is None:
        rendered = rendered_examples(attachment, task)
    encoder = encoder_for(attachment, task)
    if folder is None or len(rendered) <= row_file.MOST_IN_MEMORY:
        return encoder.encode(rendered)
    digest = hashlib.sha256()
    facts = [RunText.of(attachment.base, task).to_json(), attachment.virtual_tokens, attachment.virtual_suffix]
    digest.update(json.dumps([*facts, task.fingerprint]).encode())
    if rendered is not task.train:
        for example in rendered:
            digest.update(content_bytes(example))
    return row_file.row_file(
        folder / f"rows-{digest.hexdigest()[:16]}.bin",
        rendered,
        encoder.encode,
        largest_id=attachment.base.vocabulary + attachment.virtual_tokens + attachment.virtual_suffix,
        progress=progress,
    )


def remove_rows(folder: Path) -> None:
    """Remove the files of rows in the folder of a run, which has ended."""
    rows = folder / FOLDER
    if rows.is_dir() and not rows.is_symlink():
        for path in rows.glob("rows-*"):
            path.unlink()
        if not any(rows.iterdir()):
            rows.rmdir()
