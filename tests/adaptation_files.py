"""The files of an adaptation, for tests that forge or compare them."""

import json

from tunewise.adaptation.artifact import FILE, PEFT_WEIGHTS, WEIGHTS, weights_of
from tunewise.adaptation.record import AdaptationRecord
from tunewise.core import artifact_writer


def contents(folder):
    """The facts and weights, as if all weights lay in weights.safetensors."""
    stored = artifact_writer.read(folder)
    facts = stored.json(FILE)
    tensors = weights_of(stored, AdaptationRecord.of_file(facts, folder / FILE))
    facts.pop("peft_tensors", None)
    return facts | {"format": 1}, tensors


def write_contents(folder, facts, tensors):
    artifact_writer.commit(folder, texts={FILE: json.dumps(facts)}, tensors={WEIGHTS: tensors})


def weight_bytes(folder):
    """The bytes of the file that holds the weights."""
    return next(path for path in (folder / WEIGHTS, folder / PEFT_WEIGHTS) if path.is_file()).read_bytes()
