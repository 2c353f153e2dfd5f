"""What a base finds out about itself while it is bare, and keeps."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.advice.plan.weightless import sketch
from tunewise.core.errors import ModelError
from tunewise.engine import forward
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base, PackingTrial, load_base
from tunewise.testing import tiny_base


def test_a_fingerprint_is_that_of_the_bare_base():
    base, other = tiny_base(), tiny_base()
    taken = base.freeze_fingerprint()
    with torch.no_grad():
        base.anatomy.head.weight.add_(1)
    assert base.fingerprint == base.frozen_fingerprint == taken == other.fingerprint
    assert Base(base.model, base.tokenizer).fingerprint != taken


def test_packing_is_tried_once(monkeypatch):
    base, tried = tiny_base(), []
    monkeypatch.setattr(forward, "_probe", lambda base: tried.append(base) or "not today")
    assert base.packing is None and why_not_packed(base) == why_not_packed(base) == "not today"
    assert len(tried) == 1 and base.packing == PackingTrial("not today")


def test_a_base_without_weights_is_told_what_it_cannot_find_out(tmp_path, save_tiny):
    drawn = sketch(save_tiny(tmp_path / "tiny"))
    with fake_tensors():
        base = drawn.build()
        assert base.packing == PackingTrial(None) and why_not_packed(base) is None
        assert base.freeze_fingerprint() == "sketch"


def test_an_unknown_layout_is_refused_by_name():
    base = tiny_base()
    del base.model.model.norm
    with pytest.raises(ModelError, match=r"model\.norm"):
        base.check_layout()


def _altered(folder, change):
    """Save a folder's weights again after `change` has altered their dictionary."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.figure("M4")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop(sorted(t)[0]), "lacks tensors of the architecture"),
        (lambda t: t.update(more=torch.zeros(2)), "does not have"),
        (
            lambda t: t[sorted(t)[1]].view(-1)[3:4].fill_(float("nan")),
            r'model.safetensors holds values in "\S+" that are not finite',
        ),
        (lambda t: t[sorted(t)[2]].view(-1)[:1].fill_(float("-inf")), "not finite"),
        (lambda t: t.update({sorted(t)[0]: torch.zeros(3, 3)}), "shape|size"),
        *(
            (
                lambda t, d=d: t.update({sorted(t)[0]: t[sorted(t)[0]].float().to(d)}),
                r'model.safetensors holds "\S+" as',
            )
            for d in (torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)
        ),
    ],
)
def test_a_checkpoint_is_whole_or_refused(tmp_path, save_tiny, change, word):
    folder = save_tiny(tmp_path / "tiny")
    with pytest.raises(ModelError, match=word) as refused:
        load_base(_altered(folder, change), device="cpu")
    assert str(folder) in str(refused.value)


def test_a_checkpoint_of_several_files_names_the_one_at_fault(tmp_path):
    folder = tmp_path / "tiny"
    base = tiny_base()
    base.model.save_pretrained(folder, max_shard_size="20KB")
    base.tokenizer.save_pretrained(folder)
    load_base(folder, device="cpu")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    tensors = load_file(shards[1])
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name].to(torch.int16)}, shards[1], metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f'{shards[1].name} holds "{name}" as I16'):
        load_base(folder, device="cpu")
