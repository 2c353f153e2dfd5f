"""Adaptations loaded for serving: their names, the base that they share, and that base as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tunewise.adaptation.artifact import Adaptation, base_of, load
from tunewise.adaptation.record import require_used
from tunewise.contract.places import Places
from tunewise.core.errors import SettingError
from tunewise.core.progress import Progress, silent
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.model import Base
from tunewise.serve.adaptation_pool import AdaptationPool
from tunewise.techniques.registry import make


def adaptation_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """Read the names and folders of adaptations from `NAME=FOLDER` or `FOLDER`.

    An adaptation without a name is called after its folder, or after the folder above one called "adaptation".

    Raises:
        SettingError: there is no such folder, or two adaptations have one name.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        before, equals, after = argument.partition("=")
        folder = Path(after if equals else argument)
        folder = folder / "adaptation" if (folder / "adaptation").is_dir() else folder
        if not folder.is_dir():
            raise SettingError(f"{folder}: there is no such folder; give the folder of an adaptation")
        resolved = folder.resolve()
        name = before if equals else (resolved.parent if resolved.name == "adaptation" else resolved).name
        if not name or name in folders:
            raise SettingError(f'two adaptations are called "{name}"; give them names, as in mine={folder}')
        folders[name] = folder
    return folders


def places_by_name(names: Collection[str], arguments: Mapping[str, Sequence[str]]) -> dict[str, Places]:
    """Read what adaptations use besides their base, from `NAME=PLACE` for one of them or `PLACE` for all.

    Args:
        names: the adaptations' names.
        arguments: what was given, by the name of a field of `Places`.
    """
    places = dict.fromkeys(names, Places())
    for setting, values in arguments.items():
        for value in sorted(values, key=lambda value: value.partition("=")[0] in places):  # one's own goes before all's
            before, _, after = value.partition("=")
            chosen = {before: after} if before in places and after else dict.fromkeys(names, value)
            places |= {name: replace(places[name], **{setting: place}) for name, place in chosen.items()}
    return places


def load_pool(
    folders: dict[str, Path],
    model: str | None = None,
    device: str | None = None,
    report: Progress = silent,
    places: Mapping[str, Places] | None = None,
) -> AdaptationPool:
    """Load all adaptations onto one base, which is a model too, called by the last part of its name.

    Args:
        folders: the adaptations' folders by name.
        model: where to load the base from; default: the name that the first adaptation records.
        device: where the base is loaded; default: the one that accelerate chooses.
        report: called as report(what, done, total) while it loads.
        places: what the adaptations use besides the base, by their names.

    Raises:
        ArtifactError: a file is refused, or an adaptation was made on another base than the first.
        SettingError: an adaptation has the base's name, or a place is needed or given that is not given or used.
    """
    places = places or {}
    first = next(iter(folders.values()))
    report("loading the base", 0, 0)
    base = base_of(first, model=model, device=device)
    base_name = Path(base.name).name
    if base_name in folders:
        raise SettingError(
            f'an adaptation is called "{base_name}" like the base; give it a name, as in mine={folders[base_name]}'
        )
    pool = AdaptationPool(base)
    pool.add(base_name, unadapted)
    for done, (name, folder) in enumerate(folders.items()):
        report(f"loading {name}", done, len(folders))
        pool.add(name, lambda base, name=name, folder=folder: load(folder, base=base, places=places.get(name)))  # type: ignore[misc]
    for place in places.values():
        require_used(place, (slot.adaptation.attachment.recipe for slot in pool.slots.values()))
    report("loading", len(folders), len(folders))
    return pool


def unadapted(base: Base) -> Adaptation:
    """Attach nothing: the base itself as an adaptation, prompted by its chat template, or plainly where it has none."""
    style = Task(Path(base.name).name, "generation", "messages", (), (), (), (), "rouge_l", None)
    return Adaptation(make("base").attach(base, generator(0, "load")), style, None)
