"""Holds the words of the world: closed lists, and any number of names made of syllables.

One name in eight is held out: pretraining never draws it, so test examples can be about people and places that the
model has never seen.
"""

from __future__ import annotations

import hashlib
from random import Random

TRADES = """baker smith weaver miller tailor fisher potter mason carpenter sailor shepherd teacher doctor painter
printer cooper gardener hunter brewer glazier farmer tanner cobbler innkeeper clerk judge""".split()
DISHES = """soup bread cheese fish cake stew porridge pie cabbage beans eggs mushrooms dumplings pancakes plums
apples pears honey noodles pickles salad rice""".split()
PETS = "goat cat dog horse goose hen parrot rabbit donkey otter sheep crow owl fox mouse tortoise".split()
COLOURS = "red blue green yellow white black brown grey purple orange pink golden".split()
PRODUCTS = """wool glass cider paper rope clocks candles boots salt bells silk bricks barrels lamps
knives hats carpets violins ink tiles""".split()
MONTHS = "January February March April May June July August September October November December".split()
TOOLS = "hammer saw needle spade plough oven brush loom anvil chisel ladder wheel axe basket bucket kettle".split()
OPPOSITES = dict(
    pair.split("/")
    for pair in """big/small hot/cold old/new fast/slow high/low wet/dry hard/soft full/empty light/dark early/late
rich/poor loud/quiet long/short thick/thin strong/weak deep/shallow sweet/sour near/far open/closed clean/dirty
wide/narrow sharp/blunt brave/shy happy/sad first/last""".split()
)
KINDS = {"dish": DISHES, "animal": PETS, "colour": COLOURS, "trade": TRADES, "month": MONTHS, "tool": TOOLS}
GOOD = """warm fresh friendly clean lovely kind tasty bright generous charming splendid cosy honest cheerful perfect
delicious gentle pleasant wonderful helpful""".split()
BAD = """stale rude filthy awful bitter noisy greedy dull gloomy shabby broken careless burnt miserable dreadful
mouldy nasty useless horrible unkind""".split()
# Plain words for lists and labels, chosen to be unrelated to each other.
PLAIN = """river stone cloud lamp road door bridge field tower leaf shell coin feather rope mirror garden island
forest winter summer morning evening letter song dance shadow silver iron copper wood paper water fire wind snow
rain star moon hill valley lake barn fence window roof table chair cup bowl spoon""".split()

_COMMON = {*TRADES, *DISHES, *PETS, *COLOURS, *PRODUCTS, *TOOLS, *OPPOSITES, *OPPOSITES.values(), *GOOD, *BAD, *PLAIN}

_ONSETS = "b br c d dr f g gr h j k l m n p pr r s st t tr v w th".split()
_VOWELS = "a e i o u ai ea".split()
_MIDDLES = "l r n m d t v s rl nd lm rn st ll".split()
_ENDINGS = {"person": "a o e en in us ik ela ory an".split(), "town": "ford ton wick by mere gate ham holm".split()}
_ENDINGS["river"] = "ne sa ra del ber me".split()


def name(rng: Random, kind: str, *, held_out: bool = False) -> str:
    """Draw a new name for a "person", "town" or "river", one that is held out of pretraining or one that is not."""
    while True:
        stem = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES)
        if kind == "town" and rng.random() < 0.5:
            stem += rng.choice(_VOWELS) + rng.choice(_MIDDLES)
        candidate = (stem + rng.choice(_ENDINGS[kind])).capitalize()
        if is_held_out(candidate) == held_out and candidate.lower() not in _COMMON:  # not "Stale"
            return candidate


def is_held_out(word: str) -> bool:
    """Tell whether pretraining never draws this name."""
    return hashlib.sha256(word.encode()).digest()[0] % 8 == 0


def with_article(word: str) -> str:
    """Return the word with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
