"""What tunewise check shows of a user's data."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tunewise.data.task import Task
from tunewise.data.task import check as check_task
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base


def check(task: Task, base: Base | None = None) -> dict[str, Any]:
    """The task's report; with a base, token lengths, the first example as the model sees it, and what exceeds it."""
    found: dict[str, Any] = check_task(task)
    if base is None:
        return found
    encoder = Encoder(base, task)
    sequences = encoder.encode(task.train)
    lengths = [len(sequence.ids) for sequence in sequences]
    uncut = Encoder(base, task)
    uncut.limit = 1 << 30
    whole = [len(sequence.ids) for sequence in uncut.encode(task.train)]
    cut = sum(sequence.cut for sequence in sequences)
    prompt, answer = encoder.text(task.train[0])
    return found | {
        "model": base.name,
        "window": encoder.limit,
        "tokens": {
            "shortest": min(whole),
            "mean": sum(whole) / len(whole),
            "longest": max(whole),
            "kept": sum(lengths),
        },
        "histogram": _histogram(whole),
        "exceeding": {
            "train": cut,
            "what_happens": "the prompt loses its beginning, down to half of the window; then the answer loses its end",
        },
        "first_example": {
            "prompt": prompt,
            "answer": answer,
            "template": encoder.template,
            "chat": encoder.chat,
        },
    }


def _histogram(lengths: list[int]) -> list[dict[str, int]]:
    """Counts by powers of two."""
    bins = Counter(max(length - 1, 0).bit_length() for length in lengths)
    return [{"up_to": 1 << power, "examples": bins[power]} for power in range(min(bins), max(bins) + 1)]


def check_page(found: dict[str, Any]) -> RenderableType:
    """A check for the terminal; the part of the first example that is not learnt is dim."""
    counts = ", ".join(f"{count} {split}" for split, count in found["counts"].items())
    parts: list[RenderableType] = [
        Text(
            f"{found['name']}: {found['kind']}, format {found['format']}, scored by {found['metric']}",
            style="bold",
        ),
        Text(f"examples: {counts}"),
    ]
    if found["labels"]:
        each = ", ".join(f"{_visible(label)} {sum(splits.values())}" for label, splits in found["labels"].items())
        parts.append(Text(f"labels: {each}"))
    parts += [Text(_visible(note)) for note in found["notes"]]
    leaks = found["leaks"]
    parts.append(Text(f"duplicates within train: {found['duplicates']}"))
    parts.append(
        Text(
            f"held-out prompts that are also in train: {leaks['count']}"
            + "".join(f"\n  {leak['split']}: {_visible(leak['text'][:100])}" for leak in leaks["examples"]),
            style="red" if leaks["count"] else "",
        )
    )
    if "model" not in found:
        parts.append(Text("give --model to see token lengths and the first example as the model does", style="dim"))
        return Group(*parts)
    tokens, exceeding = found["tokens"], found["exceeding"]
    parts.append(
        Text(
            f"tokens: {tokens['shortest']} to {tokens['longest']}, mean {tokens['mean']:.0f}; "
            f"the window is {found['window']}"
        )
    )
    most = max(item["examples"] for item in found["histogram"])
    for item in found["histogram"]:
        bar = "█" * round(40 * item["examples"] / most)
        parts.append(Text(f"  up to {item['up_to']:>6} {item['examples']:>7} {bar}"))
    if exceeding["train"]:
        parts.append(
            Text(
                f"{exceeding['train']} training examples exceed the window: {exceeding['what_happens']}",
                "red",
            )
        )
    first = found["first_example"]
    parts.append(Text("\nfirst example (dim: given, green: learnt):"))
    parts.append(Text.assemble((_visible(first["prompt"]), "dim"), ("⟨" + _visible(first["answer"]) + "⟩", "green")))
    return Group(*parts)


def _visible(text: str) -> str:
    """Text without control characters that would act on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
