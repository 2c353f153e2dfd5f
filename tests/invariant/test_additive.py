"""What the papers of the additive family promise, beyond the contract."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tunewise.core.errors import TechniqueError
from tunewise.core.seeds import generator
from tunewise.engine.forward import answer_states, batch_of, layout, loss_sum
from tunewise.engine.model import Base
from tunewise.techniques.additive.mpt import distillation, prompt_of
from tunewise.techniques.additive.p_tuning import _encoder
from tunewise.techniques.building.fisher import fisher
from tunewise.techniques.building.structured_pruning import best, importance, prune
from tunewise.techniques.building.virtual_tokens import text_tokens
from tunewise.techniques.registry import make
from tunewise.testing import (
    _sequences,
    attach,
    check_learns,
    check_resume,
    example_settings,
    fingerprint,
    fit,
    logits,
    tiny_base,
    tiny_task,
)

TEXT = "the dog ran to town and the cat sat"
SOURCES = example_settings()


def count(attachment):
    return sum(parameter.numel() for parameter in attachment.params().values())


def stored(attachment):
    return sum(tensor.numel() for tensor in attachment.state().values())


@pytest.fixture
def medium():
    """GPT-2 medium's shape without its numbers."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    return Base(model, tiny_base().tokenizer, frozen_fingerprint="none")


# Text and its equals.


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "gemma"])
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_made_of_a_text_are_that_text(name, architecture):
    base = tiny_base(architecture)
    m = 6
    settings = {"num_virtual_tokens": m, "init": "text", "init_text": TEXT}
    attachment = attach(make(name, {name: settings}), base)
    first = base.anatomy.vocabulary
    question = base.tokenizer("small birds sing")["input_ids"]
    virtual = torch.tensor([list(range(first, first + m)) + question])
    with torch.no_grad():
        found = base.model(input_ids=virtual).logits[0, m:]
    attachment.detach()
    with torch.no_grad():
        expected = base.model(input_ids=torch.tensor([text_tokens(base, TEXT, m) + question])).logits[0, m:]
    assert torch.allclose(found, expected, atol=1e-5)


def test_prefix_counts_of_the_paper(medium):
    """GPT-2 medium, prefix 10: 25,750,016 parameters with the MLP, 491,520 of them stored."""
    settings = {"num_virtual_tokens": 10, "init": "random"}
    attachment = make("prefix_tuning", {"prefix_tuning": settings}).resolved(medium).attach(medium, generator(0))
    assert count(attachment) == 25_750_016
    assert stored(attachment) == 491_520
    attachment.detach()
    flat = make("prefix_tuning", {"prefix_tuning": {**settings, "prefix_projection": False}})
    assert count(flat.resolved(medium).attach(medium, generator(0))) == 491_520


def test_a_prefix_of_grouped_heads_is_of_their_size():
    base = tiny_base("llama")  # 4 query heads, 2 key/value heads of 8
    attachment = attach(make("prefix_tuning", {"prefix_tuning": {"num_virtual_tokens": 3}}), base)
    assert attachment.state()["prefix"].shape == (2, 2, 3, 16)


# Prompt encoders.


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_p_tuning_stores_its_tokens_alone_and_they_are_the_encoders(encoder):
    base = tiny_base("llama")
    recipe = make("p_tuning", {"p_tuning": {"before": 2, "after": 3, "encoder": encoder}})
    attachment = attach(recipe, base)
    fit(attachment)
    with torch.no_grad():
        made = attachment.encoder(attachment.table)
    assert torch.equal(attachment.state()["embeddings"], made)
    assert stored(attachment) == 5 * base.anatomy.width < count(attachment)


def test_p_tuning_stands_around_the_question():
    base, task = tiny_base("llama"), tiny_task()
    attachment = attach(make("p_tuning", {"p_tuning": {"before": 2, "after": 3}}), base, task)
    first = base.anatomy.vocabulary
    for sequence in _sequences(attachment, task):
        assert sequence.ids[:2] == [first, first + 1]
        assert sequence.ids[sequence.prompt - 3 : sequence.prompt] == [first + 2, first + 3, first + 4]
        assert max(sequence.ids[2 : sequence.prompt - 3]) < first and max(sequence.ids[sequence.prompt :]) < first
        assert not any(sequence.labelled[: sequence.prompt]) and all(sequence.labelled[sequence.prompt :])


# Adapters.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "houlsby", "norms": "frozen"}, 1_789_056),  # BERT-base's counts: the same width and depth
        ({"variant": "pfeiffer"}, 894_528),
        ({"variant": "parallel", "reduction_factor": 2}, 12 * 590_976),
        ({"variant": "houlsby", "reduction_factor": 12}, 2_379_264 + 38_400),
    ],
)
def test_adapter_counts_of_the_papers(settings, expected):
    with torch.device("meta"):
        base = Base(GPT2LMHeadModel(GPT2Config()), tiny_base().tokenizer, frozen_fingerprint="none")
    attachment = make("adapter", {"adapter": settings}).resolved(base).attach(base, generator(0))
    assert count(attachment) == expected


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "phi3", "opt", "gemma2", "gemma3_text"])
def test_every_variant_starts_as_the_base_and_learns(variant, architecture):
    base = tiny_base(architecture)
    before = logits(attach(make("base"), base))
    attachment = attach(make("adapter", {"adapter": {"variant": variant}}), base)
    assert torch.equal(before, logits(attachment))
    fit(attachment, steps=3)
    assert not torch.equal(before, logits(attachment))


# Special tokens.


def test_only_special_positions_change_at_the_first_block():
    base = tiny_base("llama")
    recipe = make("pasta", {"pasta": {"init": "normal", "tokens": ["<s>"]}})
    seen = []
    base.anatomy.blocks[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    ids = torch.tensor([[0, 5, 9, 0, 7]])
    base.model(input_ids=ids)
    attachment = attach(recipe, base)
    base.model(input_ids=ids)
    differs = (seen[0] != seen[1]).any(-1)[0]
    assert differs.tolist() == [True, False, False, True, False]
    assert count(attachment) == len(base.anatomy.blocks) * 1 * base.anatomy.width
    assert "start mark" in attachment.label


def test_without_special_tokens_pasta_says_so():
    base = tiny_base("llama")
    base.tokenizer = type(base.tokenizer)(tokenizer_object=base.tokenizer.backend_tokenizer)
    with pytest.raises(TechniqueError, match="special tokens"):
        attach(make("pasta"), base)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("variant", ["houlsby", "parallel"])
def test_an_adapter_adds_to_what_enters_the_residual(architecture, variant):
    """Of adapters that give a constant c, a block's residual gets exactly c more, whether or not a norm follows."""
    base = tiny_base(architecture)
    block, given = base.anatomy.blocks[-1], []
    block.register_forward_hook(lambda module, args, output: given.append(output))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        base.anatomy.inner(ids)
        attachment = attach(make("adapter", {"adapter": {"variant": variant, "scaling": 1.0, "norms": "frozen"}}), base)
        last = base.anatomy.sublayer(len(base.anatomy.blocks) - 1, "down")[0]
        attachment.params()[f"{last}.up.bias"].fill_(2.0)
        base.anatomy.inner(ids)
    assert torch.allclose(given[1] - given[0], torch.full_like(given[0], 2.0), atol=1e-5)


# The ladder.


@pytest.mark.parametrize("bf16", [False, True])
def test_the_ladder_keeps_few_bytes_and_no_graph_of_the_base(bf16):
    """Bytes saved for backward: at most 35 % of full fine-tuning's."""
    shape = {"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 344}
    from transformers import LlamaConfig, LlamaForCausalLM

    base = Base(LlamaForCausalLM(LlamaConfig(vocab_size=320, **shape)), tiny_base().tokenizer)
    task = tiny_task()
    saved, reached = {}, {}
    for name in ("full", "lora", "lst"):
        attachment = attach(make(name), base, task)
        batch = batch_of(base, _sequences(attachment, task))
        with layout(base, batch), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            saved[name], loss = _saved_bytes(base, attachment, batch)
            loss.backward()
        reached[name] = any(p.grad is not None for p in base.model.parameters())
        attachment.detach()
    assert reached == {"full": True, "lora": False, "lst": False}
    assert saved["lst"] < 0.35 * saved["full"], saved
    assert saved["lst"] < saved["lora"] < saved["full"]


def _saved_bytes(base, attachment, batch):
    """Return the bytes that a forward pass keeps for its backward pass, weights and their casts aside, and its loss."""
    parameters = (*base.model.parameters(), *attachment.params().values())
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    shapes = {shape for parameter in parameters for shape in (parameter.shape, parameter.shape[::-1])}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_sum(base, batch)
    return sum(size for size, _ in kept.values()), loss


def test_the_ladder_keeps_no_wide_states_between_passes():
    base = tiny_base("llama")
    attachment = attach(make("lst"), base)
    held = []
    base.anatomy.blocks[1].register_forward_hook(
        lambda *_: held.append([tuple(read.shape) for read in attachment.reads])
    )
    logits(attachment)
    narrow = attachment.side.config.hidden_size
    assert [shape[-1] for shapes in held for shape in shapes if len(shape) == 3] == [narrow] * 2 * len(held)
    assert not any(read.numel() for read in attachment.reads) and not attachment.entered.numel()


def test_the_ladder_learns_from_the_second_step_on():
    """By default all of it has gradients once its exit has left zero; in a mix with gamma near 1 hardly."""
    sizes = {}
    for output in ("sum", "mix"):
        base, task = tiny_base("llama"), tiny_task()
        attachment = attach(make("lst", {"lst": {"output": output}}), base, task)
        fit(attachment, steps=2)
        batch = batch_of(base, _sequences(attachment, task))
        with layout(base, batch):
            loss_sum(base, batch).backward()
        gradients = {name: float(p.grad.norm()) for name, p in attachment.params().items() if p.grad is not None}
        sizes[output] = sum(size for name, size in gradients.items() if name.startswith("exit"))
        assert all(gradients.get(name) for name in attachment.params() if name.endswith("weight")), gradients
    assert sizes["sum"] > 20 * sizes["mix"]


def test_the_fisher_sums_are_those_of_all_entries():
    base, task = tiny_base("llama-tied"), tiny_task()
    rows = _sequences(attach(make("base"), base, task), task)[:3]
    sums = importance(base, rows)
    whole = fisher(base, {name: p for name, p in base.model.named_parameters() if name in sums}, rows)
    assert len(sums) == 1 + 7 * len(base.anatomy.blocks)
    for name, information in whole.items():
        assert torch.allclose(sums[name], information.sum(0 if "embed" in name else 1), rtol=1e-4), name
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def test_the_side_alone_is_the_published_output_and_is_labelled():
    base = tiny_base("llama")
    for output in ("sum", "mix"):
        added = attach(make("lst", {"lst": {"output": output}}), base)
        assert f"lst-{output} (adaptation" in added.label
        added.detach()
    recipe = make("lst", {"lst": {"output": "side"}})
    assert not recipe.identity_at_start
    before = logits(attach(make("base"), base))
    alone = attach(recipe, base)
    assert not alone.label and "gamma" not in alone.params()
    assert not torch.equal(before, logits(alone))


def test_dropped_layers_have_no_side_block():
    base = tiny_base("llama")
    attachment = attach(make("lst", {"lst": {"layers": ["1"]}}), base)
    assert len(attachment.alpha) == len(attachment.rungs) == 1
    assert not any(".layers.1." in name for name in attachment.params())


def lst_count_of_t5(d, f, heads, size, r, kept, layers):
    """The parameters that the paper counts on T5: side blocks, relative positions, ladders, gates, norms, exit."""
    ds, fs, inner = d // r, f // r, heads * size // r
    encoder = 4 * ds * inner + 2 * ds * fs + 2 * ds
    decoder = 8 * ds * inner + 2 * ds * fs + 3 * ds
    ladders = 2 * (kept + 1) * (d * ds + ds)
    return kept * (encoder + decoder) + 2 * 32 * heads + ladders + 2 * layers + 2 * ds + (ds * d + d)


def test_ladder_counts_of_the_paper():
    """3,878,712 on T5-base, by formula; and the same terms are what a decoder's ladder has."""
    assert lst_count_of_t5(768, 3072, 12, 64, 8, 9, 12) == 3_878_712
    base = tiny_base("gpt2")  # width 32, 4 heads; side width 8, feed-forward 4 times as wide
    attachment = attach(make("lst", {"lst": {"reduction_factor": 4.0}}), base)
    d, s, f, blocks = 32, 8, 32, 2
    block = (s * 3 * s + 3 * s) + (s * s + s) + (s * f + f) + (f * s + s) + 4 * s
    ladders = (blocks + 1) * (d * s + s) + (s * d + d) + blocks  # entry, rungs, exit, gates
    assert count(attachment) == blocks * block + 2 * s + 256 * s + ladders  # final norm, positions


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "opt"])
def test_a_pruned_side_holds_slices_of_the_base(architecture):
    base = tiny_base(architecture)
    side = base.anatomy.shrunk(2.0, 1)
    scores = importance(base)
    prune(base, side, [1], scores)
    width = side.config.hidden_size
    rows = {tuple(row) for row in base.anatomy.linear(1, "o").weight.detach().flatten()[:, None].tolist()}
    small = next(m for n, m in side.named_modules() if n.endswith(dict(base.anatomy.layout.roles)["o"]))
    assert {tuple(v) for v in small.weight.detach().flatten()[:, None].tolist()} <= rows
    columns = best(
        scores[next(n for n, p in base.model.named_parameters() if p is base.anatomy.embedding.weight)], width
    )
    assert columns.tolist() == sorted(set(columns.tolist())) and len(columns) == width


# Multitask prompts.


def test_factors_of_one_leave_the_shared_prompt():
    shared = torch.randn(5, 7, generator=generator(0))
    assert torch.equal(prompt_of(shared, torch.ones(5), torch.ones(7)), shared)
    u, v = torch.rand(5) + 0.5, torch.rand(7) + 0.5
    ratio = prompt_of(shared, u, v) / shared
    assert torch.linalg.matrix_rank(ratio) == 1
    assert torch.allclose(prompt_of(shared, u, v), torch.diag(u) @ shared @ torch.diag(v), atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_distil():
    states, scores = torch.randn(4, 8), torch.randn(4, 20)
    assert abs(float(distillation(states, scores, states, scores))) < 1e-7
    assert float(distillation(states + 1, scores, states, scores)) == pytest.approx(1.0, rel=1e-5)


def test_mpt_counts_and_two_speeds():
    base = tiny_base("llama")
    recipe = make("mpt", {"mpt": {**SOURCES["mpt"], "num_virtual_tokens": 4}}).resolved(base)
    attachment = attach(recipe, base)
    m, d = 4, base.anatomy.width
    assert count(attachment) == m * d + m + d
    assert 100 * 768 + 100 + 768 == 77_668  # the paper's, on T5-base
    speeds = {group["lr"] for group in attachment.param_groups()}
    assert len(speeds) == 2 and max(speeds) / min(speeds) == pytest.approx(4 / 3)
    assert len(base.attached) == 1  # the teachers are gone


def test_mpt_without_sources_says_what_it_needs():
    base = tiny_base("llama")
    with pytest.raises(TechniqueError, match="--sources"):
        attach(make("mpt"), base)


def test_the_sources_leave_a_prompt_and_the_base_as_it_was():
    base = tiny_base("llama")
    before = fingerprint(base)
    recipe = make("mpt", SOURCES).resolved(base)
    attachment = attach(recipe, base)
    assert float(attachment.params()["prompt"].detach().abs().max()) > 0
    assert attachment.shown_prompt is None
    attachment.detach()
    assert fingerprint(base) == before


def test_answer_states_are_those_that_the_head_sees():
    base, task = tiny_base("llama"), tiny_task()
    attachment = attach(make("base"), base, task)
    batch = batch_of(base, _sequences(attachment, task)[:3])
    with layout(base, batch), torch.no_grad():
        states, scores = answer_states(base, batch)
        total = torch.nn.functional.cross_entropy(scores, batch.targets, reduction="sum")
        assert torch.allclose(total, loss_sum(base, batch), rtol=1e-5)
    assert states.shape == (len(batch.targets), base.anatomy.width)


def test_the_papers_optimiser_resumes_and_learns():
    recipe = make("prompt_tuning", {"prompt_tuning": {"optimizer": "adafactor"}})
    for check in (check_resume, check_learns):
        check(recipe, tiny_base("llama"))
    assert recipe.resolved(tiny_base()).learning_rate == 0.3


def test_an_odd_width_has_a_prompt_encoder():
    assert _encoder("lstm", 7)(torch.zeros(3, 7)).shape == (3, 7)
