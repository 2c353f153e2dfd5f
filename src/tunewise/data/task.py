"""Turns the user's data into a task: train, validation and test examples, a kind, a template and a metric.

`sources` reads tables, `reading` makes examples of them, and `splitting` completes the splits; this module puts the
result together, and `task_check` reports on it.
Splits and samples depend on the content of the rows, never on their order, and equal prompts stay in one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tunewise.core.addresses import Shipped, shipped
from tunewise.core.errors import SettingError
from tunewise.core.numbers import are_numbers
from tunewise.core.seeds import generator
from tunewise.core.text import show
from tunewise.data.examples import Example, Message, content_bytes, json_bytes
from tunewise.data.fingerprints import RowsFingerprint
from tunewise.data.passages import cut_long_texts
from tunewise.data.prompt_template import names_prompt
from tunewise.data.reading import Reading, read_examples
from tunewise.data.sources import name_of, read_tables, sample_size
from tunewise.data.split_names import SPLITS
from tunewise.data.splitting import completed, sampled, split_by_content

__all__ = ["Example", "Message", "Task", "split_by_content"]

KINDS = ("classification", "generation", "text")


@dataclass(frozen=True)
class Task:
    """Holds data with its splits, template and metric.

    Attributes:
        name: the stem of the file, or the name of the folder or Hub data set.
        kind: "classification", "generation" or "text".
        format: "messages", "sharegpt", "alpaca", "prompt-completion", "classification", "question-answer" or
            "text".
        train, validation, test: the examples, in the order of the file; many of them are in a file themselves
            (`tunewise.data.example_file`).
        labels: every label, sorted; empty unless the kind is "classification".
        metric: the name of the score.
        template: the user's own template around `{prompt}`, or None for the default.
        source: where the data came from, as the user wrote it.
        knowledge: where documents for retrieval are (a `knowledge` folder beside the splits), or None.
        label_list: whether a prompt lists the labels; None: nothing was chosen, and a chat model's prompts list them.
        notes: what was done to the data while reading it, one sentence each.
        reasons: whether answers carry their own reasoning (`<think>...</think>`), so that prompts do not open with an
            empty one; None: the answers of `train` show it.
        skipped: how many bad rows were left out.
        fitted: what fitted the rows to a model, its window and template; empty: nothing did
            (`tunewise.engine.rows`).
        as_read: the fingerprints of the splits before that; None: nothing fitted them.

    Examples:
        >>> task = Task.read("world:reviews")
        >>> task.kind, task.metric, task.labels
        ('classification', 'accuracy', ('complaint', 'praise'))
    """

    name: str
    kind: str
    format: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...]
    metric: str
    template: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    knowledge: str | None = None
    label_list: bool | None = None
    reasons: bool | None = None
    skipped: int = 0
    fitted: str = field(default="", compare=False, repr=False)
    as_read: Mapping[str, RowsFingerprint] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def has_reasoning(self) -> bool:
        """Tell whether answers carry their own reasoning."""
        if self.reasons is not None:
            return self.reasons
        return any(
            "</think>" in example.answer or '"reasoning_content"' in example.answer_fields for example in self.train
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return a SHA-256 in hex over the kind, the template and every example in order."""
        digest = hashlib.sha256(json_bytes([self.kind, self.template]))
        for split in self.splits.values():
            digest.update(json_bytes(len(split)))
            for example in split:
                digest.update(content_bytes(example))
        return digest.hexdigest()

    @cached_property
    def row_fingerprints(self) -> Mapping[str, RowsFingerprint]:
        """Return the fingerprint of each split's rows, as they were read."""
        return self.as_read or {split: RowsFingerprint.of(examples) for split, examples in self.splits.items()}

    def in_style_of(self, style: Task) -> Task:
        """Return this task as prompts of `style` are written: with its reasoning, its template and its list of labels.

        A template or a choice of a list of its own stays.
        """
        task = replace(self, reasons=style.has_reasoning)
        if self.template is not None or self.label_list is not None:
            return task
        return replace(task, template=style.template, label_list=style.label_list)

    @property
    def splits(self) -> dict[str, Sequence[Example]]:
        """Return the examples of each split by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of examples in each split."""
        return {split: len(examples) for split, examples in self.splits.items()}

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        template: str | None = None,
        metric: str | None = None,
        kind: str | None = None,
        label_list: bool | None = None,
        seed: int = 0,
        skip_bad_rows: bool = False,
    ) -> Task:
        """Read data from a file, a folder with a file per split, or the Hugging Face Hub.

        Args:
            path: a file (`.jsonl .json .csv .tsv .txt`, also with `.gz`, `.parquet .arrow .xlsx`), a folder,
                `org/name`, `org/name:config` or `hf://datasets/org/name[/file]`; `path#500` samples 500 examples (of a
                folder: of its train split); or `world:reviews`, a task of the world that is shipped with the package.
            columns: standard column names mapped to the data's own, for columns that are not recognised; a prompt
                may be made of several, as in `{"text": "premise+hypothesis"}`.
            template: a text that contains `{prompt}`, or the names of columns in braces.
            metric: the name of the score; by default it follows from the kind and the format.
            kind: "classification", "generation" or "text"; by default it follows from the columns.
            label_list: whether prompts list the labels of a classification; by default it is chosen on validation
                before a fit or a comparison with a chat model.
            seed: seed of the sample and of the splits.
            skip_bad_rows: leave out rows that cannot be used, unless they are more than half of a split.

        Raises:
            DataError: the data cannot be read as a task; the message names file, line and column.
            SettingError: `kind`, `template` or `label_list` is not usable.

        Examples:
            >>> Task.read("world:reviews").counts
            {'train': 200, 'validation': 60, 'test': 200}
        """
        _check_settings(kind, template, label_list)
        if (address := shipped(str(path))) is not None:
            task = _shipped_task(*address, columns, template, metric, kind)
            return replace(task, label_list=_usable_label_list(label_list, task.kind, str(path)))
        source, size = sample_size(str(path))
        tables = read_tables(source)
        reading = read_examples(tables, columns, kind, template, skip_bad_rows=skip_bad_rows)
        first = "train" if "train" in tables else "all"
        examples, notes = dict(reading.examples), list(reading.notes)
        if reading.kind == "text" and len(examples) < len(SPLITS):
            examples[first], note = cut_long_texts(examples[first])
            notes += [note] if note else []
        if size is not None:
            examples[first], note = sampled(tables[first], examples[first], size, seed)
            notes.append(note)
        splits = completed(tables[first], examples, seed, notes)
        train = splits["train"].examples
        return cls(
            name=name_of(source),
            kind=reading.kind,
            format=reading.layout.format,
            train=train,
            validation=splits["validation"].examples,
            test=splits["test"].examples,
            labels=tuple(sorted(splits["train"].facts.labels_present)) if reading.kind == "classification" else (),
            metric=metric or _default_metric(reading, train),
            template=reading.template,
            source=str(path),
            notes=tuple(notes),
            knowledge=str(Path(source) / "knowledge") if (Path(source) / "knowledge").is_dir() else None,
            label_list=_usable_label_list(label_list, reading.kind, str(path)),
            skipped=reading.skipped,
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
    if template is not None and "{prompt}" not in template:
        raise SettingError(f"template: {task.source} has no columns; write {{prompt}} where the prompt belongs")
    return replace(task, template=template, metric=metric or task.metric)


def _usable_label_list(label_list: bool | None, kind: str, path: str) -> bool | None:
    if label_list is not None and kind != "classification":
        raise SettingError(f"label_list: only a classification has labels to list, and {path} is a {kind} task")
    return label_list


def _check_settings(kind: str | None, template: str | None, label_list: bool | None) -> None:
    if kind is not None and kind not in KINDS:
        raise SettingError(f'kind: "{show(kind)}" is not a kind of task; use one of {", ".join(KINDS)}')
    if template is not None and not names_prompt(template):
        raise SettingError(
            "template: it does not contain {prompt}; write {prompt} where the prompt belongs, or name columns in braces"
        )
    if template is not None and label_list is not None:
        raise SettingError("label_list: a template of your own lists the labels by {labels}; give one of the two")


def _default_metric(reading: Reading, train: Sequence[Example]) -> str:
    if reading.kind == "generation" and are_numbers(example.answer for example in train):
        return "number"
    if reading.kind == "generation":
        return "f1" if reading.layout.format == "question-answer" else "rouge_l"
    return {"classification": "accuracy", "text": "likelihood"}[reading.kind]


def default_test_examples(kind: str) -> int:
    """Return how many test examples are scored where the user names no number: fewer where answers are generated."""
    return 200 if kind == "generation" else 500


def sample(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """Draw `count` examples with a fixed seed, so that every caller gets the same ones; their order is kept."""
    if len(examples) <= count:
        return examples
    import torch

    chosen = torch.randperm(len(examples), generator=generator(0, "sample"))[:count].sort().values
    return tuple(examples[index] for index in chosen.tolist())
