"""The record of an export and of its comparison with the trained model, as `parity.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict


class FormatFigures(TypedDict, total=False):
    """What single formats record: `rank` and `error` of a LoRA approximation, `entries` of a sparse export."""

    rank: int
    error: float
    entries: int


class ScorePair(TypedDict):
    """The task's score of the trained model and of the export, on the same examples."""

    metric: str
    trained: float
    exported: float


class TokenizerDifference(TypedDict, total=False):
    """Where two tokenizers differ: in the chat template, or in the ids of one prompt's text."""

    chat_template: str
    prompt: int
    trained: list[int]
    exported: list[int]


class ParityFigures(TypedDict):
    """The comparison of an export with the trained model; `same` tells whether they agree.

    `differ` lists the prompts on which they disagree, and `worst_prompt` is the one whose logits differ most.
    """

    same: bool
    prompts: int
    source: str
    max_logit_difference: float
    tolerance: float
    largest_logit: float
    moved_by_training: float
    greedy_agreement: float
    greedy_tokens: int
    differ: list[int]
    worst_prompt: int
    score: NotRequired[ScorePair]
    tokenizer: NotRequired[TokenizerDifference | Literal["same"]]
    on_the_unquantised_base: NotRequired[float]


class ParityRecord(ParityFigures, FormatFigures):
    """The whole of `parity.json`; `adaptation` says where the export comes from, `notes` are sentences for people."""

    schema: int
    tunewise: str
    format: str
    dtype: str
    adaptation: Mapping[str, object]
    notes: list[str]
