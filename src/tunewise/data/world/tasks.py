"""Five tasks in the world, each another reason to choose a technique, and what the model should not forget.

    town      facts of a new town: knowledge; half of the test's facts stand in the documents only
    reviews   complaint or praise: classification, with words and phrasings in the test that training never shows
    records   a record as a sentence in the house style: generation
    skill     a list of words in reverse: what the base cannot do
    letters   one of many questions about letters, with few examples: related source tasks to learn from

Names are held out of pretraining in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_PEOPLE = 40  # of the new town
_RETENTION = 10_000_000  # numbers of documents that pretraining does not reach
Sizes = tuple[int, int, int]


def task(name: str) -> Task:
    """One of `TASKS`, or a source of one: "letters/age".

    Raises:
        SettingError: there is no such task.
    """
    made = {
        "memory": memory,
        "town": _town,
        "reviews": _reviews,
        "records": _records,
        "skill": _skill,
        "letters": _letters,
    }
    if name in made:
        return made[name]()
    found = {f"letters/{source}": source for source in LETTERS}
    if name in found:
        return _letters(found[name], (100, 30, 100))
    raise SettingError(f'the world has no task "{name}"; it has {", ".join([*TASKS, *found])}')


def sources() -> dict[str, Task]:
    """The related tasks that others can learn from, "letters" above all."""
    return {f"letters/{source}": task(f"letters/{source}") for source in LETTERS}


def documents(name: str = "town") -> list[dict[str, str]]:
    """Documents about a task's subject as {"id", "text"}; those of "town" answer every question of its test.

    Raises:
        SettingError: the task has none.
    """
    if name != "town":
        raise SettingError(f'the task "{name}" has no documents; "town" has')
    return [{"id": entity.name.lower(), "text": entity.described} for entity in _citizens()]


def memory() -> Task:
    """Questions about pretraining's facts: as pretraining asks them, and as a test in words that it never uses."""
    told = [(entity, relation) for entity in facts.known() for relation in entity.facts]
    taught, asked = _ask(told, 0.0), _ask(told, None)
    return _task("memory", "question-answer", (taught, [], asked))


def retention() -> tuple[str, ...]:
    """Text such as pretraining read, but none of it: facts of known people and towns, passages, runs, reviews."""
    return tuple(corpus.documents(120, first=_RETENTION))


# The tasks.


@cache
def _citizens() -> tuple[Entity, ...]:
    rng = Random(derive(0, "new town"))
    place = facts.town(rng, held_out=True)
    people = [facts.person(rng, held_out=True, town=place.name) for _ in range(_PEOPLE)]
    return tuple({entity.name: entity for entity in (place, *people)}.values())


def _town() -> Task:
    """Every second fact is asked in training, in three ways; validation and test ask both halves in other ways."""
    rng = Random(derive(0, "town"))
    told = [(entity, relation) for entity in _citizens() for relation in entity.facts if relation != "home"]
    rng.shuffle(told)
    half = len(told) // 2

    train = [pair for place in (0.0, 0.3, 0.6) for pair in _ask(told[:half], place)]
    validation = _ask(told[:half:3] + told[half::3], 0.9)
    test = _ask(told, None)
    rng.shuffle(train)
    found = _task("town", "question-answer", (train, validation, test))
    pages = {entity.name: entity.name.lower() for entity in _citizens()}

    def placed(split: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, passage=next(page for name, page in pages.items() if name in e.prompt)) for e in split)

    splits = [placed(split) for split in (found.train, found.validation, found.test)]
    return replace(found, train=splits[0], validation=splits[1], test=splits[2], knowledge="world:town")


def _ask(pairs: list[tuple[Entity, str]], place: float | None) -> list[patterns.Pair]:
    """Questions in the phrasing at this place (0 to 1) of those that pretraining uses, or in one held out of it."""
    found = []
    for entity, relation in pairs:
        shape = facts.RELATIONS[entity.kind][relation]
        forms = shape.forms("questions", held_out=place is None)
        found.append((facts.ask(entity, relation, forms[int((place or 0.0) * len(forms))]), entity.facts[relation]))
    return found


def _reviews() -> Task:
    def drawn(split: str) -> Callable[[Random], patterns.Pair]:
        def pair(rng: Random) -> patterns.Pair:
            happy = rng.random() < 0.5
            return reviews.review(rng, happy, split=split), "praise" if happy else "complaint"

        return pair

    splits = [drawn("train"), drawn("train"), drawn("test")]
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


LETTERS: dict[str, str] = {  # what is asked of a letter; the task's own question is none of these
    "name": "{name}",
    "trade": "{trade}",
    "town": "{town}",
    "age": "{age}",
    "feeling": "{feeling}",
    "trade and age": "{trade}, {age}",
}
_TARGET = "{name} of {town}"


def _letters(source: str | None = None, sizes: Sizes = (32, 30, 200)) -> Task:
    wanted = LETTERS[source] if source else _TARGET

    def pair(rng: Random) -> patterns.Pair:
        record = patterns.draw_record(rng, held_out=True)
        happy = rng.random() < 0.5
        text = f"{reviews.review(rng, happy)} Signed: {record['name']}, {record['trade']}, {record['town']}"
        return f"{text}, aged {record['age']}", wanted.format(**record, feeling="praise" if happy else "complaint")

    name = f"letters/{source}" if source else "letters"
    return _task(name, "prompt-completion", _draw(name, [pair] * 3, sizes), metric="exact_match")


def _draw(
    name: str, pairs: list[Callable[[Random], patterns.Pair]], sizes: Sizes
) -> tuple[list[patterns.Pair], list[patterns.Pair], list[patterns.Pair]]:
    """Splits of the given sizes, no prompt twice in any of them."""
    seen: set[str] = set()

    def fresh(split: int) -> Iterator[patterns.Pair]:
        rng = Random(derive(0, name, split))
        while True:
            x, y = pairs[split](rng)
            if x not in seen:
                seen.add(x)
                yield x, y

    train, validation, test = (
        [next(source) for _ in range(n)] for source, n in zip(map(fresh, range(3)), sizes, strict=True)
    )
    return train, validation, test


def _task(
    name: str,
    format: str,
    splits: tuple[list[patterns.Pair], list[patterns.Pair], list[patterns.Pair]],
    metric: str = "exact_match",
) -> Task:
    several = format == "question-answer"  # the one format that may have several right answers
    train, validation, test = (
        tuple(Example((Message("user", x),), y, (y,) if several else ()) for x, y in split) for split in splits
    )
    kind = "classification" if format == "classification" else "generation"
    labels = tuple(sorted({example.answer for example in train})) if kind == "classification" else ()
    return Task(name, kind, format, train, validation, test, labels, metric, source=f"world:{name}")
