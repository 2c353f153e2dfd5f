"""What is there, for people to read: the taxonomy, one technique in depth, and a task as a model would see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tunewise.contract.technique import FAMILIES, Technique, default_of
from tunewise.data.task import Task
from tunewise.data.task import check as check_task
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base
from tunewise.results.report.tables import count
from tunewise.techniques.registry import all_techniques, make


def tree() -> Tree:
    """Families and their techniques, each with one line."""
    root = Tree("fine-tuning", guide_style="dim")
    for family in FAMILIES:
        members = [cls for cls in all_techniques().values() if cls.family == family]
        if members:
            branch = root.add(Text(family, style="bold"))
            for cls in members:
                branch.add(Text.assemble((f"{cls.name:<14}", "green"), f" {cls.summary}"))
    return root


def facts(name: str | None = None) -> Any:
    """The same as data: one technique, or all."""
    if name is None or "+" in name:
        return [facts(each) for each in (name.split("+") if name else all_techniques())]
    cls = type(make(name))
    cite = cls.citation
    return {
        "technique": cls.name,
        "family": cls.family,
        "summary": cls.summary,
        "equation": cls.equation,
        "citation": vars(cite) if cite else None,
        "needs": cls.needs or None,
        "sides": sorted(cls.sides),
        "trains": cls.trains,
        "mergeable": cls.mergeable,
        "identity_at_start": cls.identity_at_start,
        "learning_rate": {
            "at_width_4096": cls.reference_rate,
            "width_exponent": cls.width_exponent,
            "search_grid": list(cls.search_grid),
        }
        if cls.trains
        else None,
        "settings": [
            {
                "name": item.name,
                "default": default_of(item),
                **{key: value for key, value in item.metadata.items() if value not in (None, ())},
            }
            for item in fields(cls)
        ],
    }


def page(name: str) -> RenderableType:
    """One technique: what it is, from where, its facts and settings."""
    recipe = make(name)
    if "+" in name:
        return Group(*(part for each in name.split("+") for part in (page(each), Text(""))))
    cls: type[Technique] = type(recipe)
    lines = [Text(f"{cls.name}: {cls.summary}", style="bold"), Text(f"  {cls.equation}")]
    if cls.citation:
        cite = cls.citation
        lines.append(Text(f'  {cite.authors} {cite.year}, "{cite.title}", {cite.equation}\n  {cite.url}', style="dim"))
    said = {
        "family": cls.family,
        "needs": cls.needs or "nothing special",
        "merges into the base": "yes" if cls.mergeable else "no",
        "equals the base before training": "yes" if cls.identity_at_start else "no",
        "cannot join techniques that change": ", ".join(sorted(cls.sides)) or "nothing",
    }
    if cls.trains:
        scaled = f" x (4096 / width)^{cls.width_exponent:g}" if cls.width_exponent else ""
        grid = ", ".join(f"{value:.3g}" for value in cls.search_grid)
        said["default learning rate"] = f"{cls.reference_rate:g}{scaled}; a search multiplies it by {grid}"
    lines += [Text(f"  {key}: {value}") for key, value in said.items()]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "default", "range", "meaning"):
        table.add_column(column)
    for item in fields(cls):
        table.add_row(
            *(Text(cell) for cell in (item.name, _shown(default_of(item)), _range(item), item.metadata["help"]))
        )
    return Group(*lines, Text(""), table) if table.row_count else Group(*lines)


def peft_table(rows: list[dict[str, Any]], model: str) -> RenderableType:
    """What PEFT's methods do on a model."""
    table = Table(
        title=f"PEFT's methods on {model}", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for column in ("technique", "parameters", "trains", "merges", "reason"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for row in rows:
        works = ["yes" if row[key] else "no" for key in ("trains", "merges")]
        number = count(row["parameters"]) if row["parameters"] else "-"
        table.add_row(*(Text(cell) for cell in (row["technique"], number, *works, row["reason"] or "")))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _range(item: Any) -> str:
    low, high, choices, tried = (item.metadata[key] for key in ("low", "high", "choices", "search"))
    found = ", ".join(choices) if choices else f"{low:g} to {high:g}" if low is not None else ""
    return f"{found}; a search tries {', '.join(map(_shown, tried))}" if tried else found


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
