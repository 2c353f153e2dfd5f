"""Writes the pretraining text: a stream of short documents, each a function of (seed, its number)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tunewise.core.seeds import derive
from tunewise.data.world import facts, patterns, reviews, words
from tunewise.data.world.facts import Entity

NOT_SAID = "not said"
_BREAKS = (" ", " ", "\n", "\n\n")
_MARKS = ("", "", "- ", "[{}] ", "Document {}: ")  # before each part of a text whose parts have lines of their own
Question = tuple[str, str]  # a question and its answer


def documents(count: int, seed: int = 0, first: int = 0) -> Iterator[str]:
    """Yield `count` documents of a seed, starting with number `first`."""
    kinds, weights = list(MIX), list(MIX.values())
    for number in range(first, first + count):
        rng = Random(derive(seed, "document", number))
        yield rng.choices(kinds, weights)[0](rng)


def _with_answer(question: str, answer: str) -> str:
    """Write a question with its answer, in the plain form that prompts have everywhere in tunewise."""
    return f"Question: {question}\nAnswer: {answer}"


def _page(rng: Random) -> str:
    """Write all facts of one known entity, in any order and wording."""
    entity = rng.choice(facts.known())
    return " ".join(_sentences(rng, entity, list(entity.facts), pronouns=True))


def _news(rng: Random) -> str:
    """Write single facts of several known entities."""
    parts = []
    for entity in rng.sample(facts.known(), rng.randint(3, 6)):
        parts += _sentences(rng, entity, rng.sample(sorted(entity.facts), rng.randint(1, 2)), pronouns=True)
    return " ".join(parts)


def _quiz(rng: Random) -> str:
    """Write questions about known entities, which are answered from memory."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        entity = rng.choice(facts.known())
        relation = rng.choice(sorted(entity.facts))
        form = rng.choice(facts.RELATIONS[entity.kind][relation].forms("questions"))
        parts.append(_with_answer(facts.ask(entity, relation, form), entity.facts[relation]))
    return "\n\n".join(parts)


def _sentences(
    rng: Random, entity: Entity, relations: list[str], *, pronouns: bool, held_out: bool = False
) -> list[str]:
    rng.shuffle(relations)
    sentences = []
    for position, relation in enumerate(relations):
        form = rng.choice(facts.RELATIONS[entity.kind][relation].forms("statements", held_out=held_out))
        pronoun = pronouns and position > 0 and rng.random() < 0.6
        sentences.append(facts.state(entity, relation, form, pronoun=pronoun))
    return sentences


def passage(
    rng: Random, *, held_out: bool = False, new_words: bool = False, most: int = 5
) -> tuple[str, list[Question]]:
    """Write a text about people and towns that occur nowhere else, and questions that it answers.

    Args:
        rng: the source of randomness.
        held_out: draw names that pretraining never uses.
        new_words: draw statements and questions in phrasings that pretraining never uses.
        most: the largest number of people and towns.
    """
    entities = [
        rng.choice((facts.person, facts.person, facts.town))(rng, held_out=held_out)
        for _ in range(rng.randint(1, most))
    ]
    stated = {entity.name: rng.sample(sorted(entity.facts), rng.randint(1, 4)) for entity in entities}
    grouped = rng.random() < 0.6
    blocks = [_sentences(rng, e, list(stated[e.name]), pronouns=grouped, held_out=new_words) for e in entities]
    sentences = [sentence for block in blocks for sentence in block]
    if not grouped:
        rng.shuffle(sentences)
    separator = rng.choice(_BREAKS)
    mark = rng.choice(_MARKS) if separator.startswith("\n") else ""
    parts = [" ".join(block) for block in blocks] if grouped else sentences
    text = separator.join(mark.format(number) + part for number, part in enumerate(parts, 1))
    questions = []
    for entity in entities:
        for relation in stated[entity.name]:
            shape = facts.RELATIONS[entity.kind][relation]
            form = rng.choice(shape.forms("questions", held_out=new_words))
            questions.append((facts.ask(entity, relation, form), entity.facts[relation]))
            if not held_out and rng.random() < 0.3 and _is_unique(entity, relation, entities):
                questions.append((facts.ask_who(entity, relation, rng.randrange(len(shape.who))), entity.name))
        missing = sorted(set(entity.facts) - set(stated[entity.name]))
        if not held_out and missing and rng.random() < 0.05:
            relation = rng.choice(missing)
            shape = facts.RELATIONS[entity.kind][relation]
            questions.append((facts.ask(entity, relation, rng.choice(shape.forms("questions"))), NOT_SAID))
    rng.shuffle(questions)
    return text, questions


def _is_unique(entity: Entity, relation: str, entities: list[Entity]) -> bool:
    """Tell whether no other entity of the text has the same value, so that the value identifies this one."""
    return sum(other.facts.get(relation) == entity.facts[relation] for other in entities) == 1


def _reading(rng: Random) -> str:
    """Write a passage followed by one question and its answer, then further questions with their answers."""
    text, questions = passage(rng, most=rng.choice((1, 2, 3, 5, 5)))
    count = rng.randint(1, 8)
    (first, answer), rest = questions[0], questions[1:count]
    return "\n\n".join([_with_answer(f"{text}\n\n{first}", answer), *(_with_answer(*other) for other in rest)])


def _run(rng: Random) -> str:
    """Write worked examples of one pattern."""
    return patterns.run(rng, longest=rng.choice((400, 800, 800, 1500)))


def _reviews(rng: Random) -> str:
    """Write reviews that are all happy or all unhappy, sometimes with a rating or a summary."""
    happy = rng.random() < 0.5
    count = rng.randint(1, 3)
    texts = [reviews.review(rng, happy) for _ in range(count)]
    if rng.random() < 0.4:
        texts.append(f"Stars: {rng.choice('45' if happy else '12')}")
    elif rng.random() < 0.3:
        texts.append("The letter was full of praise." if happy else "The letter was one long complaint.")
    return "\n".join(texts)


def _sums(rng: Random) -> str:
    """Write sums and differences of small numbers, in words or in signs."""
    parts = []
    for _ in range(rng.randint(2, 8)):
        x, y = rng.randrange(20), rng.randrange(20)
        operation, value = ("plus", x + y) if rng.random() < 0.5 else ("minus", max(x, y) - min(x, y))
        x, y = (x, y) if operation == "plus" else (max(x, y), min(x, y))
        sign = {"plus": "+", "minus": "-"}[operation]
        parts.append(
            rng.choice((_with_answer(f"What is {x} {operation} {y}?", str(value)), f"{x} {sign} {y} = {value}"))
        )
    return "\n\n".join(parts)


_DESCRIPTIONS = (
    "{name} is {trade} in {town} and {age} years old.",
    "Meet {name}, {age}, {trade} from {town}.",
    "In {town} there is {trade} called {name}, now {age}.",
    "{name} of {town} is {age} and works as {trade}.",
    "At {age}, {name} is {trade} in {town}.",
)


def _records(rng: Random) -> str:
    """Write a record and a sentence that says the same."""
    record = patterns.draw_record(rng)
    sentence = rng.choice(_DESCRIPTIONS).format(**{**record, "trade": words.with_article(record["trade"])})
    return f"{patterns.write_record(record)}\n{sentence}"


def _words(rng: Random) -> str:
    """Write sentences about opposites and kinds of words."""
    parts = []
    for _ in range(rng.randint(2, 6)):
        if rng.random() < 0.5:
            word, opposite = rng.choice(sorted(words.OPPOSITES.items()))
            word, opposite = (word, opposite) if rng.random() < 0.5 else (opposite, word)
            parts.append(f"The opposite of {word} is {opposite}.")
        else:
            kind = rng.choice(sorted(words.KINDS))
            parts.append(f"{rng.choice(words.KINDS[kind]).capitalize()} is the name of {words.with_article(kind)}.")
    return " ".join(parts)


def _story(rng: Random) -> str:
    """Write about a day in the life of somebody."""
    person, town = facts.person(rng), facts.town(rng)
    thing, friend = rng.choice(words.PRODUCTS), words.name(rng, "person")
    town_name, price = town.name, rng.randint(2, 30)
    beginnings = (
        f"One day in {rng.choice(words.MONTHS)} {person.name} walked to {town_name}.",
        f"{person.name} went to the fair in {town_name}.",
        f"Early in the morning {person.name} took the road to {town_name}.",
    )
    middles = (
        f"At the market there were {thing} for {price} coins.",
        f"{person.pronoun} met {friend}, {words.with_article(rng.choice(words.TRADES))}, who sold {thing}.",
        f"It was {words.with_article(rng.choice(sorted(words.OPPOSITES)))} day and the {town.facts['river']} was high.",
        f"{friend} had lost {words.with_article(rng.choice(words.PETS))} and asked for help.",
        f"They ate {rng.choice(words.DISHES)} and talked about {friend}.",
    )
    endings = (
        f"In the evening {person.name} came home with {words.with_article(rng.choice(words.TOOLS))}.",
        f"{person.pronoun} paid and went home to {person.facts['home']}.",
        f"{person.name} was happy." if rng.random() < 0.5 else f"{person.name} was sad.",
    )
    return " ".join([rng.choice(beginnings), *rng.sample(middles, rng.randint(1, 3)), rng.choice(endings)])


MIX: dict[Callable[[Random], str], float] = {  # percentage of documents of each kind
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
