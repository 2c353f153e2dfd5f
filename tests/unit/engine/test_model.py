"""What a base finds out about itself while it is bare, and keeps."""

import pytest
import torch

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.advice.plan.weightless import sketch
from tunewise.core.errors import ModelError
from tunewise.engine import forward
from tunewise.engine.forward import why_not_packed
from tunewise.engine.model import Base, PackingTrial
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
