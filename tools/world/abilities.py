"""Measures what the pretrained model can do, on names, phrasings and draws that pretraining never saw.

facts      questions about the people and towns of pretraining, answered from memory, in held-out words
reading    questions that a passage about unknown people and towns answers, also with all phrasings held out
patterns   runs of worked examples, with 0 and with 8 examples before the question
"""

from __future__ import annotations

from random import Random
from statistics import fmean

import torch

from tunewise.core.seeds import derive
from tunewise.data.task import Example, Message, Task
from tunewise.data.world import corpus, patterns, tasks
from tunewise.engine.model import Base
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make

# The scores that a model must reach to be shipped, a little below those of the shipped one.
FLOORS = {"facts": 0.9, "reading, up to 5": 0.8, "reading, up to 3, new words": 0.7, "patterns, 8 shots over 0": 0.25}
_SHOTS = 8


def measure(base: Base, count: int = 400) -> dict[str, float]:
    """Return the share of exact matches of greedy answers, over `count` questions per ability, and per pattern."""
    attachment = make("base").attach(base, torch.Generator())

    def exact_matches(name: str, examples: list[Example]) -> list[float]:
        task = Task(name, "generation", "question-answer", (), (), (), (), "exact_match")
        return score(attachment, task, examples).per_example

    rng = Random(derive(0, "abilities"))
    known = rng.sample(list(tasks.memory().test), min(count, len(tasks.memory().test)))
    scores = {"facts": fmean(exact_matches("facts", known))}
    for most in (5, 3, 1):
        scores[f"reading, up to {most}"] = fmean(exact_matches("reading", _readings(rng, count, most)))
    new_words = _readings(rng, count, 3, new_words=True)
    scores["reading, up to 3, new words"] = fmean(exact_matches("reading", new_words))
    drawn = [pattern for _ in range(count) for pattern in rng.choices(list(patterns.PATTERNS), _weights())]
    runs = [_run(rng, pattern) for pattern in drawn]
    zero_shot = fmean(exact_matches("patterns", [Example(run.messages[-1:], run.answer) for run in runs]))
    few_shot = exact_matches("patterns", runs)
    scores |= {"patterns, 0 shots": zero_shot, f"patterns, {_SHOTS} shots": fmean(few_shot)}
    scores[f"patterns, {_SHOTS} shots over 0"] = fmean(few_shot) - zero_shot
    for pattern in patterns.PATTERNS:
        matches = [value for value, name in zip(few_shot, drawn, strict=True) if name == pattern]
        scores[f"{pattern}, {_SHOTS} shots"] = sum(matches) / max(len(matches), 1)  # a quick try may draw none
    return scores


def _weights() -> list[int]:
    return [weight for weight, _ in patterns.PATTERNS.values()]


def _readings(rng: Random, count: int, most: int, *, new_words: bool = False) -> list[Example]:
    """Draw passages about up to `most` people and towns, each with a question that it answers."""
    examples: list[Example] = []
    while len(examples) < count:
        text, questions = corpus.passage(rng, held_out=True, new_words=new_words, most=most)
        question, answer = questions[0]
        examples.append(Example((Message("user", f"{text}\n\n{question}"),), answer))
    return examples


def _run(rng: Random, pattern: str) -> Example:
    """Draw a question of one pattern after worked examples of it."""
    pair = patterns.draw(rng, held_out=True, only=pattern)
    pairs = [pair() for _ in range(_SHOTS + 1)]
    messages = [Message(role, text) for x, y in pairs for role, text in (("user", x), ("assistant", y))]
    return Example(tuple(messages[:-1]), pairs[-1][1])
