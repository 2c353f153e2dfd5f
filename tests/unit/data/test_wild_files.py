"""Two hundred files as they are found in the wild: every one is read, and gives the task that it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewise.data.task import Task
from unit.data.wild_files import wild_file


@pytest.mark.parametrize("seed", range(200))
def test_wild_file(seed: int, tmp_path: Path) -> None:
    wild = wild_file(seed, tmp_path)
    task = Task.read(wild.path)
    assert (task.kind, task.format) == (wild.kind, wild.format)
    if wild.counts is not None:
        assert task.counts == wild.counts
    examples = [*task.train, *task.validation, *task.test]
    assert len(examples) == wild.total
    assert (wild.prompt, wild.answer) in {(example.prompt, example.answer) for example in examples}
    if wild.kind == "classification":
        assert wild.answer in task.labels
