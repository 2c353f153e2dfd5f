"""The features of a model, a task and a budget that advice is drawn from, and the distance between two situations.

    d(a, b)^2 = sum_f ((u_f(a) - u_f(b)) / scale_f)^2        u_f: the feature, or its logarithm if it is a size

`SCALES` gives, for every feature, the transform u_f and the difference that counts as 1. A feature that one of the two
situations lacks is left out of the sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base

SAMPLED = 200  # examples per split that lengths and shares are measured on


@dataclass(frozen=True, kw_only=True)
class Features:
    """Describes a situation (a model, a task and a budget) in numbers; yes and no are 1 and 0.

    Attributes:
        train: number of training examples.
        generation: 1 if the model writes its answers, 0 if it chooses one of the labels.
        labels: number of labels; 0 for generation.
        balance: entropy of the labels divided by that of a uniform distribution; 1 without labels.
        prompt_tokens: mean length of a prompt by the model's tokenizer.
        answer_tokens: mean length of an answer by the model's tokenizer.
        copied: share of held-out answers that occur in their own prompts.
        unseen: share of held-out answers that no training example has.
        documents: 1 if documents are given.
        in_documents: share of held-out answers that occur in the documents.
        special_tokens: 1 if prompts contain special tokens of the tokenizer.
        room: how many sequences of mean length the context window holds.
        parameters: number of the model's parameters.
        biases: 1 if the model's blocks have bias vectors.
        base_loss: nats per answer token of the unadapted model on held-out examples; None if it was not run.
        examples: training examples that one trial sees within the budget, repeated ones counted again.
    """

    train: float
    generation: float
    labels: float = 0.0
    balance: float = 1.0
    prompt_tokens: float
    answer_tokens: float
    copied: float = 0.0
    unseen: float = 0.0
    documents: float = 0.0
    in_documents: float = 0.0
    special_tokens: float = 0.0
    room: float = 1.0
    parameters: float
    biases: float = 0.0
    base_loss: float | None = None
    examples: float

    def to_json(self) -> dict[str, float | None]:
        """Return the features by name."""
        return asdict(self)

    def changed(self, **values: Any) -> Features:
        """Return a copy of the situation with these features replaced."""
        return replace(self, **values)

    @property
    def epochs(self) -> float:
        """Return how often a trial sees each training example."""
        return self.examples / max(self.train, 1.0)


def _unchanged(name: str) -> Callable[[Features], float | None]:
    return lambda features: getattr(features, name)


def _log10(name: str) -> Callable[[Features], float | None]:
    return lambda features: math.log10(max(getattr(features, name), 1e-3))


def _log2_1p(name: str) -> Callable[[Features], float | None]:
    return lambda features: math.log2(1 + getattr(features, name))


# Of each feature its transform u_f, and the difference in it that counts as 1.
SCALES: dict[str, tuple[Callable[[Features], float | None], float]] = {
    "train": (_log10("train"), 1.0),
    "generation": (_unchanged("generation"), 0.7),
    "labels": (_log2_1p("labels"), 2.0),
    "balance": (_unchanged("balance"), 0.3),
    "prompt_tokens": (_log2_1p("prompt_tokens"), 2.0),
    "answer_tokens": (_log2_1p("answer_tokens"), 2.0),
    "copied": (_unchanged("copied"), 0.7),
    "unseen": (_unchanged("unseen"), 0.7),
    "documents": (_unchanged("documents"), 0.7),
    "in_documents": (_unchanged("in_documents"), 0.5),
    "special_tokens": (_unchanged("special_tokens"), 1.5),
    "room": (_log2_1p("room"), 3.0),
    "parameters": (_log10("parameters"), 1.0),
    "biases": (_unchanged("biases"), 2.0),
    "base_loss": (_unchanged("base_loss"), 3.0),
    "epochs": (_log10("epochs"), 1.0),
}
MODEL = ("parameters", "biases")  # the features of the model alone, whatever the task


@lru_cache(maxsize=1 << 16)
def distance(one: Features, other: Features, names: tuple[str, ...] = ()) -> float:
    """Return the distance d of two situations in all features, or in those named.

    Two situations that differ only in that one model is ten times as large are 1 apart.
    """
    scaled = differences(one, other)
    return math.sqrt(sum(scaled[name] ** 2 for name in names or scaled if name in scaled))


def differences(one: Features, other: Features) -> dict[str, float]:
    """Return (u_f(one) - u_f(other)) / scale_f by feature, without the features that one of the two lacks."""
    scaled = {}
    for name, (transform, scale) in SCALES.items():
        first, second = transform(one), transform(other)
        if first is not None and second is not None:
            scaled[name] = (first - second) / scale
    return scaled


def measure(
    base: Base,
    task: Task,
    *,
    documents: Sequence[str] = (),
    given: bool | None = None,
    examples: float,
    base_loss: float | None = None,
) -> Features:
    """Measure the features of a task for a model.

    Args:
        base: the model; its weights are not needed.
        task: the data.
        documents: texts of the documents that come with the task.
        given: whether there are documents, if their texts cannot be read here; default: whether there are texts.
        examples: training examples that one trial sees within the budget.
        base_loss: the unadapted model's loss, see `tunewise.advice.advise.loss_of`.
    """
    from tunewise.engine.encoding import Encoder

    encoder = Encoder(base, task)
    held_out = _sampled(task.test or task.validation)
    sequences = encoder.encode(_sampled(task.train))
    prompt_tokens = sum(sequence.prompt for sequence in sequences) / len(sequences)
    answer_tokens = sum(len(sequence.ids) - sequence.prompt for sequence in sequences) / len(sequences)
    special_ids = set(base.tokenizer.all_special_ids)
    train_answers = {_normalized(example.answer) for example in task.train}
    library = "\n".join(_normalized(text) for text in documents)
    return Features(
        train=float(len(task.train)),
        generation=float(task.kind != "classification"),
        labels=float(len(task.labels)),
        balance=_balance(task),
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        copied=_share(held_out, lambda example: _normalized(example.answer) in _normalized(example.prompt)),
        unseen=_share(held_out, lambda example: _normalized(example.answer) not in train_answers),
        documents=float(bool(documents) if given is None else given),
        in_documents=_share(held_out, lambda example: _normalized(example.answer) in library) if library else 0.0,
        special_tokens=float(any(special_ids & set(sequence.ids[: sequence.prompt]) for sequence in sequences)),
        room=base.window / max(prompt_tokens + answer_tokens, 1.0),
        parameters=float(base.parameters),
        biases=float(bool(base.anatomy.biases())),
        base_loss=base_loss,
        examples=float(examples),
    )


def texts_of(where: str | None) -> list[str]:
    """Return the texts of the documents in a folder or file; none for an index or an address, which are not read."""
    from tunewise.retrieval.index import FACTS
    from tunewise.retrieval.sources import gather

    if not where or "://" in where or (Path(where) / FACTS).is_file():
        return []
    return [document.text for document in gather(where).documents]


def _sampled(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    from tunewise.data.task import sample

    return sample(examples, SAMPLED)


def _share(examples: Sequence[Example], condition: Callable[[Example], bool]) -> float:
    return sum(map(condition, examples)) / len(examples) if examples else 0.0


def _normalized(text: str) -> str:
    """Ignore case and white space, so that answers are found however they are set."""
    return " ".join(text.casefold().split())


def _balance(task: Task) -> float:
    """-sum_c p_c log p_c / log C, for the shares p_c of the C labels in the training examples."""
    counts = Counter(example.answer for example in task.train) if task.labels else Counter()
    if len(task.labels) < 2:
        return 1.0
    shares = [count / len(task.train) for count in counts.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(task.labels))
