"""Turns the user's data into a task: train, validation and test examples, a kind, a template and a metric.

`sources` and `readers` read rows and `formats` gives them meaning; this module samples, splits and checks examples.
Splits and samples depend on the content of the rows, never on their order, and equal prompts stay in one split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tunewise.core.addresses import Shipped, shipped
from tunewise.core.errors import DataError, SettingError
from tunewise.core.seeds import generator
from tunewise.core.text import listed, show
from tunewise.data.formats import ColumnLayout, Example, Message, convert, recognise, unused
from tunewise.data.readers import Table
from tunewise.data.sources import name_of, read_tables, sample_size

__all__ = ["Example", "Message", "Task", "check", "split_by_content"]

KINDS = ("classification", "generation", "text")
SPLITS = ("train", "validation", "test")
ONE_IN = 10  # a held-out split gets one in this many distinct prompts


@dataclass(frozen=True)
class Task:
    """Holds data with its splits, template and metric.

    Attributes:
        name: the stem of the file, or the name of the folder or Hub data set.
        kind: "classification", "generation" or "text".
        format: "messages", "sharegpt", "alpaca", "prompt-completion", "classification", "question-answer" or
            "text".
        train, validation, test: the examples, in the order of the file.
        labels: every label, sorted; empty unless the kind is "classification".
        metric: the name of the score.
        template: the user's own template around `{prompt}`, or None for the default.
        source: where the data came from, as the user wrote it.
        knowledge: where documents for retrieval are (a `knowledge` folder beside the splits), or None.
        notes: what was done to the data while reading it, one sentence each.
    """

    name: str
    kind: str
    format: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    metric: str
    template: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    knowledge: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Return a SHA-256 in hex over the kind, the template and every example in order."""
        digest = hashlib.sha256(_json_bytes([self.kind, self.template]))
        for split in (self.train, self.validation, self.test):
            digest.update(_json_bytes(len(split)))
            for example in split:
                digest.update(_content(example))
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of examples in each split."""
        return {split: len(examples) for split, examples in _splits(self).items()}

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        template: str | None = None,
        metric: str | None = None,
        kind: str | None = None,
        seed: int = 0,
    ) -> Task:
        """Read data from a file, a folder with a file per split, or the Hugging Face Hub.

        Args:
            path: a `.jsonl .json .csv .tsv .parquet .txt` file, a folder, `org/name`, `org/name:config` or
                `hf://datasets/org/name[/file]`; `path#500` samples 500 examples (of a folder: of its train split);
                or `world:reviews`, a task of the world that is shipped with the package.
            columns: standard column names mapped to the data's own, for columns that are not recognised.
            template: a text that contains `{prompt}`.
            metric: the name of the score; by default it follows from the kind and the format.
            kind: "classification", "generation" or "text"; by default it follows from the columns.
            seed: seed of the sample and of the splits.

        Raises:
            DataError: the data cannot be read as a task; the message names file, line and column.
            SettingError: `kind` or `template` is not usable.

        Example:
            >>> Task.read("world:reviews").counts
            {'train': 200, 'validation': 60, 'test': 200}
        """
        _check_settings(kind, template)
        if (address := shipped(str(path))) is not None:
            return _shipped_task(*address, columns, template, metric, kind)
        source, size = sample_size(str(path))
        tables = read_tables(source)
        layout = _common_layout(tables, columns, kind)
        examples = {split: convert(table, layout) for split, table in tables.items()}
        kind = kind or _default_kind(layout)
        if kind == "classification":
            _check_labels(tables, examples)
        first = "train" if "train" in tables else "all"
        notes = _reading_notes(tables, layout, first)
        if size is not None:
            examples[first], note = _sample(tables[first], examples[first], size, kind, seed)
            notes.append(note)
        splits = _complete(tables[first], examples, kind, seed, notes)
        return cls(
            name=name_of(source),
            kind=kind,
            format=layout.format,
            train=tuple(splits["train"]),
            validation=tuple(splits["validation"]),
            test=tuple(splits["test"]),
            labels=tuple(sorted({e.answer for e in splits["train"]})) if kind == "classification" else (),
            metric=metric or _default_metric(kind, layout),
            template=template,
            source=str(path),
            notes=tuple(notes),
            knowledge=str(Path(source) / "knowledge") if (Path(source) / "knowledge").is_dir() else None,
        )


def _shipped_task(
    owner: Shipped,
    name: str,
    columns: Mapping[str, str] | None,
    template: str | None,
    metric: str | None,
    kind: str | None,
) -> Task:
    """Return a shipped task with the user's template and metric."""
    task: Task = owner.task(name)
    if columns or kind:
        raise SettingError(
            f"{task.source} has its columns and kind already; leave out {'columns' if columns else 'kind'}"
        )
    return replace(task, template=template, metric=metric or task.metric)


def split_by_content(
    examples: Sequence[Example], held_out: Sequence[str], *, kind: str, seed: int = 0, path: str | None = None
) -> dict[str, list[Example]]:
    """Split examples into "train" and the `held_out` splits, which get a tenth of the distinct prompts each.

    Examples with the same prompt (for text: the same answer) stay together, the order of the examples does not matter,
    and in a classification every label has a prompt in train.

    Args:
        examples: what to split.
        held_out: names of the splits beside "train", as in ("test", "validation").
        kind: the kind of the task.
        seed: another seed splits differently.
        path: the file that an error message names.

    Raises:
        DataError: there are too few distinct prompts for that.
    """
    groups: dict[bytes, list[Example]] = {}
    keys = [_group_key(example, kind, seed) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        groups.setdefault(key, []).append(example)
    order = sorted(groups)
    unit = "texts" if kind == "text" else "prompts"
    needed = len(held_out) + 1
    if len(order) < needed:
        raise DataError(
            f"only {len(order)} different {unit} to split into {', '.join(('train', *held_out))}",
            path=path,
            remedy=f"give separate files train, validation and test, or at least {needed} different {unit}",
        )
    reserved = _one_group_per_label(groups, order) if kind == "classification" else set()
    free = [key for key in order if key not in reserved]
    if len(free) < len(held_out):
        raise DataError(
            f"its {len(order)} different prompts are too few to have every label in train and still hold out "
            f"{' and '.join(held_out)}",
            path=path,
            remedy="add examples of the rare labels, or give separate files train, validation and test",
        )
    size = min(max(1, len(order) // ONE_IN), len(free) // len(held_out))
    split_of = dict.fromkeys(order, "train")
    for i, split in enumerate(held_out):
        split_of |= dict.fromkeys(free[i * size : (i + 1) * size], split)
    splits: dict[str, list[Example]] = {split: [] for split in ("train", *held_out)}
    for key, example in zip(keys, examples, strict=True):
        splits[split_of[key]].append(example)
    return splits


def _one_group_per_label(groups: Mapping[bytes, Sequence[Example]], order: Sequence[bytes]) -> set[bytes]:
    """Return the last group of each label; it stays in train, whichever groups the other splits take."""
    last: dict[str, bytes] = {example.answer: key for key in order for example in groups[key]}
    reserved: set[bytes] = set()
    covered: set[str] = set()
    for label in sorted(last):
        if label not in covered:
            reserved.add(last[label])
            covered |= {example.answer for example in groups[last[label]]}
    return reserved


def check(task: Task) -> dict[str, object]:
    """Report on a task's data, as values that JSON can hold.

    Returns:
        Name, format, kind, metric, counts per split, labels with their counts per split, the number of exact
        duplicates within train, the number of leaks (held-out prompts, for text answers, that also occur in train)
        with up to three of them, the shortest and longest prompt and answer in characters, and the notes.
    """
    splits = _splits(task)
    train_keys = {_group_key(example, task.kind) for example in task.train}
    leaks = [
        {"split": split, "text": example.answer if task.kind == "text" else example.prompt}
        for split in ("validation", "test")
        for example in splits[split]
        if _group_key(example, task.kind) in train_keys
    ]
    labels = {split: Counter(example.answer for example in examples) for split, examples in splits.items()}
    all_examples = [example for examples in splits.values() for example in examples]
    prompts = [sum(len(message.content) for message in example.messages) for example in all_examples]
    answers = [len(example.answer) for example in all_examples]
    return {
        "name": task.name,
        "format": task.format,
        "kind": task.kind,
        "metric": task.metric,
        "counts": task.counts,
        "labels": {label: {split: labels[split][label] for split in splits} for label in task.labels},
        "duplicates": len(task.train) - len({_content(example) for example in task.train}),
        "leaks": {"count": len(leaks), "examples": leaks[:3]},
        "prompt_characters": {"shortest": min(prompts, default=0), "longest": max(prompts, default=0)},
        "answer_characters": {"shortest": min(answers, default=0), "longest": max(answers, default=0)},
        "notes": list(task.notes),
    }


def _splits(task: Task) -> dict[str, tuple[Example, ...]]:
    return {"train": task.train, "validation": task.validation, "test": task.test}


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _content(example: Example) -> bytes:
    turns = [[m.role, m.content, m.labelled] for m in example.messages]
    return _json_bytes([turns, example.answer, example.references])


def _group_key(example: Example, kind: str, seed: int = 0) -> bytes:
    content = example.answer if kind == "text" else [[m.role, m.content] for m in example.messages]
    return hashlib.sha256(_json_bytes([seed, content])).digest()


def _check_settings(kind: str | None, template: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise SettingError(f'kind: "{show(kind)}" is not a kind of task; use one of {", ".join(KINDS)}')
    if template is not None and "{prompt}" not in template:
        raise SettingError("template: it does not contain {prompt}; write {prompt} where the prompt belongs")


def _common_layout(tables: Mapping[str, Table], columns: Mapping[str, str] | None, kind: str | None) -> ColumnLayout:
    """Return the layout that all tables share; raises `DataError` if they have several."""
    layouts = {split: recognise(table, columns, kind) for split, table in tables.items()}
    first = "train" if "train" in layouts else next(iter(layouts))
    for split, layout in layouts.items():
        if layout != layouts[first]:
            columns_here, columns_in_train = (listed(chosen.columns.values()) for chosen in (layout, layouts[first]))
            raise tables[split].error(
                f"it is read from the columns {columns_here} as {layout.format} but train from {columns_in_train} as "
                f"{layouts[first].format}",
                "give every split the same columns",
            )
    return layouts[first]


def _default_kind(layout: ColumnLayout) -> str:
    return layout.format if layout.format in ("classification", "text") else "generation"


def _default_metric(kind: str, layout: ColumnLayout) -> str:
    if kind == "generation":
        return "f1" if layout.format == "question-answer" else "rouge_l"
    return {"classification": "accuracy", "text": "likelihood"}[kind]


def _check_labels(tables: Mapping[str, Table], examples: Mapping[str, Sequence[Example]]) -> None:
    """Refuse labels that look like free text, and labels that do not occur in train."""
    first = "train" if "train" in tables else "all"
    labels = {example.answer for example in examples[first]}
    if len(labels) > max(20, len(examples[first]) / 2):
        raise tables[first].error(
            f"{len(labels)} different labels in {len(examples[first])} rows are too many to be classes",
            "map the columns as prompt and completion",
        )
    for split, table in tables.items():
        for (number, _), example in zip(table.rows, examples[split], strict=True):
            if example.answer not in labels:
                raise table.error(
                    f'the label "{show(example.answer)}" does not occur in train',
                    "add examples of it to train or remove the row",
                    number=number,
                )


def _reading_notes(tables: Mapping[str, Table], layout: ColumnLayout, first: str) -> list[str]:
    notes = [
        f"{table.empty_lines} empty lines of {table.path} were skipped"
        for table in tables.values()
        if table.empty_lines
    ]
    if ignored := unused(tables[first], layout):
        notes.append(f"columns not used: {listed(ignored)}")
    return notes


def _sample(table: Table, examples: list[Example], size: int, kind: str, seed: int) -> tuple[list[Example], str]:
    """Take the `size` examples with the smallest hashes, in a classification one of each label first, and a note."""
    if size >= len(examples):
        return examples, f"a sample of {size} was requested and all {len(examples)} examples were taken"
    keys = [hashlib.sha256(_json_bytes(seed) + _content(example)).digest() for example in examples]
    order = sorted(range(len(examples)), key=keys.__getitem__)
    if kind == "classification":
        first_of_label = {examples[i].answer: i for i in reversed(order)}
        if len(first_of_label) > size:
            raise table.error(
                f"a sample of {size} cannot hold its {len(first_of_label)} labels", "take a larger sample"
            )
        chosen = set(first_of_label.values())
        order.sort(key=lambda i: i not in chosen)
    return [examples[i] for i in sorted(order[:size])], f"{size} of {len(examples)} were sampled by content"


def _complete(
    table: Table, examples: Mapping[str, list[Example]], kind: str, seed: int, notes: list[str]
) -> dict[str, list[Example]]:
    """Return all three splits: those that were read, and the missing ones split off the first."""
    first = "train" if "train" in examples else "all"
    missing = [split for split in ("test", "validation") if split not in examples]
    if not missing:
        return dict(examples)
    parts = split_by_content(examples[first], missing, kind=kind, seed=seed, path=table.path)
    origin = "train" if first == "train" else "the file"
    notes += [
        f"{split} was split off {origin} ({len(parts[split])} of {len(examples[first])} examples, by content)"
        for split in missing
    ]
    return {split: parts[split] if split in parts else examples[split] for split in SPLITS}


def sample(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """Draw `count` examples with a fixed seed, so that every caller gets the same ones; their order is kept."""
    if len(examples) <= count:
        return examples
    import torch

    chosen = torch.randperm(len(examples), generator=generator(0, "sample"))[:count].sort().values
    return tuple(examples[index] for index in chosen.tolist())
