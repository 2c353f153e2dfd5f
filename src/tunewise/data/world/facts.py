"""Draws people and towns with facts about them, and states and asks a fact in many ways.

A phrasing is written with its alternatives, as in "(is|works as) {a}", and stands for all of them. One in six is held
out: pretraining never uses it.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from tunewise.core.seeds import derive
from tunewise.data.world import words
from tunewise.data.world.words import name, with_article

PEOPLE, TOWNS = 100, 30  # the known ones, about which pretraining tells again and again


def expand(*phrasings: str) -> tuple[str, ...]:
    """Expand texts with alternatives into all phrasings: "(a|b) c" stands for "a c" and "b c"."""
    expanded = []
    for text in phrasings:
        parts = [part.split("|") for part in re.split(r"\(([^)]*)\)", text)]
        expanded += ["".join(choice) for choice in itertools.product(*parts)]
    return tuple(dict.fromkeys(expanded))


@dataclass(frozen=True)
class Relation:
    """Holds phrasings around {name}, {value} and {a} (the value with its article); `who` asks for the name."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    who: tuple[str, ...]

    def forms(self, what: str, *, held_out: bool = False) -> tuple[int, ...]:
        """Return the indices of the "statements" or "questions" that pretraining uses, or of those held out."""
        return _forms(getattr(self, what), held_out)


@cache
def _forms(phrasings: tuple[str, ...], held_out: bool) -> tuple[int, ...]:
    return tuple(number for number in range(len(phrasings)) if (number % 6 == 4) == held_out)


@dataclass(frozen=True)
class Entity:
    """Describes a person or a town; `facts` maps a relation to its value."""

    kind: str
    name: str
    pronoun: str
    facts: dict[str, str]

    @property
    def described(self) -> str:
        """Return a text of all facts, in phrasings of pretraining."""
        return " ".join(
            state(self, relation, RELATIONS[self.kind][relation].forms("statements")[0]) for relation in self.facts
        )


RELATIONS: dict[str, dict[str, Relation]] = {
    "person": {
        "trade": Relation(
            expand(
                "{name} (is|works as|has been|has become) {a}.",
                "{name} earns (a|an honest) living as {a}.",
                "The (trade|job|work) of {name} is that of {a}.",
                "(Everyone|The whole street) knows {name} as {a}.",
                "By (trade|calling) {name} is {a}.",
            ),
            expand(
                "What is the (trade|job|work|profession) of {name}?",
                "What is {name}'s (trade|job|work|profession)?",
                "What does {name} (work as|do for work|do for a living)?",
                "How does {name} earn a living?",
                "Which (trade|job|work|profession) does {name} have?",
            ),
            expand("Who (is|works as) {a}?", "Which of them is {a}?", "Who earns a living as {a}?"),
        ),
        "home": Relation(
            expand(
                "{name} (lives|has a house|makes a home|grew up) in {value}.",
                "{name} comes from {value}.",
                "The (home|house) of {name} (is|stands) in {value}.",
                "You (can|will) find {name} in {value}.",
                "{name} (was born|settled) in {value} and still lives there.",
            ),
            expand(
                "Where (does {name} live|does {name} come from|can you find {name})?",
                "In which town (is the home of {name}|is the house of {name}|does {name} live)?",
                "(Which|What) town does {name} (live in|come from)?",
                "Where is {name}'s (house|home)?",
                "Where is the (house|home) of {name}?",
            ),
            expand("Who (lives in|comes from|has a house in) {value}?"),
        ),
        "dish": Relation(
            expand(
                "{name} (likes|loves) {value} best.",
                "{name} (eats|cooks) {value} every day.",
                "Nothing tastes better to {name} than {value}.",
                "The favourite (dish|food|meal) of {name} is {value}.",
                "{name} would walk a mile for {value}.",
                "{name} (always|often) asks for {value}.",
                "On (holidays|Sundays) {name} wants {value}.",
            ),
            expand(
                "What does {name} like to eat?",
                "What is the favourite (dish|food|meal) of {name}?",
                "What is {name}'s favourite (dish|food|meal)?",
                "Which (dish|food|meal) does {name} (like best|love best|ask for|want)?",
                "What does {name} (always ask for|eat every day|want to eat|like best)?",
            ),
            expand("Who (likes|loves) {value} best?", "Who eats {value} every day?", "Who always asks for {value}?"),
        ),
        "pet": Relation(
            expand(
                "{name} (keeps|owns|feeds|takes good care of) {a}.",
                "{name} has {a} (at home|in the yard).",
                "The (pet|animal) of {name} is {a}.",
                "{name} is never seen without {a}.",
                "{name} (bought|found) {a} last year.",
            ),
            expand(
                "(Which|What) (animal|pet) does {name} (keep|own|have|feed)?",
                "What is the (pet|animal) of {name}?",
                "What is {name}'s (pet|animal)?",
                "(Which|What kind of) animal lives with {name}?",
            ),
            expand("Who (keeps|owns|feeds) {a}?", "Who has {a} at home?"),
        ),
        "door": Relation(
            expand(
                "{name} has {a} (door|front door).",
                "The (door|front door) of {name} is {value}.",
                "{name} painted the (door|front door) {value}.",
                "{name} lives behind {a} (door|front door).",
                "{name} chose {value} for the (door|front door).",
                "The house of {name} has {a} (door|front door).",
            ),
            expand(
                "(What|Which) colour is the (door|front door) of {name}?",
                "(What|Which) colour is {name}'s (door|front door)?",
                "(What|Which) colour did {name} (paint the door|choose for the door)?",
                "What is the colour of {name}'s (door|front door)?",
                "Behind a door of which colour does {name} live?",
            ),
            expand("Who has {a} door?", "Who lives behind {a} door?", "Whose door is {value}?"),
        ),
    },
    "town": {
        "river": Relation(
            expand(
                "{name} (lies|stands|was built) (on|beside) the {value}.",
                "The {value} (flows|runs) through {name}.",
                "In {name} people (fish|swim) in the {value}.",
                "The river (at|of) {name} is the {value}.",
                "The {value} passes the (walls|houses) of {name}.",
            ),
            expand(
                "Which river (flows|runs) through {name}?",
                "(On|Beside) which river (does {name} lie|was {name} built|does {name} stand)?",
                "What is the river (of|at) {name} called?",
                "What is the river (of|at) {name}?",
                "Which river is (at|in) {name}?",
            ),
            expand("Which town (lies on|stands beside) the {value}?", "Through which town does the {value} flow?"),
        ),
        "product": Relation(
            expand(
                "{name} is (known|famous) for its {value}.",
                "{name} sells {value} to the whole (country|world).",
                "People in {name} (make|sell) {value}.",
                "{name} (has|makes) the best {value} of all.",
                "{name} grew rich on {value}.",
                "Traders (go|travel) to {name} for {value}.",
                "The pride of {name} is its {value}.",
            ),
            expand(
                "What is {name} (known|famous) for?",
                "What do people in {name} (make|sell)?",
                "What does {name} (sell|make)?",
                "What do traders (go|travel) to {name} for?",
                "On what did {name} grow rich?",
                "What is (made|sold) in {name}?",
                "What is the pride of {name}?",
            ),
            expand("Which town is (known|famous) for its {value}?", "Where do people make {value}?"),
        ),
        "fair": Relation(
            expand(
                "The fair (of|in|at) {name} is in {value}.",
                "{name} (holds|has|opens) its fair in {value}.",
                "Every {value} there is a fair in {name}.",
                "{name} is full of visitors in {value}, when the fair comes.",
                "In {value} {name} (holds|has|opens) its fair.",
                "{name} waits all year for its fair in {value}.",
            ),
            expand(
                "When is the fair (of|in|at) {name}?",
                "In which month (does {name} hold its fair|is the fair of {name}|is the fair in {name})?",
                "When does {name} (hold|have|open) its fair?",
                "Which month brings the fair to {name}?",
                "When does the fair come to {name}?",
            ),
            expand("Which town holds its fair in {value}?", "Where is there a fair in {value}?"),
        ),
        "bread": Relation(
            expand(
                "(Bread|A loaf) costs {value} coins in {name}.",
                "In {name} you pay {value} coins for (bread|a loaf).",
                "The price of (bread|a loaf) in {name} is {value} coins.",
                "{name} bakers ask {value} coins for (bread|a loaf).",
                "{name} sells its bread for {value} coins.",
                "For {value} coins you get (bread|a loaf) in {name}.",
            ),
            expand(
                "How (many coins|much) does (bread|a loaf) cost in {name}?",
                "What is the price of (bread|a loaf) in {name}?",
                "How many coins do you pay for (bread|a loaf) in {name}?",
                "What does (bread|a loaf) cost in {name}?",
                "How (many coins|much) is (bread|a loaf) in {name}?",
            ),
            expand("In which town does bread cost {value} coins?", "Where is a loaf {value} coins?"),
        ),
        "mayor": Relation(
            expand(
                "The mayor of {name} is (|called ){value}.",
                "{value} is the mayor (of|in) {name}.",
                "{name} is (ruled|led) by {value}.",
                "{name} chose {value} as its mayor.",
                "In {name} the keys belong to {value}, the mayor.",
                "{name} has a mayor (called|named) {value}.",
                "For years {value} has been mayor of {name}.",
            ),
            expand(
                "Who is the mayor (of|in) {name}?",
                "Who (rules|leads) {name}?",
                "Whom did {name} choose as (its|the) mayor?",
                "What is the mayor (of|in) {name} called?",
                "Who is {name}'s mayor?",
                "Which mayor does {name} have?",
            ),
            expand("Of which town is {value} the mayor?", "Which town did {value} become mayor of?"),
        ),
    },
}
_VALUES = {
    "trade": words.TRADES,
    "dish": words.DISHES,
    "pet": words.PETS,
    "door": words.COLOURS,
    "product": words.PRODUCTS,
    "fair": words.MONTHS,
    "bread": [str(price) for price in range(2, 60)],
}
_NAME_KINDS = {"home": "town", "river": "river", "mayor": "person"}


def person(rng: Random, *, held_out: bool = False, town: str | None = None) -> Entity:
    """Draw a new person, who lives in the given town or in a new one."""
    entity = _entity(rng, "person", held_out)
    return entity if town is None else replace(entity, facts={**entity.facts, "home": town})


def town(rng: Random, *, held_out: bool = False) -> Entity:
    """Draw a new town."""
    return _entity(rng, "town", held_out)


def _entity(rng: Random, kind: str, held_out: bool) -> Entity:
    facts = {
        relation: name(rng, _NAME_KINDS[relation], held_out=held_out)
        if relation in _NAME_KINDS
        else rng.choice(_VALUES[relation])
        for relation in RELATIONS[kind]
    }
    pronoun = rng.choice(("She", "He")) if kind == "person" else "It"
    return Entity(kind, name(rng, kind, held_out=held_out), pronoun, facts)


@cache
def known(seed: int = 0) -> tuple[Entity, ...]:
    """Return the people and towns that pretraining teaches: every name once, people living in these towns."""
    rng = Random(derive(seed, "known"))
    towns = [town(rng) for _ in range(TOWNS)]
    people = [person(rng, town=rng.choice(towns).name) for _ in range(PEOPLE)]
    return tuple({entity.name: entity for entity in (*towns, *people)}.values())


def state(entity: Entity, relation: str, form: int, *, pronoun: bool = False) -> str:
    """State a fact in the given form, with a pronoun where the form allows one."""
    template = RELATIONS[entity.kind][relation].statements[form]
    if pronoun and template.startswith("{name} "):
        template = entity.pronoun + template.removeprefix("{name}")
    return _fill(template, entity, relation)


def ask(entity: Entity, relation: str, form: int) -> str:
    """Write the question whose answer is the fact's value."""
    return _fill(RELATIONS[entity.kind][relation].questions[form], entity, relation)


def ask_who(entity: Entity, relation: str, form: int) -> str:
    """Write the question whose answer is the entity's name."""
    return _fill(RELATIONS[entity.kind][relation].who[form], entity, relation)


def _fill(template: str, entity: Entity, relation: str) -> str:
    value = entity.facts[relation]
    return template.format(name=entity.name, value=value, a=with_article(value))
