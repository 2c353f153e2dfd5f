"""Adaptations opened for serving: their names, the one base that they share, and the base as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunewise.adaptation.artifact import Adaptation, base_of, load
from tunewise.core.errors import SettingError
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.model import Base
from tunewise.serve.adaptation_pool import Wardrobe
from tunewise.techniques.registry import make


def named(given: Sequence[str]) -> dict[str, Path]:
    """Names and folders of `NAME=FOLDER` or `FOLDER`, whose name is its last part that is not "adaptation".

    Raises:
        SettingError: no such folder, or two of one name.
    """
    found: dict[str, Path] = {}
    for item in given:
        name, equals, path = item.partition("=")
        folder = Path(path if equals else item)
        folder = folder / "adaptation" if (folder / "adaptation").is_dir() else folder
        if not folder.is_dir():
            raise SettingError(f"{folder}: there is no such folder; give the folder of an adaptation")
        whole = folder.resolve()
        own = name if equals else (whole.parent if whole.name == "adaptation" else whole).name
        if not own or own in found:
            raise SettingError(f'two adaptations are called "{own}"; give them names, as in mine={folder}')
        found[own] = folder
    return found


def opened(
    folders: dict[str, Path],
    model: str | None = None,
    device: str | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Wardrobe:
    """All of the adaptations over one base, which is a model too, by the last part of its name.

    Raises:
        ArtifactError: a file is refused, or an adaptation was made on another base than the first.
        SettingError: an adaptation is called like the base.
    """
    first = next(iter(folders.values()))
    report("loading the base", 0, 0)
    base = base_of(first, model=model, device=device)
    own = Path(base.name).name
    if own in folders:
        raise SettingError(f'an adaptation is called "{own}" like the base; give it a name, as in mine={folders[own]}')
    wardrobe = Wardrobe(base)
    wardrobe.add(own, unadapted)
    for done, (name, folder) in enumerate(folders.items()):
        report(f"loading {name}", done, len(folders))
        wardrobe.add(name, lambda base, folder=folder: load(folder, base=base))  # type: ignore[misc]
    report("loading", len(folders), len(folders))
    return wardrobe


def unadapted(base: Base) -> Adaptation:
    """The base itself, asked in its chat template, or plainly where it has none."""
    style = Task(Path(base.name).name, "generation", "messages", (), (), (), (), "rouge_l", None)
    return Adaptation(make("base").attach(base, generator(0, "load")), style, {"technique": "base"})
