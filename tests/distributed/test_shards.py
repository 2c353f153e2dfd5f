"""Training with weights that are shared out over two processes, compared with one process that holds them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shards_worker
from rank_processes import environment, free_port, losses, made_once, outcomes, run
from tunewise.adaptation.artifact import load
from tunewise.engine.model import load_base
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.fitting.scoring import loss
from tunewise.techniques.registry import all_techniques, make

WORKER = Path(shards_worker.__file__)
SHARDED = sorted(name for name, technique in all_techniques().items() if not technique.needs_whole_weights)
pytestmark = pytest.mark.timeout(1200)  # the first test of a model waits for all its trainings
NAMES = [*SHARDED, *shards_worker.FORMS]
GPT2_NAMES = ["lora", "full", "last_layers", "lst", "prefix_tuning"]


def saved(architecture, folder):
    base = tiny_base(architecture)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def work(model, out, *what, size=2, held=None):
    """Run the worker as so many ranks, and wait for them; one alone holds all weights if not said otherwise."""
    out.mkdir(exist_ok=True)
    port, held = free_port(), held or ("whole" if size == 1 else "sharded")
    command = [sys.executable, str(WORKER), held, str(model), str(out), *what]
    processes = [subprocess.Popen(command, env=environment(rank, size, port)) for rank in range(size)]
    assert [process.wait(timeout=1200) for process in processes] == [0] * size


def trained(tmp_path_factory, architecture, names):
    def make(folder):
        model = saved(architecture, folder / "model")
        work(model, folder / "alone", *names, size=1)
        work(model, folder / "both", *names)

    folder = made_once(tmp_path_factory, f"shards-{architecture}", make)
    return folder, outcomes(folder / "alone/0.jsonl"), [outcomes(folder / f"both/{rank}.jsonl") for rank in range(2)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """What one process and each of two came to on a model that brings a plan of its own, which is not followed."""
    return trained(tmp_path_factory, "llama", NAMES)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The same on a model that brings no plan and ties its head, with transposed weights."""
    return trained(tmp_path_factory, "gpt2", GPT2_NAMES)


def require_alike(outcome, name):
    folder, alone, ranks = outcome
    first = ranks[0][name]
    assert first == ranks[1][name]  # to the last bit, and all answers
    assert first["restored"] and alone[name]["restored"]
    for figure in ("losses", "norms", "validation", "nll", *(["merged"] if "merged" in first else [])):
        assert first[figure] == pytest.approx(alone[name][figure], rel=1e-4, abs=1e-5), figure
    assert first["predictions"] == alone[name]["predictions"] and first["answers"] == alone[name]["answers"]
    tensors = [whole_tensors(folder / part / name) for part in ("alone", "both")]
    assert {key: (t.shape, t.dtype) for key, t in tensors[0].items()} == {
        key: (t.shape, t.dtype) for key, t in tensors[1].items()
    }
    loaded = load(folder / "both" / name, base=load_base(folder / "model"))
    task = tiny_task()
    assert loss(loaded.attachment, task, task.validation) == pytest.approx(first["validation"], rel=1e-4)


def whole_tensors(folder):
    return {f"{path.name}:{name}": t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_parts_learn_what_a_whole_model_learns(llama, name):
    require_alike(llama, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", GPT2_NAMES)
def test_tied_and_transposed_weights_are_shared_out_too(gpt2, name):
    require_alike(gpt2, name)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_every_rank_holds_half_of_the_weights(request, model):
    _, alone, ranks = request.getfixturevalue(model)
    whole = alone["facts"]
    for part in (rank["facts"] for rank in ranks):
        assert part["bytes"] == pytest.approx(whole["bytes"] / 2, rel=0.02)
        assert (part["fingerprint"], part["shapes"]) == (whole["fingerprint"], whole["shapes"])
        assert part["parameters"] == whole["parameters"]


@pytest.mark.slow
def test_a_run_goes_on_with_whole_weights_and_with_parts(tmp_path):
    model = saved("llama", tmp_path / "model")
    for out, until, size in (("straight", 6, 1), ("moved", 2, 2), ("moved", 4, 1), ("moved", 6, 2)):
        work(model, tmp_path / out, "--until", str(until), size=size)
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "straight"), rel=1e-3)
    for name in ("weights", "optimizer", "training", "best"):
        files = [tmp_path / out / "checkpoint-6" / f"{name}.safetensors" for out in ("straight", "moved")]
        tensors = [load_file(file) if file.exists() else {} for file in files]
        assert {key: t.shape for key, t in tensors[0].items()} == {key: t.shape for key, t in tensors[1].items()}
        for key, tensor in tensors[0].items():
            assert torch.allclose(tensor, tensors[1][key], atol=1e-3), key


def fit(out, technique, *further):
    words = ["fit", technique, "--model", "world", "--data", "world:town", "--out", str(out), "--max-steps", "2"]
    return run(sys.executable, "-m", "tunewise.cli", *words, *further)


@pytest.mark.slow
def test_the_command_shares_a_model_out(tmp_path):
    records = []
    for out, further in (("alone", []), ("both", ["--devices", "2", "--shard"])):
        done = fit(tmp_path / out, "full", "--json", *further)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout))
    assert records[0]["validation_loss"] == pytest.approx(records[1]["validation_loss"], rel=1e-3)
    stored = [json.loads((tmp_path / out / "adaptation/adaptation.json").read_text()) for out in ("alone", "both")]
    assert stored[0]["base"] == stored[1]["base"]
    merged = []
    for out in ("alone", "both"):  # an export needs whole weights on one machine, and finds them
        words = ["export", tmp_path / out / "adaptation", "--to", "merged", "--out", tmp_path / f"{out}-merged"]
        done = run(sys.executable, "-m", "tunewise.cli", *map(str, words))
        assert done.returncode == 0, done.stderr
        merged.append(load_file(tmp_path / f"{out}-merged" / "model.safetensors"))
    base = load_base("world").model.state_dict()
    apart, moved = 0.0, 0.0
    for name, tensor in merged[0].items():
        apart += float((merged[1][name] - tensor).square().sum())
        moved += float((tensor - base[name]).square().sum())
    assert merged[0].keys() == merged[1].keys() and 0 < apart < 0.01 * moved


@pytest.mark.parametrize(
    ("technique", "further", "says"),
    [
        ("lt_sft", (), "lt_sft needs whole weights"),
        ("prompt_tuning+threshold_mask", (), "threshold_mask: it masks"),
        ("full", ("--set", "full.optimizer=adafactor"), "optimizer=adafactor"),
        ("lora", ("--set", "lora.use_dora=true"), "use_dora"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_anything_starts(tmp_path, technique, further, says):
    refused = fit(tmp_path, technique, "--devices", "2", "--shard", *further)
    assert refused.returncode == 2 and says in refused.stderr and "Traceback" not in refused.stderr
    assert "--devices without --shard" in refused.stderr


@pytest.mark.slow
def test_one_process_that_shards_has_the_bits_of_one_that_holds_all(gpt2):
    folder, alone, _ = gpt2
    work(folder / "model", folder / "one", *GPT2_NAMES, size=1, held="sharded")
    one = outcomes(folder / "one/0.jsonl")
    assert one.keys() == alone.keys()
    for name in GPT2_NAMES:
        assert one[name] == alone[name], name
        tensors = [whole_tensors(folder / part / name) for part in ("alone", "one")]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())


@pytest.mark.slow
def test_the_command_shards_on_one_device_too(tmp_path):
    records = []
    for out, further in (("whole", []), ("sharded", ["--shard"])):
        done = fit(tmp_path / out, "lora", "--json", *further)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout))
    assert records[0]["validation_loss"] == records[1]["validation_loss"]


def test_a_reason_is_a_clause():
    reasons = [technique.needs_whole_weights for technique in all_techniques().values()]
    reasons += [
        make("qlora").needs_whole_weights,
        make("lora", {"lora": {"init_lora_weights": "pissa"}}).needs_whole_weights,
    ]
    assert all(not reason.endswith(".") for reason in reasons) and all(reasons[-2:])
