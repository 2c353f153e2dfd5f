"""Answers are tokenized from the last control token of their prompts on, with the ids of the whole text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from chat_layouts import LAYOUTS, Layout, Model
from tunewise.data.task import Example, Message, Task
from tunewise.engine.encoding import Encoder

TEXT = "the cat sat on a mat and the dog ran to town while small birds sing . user assistant system \n é "
ANSWERS = ["dog", " dog", "dog ", "", "\n", "é", "<|im_end|>", "<|im_start|>assistant\ndog", "</s>", "a<s>b"]


def _bpe(pre_tokenizer, normalizer=None) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        bpe.normalizer = normalizer
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁", "\n", "é"]
    bpe.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
BYTES = pre_tokenizers.ByteLevel
TOKENIZERS = {  # with what an added token takes or needs beside it
    "bytes": (BYTES(add_prefix_space=False), None, {}),
    "bytes with a space before": (BYTES(add_prefix_space=True), None, {}),
    "pieces, a mark before all": (pre_tokenizers.Metaspace(prepend_scheme="always"), None, {}),
    "pieces, a mark before the first": (pre_tokenizers.Metaspace(prepend_scheme="first"), None, {}),
    "pieces, a mark by normalization": (pre_tokenizers.Split("x", "isolated"), LEGACY, {}),
    "tokens that take the space before": (BYTES(), None, {"lstrip": True}),
    "tokens that take the space behind": (BYTES(), None, {"rstrip": True}),
    "tokens that are whole words": (BYTES(), None, {"single_word": True}),
    "tokens that are normalized": (BYTES(), normalizers.Lowercase(), {"normalized": True}),
}


def with_tokenizer(layout: Layout, kind: str) -> Model:
    """Make a tokenizer of this kind with a layout's control tokens and template."""
    pre_tokenizer, normalizer, options = TOKENIZERS[kind]
    tokenizer = _bpe(pre_tokenizer, normalizer)
    names = list(dict.fromkeys(layout.special))
    marks = [AddedToken(name, **{"normalized": False, **options}, special=True) for name in names]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.add_tokens(list(layout.plain))
    tokenizer.bos_token, tokenizer.eos_token = (
        marks[names.index(layout.special[0])],
        marks[names.index(layout.special[1])],
    )
    tokenizer.chat_template = layout.template or None
    return Model(tokenizer, tuple(int(tokenizer.convert_tokens_to_ids(end)) for end in layout.ends))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ids_are_those_of_the_whole_text(layout, kind):
    questions = ["the cat", "the cat ", "<|im_start|>", "a\n<|eot_id|>"]
    examples = [Example((Message("user", question),), answer) for question in questions for answer in ANSWERS]
    task = Task("t", "generation", "messages", tuple(examples), (), (), (), "rouge_l")
    encoder = Encoder(with_tokenizer(LAYOUTS[layout], kind), task)
    rows = list(encoder.untruncated(examples))
    for example, row in zip(examples, rows, strict=True):
        rendering = encoder._render(example)
        prompt, whole = encoder._tokenize([rendering.prompt]), encoder._tokenize([rendering.prompt + rendering.answer])
        assert row.prompt == prompt[0]
        answer = encoder._continuation(prompt[0], whole[0], rendering.answer)
        assert row.answer[: len(answer)] == answer
        assert len(row.answer) - len(answer) in (0, 1)  # the end that the template does not write


def test_a_prompt_is_tokenized_once_and_equal_answers_too(monkeypatch):
    examples = [Example((Message("user", f"the cat {number}"),), ANSWERS[number % 2]) for number in range(20)]
    task, texts = Task("t", "generation", "messages", tuple(examples), (), (), (), "rouge_l"), list[str]()
    encoder = Encoder(with_tokenizer(LAYOUTS["chatml"], "bytes"), task)
    ids = encoder._ids
    monkeypatch.setattr(encoder, "_ids", lambda given, plain: texts.extend(given) or ids(given, plain=plain))
    assert len(list(encoder.untruncated(examples))) == len(examples)
    assert len(texts) == len(examples) + 3  # the end of a prompt alone, and with either answer
