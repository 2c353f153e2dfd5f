"""The user's data as a task: train, validation and test examples, a kind, a template and a metric.

`sources` and `files` read rows, `formats` gives them meaning; here examples are sampled, split and checked.
Splits and samples depend on what the rows say, never on their order, and equal prompts stay on one side.
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
from tunewise.data.formats import Example, Layout, Message, convert, recognise, unused
from tunewise.data.readers import Table
from tunewise.data.sources import name_of, read_tables, sample_size

__all__ = ["Example", "Message", "Task", "check", "split_by_content"]

KINDS = ("classification", "generation", "text")
SPLITS = ("train", "validation", "test")
ONE_IN = 10


@dataclass(frozen=True)
class Task:
    """Data with splits, a template and a metric.

    Attributes:
        name: the stem of the file, or the name of the folder or Hub set.
        kind: "classification", "generation" or "text".
        format: "messages", "sharegpt", "alpaca", "prompt-completion", "classification", "question-answer" or
            "text".
        train, validation, test: the examples, in the order of the file.
        labels: every label, sorted; empty unless the kind is "classification".
        metric: the name of the score.
        template: the user's own template around `{prompt}`, or None for the default.
        source: where the data came from, as given.
        knowledge: where documents for it are (a `knowledge` folder beside the splits), or None.
        notes: what was done to the data, one sentence each.
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
        """A sha256 in hex over the kind, the template and every example in order."""
        digest = hashlib.sha256(_bytes([self.kind, self.template]))
        for split in (self.train, self.validation, self.test):
            digest.update(_bytes(len(split)))
            for example in split:
                digest.update(_content(example))
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples in each split."""
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
                `hf://datasets/org/name[/file]`; `path#500` samples 500 examples (of a folder: for training);
                or `world:reviews`, a task of the world that is shipped with the package.
            columns: standard column names to the data's own, for columns that are not recognised.
            template: a text around `{prompt}`.
            metric: the name of the score; by default it follows from the kind and the format.
            kind: "classification", "generation" or "text"; by default it follows from the columns.
            seed: another seed samples and splits differently.

        Raises:
            DataError: the data cannot be read as a task; the message names file, line and column.
            SettingError: `kind` or `template` is not usable.
        """
        _check_settings(kind, template)
        if (address := shipped(str(path))) is not None:
            return _as_asked(*address, columns, template, metric, kind)
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


def _as_asked(
    place: Shipped,
    name: str,
    columns: Mapping[str, str] | None,
    template: str | None,
    metric: str | None,
    kind: str | None,
) -> Task:
    """A shipped task with the user's template and metric."""
    task: Task = place.task(name)
    if columns or kind:
        raise SettingError(f"{task.source}: is a task already; leave out {'columns' if columns else 'kind'}")
    return replace(task, template=template, metric=metric or task.metric)


def split_by_content(
    examples: Sequence[Example], wanted: Sequence[str], *, kind: str, seed: int = 0, path: str | None = None
) -> dict[str, list[Example]]:
    """Split examples into "train" and the `wanted` held-out splits of a tenth of the distinct prompts each.

    Examples with one prompt (for text: one answer) stay together, the order of the examples does not matter,
    and in a classification every label has a prompt in train.

    Raises:
        DataError: there are too few distinct prompts for that.
    """
    groups: dict[bytes, list[Example]] = {}
    keys = [_group_key(example, kind, seed) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        groups.setdefault(key, []).append(example)
    order = sorted(groups)
    what = "texts" if kind == "text" else "prompts"
    needed = len(wanted) + 1
    if len(order) < needed:
        raise DataError(
            f"only {len(order)} different {what} to split into {', '.join(('train', *wanted))}",
            path=path,
            remedy=f"give separate files train, validation and test, or at least {needed} different {what}",
        )
    kept = _one_group_per_label(groups, order) if kind == "classification" else set()
    free = [key for key in order if key not in kept]
    if len(free) < len(wanted):
        raise DataError(
            f"its {len(order)} different prompts are too few to have every label in train and still hold out "
            f"{' and '.join(wanted)}",
            path=path,
            remedy="add examples of the rare labels, or give separate files train, validation and test",
        )
    size = min(max(1, len(order) // ONE_IN), len(free) // len(wanted))
    side = dict.fromkeys(order, "train")
    for i, split in enumerate(wanted):
        side |= dict.fromkeys(free[i * size : (i + 1) * size], split)
    splits: dict[str, list[Example]] = {split: [] for split in ("train", *wanted)}
    for key, example in zip(keys, examples, strict=True):
        splits[side[key]].append(example)
    return splits


def _one_group_per_label(groups: Mapping[bytes, Sequence[Example]], order: Sequence[bytes]) -> set[bytes]:
    """The last group of each label: training keeps it whatever the walk over the others gives away."""
    last: dict[str, bytes] = {example.answer: key for key in order for example in groups[key]}
    kept: set[bytes] = set()
    covered: set[str] = set()
    for label in sorted(last):
        if label not in covered:
            kept.add(last[label])
            covered |= {example.answer for example in groups[last[label]]}
    return kept


def check(task: Task) -> dict[str, object]:
    """Report on a task's data, as values that JSON can hold.

    Returns:
        format, kind, counts per split, labels with their counts per split, the number of exact duplicates
        within train, leaks (held-out prompts, or for text answers, that occur in train) with up to three of
        them, and the shortest and longest prompt and answer in characters.
    """
    splits = _splits(task)
    seen = {_group_key(example, task.kind) for example in task.train}
    leaks = [
        {"split": split, "text": example.answer if task.kind == "text" else example.prompt}
        for split in ("validation", "test")
        for example in splits[split]
        if _group_key(example, task.kind) in seen
    ]
    labels = {split: Counter(example.answer for example in examples) for split, examples in splits.items()}
    every = [example for examples in splits.values() for example in examples]
    prompts = [sum(len(message.content) for message in example.messages) for example in every]
    answers = [len(example.answer) for example in every]
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


def _bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _content(example: Example) -> bytes:
    turns = [[m.role, m.content, m.labelled] for m in example.messages]
    return _bytes([turns, example.answer, example.references])


def _group_key(example: Example, kind: str, seed: int = 0) -> bytes:
    said = example.answer if kind == "text" else [[m.role, m.content] for m in example.messages]
    return hashlib.sha256(_bytes([seed, said])).digest()


def _check_settings(kind: str | None, template: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise SettingError(f'kind: "{show(kind)}" is not a kind of task; use one of {", ".join(KINDS)}')
    if template is not None and "{prompt}" not in template:
        raise SettingError("template: it does not contain {prompt}; write {prompt} where the prompt belongs")


def _common_layout(tables: Mapping[str, Table], columns: Mapping[str, str] | None, kind: str | None) -> Layout:
    """The layout of every table, which must be one."""
    layouts = {split: recognise(table, columns, kind) for split, table in tables.items()}
    first = "train" if "train" in layouts else next(iter(layouts))
    for split, layout in layouts.items():
        if layout != layouts[first]:
            used, wanted = (listed(chosen.columns.values()) for chosen in (layout, layouts[first]))
            raise tables[split].error(
                f"it is read from the columns {used} as {layout.format} but train from {wanted} as "
                f"{layouts[first].format}",
                "give every split the same columns",
            )
    return layouts[first]


def _default_kind(layout: Layout) -> str:
    return layout.format if layout.format in ("classification", "text") else "generation"


def _default_metric(kind: str, layout: Layout) -> str:
    if kind == "generation":
        return "f1" if layout.format == "question-answer" else "rouge_l"
    return {"classification": "accuracy", "text": "likelihood"}[kind]


def _check_labels(tables: Mapping[str, Table], examples: Mapping[str, Sequence[Example]]) -> None:
    """Refuse labels that are really free text, and labels that training would never see."""
    first = "train" if "train" in tables else "all"
    known = {example.answer for example in examples[first]}
    if len(known) > max(20, len(examples[first]) / 2):
        raise tables[first].error(
            f"{len(known)} different labels in {len(examples[first])} rows are too many to be classes",
            "map the columns as prompt and completion",
        )
    for split, table in tables.items():
        for (number, _), example in zip(table.rows, examples[split], strict=True):
            if example.answer not in known:
                raise table.error(
                    f'the label "{show(example.answer)}" does not occur in train',
                    "add examples of it to train or remove the row",
                    number=number,
                )


def _reading_notes(tables: Mapping[str, Table], layout: Layout, first: str) -> list[str]:
    notes = [
        f"{table.empty_lines} empty lines of {table.path} were skipped"
        for table in tables.values()
        if table.empty_lines
    ]
    if ignored := unused(tables[first], layout):
        notes.append(f"columns not used: {listed(ignored)}")
    return notes


def _sample(table: Table, examples: list[Example], size: int, kind: str, seed: int) -> tuple[list[Example], str]:
    """The `size` examples with the smallest hashes, of a classification first one of each label."""
    if size >= len(examples):
        return examples, f"a sample of {size} was asked for and all {len(examples)} examples were taken"
    keys = [hashlib.sha256(_bytes(seed) + _content(example)).digest() for example in examples]
    order = sorted(range(len(examples)), key=keys.__getitem__)
    if kind == "classification":
        firsts = {examples[i].answer: i for i in reversed(order)}
        if len(firsts) > size:
            raise table.error(f"a sample of {size} cannot hold its {len(firsts)} labels", "take a larger sample")
        chosen = set(firsts.values())
        order.sort(key=lambda i: i not in chosen)
    return [examples[i] for i in sorted(order[:size])], f"{size} of {len(examples)} were sampled by content"


def _complete(
    table: Table, examples: Mapping[str, list[Example]], kind: str, seed: int, notes: list[str]
) -> dict[str, list[Example]]:
    """The three splits: those that were read, and the missing ones split off the first."""
    first = "train" if "train" in examples else "all"
    wanted = [split for split in ("test", "validation") if split not in examples]
    if not wanted:
        return dict(examples)
    parts = split_by_content(examples[first], wanted, kind=kind, seed=seed, path=table.path)
    origin = "train" if first == "train" else "the file"
    notes += [
        f"{split} was split off {origin} ({len(parts[split])} of {len(examples[first])} examples, by content)"
        for split in wanted
    ]
    return {split: parts[split] if split in parts else examples[split] for split in SPLITS}


def sample(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """The same `count` examples for everyone, in their order."""
    if len(examples) <= count:
        return examples
    import torch

    chosen = torch.randperm(len(examples), generator=generator(0, "sample"))[:count].sort().values
    return tuple(examples[index] for index in chosen.tolist())
