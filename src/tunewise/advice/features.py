"""The features of a model, a task and a budget: what advice says of a task, and the conditions it is compared by.

Evidence is compared by three of them alone (`Conditions`): the size of the model, the number of training examples, and
the kind of task. These are what publications give too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base

SAMPLED = 200  # examples per split that lengths and shares are measured on
Kind = Literal["a choice of labels", "short answers", "long answers", "answers in documents", "new text"]
_LONG = 15.0  # tokens of an answer from which it counts as long
_SOME = 0.2  # share of held-out answers in the documents from which a search can help
_HELD = 0.5  # share of held-out answers in the documents from which these count as holding the answers


@dataclass(frozen=True)
class Conditions:
    """Says under which conditions techniques are compared: parameters of the model, training examples, kind of task."""

    parameters: float
    train: float
    kind: Kind


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
    def kind(self) -> Kind:
        """Return the kind of task.

        The answers are in documents if at least half of the held-out ones stand there word for word. New text has no
        prompts: a domain's text that the model is trained on further.
        """
        if self.documents and self.in_documents >= _HELD:
            return "answers in documents"
        if not self.generation:
            return "a choice of labels"
        if self.prompt_tokens <= 2 and self.answer_tokens >= _LONG:
            return "new text"
        return "long answers" if self.answer_tokens >= _LONG else "short answers"

    @property
    def searchable(self) -> bool:
        """Return whether documents are given that may hold answers: long ones rarely stand there word for word."""
        return bool(self.documents) and (self.in_documents >= _SOME or self.kind == "long answers")

    @property
    def conditions(self) -> Conditions:
        """Return what evidence is compared by."""
        return Conditions(self.parameters, max(self.train, 1.0), self.kind)

    @property
    def epochs(self) -> float:
        """Return how often a trial sees each training example."""
        return self.examples / max(self.train, 1.0)


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


def _sampled(examples: Sequence[Example]) -> Sequence[Example]:
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
