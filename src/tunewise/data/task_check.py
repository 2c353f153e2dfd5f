"""Reports on a task's data: its counts and lengths, and the rows that repeat, leak or contradict others.

Rows are told apart by hashes, so that their texts need not be in memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from tunewise.core.text import show
from tunewise.data.example_collection import ExampleCollection
from tunewise.data.examples import Example
from tunewise.data.task import Task

_PROBLEMS, _PROBLEM_TEXT = 1000, 200  # rows that a check names, and characters of each
_LEAKS = 3  # that a check shows

Splits = Mapping[str, ExampleCollection]


def check(task: Task) -> dict[str, object]:
    """Report on a task's data, as values that JSON can hold.

    Returns:
        Name, format, kind, metric, counts per split, labels with their counts per split, the number of exact
        duplicates within train, the number of leaks (held-out prompts, for text answers, that also occur in train)
        with up to three of them, the rows with such problems, the shortest and longest prompt and answer in characters,
        the number of bad rows that were left out, and the notes.
    """
    splits = {split: ExampleCollection(examples, task.kind, {}) for split, examples in task.splits.items()}
    trained = _trained(splits)
    leaks = {split: _leaks(collection, trained) for split, collection in splits.items() if split != "train"}
    train = splits["train"].facts
    every = [collection.facts for collection in splits.values()]
    return {
        "name": task.name,
        "format": task.format,
        "kind": task.kind,
        "metric": task.metric,
        "counts": task.counts,
        "labels": _label_counts(task, splits),
        "duplicates": sum(first != place for place, first in enumerate(train.first_of_content)),
        "leaks": {
            "count": sum(map(len, leaks.values())),
            "examples": [
                {"split": split, "text": _text(task, splits[split].examples[place])}
                for split, place in islice(((s, p) for s, places in leaks.items() for p in places), _LEAKS)
            ],
        },
        "problems": list(islice(_row_problems(task, splits, trained), _PROBLEMS)),
        "prompt_characters": _range(*(facts.prompt_characters for facts in every)),
        "answer_characters": _range(*(facts.answer_characters for facts in every)),
        "skipped": task.skipped,
        "notes": list(task.notes),
    }


def _trained(splits: Splits) -> dict[bytes, int]:
    """Return the first place in train of each prompt that is held out too."""
    held_out = {prompt for split, each in splits.items() if split != "train" for prompt in each.facts.prompts}
    trained: dict[bytes, int] = {}
    for place, prompt in enumerate(splits["train"].facts.prompts):
        if prompt in held_out:
            trained.setdefault(prompt, place)
    return trained


def _leaks(held_out: ExampleCollection, trained: Mapping[bytes, int]) -> list[int]:
    return [place for place, prompt in enumerate(held_out.facts.prompts) if prompt in trained]


def _label_counts(task: Task, splits: Splits) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split, collection in splits.items() if task.labels else ():
        names = collection.facts.label_names
        counts[split] = Counter({names[number]: count for number, count in Counter(collection.facts.answers).items()})
    return {label: {split: counts[split][label] for split in splits} for label in task.labels}


def _range(*lengths: array[int]) -> dict[str, int]:
    """Return the least and the largest of some numbers, both 0 where there are none."""
    return {
        "shortest": min(chain(*lengths), default=0),
        "longest": max(chain(*lengths), default=0),
    }


def _row_problems(task: Task, splits: Splits, trained: Mapping[bytes, int]) -> Iterator[dict[str, object]]:
    """Yield rows that repeat another one of their split, are held out but in train too, or contradict a label.

    Each has its split, the number of its row (0 where the data has no rows), the problem and its text.
    """
    train = splits["train"]
    for split, collection in splits.items():
        facts, examples = collection.facts, collection.examples
        same, first = facts.first_of_content, facts.first_of_prompt
        for place, prompt in enumerate(facts.prompts):
            if same[place] != place:
                problem = f"the same as {_place(collection, same[place])}"
            elif split != "train" and prompt in trained:
                known = _place(train, trained[prompt])
                problem = f"the prompt of {known} of train, so that its answer may be known"
            elif task.kind == "classification" and facts.answers[first[place]] != facts.answers[place]:
                label = show(examples[first[place]].answer)
                problem = f'another label than {_place(collection, first[place])}, "{label}"'
            else:
                continue
            text = _text(task, examples[place])[:_PROBLEM_TEXT]
            yield {"split": split, "row": facts.rows[place], "problem": problem, "text": text}


def _text(task: Task, example: Example) -> str:
    return example.answer if task.kind == "text" else example.prompt


def _place(collection: ExampleCollection, place: int) -> str:
    if row := collection.facts.rows[place]:
        return f"row {row}"
    example = collection.examples[place]
    return f'"{show(example.prompt or example.answer)}"'
