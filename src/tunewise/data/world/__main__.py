"""Writes the world's tasks as files, to look at or to try: `python -m tunewise.data.world examples`.

It writes a folder of JSON Lines for each task, the documents of the new town, and the letters as one CSV file with
column names that have to be mapped.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunewise.data.task import Task
from tunewise.data.world import TASKS, documents, sources, task

COLUMNS = {
    "classification": ("text", "label"),
    "question-answer": ("question", "answer"),
    "prompt-completion": ("prompt", "completion"),
}


def write(folder: Path) -> None:
    """Write all tasks under a folder; files of the same names are replaced."""
    for world_task in (*map(task, TASKS), *sources().values()):
        for split, rows in _split_rows(world_task).items():
            _write_lines(folder / world_task.name / f"{split}.jsonl", rows)
    _write_lines(folder / "town-documents.jsonl", documents("town"))
    with (folder / "letters.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("letter", "writer"))
        table.writerows((example.prompt, example.answer) for example in task("letters").test)


def _split_rows(world_task: Task) -> dict[str, list[dict[str, str]]]:
    prompt, answer = COLUMNS[world_task.format]
    splits = {"train": world_task.train, "validation": world_task.validation, "test": world_task.test}
    return {name: [{prompt: e.prompt, answer: e.answer} for e in examples] for name, examples in splits.items()}


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tunewise.data.world", description="Write the world's tasks as files."
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder)
    print(f"Written: {', '.join(sorted(path.name for path in folder.iterdir()))}")  # noqa: T201


if __name__ == "__main__":
    main()
