"""In-context learning: k worked examples before the question, no parameter trained (Brown et al. 2020).

    p(y | x_1, y_1, ..., x_k, y_k, x)

The examples come from the training split: nearest to the question (Liu et al. 2022), near and diverse, or the same for
every question. They fill the window up to the room that question and answer need; an example that does not fit whole is
left out and counted. To a chat model they are turns of one conversation with one system message at its start, the
instruction and the question's own (see `tunewise.techniques.building.demonstration_turns`); there, training examples
that call tools or have fields besides their text are not shown, and counted.
k is chosen on validation, and where the settings say so the order, the instruction and a correction of the model's bias
towards some labels (see `tunewise.techniques.building.label_calibration`). k goes from few to many, and the smallest
that is as good as the best is taken (`tunewise.techniques.building.count_choice`). All choices together read no more
tokens than a training of the same budget is worth; each gets its share of them, and what a share does not cover is left
untried and named in the findings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from tunewise.contract.attachment import Attachment, StoredRow
from tunewise.contract.settings import setting
from tunewise.contract.study import Allowance, AllowanceUsedUpError, Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, TechniqueError
from tunewise.core.json_record import Check, Count, JsonRecord, Text
from tunewise.core.seeds import generator as stream
from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder
from tunewise.engine.generation import longest_answer
from tunewise.fitting.scoring import label_table
from tunewise.retrieval.embedder import DTYPES, loaded
from tunewise.techniques.building import count_choice, demonstration_turns, demonstrations, label_calibration
from tunewise.techniques.building.text_search import TextSearchAttachment

if TYPE_CHECKING:
    from torch import Tensor

    from tunewise.engine.model import Base

_ORDERED = ("nearest_last", "nearest_first", "interleaved", "validation")
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MOST_SHOWN = 1024
_Shown = Annotated[int, Check(lambda value: 0 <= value <= _MOST_SHOWN, f"from 0 to {_MOST_SHOWN}")]
_Order = Annotated[str, Check(lambda value: value in _ORDERED, f"one of {', '.join(_ORDERED)}")]
_POOL = 20_000  # training examples that may be shown
_TRIED = 32  # examples of selection=gain
_ORDERS = 24  # permutations that are probed (Lu et al. 2022)
_SHARES = {"gain": 2, "count": 2, "instruction": 1, "order": 1, "calibration": 1}  # of the allowance, as weights
_FIXED = ("random", "balanced", "gain")
_BY_EMBEDDING = ("embedding", "dpp")
_BLANK_LINE = 2  # tokens between examples without a chat template
_NO_PROMPTS = "icl needs training examples with a prompt, and this task has plain text only"
_NO_TURNS = (
    "icl shows a chat model training examples that are turns of user and assistant, and all examples of this task call "
    "tools, have further fields or begin with the assistant"
)


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
    place_settings = frozenset({"embedder"})
    needs = "training examples with a prompt, short enough that some fit the window"
    needs_whole_weights = ""
    needs_whole_rows = ""
    trains = False
    chooses = True
    identity_at_start = False

    k: int = setting(
        0, "Number of examples shown; 0 chooses it on validation, from few to many.", low=0, high=_MOST_SHOWN
    )
    selection: str = setting(
        "bm25",
        "Nearest to the question by words or embedding; near and diverse (mmr, dpp); or the same for all: random, "
        "balanced labels, or those that alone help most on validation (gain).",
        choices=("bm25", "embedding", "mmr", "dpp", *_FIXED),
    )
    order: str = setting(
        "nearest_last",
        "How they are ordered; validation chooses: by the entropy of the answers where all see the same, else by loss.",
        choices=_ORDERED,
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
        """Say that no training example can be shown, if none can."""
        prompted = [example for example in task.train if example.messages]
        if not prompted:
            return _NO_PROMPTS
        shows_turns = bool(base.tokenizer.chat_template)
        can_be_shown = not shows_turns or any(map(demonstration_turns.fits_conversation, prompted))
        return "" if can_be_shown else _NO_TURNS

    def places_to_answer(self) -> dict[str, str]:
        """Return the embedder, where examples are chosen by it."""
        return {"embedder": self.embedder} if self.embedder and self.selection in _BY_EMBEDDING else {}

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Attach without examples; `prepare` chooses them from a task."""
        return _ExamplesInPrompt(base, self)


class _ExamplesInPrompt(TextSearchAttachment):
    def __init__(self, base: Base, recipe: ICL) -> None:
        super().__init__(base, recipe)
        self.recipe: ICL = recipe
        self.pool: list[Example] = []
        self.candidates: dict[str, list[int]] = {}
        self.sizes: dict[
            int, int
        ] = {}  # tokens that examples of the pool add to a prompt, as far as these were measured
        self.question_sizes: dict[tuple[Message, ...], int] = {}  # tokens of a question alone
        self.k, self.order, self.instruction = 0, recipe.order, recipe.instruction
        self.permutation: list[int] = []  # of the chosen examples, best first; empty where `order` decides
        self.bias: Tensor | None = None
        self.shows_turns = bool(base.tokenizer.chat_template)

    # Choosing on validation.

    def prepare(self, study: Study) -> None:
        self._pool(study)
        self.k = self.recipe.k
        for stage, choose in self._stages(study.task).items():
            choose(replace(study, allowance=self._share(stage, study)))
        calibrates = study.task.kind == "classification" and bool(study.task.validation)
        if calibrates and self.recipe.calibrate in label_calibration.METHODS:
            score = self._label_scorer(study.task, study, study.allowance.count)
            self.bias = label_calibration.bias(self.recipe.calibrate, study.task, score, study.seed)
            self.facts["calibration"] = self.recipe.calibrate
        shown_counts = [len(self._chosen(example)) for example in study.task.validation] or [0]
        self.facts |= {"examples wanted": float(self.k), "examples shown": sum(shown_counts) / len(shown_counts)}
        self.describe_choices(study)

    def prepare_shapes(self, study: Study) -> None:
        """Take as many examples as the allowance lets be tried; the choice on validation may take fewer."""
        self._pool(study)
        self.k = self.recipe.k
        stages = self._stages(study.task)
        if "gain" in stages:
            study.allowance.count(self._share("gain", study).left)
        if "count" in stages:
            self._choose_count(count_choice.unread(replace(study, allowance=self._share("count", study))))

    def _stages(self, task: Task) -> dict[str, Callable[[Study], None]]:
        """Return the choices that the settings leave to validation, by name, in their order."""
        recipe = self.recipe
        stages: dict[str, Callable[[Study], None]] = {}
        if recipe.selection == "gain":
            stages["gain"] = self._order_by_gain
        if not recipe.k:
            stages["count"] = self._choose_count
        if recipe.instructions:
            texts = (recipe.instruction, *recipe.instructions)
            stages["instruction"] = lambda study: self._best("instruction", texts, study)
        if recipe.order == "validation" and recipe.selection in _FIXED and task.kind == "classification":
            stages["order"] = self._probe_orders
        elif recipe.order == "validation":
            orders = ("nearest_last", "nearest_first", "interleaved")
            stages["order"] = lambda study: self._best("order", orders, study)
        if task.kind == "classification" and recipe.calibrate == "validation" and task.validation:
            stages["calibration"] = self._calibrate
        return stages

    def _share(self, stage: str, study: Study) -> Allowance:
        """Return the part of the allowance that a choice may spend; what it leaves over goes to those after it."""
        stages = list(self._stages(study.task))
        still = sum(_SHARES[name] for name in stages[stages.index(stage) :])
        return study.allowance.part(_SHARES[stage] / still)

    def _pool(self, study: Study) -> None:
        """Make the training examples the pool to choose from, in the order in which they are shown."""
        task = study.task
        order = torch.randperm(len(task.train), generator=stream(study.seed, "icl", "pool")).tolist()
        prompted = [task.train[index] for index in order[:_POOL] if task.train[index].messages]
        if not prompted:
            raise TechniqueError(_NO_PROMPTS)
        pool = list(filter(demonstration_turns.fits_conversation, prompted)) if self.shows_turns else prompted
        if not pool:
            raise TechniqueError(_NO_TURNS)
        if len(pool) < len(prompted):
            self.facts["training examples that cannot be shown as turns"] = float(len(prompted) - len(pool))
        if self.recipe.selection == "balanced":
            pool = [pool[place] for place in demonstrations.balanced([example.answer for example in pool])]
        self.order = "nearest_last" if self.recipe.order == "validation" else self.recipe.order
        self._take(pool, task)

    def _choose_count(self, study: Study) -> None:
        choice = count_choice.from_few(self._counts_that_fit(study), study, "examples")
        if choice is None:
            raise TechniqueError(
                f"no worked example fits beside a question in the window of {self.encoder.limit} tokens; "
                "use a model with a longer context, or shorter examples"
            )
        self.k = self.take_count(choice, "examples")

    def _counts_that_fit(self, study: Study) -> Iterator[int]:
        """Set k to one number after the other, as long as more examples are shown than before, and yield it."""
        fitted = 0
        for self.k in _COUNTS:
            fits = sum(len(self._chosen(example)) for example in count_choice.questions_of(study))
            if fits <= fitted:
                return
            fitted = fits
            yield self.k

    def _best(self, name: str, choices: Sequence[str], study: Study) -> None:
        """Set an attribute to the choice with the lowest loss on validation, the first where none could be tried."""
        losses = {}
        for choice in study.counted(f"choosing the {name} on validation", choices):
            setattr(self, name, choice)
            try:
                losses[choice] = fmean(study.losses(count_choice.questions_of(study)))
            except AllowanceUsedUpError:
                self.untried.append(f"{len(choices) - len(losses)} of {len(choices)} {name}s: {_uncovered(study)}")
                break
        setattr(self, name, min(losses, key=lambda choice: losses[choice]) if losses else choices[0])
        self.facts[f"validation loss by {name}"] = losses

    def _order_by_gain(self, study: Study) -> None:
        """Make the examples the pool that were tried alone in the prompt, those with the lowest loss first."""
        pool, losses, wanted = self.pool, list[float](), min(_TRIED, len(self.pool))
        self.k = 1
        for place in study.counted("trying examples on validation", range(wanted)):
            self.choose, self.candidates = demonstrations.same([place]), {}
            try:
                losses.append(fmean(study.losses(count_choice.questions_of(study))))
            except AllowanceUsedUpError:
                self.untried.append(f"{wanted - len(losses)} of {wanted} examples alone: {_uncovered(study)}")
                break
        self.k = self.recipe.k
        best_first = sorted(range(len(losses)), key=lambda place: losses[place])
        self._take([pool[place] for place in best_first] or pool, study.task)

    def _probe_orders(self, study: Study) -> None:
        """Choose the order with the highest global entropy of answers to validation questions (Lu et al. 2022)."""
        task = study.task
        questions, random = count_choice.questions_of(study), stream(study.seed, "icl", "orders")
        gold = torch.tensor([task.labels.index(example.answer) for example in questions])
        count = len(self._chosen(questions[0]))
        orders: set[tuple[int, ...]] = {tuple(range(count))}
        orders |= {tuple(torch.randperm(count, generator=random).tolist()) for _ in range(_ORDERS)}
        score = self._label_scorer(task, study, study.allowance.spend)
        entropies, accuracies = dict[tuple[int, ...], float](), list[float]()
        for order in study.counted("probing orders", sorted(orders)):
            self.permutation = list(order)
            try:
                predicted = score(questions).argmin(1)
            except AllowanceUsedUpError:
                self.untried.append(f"{len(orders) - len(entropies)} of {len(orders)} orders: {_uncovered(study)}")
                break
            share = torch.bincount(predicted, minlength=len(task.labels)) / len(questions)
            entropies[order] = float(-(share * share.clamp(min=1e-12).log()).sum())
            accuracies.append(float((predicted == gold).float().mean()))
        self.permutation = []
        if entropies:
            most = max(entropies.values())
            self.permutation = next(list(order) for order, entropy in entropies.items() if entropy == most)
        if accuracies:
            self.facts["accuracy over orders"] = {"lowest": min(accuracies), "highest": max(accuracies)}

    def _calibrate(self, study: Study) -> None:
        study.report("calibrating on validation", 0, 0)
        task = replace(study.task, validation=count_choice.questions_of(study))
        score = self._label_scorer(task, study, study.allowance.spend)
        chosen = label_calibration.choose(task, score, study.seed)
        self.bias, self.facts["calibration"] = chosen.bias, chosen.method
        if chosen.untried:
            self.untried.append(f"calibration {', '.join(chosen.untried)}: {_uncovered(study)}")

    def _label_scorer(self, task: Task, study: Study, spend: Callable[[int], None]) -> label_calibration.Scorer:
        """Return what computes the labels' nll of examples, (n, labels), after it has told `spend` the tokens."""

        def nll(examples: Sequence[Example]) -> list[list[float]]:
            rendered = [self.render(example) for example in examples]
            return label_table(self, task, rendered, spend=spend).nll

        return lambda examples: torch.tensor(study.once("labels", lambda: nll(examples)))

    def label_bias(self) -> Tensor | None:
        return self.bias

    # Showing.

    def _take(self, pool: list[Example], style: Task) -> None:
        self.pool, self.encoder, self.candidates = pool, Encoder(self.base, style), {}
        if not pool:
            return
        self.sizes, self.question_sizes = {}, {}
        # A chosen list of labels stands in the question alone, so that the examples are measured without it.
        self.measuring = Encoder(self.base, replace(style, label_list=False) if style.label_list else style)
        self.room = min(longest_answer(self.encoder, pool), self.encoder.limit // 2)
        self.choose = self._chooser()

    def _measure(self, places: Sequence[int]) -> None:
        """Note how many tokens examples of the pool add to a prompt, where that is not known yet."""
        places = [place for place in places if place not in self.sizes]
        if not places:
            return
        examples = [self.pool[place] for place in places]
        if self.shows_turns:
            question = Message("user", "?")
            turns = [(question,), *((*demonstration_turns.shown_turns(example), question) for example in examples)]
            alone, *counts = map(len, self.encoder.prompt_ids([Example(messages, "") for messages in turns]))
            self.sizes |= {place: count - alone for place, count in zip(places, counts, strict=True)}
        else:
            sequences = self.measuring.encode(examples)
            self.sizes |= {place: len(each.ids) + _BLANK_LINE for place, each in zip(places, sequences, strict=True)}

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
        return replace(example, messages=self._messages(ordered, example))

    def _messages(self, shown: Sequence[Example], example: Example) -> tuple[Message, ...]:
        """Return the messages of a question after the examples that are shown."""
        if self.shows_turns:
            return demonstration_turns.conversation(shown, example, self.instruction)
        turns = itertools.chain.from_iterable(
            (*(replace(m, labelled=False) for m in other.messages), Message("assistant", other.answer))
            for other in shown
        )
        system = (Message("system", self.instruction),) if self.instruction else ()
        return (*system, *turns, *example.messages)

    def _chosen(self, example: Example) -> list[int]:
        """Return up to k examples that fit whole into the window, best first; never the question itself."""
        if not self.k:
            return []
        budget = self.encoder.limit - self.room - self._question_size(example)
        chosen: list[int] = []
        candidates = self._candidates(example.prompt, min(len(self.pool), 2 * self.k + 8))
        self._measure(candidates)
        for index in candidates:
            if self.sizes[index] <= budget and self.pool[index].messages != example.messages:
                chosen.append(index)
                budget -= self.sizes[index]
            if len(chosen) == self.k:
                break
        return chosen

    def _question_size(self, example: Example) -> int:
        """Return the tokens of a question without examples."""
        messages = self._messages((), example)
        if messages not in self.question_sizes:
            question = replace(example, messages=messages, answer="", answer_fields="")
            self.question_sizes[messages] = len(self.encoder.encode([question])[0].ids)
        return self.question_sizes[messages]

    def _candidates(self, question: str, count: int) -> list[int]:
        """Return the chooser's candidates, best first; caches the longest list, which begins with all shorter."""
        if len(self.candidates.get(question, ())) < count:
            self.candidates[question] = self.choose(question, count)
        return self.candidates[question][:count]

    # Storing.

    def stored_rows(self) -> list[StoredRow]:
        examples = self.pool[: 2 * self.k + 8] if self.recipe.selection in _FIXED else self.pool
        choices = _Choices(
            k=self.k,
            order=self.order,
            permutation=tuple(self.permutation),
            instruction=self.instruction,
            bias=tuple(self.bias.tolist()) if self.bias is not None else None,
        )
        return [choices.to_json(), *(demonstration_turns.ExampleRow.of(example).to_json() for example in examples)]

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        unlike = "the adaptation's examples are not as icl writes them"
        choices = _Choices.from_json(rows[0] if rows else None, "rows.jsonl line 1", unlike)
        pool = [
            demonstration_turns.ExampleRow.from_json(row, f"rows.jsonl line {number}", unlike).example
            for number, row in enumerate(rows[1:], 2)
        ]
        self.k, self.order, self.instruction = choices.k, choices.order, choices.instruction
        self.permutation = list(choices.permutation)
        self.bias = torch.tensor(choices.bias, dtype=torch.float64) if choices.bias is not None else None
        if self.bias is not None and len(self.bias) != len(style.labels):
            raise ArtifactError(f"{unlike}: the bias has {len(self.bias)} numbers for {len(style.labels)} labels")
        if self.vectors is not None and len(self.vectors) != len(pool):
            raise ArtifactError(f"the adaptation has {len(self.vectors)} embeddings of {len(pool)} examples")
        self._take(pool, style)


@dataclass(frozen=True, kw_only=True)
class _Choices(JsonRecord):
    """What `prepare` chose; the first row of an adaptation."""

    k: _Shown
    order: _Order
    permutation: tuple[Count, ...]
    instruction: Text
    bias: tuple[float, ...] | None


def _uncovered(study: Study) -> str:
    return f"the share of {study.allowance.tokens:,} tokens does not cover them"
