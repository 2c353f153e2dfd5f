"""Rows that two processes compute together, compared with one process that computes them whole."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

import context_worker
from rank_processes import environment, free_port, losses, made_once, outcomes, run
from tunewise.core.errors import ModelError, RequestError
from tunewise.engine.context import Division, divided, require_divisible
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, require_division
from tunewise.engine.packing import packed_batch
from tunewise.engine.ranks import Ranks
from tunewise.engine.tiny import tiny_base
from tunewise.techniques.registry import all_techniques, make

WORKER = Path(context_worker.__file__)
QUICK = ["lora", "full", "prompt_tuning-single"]
DIVIDED = sorted(name for name, technique in all_techniques().items() if not technique.needs_whole_rows)
NAMES = [*DIVIDED, *(name for name in context_worker.FORMS if name not in DIVIDED)]
CHOOSING = {"lt_sft", "diff_pruning"}  # which entries are kept hangs on the last bits of near ties
ROUGH = {"full-bf16": 2e-3}  # sums over fewer rows at a time round otherwise
FOUR = ["lora", "full-mistral", "full-gpt2", "prompt_tuning-single"]
pytestmark = pytest.mark.timeout(1200)  # the first test waits for all trainings


def start(out, size, context, *what):
    """Start the worker as so many ranks, of which `context` compute a row together."""
    out.mkdir(exist_ok=True)
    port, command = free_port(), [sys.executable, str(WORKER), str(context), str(out), *what]
    return [subprocess.Popen(command, env=environment(rank, size, port)) for rank in range(size)]


def work(folder, *runs):
    """Run the worker once for each of (name of its folder, ranks, context, what), all at a time."""
    processes = [
        process for name, size, context, *what in runs for process in start(folder / name, size, context, *what)
    ]
    assert [process.wait(timeout=1200) for process in processes] == [0] * len(processes)


def ranks_of(folder, size):
    return [outcomes(folder / f"{rank}.jsonl") for rank in range(size)]


def trained(tmp_path_factory, name, names, size, context):
    make = lambda folder: work(folder, ("alone", 1, 1, *names), ("together", size, context, *names))  # noqa: E731
    folder = made_once(tmp_path_factory, f"context-{name}", make)
    return outcomes(folder / "alone" / "0.jsonl"), ranks_of(folder / "together", size)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What one process and each of two came to, by technique."""
    return trained(tmp_path_factory, "quick", QUICK, 2, 2)


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return trained(tmp_path_factory, "every", NAMES, 2, 2)


@pytest.fixture(scope="module", params=[2, 4], ids=["two-groups-of-two", "one-group-of-four"])
def four(request, tmp_path_factory):
    """The same of four processes; the model has two key/value heads."""
    return trained(tmp_path_factory, f"four-{request.param}", FOUR, 4, request.param)


def require_alike(outcome, name):
    alone, ranks = outcome[0][name], [rank[name] for rank in outcome[1]]
    assert all(rank == ranks[0] for rank in ranks)  # to the last bit, and all answers
    chooses = name in CHOOSING
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=ROUGH.get(name, 2e-5), abs=1e-5)
    for figure in ("norms", "validation", "nll"):
        rough = 2e-2 if chooses else ROUGH.get(name, 2e-5)
        assert ranks[0][figure] == pytest.approx(alone[figure], rel=rough, abs=1e-5), figure
    assert ranks[0]["predictions"] == alone["predictions"]
    assert chooses or ranks[0]["answers"] == alone["answers"]


@pytest.mark.parametrize("name", QUICK)
def test_two_ranks_learn_from_parts_of_rows_what_one_learns_from_whole_ones(quick, name):
    require_alike(quick, name)
    assert len(quick[0][name]["losses"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_technique_and_architecture_learns_the_same(every, name):
    require_alike(every, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_groups_share_rows_out_and_fewer_key_value_heads_are_repeated(four, name):
    require_alike(four, name)


def require_same_gradients(folder, tokens, *further):
    work(folder, ("alone", 1, 1, "--row", str(tokens), *further), ("both", 2, 2, "--row", str(tokens), *further))
    alone, ranks = outcomes(folder / "alone" / "0.jsonl")["row"], ranks_of(folder / "both", 2)
    for rank in (each["row"] for each in ranks):
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert rank["computed"] == math.ceil(tokens / 2)
    gradients = [load_file(folder / name / "gradients.safetensors") for name in ("alone", "both")]
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        assert float((gradients[1][name] - gradient).norm() / gradient.norm()) < 1e-5, name
    return alone, [each["row"] for each in ranks]


@pytest.mark.parametrize("further", [(), ("--recompute",)], ids=["kept", "recomputed"])
def test_a_row_has_the_loss_and_gradients_of_one_process(tmp_path, further):
    require_same_gradients(tmp_path, 1501, *further)


@pytest.mark.slow
def test_a_row_of_32k_tokens_has_them_too_in_less_memory(tmp_path):
    alone, both = require_same_gradients(tmp_path, 32768)
    assert 0 < max(rank["grown"] for rank in both) < 0.75 * alone["grown"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_context(tmp_path):
    for out, until, size, context in (
        ("straight", 6, 1, 1),
        ("moved", 2, 2, 2),
        ("moved", 3, 1, 1),
        ("moved", 4, 2, 1),
        ("moved", 6, 4, 2),
    ):
        work(tmp_path, (out, size, context, "--until", str(until)))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "straight"), rel=1e-4)
    assert len(losses(tmp_path / "moved")) == 6
    weights = [load_file(tmp_path / out / "checkpoint-6" / "weights.safetensors") for out in ("straight", "moved")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


def fit(out, technique, *further, model="world"):
    words = ["fit", technique, "--model", str(model), "--data", "world:town", "--out", str(out), "--max-steps", "2"]
    return run(sys.executable, "-m", "tunewise.cli", *words, *further)


@pytest.mark.slow
def test_the_command_computes_rows_together(tmp_path):
    records = []
    for out, further in (
        ("alone", []),
        ("both", ["--devices", "2", "--context", "2"]),
        ("groups", ["--devices", "4", "--context", "2"]),
        ("sharded", ["--devices", "2", "--context", "2", "--shard"]),
    ):
        done = fit(tmp_path / out, "full", "--json", *further)
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout))
    for record in records[1:]:
        for figure in ("validation_loss_before", "validation_loss"):
            assert record[figure] == pytest.approx(records[0][figure], rel=1e-5)
        for figure in ("tokens", "labelled_tokens"):
            assert record["training"][figure] == records[0]["training"][figure]


@pytest.mark.slow
def test_torchrun_does_so_too(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    words = ["fit", "lora", "--model", "world", "--data", "world:town", "--out", str(tmp_path / "run")]
    bare = {key: value for key, value in environment().items() if "RANK" not in key and "WORLD" not in key}
    done = subprocess.run(
        [*command, "-m", "tunewise.cli", *words, "--max-steps", "2", "--context", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=bare,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adaptation" / "adaptation.json").is_file()


# How rows are divided, without processes.


@pytest.mark.parametrize("context", [2, 3, 4])
def test_stretches_are_the_row_and_its_targets(context):
    begun = [*range(5, 25)]
    sequences = [
        TokenSequence([*begun, 30, 31, 32], [False] * 20 + [True] * 3, 20),
        TokenSequence([*begun, 40, 41], [False] * 20 + [True] * 2, 20),
        TokenSequence([50, 51, 52, 53], [False, True, True, True], 1),
    ]
    whole = packed_batch(sequences, torch.device("cpu"))
    parts = [divided(whole, Ranks(place, context, context=context)) for place in range(context)]
    length = parts[0].ids.shape[1]
    assert all(part.ids.shape == part.position_ids.shape == (1, length) for part in parts)
    row = torch.cat([part.ids for part in parts], 1)
    assert torch.equal(row[:, : whole.ids.shape[1]], whole.ids) and length - whole.ids.shape[1] / context < 1
    assert sum(segment.length for segment in parts[0].segments) == context * length
    predicted = []
    for place, part in enumerate(parts):
        sources = part.positions[list(part.sources)]
        assert list(part.sources) == sorted(part.sources) and bool((part.positions < length).all())
        predicted += zip((sources + place * length).tolist(), part.targets.tolist(), part.owner.tolist(), strict=True)
    expected = zip(
        whole.positions[list(whole.sources)].tolist(), whole.targets.tolist(), whole.owner.tolist(), strict=True
    )
    assert sorted(predicted) == sorted(expected)
    assert sum(part.tokens for part in parts) == whole.tokens


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process."""

    barrier: Any = None
    parts: Any = None

    def swapped(self, parts):
        self.parts[self.rank] = parts
        self.barrier.wait()
        received = torch.stack([each[self.rank] for each in self.parts])
        self.barrier.wait()
        return received


@pytest.mark.parametrize(("heads", "groups", "context"), [(4, 2, 2), (4, 2, 4), (4, 1, 2), (12, 3, 2), (8, 8, 4)])
def test_each_device_attends_with_a_part_of_the_heads(heads, groups, context):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, n, 12, size, generator=generator) for n, size in ((heads, 4), (groups, 4), (groups, 6))
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    barrier, parts, results = threading.Barrier(context), [None] * context, [None] * context

    def compute(rank):
        division = Division(Threads(rank, context, context=context, barrier=barrier, parts=parts))
        stretch = slice(rank * 12 // context, (rank + 1) * 12 // context)
        q, k, v = division.by_heads(*(tensor[:, :, stretch] for tensor in (query, key, value)))
        assert q.shape[:3] == (1, heads // context, 12)
        out = attend(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        results[rank] = division.by_positions(out)

    threads = [threading.Thread(target=compute, args=(rank,)) for rank in range(context)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert torch.allclose(torch.cat(results, 1), expected, atol=1e-6)


def test_a_layer_with_other_heads_is_refused():
    states = torch.zeros(1, 6, 2, 8)
    with pytest.raises(ModelError, match="6 attention heads cannot be divided among 4 devices"):
        Division(Ranks(0, 4, context=4)).by_heads(states, states, states)


# What is refused.


@dataclass(frozen=True)
class Lost(Ranks):
    """Ranks of which one hears nothing of the other."""

    def swapped(self, parts):
        return torch.zeros_like(parts)

    def sum(self, tensors):
        """Leave the tensors as they are."""

    def first(self, value):
        return value


def test_a_model_that_scores_parts_of_rows_otherwise_is_refused():
    base = tiny_base()
    base.ranks = Lost(0, 2, context=2)
    with pytest.raises(ModelError, match=r"scores rows differently .* leave out --context"):
        require_division(base)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_neo"])
def test_a_model_whose_rows_cannot_be_packed_is_refused(architecture):
    base = tiny_base(architecture)
    base.ranks = Ranks(0, 2, context=2)
    with pytest.raises(ModelError, match=r"cannot be packed, and so not be divided .* leave out --context"):
        batch_of(base, [TokenSequence([3, 4, 5], [True] * 3, 0)], divide=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_attention_heads": 6}, "6 attention heads cannot be divided among 4 devices; give --context 2 or 3 or 6"),
        ({"num_attention_heads": 1}, "one attention head"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic.* leave out"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "longrope.* leave out"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_by_its_configuration(settings, says):
    config = AutoConfig.for_model("llama", hidden_size=48, num_attention_heads=4)
    require_divisible("a model", config, Ranks(0, 4, context=4))
    for name, value in settings.items():
        setattr(config, name, value)
    require_divisible("a model", config, Ranks())
    with pytest.raises(ModelError, match=says):
        require_divisible("a model", config, Ranks(0, 4, context=4))


def test_groups_are_equally_large():
    assert [(Ranks(rank, 4, context=2).group, Ranks(rank, 4, context=2).place) for rank in range(4)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    with pytest.raises(RequestError, match="context is 2, and 3 devices cannot be divided"):
        Ranks(0, 3, context=2)


@pytest.mark.parametrize(
    ("technique", "further", "says"),
    [
        ("fish_mask", ("--devices", "2", "--context", "2"), "fish_mask needs whole rows"),
        ("icl+lst", ("--devices", "2", "--context", "2", "--set", "lst.init=fisher"), "lst: init=fisher"),
        ("peft:oft", ("--devices", "2", "--context", "2"), "has not been tried on parts of rows"),
        ("lora", ("--context", "2"), "give their number with --devices"),
        ("lora", ("--context", "0"), "context is 0"),
        ("lora", ("--devices", "3", "--context", "2"), "3 devices cannot be divided into groups"),
        pytest.param(
            "lora",
            ("--devices", "4", "--context", "4"),
            "6 attention heads cannot be divided among 4 devices",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, technique, further, says):
    refused = fit(tmp_path, technique, *further)
    assert refused.returncode == 2 and says in refused.stderr and "Traceback" not in refused.stderr
    assert refused.stderr.count(says) == 1 and not list(tmp_path.iterdir())


def test_a_reason_is_a_clause():
    reasons = [technique.needs_whole_rows for technique in all_techniques().values()]
    reasons += [make("fish_mask").needs_whole_rows, make("lst", {"lst": {"init": "fisher"}}).needs_whole_rows]
    assert all(not reason.endswith(".") for reason in reasons) and all(reasons[-2:])
