"""Measures and shows what `tunewise check` reports about a user's data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TypedDict, cast

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.data.task import Task
from tunewise.data.task import check as check_task
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base

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


class TaskFacts(TypedDict):
    """Holds what `tunewise.data.task.check` reports about a task, as far as it is shown."""

    name: str
    format: str
    kind: str
    metric: str
    counts: dict[str, int]
    labels: dict[str, dict[str, int]]
    duplicates: int
    leaks: Leaks
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
class FirstExample:
    """Holds the first training example as the model sees it."""

    prompt: str
    answer: str
    template: str | None
    chat: bool


@dataclass(frozen=True)
class ModelView:
    """Holds how a model sees a task's training examples."""

    model: str
    window: int
    tokens: TokenLengths
    histogram: list[Bin]
    exceeding: Exceeding
    first_example: FirstExample


@dataclass(frozen=True)
class DataCheck:
    """Holds a task's facts, and how a model sees it where one is given."""

    task: TaskFacts
    view: ModelView | None

    def to_json(self) -> dict[str, object]:
        """Return both in one object, as `tunewise check --json` prints them."""
        return {**self.task, **(asdict(self.view) if self.view is not None else {})}


def check(task: Task, base: Base | None = None) -> DataCheck:
    """Check a task; with a base, also token lengths, the first example as the model sees it, and what exceeds it."""
    return DataCheck(cast(TaskFacts, check_task(task)), _view(task, base) if base is not None else None)


def _view(task: Task, base: Base) -> ModelView:
    encoder, unlimited = Encoder(base, task), Encoder(base, task)
    unlimited.limit = 1 << 30
    sequences = encoder.encode(task.train)
    lengths = [len(sequence.ids) for sequence in unlimited.encode(task.train)]
    prompt, answer = encoder.text(task.train[0])
    return ModelView(
        model=base.name,
        window=encoder.limit,
        tokens=TokenLengths(
            shortest=min(lengths),
            mean=sum(lengths) / len(lengths),
            longest=max(lengths),
            kept=sum(len(sequence.ids) for sequence in sequences),
        ),
        histogram=_histogram(lengths),
        exceeding=Exceeding(sum(sequence.truncated for sequence in sequences)),
        first_example=FirstExample(prompt, answer, encoder.template, encoder.chat),
    )


def _histogram(lengths: list[int]) -> list[Bin]:
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
        labels = ", ".join(f"{_visible(label)} {sum(splits.values())}" for label, splits in task["labels"].items())
        parts.append(Text(f"labels: {labels}"))
    parts += [Text(_visible(note)) for note in task["notes"]]
    leaks = task["leaks"]
    parts.append(Text(f"duplicates within train: {task['duplicates']}"))
    parts.append(
        Text(
            f"held-out prompts that are also in train: {leaks['count']}"
            + "".join(f"\n  {leak['split']}: {_visible(leak['text'][:100])}" for leak in leaks["examples"]),
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
    prompt, answer = _visible(view.first_example.prompt), _visible(view.first_example.answer)
    parts.append(Text("\nfirst example (dim: prompt, green: trained on):"))
    parts.append(Text.assemble((prompt, "dim"), (f"⟨{answer}⟩", "green")))
    return Group(*parts)


def _visible(text: str) -> str:
    """Escape the control characters that would act on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
