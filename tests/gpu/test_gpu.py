"""What only a GPU can show; the contract itself runs there with `TUNEWISE_TEST_DEVICE=cuda pytest tests/contract`."""

import json
import subprocess
import sys

import pytest
import torch

from tunewise.adaptation.fit import fit
from tunewise.core.seeds import generator, repeatable
from tunewise.data.task import Task
from tunewise.engine.attention import packed
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum, nll, why_not_packed
from tunewise.engine.liger import use_liger
from tunewise.engine.model import load_base
from tunewise.engine.packing import packed_batch, padded_batch
from tunewise.engine.segments import Segment
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def sequences(base, alike):
    source = generator(0, "rows")
    begin = torch.randint(0, 300, (40,), generator=source).tolist() if alike else []
    rows = []
    for size in (5, 90, 17, 33, 8):
        ids = [*begin, *torch.randint(0, 300, (size,), generator=source).tolist()]
        rows.append(TokenSequence(ids, [place >= len(begin) for place in range(len(ids))], max(len(begin), 1)))
    return rows


def gradients(base, batch, autocast):
    base.model.zero_grad()
    with layout(base, batch), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = loss_sum(base, batch)
        loss.backward()
    return float(loss), torch.cat([p.grad.flatten().float() for p in base.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral", "gpt_neox"])
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_packed_gradients_are_those_of_padded_rows(precision, architecture, alike):
    base = tiny_base(architecture, device="cuda")
    base.model.requires_grad_(True)
    rows, autocast = sequences(base, alike), precision == "autocast"
    assert why_not_packed(base) is None
    exact, reference = gradients(base, padded_batch(rows, base.device), False)
    _, theirs = gradients(base, padded_batch(rows, base.device), autocast)
    found, ours = gradients(base, packed_batch(rows, base.device, share=True), autocast)
    off, allowed = ((grad - reference).norm() / reference.norm() for grad in (ours, theirs))
    if autocast:  # bfloat16 is as far from float32 whichever way its rows are laid
        assert abs(found / exact - 1) < 1e-2 and off < 2 * allowed + 1e-3
    else:
        assert abs(found / exact - 1) < 1e-5 and off < 1e-4


def test_scores_in_half_precision_are_those_of_rows_alone():
    base = tiny_base("llama", device="cuda")
    rows = sequences(base, True)
    with torch.autocast("cuda", torch.bfloat16):
        together = nll(base, batch_of(base, rows))
    alone = torch.cat([nll(base, padded_batch([row], base.device)) for row in rows])
    assert (together - alone).abs().max() < 0.1


def test_a_long_row_makes_no_square_mask():
    base = tiny_base("llama", device="cuda")
    ids = torch.randint(0, 300, (1, 60_000), device="cuda")
    row = [Segment(6_000)] * 10
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16), packed(base.model, row):
        base.anatomy.inner(input_ids=ids, position_ids=torch.arange(60_000, device="cuda")[None] % 6_000)
    assert torch.cuda.max_memory_allocated() - before < 60_000 * 6_000


@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=["float32", "bf16"])
def test_a_comparison_runs_there(precision, tmp_path):
    command = [sys.executable, "-m", "tunewise.cli", "compare", "--model", "world", "--data", "world:skill"]
    command += [
        "--device",
        "cuda",
        "--techniques",
        "base,icl,rag,full,bitfit,lora,qlora,prompt_tuning,adapter,lst,icl+lora",
        *precision,
    ]
    command += ["--budget-steps", "20", "--seeds", "1", "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [row["technique"] for row in record["rows"] if row.get("status", "ok") != "ok"] == []


def test_half_precision_repeats_bit_for_bit():
    found = []
    for _ in range(2):
        base = tiny_base("qwen3", device="cuda")
        base.model.requires_grad_(True)
        with repeatable(base.device):
            found.append(gradients(base, packed_batch(sequences(base, True), base.device, share=True), True)[1])
    assert torch.equal(*found)


def test_qlora_never_holds_all_weights_in_full_precision(tmp_path):
    base = load_base("world", dtype="bfloat16", device="cuda", waits=True)
    weights, before = sum(p.nbytes for p in base.model.parameters()), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attachment = make("qlora").resolved(base).attach(base, generator(0, "attach"))
    largest = max(p.nbytes for p in base.model.parameters())
    updates = sum(p.nbytes for p in attachment.params().values())
    packed_bytes = 0.6 * weights  # the embeddings whole, and the rest in four bits
    assert torch.cuda.max_memory_allocated() - before < packed_bytes + updates + 8 * largest
    assert base.device.type == "cuda" and base.waiting is None
    record = fit(
        load_base("world", device="cuda", waits=True),
        Task.read("world:reviews"),
        make("qlora"),
        tmp_path,
        settings=TrainSettings(max_steps=2),
    )
    assert record["validation_loss"] > 0


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_weights_are_read_straight_onto_the_gpu(device):
    base, other = load_base("world", device=device), load_base("world", device="cpu")
    assert base.device.type == "cuda" and base.fingerprint == other.fingerprint
    assert not any(hasattr(module, "_hf_hook") for module in base.model.modules())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
@pytest.mark.parametrize("further", [(), ("--shard",), ("--context", "2")], ids=" ".join)
def test_two_gpus_learn_what_one_learns(tmp_path, further):
    losses = []
    for out, words in (("one", ()), ("two", ("--devices", "2", *further))):
        command = [sys.executable, "-m", "tunewise.cli", "fit", "lora", "--model", "world", "--data", "world:town"]
        command += ["--max-steps", "4", "--out", str(tmp_path / out), *words]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_liger_s_kernels_compute_what_the_model_computes():
    pytest.importorskip("liger_kernel")
    base = tiny_base("llama", device="cuda")
    base.model.requires_grad_(True)
    rows = sequences(base, False)
    before, gradient = gradients(base, packed_batch(rows, base.device), False)
    use_liger(base)
    after, changed = gradients(base, packed_batch(rows, base.device), False)
    assert after == pytest.approx(before, rel=1e-4)
    assert (changed - gradient).norm() < 1e-3 * gradient.norm()
