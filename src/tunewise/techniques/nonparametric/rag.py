"""Retrieval-augmented generation: passages of documents before the question, no parameter trained (Ram et al. 2023).

    p(y | d_1, ..., d_k, x)        d_1, ..., d_k: the passages that fit x best

Documents are cut into passages at their structure; those found for a question (by words, by meaning, or both) are put
before it whole, up to the room that question and answer leave, best last. k is chosen by the loss on validation, from
none to many: the smallest that is as good as the best (`tunewise.techniques.building.count_choice`), within an
allowance of tokens that a training of the same budget is worth.
Without documents, the training examples are what is searched; for a chat model they are plain text, as what is searched
for is, and never the markup of its template. What a chat model is asked to do with the passages follows from the task,
or is the setting `request`; where nothing is found, the question stands alone.
Differs from the paper without documents: the training examples are searched (Wang et al. 2022, REINA), and the row's
label says so.
This is retrieval in the prompt of a frozen model; Lewis et al. 2020 also train the retriever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from tunewise.contract.attachment import Attachment, CitedText, StoredRow
from tunewise.contract.places import not_followed
from tunewise.contract.settings import setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.core.json_record import Check, Count, JsonRecord, Text
from tunewise.core.progress import Progress
from tunewise.core.text import show
from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder
from tunewise.engine.generation import longest_answer
from tunewise.retrieval.embedder import DTYPES, loaded
from tunewise.retrieval.index import FACTS
from tunewise.retrieval.passage import Hit, Passage
from tunewise.retrieval.prompt import (
    BARE,
    FROM_DOCUMENTS,
    check_request,
    default_request,
    example_text,
    holds_answer,
    with_passages,
)
from tunewise.retrieval.search import Passages, Retriever, Store
from tunewise.techniques.building import count_choice
from tunewise.techniques.building.text_search import TextSearchAttachment

if TYPE_CHECKING:
    from tunewise.engine.model import Base
    from tunewise.retrieval.embedder import Embedder

_COUNTS = (0, 1, 2, 4, 8, 16, 32)
_MOST_PASSAGES = 256  # that are shown
_Shown = Annotated[int, Check(lambda value: 0 <= value <= _MOST_PASSAGES, f"from 0 to {_MOST_PASSAGES}")]
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
    place_settings = frozenset({"knowledge", "embedder", "reranker"})
    needs = "documents (--knowledge); without them it searches the training examples"
    needs_whole_rows = ""
    trains = False
    chooses = True
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
    k: int = setting(0, "Passages shown; 0 chooses their number on validation.", low=0, high=_MOST_PASSAGES)
    chunk_size: int = setting(0, "Tokens of a passage at most; 0: a fifth of the window, 32 to 256.", low=0, high=8192)
    chunk_overlap: float = setting(0.125, "Share of a passage that the next one repeats.", low=0.0, high=0.5)
    floor: float = setting(0.15, "What fits less is not shown; see `tunewise.retrieval.search`.", low=0.0, high=1.0)
    diversity: float = setting(0.0, "How much unlikeness counts against relevance (MMR).", low=0.0, high=1.0)
    order: str = setting("best_last", "Where the best passage stands.", choices=("best_last", "best_first"))
    style: str = setting(
        "auto",
        "Bare text, or numbered quotations; auto: documents are quoted for chat models.",
        choices=("auto", "bare", "quoted"),
    )
    request: str = setting(
        "",
        "Text around {passages} and {question}; empty: what fits the task, and for bare style nothing.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.request:
            check_request(self.request, "rag.request")

    def lacks(self, base: Base, task: Task) -> str:
        """Say that the task has no prompts, if it has none."""
        return "" if any(example.messages for example in task.train) else _NO_PROMPTS

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without passages; `prepare` reads the documents."""
        return _Retrieving(base, self)

    def places_to_answer(self) -> dict[str, str]:
        """Return embedder and reranker; the documents are used only where an index holds them."""
        used = {"embedder": "" if self.retrieval == "bm25" else self.embedder, "reranker": self.reranker}
        return {name: value for name, value in used.items() if value}

    def files_fingerprint(self, task: Task) -> str:
        """Return a fingerprint of names, sizes and times of the documents' files."""
        from tunewise.retrieval import sources

        return sources.file_stamp(self.knowledge or task.knowledge or "")


class _Retrieving(TextSearchAttachment):
    def __init__(self, base: Base, recipe: RAG) -> None:
        super().__init__(base, recipe)
        self.recipe: RAG = recipe
        self.k, self.room, self.quoted = 0, 0, False
        self.place = ""  # the index that holds the passages; empty: they are in memory
        self.searches_training = False  # whether the passages are training examples
        self.request = BARE
        self.hits: dict[str, list[Hit]] = {}
        self._sizes: dict[str, int] = {}  # tokens by text of a passage

    def prepare(self, study: Study) -> None:
        self._prepare(study)
        task = study.task
        validation_passages = [(example, self.passages(example)) for example in task.validation]
        count = max(len(validation_passages), 1)
        self.facts["right passage found"] = sum(holds_answer(*pair) for pair in validation_passages) / count
        self.facts["passages shown"] = sum(len(passages) for _, passages in validation_passages) / count
        self.describe_choices(study)

    def _prepare(self, study: Study) -> None:
        task = study.task
        if not any(example.messages for example in task.train):
            raise TechniqueError(_NO_PROMPTS)
        where = self.recipe.knowledge or task.knowledge or ""
        encoder = Encoder(self.base, task)
        self.room = min(longest_answer(encoder, task.train), encoder.limit // 2)
        self._use(self._open(where, task, encoder, study.report), task)
        style, chat = self.recipe.style, encoder.chat
        self.quoted = style == "quoted" or (style == "auto" and chat and not self.searches_training)
        says_what_to_do = style == "quoted" or (style == "auto" and chat)
        default = default_request(task, training_examples=self.searches_training) if says_what_to_do else BARE
        self.request = self.recipe.request or default
        if self.recipe.k:
            self.k = self.recipe.k
        else:
            self._choose(study)

    def prepare_shapes(self, study: Study) -> None:
        """Take as many passages as the allowance lets be tried, found by words; validation may take fewer."""
        self.recipe = replace(self.recipe, retrieval="bm25", reranker="")
        self._prepare(count_choice.unread(study))

    def _choose(self, study: Study) -> None:
        choice = count_choice.from_few(self._counts_that_differ(study), study, "passages")
        self.k = self.take_count(choice, "passages") if choice is not None else 0

    def _counts_that_differ(self, study: Study) -> Iterator[int]:
        """Set k to one number after the other, as long as more passages match and fit than before, and yield it."""
        previous = -1
        for self.k in _COUNTS:
            passage_count = sum(len(self.passages(example)) for example in count_choice.questions_of(study))
            if passage_count <= previous:
                return
            previous = passage_count
            yield self.k

    # Opening the documents.

    def _open(self, where: str, task: Task, encoder: Encoder, report: Progress) -> Store:
        self.searches_training = not where
        if where.startswith("qdrant://") or (Path(where) / FACTS).is_file():
            return self._reach(where)
        if self.searches_training:
            prompted = [example for example in task.train if example.messages]
            if encoder.chat:
                texts = [example_text(example, task) for example in prompted]
            else:
                texts = ["".join(encoder.text(example)) for example in prompted]
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

    def _reach(self, place: str) -> Store:
        """Open an index that the user has named, and check that its embedder is the one that was given."""
        from tunewise.retrieval.index import Index

        index = Index.open(place)
        self.place = place
        self._undo.append(index.close)
        if not self.recipe.embedder and self.recipe.retrieval != "bm25":
            raise index.needs_embedder("rag.retrieval=bm25")
        embedder = self._embedder()
        if embedder is not None:
            index.check_embedder(embedder.fingerprint)
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
        return retrieval if retrieval != "auto" else "hybrid" if self.recipe.embedder else "bm25"

    def _embedder(self) -> Embedder | None:
        if self.mode == "bm25":
            return None
        if not self.recipe.embedder:
            raise SettingError(f"rag.retrieval={self.mode} needs rag.embedder, a sentence-transformers model")
        return loaded(self.recipe.embedder, self.recipe.embedder_dtype)

    def _use(self, store: Store, style: Task) -> None:
        recipe = self.recipe
        self.store, self.encoder, self.hits, self._sizes = store, Encoder(self.base, style), {}, {}
        self.retriever = Retriever(store, self.mode, self._embedder(), recipe.floor, recipe.diversity, recipe.reranker)
        self.label = "rag (training examples as documents)" if self.searches_training else ""

    # Showing.

    def passages(self, example: Example) -> list[Passage]:
        """Return up to k passages that fit whole beside the question and its answer, best first."""
        question = example.prompt
        if not self.k or not question:
            return []
        if question not in self.hits:
            self.hits[question] = self.retriever.find([question], max(_COUNTS[-1], self.k) + 1)[0]
        limit = self.encoder.limit - self.room
        remaining, chosen = limit - self._size(example), list[Passage]()
        for hit in self.hits[question]:
            if len(chosen) == self.k:
                break
            if self.searches_training and question in hit.passage.text:
                continue  # the question itself, with its answer
            size = self._passage_size(hit.passage.indexed)
            if size <= remaining:
                chosen.append(hit.passage)
                remaining -= size
        while chosen and self._size(self._shown(example, chosen)) > limit:
            chosen.pop()  # quotation marks and numbers take room too
        return chosen

    def _passage_size(self, text: str) -> int:
        if text not in self._sizes:
            self._sizes[text] = self._size(Example((Message("user", text),), ""))
        return self._sizes[text]

    def _size(self, example: Example) -> int:
        return len(self.encoder.prompts([example], 0)[0].ids)

    def render(self, example: Example) -> Example:
        return self._shown(example, self.passages(example))

    def _shown(self, example: Example, passages: Sequence[Passage]) -> Example:
        ordered = passages if self.recipe.order == "best_first" else passages[::-1]
        return with_passages(example, ordered, quoted=self.quoted, request=self.request)

    def citations(self, example: Example) -> list[CitedText]:
        return [CitedText(passage.id, passage.text) for passage in self.passages(example)]

    # Storing.

    def stored_rows(self) -> list[StoredRow]:
        choices = _Choices(
            k=self.k,
            room=self.room,
            index=self.place,
            own=self.searches_training,
            request=self.request,
            quoted=self.quoted,
            embedder=self._embedder_fingerprint(),
        )
        passages = self.store.passages if isinstance(self.store, Passages) else ()
        return [choices.to_json(), *(asdict(passage) for passage in passages)]

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        unlike = "the adaptation's passages are not as rag writes them"
        choices = _Choices.from_json(rows[0] if rows else None, "rows.jsonl line 1", unlike)
        passages = [
            _PassageRow.from_json(row, f"rows.jsonl line {number}", unlike).passage
            for number, row in enumerate(rows[1:], 2)
        ]
        self.k, self.room, self.searches_training = choices.k, choices.room, choices.own
        self.quoted, self.request = bool(choices.quoted), choices.request or ""
        if choices.index and not self.recipe.knowledge:
            raise not_followed("index", choices.index, "--knowledge")
        if not choices.index:
            self._check_vectors(len(passages), choices.embedder)
        self._use(self._reach(self.recipe.knowledge) if choices.index else self._held(passages), style)
        if not self.request:  # the adaptation is from before requests were stored, when there was one for all tasks
            self.quoted = self.recipe.style == "quoted" or (self.recipe.style == "auto" and self.encoder.chat)
            self.request = FROM_DOCUMENTS if self.quoted else BARE

    def _embedder_fingerprint(self) -> str | None:
        embedder = self._embedder()
        return embedder.fingerprint if embedder is not None else None

    def _check_vectors(self, passages: int, fingerprint: str | None) -> None:
        """Refuse embeddings that are not one for each passage, or not of the embedder that is given.

        `fingerprint` is that of the embedder that made them; adaptations from before it was stored have none.
        """
        if self.vectors is not None and len(self.vectors) != passages:
            raise ArtifactError(f"the adaptation has {len(self.vectors)} embeddings of {passages} passages")
        embedder = self._embedder()
        if embedder is None:
            return
        size = self.vectors.shape[1] if self.vectors is not None else 0
        if size != embedder.size or fingerprint not in (None, embedder.fingerprint):
            raise SettingError(
                f"the embedder {show(embedder.name)} is not the one that embedded the adaptation's passages (vectors "
                f"of {embedder.size} and {size} numbers, fingerprints {embedder.fingerprint} and {fingerprint}); give "
                "that one with --embedder"
            )


@dataclass(frozen=True, kw_only=True)
class _Choices(JsonRecord):
    """What `prepare` chose; the first row of an adaptation.

    `index` is the place of the passages; where it is empty, they are the rows that follow. `embedder` is the
    fingerprint of the one that is used.
    """

    k: _Shown
    room: Count
    index: str
    own: bool
    request: Text | None = None
    quoted: bool | None = None
    embedder: str | None = None


@dataclass(frozen=True, kw_only=True)
class _PassageRow(JsonRecord):
    """A passage; the row of an adaptation that holds its documents itself."""

    document: Text
    start: Count
    end: Count
    text: Text
    heading: Text = ""

    @property
    def passage(self) -> Passage:
        """The passage that is searched."""
        return Passage(self.document, self.start, self.end, self.text, self.heading)
