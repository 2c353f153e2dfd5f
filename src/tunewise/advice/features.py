"""What advice knows of a model, a task and a budget: a few numbers, and how far apart two such situations are.

    d(a, b)^2 = sum_f ((u_f(a) - u_f(b)) / scale_f)^2        u_f: the number, or its logarithm where sizes are meant

`SCALES` says of every number how it is taken and which difference counts as one. A number that one side lacks does not
count.
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

SAMPLED = 200  # examples of a split that lengths and shares are taken from


@dataclass(frozen=True, kw_only=True)
class Features:
    """A situation.

    Attributes:
        train: training examples.
        generation: 1 where answers are written, 0 where one of the labels is chosen.
        labels: number of labels; 0 where answers are written.
        balance: entropy of the labels over that of equally frequent ones; 1 where there are no labels.
        prompt_tokens, answer_tokens: means, by the model's tokenizer.
        copied: share of held-out answers that stand in their own prompts.
        unseen: share of held-out answers that no training example has.
        documents: 1 where documents are given.
        in_documents: share of held-out answers that stand in the documents.
        special_tokens: 1 where the sequences hold special tokens of the tokenizer.
        room: sequences of mean length that the window holds.
        parameters: of the model.
        biases: 1 where the model's blocks have bias vectors.
        base_loss: nats per answer token of the unadapted model on held-out examples; None where it was not run.
        examples: training examples that the budget makes a trial see, repeated ones counted again.
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
        """The numbers by name."""
        return asdict(self)

    def changed(self, **values: Any) -> Features:
        """The same situation but for these numbers."""
        return replace(self, **values)

    @property
    def epochs(self) -> float:
        """How often a trial sees each training example."""
        return self.examples / max(self.train, 1.0)


def _plain(name: str) -> Callable[[Features], float | None]:
    return lambda features: getattr(features, name)


def _tenfold(name: str) -> Callable[[Features], float | None]:
    return lambda features: math.log10(max(getattr(features, name), 1e-3))


def _twofold(name: str) -> Callable[[Features], float | None]:
    return lambda features: math.log2(1 + getattr(features, name))


# What is compared: the number, and the difference that counts as one.
SCALES: dict[str, tuple[Callable[[Features], float | None], float]] = {
    "train": (_tenfold("train"), 1.0),
    "generation": (_plain("generation"), 0.7),
    "labels": (_twofold("labels"), 2.0),
    "balance": (_plain("balance"), 0.3),
    "prompt_tokens": (_twofold("prompt_tokens"), 2.0),
    "answer_tokens": (_twofold("answer_tokens"), 2.0),
    "copied": (_plain("copied"), 0.7),
    "unseen": (_plain("unseen"), 0.7),
    "documents": (_plain("documents"), 0.7),
    "in_documents": (_plain("in_documents"), 0.5),
    "special_tokens": (_plain("special_tokens"), 1.5),
    "room": (_twofold("room"), 3.0),
    "parameters": (_tenfold("parameters"), 1.0),
    "biases": (_plain("biases"), 2.0),
    "base_loss": (_plain("base_loss"), 3.0),
    "epochs": (_tenfold("epochs"), 1.0),
}
MODEL = ("parameters", "biases")  # those that are the model's alone, whatever the task


@lru_cache(maxsize=1 << 16)
def distance(one: Features, other: Features, names: tuple[str, ...] = ()) -> float:
    """How far apart two situations are, in all numbers or these; 1 is a tenfold model, all else alike."""
    parts = differences(one, other)
    return math.sqrt(sum(parts[name] ** 2 for name in names or parts if name in parts))


def differences(one: Features, other: Features) -> dict[str, float]:
    """The same by number, signed, in units of their scales; what one side lacks is left out."""
    found = {}
    for name, (take, scale) in SCALES.items():
        mine, theirs = take(one), take(other)
        if mine is not None and theirs is not None:
            found[name] = (mine - theirs) / scale
    return found


def measure(
    base: Base,
    task: Task,
    *,
    documents: Sequence[str] = (),
    given: bool | None = None,
    examples: float,
    base_loss: float | None = None,
) -> Features:
    """The numbers of a task for a model.

    Args:
        base: the model; its weights are not needed.
        task: the data.
        documents: texts of the documents that come with it.
        given: whether there are documents, where their texts are not to be read (default: whether there are texts).
        examples: training examples that the budget makes a trial see.
        base_loss: see `loss_of`.
    """
    from tunewise.engine.encoding import Encoder

    encoder = Encoder(base, task)
    shown = _some(task.train)
    held = _some(task.test or task.validation)
    sequences = encoder.encode(shown)
    prompts = sum(sequence.prompt for sequence in sequences) / len(sequences)
    answers = sum(len(sequence.ids) - sequence.prompt for sequence in sequences) / len(sequences)
    special = set(base.tokenizer.all_special_ids)
    known = {_folded(example.answer) for example in task.train}
    library = "\n".join(_folded(text) for text in documents)
    return Features(
        train=float(len(task.train)),
        generation=float(task.kind != "classification"),
        labels=float(len(task.labels)),
        balance=_balance(task),
        prompt_tokens=prompts,
        answer_tokens=answers,
        copied=_share(held, lambda example: _folded(example.answer) in _folded(example.prompt)),
        unseen=_share(held, lambda example: _folded(example.answer) not in known),
        documents=float(bool(documents) if given is None else given),
        in_documents=_share(held, lambda example: _folded(example.answer) in library) if library else 0.0,
        special_tokens=float(any(special & set(sequence.ids[: sequence.prompt]) for sequence in sequences)),
        room=base.window / max(prompts + answers, 1.0),
        parameters=float(base.parameters),
        biases=float(bool(base.anatomy.biases())),
        base_loss=base_loss,
        examples=float(examples),
    )


def texts_of(where: str | None) -> list[str]:
    """The texts of the documents that `--knowledge` or a task names; an index is not read."""
    from tunewise.retrieval.index import FACTS
    from tunewise.retrieval.sources import gather

    if not where or "://" in where or (Path(where) / FACTS).is_file():
        return []
    return [document.text for document in gather(where).documents]


def _some(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    from tunewise.data.task import sample

    return sample(examples, SAMPLED)


def _share(examples: Sequence[Example], holds: Callable[[Example], bool]) -> float:
    return sum(map(holds, examples)) / len(examples) if examples else 0.0


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _balance(task: Task) -> float:
    counts = Counter(example.answer for example in task.train) if task.labels else Counter()
    if len(task.labels) < 2:
        return 1.0
    shares = [count / len(task.train) for count in counts.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(task.labels))
