"""Retrieval-augmented generation: passages of documents before the question, no parameter trained (Ram et al. 2023).

    p(y | d_1, ..., d_k, x)        d_1, ..., d_k: the passages that fit x best

Documents are cut into passages at their structure; those found for a question (by words, by meaning, or both) are put
before it whole, up to the room that question and answer leave, best last. k is chosen by the loss on validation.
Without documents, the training examples are what is searched (Wang et al. 2022, REINA), and the row's label says so.
This is retrieval in the prompt of a frozen model; Lewis et al. 2020 also train the retriever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.core.progress import Progress
from tunewise.core.text import show
from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder
from tunewise.retrieval.embedder import DTYPES, loaded
from tunewise.retrieval.index import FACTS
from tunewise.retrieval.passage import Hit, Passage
from tunewise.retrieval.prompt import holds_answer, with_passages
from tunewise.retrieval.search import Passages, Retriever, Store
from tunewise.techniques.building.text_search import TextSearchAttachment

if TYPE_CHECKING:
    from tunewise.engine.model import Base
    from tunewise.retrieval.embedder import Embedder

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_IN_MEMORY = 50_000  # passages that are searched one by one
_NO_PROMPTS = "rag needs questions, and this task has plain text only"


@dataclass(frozen=True, kw_only=True)
class RAG(Technique):
    """Passages found in documents, put before the question."""

    name = "rag"
    family = "nonparametric"
    summary = "passages found in documents before the question"
    citation = Citation(
        "In-Context Retrieval-Augmented Language Models",
        "Ram et al.",
        2023,
        "https://arxiv.org/abs/2302.00083",
        "equation 3",
    )
    equation = "p(y | d_1, ..., d_k, x), d_i found for x"
    sides = frozenset({"prompt"})
    needs = "documents (--knowledge); without them it searches the training examples"
    trains = False
    seeded = False
    identity_at_start = False

    knowledge: str = setting(
        "", "Folder or file of documents, an index, or qdrant://host:port/name; empty: the task's."
    )
    retrieval: str = setting(
        "auto",
        "How passages are found; auto: hybrid with an embedder, else bm25.",
        choices=("auto", "bm25", "dense", "hybrid"),
    )
    embedder: str = setting("", "sentence-transformers model, id or folder, for dense and hybrid retrieval.")
    embedder_dtype: str = setting("float32", "What the embedder computes in.", choices=DTYPES)
    reranker: str = setting("", "Cross-encoder, id or folder, that orders what was found.")
    k: int = setting(0, "Passages shown; 0 chooses their number on validation.", low=0, high=256)
    chunk_size: int = setting(0, "Tokens of a passage at most; 0: a fifth of the window, 32 to 256.", low=0, high=8192)
    chunk_overlap: float = setting(0.125, "Share of a passage that the next one repeats.", low=0.0, high=0.5)
    floor: float = setting(0.15, "What fits less is not shown; see `tunewise.retrieval.search`.", low=0.0, high=1.0)
    diversity: float = setting(0.0, "How much unlikeness counts against relevance (MMR).", low=0.0, high=1.0)
    order: str = setting("best_last", "Where the best passage stands.", choices=("best_last", "best_first"))
    style: str = setting(
        "auto",
        "Bare text, or numbered quotations with an instruction; auto: quoted for chat models.",
        choices=("auto", "bare", "quoted"),
    )

    def lacks(self, base: Base, task: Task) -> str:
        """Prompts."""
        return "" if any(example.messages for example in task.train) else _NO_PROMPTS

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Nothing is retrieved until `prepare` has seen a task."""
        return _Retrieving(base, self)

    def files_fingerprint(self, task: Task) -> str:
        """Names, sizes and times of the documents' files."""
        from tunewise.retrieval import sources

        return sources.file_stamp(self.knowledge or task.knowledge or "")


class _Retrieving(TextSearchAttachment):
    def __init__(self, base: Base, recipe: RAG) -> None:
        super().__init__(base, recipe)
        self.recipe: RAG = recipe
        self.k, self.room, self.quoted = 0, 0, False
        self.embedder = recipe.embedder
        self.place = ""  # the index that holds the passages; empty: they are held here
        self.own = False  # whether they are training examples
        self.found: dict[str, list[Hit]] = {}

    def prepare(self, study: Study) -> None:
        task = study.task
        if not any(example.messages for example in task.train):
            raise TechniqueError(_NO_PROMPTS)
        where = self.recipe.knowledge or task.knowledge or ""
        encoder = Encoder(self.base, task)
        answers = sorted(len(sequence.ids) - sequence.prompt for sequence in encoder.encode(task.train))
        self.room = min(answers[-1], encoder.limit // 2)
        self._use(self._open(where, task, encoder, study.report), task)
        if self.recipe.k:
            self.k = self.recipe.k
        else:
            self._choose(study)
        shown = [(example, self.passages(example)) for example in task.validation]
        self.facts["right passage found"] = sum(holds_answer(*pair) for pair in shown) / max(len(shown), 1)
        self.facts["passages shown"] = sum(len(own) for _, own in shown) / max(len(shown), 1)

    def prepare_shapes(self, study: Study) -> None:
        """With as many passages as fit, found by words alone: validation may choose fewer."""
        self.recipe, first = replace(self.recipe, retrieval="bm25", reranker=""), itertools.count()
        self.prepare(replace(study, validation_loss=lambda: -float(next(first))))

    def _choose(self, study: Study) -> None:
        losses: dict[int, float] = {}
        shown = -1
        for count in (0, *_COUNTS):
            self.k = count
            fits = sum(len(self.passages(example)) for example in study.task.validation[:64])
            if fits <= shown:
                break  # no more are found, or fit
            shown = fits
            study.report(f"trying {count} passages on validation", len(losses), 0)
            losses[count] = study.validation_loss()
        self.k = min(losses, key=lambda count: (losses[count], count))
        self.facts["validation loss by passages"] = {str(count): value for count, value in losses.items()}

    # Where passages come from.

    def _open(self, where: str, task: Task, encoder: Encoder, report: Progress) -> Store:
        self.own = not where
        if where.startswith("qdrant://") or (Path(where) / FACTS).is_file():
            self.place = where
            return self._reach()
        if self.own:
            texts = ["".join(encoder.text(example)) for example in task.train if example.messages]
            passages = [Passage(f"train/{i}", 0, len(text), text) for i, text in enumerate(dict.fromkeys(texts))]
        else:
            passages = self._cut(where, report)
        if len(passages) > _IN_MEMORY:
            raise TechniqueError(
                f"{where} holds {len(passages):,} passages, too many to search one by one; build an index first "
                f"(tunewise index {where} --out INDEX) and give that"
            )
        embedder = self._embedder()
        if embedder is not None:
            vectors = embedder.encode([passage.indexed for passage in passages], report=report)
            self.vectors = torch.from_numpy(vectors).half()
        return self._held(passages)

    def _held(self, passages: list[Passage]) -> Store:
        return Passages(passages, self.vectors.float().numpy() if self.vectors is not None else None)

    def _reach(self) -> Store:
        from tunewise.retrieval.index import Index

        found = Index.open(self.place)
        self._undo.append(found.close)
        self.embedder = self.recipe.embedder or str(found.facts["embedder"])
        embedder = self._embedder()
        if embedder is not None and embedder.fingerprint != found.facts["fingerprint"]:
            raise SettingError(f"{self.place} was built with {found.facts['embedder']}; leave rag.embedder out")
        return found

    def _cut(self, where: str, report: Progress) -> list[Passage]:
        from tunewise.retrieval import chunks, sources

        recipe, reading = self.recipe, sources.gather(where)
        size = recipe.chunk_size or max(32, min(256, self.base.window // 5))
        overlap = int(size * recipe.chunk_overlap)
        tokenizer = self.base.tokenizer.backend_tokenizer
        self.facts["documents read"] = len(reading.documents)
        if reading.skipped:
            said = "; ".join(f"{show(name)} ({why})" for name, why in reading.skipped[:12])
            self.facts[f"{len(reading.skipped)} files skipped"] = said
        return chunks.split_all(reading.documents, tokenizer, size, overlap, report)

    @property
    def mode(self) -> str:
        """How passages are found."""
        chosen = self.recipe.retrieval
        return chosen if chosen != "auto" else "hybrid" if self.embedder else "bm25"

    def _embedder(self) -> Embedder | None:
        if self.mode == "bm25":
            return None
        if not self.embedder:
            raise SettingError(f"rag.retrieval={self.mode} needs rag.embedder, a sentence-transformers model")
        return loaded(self.embedder, self.recipe.embedder_dtype)

    def _use(self, store: Store, style: Task) -> None:
        recipe = self.recipe
        self.store, self.encoder, self.found = store, Encoder(self.base, style), {}
        self.retriever = Retriever(store, self.mode, self._embedder(), recipe.floor, recipe.diversity, recipe.reranker)
        self.quoted = recipe.style == "quoted" or (recipe.style == "auto" and self.encoder.chat)
        self.label = "rag (training examples as documents)" if self.own else ""

    # What is shown.

    def passages(self, example: Example) -> list[Passage]:
        """Up to k passages that fit whole beside the question and its answer, best first."""
        if not self.k or not example.messages:
            return []
        question = example.prompt
        if question not in self.found:
            self.found[question] = self.retriever.find([question], max(_COUNTS[-1], self.k) + 1)[0]
        limit = self.encoder.limit - self.room
        left, chosen = limit - self._size(example), list[Passage]()
        for hit in self.found[question]:
            if len(chosen) == self.k:
                break
            if self.own and question in hit.passage.text:
                continue  # the question itself, with its answer
            size = self._size(Example((Message("user", hit.passage.indexed),), ""))
            if size <= left:
                chosen.append(hit.passage)
                left -= size
        while chosen and self._size(self._shown(example, chosen)) > limit:
            chosen.pop()  # quotation marks and numbers take room too
        return chosen

    def _size(self, example: Example) -> int:
        return len(self.encoder.prompts([example], 0)[0].ids)

    def render(self, example: Example) -> Example:
        return self._shown(example, self.passages(example))

    def _shown(self, example: Example, passages: Sequence[Passage]) -> Example:
        ordered = passages if self.recipe.order == "best_first" else passages[::-1]
        return with_passages(example, ordered, quoted=self.quoted)

    def citations(self, example: Example) -> list[str]:
        return [passage.id for passage in self.passages(example)]

    # What is stored.

    def stored_rows(self) -> list[dict[str, Any]]:
        head = {"k": self.k, "room": self.room, "index": self.place, "own": self.own}
        held = self.store.passages if isinstance(self.store, Passages) else ()
        return [head, *(asdict(passage) for passage in held)]

    def load_rows(self, rows: list[dict[str, Any]], style: Task) -> None:
        try:
            head, passages = rows[0], [Passage(**row) for row in rows[1:]]
            self.k, self.room, self.place = int(head["k"]), int(head["room"]), str(head["index"])
            self.own = bool(head["own"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the adaptation's passages are not as rag writes them: {error!r}") from error
        if not self.place and self.vectors is not None and len(self.vectors) != len(passages):
            raise ArtifactError(f"the adaptation has {len(self.vectors)} embeddings of {len(passages)} passages")
        self._use(self._reach() if self.place else self._held(passages), style)
