"""Measures and shows what `tunewise check` reports about a user's data."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypedDict, cast

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.core.text import visible
from tunewise.data.task import Example, Task
from tunewise.data.task_check import check as check_task
from tunewise.engine.configuration import UnloadedModel
from tunewise.engine.conversation import final_answer
from tunewise.engine.encoding import Encoder, fit_window, lists_labels
from tunewise.engine.rows import fitted_to

_RENDERED = 1000  # answers that are looked for in their renderings
_TOO_LONG, _TEXT = 1000, 200  # rows that exceed the window and are named, and characters of each
_SAMPLED = 64  # prompts that the list of labels is measured on; it takes the same tokens in all of them, almost
_TRUNCATION = (
    "the prompt is truncated at its start, down to half of the window; then the answer is truncated at its end"
)


class Leak(TypedDict):
    """Names a held-out prompt that is also in train."""

    split: str
    text: str


class Leaks(TypedDict):
    """Counts the held-out prompts that are also in train, and lists the first of them."""

    count: int
    examples: list[Leak]


class RowProblem(TypedDict):
    """Names a row with a problem: its split, its number (0 where the data has no rows), what is wrong, and its text."""

    split: str
    row: int
    problem: str
    text: str


class TaskFacts(TypedDict):
    """Holds what `tunewise.data.task_check.check` reports about a task, as far as it is shown."""

    name: str
    format: str
    kind: str
    metric: str
    counts: dict[str, int]
    labels: dict[str, dict[str, int]]
    duplicates: int
    leaks: Leaks
    problems: list[RowProblem]
    notes: list[str]


@dataclass(frozen=True)
class TokenLengths:
    """Holds the lengths of the training examples in tokens before truncation, and the tokens left after it (`kept`)."""

    shortest: int
    mean: float
    longest: int
    kept: int


@dataclass(frozen=True)
class Bin:
    """Counts the examples that have at most `up_to` tokens, and more than half of that."""

    up_to: int
    examples: int


@dataclass(frozen=True)
class Exceeding:
    """Counts the training examples that exceed the window, and says what happens to them."""

    train: int
    what_happens: str = _TRUNCATION


@dataclass(frozen=True)
class LabelListCost:
    """Holds what a list of the labels costs in each prompt.

    `tokens` is the length of the list and `prompt_tokens` the mean length of a training prompt with it. `choice` is
    "auto", "yes" or "no", as `--label-list` has it.
    """

    labels: int
    tokens: int
    prompt_tokens: float
    choice: str


@dataclass(frozen=True)
class FirstExample:
    """Holds the first training example as the model sees it.

    `stretches` are its text in order, each with whether it is learnt; `prompt` and `answer` are the same text in two.
    """

    prompt: str
    answer: str
    template: str | None
    chat: bool
    stretches: list[tuple[str, bool]]


@dataclass(frozen=True)
class MarkedExample:
    """Holds a training example as the model sees it, with its length in tokens before truncation.

    `stretches` are its text in order, each with whether it is learnt.
    """

    row: int
    tokens: int
    stretches: list[tuple[str, bool]]


@dataclass(frozen=True)
class ModelView:
    """Holds how a model sees a task's training examples, of which `examples` are the first.

    `notes` say what was done to conversations or texts for this model. `answers_not_shown` counts answers whose text
    does not occur in what the chat template makes of them, so that something else is learnt.
    """

    model: str
    window: int
    tokens: TokenLengths
    histogram: list[Bin]
    exceeding: Exceeding
    first_example: FirstExample
    label_list: LabelListCost | None
    notes: list[str]
    answers_not_shown: int = 0
    examples: list[MarkedExample] = field(default_factory=list)
    too_long: list[RowProblem] = field(default_factory=list)


@dataclass(frozen=True)
class DataCheck:
    """Holds a task's facts, and how a model sees it where one is given."""

    task: TaskFacts
    view: ModelView | None

    def to_json(self) -> dict[str, object]:
        """Return both in one object, as `tunewise check --json` prints them."""
        view = asdict(self.view) if self.view is not None else {}
        too_long = view.pop("too_long", [])
        return {**self.task, **view, "problems": [*self.task["problems"], *too_long]}


def check(task: Task, model: UnloadedModel | None = None, examples: int = 1) -> DataCheck:
    """Check a task; with a model, also lengths in tokens, the first examples as it sees them, and what exceeds it."""
    return DataCheck(cast(TaskFacts, check_task(task)), _view(task, model, examples) if model is not None else None)


def _view(task: Task, model: UnloadedModel, examples: int) -> ModelView:
    fitted = fitted_to(model, task)
    notes, task = [note for note in fitted.notes if note not in task.notes], fitted
    encoder = Encoder(model, task)
    lengths, kept, prompts = array("q"), array("q"), 0
    for prompt_size, answer_size in encoder.each_size(task.train):
        prompts += prompt_size
        lengths.append(prompt_size + answer_size)
        kept.append(sum(fit_window(prompt_size, answer_size, encoder.limit)))
    too_long = [place for place, length in enumerate(lengths) if kept[place] < length]
    prompt, answer = encoder.text(task.train[0])
    marked = [
        MarkedExample(example.row, length, encoder.marked(example))
        for example, length in zip(task.train[:examples], lengths, strict=False)
    ]
    return ModelView(
        model=model.name,
        window=encoder.limit,
        tokens=TokenLengths(
            shortest=min(lengths),
            mean=sum(lengths) / len(lengths),
            longest=max(lengths),
            kept=sum(kept),
        ),
        histogram=_histogram(lengths),
        exceeding=Exceeding(len(too_long)),
        first_example=FirstExample(prompt, answer, encoder.template, encoder.chat, encoder.marked(task.train[0])),
        label_list=_label_list_cost(task, model, encoder, prompts / len(lengths)),
        notes=notes,
        answers_not_shown=sum(not _is_shown(encoder, example) for example in task.train[:_RENDERED]),
        examples=marked,
        too_long=[
            _too_long(task.train[place], f"{lengths[place]:,} tokens exceed the window of {encoder.limit:,}")
            for place in too_long[:_TOO_LONG]
        ],
    )


def _too_long(example: Example, problem: str) -> RowProblem:
    return RowProblem(split="train", row=example.row, problem=problem, text=(example.prompt or example.answer)[:_TEXT])


def _is_shown(encoder: Encoder, example: Example) -> bool:
    """Tell whether an answer's words are what its rendering teaches."""
    return not encoder.chat or final_answer(example.answer) in "".join(encoder.text(example))


def _label_list_cost(task: Task, model: UnloadedModel, encoder: Encoder, mean_prompt: float) -> LabelListCost | None:
    """Measure the list of labels; None where there is none and none was asked about."""
    if task.kind != "classification" or task.template is not None or (not encoder.chat and task.label_list is None):
        return None
    sampled = task.train[:_SAMPLED]
    task = replace(task, reasons=task.has_reasoning)  # found once, and not for each of the following
    with_list, without = (
        sum(prompt for prompt, _ in Encoder(model, replace(task, label_list=listed)).sizes(sampled))
        for listed in (True, False)
    )
    tokens = round((with_list - without) / len(sampled))
    listed = lists_labels(task, chat=encoder.chat)
    choice = "auto" if task.label_list is None else "yes" if task.label_list else "no"
    return LabelListCost(len(task.labels), tokens, mean_prompt if listed else mean_prompt + tokens, choice)


def _histogram(lengths: Sequence[int]) -> list[Bin]:
    """Count by powers of two."""
    bins = Counter(max(length - 1, 0).bit_length() for length in lengths)
    return [Bin(1 << power, bins[power]) for power in range(min(bins), max(bins) + 1)]


def check_page(check: DataCheck) -> RenderableType:
    """Show a check in the terminal; the prompt of the first example, which is not trained on, is dim."""
    task = check.task
    counts = ", ".join(f"{count} {split}" for split, count in task["counts"].items())
    parts: list[RenderableType] = [
        Text(
            f"{task['name']}: {task['kind']}, format {task['format']}, scored by {task['metric']}",
            style="bold",
        ),
        Text(f"examples: {counts}"),
    ]
    if task["labels"]:
        labels = ", ".join(f"{visible(label)} {sum(splits.values())}" for label, splits in task["labels"].items())
        parts.append(Text(f"labels: {labels}"))
    parts += [Text(visible(note)) for note in task["notes"]]
    leaks = task["leaks"]
    parts.append(Text(f"duplicates within train: {task['duplicates']}"))
    parts.append(
        Text(
            f"held-out prompts that are also in train: {leaks['count']}"
            + "".join(f"\n  {leak['split']}: {visible(leak['text'][:100])}" for leak in leaks["examples"]),
            style="red" if leaks["count"] else "",
        )
    )
    view = check.view
    if view is None:
        parts.append(Text("give --model to see token lengths and the first example as the model does", style="dim"))
        return Group(*parts)
    parts.append(
        Text(
            f"tokens: {view.tokens.shortest} to {view.tokens.longest}, mean {view.tokens.mean:.0f}; "
            f"the window is {view.window}"
        )
    )
    if view.label_list is not None:
        parts.append(Text(_label_list_text(view.label_list)))
    most = max(item.examples for item in view.histogram)
    for item in view.histogram:
        bar = "█" * round(40 * item.examples / most)
        parts.append(Text(f"  up to {item.up_to:>6} {item.examples:>7} {bar}"))
    if view.exceeding.train:
        parts.append(
            Text(
                f"{view.exceeding.train} training examples exceed the window: {view.exceeding.what_happens}",
                "red",
            )
        )
    parts += [Text(visible(note)) for note in view.notes]
    if view.answers_not_shown:
        parts.append(
            Text(
                f"The text of {view.answers_not_shown} of the first answers does not occur in what the chat template "
                "makes of them; look at the first example below before you train.",
                "red",
            )
        )
    parts.append(Text("\nfirst example (dim: prompt, green in ⟨⟩: trained on):"))
    parts.append(_marked_text(view.first_example.stretches))
    for example in view.examples[1:]:
        parts += [Text(f"\n{f'row {example.row}, ' if example.row else ''}{example.tokens} tokens:")]
        parts += [_marked_text(example.stretches)]
    return Group(*parts)


def _marked_text(stretches: list[tuple[str, bool]]) -> Text:
    return Text.assemble(
        *((f"⟨{visible(text)}⟩", "green") if learnt else (visible(text), "dim") for text, learnt in stretches)
    )


def _label_list_text(cost: LabelListCost) -> str:
    takes = f"The list of {cost.labels} labels takes {cost.tokens} of {cost.prompt_tokens:.0f} tokens of a mean prompt"
    if cost.choice == "auto":
        return f"{takes}; --label-list no leaves it out, auto decides on validation."
    if cost.choice == "yes":
        return f"{takes}; --label-list no leaves it out."
    return (
        f"The list of {cost.labels} labels is left out of the prompt; it would take {cost.tokens} of "
        f"{cost.prompt_tokens:.0f} tokens."
    )
