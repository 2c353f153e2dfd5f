"""The content of `adaptation.json`: what an adaptation is, what it was made on, and how its prompts are written.

The file may come from anybody. It is read strictly, and what it names outside of its folder is followed only where it
is on this machine already (the base) or where a user names it too (`tunewise.contract.places`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tunewise.adaptation.same_base import TextRecord
from tunewise.contract.composed import Composed
from tunewise.contract.places import USES_OF_PLACES, Places, not_followed
from tunewise.contract.technique import Technique
from tunewise.core.errors import ArtifactError, RequestError, SettingError
from tunewise.core.json_record import Check, Count, JsonObject, JsonRecord, Text
from tunewise.data.task import KINDS, Task
from tunewise.engine.model import DTYPES, Base
from tunewise.engine.run_text import RunText
from tunewise.techniques.registry import all_techniques, make

FORMAT: Literal[1] = 1
IN_PEFTS_FILE: Literal[2] = 2  # some weights are in PEFT's file alone, which readers of format 1 do not look into
_MOST_REPEATS = 16  # of a placeholder in a template: each is as long as a prompt
_Kind = Annotated[str, Check(lambda value: value in KINDS, f"one of {', '.join(KINDS)}")]
_DType = Annotated[str, Check(lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}")]
_Template = Annotated[
    Text,
    Check(
        lambda value: max(value.count("{prompt}"), value.count("{labels}")) <= _MOST_REPEATS,
        f"a text with {{prompt}} and {{labels}} at most {_MOST_REPEATS} times each",
    ),
]
_Name = Annotated[str, Check(bool, "a text that is not empty")]
_Label = Annotated[Text, Check(bool, "a text that is not empty")]
_Techniques = Annotated[str, Check(lambda value: 0 < len(value) <= 200, "the name of a technique")]


@dataclass(frozen=True, kw_only=True)
class RecordedBase(JsonRecord):
    """The base that an adaptation was made on.

    `embedding_rows` is absent where its embeddings were not resized, and `text` from files of older versions.
    """

    name: _Name
    revision: str | None
    architecture: str
    parameters: Count
    dtype: _DType
    fingerprint: str
    max_length: Count | None
    embedding_rows: Count | None = None
    text: TextRecord | None = None

    @classmethod
    def of(cls, base: Base) -> RecordedBase:
        """Take the record of a loaded base."""
        return cls(
            **base.describe(),
            max_length=base.max_length,
            embedding_rows=base.embedding_rows,
            text=TextRecord.of(base.tokenizer),
        )


@dataclass(frozen=True, kw_only=True)
class RecordedStyle(JsonRecord):
    """The task that an adaptation was trained on, without its examples."""

    name: str
    source: str
    kind: _Kind
    format: str
    labels: tuple[_Label, ...]
    metric: str
    template: _Template | None
    stop: _Label | None
    label_list: bool | None = None
    reasons: bool | None = None

    @classmethod
    def of(cls, task: Task, stop: str | None) -> RecordedStyle:
        """Take the record of a task; `stop` is the text that ends its answers."""
        return cls(
            name=task.name,
            source=task.source,
            kind=task.kind,
            format=task.format,
            labels=task.labels,
            metric=task.metric,
            template=task.template,
            stop=stop,
            label_list=task.label_list,
            reasons=True if task.has_reasoning else None,
        )

    @property
    def task(self) -> Task:
        """The task without its examples."""
        return Task(
            name=self.name,
            kind=self.kind,
            format=self.format,
            train=(),
            validation=(),
            test=(),
            labels=self.labels,
            metric=self.metric,
            template=self.template,
            label_list=self.label_list,
            reasons=self.reasons,
        )


@dataclass(frozen=True, kw_only=True)
class AdaptationRecord(JsonRecord):
    """What `adaptation.json` holds.

    `settings` are those of the technique, or of each part by its name. `peft_tensors` are the weights that are stored
    in PEFT's file alone: their names there, by their names here.
    """

    format: Literal[1, 2]
    tunewise: str
    technique: _Techniques
    settings: dict[str, object]
    label: str
    base: RecordedBase
    style: RecordedStyle
    text: RunText | None = None  # adaptations of earlier versions have none
    peft_tensors: dict[str, str] | None = None
    record: dict[str, object]

    @classmethod
    def of_file(cls, content: JsonObject, path: Path) -> AdaptationRecord:
        """Read the content of an `adaptation.json`.

        Raises:
            ArtifactError: it is of another format, or not as tunewise writes it.
        """
        if isinstance(written := content.get("format"), int) and written not in (FORMAT, IN_PEFTS_FILE):
            raise ArtifactError(
                f"{path}: has format {written}, this tunewise reads {FORMAT} and {IN_PEFTS_FILE}; use the one that "
                "wrote it"
            )
        return cls.from_json(content, path)

    def recipe(self, changes: Mapping[str, Mapping[str, Any]], places: Places, folder: Path) -> Technique:
        """Make the recipe, with what a user changes and with the places that a user gives.

        Args:
            changes: changes[technique][setting], of those that can be changed after training.
            places: what is used besides the base; a value in `changes` goes before it.
            folder: where the record lies, for errors.

        Raises:
            SettingError: a change is not possible, or a place is needed that the record alone names.
        """
        try:
            recorded = make(self.technique, self._settings_by_part())
        except RequestError as error:
            raise ArtifactError(f"{folder / 'adaptation.json'}: {error}") from error
        settings = {part.name: _without_places(part) | _places_for(part, places) for part in _parts(recorded)}
        _check_changes(changes, recorded)
        for name, changed in changes.items():
            settings[name] |= changed
        for part in _parts(recorded):
            for place, value in part.places_to_answer().items():
                if not settings[part.name].get(place):
                    raise not_followed(f"{place} of {folder}", value, f"--{place}")
        return make(self.technique, settings)

    def _settings_by_part(self) -> dict[str, dict[str, object]]:
        if "+" not in self.technique:
            return {self.technique: self.settings}
        parts = {name: value for name, value in self.settings.items() if isinstance(value, dict)}
        names = self.technique.split("+")
        if not sorted(names) == sorted(parts) == sorted(self.settings):
            raise ArtifactError(f"settings must have one object for each of {', '.join(names)}")
        return parts


def given_places(recipe: Technique) -> dict[str, dict[str, Any]]:
    """Return the places that a recipe of the user's names, as settings to load its adaptation with."""
    return {
        part.name: {name: value for name in part.place_settings if (value := getattr(part, name))}
        for part in _parts(recipe)
        if part.place_settings
    }


def require_used(places: Places, recipes: Iterable[Technique]) -> None:
    """Refuse a place that none of these recipes has a setting for; raises `SettingError`."""
    settings = {name for recipe in recipes for part in _parts(recipe) for name in part.place_settings}
    for name in places.given():
        if name not in settings:
            raise SettingError(f"--{name} is for techniques that {USES_OF_PLACES[name]}, and none of these does")


def _parts(recipe: Technique) -> tuple[Technique, ...]:
    return recipe.parts if isinstance(recipe, Composed) else (recipe,)


def _without_places(part: Technique) -> dict[str, Any]:
    settings: dict[str, Any] = part.to_json()["settings"]
    return {name: value for name, value in settings.items() if name not in part.place_settings}


def _places_for(part: Technique, places: Places) -> dict[str, str]:
    return {name: value for name, value in places.given().items() if name in part.place_settings}


def _check_changes(changes: Mapping[str, Mapping[str, Any]], recorded: Technique) -> None:
    """Refuse to change what no part has, or what training has fixed."""
    names = [part.name for part in _parts(recorded)]
    for technique, changed in changes.items():
        if technique not in names:
            raise SettingError(f"the adaptation has no part called {technique}; it has {', '.join(names)}")
        cls = all_techniques().get(technique)
        changeable = cls.late_settings | cls.place_settings if cls is not None else frozenset()
        fixed = sorted(set(changed) - changeable)
        if fixed:
            can = f"only {', '.join(sorted(changeable))} can" if changeable else "none of its settings can"
            raise SettingError(f"{technique}.{fixed[0]} is fixed by training; {can} be changed when it is loaded")
