"""The folder that a page works on: its comparisons, the jobs that it started, and what was chosen last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tunewise.core import artifact_reader, artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.resolve import COMPARED
from tunewise.studio.commands import Choices, plain_name
from tunewise.studio.jobs import Job, Jobs
from tunewise.studio.runs import Run, Runs

OWN = ".studio"  # the folder beside the comparisons in which the page keeps its own files


@dataclass(frozen=True)
class ListedTechnique:
    """What the page needs to know of a technique: its name, and whether it searches documents."""

    name: str
    searches: bool

    @classmethod
    def read(cls, listed: Iterable[object]) -> list[Self]:
        """Read what `tunewise techniques --json` prints."""
        return [
            cls(
                str(each["technique"]),
                any(isinstance(one, dict) and one.get("name") == "knowledge" for one in each.get("settings") or ()),
            )
            for each in listed
            if isinstance(each, dict) and "technique" in each
        ]


class Workspace:
    """What open pages share; what was chosen is each page's own.

    Args:
        root: the folder of comparisons, as the user names it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.own = root, root / OWN
        artifact_writer.output_folder(root)
        self.own.mkdir(mode=0o700, exist_ok=True)
        self.jobs = Jobs(self.own / "jobs")
        self.runs = Runs(root, self.jobs)
        self._techniques: list[ListedTechnique] = []  # once they are listed
        if not self._listed_techniques():
            self.jobs.start("techniques", ["techniques", "--json"])
        self._file = self.own / "choices.json"
        self.choices = self._read()

    def opened(self) -> Workspace:
        """Return the same for one more open page, with choices of its own: what it shows is what it runs."""
        opened = copy(self)
        opened.choices = self._read()
        return opened

    def choose(self, **values: Any) -> None:
        """Keep what was chosen, for this page and for those that are opened later."""
        changed = replace(self.choices, **values)
        if changed != self.choices:
            self.choices = changed
            artifact_writer.write_json(self._file, changed.to_json())

    def current_run(self) -> Run | None:
        """Return the comparison that was chosen last, or the newest."""
        chosen = self.runs.find(self.choices.run)
        if chosen is not None:
            return chosen
        return next(iter(self.runs.all()), None)

    def chosen_among(self, names: Sequence[str]) -> str | None:
        """Return which of these comparisons is shown: the current one, else the first; None where there is none."""
        current = self.current_run()
        return current.name if current is not None and current.name in names else next(iter(names), None)

    def new_name(self) -> str:
        """Return a name for a comparison of the chosen data that no folder has yet."""
        stem = plain_name(self.choices.data.replace(":", "-"))
        taken = {path.name for path in self.root.iterdir()}
        return next(
            name for number in range(1, 10**6) if (name := f"{stem}-{number}" if number > 1 else stem) not in taken
        )

    def technique_names(self) -> list[str]:
        """Return the techniques that this machine has, and two compositions; the default ones until they are listed."""
        names = [each.name for each in self._listed_techniques()]
        return [*(names or COMPARED.split(",")), "icl+lora", "rag+lora"]

    def searching(self) -> frozenset[str]:
        """Return the techniques that search documents, alone or in a composition; all, until they are listed."""
        listed = self._listed_techniques()
        found = {each.name for each in listed if each.searches}
        return frozenset(name for name in self.technique_names() if not listed or found & set(name.split("+")))

    def _listed_techniques(self) -> list[ListedTechnique]:
        if not self._techniques:
            for job in self.jobs.all("techniques"):
                listed = job.output() if not job.is_running else None
                if isinstance(listed, list):
                    self._techniques += ListedTechnique.read(listed)
                    break
        return self._techniques

    def latest(self, kind: str, words: list[str]) -> Job | None:
        """Return the newest job with exactly these words, so that a page that is opened again shows its result."""
        return next((job for job in self.jobs.all(kind) if list(job.record.words) == words), None)

    def _read(self) -> Choices:
        try:
            return Choices.from_json(artifact_reader.read_json(self._file), self._file)
        except ArtifactError:
            return Choices()
