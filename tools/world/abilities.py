"""What the pretrained model can do, measured on names, phrasings and draws that pretraining never saw.

facts      questions about pretraining's people and towns, from memory, in held-out words
reading    questions that a passage about unknown people and towns answers; also with all words held out
patterns   runs of worked examples, with 0 and with 8 of them shown
"""

from __future__ import annotations

from random import Random

import torch

from tunewise.core.seeds import derive
from tunewise.data.task import Example, Message, Task
from tunewise.data.world import corpus, patterns, tasks
from tunewise.engine.model import Base
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make

# What a model must reach to be shipped, a little below what the shipped one does.
FLOORS = {"facts": 0.9, "reading, up to 5": 0.8, "reading, up to 3, new words": 0.7, "patterns, 8 shots over 0": 0.25}
_SHOTS = 8


def measure(base: Base, count: int = 400) -> dict[str, float]:
    """Exact matches of greedy answers, as shares, over `count` questions each; and per pattern with 8 shots."""
    attachment = make("base").attach(base, torch.Generator())

    def share(name: str, examples: list[Example]) -> list[float]:
        task = Task(name, "generation", "question-answer", (), (), (), (), "exact_match")
        return score(attachment, task, examples).per_example

    rng = Random(derive(0, "abilities"))
    known = rng.sample(list(tasks.memory().test), min(count, len(tasks.memory().test)))
    found = {"facts": _mean(share("facts", known))}
    for most in (5, 3, 1):
        found[f"reading, up to {most}"] = _mean(share("reading", _readings(rng, count, most)))
    found["reading, up to 3, new words"] = _mean(share("reading", _readings(rng, count, 3, new_words=True)))
    drawn = [pattern for _ in range(count) for pattern in rng.choices(list(patterns.PATTERNS), _weights())]
    runs = [_run(rng, pattern) for pattern in drawn]
    bare = _mean(share("patterns", [Example(run.messages[-1:], run.answer) for run in runs]))
    shown = share("patterns", runs)
    found |= {"patterns, 0 shots": bare, f"patterns, {_SHOTS} shots": _mean(shown)}
    found[f"patterns, {_SHOTS} shots over 0"] = _mean(shown) - bare
    for pattern in patterns.PATTERNS:
        own = [value for value, name in zip(shown, drawn, strict=True) if name == pattern]
        found[f"{pattern}, {_SHOTS} shots"] = _mean(own)
    return found


def _weights() -> list[int]:
    return [weight for weight, _ in patterns.PATTERNS.values()]


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _readings(rng: Random, count: int, most: int, *, new_words: bool = False) -> list[Example]:
    """Passages about up to `most` people and towns, a question each that they answer."""
    found: list[Example] = []
    while len(found) < count:
        text, questions = corpus.passage(rng, held_out=True, new_words=new_words, most=most)
        question, answer = questions[0]
        found.append(Example((Message("user", f"{text}\n\n{question}"),), answer))
    return found


def _run(rng: Random, pattern: str) -> Example:
    pair = patterns.draw(rng, held_out=True, only=pattern)
    pairs = [pair() for _ in range(_SHOTS + 1)]
    messages = [Message(role, text) for x, y in pairs for role, text in (("user", x), ("assistant", y))]
    return Example(tuple(messages[:-1]), pairs[-1][1])
