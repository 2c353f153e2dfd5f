"""Writes happy and unhappy reviews of inns, shops and fairs; where feelings are mixed, the end decides."""

from __future__ import annotations

from random import Random

from tunewise.data.world import words

_PLACES = "inn cafe hotel market bakery tavern kitchen garden theatre bath shop ferry".split()
_THINGS = "soup bread room coffee service table cake fish music tea bed wine stage water counter staff".split()
_OPEN = (
    "The {thing} at the {place} was {word}.",
    "We found the {thing} {word}.",
    "What {a} {place}!",
    "I went to the {place} and the {thing} was {word}.",
    "Our {thing} was {word} from the first minute.",
    "At the {place} everything was {word}, even the {thing}.",
    "{word_} {thing}, {word2} {thing2}.",
    "Never have I seen such {a} {place}.",  # held out of pretraining
)
_MORE = (
    "The {thing} was {word} too.",
    "And the {thing}? Simply {word}.",
    "My friend called the {thing} {word}.",
    "They gave us {a} {thing}.",
    "The {thing} turned out {word}.",
)
_TURN = ("But the {thing} was {word}.", "Only the {thing} was {word}.", "The {thing}, though, was {word}.")
_HAPPY = (
    "We will come again.",
    "I told all my friends to go.",
    "We left with a smile.",
    "I wish we had stayed longer.",
    "Five stars.",
    "It made our whole week.",
)
_SAD = (
    "We will never come again.",
    "I told all my friends to stay away.",
    "We left early.",
    "I want my money back.",
    "One star.",
    "It spoiled our whole week.",
)
_HELD_OUT = 3  # adjectives of each feeling that the task's training split never uses


def review(rng: Random, happy: bool, *, split: str | None = None) -> str:
    """Write one review.

    The "train" and "test" splits of a task use different adjectives and openings; None is for pretraining.
    """
    matching, opposite = (words.GOOD, words.BAD) if happy else (words.BAD, words.GOOD)
    ends = _HAPPY if happy else _SAD
    opens: tuple[str, ...] = _OPEN[:-1]
    if split == "train":
        matching, opposite, opens = matching[:-_HELD_OUT], opposite[:-_HELD_OUT], _OPEN[:-2]
    elif split == "test":
        matching, opposite, opens = matching[-_HELD_OUT - 5 :], opposite[-_HELD_OUT - 5 :], _OPEN[-4:]
    mixed = rng.random() < 0.25
    parts = [_fill(rng, rng.choice(opens), opposite if mixed else matching)]
    if rng.random() < 0.5:
        parts.append(_fill(rng, rng.choice(_TURN if mixed else _MORE), matching))
    if mixed or rng.random() < 0.5:
        parts.append(rng.choice(ends))
    return " ".join(parts)


def _fill(rng: Random, template: str, adjectives: list[str]) -> str:
    word, word2 = rng.sample(adjectives, 2)
    thing, thing2 = rng.sample(_THINGS, 2)
    return template.format(
        place=rng.choice(_PLACES),
        thing=thing,
        thing2=thing2,
        word=word,
        word2=word2,
        word_=word.capitalize(),
        a=words.with_article(word),
    )
