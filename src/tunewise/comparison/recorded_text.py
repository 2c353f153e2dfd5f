"""Keeps what a comparison reads in its folder, so that it is not continued with other data by mistake.

Folders of earlier versions have no such file. Their `compare.json` tells whether the model, the window, and the rows,
their order and the template taken together are the same; where there is none yet, nothing is refused. Trials are kept
apart by their names all the same, so that no result of other data gets into the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewise.core import sealed_json
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonRecord
from tunewise.data.task import Task
from tunewise.engine.model import Base
from tunewise.engine.run_text import RunText
from tunewise.fitting.run_request import refuse_other_run
from tunewise.results.schema import Comparison

FILE = "text.json"


@dataclass(frozen=True, kw_only=True)
class RecordedText(JsonRecord):
    """Records what the trials of a comparison read.

    Attributes:
        base: the fingerprint of the base that reads it.
        text: what it reads.
        unsealed: folders of trials that an earlier version ran, whose results have no checksum.
    """

    base: str
    text: RunText
    unsealed: tuple[str, ...] = ()


def require_same_text(base: Base, task: Task, folder: Path) -> None:
    """Refuse to continue the comparison in a folder with another model or other data; nothing is written.

    Args:
        base: the bare base.
        task: the data, fitted to the base; where its list of labels is not chosen yet, the earlier choice counts.
        folder: the folder of the comparison.

    Raises:
        ArtifactError: names what differs, and what to do.
    """
    text, earlier = RunText.of(base, task), _recorded(folder)
    if earlier is not None:
        other = _other_base(base, folder / "compare.json") if base.fingerprint != earlier.base else []
        other += text.with_label_list_of(earlier.text).differences(earlier.text)
        refuse_other_run(str(folder), other)
    elif (folder / "compare.json").is_file():
        refuse_other_run(str(folder), _differences_from_result(base, task, folder / "compare.json"))


def keep_text(base: Base, task: Task, folder: Path, unsealed: Callable[[], Sequence[str]]) -> RecordedText:
    """Refuse as `require_same_text` does, and record what the comparison reads, its list of labels included.

    Args:
        base: the bare base.
        task: the data, fitted to the base.
        folder: the folder of the comparison.
        unsealed: names the trials in it whose results have no checksum; called where nothing was recorded yet.
    """
    require_same_text(base, task, folder)
    earlier = _recorded(folder)
    record = RecordedText(
        base=base.fingerprint,
        text=RunText.of(base, task),
        unsealed=earlier.unsealed if earlier is not None else tuple(unsealed()),
    )
    sealed_json.write(folder / FILE, record.to_json())
    return record


def _recorded(folder: Path) -> RecordedText | None:
    path = folder / FILE
    return sealed_json.read_or_set_aside(
        path, lambda value: RecordedText.from_json(value, path), "what was read before is not compared with it"
    )


def _other_base(base: Base, path: Path) -> list[str]:
    """Say how the base of an earlier result differs: by the type of its weights, or as another model."""
    try:
        earlier = Comparison.read(path).model
    except ArtifactError:
        return ["another model"]
    dtype = str(base.model.dtype).removeprefix("torch.")
    same = earlier.name == base.name and earlier.parameters == sum(p.numel() for p in base.model.parameters())
    return [f"--dtype {earlier.dtype} (now {dtype})"] if same and earlier.dtype != dtype else ["another model"]


def _differences_from_result(base: Base, task: Task, path: Path) -> list[str]:
    try:
        earlier = Comparison.read(path)
    except ArtifactError:
        return []  # it is written anew
    other = _other_base(base, path) if base.fingerprint != earlier.model.fingerprint else []
    if base.window != earlier.task.window:
        other.append(f"a window of {earlier.task.window} tokens (now {base.window})")
    if task.fingerprint != earlier.task.fingerprint:
        other.append("other rows, another order of them or another template")
    return other
