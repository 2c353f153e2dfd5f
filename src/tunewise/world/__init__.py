"""A small world in plain English, a model pretrained on it, and a task in it: what `tunewise demo` runs on.

Nothing is downloaded: the text is generated from a seed and the model (about half a million parameters) is trained on
it in well under a minute on two cores. The pretraining text tells of places, food and moods; the task, telling
happy reviews from unhappy ones, is never spelled out in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunewise.evaluate import encoder_for
from tunewise.model import Base
from tunewise.seeds import derive, generator
from tunewise.task import Example, Message, Task, split_by_content
from tunewise.technique import make
from tunewise.train import TrainSettings, train

_PEOPLE = [
    "anna",
    "ben",
    "clara",
    "david",
    "emma",
    "frank",
    "greta",
    "hugo",
    "ida",
    "jonas",
    "lena",
    "mark",
    "nora",
    "otto",
    "paula",
    "rosa",
]
_PLACES = ["inn", "cafe", "hotel", "market", "bakery", "tavern", "kitchen", "garden"]
_THINGS = ["soup", "bread", "room", "coffee", "service", "table", "cake", "fish", "music", "tea"]
_GOOD = ["warm", "fresh", "friendly", "clean", "lovely", "kind", "tasty", "quiet", "bright", "generous"]
_BAD = ["cold", "stale", "rude", "dirty", "awful", "slow", "bitter", "noisy", "dark", "greedy"]
_JOY = ["smiled and stayed", "came back the next day", "thanked the cook", "told every friend", "was happy"]
_GRIEF = ["frowned and left", "never came back", "asked for the money", "told nobody", "was sad"]
_TAILS = ("", " last night", " again", " in may", " by the river", " this week")


def _story(rng: random.Random) -> str:
    good = rng.random() < 0.5
    words, ends = (_GOOD, _JOY) if good else (_BAD, _GRIEF)
    person, place = rng.choice(_PEOPLE), rng.choice(_PLACES)
    first, second = rng.sample(_THINGS, 2)
    return rng.choice(
        [
            f"{person} went to the {place} . the {first} was {rng.choice(words)} . {person} {rng.choice(ends)} .",
            f"at the {place} the {first} was {rng.choice(words)} and the {second} was {rng.choice(words)} .",
            f"{person} found the {first} {rng.choice(words)} and {rng.choice(ends)}{rng.choice(_TAILS)} .",
            f"{person} lives near the {place}{rng.choice(_TAILS)} and likes the {first} .",
        ]
    )


def stories(count: int, seed: int = 0) -> tuple[str, ...]:
    """Pretraining text: `count` short stories; the same seed gives the same stories."""
    rng = random.Random(derive(seed, "stories"))  # noqa: S311 (a world, not a secret)
    return tuple(_story(rng) for _ in range(count))


def reviews(seed: int = 0) -> Task:
    """Sentiment of short reviews, 600 of them split by content."""
    rng = random.Random(derive(seed, "reviews"))  # noqa: S311
    forms = list(product(_PLACES, _THINGS, range(10), (True, False)))
    rng.shuffle(forms)
    examples = []
    for place, thing, number, good in forms[:600]:
        words, label = (_GOOD, "positive") if good else (_BAD, "negative")
        text = f"the {thing} at the {place} was {words[number]}{rng.choice(_TAILS)} ."
        if rng.random() < 0.5:
            text += f" the {rng.choice(_THINGS)} was {rng.choice(words)} too ."
        examples.append(Example((Message("user", text),), label, (label,)))
    splits = split_by_content(examples, ("validation", "test"), kind="classification")
    return Task(
        name="reviews",
        kind="classification",
        format="classification",
        train=tuple(splits["train"]),
        validation=tuple(splits["validation"]),
        test=tuple(splits["test"]),
        labels=("negative", "positive"),
        metric="accuracy",
        source="tunewise.world",
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """One entry a word; other characters stand for themselves."""
    words = sorted(
        {word for story in stories(4000) for word in story.split()} | {"Label:", "positive", "negative", "too"}
    )
    letters = [chr(code) for code in range(32, 127)]
    entries = ["<s>", "</s>", "<unk>", "\n", *(f"▁{word}" for word in words), "▁", *letters]
    known = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    raw = Tokenizer(
        models.Unigram([(entry, -1.0 * len(entry) ** 0.5) for entry in known], unk_id=2, byte_fallback=False)
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    raw.decoder = decoders.Metaspace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def model(seed: int = 0, steps: int = 250, progress: Callable[[int, int], None] = lambda step, total: None) -> Base:
    """A Llama of about half a million parameters, pretrained on 4,000 stories."""
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    torch.manual_seed(derive(seed, "init"))
    base = Base(LlamaForCausalLM(config), tokenizer, "tunewise world")
    text = tuple(Example((), story, (story,)) for story in stories(4000, seed))
    task = Task("stories", "text", "text", text, text[:64], text[:64], (), "likelihood")
    attachment = make("full", {"full": {"learning_rate": 3e-3}}).attach(base, generator(seed, "pretrain"))
    settings = TrainSettings(max_steps=steps, per_device_train_batch_size=32)
    sequences = encoder_for(attachment, task).encode(text)
    train(attachment, sequences, settings, seed=seed, on_step=lambda step, loss: progress(step, steps))
    return Base(base.model, tokenizer, "tunewise world")
