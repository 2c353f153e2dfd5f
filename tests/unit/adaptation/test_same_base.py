"""What an adaptation was trained with and what it is loaded on: told where they differ, and only there."""

import copy
import json
import logging

import peft
import pytest

from adaptation_files import contents, write_contents
from tunewise.adaptation.artifact import base_of, load, save
from tunewise.adaptation.same_base import TextRecord, warn_once
from tunewise.core.errors import ArtifactError, ModelError
from tunewise.engine.model import Base
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"


@pytest.fixture(autouse=True)
def told_anew():
    warn_once.cache_clear()


def based(template=None):
    base = tiny_base()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = template
    return Base(base.model, tokenizer, base.name)


def saved(folder, base):
    attachment = attach(make("lora"), base)
    save(attachment, tiny_task(), folder)
    base.release()
    return folder


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "tunewise"]


def test_the_same_base_is_loaded_without_a_word(tmp_path, caplog):
    folder = saved(tmp_path / "adaptation", based(TEMPLATE))
    load(folder, base=based(TEMPLATE))
    assert not warnings(caplog)
    assert (
        json.loads((folder / "adaptation.json").read_text())["base"]["text"]
        == TextRecord.of(based(TEMPLATE).tokenizer).to_json()
    )


@pytest.mark.parametrize(("before", "after"), [(TEMPLATE, TEMPLATE + "x"), (None, TEMPLATE), (TEMPLATE, None)])
def test_another_chat_template_is_told(before, after, tmp_path, caplog):
    folder = saved(tmp_path / "adaptation", based(before))
    with caplog.at_level(logging.WARNING):
        load(folder, base=based(after))
        load(folder, base=based(after))
    (sentence,) = warnings(caplog)
    assert f"{folder}: was trained with another chat template" in sentence and "former template" in sentence
    assert ('"{% for m in messages %}' in sentence) and ("(none)" in sentence) == (None in (before, after))


def test_another_tokenizer_is_told(tmp_path, caplog):
    folder, other = saved(tmp_path / "adaptation", based()), based()
    state = json.loads(other.tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    first, second = [token for token, index in vocabulary.items() if index in (50, 51)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    other.tokenizer._tokenizer = type(other.tokenizer.backend_tokenizer).from_str(json.dumps(state))
    load(folder, base=other)
    (sentence,) = warnings(caplog)
    assert "another tokenizer than tiny-llama has" in sentence


def test_an_adaptation_without_the_record_loads_without_a_word(tmp_path, caplog):
    folder = saved(tmp_path / "adaptation", based(TEMPLATE))
    facts, tensors = contents(folder)
    del facts["base"]["text"]
    write_contents(tmp_path / "old", facts, tensors)
    load(tmp_path / "old", base=based())
    assert not warnings(caplog)
    facts["base"]["text"] = {"chat_template": 3}
    write_contents(tmp_path / "forged", facts, tensors)
    with pytest.raises(ArtifactError, match="chat_template"):
        load(tmp_path / "forged", base=based())


def adapter(folder, base_name):
    base = tiny_base()
    base.model.name_or_path = base_name
    peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("recorded", "name", "is_same"),
    [
        ("org/mine", "org/mine", True),
        ("org/mine", "models/mine", True),
        ("org/Mine", "/data/models--org--mine/snapshots/0a1b", True),
        ("./models/../models/mine/", "models/mine", True),
        ("org/mine", "org/other", False),
        ("/data/mine", "world", False),
    ],
)
def test_an_adapter_of_another_base_is_told(recorded, name, is_same, tmp_path, caplog):
    folder = adapter(tmp_path / "adapter", recorded)
    load(folder, base=Base(tiny_base().model, tiny_base().tokenizer, name))
    told = warnings(caplog)
    assert not told if is_same else f"made on {recorded} and is loaded on {name}" in told[0] and "--model" in told[0]


def test_the_shipped_model_is_the_same_by_name_and_by_path(tmp_path, caplog):
    from tunewise.core.addresses import shipped_model

    folder = adapter(tmp_path / "adapter", str(shipped_model("world")))
    load(folder, base=Base(tiny_base().model, tiny_base().tokenizer, "world"))
    assert not warnings(caplog)


@pytest.mark.parametrize("read", [load, base_of])
def test_a_base_that_is_gone_names_the_remedy(read, tmp_path):
    gone = str(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"gone: there is no such folder.*--model"):
        read(adapter(tmp_path / "adapter", gone))
    base = based()
    base.name = gone
    with pytest.raises(ModelError, match=r"gone: there is no such folder.*--model"):
        read(saved(tmp_path / "adaptation", base))
    with pytest.raises(ModelError, match="there is no such folder") as error:
        read(tmp_path / "adaptation", model=gone)
    assert "--model" not in str(error.value)
