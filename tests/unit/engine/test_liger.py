"""Liger's kernels are put in by transformers, once, and only where they can run; `tests/gpu` shows how they compute."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from transformers.integrations import liger as integration

from tunewise.core.errors import SettingError
from tunewise.engine import liger
from tunewise.engine.liger import use_liger
from tunewise.engine.model import Base
from tunewise.fitting import loop
from tunewise.fitting.scoring import encoder_for
from tunewise.fitting.settings import TrainSettings
from tunewise.resolve import ComputeOptions, TrainOptions, train_settings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task


@pytest.fixture
def applied(monkeypatch):
    """What a stand-in for the package is asked for, where there seems to be a GPU."""
    asked, package, transformers = [], ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.__spec__ = ModuleSpec("liger_kernel", None)
    transformers._apply_liger_kernel_to_instance = lambda model, **kernels: asked.append((model, kernels))
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setattr(integration, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def test_norms_positions_and_mlps_are_replaced_once_and_no_loss(applied, monkeypatch):
    base = tiny_base()
    with pytest.raises(SettingError, match="the model is on cpu"):
        use_liger(base)
    monkeypatch.setattr(Base, "device", torch.device("cuda"))
    use_liger(base)
    use_liger(base)
    ((model, kernels),) = applied
    assert model is base.model and base.uses_liger
    assert {name for name, on in kernels.items() if on} == {"rope", "rms_norm", "swiglu"}
    assert {"cross_entropy", "fused_linear_cross_entropy"} <= kernels.keys()


def test_training_asks_for_them_where_the_settings_say_so(monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "use_liger", asked.append)
    attachment = attach(make("lora", {}), tiny_base())
    rows = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    for wanted in (False, True):
        settings = TrainSettings(max_steps=1, use_liger_kernel=wanted)
        loop.train(attachment, rows, settings)
        assert asked == [attachment.base] * wanted
        assert ("use_liger_kernel" in settings.to_json()) == wanted


@pytest.mark.parametrize("gpu", [False, True])
def test_what_is_missing_is_said_before_anything_is_loaded(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    missing = "needs liger-kernel" if gpu else "need a GPU"
    with pytest.raises(SettingError, match=f"{missing}.*leave it out"):
        train_settings(4, TrainOptions(), ComputeOptions(use_liger_kernel=True))
