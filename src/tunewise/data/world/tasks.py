"""Makes five tasks in the world, each with another reason to choose a technique, and text that must not be forgotten.

    town      learn the facts of a new town: knowledge; half of the facts in test occur in the documents only
    reviews   tell complaint from praise: classification; test has words and phrasings that train never shows
    records   write a record as a sentence in the house style: generation
    skill     reverse a list of words: a skill that the base lacks
    letters   answer a question about a letter, with few examples: there are related source tasks to learn from

All of them use names that are held out of pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from random import Random

from tunewise.core.errors import SettingError
from tunewise.core.seeds import derive
from tunewise.data.task import Example, Message, Task
from tunewise.data.world import corpus, facts, patterns, reviews, words
from tunewise.data.world.facts import Entity

TASKS = ("town", "reviews", "records", "skill", "letters")
HOUSE_STYLE = "Say hello to {name}! At {age}, our {trade} brings joy to {town}."
_PEOPLE = 40  # in the new town
_RETENTION = 10_000_000  # number of the first retention document, which pretraining does not reach
Sizes = tuple[int, int, int]  # examples in train, validation and test


def task(name: str) -> Task:
    """Return a task of `TASKS`, or a source task such as "letters/age".

    Raises:
        SettingError: there is no such task.
    """
    builders = {
        "memory": memory,
        "town": _town,
        "reviews": _reviews,
        "records": _records,
        "skill": _skill,
        "letters": _letters,
    }
    if name in builders:
        return builders[name]()
    letter_sources = {f"letters/{source}": source for source in LETTERS}
    if name in letter_sources:
        return _letters(letter_sources[name], (100, 30, 100))
    raise SettingError(f'the world has no task "{name}"; it has {", ".join([*TASKS, *letter_sources])}')


def sources() -> dict[str, Task]:
    """Return the related tasks that a technique with source tasks can learn from, mainly for "letters"."""
    return {f"letters/{source}": task(f"letters/{source}") for source in LETTERS}


def documents(name: str = "town") -> list[dict[str, str]]:
    """Return documents about a task, as {"id", "text"}; those of "town" answer every question in its test split.

    Raises:
        SettingError: the task has no documents.
    """
    if name != "town":
        raise SettingError(f'the task "{name}" has no documents; "town" has')
    return [{"id": entity.name.lower(), "text": entity.described} for entity in _citizens()]


def memory() -> Task:
    """Return questions about the facts of pretraining: in train as pretraining asks them, in test in held-out words."""
    known = [(entity, relation) for entity in facts.known() for relation in entity.facts]
    train, test = _questions(known, 0.0), _questions(known, None)
    return _task("memory", "question-answer", (train, [], test))


def retention() -> tuple[str, ...]:
    """Return new documents from the distribution of pretraining, to measure forgetting."""
    return tuple(corpus.documents(120, first=_RETENTION))


# The tasks.


@cache
def _citizens() -> tuple[Entity, ...]:
    """Return the new town and its people."""
    rng = Random(derive(0, "new town"))
    town = facts.town(rng, held_out=True)
    people = [facts.person(rng, held_out=True, town=town.name) for _ in range(_PEOPLE)]
    return tuple({entity.name: entity for entity in (town, *people)}.values())


def _town() -> Task:
    """Ask half of the facts in train, in three ways, and facts of both halves in other ways in validation and test."""
    rng = Random(derive(0, "town"))
    stated = [(entity, relation) for entity in _citizens() for relation in entity.facts if relation != "home"]
    rng.shuffle(stated)
    half = len(stated) // 2

    train = [pair for phrasing in (0.0, 0.3, 0.6) for pair in _questions(stated[:half], phrasing)]
    validation = _questions(stated[:half:3] + stated[half::3], 0.9)
    test = _questions(stated, None)
    rng.shuffle(train)
    town_task = _task("town", "question-answer", (train, validation, test))
    pages = {entity.name: entity.name.lower() for entity in _citizens()}

    def with_passages(split: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(replace(e, passage=next(page for name, page in pages.items() if name in e.prompt)) for e in split)

    splits = [with_passages(split) for split in (town_task.train, town_task.validation, town_task.test)]
    return replace(town_task, train=splits[0], validation=splits[1], test=splits[2], knowledge="world:town")


def _questions(stated: list[tuple[Entity, str]], phrasing: float | None) -> list[patterns.Pair]:
    """Ask for these facts, each an entity and a relation.

    `phrasing` from 0 to 1 picks one of the phrasings that pretraining uses, None one that is held out of it.
    """
    pairs = []
    for entity, relation in stated:
        shape = facts.RELATIONS[entity.kind][relation]
        forms = shape.forms("questions", held_out=phrasing is None)
        form = forms[int((phrasing or 0.0) * len(forms))]
        pairs.append((facts.ask(entity, relation, form), entity.facts[relation]))
    return pairs


def _reviews() -> Task:
    def source(split: str) -> Callable[[Random], patterns.Pair]:
        def pair(rng: Random) -> patterns.Pair:
            happy = rng.random() < 0.5
            return reviews.review(rng, happy, split=split), "praise" if happy else "complaint"

        return pair

    splits = [source("train"), source("train"), source("test")]
    return _task("reviews", "classification", _draw("reviews", splits, (200, 60, 200)), metric="accuracy")


def _records() -> Task:
    def pair(rng: Random) -> patterns.Pair:
        record = patterns.draw_record(rng, held_out=True)
        return patterns.write_record(record), HOUSE_STYLE.format(**record)

    return _task("records", "prompt-completion", _draw("records", [pair] * 3, (200, 60, 200)), metric="rouge_l")


def _skill() -> Task:
    def pair(rng: Random) -> patterns.Pair:
        drawn = rng.sample(words.PLAIN, 4)
        return " ".join(drawn), " ".join(reversed(drawn))

    return _task("skill", "prompt-completion", _draw("skill", [pair] * 3, (300, 60, 200)), metric="exact_match")


LETTERS: dict[str, str] = {  # the answers that the source tasks want; that of the task itself is none of these
    "name": "{name}",
    "trade": "{trade}",
    "town": "{town}",
    "age": "{age}",
    "feeling": "{feeling}",
    "trade and age": "{trade}, {age}",
}
_TARGET = "{name} of {town}"


def _letters(source: str | None = None, sizes: Sizes = (32, 30, 200)) -> Task:
    answer = LETTERS[source] if source else _TARGET

    def pair(rng: Random) -> patterns.Pair:
        record = patterns.draw_record(rng, held_out=True)
        happy = rng.random() < 0.5
        text = f"{reviews.review(rng, happy)} Signed: {record['name']}, {record['trade']}, {record['town']}"
        return f"{text}, aged {record['age']}", answer.format(**record, feeling="praise" if happy else "complaint")

    name = f"letters/{source}" if source else "letters"
    return _task(name, "prompt-completion", _draw(name, [pair] * 3, sizes), metric="exact_match")


def _draw(
    name: str, sources: list[Callable[[Random], patterns.Pair]], sizes: Sizes
) -> tuple[list[patterns.Pair], list[patterns.Pair], list[patterns.Pair]]:
    """Draw splits of the given sizes, with no prompt twice in all of them."""
    seen: set[str] = set()

    def fresh(split: int) -> Iterator[patterns.Pair]:
        rng = Random(derive(0, name, split))
        while True:
            x, y = sources[split](rng)
            if x not in seen:
                seen.add(x)
                yield x, y

    train, validation, test = (
        [next(pairs) for _ in range(size)] for pairs, size in zip(map(fresh, range(3)), sizes, strict=True)
    )
    return train, validation, test


def _task(
    name: str,
    format: str,
    splits: tuple[list[patterns.Pair], list[patterns.Pair], list[patterns.Pair]],
    metric: str = "exact_match",
) -> Task:
    has_references = format == "question-answer"  # the one format that may have several right answers
    train, validation, test = (
        tuple(Example((Message("user", x),), y, (y,) if has_references else ()) for x, y in split) for split in splits
    )
    kind = "classification" if format == "classification" else "generation"
    labels = tuple(sorted({example.answer for example in train})) if kind == "classification" else ()
    return Task(name, kind, format, train, validation, test, labels, metric, source=f"world:{name}")
