"""The features that advice measures of a task and a model."""

from dataclasses import replace

import pytest

from tunewise.advice.advise import check_candidates, features_of, loss_of
from tunewise.advice.features import measure, texts_of
from tunewise.advice.plan.weightless import consulted, outline
from tunewise.data.task import Example, Message, Task
from tunewise.fitting.scoring import loss
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task


def example(prompt, answer):
    return Example((Message("user", prompt),), answer, (answer,))


def task_of(train, test, kind="generation", labels=()):
    return Task("made", kind, "prompt-completion", tuple(train), tuple(test), tuple(test), labels, "rouge_l")


def test_shares_of_answers():
    train = [example("who", "the cat"), example("where", "in town")]
    test = [
        example("is the CAT  here", "the cat"),  # copied and seen
        example("what now", "a dog"),  # neither
        example("say a bird", "a bird"),  # copied
        example("and then", "in Town"),  # seen, whatever its case
    ]
    features = measure(tiny_base(), task_of(train, test), documents=["Once a dog\nsat", "a  bird"], examples=16)
    assert (features.copied, features.unseen, features.in_documents) == (0.5, 0.5, 0.5)
    assert features.documents == 1.0 and features.generation == 1.0 and features.labels == 0.0
    assert features.train == 2 and features.epochs == 8
    without = measure(tiny_base(), task_of(train, test), examples=16)
    assert without.documents == without.in_documents == 0.0
    assert measure(tiny_base(), task_of(train, test), given=True, examples=16).documents == 1.0


def test_balance_of_labels():
    def balance(counts):
        train = [example(f"{label} {i}", label) for label, count in counts.items() for i in range(count)]
        return measure(tiny_base(), task_of(train, train, "classification", tuple(counts)), examples=1).balance

    assert balance({"a": 5, "b": 5}) == pytest.approx(1.0)
    assert balance({"a": 9, "b": 1}) == pytest.approx(0.469, abs=1e-3)
    assert balance({"a": 9, "b": 1}) > balance({"a": 99, "b": 1})


def test_lengths_are_those_of_the_tokenizer():
    base = tiny_base()
    short = measure(base, task_of([example("a cat", "b")], [example("a cat", "b")]), examples=1)
    long = measure(base, task_of([example("a cat" * 5, "b" * 9)], [example("a", "b")]), examples=1)
    assert long.prompt_tokens > short.prompt_tokens and long.answer_tokens > short.answer_tokens
    assert short.room == pytest.approx(base.window / (short.prompt_tokens + short.answer_tokens))


def test_biases_and_size_are_the_models():
    llama, gpt2 = (measure(tiny_base(name), tiny_task(), examples=1) for name in ("llama", "gpt2"))
    assert (llama.biases, gpt2.biases) == (0.0, 1.0)
    assert llama.parameters == tiny_base("llama").parameters


def test_the_loss_is_the_unadapted_models_and_leaves_it_bare():
    base, task = tiny_base(), tiny_task()
    base_loss = loss_of(base, task)
    assert not base.attached
    from tunewise.core.seeds import generator

    bare = make("base").attach(base, generator(0, "attach"))
    assert base_loss == pytest.approx(loss(bare, task, task.validation))


def test_an_outline_has_the_same_features_but_for_the_loss():
    from tunewise import load_base
    from tunewise.data import world

    base, task = load_base("world", device="cpu"), world.task("reviews")
    light = outline("world")
    assert light.device.type == "meta"
    full, bare = (features_of(each, task, knowledge=None, examples=80) for each in (base, light))
    assert bare.base_loss is None and full.base_loss > 0
    assert replace(full, base_loss=None) == bare


def test_weights_are_loaded_where_they_are(tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    assert consulted(str(folder)).device.type != "meta"
    for file in folder.glob("*.safetensors"):
        file.unlink()
    base = consulted(str(folder))
    assert base.device.type == "meta" and base.parameters > 0


def test_documents_of_the_world_are_read():
    assert len(texts_of("world:town")) > 10
    assert texts_of(None) == [] and texts_of("qdrant://localhost:6333/none") == []


def test_what_cannot_work_is_refused_with_its_reason():
    recipes = [make("lora"), make("mpt"), make("bitfit", {"bitfit": {"source": "existing"}}), make("icl+lora")]
    base = tiny_base()
    refused, swappable = check_candidates(base, tiny_task(), recipes)
    assert set(refused) == {"mpt", "bitfit"} and "source tasks" in refused["mpt"] and "bias" in refused["bitfit"]
    assert swappable["lora"] is True and not base.attached
    text = replace(tiny_task(), train=tuple(Example((), e.answer, ()) for e in tiny_task().train))
    assert "plain text" in check_candidates(base, text, [make("icl"), make("icl+lora")])[0]["icl+lora"]
