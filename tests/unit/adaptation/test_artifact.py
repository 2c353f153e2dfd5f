"""What a fit leaves on disk: it comes back exactly, onto its own base alone, and nothing altered is accepted."""

import pytest
import torch

from adaptation_files import contents, write_contents
from tunewise.adaptation.artifact import FILE, PEFT_WEIGHTS, load, save
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.data.task import Example, Message
from tunewise.techniques.registry import make
from tunewise.testing import attach, fingerprint, fit, logits, tiny_base, tiny_task


@pytest.fixture
def saved(tmp_path):
    base = tiny_base()
    attachment = attach(make("lora"), base)
    fit(attachment)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    attachment.detach()
    return tmp_path / "adaptation", base


def test_another_base_is_refused(saved):
    folder, base = saved
    with torch.no_grad():
        base.anatomy.head.weight[3, 4] += 1e-3
    other = type(base)(base.model, base.tokenizer, "other")
    with pytest.raises(ArtifactError, match="another base than other"):
        load(folder, base=other)
    with pytest.raises(ArtifactError, match="another base"):
        load(folder, base=tiny_base("gpt2"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adaptation.json", "manifest.json"])
def test_altered_missing_and_extra_files_are_refused(saved, name):
    folder, base = saved
    before = fingerprint(base)
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
    with pytest.raises(ArtifactError):
        load(folder, base=base)
    (folder / name).unlink()
    with pytest.raises(ArtifactError):
        load(folder, base=base)
    (folder / name).write_bytes(raw)
    (folder / "more.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"more\.json"):
        load(folder, base=base)
    (folder / "more.json").unlink()
    load(folder, base=base).attachment.detach()
    assert fingerprint(base) == before


def forged(folder, change):
    """The same folder with other content and a manifest that fits it."""
    facts, tensors = contents(folder)
    change(facts, tensors)
    write_contents(folder, facts, tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, tensors: tensors.pop(next(iter(tensors))),
        lambda facts, tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(320, 32)}),
        lambda facts, tensors: tensors.update({next(iter(tensors)): torch.zeros(2, 2)}),
        lambda facts, tensors: tensors[next(iter(tensors))].fill_(float("inf")),
        lambda facts, tensors: facts.update(format=99),
        lambda facts, tensors: facts.update(technique="no such"),
        lambda facts, tensors: facts["settings"].update(r=7),
        lambda facts, tensors: facts.update(settings={"evil": 1}),
        lambda facts, tensors: facts.pop("base"),
        lambda facts, tensors: facts.update(style=[]),
    ],
)
def test_coherent_forgeries_are_refused_too(saved, change):
    folder, base = saved
    before = fingerprint(base)
    forged(folder, change)
    with pytest.raises(Exception, match=r"\w") as raised:
        load(folder, base=base)
    assert raised.type.__module__ == "tunewise.core.errors", raised.value
    assert fingerprint(base) == before and not any(m._forward_hooks for m in base.model.modules())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to(torch.int8), "is torch.int8, where a weight is a float"),
        (lambda tensor: tensor.to(torch.bool), "is torch.bool, where a weight is a float"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, where a weight is a float"),
        (lambda tensor: tensor * float("nan"), "not finite"),
    ],
)
@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_what_only_peft_reads_is_refused_too(tmp_path, name, change, said):
    """Tensors of an adaptation that lie in another form in PEFT's file."""
    base = tiny_base()
    attachment, folder = attach(make(name), base), tmp_path / "adaptation"  # lora's B are zeros: one stands for all
    save(attachment, tiny_task(), folder)
    attachment.detach()
    stored = artifact_writer.read(folder)
    ours = set(stored.json(FILE).get("peft_tensors", {}).values())
    theirs, texts = stored.tensors(PEFT_WEIGHTS), {n: stored.text(n) for n in stored.names if not n.endswith("tensors")}
    key = min(theirs.keys() - ours)
    tensors = {n: stored.tensors(n) for n in stored.names if n.endswith("tensors")}
    artifact_writer.commit(folder, texts=texts, tensors=tensors | {PEFT_WEIGHTS: theirs | {key: change(theirs[key])}})
    with pytest.raises(ArtifactError, match=said):
        load(folder, base=base)


def test_rows_of_any_text_come_back(tmp_path):
    """Line separators that are not line feeds do not cut a row in two."""
    from dataclasses import replace

    task = tiny_task()
    odd = Example((Message("user", "one\u2028two\u0085three\nfour"),), "old", ("old",))
    task = replace(task, train=(*task.train, odd))
    base = tiny_base()
    attachment = attach(make("icl", {"icl": {"k": 2}}), base, task)
    expected = logits(attachment, task)
    save(attachment, task, tmp_path / "adaptation")
    loaded = load(tmp_path / "adaptation", base=base)
    assert odd.messages in [example.messages for example in loaded.attachment.pool]
    assert torch.equal(logits(loaded.attachment, task), expected)


def test_generate_answers_in_the_tasks_own_format(saved):
    folder, base = saved
    loaded = load(folder, base=base)
    assert loaded.generate("the cat sat on a mat by day 3", max_new_tokens=3) == loaded.generate(
        "the cat sat on a mat by day 3", max_new_tokens=3
    )


def test_a_rank_is_chosen_when_loading_and_what_training_fixed_is_not(tmp_path):
    base, task = tiny_base(), tiny_task()
    attachment = attach(make("dylora", {"dylora": {"r": 4}}), base, task)
    fit(attachment, steps=6)
    attachment.b = 2
    expected = logits(attachment, task)
    attachment.b = attachment.rank
    save(attachment, task, tmp_path / "adaptation")
    attachment.detach()
    loaded = load(tmp_path / "adaptation", base=base, settings={"dylora": {"rank": 2}})
    assert torch.equal(logits(loaded.attachment, task), expected)
    loaded.attachment.detach()
    for wrong, message in (({"dylora": {"r": 2}}, "only rank can"), ({"lora": {"r": 2}}, "no part called lora")):
        with pytest.raises(SettingError, match=message):
            load(tmp_path / "adaptation", base=base, settings=wrong)
