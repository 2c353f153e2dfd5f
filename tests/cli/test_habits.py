"""What users of transformers, TRL and PEFT are used to: names of commands and settings, and files of a run."""

import json

import pytest
import typer
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from tunewise.adaptation.artifact import load
from tunewise.cli import main


@pytest.fixture
def trained(run, model, labels, tmp_path):
    """A run with everything by Hugging Face's names: its folder."""
    out = tmp_path / "run"
    words = ["--model_name_or_path", model, "--data", labels, "--output_dir", out, "--max_steps", 6, "--seed", 3]
    words += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--learning_rate", 2e-3]
    words += ["--lr_scheduler_type", "linear", "--warmup_steps", 2, "--weight_decay", 0.01, "--optim", "adamw_torch"]
    words += ["--adam_beta2", 0.99, "--adam_epsilon", 1e-6, "--max_grad_norm", 0.5, "--logging_steps", 2]
    words += ["--eval_steps", 3, "--set", "lora.r=2"]
    words += ["--no-full-determinism"]
    result = run("train", "lora", *words, "--load_best_model_at_end", "--save_total_limit", 1, "--json")
    assert result.code == 0, result.err
    return out, result.json()


def test_settings_by_hugging_faces_names_are_taken(trained):
    settings = trained[1]["train_settings"]
    expected = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "warmup_steps": 2}
    expected |= {"lr_scheduler_type": "linear", "weight_decay": 0.01, "adam_beta2": 0.99, "adam_epsilon": 1e-6}
    expected |= {"max_grad_norm": 0.5, "full_determinism": False}
    expected |= {"logging_steps": 2, "eval_steps": 3, "load_best_model_at_end": True, "max_steps": 6}
    assert {name: settings[name] for name in expected} == expected
    assert trained[1]["settings"]["learning_rate"] == 2e-3 and trained[1]["seed"] == 3


def test_the_configuration_of_a_run_makes_it_again(run, trained, tmp_path):
    out, record = trained
    again = tmp_path / "again"
    result = run("fit", "--config", out / "config.yaml", "--out", again, "--json")
    assert result.code == 0, result.err
    assert {**result.json(), "adaptation": 0, "seconds": 0, "training": 0} == {
        **record,
        "adaptation": 0,
        "seconds": 0,
        "training": 0,
    }
    weights = [load_file(folder / "adaptation" / "adapter_model.safetensors") for folder in (out, again)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0]) and len(weights[0]) == len(weights[1])
    first, second = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (out, again))
    assert {**first, "output_dir": ""} == {**second, "output_dir": ""}
    assert "lora.r=2" in first["set"] and first["num_train_epochs" if "num_train_epochs" in first else "max_steps"] == 6


def test_transformers_reads_the_state_of_a_run(trained):
    out, record = trained
    state = TrainerState.load_from_json(str(out / "trainer_state.json"))
    assert state.global_step == state.max_steps == 6 and state.train_batch_size == 4
    assert [line["step"] for line in state.log_history if "loss" in line] == [2, 4, 6]
    losses = {line["step"]: line["eval_loss"] for line in state.log_history if "eval_loss" in line}
    assert sorted(losses) == [3, 6] and state.best_metric == min(losses.values())
    assert losses[state.best_global_step] == state.best_metric
    assert state.best_global_step == record["training"]["best_step"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [x["loss"] for x in state.log_history if "loss" in x]


def test_a_run_holds_its_tokenizer_and_a_card(trained, model):
    out, _ = trained
    theirs, ours = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(model)
    assert theirs("the cat ran").input_ids == ours("the cat ran").input_ids
    head, _, body = (out / "README.md").read_text("utf-8").removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["tags"] == ["tunewise", "lora"]
    assert "Validation loss" in body and str(model) not in body


def test_weights_are_stored_once_and_peft_reads_them(trained, model):
    """What tunewise answers from PEFT's file is what PEFT answers from it."""
    import torch

    folder = trained[0] / "adaptation"
    assert not (folder / "weights.safetensors").exists()
    loaded = load(folder, model=str(model))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        ours = loaded.attachment.base.model(ids).logits
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder))(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5) and loaded.attachment.params()


def test_an_optimiser_that_a_technique_has_not_is_refused(run, refused, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path, "--max-steps", 1]
    assert "--optim adafactor is not for lora" in refused("fit", "lora", *words, "--optim", "adafactor")
    assert "adamw_torch" in refused("fit", "full", *words, "--optim", "adam")
    record = run("fit", "full", *words, "--optim", "adafactor", "--json").json()
    assert record["settings"]["optimizer"] == "adafactor"


def test_underscores_are_dashes_in_every_command():
    """For every option of every command, also of groups of commands."""
    commands = dict(typer.main.get_command(main.app).commands)
    commands |= commands.pop("atlas").commands
    assert len(commands) > 15
    context = typer.main.get_command(main.app).make_context("tunewise", ["check", "--help"], resilient_parsing=True)
    normalised = context.token_normalize_func
    words = {word for command in commands.values() for option in command.params for word in option.opts}
    assert "--max-length" in words and not [word for word in words if "_" in word and word.startswith("--")]
    assert all(normalised(word.replace("-", "_")).strip("-") == word.strip("-") for word in words if word[:2] == "--")
