"""What last_layers promises beyond the contract: counts, identities, traps."""

import pytest
import torch

from tunewise.core.errors import SettingError
from tunewise.techniques.registry import make
from tunewise.testing import attach, fit, tiny_base


def put(name, base, **settings):
    return attach(make(name, {name: settings}), base)


def test_last_layers_counts_blocks_norm_and_head():
    base = tiny_base("llama")
    block = sum(p.numel() for p in base.anatomy.blocks[-1].parameters())
    names = put("last_layers", base, k=1).params()
    assert sum(p.numel() for p in names.values()) == block + 32 + base.anatomy.head.weight.numel()
    assert all(name.startswith(("model.layers.1.", "model.norm.", "head.")) for name in names)
    for k, blocks in ((0, 0), (0.5, 1), (0.51, 2), (2, 2)):
        found = put("last_layers", tiny_base("llama"), k=k).params()
        assert len({name.split(".")[2] for name in found if name.startswith("model.layers")}) == blocks


def test_tied_heads_stay_frozen_unless_asked():
    base = tiny_base("llama-tied")
    assert not any(name.startswith("head") for name in put("last_layers", base).params())
    untied = put("last_layers", base, head="untie")
    embeddings = base.anatomy.embedding.weight.detach().clone()
    fit(untied)
    assert not base.anatomy.tied and torch.equal(base.anatomy.embedding.weight, embeddings)
    untied.detach()
    assert base.anatomy.tied
    tied = put("last_layers", base, head="tied")
    fit(tied)
    assert base.anatomy.tied and not torch.equal(base.anatomy.embedding.weight, embeddings)


def test_last_layers_refuses_what_does_not_fit():
    with pytest.raises(SettingError, match="the model has 2 blocks"):
        put("last_layers", tiny_base(), k=3)
    with pytest.raises(SettingError, match="separate from"):
        put("last_layers", tiny_base("llama"), head="untie")
    with pytest.raises(SettingError, match="tied to"):
        put("last_layers", tiny_base("llama-tied"), head="trained")
