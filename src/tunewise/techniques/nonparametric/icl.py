"""In-context learning: k worked examples before the question, no parameter trained (Brown et al. 2020).

    p(y | x_1, y_1, ..., x_k, y_k, x)

The examples come from the training split: nearest to the question by BM25 (Liu et al. 2022, "What Makes Good
In-Context Examples for GPT-3?"), the nearest last, or the same random ones for every question. They fill the
window up to the room that question and answer need; an example that does not fit whole is left out. k is chosen
by the loss on validation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from tunewise.errors import ArtifactError, TechniqueError
from tunewise.pack import Encoder
from tunewise.seeds import generator as stream
from tunewise.task import Example, Message, Task
from tunewise.technique import Attachment, Citation, Study, Technique, setting

if TYPE_CHECKING:
    from tunewise.model import Base

_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_POOL = 20_000  # training examples that may be shown


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
        "bm25", "How examples are chosen: nearest to the question, or at random.", choices=("bm25", "random")
    )

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Nothing is shown until `learn` has seen a task."""
        return _Shown(base, self)


class _Shown(Attachment):
    def __init__(self, base: Base, recipe: ICL) -> None:
        super().__init__(base, recipe)
        self.recipe: ICL = recipe
        self.pool: list[Example] = []
        self.k = 0

    def learn(self, study: Study) -> None:
        task = study.task
        order = torch.randperm(len(task.train), generator=stream(study.seed, "icl", "pool")).tolist()
        self._take([task.train[index] for index in order[:_POOL] if task.train[index].messages], task)
        if not self.pool:
            raise TechniqueError("icl needs training examples with a prompt, and this task has plain text only")
        if self.recipe.k:
            self.k = self.recipe.k
            return
        losses: dict[int, float] = {}
        fitted = 0.0
        for self.k in _COUNTS:
            fits = [len(self._chosen(example)) for example in task.validation[:64]]
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
        self.k = min(losses, key=lambda count: (losses[count], count))

    def _take(self, pool: list[Example], style: Task) -> None:
        import bm25s

        self.pool, self.encoder = pool, Encoder(self.base, style)
        if not pool:
            return
        sequences = self.encoder.encode(pool)
        self.sizes = [len(sequence.ids) + 2 for sequence in sequences]  # and the blank line between examples
        answers = sorted(len(sequence.ids) - sequence.prompt for sequence in sequences)
        self.room = min(answers[-1], self.encoder.limit // 2)
        if self.recipe.selection == "bm25":
            self.index = bm25s.BM25()
            texts = [example.prompt for example in pool]
            self.index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)

    def render(self, example: Example) -> Example:
        turns: tuple[Message, ...] = ()
        for index in self._chosen(example):
            other = self.pool[index]
            plain = tuple(Message(m.role, m.content) for m in other.messages)
            turns = (*plain, Message("assistant", other.answer), *turns)  # the nearest ends up last
        return Example(turns + example.messages, example.answer, example.references)

    def _chosen(self, example: Example) -> list[int]:
        """Up to k examples that fit whole into the window, best first; never the question itself."""
        if not self.k:
            return []
        budget = self.encoder.limit - self.room - len(self.encoder.encode([Example(example.messages, "")])[0].ids)
        chosen: list[int] = []
        for index in self._nearest(example):
            if self.sizes[index] <= budget and self.pool[index].messages != example.messages:
                chosen.append(index)
                budget -= self.sizes[index]
            if len(chosen) == self.k:
                break
        return chosen

    def _nearest(self, example: Example) -> list[int]:
        """Candidates, best first; more than k, because some may not fit."""
        count = min(len(self.pool), 2 * self.k + 8)
        if self.recipe.selection == "random":
            return list(range(count))  # the pool was shuffled by the seed
        import bm25s

        words = bm25s.tokenize(example.prompt, stopwords=None, show_progress=False, return_ids=False)
        found, _ = self.index.retrieve(words, k=count, show_progress=False)
        return [int(index) for index in found[0]]

    def memory(self) -> list[dict[str, Any]]:
        shown = self.pool[: 2 * self.k + 8] if self.recipe.selection == "random" else self.pool
        return [
            {"k": self.k},
            *({"messages": [asdict(m) for m in e.messages], "answer": e.answer} for e in shown),
        ]

    def recall(self, rows: list[dict[str, Any]], style: Task) -> None:
        try:
            self.k = int(rows[0]["k"])
            pool = [Example(tuple(Message(**m) for m in row["messages"]), str(row["answer"])) for row in rows[1:]]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the adaptation's examples are not as icl writes them: {error!r}") from error
        self._take(pool, style)
