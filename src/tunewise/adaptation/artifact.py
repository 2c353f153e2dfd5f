"""What a fit leaves on disk, and how it comes back.

An adaptation is a folder of these files:

    adaptation.json      format version, technique, settings, base, prompt style, metrics
    weights.safetensors  the attachment's tensors
    rows.jsonl           the examples of techniques that show examples
    adapter_config.json, adapter_model.safetensors: the same in PEFT's format, where PEFT can express it
    manifest.json        bytes and sha256 of the others
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
    """A loaded adaptation: the attachment on its base, the style of its prompts, and its record."""

    attachment: Attachment
    style: Task
    record: dict[str, Any]

    def generate(self, prompt: str, max_new_tokens: int = 128) -> str:
        """The greedy answer to one prompt, given in the task's own format."""
        example = self.attachment.render(Example((Message("user", prompt),), ""))
        encoder = encoder_for(self.attachment, self.style)
        stop = self.record["style"]["stop"] if "style" in self.record else None
        return generate(self.attachment.base, encoder, [example], max_new_tokens, stop)[0][0]


def save(attachment: Attachment, task: Task, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write an adaptation, all or nothing; `record` adds what is known about it (metrics, budget)."""
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
    portable = attachment.peft()
    if portable is not None:
        texts["adapter_config.json"] = json.dumps(portable[0], indent=2)
        tensors["adapter_model.safetensors"] = portable[1]
    artifact_writer.commit(folder, texts=texts, tensors=tensors)


def rows_text(rows: list[dict[str, Any]]) -> str:
    """An attachment's rows as `rows.jsonl` holds them."""
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
        base: the loaded base; or `model`, where to load it from; default: the name that the folder records.
        model: folder or Hub id of the base.
        settings: settings[technique][setting] to change, of those that can be changed after training (dylora's rank).

    Raises:
        SettingError: a setting that is fixed by training.
        ArtifactError: a damaged, altered or foreign file, or another base than the one it was made on.
    """
    folder = Path(path)
    ours = (folder / "adaptation.json").exists() or (folder / "manifest.json").exists()
    if not ours and (folder / "adapter_config.json").is_file():
        if settings:
            raise SettingError("a PEFT adapter has no settings that can be changed when it is loaded")
        return _load_peft(folder, base, model)
    stored = artifact_writer.read(folder)
    facts = stored.json("adaptation.json")
    try:
        return _restore(stored, facts, base, model, settings or {})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'adaptation.json'}: is not as tunewise writes it ({error!r})") from error


def base_of(path: str | Path, *, model: str | None = None, device: str | None = None) -> Base:
    """The bare base of an adaptation or a PEFT adapter, as its folder records it; or `model` in its place.

    Raises:
        ArtifactError: a damaged, altered or foreign file, or an adapter that does not name its base.
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


def _recorded_base(wanted: dict[str, Any], model: str | None, device: str | None = None) -> Base:
    return load_base(
        model or wanted["name"],
        revision=None if model else wanted["revision"],
        dtype=wanted["dtype"],
        device=device,
        max_length=wanted["max_length"],
    )


def _peft_base(folder: Path, config: Mapping[str, Any], model: str | None) -> str:
    named = model or config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ArtifactError(f"{folder}: the adapter does not name its base; give it with --model")
    return named


def _restore(
    stored: artifact_writer.Stored,
    facts: dict[str, Any],
    base: Base | None,
    model: str | None,
    late: Mapping[str, Mapping[str, Any]],
) -> Adaptation:
    if facts["format"] != FORMAT:
        raise ArtifactError(
            f"{stored.folder}: has format {facts['format']}, this tunewise reads {FORMAT}; use the one that wrote it"
        )
    wanted, style = facts["base"], _style(facts["style"])
    if base is None:
        base = _recorded_base(wanted, model)
    if base.fingerprint != wanted["fingerprint"]:
        raise ArtifactError(
            f"{stored.folder}: was made on another base than {base.name} (its weights have fingerprint "
            f"{base.fingerprint[:12]}, expected {wanted['fingerprint'][:12]} of {wanted['name']})"
        )
    name, settings = str(facts["technique"]), facts["settings"]
    recipe = make(name, _changed(settings if "+" in name else {name: settings}, late))
    with _attached(recipe, base) as attachment:
        attachment.load(stored.tensors("weights.safetensors"))
        rows = stored.text("rows.jsonl").split("\n")[:-1] if "rows.jsonl" in stored.names else []
        attachment.load_rows([json.loads(row) for row in rows], style)
    return Adaptation(attachment, style, facts)


@contextmanager
def _attached(recipe: Technique, base: Base) -> Iterator[Attachment]:
    """The recipe on the base; where anything fails inside, the base is given back as it was."""
    held = len(base.attached)
    try:
        yield recipe.attach(base, generator(0, "load"))
    except BaseException:
        base.release(held)
        raise


def _changed(settings: dict[str, Any], late: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The stored settings with those of `late` in their place."""
    for technique, own in late.items():
        if technique not in settings:
            raise SettingError(f"the adaptation has no part called {technique}; it has {', '.join(settings)}")
        free = all_techniques()[technique].late_settings
        fixed = sorted(set(own) - free)
        if fixed:
            can = f"only {', '.join(sorted(free))} can" if free else "nothing of it can"
            raise SettingError(f"{technique}.{fixed[0]} is fixed by training; {can} be changed when it is loaded")
    return {name: {**stored, **late.get(name, {})} for name, stored in settings.items()}


def _style(facts: dict[str, Any]) -> Task:
    if not isinstance(facts["stop"], str | None):
        raise TypeError("style.stop is no text")
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
    """A PEFT adapter: its configuration is read as data alone, checked, and its tensors loaded strictly."""
    # The Hub's cache is a folder of links into its blob store, so they are followed here, for these two names.
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


def _from_peft(config: dict[str, Any], tensors: dict[str, Tensor], base: Base) -> Attachment:
    if not tensors:
        raise ArtifactError("it holds no tensors")
    made = (cls.from_peft(config, tensors) for cls in all_techniques().values())
    recipe: Technique = next((found for found in made if found is not None), None) or peft_bridge.from_peft(
        config, tensors
    )
    with _attached(recipe, base) as attachment:
        attachment.load_peft(tensors)
    return attachment
