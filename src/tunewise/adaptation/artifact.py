"""Saves and loads adaptations.

An adaptation, the result of a fit, is a folder of these files:

    adaptation.json      format version, technique, settings, base, prompt style, metrics
    weights.safetensors  the attachment's tensors
    rows.jsonl           the examples of techniques that show examples
    adapter_config.json, adapter_model.safetensors: the weights in PEFT's format, where PEFT can express them
    manifest.json        size and sha256 of the other files
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, RequestError, SettingError
from tunewise.core.json_record import JsonObject
from tunewise.core.seeds import generator
from tunewise.core.version import __version__
from tunewise.data.task import Example, Message, Task
from tunewise.engine.generation import generate, stop_of
from tunewise.engine.model import Base, load_base
from tunewise.fitting.scoring import encoder_for
from tunewise.techniques import peft_bridge
from tunewise.techniques.registry import all_techniques, make

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


@dataclass(frozen=True)
class Adaptation:
    """Holds a loaded adaptation: the attachment on its base, and the record of its folder.

    `style` is the task without its examples; it says how prompts are rendered.
    """

    attachment: Attachment
    style: Task
    record: JsonObject

    def generate(self, prompt: str, max_new_tokens: int = 128) -> str:
        """Return the greedy answer to one prompt, which is rendered in the format of the task."""
        example = self.attachment.render(Example((Message("user", prompt),), ""))
        encoder = encoder_for(self.attachment, self.style)
        stop = self.record["style"]["stop"] if "style" in self.record else None
        return generate(self.attachment.base, encoder, [example], max_new_tokens, stop)[0][0]


def save(attachment: Attachment, task: Task, folder: Path, record: JsonObject | None = None) -> None:
    """Write an adaptation, all or nothing; `record` is stored with it (metrics, budget)."""
    base = attachment.base
    facts = {
        "format": FORMAT,
        "tunewise": __version__,
        **attachment.recipe.to_json(),
        "label": attachment.label or attachment.recipe.name,
        "base": {**base.describe(), "max_length": base.max_length},
        "style": {
            "name": task.name,
            "source": task.source,
            "kind": task.kind,
            "format": task.format,
            "labels": list(task.labels),
            "metric": task.metric,
            "template": task.template,
            "stop": stop_of(task),
        },
        "record": record or {},
    }
    texts = {"adaptation.json": json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)}
    tensors = {"weights.safetensors": attachment.state()}
    rows = attachment.stored_rows()
    if rows:
        texts["rows.jsonl"] = rows_text(rows)
    peft_adapter = attachment.peft()
    if peft_adapter is not None:
        texts["adapter_config.json"] = json.dumps(peft_adapter[0], indent=2)
        tensors["adapter_model.safetensors"] = peft_adapter[1]
    artifact_writer.commit(folder, texts=texts, tensors=tensors)


def rows_text(rows: list[JsonObject]) -> str:
    """Return an attachment's rows as the text of `rows.jsonl`."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(
    path: str | Path,
    *,
    base: Base | None = None,
    model: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Adaptation:
    """Load an adaptation, or a PEFT adapter, onto its base.

    Args:
        path: the folder.
        base: the loaded base; default: it is loaded from `model`.
        model: folder or Hub id of the base; default: the name that the folder records.
        settings: settings[technique][setting] to change, of those that can be changed after training (dylora's rank).

    Raises:
        SettingError: `settings` names one that is fixed by training.
        ArtifactError: a file is damaged, altered or foreign, or the adaptation was made on another base.
    """
    folder = Path(path)
    is_adaptation = (folder / "adaptation.json").exists() or (folder / "manifest.json").exists()
    if not is_adaptation and (folder / "adapter_config.json").is_file():
        if settings:
            raise SettingError("a PEFT adapter has no settings that can be changed when it is loaded")
        return _load_peft(folder, base, model)
    stored = artifact_writer.read(folder)
    facts = stored.json("adaptation.json")
    try:
        return _restore_adaptation(stored, facts, base, model, settings or {})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'adaptation.json'}: is not as tunewise writes it ({error!r})") from error


def base_of(path: str | Path, *, model: str | None = None, device: str | None = None) -> Base:
    """Load the bare base of an adaptation or a PEFT adapter: the one that its folder records, or `model` in its place.

    Raises:
        ArtifactError: a file is damaged, altered or foreign, or an adapter does not name its base.
    """
    folder = Path(path)
    if not (folder / "manifest.json").exists() and (folder / "adapter_config.json").is_file():
        return load_base(
            _peft_base(folder, artifact_writer.read_json((folder / "adapter_config.json").resolve()), model)
        )
    facts = artifact_writer.read(folder).json("adaptation.json")
    try:
        return _recorded_base(facts["base"], model, device)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / 'adaptation.json'}: is not as tunewise writes it ({error!r})") from error


def _recorded_base(record: JsonObject, model: str | None, device: str | None = None) -> Base:
    return load_base(
        model or record["name"],
        revision=None if model else record["revision"],
        dtype=record["dtype"],
        device=device,
        max_length=record["max_length"],
    )


def _peft_base(folder: Path, config: Mapping[str, Any], model: str | None) -> str:
    name = model or config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ArtifactError(f"{folder}: the adapter does not name its base; give it with --model")
    return name


def _restore_adaptation(
    stored: artifact_writer.Stored,
    facts: JsonObject,
    base: Base | None,
    model: str | None,
    changes: Mapping[str, Mapping[str, Any]],
) -> Adaptation:
    if facts["format"] != FORMAT:
        raise ArtifactError(
            f"{stored.folder}: has format {facts['format']}, this tunewise reads {FORMAT}; use the one that wrote it"
        )
    recorded, style = facts["base"], _style(facts["style"])
    if base is None:
        base = _recorded_base(recorded, model)
    if base.fingerprint != recorded["fingerprint"]:
        raise ArtifactError(
            f"{stored.folder}: was made on another base than {base.name} (its weights have fingerprint "
            f"{base.fingerprint[:12]}, expected {recorded['fingerprint'][:12]} of {recorded['name']})"
        )
    name, settings = str(facts["technique"]), facts["settings"]
    recipe = make(name, _change_settings(settings if "+" in name else {name: settings}, changes))
    with _attached(recipe, base) as attachment:
        attachment.load(stored.tensors("weights.safetensors"))
        rows = stored.text("rows.jsonl").split("\n")[:-1] if "rows.jsonl" in stored.names else []
        attachment.load_rows([json.loads(row) for row in rows], style)
    return Adaptation(attachment, style, facts)


@contextmanager
def _attached(recipe: Technique, base: Base) -> Iterator[Attachment]:
    """Attach the recipe to the base; where anything fails inside the block, detach it again."""
    attached_before = len(base.attached)
    try:
        yield recipe.attach(base, generator(0, "load"))
    except BaseException:
        base.release(attached_before)
        raise


def _change_settings(
    settings: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, JsonObject]:
    """Return the stored settings with `changes` in their place, each by technique."""
    for technique, changed in changes.items():
        if technique not in settings:
            raise SettingError(f"the adaptation has no part called {technique}; it has {', '.join(settings)}")
        changeable = all_techniques()[technique].late_settings
        fixed = sorted(set(changed) - changeable)
        if fixed:
            can = f"only {', '.join(sorted(changeable))} can" if changeable else "none of its settings can"
            raise SettingError(f"{technique}.{fixed[0]} is fixed by training; {can} be changed when it is loaded")
    return {name: {**stored, **changes.get(name, {})} for name, stored in settings.items()}


def _style(facts: JsonObject) -> Task:
    """Return the recorded task, without its examples."""
    if not isinstance(facts["stop"], str | None):
        raise TypeError("style.stop is neither text nor null")
    return Task(
        name=str(facts["name"]),
        kind=str(facts["kind"]),
        format=str(facts["format"]),
        train=(),
        validation=(),
        test=(),
        labels=tuple(facts["labels"]),
        metric=str(facts["metric"]),
        template=facts["template"],
    )


def _load_peft(folder: Path, base: Base | None, model: str | None) -> Adaptation:
    """Load a PEFT adapter: its configuration is read as data only and checked, and its tensors are loaded strictly."""
    # The Hub's cache is a folder of links into its blob store, so links are followed here, for these two files.
    config = artifact_writer.read_json((folder / "adapter_config.json").resolve())
    tensors = artifact_writer.read_tensors((folder / "adapter_model.safetensors").resolve())
    if base is None:
        base = load_base(_peft_base(folder, config, model))
    try:
        attachment = _from_peft(config, tensors, base)
    except (RequestError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: the PEFT adapter is refused: {error}") from error
    style = Task(folder.name, "generation", "prompt-completion", (), (), (), (), "rouge_l", "{prompt}")
    return Adaptation(attachment, style, {"technique": attachment.recipe.name, "peft": config})


def _from_peft(config: JsonObject, tensors: dict[str, Tensor], base: Base) -> Attachment:
    if not tensors:
        raise ArtifactError("it holds no tensors")
    recipes = (cls.from_peft(config, tensors) for cls in all_techniques().values())
    ours = next((recipe for recipe in recipes if recipe is not None), None)
    recipe: Technique = ours or peft_bridge.from_peft(config, tensors)
    with _attached(recipe, base) as attachment:
        attachment.load_peft(tensors)
    return attachment
