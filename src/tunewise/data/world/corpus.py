"""What the model reads in pretraining: a stream of short documents, each a function of (seed, its number)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tunewise.core.seeds import derive
from tunewise.data.world import facts, patterns, reviews, words
from tunewise.data.world.facts import Entity

NOT_SAID = "not said"
_BREAKS = (" ", " ", "\n", "\n\n")
_MARKS = ("", "", "- ", "[{}] ", "Document {}: ")  # before each part of a text that stands on lines
Question = tuple[str, str]


def documents(count: int, seed: int = 0, first: int = 0) -> Iterator[str]:
    """`count` documents of a seed, from number `first` on."""
    kinds, weights = list(MIX), list(MIX.values())
    for number in range(first, first + count):
        rng = Random(derive(seed, "document", number))
        yield rng.choices(kinds, weights)[0](rng)


def asked(question: str, answer: str) -> str:
    """A question with its answer, in the plain form that questions have everywhere in tunewise."""
    return f"Question: {question}\nAnswer: {answer}"


def _page(rng: Random) -> str:
    """All facts of one known entity, in any order and wording."""
    entity = rng.choice(facts.known())
    return " ".join(_sentences(rng, entity, list(entity.facts), pronouns=True))


def _news(rng: Random) -> str:
    """Single facts of several known entities."""
    parts = []
    for entity in rng.sample(facts.known(), rng.randint(3, 6)):
        parts += _sentences(rng, entity, rng.sample(sorted(entity.facts), rng.randint(1, 2)), pronouns=True)
    return " ".join(parts)


def _quiz(rng: Random) -> str:
    """Questions about known entities, to be answered from memory."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        entity = rng.choice(facts.known())
        relation = rng.choice(sorted(entity.facts))
        form = rng.choice(facts.RELATIONS[entity.kind][relation].forms("questions"))
        parts.append(asked(facts.ask(entity, relation, form), entity.facts[relation]))
    return "\n\n".join(parts)


def _sentences(
    rng: Random, entity: Entity, relations: list[str], *, pronouns: bool, held_out: bool = False
) -> list[str]:
    rng.shuffle(relations)
    found = []
    for place, relation in enumerate(relations):
        form = rng.choice(facts.RELATIONS[entity.kind][relation].forms("statements", held_out=held_out))
        found.append(facts.state(entity, relation, form, pronoun=pronouns and place > 0 and rng.random() < 0.6))
    return found


def passage(
    rng: Random, *, held_out: bool = False, new_words: bool = False, most: int = 5
) -> tuple[str, list[Question]]:
    """A text about people and towns that exist nowhere else, and questions that it answers.

    With `held_out` their names are such as pretraining never uses; with `new_words` statements and questions are too.
    """
    entities = [
        rng.choice((facts.person, facts.person, facts.town))(rng, held_out=held_out)
        for _ in range(rng.randint(1, most))
    ]
    told = {entity.name: rng.sample(sorted(entity.facts), rng.randint(1, 4)) for entity in entities}
    grouped = rng.random() < 0.6
    blocks = [_sentences(rng, e, list(told[e.name]), pronouns=grouped, held_out=new_words) for e in entities]
    sentences = [sentence for block in blocks for sentence in block]
    if not grouped:
        rng.shuffle(sentences)
    joint = rng.choice(_BREAKS)
    mark = rng.choice(_MARKS) if joint.startswith("\n") else ""
    parts = [" ".join(block) for block in blocks] if grouped else sentences
    text = joint.join(mark.format(number) + part for number, part in enumerate(parts, 1))
    questions = []
    for entity in entities:
        for relation in told[entity.name]:
            shape = facts.RELATIONS[entity.kind][relation]
            form = rng.choice(shape.forms("questions", held_out=new_words))
            questions.append((facts.ask(entity, relation, form), entity.facts[relation]))
            if not held_out and rng.random() < 0.3 and _single(entity, relation, entities):
                questions.append((facts.ask_who(entity, relation, rng.randrange(len(shape.who))), entity.name))
        missing = sorted(set(entity.facts) - set(told[entity.name]))
        if not held_out and missing and rng.random() < 0.05:
            relation = rng.choice(missing)
            shape = facts.RELATIONS[entity.kind][relation]
            questions.append((facts.ask(entity, relation, rng.choice(shape.forms("questions"))), NOT_SAID))
    rng.shuffle(questions)
    return text, questions


def _single(entity: Entity, relation: str, entities: list[Entity]) -> bool:
    return sum(other.facts.get(relation) == entity.facts[relation] for other in entities) == 1


def _reading(rng: Random) -> str:
    """A passage with its questions: each with the passage, or one after another."""
    text, questions = passage(rng, most=rng.choice((1, 2, 3, 5, 5)))
    shown = [asked(question, answer) for question, answer in questions[: rng.randint(1, 8)]]
    return asked(f"{text}\n\n{shown[0].removeprefix('Question: ').rpartition(chr(10))[0]}", questions[0][1]) + "".join(
        "\n\n" + other for other in shown[1:]
    )


def _run(rng: Random) -> str:
    return patterns.run(rng, longest=rng.choice((400, 800, 800, 1500)))


def _reviews(rng: Random) -> str:
    """Visitors' opinions of one feeling, or with stars."""
    happy = rng.random() < 0.5
    count = rng.randint(1, 3)
    texts = [reviews.review(rng, happy) for _ in range(count)]
    if rng.random() < 0.4:
        texts.append(f"Stars: {rng.choice('45' if happy else '12')}")
    elif rng.random() < 0.3:
        texts.append("The letter was full of praise." if happy else "The letter was one long complaint.")
    return "\n".join(texts)


def _sums(rng: Random) -> str:
    parts = []
    for _ in range(rng.randint(2, 8)):
        x, y = rng.randrange(20), rng.randrange(20)
        word, value = ("plus", x + y) if rng.random() < 0.5 else ("minus", max(x, y) - min(x, y))
        x, y = (x, y) if word == "plus" else (max(x, y), min(x, y))
        sign = {"plus": "+", "minus": "-"}[word]
        parts.append(rng.choice((asked(f"What is {x} {word} {y}?", str(value)), f"{x} {sign} {y} = {value}")))
    return "\n\n".join(parts)


_DESCRIBED = (
    "{name} is {trade} in {town} and {age} years old.",
    "Meet {name}, {age}, {trade} from {town}.",
    "In {town} there is {trade} called {name}, now {age}.",
    "{name} of {town} is {age} and works as {trade}.",
    "At {age}, {name} is {trade} in {town}.",
)


def _records(rng: Random) -> str:
    """A record and a sentence that says the same."""
    record = patterns.draw_record(rng)
    sentence = rng.choice(_DESCRIBED).format(**{**record, "trade": words.a(record["trade"])})
    return f"{patterns.write_record(record)}\n{sentence}"


def _words(rng: Random) -> str:
    """What words mean."""
    parts = []
    for _ in range(rng.randint(2, 6)):
        if rng.random() < 0.5:
            one, other = rng.choice(sorted(words.OPPOSITES.items()))
            one, other = (one, other) if rng.random() < 0.5 else (other, one)
            parts.append(f"The opposite of {one} is {other}.")
        else:
            kind = rng.choice(sorted(words.KINDS))
            parts.append(f"{rng.choice(words.KINDS[kind]).capitalize()} is the name of {words.a(kind)}.")
    return " ".join(parts)


def _story(rng: Random) -> str:
    """A day in the life of somebody."""
    who, town = facts.person(rng), facts.town(rng)
    thing, friend = rng.choice(words.PRODUCTS), words.name(rng, "person")
    place, price = town.name, rng.randint(2, 30)
    begin = (
        f"One day in {rng.choice(words.MONTHS)} {who.name} walked to {place}.",
        f"{who.name} went to the fair in {place}.",
        f"Early in the morning {who.name} took the road to {place}.",
    )
    middle = (
        f"At the market there were {thing} for {price} coins.",
        f"{who.pronoun} met {friend}, {words.a(rng.choice(words.TRADES))}, who sold {thing}.",
        f"It was {words.a(rng.choice(sorted(words.OPPOSITES)))} day and the {town.facts['river']} was high.",
        f"{friend} had lost {words.a(rng.choice(words.PETS))} and asked for help.",
        f"They ate {rng.choice(words.DISHES)} and talked about {friend}.",
    )
    end = (
        f"In the evening {who.name} came home with {words.a(rng.choice(words.TOOLS))}.",
        f"{who.pronoun} paid and went home to {who.facts['home']}.",
        f"{who.name} was happy." if rng.random() < 0.5 else f"{who.name} was sad.",
    )
    return " ".join([rng.choice(begin), *rng.sample(middle, rng.randint(1, 3)), rng.choice(end)])


MIX: dict[Callable[[Random], str], float] = {  # documents of each kind, out of 100
    _page: 8,
    _news: 3,
    _quiz: 8,
    _reading: 44,
    _run: 25,
    _reviews: 4,
    _sums: 2,
    _records: 2,
    _words: 2,
    _story: 2,
}
