"""Tells whether an adaptation is loaded on what it was trained on: the base by name, its chat template, its tokenizer.

Other weights are refused by their fingerprint. What is found here is told in a sentence, since it may be meant: a
template that was mended, a base that was moved.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.core.json_record import JsonRecord
from tunewise.core.text import visible
from tunewise.engine.configuration import path_of
from tunewise.engine.model import Base
from tunewise.engine.vocabulary import template_text, vocabulary_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("tunewise")
_START = 60  # characters of a template that are kept, to recognise it by


@dataclass(frozen=True, kw_only=True)
class TextRecord(JsonRecord):
    """Records what turned text into tokens when an adaptation was trained.

    `chat_template` is the sha256 of the template's text, and `chat_template_start` its beginning; both are of the empty
    text where there is no template. `vocabulary` is the sha256 of the tokens and their ids.
    """

    chat_template: str
    chat_template_start: str
    vocabulary: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextRecord:
        """Take the record of a tokenizer and its template."""
        template = template_text(tokenizer)
        return cls(
            chat_template=hashlib.sha256(template.encode()).hexdigest(),
            chat_template_start=" ".join(template[: 4 * _START].split())[:_START],
            vocabulary=vocabulary_fingerprint(tokenizer),
        )

    @property
    def template_in_words(self) -> str:
        """The beginning of the template in quotes, or that there is none."""
        return f'"{self.chat_template_start}..."' if self.chat_template_start else "none"


def tell_of_other_text(folder: Path, recorded: TextRecord, base: Base) -> None:
    """Warn where the base's template or tokenizer are not those that the adaptation in this folder was trained with."""
    for sentence in _differences(recorded, TextRecord.of(base.tokenizer), base.name):
        warn_once(f"{folder}: {sentence}")


def _differences(recorded: TextRecord, present: TextRecord, base: str) -> Iterator[str]:
    if recorded.chat_template != present.chat_template:
        yield (
            f"was trained with another chat template ({recorded.template_in_words}) than {base} has "
            f"({present.template_in_words}), so prompts are not those it was trained on; give the model its former "
            "template again, or fit anew"
        )
    if recorded.vocabulary != present.vocabulary:
        yield (
            f"was trained with another tokenizer than {base} has, so text gives other tokens than those it was trained "
            "on; give the model its former tokenizer again, or fit anew"
        )


def tell_of_other_base(folder: Path, recorded: object, base: Base) -> None:
    """Warn where an adapter names another base than the one that it is loaded on; its file has no fingerprint."""
    if isinstance(recorded, str) and recorded and not _same_model(recorded, base.name):
        warn_once(
            f"{folder}: the adapter was made on {recorded} and is loaded on {base.name}, where its answers may mean "
            "nothing; name its base with --model"
        )


def _same_model(recorded: str, name: str) -> bool:
    """Return whether two names mean one model: the same path, or the same last part of a path or a Hub id."""
    places = [os.path.normpath(path_of(each).absolute()) for each in (recorded, name)]  # by its words: nothing is read
    return _last_part(recorded) == _last_part(name) or places[0] == places[1]


def _last_part(name: str) -> str:
    """Return the name of a model without its owner or folder, in the Hub's cache too."""
    cached = next((part for part in Path(name).parts if part.startswith("models--")), None)
    return (cached.rpartition("--")[2] if cached else Path(name).name).lower()


@cache
def warn_once(sentence: str) -> None:
    """Put a warning on stderr, once in a process: serving may load an adaptation several times."""
    _log.warning("%s", visible(sentence))
