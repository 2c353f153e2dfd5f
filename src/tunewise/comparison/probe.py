"""What the base could do already: scored again after each trial, to see what was forgotten."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from tunewise.adaptation.artifact import Adaptation
from tunewise.contract.attachment import Attachment
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.extras import require
from tunewise.core.progress import Progress, silent
from tunewise.data.task import Example, Task, sample
from tunewise.fitting.scoring import score

HARNESS = "lm-eval:"  # begins the names of tasks of the lm-evaluation-harness
_EXAMPLES = 200  # of each task, at most


class Probe(Protocol):
    """What a comparison asks again after each trial."""

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells it from another one."""
        ...

    def score(self, attachment: Attachment, style: Task, progress: Progress = silent) -> float:
        """Return the score of what is trained, asked without worked examples or passages."""
        ...


@dataclass(frozen=True)
class TaskProbe:
    """A task, and the sample of its test split that is scored."""

    task: Task
    examples: Sequence[Example]

    @classmethod
    def of(cls, task: Task) -> TaskProbe:
        """Take up to 200 examples of a task's test split."""
        return cls(task, sample(task.test, _EXAMPLES))

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def fingerprint(self) -> str:
        """The task's fingerprint."""
        return self.task.fingerprint

    def score(self, attachment: Attachment, style: Task, progress: Progress = silent) -> float:
        """Return the mean score by the task's metric."""
        return score(attachment, self.task, self.examples, progress=progress, as_given=True).mean


@dataclass(frozen=True)
class HarnessProbe:
    """Tasks of EleutherAI's lm-evaluation-harness, whose code it runs and whose data it fetches.

    `folder` holds definitions of further tasks.
    """

    tasks: tuple[str, ...]
    folder: Path | None = None

    @classmethod
    def read(cls, text: str) -> HarnessProbe:
        """Read `lm-eval:NAME,NAME`, with `@FOLDER` behind it where tasks are defined there.

        Raises:
            SettingError: it names no task, or lm-eval is not installed.
        """
        names, _, folder = text.removeprefix(HARNESS).partition("@")
        tasks = tuple(name.strip() for name in names.split(",") if name.strip())
        if not tasks:
            raise SettingError(f'--probe is "{text}" but must name tasks, such as {HARNESS}arc_easy,hellaswag')
        require("a probe of the evaluation harness", "lm_eval")
        if folder and not Path(folder).expanduser().is_dir():
            raise SettingError(f'--probe is "{text}", and there is no folder {folder}')
        return cls(tasks, Path(folder).expanduser() if folder else None)

    @property
    def name(self) -> str:
        """The names of the tasks."""
        return f"{HARNESS}{','.join(self.tasks)}"

    @property
    def fingerprint(self) -> str:
        """That of the names and of the definitions in the folder."""
        digest = hashlib.sha256(f"{self.name} {_EXAMPLES}".encode())
        for path in sorted(self.folder.glob("*.yaml")) if self.folder is not None else ():
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def score(self, attachment: Attachment, style: Task, progress: Progress = silent) -> float:
        """Return the mean over the tasks of each one's first metric, on up to 200 examples.

        Raises:
            TunewiseError: the harness failed, or gives a task no score.
        """
        from tunewise.export.lm_eval_model import evaluate_tasks

        scores = evaluate_tasks(
            Adaptation(attachment, style, None), self.tasks, limit=_EXAMPLES, include_path=self.folder, as_given=True
        )
        found = {each["task"]: next(iter(each["metrics"].values()), None) for each in scores}
        missing = [name for name in self.tasks if found.get(name) is None]
        if missing:
            raise TunewiseError(f"the harness gives {', '.join(missing)} no score; name tasks and not tags of tasks")
        return fmean(value for name in self.tasks if (value := found[name]) is not None)
