"""The contract finds what it is there to find, and says it in a sentence."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tunewise import testing
from tunewise.contract.attachment import Attachment
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Technique
from tunewise.core.errors import TechniqueError
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import (
    attach,
    check_gradients,
    check_learns,
    check_merge,
    check_same_roles,
    check_same_seed_same_bits,
    fit,
    logits,
    tiny_base,
)


@dataclass(frozen=True, kw_only=True)
class _Scaled(Technique):
    """IA3 (Liu et al. 2022): what keys, values and the feed-forward's last linear give is scaled."""

    name = "_scaled"  # private names are not in the registry
    family = "additive"
    summary = "a test's technique"
    equation = "-"
    reference_rate = 1e-2

    silent: bool = setting(False, "Whether it takes the linears of its roles where they are, and no others.")
    target_modules: tuple[str, ...] = setting((), "Roles.")
    learning_rate: float | None = learning_rate()

    def attach(self, base, generator):
        return _Scales(base, self)


class _Scales(Attachment):
    def __init__(self, base, recipe):
        super().__init__(base, recipe)
        roles = recipe.target_modules or ("k", "v", "down")
        if recipe.silent:
            for path, role, linear in base.anatomy.linears():
                if role in roles:
                    size = linear(torch.zeros(1, features(linear))).shape[1]
                    self._scale(f"{path}.{role}", linear, slice(None), size)
            return
        for role in roles:
            for path, linear, columns in base.anatomy.outputs((role,)):
                self._scale(f"{path}.{role}", linear, columns, len(columns))

    def _scale(self, name, linear, columns, size):
        scale = self.add(name, torch.ones(size))

        def stretch(module, args, output):
            return output.index_copy(-1, torch.arange(output.shape[-1])[columns], output[..., columns] * scale)

        self.hook(linear.register_forward_hook(stretch))


def features(linear):
    return linear.weight.shape[0 if "Conv1D" in type(linear).__name__ else 1]


@pytest.fixture(autouse=True)
def registry():
    yield
    all_techniques.cache_clear()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_technique_that_takes_columns_passes(architecture):
    for check in (check_same_roles, check_learns):
        check(_Scaled(), tiny_base(architecture))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi3"])
def test_a_technique_that_trains_nothing_on_k_and_v_is_found(architecture):
    check_same_roles(_Scaled(silent=True), tiny_base("llama"))
    with pytest.raises(AssertionError, match=r"_scaled should train k, v but trains nothing there .*qkv.*outputs"):
        check_same_roles(_Scaled(silent=True), tiny_base(architecture))


def test_roles_that_settings_name_are_wanted_too():
    with pytest.raises(AssertionError, match="should train gate but trains nothing"):
        check_same_roles(_Scaled(silent=True, target_modules=("gate", "down")), tiny_base("gpt2"))
    check_same_roles(_Scaled(target_modules=("gate", "down")), tiny_base("gpt2"))  # it is refused in a sentence
    check_same_roles(make("lora", {"lora": {"target_modules": ["q", "v"]}}), tiny_base("gpt2"))


def test_two_tensors_of_one_name_are_refused():
    """On a fused linear the same path comes once for each role."""
    base = tiny_base("gpt2")
    attachment = Attachment(base, _Scaled())
    with pytest.raises(TechniqueError, match='two tensors called "transformer'):
        for path, _, columns in base.anatomy.outputs(("k", "v")):
            attachment.add(f"{path}.scale", torch.ones(len(columns)))


def test_every_assertion_says_what_was_broken_and_where_to_read_more():
    source = Path(testing.__file__).read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            said = node.msg
        elif isinstance(node, ast.Raise) and getattr(getattr(node.exc, "func", None), "id", "") == "AssertionError":
            (said,) = node.exc.args
        else:
            continue
        assert isinstance(said, ast.Call) and said.func.id == "_failure", f"line {node.lineno} says nothing"
    sections = re.findall(
        r"^## (.+)$", (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
    )
    assert set(re.findall(r'\(see "(.+?)" in CONTRIBUTING\.md\)', source)) <= set(sections)


def test_hooks_come_off_when_merging_without_the_technique_s_doing():
    base = tiny_base()
    attachment = attach(_Folding(), base)
    fit(attachment)
    expected = logits(attachment)
    assert attachment.merge() is base.model
    assert not any(module._forward_hooks for module in base.model.modules())
    assert torch.allclose(logits(attachment), expected, atol=1e-5)
    attachment.detach()
    check_merge(_Folding(), tiny_base())


def test_what_cannot_be_merged_keeps_its_hooks():
    base = tiny_base()
    attachment = attach(_Scaled(), base)
    fit(attachment)
    expected = logits(attachment)
    with pytest.raises(TechniqueError, match="_scaled cannot be merged"):
        attachment.merge()
    assert torch.equal(logits(attachment), expected)


@dataclass(frozen=True, kw_only=True)
class _Folding(_Scaled):
    """The same, put into the weights by no more than `fold`."""

    name = "_folding"
    mergeable = True

    def attach(self, base, generator):
        return _Folded(base, self)


class _Folded(_Scales):
    def fold(self):
        for path, linear, columns in self.base.anatomy.outputs(("k", "v", "down")):
            role = {"k_proj": "k", "v_proj": "v"}.get(path.rpartition(".")[2], "down")
            self.keep(linear.weight)
            with torch.no_grad():
                linear.weight[columns] *= self.params()[f"{path}.{role}"][:, None]


@dataclass(frozen=True, kw_only=True)
class _Mistaken(_Scaled):
    """The same with one mistake."""

    name = "_mistaken"
    mistake: str = setting("", "What is wrong with it.")

    def attach(self, base, generator):
        return _MistakenScales(base, self)


class _MistakenScales(_Scales):
    def __init__(self, base, recipe):
        super().__init__(base, recipe)
        if recipe.mistake == "unused":
            self.add("unused", torch.ones(3))
        if recipe.mistake == "global":
            with torch.no_grad():
                for parameter in self.params().values():
                    parameter.add_(0.1 * torch.rand_like(parameter))

    def _scale(self, name, linear, columns, size):
        mistake = self.recipe.mistake
        if mistake == "queries" and "qkv" in self.base.anatomy.roles:
            columns = slice(None)  # all of a fused projection, queries included
            size = linear(torch.zeros(1, features(linear))).shape[1]
        if mistake == "flat":
            self.add(name, torch.ones(size))  # trained, but used by nothing
            return
        super()._scale(name, linear, columns, size)


def test_a_tensor_that_is_not_used_is_found():
    with pytest.raises(AssertionError, match="gives unused no gradient, although it is among its params"):
        check_learns(_Mistaken(mistake="unused"), tiny_base("llama"))


def test_a_role_that_is_trained_by_mistake_is_found():
    check_same_roles(_Mistaken(mistake="queries", target_modules=("k", "v")), tiny_base("llama"))
    with pytest.raises(AssertionError, match=r"trains q on GPTNeoX.*, which it leaves alone on a Llama"):
        check_same_roles(_Mistaken(mistake="queries", target_modules=("k", "v")), tiny_base("gpt_neox"))


def test_a_draw_from_the_global_state_is_found():
    with pytest.raises(AssertionError, match="in a second run of the same seed"):
        check_same_seed_same_bits(_Mistaken(mistake="global"), tiny_base("llama"))


def test_a_technique_without_any_gradient_is_found():
    with pytest.raises(AssertionError, match=r"gives .* no gradient"):
        check_learns(_Mistaken(mistake="flat"), tiny_base("llama"))
    with pytest.raises(AssertionError, match="trains tensors that no output depends on"):
        check_gradients(_Mistaken(mistake="flat"), tiny_base("llama"))
