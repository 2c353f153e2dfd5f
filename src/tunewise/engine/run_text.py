"""Records what a run reads: the rows, how the model writes them as tokens, and its window."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

from tunewise.core.json_record import Count, JsonRecord
from tunewise.data.fingerprints import RowsFingerprint
from tunewise.data.split_names import SPLITS
from tunewise.data.task import Task
from tunewise.engine.configuration import TextModel
from tunewise.engine.vocabulary import template_text, vocabulary_fingerprint


@dataclass(frozen=True, kw_only=True)
class RunText(JsonRecord):
    """Records the text of a run; two runs with the same record read the same tokens.

    Attributes:
        train, validation, test: the rows of each split, as they were read: before long texts were cut into pieces.
        kind: the kind of the task.
        template: SHA-256 of the chat template and of the user's own template.
        label_list: whether prompts list the labels; None: nothing was chosen.
        vocabulary: SHA-256 of the tokenizer's tokens and their ids.
        window: tokens of the longest sequence.
    """

    train: RowsFingerprint
    validation: RowsFingerprint
    test: RowsFingerprint
    kind: str
    template: str
    label_list: bool | None = None
    vocabulary: str
    window: Count

    @classmethod
    def of(cls, model: TextModel, task: Task) -> Self:
        """Take the record of a task and the model that reads it."""
        templates, rows = f"{template_text(model.tokenizer)}\0{task.template or ''}", task.row_fingerprints
        return cls(
            train=rows["train"],
            validation=rows["validation"],
            test=rows["test"],
            kind=task.kind,
            template=hashlib.sha256(templates.encode("utf-8", "surrogatepass")).hexdigest(),
            label_list=task.label_list,
            vocabulary=vocabulary_fingerprint(model.tokenizer),
            window=model.window,
        )

    def differences(self, earlier: RunText, splits: Collection[str] = SPLITS) -> list[str]:
        """Name what an earlier run read instead, in words that follow "was begun with"; empty if it read the same.

        Args:
            earlier: the record of the earlier run.
            splits: the splits whose rows matter.
        """
        other = list[str]()
        for split in splits:
            now, before = getattr(self, split), getattr(earlier, split)
            if now.content != before.content:
                other.append(f"other {split} rows")
            elif now != before:
                other.append(f"the {split} rows in another order")
        if self.kind != earlier.kind:
            other.append(f"a task of kind {earlier.kind} (now {self.kind})")
        if self.template != earlier.template:
            other.append("another template")
        if self.label_list != earlier.label_list:
            other.append("prompts that list the labels" if earlier.label_list else "prompts without a list of labels")
        if self.vocabulary != earlier.vocabulary:
            other.append("another tokenizer")
        if self.window != earlier.window:
            other.append(f"a window of {earlier.window} tokens (now {self.window})")
        return other

    def with_label_list_of(self, earlier: RunText) -> RunText:
        """Return this record with the earlier run's choice of a list of labels, where none was made here yet."""
        return self if self.label_list is not None else replace(self, label_list=earlier.label_list)
