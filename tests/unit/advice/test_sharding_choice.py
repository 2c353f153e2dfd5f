"""Weights are shared out among GPUs where the plan says that one is too small, and only there."""

import contextlib
import json
import sys
from dataclasses import dataclass

import pytest
from transformers import LlamaConfig

from tunewise.advice.plan.planner import Planner
from tunewise.advice.plan.sharding_choice import ShardingChoice, choose_sharding
from tunewise.advice.plan.weightless import sketch
from tunewise.cli import main
from tunewise.cli.commands import training
from tunewise.engine import ranks as ranks_module
from tunewise.engine.ranks import Ranks
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

GB = 1e9
SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configuration of a model of 1.4 billion parameters, 2.8 GB in bfloat16, without its weights."""
    folder, tokenizer = tmp_path_factory.mktemp("shape"), tiny_base("llama").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, dtype="bfloat16"
    )
    config.num_attention_heads = config.num_key_value_heads = 16
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sketched(folder):
    return sketch(folder, dtype="bfloat16", device_kind="cuda")


def test_a_model_that_fits_stays_whole(sketched):
    assert choose_sharding(sketched, tiny_task(), make("lora"), SETTINGS, 2, 24 * GB) == ShardingChoice(False)


def test_a_model_that_does_not_fit_is_shared_out(sketched):
    choice = choose_sharding(sketched, tiny_task(), make("lora"), SETTINGS, 2, 3.0 * GB)
    assert choice.shards and "3 GB are there: the weights are shared out" in choice.why


def test_a_plan_says_of_every_technique_what_several_devices_can_do(sketched):
    names = ["base", "lora", "fish_mask", "qlora"]
    planner = Planner(sketched, tiny_task(), [make(name) for name in names], SETTINGS, "cuda")
    rows = {row.technique: row for row in planner.rows(2.3 * GB)}
    for name in ("base", "lora"):
        assert f"{rows[name].devices} such devices have room for it together" in rows[name].reason
    assert rows["fish_mask"].devices is None
    assert f"cannot share the weights out, as {make('fish_mask').needs_whole_weights}" in rows["fish_mask"].reason
    assert rows["qlora"].verdict.startswith("fits")
    nowhere = Planner(sketched, tiny_task(), [make("lora")], SETTINGS, "cuda").rows(0.2 * GB)
    assert nowhere[0].devices is None and "no number of them has room for it together" in nowhere[0].reason


@pytest.mark.parametrize(("technique", "memory"), [("lora", 1.0 * GB), ("full", 5 * GB), ("lt_sft", 5 * GB)])
def test_what_no_sharing_makes_room_for_is_said_and_begun_as_asked(sketched, technique, memory):
    choice = choose_sharding(sketched, tiny_task(), make(technique), SETTINGS, 2, memory)
    assert not choice.shards and choice.why.startswith(
        f"{technique} will probably run out of memory: it needs at least"
    )


@pytest.mark.parametrize(
    ("given", "memory", "further"),
    [
        ((), 3.0 * GB, ["--shard"]),
        ((), 24 * GB, []),
        ((), None, []),
        (("--no-shard",), 3.0 * GB, []),
        (("--device", "cuda"), 3.0 * GB, []),  # which sharding excludes
        (("--shard",), 24 * GB, []),  # it is among the words already
    ],
)
def test_the_command_starts_its_processes_accordingly(folder, tmp_path, monkeypatch, given, memory, further):
    class Started(Exception):
        pass

    def run_on(devices, words):
        raise Started(devices, list(words))

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"day {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)))
    monkeypatch.setattr(training, "run_on", run_on)
    monkeypatch.setattr(training, "gpu_memory", lambda: memory)
    words = ["fit", "lora", "--model", folder, "--data", data, "--out", tmp_path / "out", "--devices", "2", *given]
    monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
    with pytest.raises(Started) as started:
        main.main()
    assert started.value.args == (2, further)


@pytest.mark.parametrize(
    ("memory", "given", "sharded"), [(3.0, (), True), (24, (), False), (3.0, ("--no-shard",), False)]
)
def test_under_a_launcher_the_first_process_chooses_for_all(folder, tmp_path, monkeypatch, memory, given, sharded):
    class Loading(Exception):
        pass

    def loading(model, options, ranks, waits):
        raise Loading(ranks.sharded, ranks.size)

    @contextlib.contextmanager
    def joined(shard, context):
        yield Two(0, 2, shard, context)

    @dataclass(frozen=True)
    class Two(Ranks):
        def first(self, value):
            return value

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"day {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(training, "gpu_memory", lambda: memory * GB)
    monkeypatch.setattr(training, "load_model", loading)
    monkeypatch.setattr(training, "watching_one_another", contextlib.nullcontext)
    monkeypatch.setattr(ranks_module, "joined_ranks", joined)
    words = ["fit", "lora", "--model", folder, "--data", data, "--out", tmp_path / "out", *given]
    monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
    with pytest.raises(Loading) as loaded:
        main.main()
    assert loaded.value.args == (sharded, 2)
