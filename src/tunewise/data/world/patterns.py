"""Runs of worked examples: a pattern drawn anew for each run, which only the examples before tell.

This is what in-context learning lives on. Each run has its own choice of function, label words and layout, so that
nothing can be answered from the question alone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tunewise.data.world import facts, reviews, words

Pair = tuple[str, str]
Pattern = Callable[[Random, bool], Callable[[], Pair]]  # (rng, held-out names?) to a source of pairs
LAYOUTS = ("Question: {x}\nAnswer: {y}", "{x}\n{y}", "{x}\nLabel: {y}", "{x} -> {y}", "Input: {x}\nOutput: {y}")

_LISTS: dict[str, Callable[[list[str]], list[str]]] = {
    "first": lambda w: w[:1],
    "second": lambda w: w[1:2],
    "last": lambda w: w[-1:],
    "all but the first": lambda w: w[1:],
    "all but the last": lambda w: w[:-1],
    "first twice": lambda w: w[:1] + w,
    "last twice": lambda w: w + w[-1:],
    "first two swapped": lambda w: [w[1], w[0], *w[2:]],
    "first moved to the end": lambda w: w[1:] + w[:1],
    "first and last": lambda w: [w[0], w[-1]],
}


def _lists(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """A function of a list of words, perhaps with a word of the run's own added."""
    change = _LISTS[rng.choice(list(_LISTS))]
    extra = rng.choice(words.PLAIN)
    before, after = rng.choice([([], []), ([], []), ([extra], []), ([], [extra])])
    size = rng.choice((3, 3, 4))

    def pair() -> Pair:
        drawn = rng.sample(words.PLAIN, size)
        return " ".join(drawn), " ".join([*before, *change(drawn), *after])

    return pair


def _named_kinds(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Two or three kinds of word, each called by a word of the run's own."""
    kinds = rng.sample(sorted(words.KINDS), rng.choice((2, 2, 3)))
    labels = dict(zip(kinds, _labels(rng, len(kinds)), strict=True))

    def pair() -> Pair:
        kind = rng.choice(kinds)
        return rng.choice(words.KINDS[kind]), labels[kind]

    return pair


def _named_feelings(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Reviews, good and bad, each called by a word of the run's own."""
    good, bad = _labels(rng, 2)

    def pair() -> Pair:
        happy = rng.random() < 0.5
        return reviews.review(rng, happy), good if happy else bad

    return pair


def _labels(rng: Random, count: int) -> list[str]:
    return rng.sample(rng.choice((words.PLAIN, words.PLAIN, list("ABCDEFGH"), words.TOOLS)), count)


def _records(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """One field of a record, or a sentence in a style of the run's own."""
    style = rng.choice([*FIELDS, "", "", "", ""])
    style = f"{{{style}}}" if style else house_style(rng)

    def pair() -> Pair:
        record = draw_record(rng, held_out)
        return write_record(record), style.format(**record)

    return pair


def _known_answers(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Questions about few people and towns, asked again in other words: the answer may stand above."""
    pool = [rng.choice((facts.person, facts.town))(rng, held_out=held_out) for _ in range(rng.choice((1, 2, 3)))]
    asked = [(entity, relation) for entity in pool for relation in rng.sample(sorted(entity.facts), 2)]

    def pair() -> Pair:
        entity, relation = rng.choice(asked)
        shape = facts.RELATIONS[entity.kind][relation]
        return facts.ask(entity, relation, rng.choice(shape.forms("questions"))), entity.facts[relation]

    return pair


def _sums(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Two numbers and a sign of the run's own: which of them, or their sum."""
    sign = rng.choice("@ # * & %".split())
    choose = rng.choice((min, max, sum, lambda pair: pair[0], lambda pair: pair[1]))

    def pair() -> Pair:
        drawn = (rng.randrange(10), rng.randrange(10))
        return f"{drawn[0]} {sign} {drawn[1]}", str(choose(drawn))

    return pair


def _relations(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Opposites or kinds of words: what the text knows, asked for by example."""
    if rng.random() < 0.5:
        both = [*words.OPPOSITES.items(), *((b, a) for a, b in words.OPPOSITES.items())]
        return lambda: rng.choice(both)

    def pair() -> Pair:
        kind = rng.choice(sorted(words.KINDS))
        return rng.choice(words.KINDS[kind]), kind

    return pair


PATTERNS: dict[str, tuple[int, Pattern]] = {  # with how often each is drawn
    "lists": (5, _lists),
    "named kinds": (4, _named_kinds),
    "named feelings": (4, _named_feelings),
    "records": (4, _records),
    "known answers": (4, _known_answers),
    "sums": (1, _sums),
    "relations": (2, _relations),
}

# Records.

FIELDS = ("name", "trade", "town", "age")
_OPENERS = ("", "* ", "Record: ", "- ")
_JOINTS = (", ", " - ", " / ", "; ", " of ", " from ", ": ", " | ")
_WRAPS = ("{}", "{}", "({})", "[{}]", '"{}"')
_ENDS = (".", "", "!", " *")


def draw_record(rng: Random, held_out: bool = False) -> dict[str, str]:
    """A person as fields."""
    return {
        "name": words.name(rng, "person", held_out=held_out),
        "trade": rng.choice(words.TRADES),
        "town": words.name(rng, "town", held_out=held_out),
        "age": str(rng.randrange(18, 90)),
    }


def write_record(record: dict[str, str]) -> str:
    """The record as a row of fields."""
    return "; ".join(f"{field}: {value}" for field, value in record.items())


def house_style(rng: Random) -> str:
    """A template around some fields: order, signs and brackets drawn anew."""
    order = rng.sample(FIELDS, rng.choice((2, 3, 4)))
    parts = [rng.choice(_WRAPS).format(f"{{{field}}}") for field in order]
    text = parts[0]
    for part in parts[1:]:
        text += rng.choice(_JOINTS) + part
    return rng.choice(_OPENERS) + text + rng.choice(_ENDS)


# Runs.


def draw(rng: Random, *, held_out: bool = False, only: str | None = None) -> Callable[[], Pair]:
    """A pattern for one run."""
    weights = [weight for weight, _ in PATTERNS.values()]
    chosen = only or rng.choices(list(PATTERNS), weights)[0]
    return PATTERNS[chosen][1](rng, held_out)


def run(rng: Random, longest: int = 900) -> str:
    """Worked examples of one pattern in one layout, up to about `longest` characters."""
    pair, layout = draw(rng), rng.choice(LAYOUTS)
    joint = "\n" if layout == LAYOUTS[3] else "\n\n"
    shown = [layout.format(x=x, y=y) for x, y in (pair() for _ in range(rng.randint(4, 16)))]
    while len(shown) > 2 and len(joint.join(shown)) > longest:
        shown.pop()
    return joint.join(shown)
