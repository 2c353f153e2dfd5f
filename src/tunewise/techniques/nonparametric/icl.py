"""In-context learning: k worked examples before the question, no parameter trained (Brown et al. 2020).

    p(y | x_1, y_1, ..., x_k, y_k, x)

The examples come from the training split: nearest to the question (Liu et al. 2022), near and diverse, or the same for
every question. They fill the window up to the room that question and answer need; an example that does not fit whole is
left out and counted. k is chosen on validation, and where the settings say so the order, the instruction and a
correction of the model's bias towards some labels (see `tunewise.techniques.building.label_calibration`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tunewise.contract.attachment import Attachment, StoredRow
from tunewise.contract.settings import setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, TechniqueError
from tunewise.core.seeds import generator as stream
from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder
from tunewise.fitting.scoring import label_table
from tunewise.retrieval.embedder import DTYPES, loaded
from tunewise.techniques.building import demonstrations, label_calibration
from tunewise.techniques.building.text_search import TextSearchAttachment

if TYPE_CHECKING:
    from torch import Tensor

    from tunewise.engine.model import Base

_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_POOL = 20_000  # training examples that may be shown
_TRIED = 32  # examples of selection=gain, and validation examples of each try
_ORDERS = 24  # permutations that are probed (Lu et al. 2022)
_FIXED = ("random", "balanced", "gain")
_NO_PROMPTS = "icl needs training examples with a prompt, and this task has plain text only"


@dataclass(frozen=True, kw_only=True)
class ICL(Technique):
    """Worked examples in the prompt."""

    name = "icl"
    family = "nonparametric"
    summary = "worked examples in the prompt"
    citation = Citation(
        "Language Models are Few-Shot Learners",
        "Brown et al.",
        2020,
        "https://arxiv.org/abs/2005.14165",
        "section 2",
    )
    equation = "p(y | x_1, y_1, ..., x_k, y_k, x)"
    sides = frozenset({"prompt"})
    needs = "training examples with a prompt, short enough that some fit the window"
    trains = False
    identity_at_start = False

    k: int = setting(0, "Number of examples shown; 0 chooses it on validation.", low=0, high=1024)
    selection: str = setting(
        "bm25",
        "Nearest to the question by words or embedding; near and diverse (mmr, dpp); or the same for all: random, "
        "balanced labels, or those that alone help most on validation (gain).",
        choices=("bm25", "embedding", "mmr", "dpp", *_FIXED),
    )
    order: str = setting(
        "nearest_last",
        "How they are ordered; validation chooses: by the entropy of the answers where all see the same, else by loss.",
        choices=("nearest_last", "nearest_first", "interleaved", "validation"),
    )
    embedder: str = setting("", "sentence-transformers model, id or folder; dpp without one takes tf-idf.")
    embedder_dtype: str = setting("float32", "What the embedder computes in.", choices=DTYPES)
    calibrate: str = setting(
        "validation",
        "Repair of the bias towards some labels; validation chooses, none included.",
        choices=("none", "validation", *label_calibration.METHODS),
    )
    instruction: str = setting("", "A text before the examples.")
    instructions: tuple[str, ...] = setting((), "Candidates for it, chosen on validation.")

    def lacks(self, base: Base, task: Task) -> str:
        """Say that the task has no prompts, if it has none."""
        return "" if any(example.messages for example in task.train) else _NO_PROMPTS

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without examples; `prepare` chooses them from a task."""
        return _ExamplesInPrompt(base, self)


class _ExamplesInPrompt(TextSearchAttachment):
    def __init__(self, base: Base, recipe: ICL) -> None:
        super().__init__(base, recipe)
        self.recipe: ICL = recipe
        self.pool: list[Example] = []
        self.candidates: dict[str, list[int]] = {}
        self.k, self.order, self.instruction = 0, recipe.order, recipe.instruction
        self.permutation: list[int] = []  # of the chosen examples, best first; empty where `order` decides
        self.bias: Tensor | None = None

    # Choosing on validation.

    def prepare(self, study: Study) -> None:
        task = study.task
        pool = self._pool(study)
        if self.recipe.selection == "gain":
            self._take(self._by_gain(pool, task, study), task)
        self.k = self.recipe.k or self._best_count(study)
        if self.recipe.instructions:
            self._best("instruction", (self.recipe.instruction, *self.recipe.instructions), study)
        if self.recipe.order == "validation":
            if self.recipe.selection in _FIXED and task.kind == "classification":
                self._probe_orders(study)
            else:
                self._best("order", ("nearest_last", "nearest_first", "interleaved"), study)
        if task.kind == "classification" and self.recipe.calibrate != "none" and task.validation:
            self._calibrate(study)
        shown_counts = [len(self._chosen(example)) for example in task.validation] or [0]
        self.facts |= {"examples wanted": float(self.k), "examples shown": sum(shown_counts) / len(shown_counts)}

    def prepare_shapes(self, study: Study) -> None:
        """Take as many examples as fit; the choice on validation may take fewer."""
        self._pool(study)
        first = itertools.count()
        self.k = self.recipe.k or self._best_count(replace(study, validation_loss=lambda: -float(next(first))))

    def _pool(self, study: Study) -> list[Example]:
        """Return the training examples to choose from and make them the pool, in the order in which they are shown."""
        task = study.task
        order = torch.randperm(len(task.train), generator=stream(study.seed, "icl", "pool")).tolist()
        pool = [task.train[index] for index in order[:_POOL] if task.train[index].messages]
        if not pool:
            raise TechniqueError(_NO_PROMPTS)
        if self.recipe.selection == "balanced":
            pool = [pool[place] for place in demonstrations.balanced([example.answer for example in pool])]
        self.order = "nearest_last" if self.recipe.order == "validation" else self.recipe.order
        self._take(pool, task)
        return pool

    def _best_count(self, study: Study) -> int:
        losses: dict[int, float] = {}
        fitted = 0.0
        for self.k in _COUNTS:
            fits = [len(self._chosen(example)) for example in study.task.validation[:64]]
            if sum(fits) / len(fits) <= fitted:
                break
            fitted = sum(fits) / len(fits)
            study.report(f"trying {self.k} examples on validation", len(losses), 0)
            losses[self.k] = study.validation_loss()
        if not losses:
            raise TechniqueError(
                f"no worked example fits beside a question in the window of {self.encoder.limit} tokens; "
                "use a model with a longer context, or shorter examples"
            )
        self.facts["validation loss by examples"] = {str(count): value for count, value in losses.items()}
        return min(losses, key=lambda count: (losses[count], count))

    def _best(self, name: str, choices: Sequence[str], study: Study) -> None:
        """Set an attribute to the choice with the lowest loss on validation."""
        losses = {}
        for choice in study.counted(f"choosing the {name} on validation", choices):
            setattr(self, name, choice)
            losses[choice] = study.validation_loss()
        setattr(self, name, min(losses, key=lambda choice: losses[choice]))
        self.facts[f"validation loss by {name}"] = losses

    def _by_gain(self, pool: list[Example], task: Task, study: Study) -> list[Example]:
        """Order the examples by the loss on validation with that one alone in the prompt, lowest first."""
        losses, self.k = [], 1
        for place in study.counted("trying examples on validation", range(min(_TRIED, len(pool)))):
            self.choose, self.candidates = demonstrations.same([place]), {}
            losses.append(study.validation_loss())
        self.k = 0
        return [pool[place] for place in sorted(range(len(losses)), key=lambda place: losses[place])]

    def _probe_orders(self, study: Study) -> None:
        """Choose the order with the highest global entropy of answers to validation questions (Lu et al. 2022)."""
        task = study.task
        questions, random = task.validation[: 2 * _TRIED], stream(study.seed, "icl", "orders")
        gold = torch.tensor([task.labels.index(example.answer) for example in questions])
        count = len(self._chosen(questions[0]))
        orders = {tuple(range(count))} | {
            tuple(torch.randperm(count, generator=random).tolist()) for _ in range(_ORDERS)
        }
        entropies, accuracies = {}, {}
        for order in study.counted("probing orders", sorted(orders)):
            self.permutation = list(order)
            predicted = self._label_nll(task, questions).argmin(1)
            share = torch.bincount(predicted, minlength=len(task.labels)) / len(questions)
            entropies[order] = float(-(share * share.clamp(min=1e-12).log()).sum())
            accuracies[order] = float((predicted == gold).float().mean())
        self.permutation = list(max(entropies, key=lambda order: entropies[order]))
        self.facts["accuracy over orders"] = {"lowest": min(accuracies.values()), "highest": max(accuracies.values())}

    def _calibrate(self, study: Study) -> None:
        score = lambda examples: self._label_nll(study.task, examples)  # noqa: E731
        method = self.recipe.calibrate
        study.report("calibrating on validation", 0, 0)
        if method == "validation":
            method, self.bias = label_calibration.choose(study.task, score, study.seed)
        else:
            self.bias = label_calibration.bias(method, study.task, score, study.seed)
        self.facts["calibration"] = method

    def _label_nll(self, task: Task, examples: Sequence[Example]) -> Tensor:
        return torch.tensor(label_table(self, task, [self.render(example) for example in examples]).nll)

    def label_bias(self) -> Tensor | None:
        return self.bias

    # Showing.

    def _take(self, pool: list[Example], style: Task) -> None:
        self.pool, self.encoder, self.candidates = pool, Encoder(self.base, style), {}
        if not pool:
            return
        sequences = self.encoder.encode(pool)
        self.sizes = [len(sequence.ids) + 2 for sequence in sequences]  # two more for the blank line between examples
        answers = sorted(len(sequence.ids) - sequence.prompt for sequence in sequences)
        self.room = min(answers[-1], self.encoder.limit // 2)
        self.choose = self._chooser()

    def _chooser(self) -> demonstrations.Chooser:
        texts, selection = [example.prompt for example in self.pool], self.recipe.selection
        if selection in _FIXED:
            return demonstrations.same(range(len(texts)))
        if selection in ("bm25", "mmr"):
            return demonstrations.by_words(texts, 0.5 if selection == "mmr" else 0.0)
        choose = demonstrations.by_embedding if selection == "embedding" else demonstrations.by_volume
        if not self.recipe.embedder:
            if selection == "embedding":
                raise TechniqueError("icl.selection=embedding needs icl.embedder, a sentence-transformers model")
            return choose(*demonstrations.tfidf(texts))
        embedder = loaded(self.recipe.embedder, self.recipe.embedder_dtype)
        if self.vectors is None:
            self.vectors = torch.from_numpy(embedder.encode(texts)).half()
        return choose(self.vectors.float().numpy(), lambda queries: np.asarray(embedder.encode_queries(list(queries))))

    def render(self, example: Example) -> Example:
        chosen = [self.pool[index] for index in self._chosen(example)]
        if sorted(self.permutation) == list(range(len(chosen))):
            ordered = [chosen[place] for place in self.permutation]
        else:
            ordered = demonstrations.arranged(chosen, self.order)
        turns = itertools.chain.from_iterable(
            (*(Message(m.role, m.content) for m in other.messages), Message("assistant", other.answer))
            for other in ordered
        )
        system = (Message("system", self.instruction),) if self.instruction else ()
        return Example((*system, *turns, *example.messages), example.answer, example.references)

    def _chosen(self, example: Example) -> list[int]:
        """Return up to k examples that fit whole into the window, best first; never the question itself."""
        if not self.k:
            return []
        system = (Message("system", self.instruction),) if self.instruction else ()
        question = Example((*system, *example.messages), "")
        budget = self.encoder.limit - self.room - len(self.encoder.encode([question])[0].ids)
        chosen: list[int] = []
        for index in self._candidates(example.prompt, min(len(self.pool), 2 * self.k + 8)):
            if self.sizes[index] <= budget and self.pool[index].messages != example.messages:
                chosen.append(index)
                budget -= self.sizes[index]
            if len(chosen) == self.k:
                break
        return chosen

    def _candidates(self, question: str, count: int) -> list[int]:
        """Return the chooser's candidates, best first; caches the longest list, which begins with all shorter."""
        if len(self.candidates.get(question, ())) < count:
            self.candidates[question] = self.choose(question, count)
        return self.candidates[question][:count]

    # Storing.

    def stored_rows(self) -> list[StoredRow]:
        examples = self.pool[: 2 * self.k + 8] if self.recipe.selection in _FIXED else self.pool
        choices = {"k": self.k, "order": self.order, "permutation": self.permutation, "instruction": self.instruction}
        return [
            {**choices, "bias": self.bias.tolist() if self.bias is not None else None},
            *({"messages": [asdict(m) for m in e.messages], "answer": e.answer} for e in examples),
        ]

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        try:
            choices = rows[0]
            self.k, self.order, self.instruction = int(choices["k"]), str(choices["order"]), str(choices["instruction"])
            self.permutation = [int(place) for place in choices["permutation"]]
            self.bias = None if choices["bias"] is None else torch.tensor(choices["bias"], dtype=torch.float64)
            if self.bias is not None and self.bias.shape != (len(style.labels),):
                raise ValueError("its bias is not one number for each label")
            pool = [Example(tuple(Message(**m) for m in row["messages"]), str(row["answer"])) for row in rows[1:]]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the adaptation's examples are not as icl writes them: {error!r}") from error
        if self.vectors is not None and len(self.vectors) != len(pool):
            raise ArtifactError(f"the adaptation has {len(self.vectors)} embeddings of {len(pool)} examples")
        self._take(pool, style)
