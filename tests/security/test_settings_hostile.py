"""Settings of every technique as a command line gives them: each is taken as it stands, or refused in one sentence."""

import random
from dataclasses import fields

import pytest

import figures
from tunewise.core.errors import SettingError, TechniqueError
from tunewise.resolve import TechniqueOptions, recipes_of
from tunewise.techniques.registry import all_techniques

pytestmark = [pytest.mark.figure("M2"), pytest.mark.timeout(figures.of(300, 3600))]

TRIED = figures.of(500, 20_000)
VALUES = (
    *(
        "0",
        "-0",
        "1",
        "8",
        "-1",
        "1.5",
        "1e-4",
        "1e400",
        "-1e400",
        ".nan",
        ".inf",
        "9" * 400,
        "0x10",
        "1_000",
        "01",
        "1e",
    ),
    *(
        "",
        " ",
        "~",
        "null",
        "true",
        "no",
        "text",
        "'",
        '"',
        "a: b",
        "- a",
        "[",
        "]",
        "[]",
        "{}",
        "[1, 2]",
        "[[a]]",
        "{a: 1}",
    ),
    *(
        "&a [*a]",
        "*a",
        "!!python/object:os.system {}",
        "!!binary x",
        "2026-11-29",
        "? a",
        "%",
        "@",
        "`",
        "|",
        "> ",
        "---",
    ),
    *("\x00", "\x1b[2J", "\ud800", "\u202e", "é", "a" * 5000, "[" * 3000, "(a+)+$", "../x", "~nobody", "http://x:1/y"),
)


def tried(number):
    """A technique and a setting's words, the same for the same number."""
    chance = random.Random(number)
    cls = chance.choice(sorted(all_techniques().items()))[1]
    setting = chance.choice([item.name for item in fields(cls)] or ["none"])
    value = chance.choice(VALUES)
    if chance.random() < 0.3:
        value = "".join(chance.choice(value + "[]{}:,-#&*!|>'\"%@`\n\t 0e.") for _ in range(chance.randrange(1, 20)))
    name = chance.choice([setting] * 8 + [setting[:-1], "\x1b[2J"])
    return cls.name, f"{cls.name}.{name}={value}"


def test_each_setting_is_taken_or_refused_by_name(cases):
    taken = 0
    for number in range(TRIED):
        name, words = tried(number)
        try:
            [recipe] = recipes_of(name, TechniqueOptions(sets=[words]))
        except (SettingError, TechniqueError) as error:
            assert str(error).isprintable() and len(str(error)) < 2500, words
        else:
            assert recipe.name == name, words
            taken += 1
        cases.passed()
    assert TRIED // 50 < taken < TRIED // 2, "both happen"
