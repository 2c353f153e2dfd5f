"""Writes runs of worked examples, each of a newly drawn pattern that only the earlier examples of the run reveal.

This text teaches in-context learning. Each run has its own choice of function, label words and layout, so that nothing
can be answered from the question alone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tunewise.data.world import facts, reviews, words

Pair = tuple[str, str]  # a prompt and its answer
Pattern = Callable[[Random, bool], Callable[[], Pair]]  # takes (rng, held_out), returns a source of pairs
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
    """Make pairs of a list of words and a function of it, in some runs with a fixed extra word."""
    change = _LISTS[rng.choice(list(_LISTS))]
    extra = rng.choice(words.PLAIN)
    before, after = rng.choice([([], []), ([], []), ([extra], []), ([], [extra])])
    size = rng.choice((3, 3, 4))

    def pair() -> Pair:
        drawn = rng.sample(words.PLAIN, size)
        return " ".join(drawn), " ".join([*before, *change(drawn), *after])

    return pair


def _named_kinds(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make pairs of a word and a label for its kind, where the run draws the labels."""
    kinds = rng.sample(sorted(words.KINDS), rng.choice((2, 2, 3)))
    labels = dict(zip(kinds, _labels(rng, len(kinds)), strict=True))

    def pair() -> Pair:
        kind = rng.choice(kinds)
        return rng.choice(words.KINDS[kind]), labels[kind]

    return pair


def _named_feelings(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make pairs of a review and a label for good or bad, where the run draws the labels."""
    good, bad = _labels(rng, 2)

    def pair() -> Pair:
        happy = rng.random() < 0.5
        return reviews.review(rng, happy), good if happy else bad

    return pair


def _labels(rng: Random, count: int) -> list[str]:
    return rng.sample(rng.choice((words.PLAIN, words.PLAIN, list("ABCDEFGH"), words.TOOLS)), count)


def _records(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make pairs of a record and one of its fields, or of a record and a sentence in a style that the run draws."""
    style = rng.choice([*FIELDS, "", "", "", ""])
    style = f"{{{style}}}" if style else house_style(rng)

    def pair() -> Pair:
        record = draw_record(rng, held_out)
        return write_record(record), style.format(**record)

    return pair


def _known_answers(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make questions about few people and towns, repeated in other words, so that the answer may occur further up."""
    pool = [rng.choice((facts.person, facts.town))(rng, held_out=held_out) for _ in range(rng.choice((1, 2, 3)))]
    choices = [(entity, relation) for entity in pool for relation in rng.sample(sorted(entity.facts), 2)]

    def pair() -> Pair:
        entity, relation = rng.choice(choices)
        shape = facts.RELATIONS[entity.kind][relation]
        return facts.ask(entity, relation, rng.choice(shape.forms("questions"))), entity.facts[relation]

    return pair


def _sums(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make pairs of two numbers around a sign and one of them or their sum, where the run draws sign and function."""
    sign = rng.choice("@ # * & %".split())
    choose = rng.choice((min, max, sum, lambda pair: pair[0], lambda pair: pair[1]))

    def pair() -> Pair:
        drawn = (rng.randrange(10), rng.randrange(10))
        return f"{drawn[0]} {sign} {drawn[1]}", str(choose(drawn))

    return pair


def _relations(rng: Random, held_out: bool) -> Callable[[], Pair]:
    """Make pairs of opposites or of a word and its kind, both of which pretraining also states."""
    if rng.random() < 0.5:
        pairs = [*words.OPPOSITES.items(), *((b, a) for a, b in words.OPPOSITES.items())]
        return lambda: rng.choice(pairs)

    def pair() -> Pair:
        kind = rng.choice(sorted(words.KINDS))
        return rng.choice(words.KINDS[kind]), kind

    return pair


PATTERNS: dict[str, tuple[int, Pattern]] = {  # each with its weight
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
_SEPARATORS = (", ", " - ", " / ", "; ", " of ", " from ", ": ", " | ")
_WRAPS = ("{}", "{}", "({})", "[{}]", '"{}"')
_ENDS = (".", "", "!", " *")


def draw_record(rng: Random, held_out: bool = False) -> dict[str, str]:
    """Draw a person as a record of fields."""
    return {
        "name": words.name(rng, "person", held_out=held_out),
        "trade": rng.choice(words.TRADES),
        "town": words.name(rng, "town", held_out=held_out),
        "age": str(rng.randrange(18, 90)),
    }


def write_record(record: dict[str, str]) -> str:
    """Write a record as a row of fields."""
    return "; ".join(f"{field}: {value}" for field, value in record.items())


def house_style(rng: Random) -> str:
    """Draw a template around some fields, with their order, signs and brackets."""
    order = rng.sample(FIELDS, rng.choice((2, 3, 4)))
    parts = [rng.choice(_WRAPS).format(f"{{{field}}}") for field in order]
    text = parts[0]
    for part in parts[1:]:
        text += rng.choice(_SEPARATORS) + part
    return rng.choice(_OPENERS) + text + rng.choice(_ENDS)


# Runs.


def draw(rng: Random, *, held_out: bool = False, only: str | None = None) -> Callable[[], Pair]:
    """Draw a pattern for one run, or take the one called `only`."""
    weights = [weight for weight, _ in PATTERNS.values()]
    chosen = only or rng.choices(list(PATTERNS), weights)[0]
    return PATTERNS[chosen][1](rng, held_out)


def run(rng: Random, longest: int = 900) -> str:
    """Write worked examples of one pattern in one layout, up to about `longest` characters."""
    pair, layout = draw(rng), rng.choice(LAYOUTS)
    separator = "\n" if layout == LAYOUTS[3] else "\n\n"
    examples = [layout.format(x=x, y=y) for x, y in (pair() for _ in range(rng.randint(4, 16)))]
    while len(examples) > 2 and len(separator.join(examples)) > longest:
        examples.pop()
    return separator.join(examples)
