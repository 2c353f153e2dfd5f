"""What loads is what was meant, by the commands: added tokens, other templates, bases that are gone."""

import json
import shutil

import peft
import pytest

from tunewise.adaptation.same_base import warn_once
from tunewise.testing import tiny_base


@pytest.fixture
def added(tmp_path, model):
    """A model to whose tokenizer a token was added, and whose embeddings stayed as they were."""
    folder = shutil.copytree(model, tmp_path / "added")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    tokenizer["model"]["vocab"] |= {f"<{index}>": index for index in range(len(tokenizer["model"]["vocab"]), 320)}
    tokenizer["added_tokens"].append({"id": 320, "content": "<tool>", "normalized": True, **flags})
    file.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def tools(tmp_path, lines):
    rows = [{"prompt": f"<tool> day {i}", "completion": "cat" if i % 2 else "dog"} for i in range(40)]
    return lines(tmp_path / "tools.jsonl", rows)


def test_every_command_that_reads_a_model_names_the_remedy(added, tools, tmp_path, refused):
    for words in (
        ("check", tools),
        ("fit", "lora", "--data", tools, "--out", tmp_path / "a", "--max-steps", 2),
        ("compare", "--data", tools, "--out", tmp_path / "b", "--techniques", "base,lora", "--budget-steps", 2),
        ("plan", "--data", tools, "--techniques", "lora"),
        ("advise", "--data", tools),
        ("fit", "prompt_tuning", "--data", tools, "--out", tmp_path / "c", "--max-steps", 2),
        ("techniques", "--peft"),
    ):
        error = refused(*(("check", "--data", tools) if words[0] == "check" else words), "--model", added)
        assert '"<tool>" (id 320)' in error and "--resize-embeddings" in error


def test_the_flag_gives_the_token_an_embedding_that_stays(added, tools, tmp_path, run):
    flags = ("--model", added, "--resize-embeddings")
    assert run("check", "--data", tools, *flags).code == 0
    assert run("plan", "--data", tools, "--techniques", "lora", *flags).code == 0
    assert run("fit", "lora", "--data", tools, "--out", tmp_path / "a", "--max-steps", 2, *flags).code == 0
    words = ("--data", tools, "--out", tmp_path / "b", "--techniques", "base,lora", "--budget-steps", 2)
    assert run("compare", *words, *flags).code == 0
    assert run("eval", tmp_path / "a", "--data", tools).code == 0
    exported = run("export", tmp_path / "a", "--to", "merged", "--out", tmp_path / "merged", "--no-parity")
    assert exported.code == 0
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 321
    refusal = run("export", tmp_path / "a", "--to", "peft", "--out", tmp_path / "peft")
    assert refusal.code == 2 and "embeddings for added tokens" in refusal.err and "merged" in refusal.err


def test_another_template_is_told(fitted, model, labels, tmp_path, run, caplog):
    warn_once.cache_clear()
    other = shutil.copytree(model, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    result = run("eval", fitted, "--data", labels, "--model", other, "--json")
    assert result.code == 0 and result.json()
    assert caplog.text.count("was trained with another chat template") == 1
    caplog.clear()
    assert run("eval", fitted, "--data", labels).code == 0
    assert "chat template" not in caplog.text


def test_an_adapter_of_another_base_is_told_and_a_missing_base_names_the_flag(
    model, labels, tmp_path, run, refused, caplog
):
    warn_once.cache_clear()
    gone = tmp_path / "gone"
    base = tiny_base()
    base.model.name_or_path = str(gone)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(base.model, config).save_pretrained(tmp_path / "adapter")
    assert "--model" in refused("eval", tmp_path / "adapter", "--data", labels)
    result = run("eval", tmp_path / "adapter", "--data", labels, "--model", model, "--json")
    assert result.code == 0 and f"made on {gone} and is loaded on {model}" in caplog.text


def test_an_adapter_that_cannot_be_repeated_is_refused_by_every_command(model, labels, tmp_path, refused):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa_niter_2")
    peft.get_peft_model(tiny_base().model, config).save_pretrained(tmp_path / "adapter")
    for words in (
        ("eval", tmp_path / "adapter", "--data", labels),
        ("export", tmp_path / "adapter", "--to", "merged", "--out", tmp_path / "merged"),
        ("chat", tmp_path / "adapter"),
        ("serve", tmp_path / "adapter"),
    ):
        error = refused(*words, "--model", model)
        assert "init_lora_weights='pissa_niter_2'" in error and "path_initial_model_for_weight_conversion" in error


def test_vllm_is_not_given_an_adapter_that_changes_its_base(model, tmp_path, refused):
    base = tiny_base()
    base.model.name_or_path = str(model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    peft.get_peft_model(base.model, config).save_pretrained(tmp_path / "adapter")
    error = refused("serve", tmp_path / "adapter", "--engine", "vllm", "--dry-run")
    assert "init_lora_weights=pissa" in error and "leave --engine out" in error
