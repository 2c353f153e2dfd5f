"""What a plan predicts, compared with real training: exact counts, memory by a ledger of tensors, and what fits."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunewise.adaptation.artifact import rows_text
from tunewise.advice.plan.ledger import TRAFFIC, fake_tensors
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.plan_row import Memory, Parameters
from tunewise.advice.plan.planner import Planner, Requirements, measure
from tunewise.advice.plan.probe import probe
from tunewise.advice.plan.tracing import Tracer
from tunewise.advice.plan.weightless import sketch
from tunewise.core import artifact_writer
from tunewise.core.errors import ModelError, SettingError
from tunewise.core.seeds import generator
from tunewise.engine.device import device_of, is_fake
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, study
from tunewise.fitting.settings import TrainSettings, ever_lighter
from tunewise.techniques.building.sparse_entries import weights_of
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import tiny_base, tiny_task

SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=4)
# Trained with what training itself decides: how many of its ranks and gates, and of which tensors, are kept.
WITHIN = {"adalora": 0.05, "diff_pruning": 0.1, "lt_sft": 0.1, "fish_mask": 0.1}
TRAINED = [name for name in all_techniques() if make(name, {}).trains and name != "mpt"]


@pytest.fixture(scope="module")
def sketched(tmp_path_factory, save_tiny):
    return sketch(save_tiny(tmp_path_factory.mktemp("sketch") / "tiny"))


@pytest.mark.parametrize("name", TRAINED)
def test_counts_and_bytes_are_those_of_a_fit(sketched, name):
    base, task = tiny_base(), tiny_task()
    attachment = make(name, {}).resolved(base).attach(base, generator(0, "attach"))
    attachment.prepare(study(attachment, task, task.validation, 0))
    rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train])
    train(attachment, rows, SETTINGS)
    need, state = measure(sketched, task, make(name, {}), SETTINGS), attachment.state()
    stored = sum(tensor.numel() for tensor in state.values())
    assert need.optimised == pytest.approx(
        sum(p.numel() for p in attachment.params().values()), rel=WITHIN.get(name, 0)
    )
    assert need.stored == pytest.approx(stored, rel=WITHIN.get(name, 0))
    if name not in WITHIN:
        assert need.artifact == artifact_writer.file_bytes(state)


def test_a_file_is_as_long_as_predicted(tmp_path):
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.int64), "c": torch.zeros(0)}
    artifact_writer.commit(tmp_path / "out", tensors={"weights.safetensors": tensors})
    assert (tmp_path / "out" / "weights.safetensors").stat().st_size == artifact_writer.file_bytes(tensors)


def test_rows_that_are_stored_are_predicted_to_the_byte(sketched):
    base, task = tiny_base(), tiny_task()
    attachment = make("icl", {"icl": {"k": 2, "calibrate": "none"}}).attach(base, generator(0, "attach"))
    attachment.prepare(study(attachment, task, task.validation, 0))
    rows = rows_text(attachment.stored_rows()).encode()
    need = measure(sketched, task, make("icl", {"icl": {"k": 2, "calibrate": "none"}}), SETTINGS)
    assert need.artifact == artifact_writer.file_bytes(attachment.state()) + len(rows) and len(rows) > 100


def test_gradients_are_those_of_the_phase_that_has_most(sketched):
    need = measure(sketched, tiny_task(), make("lt_sft", {}), SETTINGS)
    dense = sum(p.nbytes for p in weights_of(tiny_base(), make("lt_sft", {}), ()).values())
    assert need.memory.gradients == dense > 4 * need.optimised


@pytest.mark.parametrize("targets", [["all-linear"], ["q"]])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_in_four_bits_are_counted_as_such(sketched, device, targets):
    """The weights that four bits stand for are not there, on a GPU with its own kernels either."""
    if device == "cuda":
        pytest.importorskip("bitsandbytes")  # what it logs when it is imported would keep a weight alive
    large = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 320}
    config = AutoConfig.for_model("llama", **large, num_attention_heads=8, bos_token_id=0, eos_token_id=1)
    with fake_tensors(device) as ledger:
        base = replace(sketched, config=config).build()
        whole = ledger.live
        recipe = make("qlora", {"qlora": {"target_modules": targets}})
        attachment = recipe.attach(base, generator(0, "attach"))
        updates = sum(tensor.nbytes for tensor in attachment.params().values())
        saved = whole + updates - ledger.live
    blocks = 4 * (4 * 1024 * 1024 + 3 * 1024 * 2048)
    assert saved == pytest.approx(blocks * (4 - 4.13 / 8), rel=0.02)


def test_a_gpu_starts_operations_while_others_work():
    assert Rates(1e12, 1e12, 1e-6).seconds(1e12, 0, 10**6) == pytest.approx(2)
    assert Rates(1e12, 1e12, 1e-6, queued=True).seconds(1e12, 0, 10**6) == pytest.approx(1)
    assert Rates(1e12, 1e12, 1e-6, queued=True).seconds(3e12, 1e12, 10**6) == pytest.approx(4)


def test_a_ledger_counts_what_lives_and_what_is_multiplied():
    with fake_tensors() as ledger:
        a = torch.zeros(100, 200)
        assert is_fake(a) and ledger.live == 80_000
        b = a @ torch.ones(200, 200)
        assert ledger.flops == 2 * 100 * 200 * 200 and ledger.live == 80_000 + 80_000  # the ones are gone
        del a
        assert ledger.live == b.nbytes and ledger.peak == 80_000 + 160_000 + 80_000
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        assert sorted(order.tolist()) == list(range(10))  # whole numbers are real


def test_a_product_of_low_rank_is_as_slow_as_its_memory():
    with fake_tensors() as ledger:
        x, down = torch.zeros(100, 200), torch.zeros(200, 2)
        flops, moved = ledger.flops, ledger.moved
        product = x @ down
        assert ledger.flops == flops
        assert ledger.moved - moved == TRAFFIC * (x.nbytes + down.nbytes + product.nbytes)


def test_full_needs_its_weights_four_times_and_lora_does_not(sketched):
    task, weights = tiny_task(), sum(p.nbytes for p in tiny_base().model.parameters())
    full, lora = (measure(sketched, task, make(name, {}), SETTINGS).memory for name in ("full", "lora"))
    assert full.weights == pytest.approx(weights, rel=0.02) and full.gradients == weights
    assert full.optimizer == pytest.approx(2 * weights, rel=0.02)
    assert full.technique == pytest.approx(weights, rel=0.02)
    assert lora.gradients < weights and lora.peak < full.peak


def test_qlora_never_has_all_weights_on_a_gpu():
    """They are packed on their way; on a CPU, where they are already, they count."""
    sketched, settings = sketch("world"), SETTINGS
    peaks = {}
    for device in ("cpu", "cuda"):
        with fake_tensors(device) as ledger:
            base = sketched.build()
            bare = ledger.live
            linears = sum(module.weight.nbytes for _, _, module in base.anatomy.linears())
        trace = Tracer(sketched, device, counts_passes=False).trace(tiny_task(), make("qlora", {}), settings)
        peaks[device] = trace.setup_peak
        assert trace.training.weights == (bare if device == "cpu" else bare - linears)
    assert peaks["cpu"] >= bare > peaks["cuda"]


def test_more_rows_and_longer_ones_need_more_and_recomputation_less(sketched):
    task = tiny_task()

    def peak(**settings):
        return measure(sketched, task, make("lora", {}), TrainSettings(max_steps=4, **settings)).peak

    assert peak(per_device_train_batch_size=12) > peak(per_device_train_batch_size=4)
    plain = peak(per_device_train_batch_size=12)
    assert peak(per_device_train_batch_size=12, gradient_checkpointing=True) < plain


@pytest.mark.parametrize("name", ["lora", "full", "lt_sft", "diff_pruning"])
def test_micro_batches_that_add_up_need_their_gradients_and_one_update(sketched, name):
    """Compared with one micro-batch: as much work in the passes of each, and no more for the optimizer."""

    def trace(micro_batches):
        settings = TrainSettings(max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=micro_batches)
        return Tracer(sketched, counts_passes=False).trace(tiny_task(), make(name, {}), settings)

    one, four = trace(1), trace(4)
    assert four.training.passes.flops == pytest.approx(one.training.passes.flops, rel=0.2)  # other rows
    assert four.training.update == one.training.update
    assert one.training.update.moved > 0
    assert four.training.step(1.0, 4).flops == pytest.approx(4 * four.training.passes.flops + one.training.update.flops)
    assert four.training_peak > one.training_peak - 1e4


def test_an_optimizer_that_moves_weights_in_the_backward_pass_has_its_state_in_the_plan(sketched):
    """It makes it in its first step, so that a second one is watched."""
    settings = TrainSettings(max_steps=4, per_device_train_batch_size=4)
    kept = {}
    for optimizer in ("adamw", "adalomo"):
        recipe = make("full", {"full": {"optimizer": optimizer}})
        training = Tracer(sketched, counts_passes=False).trace(tiny_task(), recipe, settings).training
        kept[optimizer] = training.optimizer
        assert training.passes.flops > 0
    assert kept["adamw"] > 1.9 * measure(sketched, tiny_task(), make("full", {}), settings).memory.weights
    assert 0 < kept["adalomo"] < kept["adamw"] / 10


def test_what_does_not_fit_is_tried_with_smaller_passes_and_then_refused(sketched):
    settings = TrainSettings(max_steps=4, per_device_train_batch_size=12)
    need = measure(sketched, tiny_task(), make("full", {}), settings).peak
    planner = Planner(sketched, tiny_task(), [make("full", {})], settings)
    rows = [planner.rows(limit)[0] for limit in (need, need - 1, 1e6)]
    assert [row.verdict for row in rows] == ["fits", "fits with", "does not fit"]
    changed = rows[1].changed
    assert changed["per_device_train_batch_size"] * changed["gradient_accumulation_steps"] == 12
    assert rows[0].micro_batch == 12 and "GB" in rows[2].reason


@pytest.mark.parametrize("size", range(1, 65))
def test_a_plan_promises_only_what_a_trial_tries(sketched, monkeypatch, size):
    """Whatever the limit, what a plan changes is a rung of the ladder that a trial goes down."""
    settings = TrainSettings(per_device_train_batch_size=size)

    def peak(settings):
        return settings.per_device_train_batch_size + (0.5 if not settings.gradient_checkpointing else 0)

    def need(planner, technique, settings):
        memory = Memory(
            weights=0, gradients=0, optimizer=0, runtime=0, technique=0, peak=peak(settings), activations=peak(settings)
        )
        return Requirements(0, 0, 0, memory, None, None, 0.0, None, float("inf"))

    monkeypatch.setattr(Planner, "_need", need)
    planner = Planner(sketched, tiny_task(), [make("lora", {})], settings)
    for rung in ever_lighter(settings):
        row = planner.rows(peak(rung))[0]
        assert row.verdict == ("fits" if rung == settings else "fits with")
        assert replace(settings, **row.changed) == rung


def test_what_cannot_be_done_says_why(sketched):
    rows = Planner(sketched, tiny_task(), [make("mpt", {}), make("base")], SETTINGS).rows(1e9)
    assert rows[0].verdict == "not possible" and "source tasks" in rows[0].reason
    assert rows[1].verdict == "fits" and rows[1].parameters == Parameters(optimised=0, stored=0)


def test_a_probe_runs_the_real_thing_and_gives_the_base_back():
    base = tiny_base()
    before = base.fingerprint
    measured = probe(base, tiny_task(), make("full", {}), SETTINGS)
    assert measured.peak > 0 and measured.step > 0 and measured.rows == 4
    assert not base.attached and base.fingerprint == before


def test_times_follow_rates(sketched):
    rates, slower = Rates(3e9, 3e9, 1e-6), Rates(1e9, 1e9, 3e-6)
    fast, slow = (measure(sketched, tiny_task(), make("lora", {}), SETTINGS, "cpu", r).step for r in (rates, slower))
    assert slow == pytest.approx(3 * fast) and fast > 0


@pytest.mark.parametrize(("words", "device"), [("24GB", ("cuda", 24e9)), ("8 GiB", ("cuda", 8 * 2**30))])
def test_devices_in_words(words, device):
    assert device_of(words) == device


@pytest.mark.parametrize("words", ["24", "gpu", "0GB", "cuda:9", "-1GB", "cuda:x"])
def test_what_is_no_device_is_refused(words):
    with pytest.raises(SettingError, match="--device"):
        device_of(words)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        sketch(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelError, match="cannot be read"):
        sketch(tmp_path)


def test_rag_and_icl_say_how_long_requests_can_get(sketched):
    rows = Planner(sketched, tiny_task(), [make("base"), make("icl"), make("rag")], SETTINGS).rows(1e9)
    base, icl, rag = (row.request.prompt_tokens for row in rows)
    assert icl > 2 * base and rag > base


def test_a_request_takes_as_long_as_its_words(sketched):
    rates = Rates(1e10, 1e10, 1e-5)
    choice, talk = tiny_task(), replace(tiny_task(), kind="generation", metric="rouge_l", labels=())
    names = [make("base"), make("icl")]
    base, icl = (row.request.seconds for row in Planner(sketched, choice, names, SETTINGS, rates=rates).rows(1e9))
    spoken, _ = (row.request.seconds for row in Planner(sketched, talk, names, SETTINGS, rates=rates).rows(1e9))
    assert 0 < base < icl
    assert spoken > 2 * base  # one pass for each token that is written
    assert Planner(sketched, choice, names, SETTINGS).rows(1e9)[0].request.seconds is None


def test_what_one_probe_freed_is_not_the_next_one_s():
    config = AutoConfig.for_model(
        "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=4, vocab_size=8000
    )
    base = Base(AutoModelForCausalLM.from_config(config), tiny_base().tokenizer, "middling")
    alone = probe(base, tiny_task(), make("bitfit", {}), SETTINGS).peak
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    assert probe(base, tiny_task(), make("full"), SETTINGS).peak > alone + weights
    assert probe(base, tiny_task(), make("bitfit", {}), SETTINGS).peak < alone + weights / 2


def test_devices_share_out_what_is_kept_for_the_models_own_weights(sketched):
    full, lora = (measure(sketched, tiny_task(), make(name, {}), SETTINGS) for name in ("full", "lora"))
    kept = full.memory
    assert full.divisible == kept.weights + kept.gradients + kept.optimizer + kept.technique
    assert lora.divisible == lora.memory.weights
    need = replace(full, memory=replace(full.memory, peak=100.0), divisible=90.0)
    assert need.devices(50.0, gathered=10.0) == 3 and need.devices(99.0, gathered=0.0) == 2
    assert need.devices(20.0, gathered=10.0) is None
