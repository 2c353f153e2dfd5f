"""An adaptation of a base whose embeddings were resized: the same rows again when it is loaded, exported and read."""

import copy
import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptation_files import contents, write_contents
from tunewise.adaptation.artifact import base_of, load, save
from tunewise.core.errors import ArtifactError, ModelError
from tunewise.engine.model import load_base
from tunewise.export.export import export
from tunewise.techniques.registry import make
from tunewise.testing import attach, fit, tiny_base, tiny_task


@pytest.fixture
def folder(tmp_path):
    """A model folder to whose tokenizer two tokens were added."""
    base = tiny_base()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens([f"<{index}>" for index in range(len(tokenizer), 320)])
    tokenizer.add_tokens(["<tool>", "<result>"])
    base.model.save_pretrained(tmp_path / "added")
    tokenizer.save_pretrained(tmp_path / "added")
    return tmp_path / "added"


@torch.no_grad()
def logits_of(model):
    return model(input_ids=torch.tensor([[0, 5, 320, 321, 7]])).logits[0]


@pytest.mark.parametrize("technique", ["lora", "full", "prompt_tuning", "peft:ia3"])
def test_an_adaptation_applies_the_rows_again(technique, folder, tmp_path):
    base = load_base(folder, resize_embeddings=True)
    attachment = attach(make(technique), base)
    fit(attachment)
    expected = logits_of(base.model)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    base.release()
    loaded = load(tmp_path / "adaptation")
    assert loaded.record.base.embedding_rows == 322
    assert torch.equal(logits_of(loaded.attachment.base.model), expected)
    assert base_of(tmp_path / "adaptation").vocabulary == 322
    with pytest.raises(ArtifactError, match="resized to 322 rows, and tiny-llama has 320"):
        load(tmp_path / "adaptation", base=tiny_base())


def test_a_merged_export_holds_the_rows(folder, tmp_path):
    base = load_base(folder, resize_embeddings=True)
    attachment = attach(make("lora"), base)
    fit(attachment)
    expected = logits_of(base.model)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    base.release()
    export(tmp_path / "adaptation", "merged", tmp_path / "merged", parity_prompts=None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(merged), expected, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("<tool>", add_special_tokens=False)["input_ids"] == [320]
    assert load_base(tmp_path / "merged").vocabulary == 322


def test_peft_reads_the_rows_beside_the_adapter(folder, tmp_path):
    base = load_base(folder, resize_embeddings=True)
    attachment = attach(make("lora"), base)
    fit(attachment)
    expected = logits_of(base.model)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    plain = tiny_base().model
    plain.resize_token_embeddings(322)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adaptation"))
    assert torch.allclose(logits_of(theirs), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [10**6, 10**15])
def test_rows_without_bound_are_not_allocated(rows, folder, tmp_path):
    base = load_base(folder, resize_embeddings=True)
    save(attach(make("lora"), base), tiny_task(), tmp_path / "adaptation")
    facts, tensors = contents(tmp_path / "adaptation")
    facts["base"]["embedding_rows"] = rows
    write_contents(tmp_path / "adaptation", facts, tensors)
    with pytest.raises(ModelError, match=f"embeddings of {rows:,} rows are asked for"):
        load(tmp_path / "adaptation")


def test_a_token_of_a_huge_id_gets_no_embedding(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["far"] = 4_000_000_000
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"embeddings of 4,000,000,001 rows are asked for"):
        load_base(folder, resize_embeddings=True)
