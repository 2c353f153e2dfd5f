"""An attachment: a technique living on one loaded model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tunewise.core.errors import ArtifactError, TechniqueError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tunewise.contract.study import Study
    from tunewise.contract.technique import Technique
    from tunewise.data.task import Example, Task
    from tunewise.engine.model import Base


ModuleType = TypeVar("ModuleType", bound="nn.Module")
ParamGroup: TypeAlias = dict[str, Any]  # one of torch's optimiser groups: "params", "lr" and what the optimiser knows
PeftConfig: TypeAlias = dict[str, Any]  # the content of PEFT's adapter_config.json
Findings: TypeAlias = dict[str, Any]  # what a report says of an attachment after training, as JSON, by its heading
StoredRow: TypeAlias = dict[str, Any]  # a JSON row of the artifact, in the technique's own form


@dataclass(frozen=True)
class CitedText:
    """Says what a prompt quotes: the text, and its source, a document with a span of it."""

    source: str
    text: str


class Building:
    """Adds tensors, trains tensors of the base and sets hooks, on behalf of a technique; `detach` undoes all of it."""

    def __init__(self, base: Base, recipe: Technique) -> None:
        self.base, self.recipe = base, recipe
        base.freeze_fingerprint()
        base.attached.append(self)
        self._params: dict[str, nn.Parameter] = {}
        self._undo: list[Callable[[], object]] = []
        self._hooks: list[Any] = []
        self._originals: dict[int, Tensor] = {}
        # Half-precision parameters that are trained, each with its float32 copy, by the parameter's id.
        self._copies: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def add(self, name: str, values: Tensor) -> nn.Parameter:
        """Add a trainable tensor, on the base's device, in at least fp32 and at least the base's precision.

        Raises:
            TechniqueError: the name is taken, so that the tensor before it would not be trained any more.
        """
        import torch

        if name in self._params:
            raise TechniqueError(
                f'{self.recipe.name} adds two tensors called "{name}"; give each role and block its own'
            )
        exact = torch.promote_types(values.dtype, torch.float32)
        dtype = torch.promote_types(exact, self.base.model.dtype)
        parameter = torch.nn.Parameter(values.to(self.base.device, dtype))
        self._params[name] = parameter
        return parameter

    def adopt(self, name: str, build: Callable[[], ModuleType], generator: torch.Generator) -> ModuleType:
        """Add a module that `build` makes, seeded by `generator`; its trainable parameters are named below `name`."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            module = build()
        if self.base.device.type != "cpu":
            module = module.to(self.base.device)
        self._params |= {f"{name}.{key}": p for key, p in module.named_parameters() if p.requires_grad}
        return module

    def train_existing(self, name: str, parameter: nn.Parameter, rounds: bool = False) -> None:
        """Train a parameter of the base; `detach` restores its values.

        One in half precision would lose small updates: a float32 copy of it is trained, and the parameter is the copy,
        rounded (mixed precision as in Micikevicius et al. 2018, section 3.1). `rounds` says that the optimiser loses no
        small updates in bfloat16, because it rounds stochastically; then the parameter itself is trained.
        """
        import torch
        from torch import nn

        self.keep(parameter)
        if parameter.dtype not in (torch.bfloat16, torch.float16) or (rounds and parameter.dtype == torch.bfloat16):
            self._params[name] = parameter
            parameter.requires_grad_(True)
            return
        copy = self._params[name] = nn.Parameter(parameter.detach().float())
        self._copies[id(parameter)] = (parameter, copy)
        self._originals[id(copy)] = self._originals[id(parameter)]
        self.divert(parameter, lambda gradient: [(copy, gradient.float())])

        def forget() -> None:
            self._originals.pop(id(copy), None)
            self._copies.pop(id(parameter), None)

        self._undo.append(forget)

    def trained(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what is trained in place of a base parameter that `train_existing` was given: it, or its copy."""
        return self._copies.get(id(parameter), (parameter, parameter))[1]

    def round_trained(self) -> None:
        """Give half-precision parameters the values of the float32 copies that were trained in their place."""
        import torch

        with torch.no_grad():
            for parameter, copy in self._copies.values():
                parameter.copy_(copy)

    def keep(self, parameter: nn.Parameter) -> None:
        """Remember a base parameter's values, which `detach` restores."""
        import torch

        from tunewise.engine.memory import spill_to_disk
        from tunewise.engine.shards import local

        original = self._originals[id(parameter)] = spill_to_disk(local(parameter))  # of a shard this device's part

        def restore() -> None:
            parameter.requires_grad_(False)
            parameter.grad = None
            with torch.no_grad():
                local(parameter).copy_(original)
            self._originals.pop(id(parameter), None)

        self._undo.append(restore)

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return the values that a base parameter had at first; on the CPU they are read from disk."""
        return self._originals[id(parameter)]

    def divert(
        self, parameter: nn.Parameter, shares: Callable[[Tensor], Iterable[tuple[nn.Parameter, Tensor]]]
    ) -> None:
        """Hand a base parameter's gradient to others: `shares(gradient)` gives pairs of parameter and gradient.

        It is called as soon as the gradient is complete; the base parameter keeps none. Several backward passes add up.
        """

        def hand_out(parameter_with_gradient: Tensor) -> None:
            gradient, parameter_with_gradient.grad = parameter_with_gradient.grad, None
            for target, share in shares(gradient):  # type: ignore[arg-type]  # the hook runs when it has just been made
                target.grad = share if target.grad is None else target.grad + share

        parameter.requires_grad_(True)
        self.hook(parameter.register_post_accumulate_grad_hook(hand_out))

    def hook(self, handle: Any) -> None:
        """Register a torch hook handle, which `detach` removes, and `merge` before it changes the weights."""
        self._hooks.append(handle)
        self._undo.append(handle.remove)

    def replace(self, module: object, attribute: str, value: Any) -> None:
        """Set an attribute of a base module (or of its configuration); `detach` sets it back."""
        before = getattr(module, attribute)
        setattr(module, attribute, value)
        self._undo.append(lambda: setattr(module, attribute, before))


class Training(Building):
    """Adds what the training loop and the scoring call: parameters, optimiser, what runs around a step, the prompt."""

    virtual_tokens: int = 0  # placeholders that the encoder puts at the head of every sequence
    virtual_suffix: int = 0  # the same, between prompt and answer
    phases: int = 1

    def params(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors by a name that is the same in each run."""
        return self._params

    def param_groups(self) -> list[ParamGroup]:
        """Return torch's optimiser groups; several where a technique has several learning rates."""
        rate = getattr(self.recipe, "learning_rate", None)
        return [{"params": list(self.params().values()), "lr": rate}] if self.params() else []

    def optimizer(self, groups: list[ParamGroup], betas: tuple[float, float]) -> torch.optim.Optimizer:
        """Return the optimiser of these groups: AdamW, fused where it can be."""
        from tunewise.engine.optimizers import build

        return build("adamw", groups, betas)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of several backward passes may be added up: the optimiser moves nothing inside of them."""
        return True

    @property
    def complete(self) -> bool:
        """Whether the state is an adaptation as the recipe promises it: False while training still prunes it to size.

        Only complete states of the last phase are kept as the best and make training stop early.
        """
        return True

    def prepare(self, study: Study) -> None:
        """Take what is needed from the task before training."""

    def prepare_shapes(self, study: Study) -> None:
        """Take the sizes that `prepare` would give, without its values; a plan calls this on a base without weights."""
        self.prepare(study)

    def start_phase(self, phase: int) -> None:
        """Prepare a phase; called before each one, the first included, and before the optimiser is built anew."""

    def before_step(self, step: int, total: int) -> None:
        """Prepare an optimiser step; called before its forward passes."""

    def after_backward(self, step: int, total: int) -> None:
        """Change or read the gradients of a step; called when they are complete, before clipping."""

    def after_step(self, step: int, total: int) -> None:
        """Finish an optimiser step; called when the parameters have been updated."""

    def penalty(self) -> Tensor | None:
        """Return a term that is added to the loss of each step, in training only, or None."""
        return None

    def drift(self) -> Tensor:
        """||W - W_0||^2: return the squared distance of the weights in use from the base's; differentiable.

        Raises:
            TechniqueError: the technique moves no weight of the base, or weights that are shared out over devices.
        """
        from tunewise.engine.shards import is_shard

        changed = [(p, self._originals[id(p)]) for p in self.params().values() if id(p) in self._originals]
        if not changed:
            raise TechniqueError(f"{self.recipe.name} moves no weight, so there is nothing that l2_sp could hold back")
        if any(is_shard(parameter) for parameter, _ in changed):
            raise TechniqueError(
                f"the distance of {self.recipe.name} from the base, which l2_sp holds back, needs whole weights; leave "
                "l2_sp out, or use --devices without --shard"
            )
        terms = [(parameter - original).square().sum() for parameter, original in changed]
        return sum(terms[1:], terms[0])

    def moved(self) -> float | None:
        """||W - W_0||: return the distance of the weights in use from the base's; None where no weight moves."""
        import torch

        with torch.no_grad():
            changed = [(p, self._originals[id(p)]) for p in self.base.model.parameters() if id(p) in self._originals]
            if changed:
                return math.sqrt(sum(float((weight - before).float().square().sum()) for weight, before in changed))
            try:
                return math.sqrt(float(self.drift()))
            except TechniqueError:
                return None

    def trunk(self) -> Sequence[int]:
        """Return the frozen blocks, by number, whose outputs are all that training reads up to the last of them.

        Empty where gradients or changes reach below; see `tunewise.fitting.frozen_trunk`.
        """
        return ()

    def render(self, example: Example) -> Example:
        """Return an example with what this technique puts before its prompt."""
        return example

    def citations(self, example: Example) -> list[CitedText]:
        """Return what this technique quotes before the example, with its sources."""
        return []

    def label_bias(self) -> Tensor | None:
        """Return what is subtracted from each label's negative log-likelihood, (labels,), or None."""
        return None

    def findings(self, validation_loss: Callable[[], float]) -> Findings:
        """Return what a report should say after training, as JSON: ranks chosen, losses at others."""
        return {}


class Storing(Training):
    """Adds what saving, export and serving call: state, changes to the base's weights, merging, detaching."""

    label: str = ""  # the row's name where this is not exactly the paper's technique

    def __init__(self, base: Base, recipe: Technique) -> None:
        super().__init__(base, recipe)
        if recipe.differs:
            self.label = f"{recipe.name} ({recipe.differs})"

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that the artifact holds, by name."""
        return {name: parameter.detach() for name, parameter in self.params().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`; refuse a missing, extra, mis-shaped, mis-typed or non-finite tensor."""
        from tunewise.engine.shards import put

        current = self.state()
        strict(current, state)
        for name, tensor in current.items():
            put(tensor, state[name])
        self.round_trained()

    def stored_rows(self) -> list[StoredRow]:
        """Return the JSON rows that the artifact holds, such as the examples that are put into the prompt."""
        return []

    def load_rows(self, rows: list[StoredRow], style: Task) -> None:
        """Restore `stored_rows()`; `style` is the task that the adaptation was trained on, without its examples."""
        if rows:
            raise ArtifactError(f"{self.recipe.name} stores no rows, but the adaptation holds {len(rows)}")

    def training_state(self) -> dict[str, Tensor]:
        """Return what exact resume needs beyond `state()`: the tensors themselves, not copies."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `training_state()` in place."""
        from tunewise.engine.shards import put

        current = self.training_state()
        strict(current, state)
        for name, tensor in current.items():
            put(tensor, state[name])

    def changed(self) -> list[nn.Parameter]:
        """Return the model's parameters whose values differ from the base's, or that replace the base's.

        Serving exchanges them when the next request names another adaptation (`tunewise.serve.adaptation_pool`).
        """
        changed_ids, entries = {*self._originals, *map(id, self.params().values())}, self.changed_entries()
        return [p for name, p in self.base.model.named_parameters() if id(p) in changed_ids or name in entries]

    def changed_entries(self) -> dict[str, Tensor | None]:
        """Return the flat indices of changed entries by full name of the base's tensors; None where all may be.

        These are tensors that change without being among `params()`.
        """
        return {}

    @property
    def swappable(self) -> bool:
        """Whether each request to one loaded base can choose this technique: it changes no tensor of the base."""
        return not self.changed()

    def replaced_weights(self) -> dict[str, Tensor]:
        """Return the weights that are used in place of the base's own, by full name: those of a quantised base."""
        return {}

    def peft(self) -> tuple[PeftConfig, dict[str, Tensor]] | None:
        """Return the adapter in PEFT's format (config, tensors), or None where PEFT cannot express it."""
        return None

    def load_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from the tensors of a PEFT adapter of this kind."""
        raise ArtifactError(f"{self.recipe.name} has no form in PEFT")

    def merge(self) -> nn.Module:
        """Return the base model with this technique folded into its weights, without hooks; `detach()` undoes it.

        A technique overrides `fold()`; the hooks that it registered with `hook` are removed before that call.

        Raises:
            TechniqueError: the maths does not allow it; the message says why.
        """
        if not self.recipe.mergeable:
            raise TechniqueError(self.recipe.why_not_mergeable())
        for handle in self._hooks:
            handle.remove()
        self.fold()
        return self.base.model

    def fold(self) -> None:
        """Put what was trained into the base's own tensors, for `merge`; do nothing where it was trained in them."""

    def detach(self) -> None:
        """Give the base back, bit for bit."""
        while self._undo:
            self._undo.pop()()
        self._params, self._hooks = {}, []
        if self in self.base.attached:
            self.base.attached.remove(self)


class Attachment(Storing):
    """A technique on one loaded model. `detach()` gives the base back, bit for bit.

    Its members come from three classes, each with defaults: the technique's own file calls those of `Building`, the
    training loop and the scoring those of `Training`, and what saves, exports and serves those of `Storing`.

    Examples:
        >>> base = load_base("world")
        >>> attachment = make("lora", {"lora": {"r": 4}}).resolved(base).attach(base, torch.Generator())
        >>> sum(parameter.numel() for parameter in attachment.params().values())
        87552
        >>> attachment.detach()
    """


def strict(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those expected, by name, shape and type, or not finite.

    Raises:
        ArtifactError: names the first tensor at fault.
    """
    from tunewise.engine.shards import is_finite

    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        what = f'"{missing[0]}" is missing' if missing else f'"{extra[0]}" is not expected'
        raise ArtifactError(f"the weights do not fit this technique and base: {what}")
    for name, tensor in expected.items():
        candidate = state[name]
        if candidate.shape != tensor.shape or candidate.dtype != tensor.dtype:
            raise ArtifactError(
                f'the weights do not fit this technique and base: "{name}" is {tuple(candidate.shape)} '
                f"{candidate.dtype}, expected {tuple(tensor.shape)} {tensor.dtype}"
            )
        if candidate.is_floating_point() and not is_finite(candidate):
            raise ArtifactError(f'the weights hold a value that is not finite in "{name}"')
