"""PEFT's methods as techniques: `peft:ia3`, `peft:vera` and so on, with the fields of PEFT's own configurations.

PEFT puts its layers into the model; here they are trained, packed, compared, stored and taken out again like any other
technique's. What PEFT changes in the model is undone from a copy of its structure and weights, so a detached base is
the same bits whatever the method does. Which methods work on a model is found by trying (`tunewise techniques --peft`).

PEFT's layers are in training mode during a step, so that their dropout and noise act, and the base's own stay in
evaluation mode. A method that needs more of a training loop (calls after each step, arguments to each pass) is refused,
with one of ours named; an adapter that PEFT itself has trained by such a method still loads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from tunewise.contract.attachment import Attachment, PeftConfig, strict
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.core.progress import Progress, silent
from tunewise.engine.forward import why_not_packed
from tunewise.techniques.building.peft_config import NOT_SETTINGS, check_names, check_values
from tunewise.techniques.building.peft_lora import explicit_config
from tunewise.techniques.building.peft_tensors import fitted

if TYPE_CHECKING:
    from tunewise.contract.study import Study
    from tunewise.data.task import Task
    from tunewise.engine.model import Base

NAMESPACE = "peft:"
_LEAST_ROOM = 1 << 27  # values that PEFT may add to any model, however small
# Where a search begins, at width 4096: rates of PEFT's comparison (ia3, lokr, hira, osf, shira), for the others within
# the ranges that papers give; 1e-3 for what is not named.
_RATES = {
    "ia3": 5e-3,
    "vera": 1e-2,
    "hira": 4.5e-3,
    "lokr": 3e-3,
    "c3a": 1e-1,
    "fourierft": 3e-2,
    "trainable_tokens": 0.2,
}
_RATES |= {"lora": 2e-4, "oft": 1e-3, "boft": 1e-3, "osf": 5e-5, "shira": 3e-4, "miss": 2e-4, "vblora": 1e-2}
# Methods that no pass here can run, because they need more than the ids of tokens, and what to use in their place.
_CANNOT_RUN = {
    "poly": "each pass needs the number of its task; use lora, or mpt for several tasks",
    "shadow": "its second network cannot follow rows that hold several sequences; use lst",
    "xlora": "it mixes LoRAs that are trained already; train one with lora",
}
# Methods that need calls or rows that the training loop does not give; a trained adapter of theirs loads.
_CANNOT_TRAIN = {
    "adalora": "PEFT's form needs a call after each step and a term in the loss to remove ranks; use adalora",
    "lily": "it routes by the mean of a row, and rows here hold several sequences; use lora",
}
# Values of settings that need such calls, by method and setting; None: every value but the default.
_CANNOT_TRAIN_WITH: dict[tuple[str, str], tuple[tuple[object, ...] | None, str]] = {
    ("adamss", "use_asa"): ((True,), "its ranks are chosen by a call after each step; use adalora"),
    ("lora", "init_lora_weights"): (
        ("eva", "corda", "lora_ga"),
        "this start needs passes over data before training; use lora with init_lora_weights=pissa or olora",
    ),
    ("lora", "monteclora_config"): (None, "it needs a term in the loss; leave it out"),
    ("lora", "arrow_config"): (None, "it routes between LoRAs that are trained already; leave it out"),
    ("lora", "alora_invocation_tokens"): (None, "it needs the places of these tokens in each pass; leave it out"),
}
# PEFT's methods that put nothing into the model but stand before its input, and what to use in their place.
_BEFORE_THE_INPUT = {
    "cartridge": "prefix_tuning",
    "cpt": "prompt_tuning with init=text",
    "multitask_prompt_tuning": "mpt",
    "p_tuning": "p_tuning",
    "prefix_tuning": "prefix_tuning",
    "prompt_tuning": "prompt_tuning",
}


@dataclass(frozen=True, kw_only=True)
class Bridged(Technique):
    """A method of PEFT, with one subclass per method, named `peft:<type>`."""

    name = "_peft"
    family = "peft"
    citation = Citation("PEFT: State-of-the-art Parameter-Efficient Fine-Tuning", "Mangrulkar et al.", 2022, "")
    equation = "as PEFT's configuration class documents it"
    sides = frozenset({"weights", "biases", "norms", "embeddings"})
    mergeable = True
    identity_at_start = False
    needs_whole_weights = "PEFT reads and changes them outside of the model's passes"
    reference_rate = 1e-3
    width_exponent = 0.5

    config: str = setting("{}", "PEFT's configuration as JSON.")
    learning_rate: float | None = learning_rate()

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Let PEFT put its layers into the model.

        Raises:
            TechniqueError: the method cannot run here, or PEFT cannot do it on this model; the reason is given.
        """
        if reason := _CANNOT_RUN.get(self.short):
            raise TechniqueError(f"{self.name} cannot run here: {reason}")
        try:
            return _PeftAttachment(base, self, generator)
        except TechniqueError as error:  # what cannot be trained anyway needs no better settings first
            raise TechniqueError(self.why_not_trainable() or str(error)) from error

    @property
    def short(self) -> str:
        """Return the method's name without "peft:"."""
        return self.name.removeprefix(NAMESPACE)

    def why_not_trainable(self) -> str:
        """Say why the training loop cannot train this method or these settings; empty where it can."""
        if reason := _CANNOT_TRAIN.get(self.short):
            return f"{self.name} cannot be trained here: {reason}"
        settings = json.loads(self.config)
        for (method, key), (values, reason) in _CANNOT_TRAIN_WITH.items():
            if method == self.short and key in settings and (values is None or settings[key] in values):
                return f"{self.name} cannot be trained here with {key}={json.dumps(settings[key])}: {reason}"
        return ""

    def lacks(self, base: Base, task: Task) -> str:
        """Say why the method cannot be trained, if it cannot."""
        reason = _CANNOT_RUN.get(self.short)
        return f"{self.name} cannot run here: {reason}" if reason else self.why_not_trainable()

    def to_json(self) -> dict[str, Any]:
        """Return the name and PEFT's settings."""
        return {"technique": self.name, "settings": {**json.loads(self.config), "learning_rate": self.learning_rate}}


@cache
def methods() -> dict[str, type[Bridged]]:
    """Return every method of the installed PEFT that puts layers into a model, by name."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    recipes = {}
    for kind, config in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items(), key=lambda pair: pair[0].value):
        if kind not in PEFT_TYPE_TO_TUNER_MAPPING or issubclass(config, PromptLearningConfig):
            continue  # prompts, prefixes and the like stand before the model; tunewise has its own
        short = kind.value.lower()
        text = (config.__doc__ or "").strip().split("\n")[0]
        facts = {"name": NAMESPACE + short, "summary": text, "reference_rate": _RATES.get(short, 1e-3), "__doc__": text}
        facts["__module__"] = __name__
        recipes[NAMESPACE + short] = type(f"Peft{short.capitalize()}", (Bridged,), facts)
    return recipes


def recipe(name: str, settings: Mapping[str, Any]) -> Bridged:
    """Return the recipe of `peft:<type>` with these settings.

    Raises:
        SettingError: no such method, a field that its configuration does not have, a value of another type or out of
            bounds, or a regular expression, which PEFT would run.
    """
    cls = methods().get(name)
    if substitute := _BEFORE_THE_INPUT.get(name.removeprefix(NAMESPACE)):
        raise SettingError(f"{name} puts no layers into a model but stands before its input; use {substitute}")
    if cls is None:
        matches = get_close_matches(name, methods(), 1)
        hint = f'; did you mean "{matches[0]}"?' if matches else f"; there are {', '.join(methods())}"
        raise SettingError(f'PEFT has no method "{name}" that puts layers into a model{hint}')
    fields_given = dict(settings)
    rate = fields_given.pop("learning_rate", None)
    field_names = {item.name for item in fields(_config_class(name))} - NOT_SETTINGS
    for key in fields_given:
        if key not in field_names:
            matches = get_close_matches(key, field_names, 1)
            raise SettingError(
                f'{name} has no setting "{key}"' + (f'; did you mean "{matches[0]}"?' if matches else "")
            )
    check_values(name, _config_class(name), fields_given)
    check_names(name, fields_given)
    return cls(config=json.dumps(fields_given, sort_keys=True), learning_rate=rate)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse fields of an adapter's file that are not of PEFT's types, or out of bounds; raises `SettingError`."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    kind = config.get("peft_type")
    if isinstance(kind, str) and kind in PeftType.__members__:
        check_values(f"an adapter of PEFT's type {kind}", PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)], config)


def from_peft(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bridged:
    """Return the recipe of any adapter that PEFT wrote; what its file may not choose is left out.

    Raises:
        SettingError: a type that this PEFT does not have.
        ArtifactError: a LoRA with a field that is not supported; it is named.
    """
    name = NAMESPACE + str(config.get("peft_type")).lower()
    if name == NAMESPACE + "lora":
        config = explicit_config(config, tensors)
    field_names = {item.name for item in fields(_config_class(name))} - NOT_SETTINGS if name in methods() else set()
    settings = {key: value for key, value in config.items() if key in field_names and value is not None}
    check_names(name, settings)
    if isinstance(targets := settings.get("target_modules"), list):  # names for other models too; the file says which
        targets_present = [target for target in targets if any(f".{target}." in f".{key}" for key in tensors)]
        settings["target_modules"] = targets_present or targets
    return recipe(name, settings)


def survey(base: Base, report: Progress = silent) -> list[dict[str, Any]]:
    """Try each method on this model with PEFT's defaults; return one row per method, with the reason of a failure.

    `trains` says whether a pass over packed text leaves gradients, `merges` whether PEFT can merge it.
    """
    rows = []
    for done, (name, cls) in enumerate(methods().items()):
        report(name, done, len(methods()))
        row: dict[str, Any] = {"technique": name, "parameters": None, "trains": False, "merges": False, "reason": None}
        try:
            attachment = cls().attach(base, torch.Generator().manual_seed(0))
            row["parameters"] = sum(p.numel() for p in attachment.params().values())
            attachment.start_phase(0)
            row["trains"] = _trains(attachment)
            attachment.merge()
            row["merges"] = True
        except (TechniqueError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            row["reason"] = " ".join(str(error).split())[:200]
        finally:
            base.release()
        rows.append(row)
    return rows


def _trains(attachment: Attachment) -> bool:
    from tunewise.engine.encoding import TokenSequence
    from tunewise.engine.forward import batch_of, layout, loss_sum

    rows = [TokenSequence([*range(3, 3 + length)], [True] * length, 0) for length in (5, 7)]
    batch = batch_of(attachment.base, rows)
    with layout(attachment.base, batch):
        loss_sum(attachment.base, batch).backward()
    return any(p.grad is not None and bool(p.grad.any()) for p in attachment.params().values())


def _config_class(name: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.removeprefix(NAMESPACE).upper())]


def _left_empty(config: Any) -> list[str]:
    """Return the names of settings that are empty lists, by which PEFT's layers find nothing to train."""
    return [item.name for item in fields(config) if item.name not in NOT_SETTINGS and getattr(config, item.name) == []]


class _PeftAttachment(Attachment):
    def __init__(self, base: Base, recipe: Bridged, generator: torch.Generator) -> None:
        base.check_layout()  # while the model is still bare: PEFT renames its parts
        why_not_packed(base)  # found now and remembered: noise in training would make the trial fail
        super().__init__(base, recipe)
        self._tied = base.anatomy.tied
        self._bridged = recipe
        self._values_before = [(parameter, parameter.detach().clone()) for parameter in base.model.parameters()]
        self._undo.append(_remember(base.model, self._values_before))
        bare = {id(module) for module in base.model.modules()}
        settings = json.loads(recipe.config)
        if str(settings.get("init_lora_weights")).startswith("pissa_niter_"):
            raise TechniqueError(
                f"{recipe.name} with init_lora_weights={settings['init_lora_weights']} changes the base by random "
                "numbers, so an adaptation could not be loaded again; use pissa"
            )
        # Names of the base's own embeddings in the state: PEFT saves them where they were resized.
        self._embeddings: frozenset[str] = frozenset()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            self.wrapped = self._wrapped_model(settings)
        base.model.eval()
        self._layers = [module for module in base.model.modules() if id(module) not in bare]
        for name, parameter in base.model.named_parameters():
            if parameter.requires_grad:
                self._params[name] = parameter
        if not any(parameter.numel() for parameter in self._params.values()):
            wanted = " and ".join(_left_empty(self.wrapped.peft_config["default"])) or "target_modules"
            self._undo[0]()
            raise TechniqueError(f"{recipe.name} trains nothing on this model; give its {wanted}")

    def _wrapped_model(self, configured: Mapping[str, Any]) -> Any:
        """Wrap the model in PEFT: on the modules that PEFT chooses for it, or else on all linears."""
        from peft import PeftModel

        name = self.recipe.name
        attempts = [configured]
        if "target_modules" in {item.name for item in fields(_config_class(name))} - set(configured):
            attempts.append({**configured, "target_modules": "all-linear"})
        modules = [path for path, _ in self.base.model.named_modules()]
        for attempt, settings in enumerate(attempts, 1 - len(attempts)):
            try:
                with _at_most(max(_LEAST_ROOM, 2 * self.base.parameters)):
                    wrapped = PeftModel(self.base.model, _config_class(name)(**settings))
                self._check_targets(wrapped.peft_config["default"], modules)
                return wrapped
            except Exception as error:  # PEFT raises whatever its layers do
                self._undo[0]()
                if not attempt:
                    reason = " ".join(str(error).split())[:300]
                    raise TechniqueError(f"PEFT cannot put {name} on this model: {reason}") from error
        raise AssertionError("unreachable")

    def _check_targets(self, config: Any, modules: list[str]) -> None:
        """Refuse a target that matches nothing; PEFT ignores it silently where another target matches."""
        targets = getattr(config, "target_modules", None)
        for target in sorted(targets) if isinstance(targets, (list, set, tuple)) else ():
            if not any(path == target or path.endswith(f".{target}") for path in modules):
                names = sorted({path.rpartition(".")[2] for path, _, _ in self.base.anatomy.linears()})
                raise TechniqueError(
                    f'target_modules names "{target}", but no module here is called that; the blocks\' linears are '
                    f"{', '.join(names)}"
                )

    def prepare(self, study: Study) -> None:
        """Refuse a method that cannot be trained, before anything is spent on it."""
        self.start_phase(0)

    def start_phase(self, phase: int) -> None:
        """Refuse a method that needs more of the training loop than it gives."""
        if reason := self._bridged.why_not_trainable():
            raise TechniqueError(reason)

    def before_step(self, step: int, total: int) -> None:
        """Put PEFT's own layers into training mode, for their dropout and noise."""
        self._set_training(True)

    def after_step(self, step: int, total: int) -> None:
        self._set_training(False)

    def _set_training(self, training: bool) -> None:
        for module in self._layers:  # not `module.train()`, which would reach the base's modules inside
            module.training = training

    def changed(self) -> list[nn.Parameter]:
        """Compare with the weights before, since PEFT does not report which ones its layers change."""
        trained = set(map(id, self._params.values()))
        return [p for p, before in self._values_before if id(p) in trained or not torch.equal(p, before)]

    def state(self) -> dict[str, Tensor]:
        """Return what PEFT stores, by its names."""
        if not self._embeddings:
            return self._stored(embeddings=False)
        return self._stored(embeddings=False) | {
            name: tensor for name, tensor in self._stored(embeddings=True).items() if name in self._embeddings
        }

    def _stored(self, *, embeddings: bool) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self.wrapped, save_embedding_layers=embeddings)
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        self._embeddings = self._embeddings_among(state)
        strict(self.state(), state)
        self._require_own_embeddings(state)
        set_peft_model_state_dict(self.wrapped, dict(state))

    def _embeddings_among(self, state: Mapping[str, Tensor]) -> frozenset[str]:
        """Return the names of the base's own embeddings in a state: PEFT saves both ends, or those that are adapted."""
        added = state.keys() - self._stored(embeddings=False).keys()
        if not added:
            return frozenset()
        both = self._stored(embeddings=True).keys() - self._stored(embeddings=False).keys()
        adapted = {name for name in both if name.endswith(".base_layer.weight")}
        return frozenset(added if added in (both, adapted) else ())

    def _require_own_embeddings(self, state: Mapping[str, Tensor]) -> None:
        """Refuse embeddings of a base that was not resized, where they are not the base's own.

        PEFT saves them beside an adapter to be safe; training changes them only under other names.
        """
        if self.base.embedding_rows is not None:
            return
        own = self._stored(embeddings=True)
        for name in sorted(name for name in self._embeddings if name.endswith(".weight")):
            if not torch.allclose(own[name].float(), state[name].float(), rtol=1e-2, atol=1e-4):  # bfloat16 rounds so
                raise ArtifactError(
                    f'the adapter holds "{name}", a weight of the base\'s, with other values than the base has; name '
                    "the base that it was made on, or save the adapter with save_embedding_layers=False"
                )

    def training_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._params.items()}

    def fold(self) -> None:
        """Let PEFT merge; where it adapts one of two tied ends, they are two tensors afterwards."""
        from peft.tuners.lora import LoraLayer

        anatomy = self.base.anatomy
        if self._tied and any(isinstance(end, LoraLayer) for end in (anatomy.embedding, anatomy.head)):
            head = getattr(anatomy.head, "base_layer", anatomy.head)
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        try:
            self.wrapped.merge_and_unload()
        except Exception as error:
            raise TechniqueError(
                f"{self.recipe.name} cannot be merged by PEFT: {' '.join(str(error).split())}"
            ) from error
        if self._tied and not torch.equal(anatomy.head.weight, anatomy.embedding.weight):
            self.replace(self.base.model.config, "tie_word_embeddings", False)

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]]:
        config = {key: _json_value(value) for key, value in self.wrapped.peft_config["default"].to_dict().items()}
        config |= {"base_model_name_or_path": self.base.name, "revision": self.base.revision, "inference_mode": True}
        return config, self.state()

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from PEFT's tensors, whatever type they are saved in."""
        self._embeddings = self._embeddings_among(tensors)
        self.load(fitted(self.state(), tensors))


@contextmanager
def _at_most(values: int) -> Iterator[None]:
    """Stop what PEFT builds inside the block when its parameters and buffers hold more than so many values."""
    total = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal total
        total += tensor.numel() if tensor is not None else 0
        if total > values:
            raise TechniqueError(f"it would hold more than {values:,} values, twice what the model holds")

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _json_value(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


def _remember(model: nn.Module, values: list[tuple[nn.Parameter, Tensor]]) -> Callable[[], None]:
    """Return a function that restores every module's current attributes and every parameter's values."""
    attributes = [(module, shallow(vars(module))) for module in model.modules()]

    def restore() -> None:
        for module, saved in attributes:
            vars(module).clear()
            vars(module).update(shallow(saved))
        for parameter, original in values:
            parameter.requires_grad_(False)
            parameter.grad = None
            with torch.no_grad():
                parameter.copy_(original)

    return restore


def shallow(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which the tables of submodules, parameters and hooks are copies too."""
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()}
