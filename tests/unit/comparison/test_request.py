"""A request on its way to a worker process and back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from tunewise.comparison.request import BudgetOptions, CompareOptions, Request
from tunewise.contract.places import Places
from tunewise.core.errors import ArtifactError
from tunewise.engine import model
from tunewise.engine.tiny import tiny_base
from tunewise.fitting.settings import TrainSettings
from tunewise.resolve import ComputeOptions, ModelOptions, RemedyOptions, TechniqueOptions, TrainOptions, train_settings

PLAIN = Request(options=CompareOptions(model="world", data="world:reviews", out=Path("runs") / "a"))
FULL = Request(
    options=replace(
        PLAIN.options,
        budget=BudgetOptions(budget_minutes=2, search=3, test_examples=9),
        training=TrainOptions(batch_size=4, lr_scheduler_type="linear"),
        recipes=TechniqueOptions(sets=["lora.r=8", "lora.lora_alpha=4"], places=Places(knowledge="docs")),
        compute=ComputeOptions(bf16=True),
        remedies=RemedyOptions(replay=0.5, remember="world:text"),
        need=["memory<8GB"],
        price_per_hour=1.5,
        report_to="tensorboard",
        advised=True,
    ),
    default_sources=["world:town"],
    started=12.5,
    command=["tunewise", "compare"],
)


@pytest.mark.parametrize("request_", [PLAIN, FULL], ids=["plain", "full"])
def test_json_gives_the_same_request(request_):
    assert Request.from_json(json.loads(json.dumps(request_.to_json()))) == request_


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("options", "budget", "seeds"), "2", "request.options.budget.seeds: is '2'"),
        (("options", "budget", "seeds"), True, "request.options.budget.seeds: is True"),
        (("options", "budget", "seeds"), 1.5, "request.options.budget.seeds: is 1.5"),
        (("options", "model"), None, "request.options.model: is None"),
        (("options", "out"), 3, "request.options.out: is 3"),
        (("options", "advised"), 1, "request.options.advised: is 1"),
        (("options", "recipes", "sets"), [1], "request.options.recipes.sets: is"),
        (("options", "recipes", "sets"), "lora.r=8", "request.options.recipes.sets: is"),
        (("options", "compute"), None, "request.options.compute: must be an object of bf16, gradient_checkpointing"),
        (("options", "steps"), 100, "request.options: must be an object of"),
        (("started",), "now", "request.started: is 'now'"),
    ],
)
def test_what_is_no_request_is_refused(place, value, message):
    written = PLAIN.to_json()
    inner = written
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(ArtifactError) as caught:
        Request.from_json(written)
    assert message in str(caught.value)


def test_what_is_missing_is_refused():
    written = FULL.to_json()
    del written["options"]["budget"]["search"]
    with pytest.raises(ArtifactError, match=r"request\.options\.budget: must be an object of"):
        Request.from_json(written)
    with pytest.raises(ArtifactError, match="request: must be an object of options"):
        Request.from_json([])


def test_the_options_defaults_are_those_of_python():
    """Who calls from Python and who types words get the same training and the same budget."""
    from tunewise.comparison.budget import Budget

    assert train_settings(None, TrainOptions()) == TrainSettings()
    assert BudgetOptions().budget() == Budget()


def test_options_reach_the_settings_that_they_name():
    settings = train_settings(
        7,
        TrainOptions(
            batch_size=2, accumulate=3, lr_scheduler_type="linear", save_steps=5, eval_steps=4, patience_evals=2
        ),
        ComputeOptions(bf16=True, gradient_checkpointing=True),
        RemedyOptions(replay=0.1, kl_to_base=0.2, l2_sp=0.3),
    )
    assert settings == TrainSettings(
        max_steps=7,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        lr_scheduler_type="linear",
        save_steps=5,
        bf16=True,
        gradient_checkpointing=True,
        replay=0.1,
        kl_to_base=0.2,
        l2_sp=0.3,
        eval_steps=4,
        early_stopping_patience=2,
    )


@pytest.mark.parametrize(
    ("half", "quick", "chosen"), [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")]
)
def test_workers_load_weights_as_the_process_that_leads_them_chooses(tmp_path, monkeypatch, half, quick, chosen):
    """Whatever their own devices compute in: weights of another type would be another base."""
    base = tiny_base("llama")
    base.tokenizer.save_pretrained(tmp_path)
    wide = LlamaConfig(vocab_size=len(base.tokenizer), hidden_size=512, num_hidden_layers=1, intermediate_size=64)
    wide.dtype = "bfloat16" if half else "float32"
    wide.save_pretrained(tmp_path)
    monkeypatch.setattr(model, "has_bf16_arithmetic", lambda kind: quick)
    request = replace(PLAIN, options=replace(PLAIN.options, model=str(tmp_path)))
    asked = request.for_workers()
    assert asked.options.loading.dtype == chosen
    assert Request.from_json(json.loads(json.dumps(asked.to_json()))).options.loading.dtype == chosen
    given = replace(request, options=replace(request.options, loading=ModelOptions(dtype="float16")))
    assert given.for_workers() is given
