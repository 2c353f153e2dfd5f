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
from typing import TYPE_CHECKING

import torch

from tunewise.contract.attachment import Attachment, StoredRow
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
        """Say that the task has no prompts, if it has none."""
        return "" if any(example.messages for example in task.train) else _NO_PROMPTS

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without passages; `prepare` reads the documents."""
        return _Retrieving(base, self)

    def files_fingerprint(self, task: Task) -> str:
        """Return a fingerprint of names, sizes and times of the documents' files."""
        from tunewise.retrieval import sources

        return sources.file_stamp(self.knowledge or task.knowledge or "")


class _Retrieving(TextSearchAttachment):
    def __init__(self, base: Base, recipe: RAG) -> None:
        super().__init__(base, recipe)
        self.recipe: RAG = recipe
        self.k, self.room, self.quoted = 0, 0, False
        self.embedder = recipe.embedder
        self.place = ""  # the index that holds the passages; empty: they are in memory
        self.searches_training = False  # whether the passages are training examples
        self.hits: dict[str, list[Hit]] = {}

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
        validation_passages = [(example, self.passages(example)) for example in task.validation]
        count = max(len(validation_passages), 1)
        self.facts["right passage found"] = sum(holds_answer(*pair) for pair in validation_passages) / count
        self.facts["passages shown"] = sum(len(passages) for _, passages in validation_passages) / count

    def prepare_shapes(self, study: Study) -> None:
        """Take as many passages as fit, found by words alone; the choice on validation may take fewer."""
        self.recipe, first = replace(self.recipe, retrieval="bm25", reranker=""), itertools.count()
        self.prepare(replace(study, validation_loss=lambda: -float(next(first))))

    def _choose(self, study: Study) -> None:
        losses: dict[int, float] = {}
        previous = -1
        for count in (0, *_COUNTS):
            self.k = count
            passage_count = sum(len(self.passages(example)) for example in study.task.validation[:64])
            if passage_count <= previous:
                break  # no more passages match, or fit
            previous = passage_count
            study.report(f"trying {count} passages on validation", len(losses), 0)
            losses[count] = study.validation_loss()
        self.k = min(losses, key=lambda count: (losses[count], count))
        self.facts["validation loss by passages"] = {str(count): value for count, value in losses.items()}

    # Opening the documents.

    def _open(self, where: str, task: Task, encoder: Encoder, report: Progress) -> Store:
        self.searches_training = not where
        if where.startswith("qdrant://") or (Path(where) / FACTS).is_file():
            self.place = where
            return self._reach()
        if self.searches_training:
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

        index = Index.open(self.place)
        self._undo.append(index.close)
        self.embedder = self.recipe.embedder or str(index.facts["embedder"])
        embedder = self._embedder()
        if embedder is not None and embedder.fingerprint != index.facts["fingerprint"]:
            raise SettingError(f"{self.place} was built with {index.facts['embedder']}; leave rag.embedder out")
        return index

    def _cut(self, where: str, report: Progress) -> list[Passage]:
        from tunewise.retrieval import chunks, sources

        recipe, gathered = self.recipe, sources.gather(where)
        size = recipe.chunk_size or max(32, min(256, self.base.window // 5))
        overlap = int(size * recipe.chunk_overlap)
        tokenizer = self.base.tokenizer.backend_tokenizer
        self.facts["documents read"] = len(gathered.documents)
        if gathered.skipped:
            listing = "; ".join(f"{show(name)} ({why})" for name, why in gathered.skipped[:12])
            self.facts[f"{len(gathered.skipped)} files skipped"] = listing
        return chunks.split_all(gathered.documents, tokenizer, size, overlap, report)

    @property
    def mode(self) -> str:
        """How passages are found: bm25, dense or hybrid."""
        retrieval = self.recipe.retrieval
        return retrieval if retrieval != "auto" else "hybrid" if self.embedder else "bm25"

    def _embedder(self) -> Embedder | None:
        if self.mode == "bm25":
            return None
        if not self.embedder:
            raise SettingError(f"rag.retrieval={self.mode} needs rag.embedder, a sentence-transformers model")
        return loaded(self.embedder, self.recipe.embedder_dtype)

    def _use(self, store: Store, style: Task) -> None:
        recipe = self.recipe
        self.store, self.encoder, self.hits = store, Encoder(self.base, style), {}
        self.retriever = Retriever(store, self.mode, self._embedder(), recipe.floor, recipe.diversity, recipe.reranker)
        self.quoted = recipe.style == "quoted" or (recipe.style == "auto" and self.encoder.chat)
        self.label = "rag (training examples as documents)" if self.searches_training else ""

    # Showing.

    def passages(self, example: Example) -> list[Passage]:
        """Return up to k passages that fit whole beside the question and its answer, best first."""
        if not self.k or not example.messages:
            return []
        question = example.prompt
        if question not in self.hits:
            self.hits[question] = self.retriever.find([question], max(_COUNTS[-1], self.k) + 1)[0]
        limit = self.encoder.limit - self.room
        remaining, chosen = limit - self._size(example), list[Passage]()
        for hit in self.hits[question]:
            if len(chosen) == self.k:
                break
            if self.searches_training and question in hit.passage.text:
                continue  # the question itself, with its answer
            size = self._size(Example((Message("user", hit.passage.indexed),), ""))
            if size <= remaining:
                chosen.append(hit.passage)
                remaining -= size
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

    # Storing.

    def stored_rows(self) -> list[StoredRow]:
        choices = {"k": self.k, "room": self.room, "index": self.place, "own": self.searches_training}
        passages = self.store.passages if isinstance(self.store, Passages) else ()
        return [choices, *(asdict(passage) for passage in passages)]

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        try:
            choices, passages = rows[0], [Passage(**row) for row in rows[1:]]
            self.k, self.room, self.place = int(choices["k"]), int(choices["room"]), str(choices["index"])
            self.searches_training = bool(choices["own"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the adaptation's passages are not as rag writes them: {error!r}") from error
        if not self.place and self.vectors is not None and len(self.vectors) != len(passages):
            raise ArtifactError(f"the adaptation has {len(self.vectors)} embeddings of {len(passages)} passages")
        self._use(self._reach() if self.place else self._held(passages), style)
