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
    examples: NotRequired[int]


class TokenizerDifference(TypedDict, total=False):
    """Where two tokenizers differ: in the chat template, or in the ids of one prompt's or label's text."""

    chat_template: str
    prompt: int
    label: str
    trained: list[int]
    exported: list[int]


class RoundingFigures(TypedDict):
    """What storing a whole model in a coarser type did to the trained model, apart from any error of the export.

    `max_logit_difference` and `greedy_tokens_unchanged` (a share) compare the trained model with its merged weights
    rounded in memory. `merging_logit_difference` compares it with its merged weights before they are rounded.
    """

    max_logit_difference: float
    greedy_tokens_unchanged: float
    merging_logit_difference: float


class ParityFigures(TypedDict):
    """The comparison of an export with the trained model; `same` tells whether they agree.

    `differ` lists the prompts on which they disagree, and `worst_prompt` is the one whose logits differ most. Where
    there is `rounding`, logits and continuations are compared with those of the trained model's rounded weights.
    `most_that_differ` is the largest share of prompts that can differ where none of those compared did (95 %).
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
    most_that_differ: NotRequired[float]
    rounding: NotRequired[RoundingFigures]
    score: NotRequired[ScorePair]
    tokenizer: NotRequired[TokenizerDifference | Literal["same"]]
    on_the_unquantised_base: NotRequired[float]


class ExportFacts(FormatFigures):
    """What is recorded of every export; `adaptation` says where it comes from, `notes` are sentences for people."""

    schema: int
    tunewise: str
    format: str
    dtype: str
    adaptation: Mapping[str, object]
    notes: list[str]


class ParityRecord(ParityFigures, ExportFacts):
    """The whole of `parity.json` of an export that was compared with the trained model."""

    checked: Literal[True]


class UnprovedRecord(ExportFacts):
    """The whole of `parity.json` of an export that was not compared with the trained model."""

    checked: Literal[False]
    same: None
