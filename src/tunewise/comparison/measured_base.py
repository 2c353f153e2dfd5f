"""Keeps what was measured on the bare base in the folder of a comparison, so that continuing it measures nothing again.

The folder `measured/<key>` holds `base.json`, a `MeasuredBase`, and `base.safetensors`: the token ids of the retention
text (`token_ids`, one sequence after the other), their number per sequence (`lengths`), and the base's nats per
sequence (`nats`). The key covers the base, its window, its device and the given texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Count, JsonRecord, NonNegative
from tunewise.core.progress import Progress, silent
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base, PackingTrial
from tunewise.fitting.forgetting import Retention

SCHEMA = 1
_RECORD, _TENSORS = "base.json", "base.safetensors"
_log = logging.getLogger("tunewise")


@dataclass(frozen=True, kw_only=True)
class MeasuredBase(JsonRecord):
    """Holds the figures of `Retention`, and whether the base runs packed rows with these versions of the libraries.

    Attributes:
        schema: version of this record.
        source: where the retention text comes from.
        nll: the base's loss there in nats per token.
        kl_tokens: positions that the KL divergence is averaged over.
        packing: the reason why the base cannot run packed rows; None if it can.
        torch: version that packing was tried with.
        transformers: version that packing was tried with.
    """

    schema: Count
    source: str
    nll: NonNegative
    kl_tokens: Count
    packing: str | None
    torch: str
    transformers: str


def retention_of(base: Base, texts: Sequence[str] | None, folder: Path, progress: Progress = silent) -> Retention:
    """Return what forgetting is measured on: read from the comparison's folder, else measured and stored there.

    What is read has no log-probabilities yet; see `Retention.record_predictions`.
    """
    path = folder / "measured" / _key(base, texts)
    artifact_writer.remove_leftovers(path.parent, path.name)
    if path.is_dir():
        try:
            return _read(base, path)
        except ArtifactError as error:
            _log.warning("the base is measured again: %s", error)
    retention = Retention.measure(base, texts, progress=progress)
    record = MeasuredBase(
        schema=SCHEMA,
        source=retention.source,
        nll=retention.nll,
        kl_tokens=retention.kl_tokens,
        packing=why_not_packed(base),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    ids = [sequence.ids for sequence in retention.sequences]
    tensors = {
        "token_ids": torch.tensor([token for row in ids for token in row]),
        "lengths": torch.tensor([len(row) for row in ids]),
        "nats": retention.nats,
    }
    text = json.dumps(record.to_json(), indent=2) + "\n"
    artifact_writer.commit(path, texts={_RECORD: text}, tensors={_TENSORS: tensors})
    return retention


def _key(base: Base, texts: Sequence[str] | None) -> str:
    facts = [SCHEMA, base.fingerprint, base.window, base.device.type, list(texts) if texts else None]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(base: Base, path: Path) -> Retention:
    stored = artifact_writer.read(path)
    record = MeasuredBase.from_json(stored.json(_RECORD), path / _RECORD)
    tensors = stored.tensors(_TENSORS)
    try:
        token_ids, lengths, nats = (tensors[name] for name in ("token_ids", "lengths", "nats"))
        rows = [row.tolist() for row in token_ids.split(lengths.tolist())]
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path / _TENSORS} does not hold retention text: {error}") from error
    if record.schema != SCHEMA or nats.shape != lengths.shape:
        raise ArtifactError(f"{path} was written by another version of tunewise")
    if base.packing is None and (record.torch, record.transformers) == (torch.__version__, transformers.__version__):
        base.packing = PackingTrial(record.packing)
    sequences = [TokenSequence(row, [False] + [True] * (len(row) - 1), 0) for row in rows]
    return Retention(sequences, record.nll, record.source, record.kl_tokens, nats)
