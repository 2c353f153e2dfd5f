"""Saves and loads adaptations.

An adaptation, the result of a fit, is a folder of these files:

    adaptation.json      format version, technique, settings, base, prompt style, metrics
    weights.safetensors  the attachment's tensors
    rows.jsonl           the examples of techniques that show examples
    adapter_config.json, adapter_model.safetensors: the weights in PEFT's format, where PEFT can express them
                         (what is bit for bit the same there is not in weights.safetensors; `peft_tensors` names it)
    manifest.json        size and sha256 of the other files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunewise.adaptation.finite_outputs import require_finite_outputs
from tunewise.adaptation.peft_adapter import PeftAdapter, attached, base_of_record
from tunewise.adaptation.record import FORMAT, IN_PEFTS_FILE, AdaptationRecord, RecordedBase, RecordedStyle
from tunewise.adaptation.same_base import tell_of_other_text
from tunewise.contract.attachment import Attachment
from tunewise.contract.places import Places
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.text import show
from tunewise.core.version import __version__
from tunewise.data.task import Example, Message, Task
from tunewise.engine.generation import generate, stop_of
from tunewise.engine.model import DTYPES, Base, load_base
from tunewise.engine.run_text import RunText
from tunewise.engine.shards import collected
from tunewise.fitting.scoring import encoder_for
from tunewise.techniques.building.peft_lora import resized_embeddings

if TYPE_CHECKING:
    from torch import Tensor

FILE, ROWS, WEIGHTS, PEFT_WEIGHTS = "adaptation.json", "rows.jsonl", "weights.safetensors", "adapter_model.safetensors"
_INDICES = (torch.int32, torch.int64)  # some methods of PEFT keep places and sizes


@dataclass(frozen=True)
class Adaptation:
    """Holds a loaded adaptation: the attachment on its base, and the record of its folder.

    `style` is the task without its examples; it says how prompts are rendered. An adapter of PEFT's has no record.

    Examples:
        >>> base, task = load_base("world"), Task.read("world:reviews")
        >>> _ = fit(base, task, make("lora"), "runs/reviews", settings=TrainSettings(max_steps=30))
        >>> adaptation = load("runs/reviews/adaptation", base=base)
        >>> adaptation.generate("At the inn everything was honest, even the music. We left early.")
        'complaint'
    """

    attachment: Attachment
    style: Task
    record: AdaptationRecord | None

    @property
    def stop(self) -> str | None:
        """The text that ends an answer, where a token does not."""
        return self.record.style.stop if self.record is not None else None

    def generate(self, prompt: str, max_new_tokens: int = 128) -> str:
        """Return the greedy answer to one prompt, which is rendered in the format of the task."""
        example = self.attachment.render(Example((Message("user", prompt),), ""))
        encoder = encoder_for(self.attachment, self.style)
        return generate(self.attachment.base, encoder, [example], max_new_tokens, self.stop).texts[0]


def save(
    attachment: Attachment,
    task: Task,
    folder: Path,
    record: JsonObject | None = None,
    *,
    on_saving: Callable[[AdaptationRecord], None] | None = None,
) -> None:
    """Write an adaptation, all or nothing. Where there are several ranks, all call this and the first one writes.

    Args:
        attachment: what is written.
        task: the data that it was made for.
        folder: where to.
        record: is stored with it (metrics, budget).
        on_saving: is called with the content before anything is written: what belongs beside an adaptation is there
            once the adaptation is.
    """
    base, peft_adapter = attachment.base, attachment.peft()
    state = collected(attachment.state(), base.ranks.writes)
    if not base.ranks.writes:
        return
    theirs = peft_adapter[1] if peft_adapter is not None else {}
    stored_there = _same_tensors(state, theirs)
    content = AdaptationRecord(
        format=IN_PEFTS_FILE if stored_there else FORMAT,
        tunewise=__version__,
        **attachment.recipe.to_json(),
        label=attachment.label or attachment.recipe.name,
        base=RecordedBase.of(base),
        style=RecordedStyle.of(task, stop_of(task)),
        text=RunText.of(base, task),
        peft_tensors=stored_there or None,
        record=record or {},
    )
    texts = {FILE: json.dumps(content.to_json(), indent=2, ensure_ascii=False, allow_nan=False)}
    tensors = {}
    if len(stored_there) < len(state) or not state:
        tensors[WEIGHTS] = {name: tensor for name, tensor in state.items() if name not in stored_there}
    rows = attachment.stored_rows()
    if rows:
        texts[ROWS] = rows_text(rows)
    if peft_adapter is not None:
        texts["adapter_config.json"] = json.dumps(peft_adapter[0], indent=2)
        tensors[PEFT_WEIGHTS] = theirs | resized_embeddings(base, theirs)
    if on_saving is not None:
        on_saving(content)
    artifact_writer.commit(folder, texts=texts, tensors=tensors)


def _same_tensors(state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Map names of the attachment's tensors to those in PEFT's file that have their type, shape and bits."""
    names = {_identity(tensor): name for name, tensor in theirs.items()}
    return {name: names[key] for name, tensor in state.items() if (key := _identity(tensor)) in names}


def _identity(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(raw.data).hexdigest()


def weights_of(stored: artifact_writer.Stored, record: AdaptationRecord) -> dict[str, Tensor]:
    """Return the tensors of an attachment, those that are in PEFT's file alone among them.

    Raises:
        ArtifactError: a file or a tensor is missing, a tensor is in both files, or one that only PEFT reads is of
            a type that it cannot have, or not finite.
    """
    shared = record.peft_tensors or {}
    theirs = stored.tensors(PEFT_WEIGHTS) if shared or PEFT_WEIGHTS in stored.names else {}
    _require_weights(stored.folder / PEFT_WEIGHTS, {name: theirs[name] for name in theirs.keys() - shared.values()})
    if not shared:
        return stored.tensors(WEIGHTS)
    tensors = stored.tensors(WEIGHTS) if WEIGHTS in stored.names else {}
    for name, there in shared.items():
        if there not in theirs or name in tensors:
            raise ArtifactError(
                f"{stored.folder}: {PEFT_WEIGHTS} must hold {there[:200]!r}, and {WEIGHTS} must not hold {name[:200]!r}"
            )
        tensors[name] = theirs[there]
    return tensors


def _require_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that PEFT alone reads, if they are of a type that no weight or index has, or not finite."""
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in (*DTYPES.values(), *_INDICES):
            raise ArtifactError(
                f'{file}: "{show(name, 200)}" is {tensor.dtype}, where a weight is a float and an index an integer of '
                "32 or 64 bits"
            )
        if not bool(tensor.isfinite().all()):
            raise ArtifactError(f'{file}: holds a value that is not finite in "{show(name, 200)}"')


def size_on_disk(folder: Path) -> int:
    """Return the bytes of the files that `load` reads."""
    stored = artifact_writer.read(folder)
    names = {FILE, WEIGHTS, ROWS} | ({PEFT_WEIGHTS} if stored.json(FILE).get("peft_tensors") else set())
    return sum((stored.folder / name).stat().st_size for name in names & set(stored.names))


def rows_text(rows: list[JsonObject]) -> str:
    """Return an attachment's rows as the text of `rows.jsonl`."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(
    path: str | Path,
    *,
    base: Base | None = None,
    model: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    places: Places | None = None,
) -> Adaptation:
    """Load an adaptation, or a PEFT adapter, onto its base.

    Nothing is downloaded or connected to because the folder names it: a base that it records is looked for on this
    machine, and an index, an embedder or a reranker is used where `places` or `settings` name it.

    Args:
        path: the folder.
        base: the loaded base; default: it is loaded from `model`.
        model: folder or Hub id of the base; default: the one that the folder records, if it is on this machine.
        settings: `settings[technique][setting]` to change, of those that can be changed after training (dylora's rank).
        places: what the adaptation uses besides its base, for the techniques that use such a thing.

    Raises:
        SettingError: `settings` names one that is fixed by training, or the folder names a place that is not given.
        ArtifactError: a file is damaged, altered or foreign, or the adaptation was made on another base.

    Examples:
        >>> base, task = load_base("world"), Task.read("world:reviews")
        >>> _ = fit(base, task, make("bitfit"), "runs/reviews", settings=TrainSettings(max_steps=2))
        >>> load("runs/reviews/adaptation", base=base).attachment.recipe.name
        'bitfit'
    """
    folder = Path(path)
    is_adaptation = (folder / FILE).exists() or (folder / "manifest.json").exists()
    if not is_adaptation and (folder / "adapter_config.json").is_file():
        if settings:
            raise SettingError("a PEFT adapter has no settings that can be changed when it is loaded")
        return _load_peft(folder, base, model)
    stored = artifact_writer.read(folder)
    record = AdaptationRecord.of_file(stored.json(FILE), folder / FILE)
    recipe = record.recipe(settings or {}, places or Places(), folder)
    if base is None:
        base = _recorded_base(folder, record.base, model, waits=recipe.packs_weights)
    _require_same_base(folder, record.base, base)
    style = record.style.task
    with attached(recipe, base) as attachment:
        tensors = weights_of(stored, record)
        try:
            attachment.load(tensors)
        except ArtifactError as error:
            raise ArtifactError(f"{folder / WEIGHTS}: {error}") from error
        attachment.load_rows(stored.rows(ROWS) if ROWS in stored.names else [], style)
        require_finite_outputs(folder / WEIGHTS, tensors, attachment)
    return Adaptation(attachment, style, record)


def base_of(path: str | Path, *, model: str | None = None, device: str | None = None) -> Base:
    """Load the bare base of an adaptation or a PEFT adapter: the one that its folder records, or `model` in its place.

    Raises:
        ArtifactError: a file is damaged, altered or foreign, or an adapter does not name its base.
    """
    folder = Path(path)
    if not (folder / "manifest.json").exists() and (folder / "adapter_config.json").is_file():
        return PeftAdapter.read(folder).load_base(model, device)
    content = artifact_writer.read(folder).json(FILE)
    return _recorded_base(folder, AdaptationRecord.of_file(content, folder / FILE).base, model, device)


def _recorded_base(
    folder: Path, record: RecordedBase, model: str | None, device: str | None = None, *, waits: bool = False
) -> Base:
    def loaded(name: str, revision: str | None, *, download: bool) -> Base:
        return load_base(
            name,
            revision=revision,
            dtype=record.dtype,
            device=device,
            max_length=record.max_length,
            resize_embeddings=record.embedding_rows or False,
            download=download,
            waits=waits,
        )

    if model:
        return loaded(model, None, download=True)
    with base_of_record(folder):
        return loaded(record.name, record.revision, download=False)


def _require_same_base(folder: Path, recorded: RecordedBase, base: Base) -> None:
    """Refuse another base than the recorded one, and tell where it reads text otherwise."""
    rows = recorded.embedding_rows
    if rows is not None and rows != base.vocabulary:
        raise ArtifactError(
            f"{folder}: was made on a base whose embeddings were resized to {rows} rows, and {base.name} has "
            f"{base.vocabulary}; load the base with resize_embeddings={rows}, or leave it to the adaptation to load"
        )
    if base.fingerprint != recorded.fingerprint:
        raise ArtifactError(
            f"{folder}: was made on another base than {base.name} (its weights have fingerprint "
            f"{base.fingerprint[:12]}, expected {recorded.fingerprint[:12]} of {recorded.name})"
        )
    if recorded.text is not None:
        tell_of_other_text(folder, recorded.text, base)


def _load_peft(folder: Path, base: Base | None, model: str | None) -> Adaptation:
    adapter = PeftAdapter.read(folder)
    attachment = adapter.attach(base if base is not None else adapter.load_base(model))
    style = Task(folder.name, "generation", "prompt-completion", (), (), (), (), "rouge_l", "{prompt}")
    return Adaptation(attachment, style, None)
