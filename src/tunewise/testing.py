"""The contract that every technique keeps, as checks that anyone's own technique can be run through.

    from tunewise.testing import CHECKS, tiny_base
    for check in CHECKS:
        check(MyTechnique(), tiny_base("llama"))

Each check raises AssertionError with a sentence on what was broken, and what to do, with the section of CONTRIBUTING.md
that tells more. The bases are tiny random models, one per architecture, made on the spot; nothing is downloaded.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core.errors import ArtifactError, TunewiseError
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.anatomy import oriented
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, layout, loss_sum
from tunewise.engine.generation import generate
from tunewise.engine.model import Base
from tunewise.engine.tiny import ARCHITECTURES, tiny_base, tiny_task
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import encoder_for, label_table, loss, study
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make

__all__ = [
    "ARCHITECTURES",
    "CHECKS",
    "attach",
    "example_settings",
    "fingerprint",
    "fit",
    "logits",
    "tiny_base",
    "tiny_task",
]


_GLOBAL_STATES = itertools.count(1 << 20)


def _failure(technique: Technique, fault: str, remedy: str) -> str:
    """Return the message of a failed check: the technique, what it broke, and what to do."""
    return f'{technique.name} {fault}; {remedy} (see "Adding a technique" in CONTRIBUTING.md)'


def example_settings() -> dict[str, dict[str, Any]]:
    """Return the settings, by technique, without which one cannot be tried; `make` takes them.

    Examples:
        >>> make("mpt", example_settings()).source_steps
        3
    """
    return {name: dict(made.example_settings) for name, made in all_techniques().items() if made.example_settings}


def attach(technique: Technique, base: Base, task: Task | None = None, seed: int = 0) -> Attachment:
    """Attach the technique to the base and prepare it on a task.

    Each call leaves torch's global random state elsewhere, so that a technique that draws from it is found.
    """
    task = task or tiny_task()
    torch.manual_seed(next(_GLOBAL_STATES))
    attachment = technique.resolved(base).attach(base, generator(seed, "attach"))
    attachment.prepare(study(attachment, task, task.validation, seed))
    return attachment


def alike(task: Task) -> Task:
    """Return the task with a template that gives all of its prompts a shared prefix."""
    return replace(task, template="say what the text that follows is about: {prompt}\n")


def fingerprint(base: Base) -> str:
    """Return the fingerprint of the base as it is now."""
    return Base(base.model, base.tokenizer).fingerprint


def fit(attachment: Attachment, steps: int = 4, task: Task | None = None, seed: int = 0, **settings: Any) -> None:
    """Run a few training steps, or none where the technique trains nothing."""
    if attachment.recipe.trains:
        sequences = _sequences(attachment, task or tiny_task())
        train(attachment, sequences, TrainSettings(max_steps=steps, **settings), seed=seed)


def _sequences(attachment: Attachment, task: Task) -> list[TokenSequence]:
    examples = [attachment.render(example) for example in task.train]
    return encoder_for(attachment, task).encode(examples)


@torch.no_grad()
def logits(attachment: Attachment, task: Task | None = None) -> Tensor:
    """Return the logits of the whole model on the rendered test prompts, one row after the other, flattened."""
    task = task or tiny_task()
    prompts = encoder_for(attachment, task).prompts([attachment.render(example) for example in task.test], 4)
    model, device = attachment.base.model, attachment.base.device
    return torch.cat([model(input_ids=torch.tensor([p.ids], device=device)).logits[0] for p in prompts])


def check_documented(technique: Technique, base: Base) -> None:
    """Check that citation, equation, summary and help of every setting are there."""
    for part in getattr(technique, "parts", (technique,)):
        missing = [name for name in ("summary", "equation") if not getattr(part, name)]
        missing += ["citation"] if part.sides and not part.citation else []
        assert not missing, _failure(part, f"has no {' and no '.join(missing)}", "write them as facts of its class")
        check_settings_documented(part)


def check_settings_documented(technique: Technique) -> None:
    """Check that every setting says in a sentence what it does."""
    for item in fields(technique):
        assert item.metadata.get("help", "").endswith("."), _failure(
            technique, f"has no sentence of help for {item.name}", "give one to setting(), with a full stop"
        )


def check_recipe(technique: Technique, base: Base) -> None:
    """Check that a recipe is hashable and comes back equal from its JSON form."""
    stored = json.loads(json.dumps(technique.to_json()))["settings"]
    restored = make(technique.name, stored if "+" in technique.name else {technique.name: stored})
    assert restored == technique and hash(restored) == hash(technique), _failure(
        technique,
        "does not come back equal from its JSON form",
        "let its settings be numbers, texts, or tuples of texts",
    )


def check_identity_at_start(technique: Technique, base: Base) -> None:
    """Check that, where the technique says so, the adapted model equals the base before the first step, exactly."""
    before = logits(Attachment(base, technique))
    attachment = attach(technique, base)
    if technique.identity_at_start:
        assert torch.equal(before, logits(attachment)), _failure(
            technique,
            "changes outputs before the first step",
            "start from values that change nothing, or say identity_at_start = False",
        )


def check_only_its_own(technique: Technique, base: Base) -> None:
    """Check that training changes only the trainable tensors; frozen weights keep their bits."""
    attachment = attach(technique, base)
    original = {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}
    fit(attachment, weight_decay=0.1)
    trained, entries = {id(parameter) for parameter in attachment.params().values()}, attachment.changed_entries()
    for name, parameter in base.model.named_parameters():
        rounded = attachment.trained(parameter) is not parameter  # from the float32 copy that is trained
        if id(parameter) in trained or rounded or parameter.is_meta:  # a quantised weight is kept elsewhere
            continue
        changed = (parameter != original[name]).flatten()
        if name in entries:
            places = entries[name]
            changed[slice(None) if places is None else places] = False  # these entries may
        assert not changed.any(), _failure(
            technique,
            f"changed {name}, which is not among its params()",
            "train it with self.train_existing, or name its entries in changed_entries()",
        )
        assert not parameter.requires_grad or name in entries, _failure(
            technique,
            f"lets gradients of {name} be kept, which it does not train",
            "train it with self.train_existing, or take its gradient with self.divert",
        )
    grouped = [id(p) for group in attachment.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(trained), _failure(
        technique,
        "names other parameters in param_groups() than in params()",
        "put each of params() into one group and no other tensor",
    )


def check_learns(technique: Technique, base: Base) -> None:
    """Check that training lowers the training loss."""
    if not technique.trains:
        return
    task = tiny_task()
    attachment = attach(technique, base, task)
    unused = _without_gradient(attachment, task)
    assert not unused, _failure(
        technique,
        f"gives {unused[0] if unused else ''} no gradient, although it is among its params()",
        "use each of its tensors in the forward pass, in the hook of its own role",
    )
    before = loss(attachment, task, task.train)
    fit(attachment, steps=25, task=task)
    after = loss(attachment, task, task.train)
    assert after < before, _failure(
        technique,
        f"does not lower the training loss in 25 steps ({before:.4f} before, {after:.4f} after)",
        "see that its parameters get gradients and that reference_rate fits",
    )


def _without_gradient(attachment: Attachment, task: Task) -> list[str]:
    """Return the names of trainable tensors that a backward pass leaves without a gradient."""
    attachment.start_phase(0)
    attachment.before_step(0, 1)
    batch = batch_of(attachment.base, _sequences(attachment, task)[:5])
    with layout(attachment.base, batch):
        total = loss_sum(attachment.base, batch)
        if total.requires_grad:
            total.backward()
    parameters = attachment.params()
    unused = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    for parameter in parameters.values():
        parameter.grad = None
    return unused


def check_same_seed_same_bits(technique: Technique, base: Base) -> None:
    """Check that two runs with one seed leave the same bits."""
    states = []
    for _ in range(2):
        attachment = attach(technique, base)
        fit(attachment)
        states.append({name: tensor.clone() for name, tensor in attachment.state().items()})
        attachment.detach()
    differing = sorted(states[0].keys() ^ states[1].keys())
    differing += [name for name in states[0] if name in states[1] and not torch.equal(states[0][name], states[1][name])]
    assert not differing, _failure(
        technique,
        f"gives another {differing[0]} in a second run of the same seed",
        "draw from the generator that attach() is given, or from tunewise.core.seeds, and never from the global state",
    )


def check_detach(technique: Technique, base: Base) -> None:
    """Check that detaching after training gives the base back, bit for bit, with nothing left on it."""
    before, keys = fingerprint(base), list(base.model.state_dict())
    attachment = attach(technique, base)
    fit(attachment)
    attachment.detach()
    assert fingerprint(base) == before, _failure(
        technique,
        "leaves other weights behind when it is detached",
        "train the base's own with self.train_existing, or remember them with self.keep before they change",
    )
    assert list(base.model.state_dict()) == keys, _failure(
        technique, "leaves parameters behind when it is detached", "put them into the model with self.replace"
    )
    _check_bare(technique, base, "detached")
    not_restored = [name for name, p in base.model.named_parameters() if p.requires_grad or p.grad is not None]
    assert not not_restored, _failure(
        technique,
        f"leaves a gradient or requires_grad on {not_restored[0] if not_restored else ''} when it is detached",
        "set requires_grad through self.train_existing or self.divert alone",
    )


def _check_bare(technique: Technique, base: Base, when: str) -> None:
    hooked = [path for path, m in base.model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked, _failure(
        technique,
        f'leaves a hook on "{hooked[0] if hooked else ""}" when it is {when}',
        "hand each hook's handle to self.hook",
    )
    replaced = [path for path, module in base.model.named_modules() if "forward" in vars(module)]
    assert not replaced, _failure(
        technique,
        f'leaves a forward of its own on "{replaced[0] if replaced else ""}" when it is {when}',
        "use a hook in place of it, with its handle in self.hook",
    )


def check_save_load(technique: Technique, base: Base) -> None:
    """Check that an attachment loaded from the artifact on disk has the same outputs, bit for bit."""
    import tempfile

    from tunewise.adaptation.artifact import load, save

    task = tiny_task()
    attachment = attach(technique, base, task)
    fit(attachment, task=task)
    expected = logits(attachment, task)
    with tempfile.TemporaryDirectory() as folder:
        save(attachment, task, Path(folder) / "adaptation")
        attachment.detach()
        loaded = load(Path(folder) / "adaptation", base=base).attachment
    assert torch.equal(expected, logits(loaded, task)), _failure(
        technique,
        "has other outputs when it comes back from its file",
        "let state() and stored_rows() hold all that its outputs depend on, give each hook's handle to self.hook, and "
        "draw nothing from the global random state",
    )


def check_strict_load(technique: Technique, base: Base) -> None:
    """Check that missing, extra, mis-shaped, mis-typed and non-finite tensors are refused and change nothing."""
    attachment = attach(technique, base)
    state = {name: tensor.clone() for name, tensor in attachment.state().items()}
    before = logits(attachment)
    wrong_states: list[dict[str, Tensor]] = [{**state, "model.embed_tokens.weight.evil": torch.zeros(3)}]
    if state:
        name = next(iter(state))
        wrong_states.append({key: value for key, value in state.items() if key != name})
        wrong_states += [{**state, name: bad} for bad in (torch.zeros(1, 2, 3), state[name].to(torch.float16))]
        if state[name].is_floating_point():
            wrong_states.append({**state, name: torch.full_like(state[name], float("nan"))})
    for bad in wrong_states:
        try:
            attachment.load(bad)
        except ArtifactError:
            continue
        wrong_names = sorted(bad.keys() ^ state.keys()) or "values"
        raise AssertionError(
            _failure(technique, f"accepts a wrong state: {wrong_names}", "compare it in load() with `strict`")
        )
    assert torch.equal(before, logits(attachment)), _failure(
        technique, "has other outputs after it refused a state", "check all of a state in load() before any is copied"
    )


def check_merge(technique: Technique, base: Base) -> None:
    """Check that a merged model has the adapted outputs, without hooks; detaching still gives the base back."""
    before = fingerprint(base)
    attachment = attach(technique, base)
    fit(attachment)
    expected = logits(attachment)
    if not technique.mergeable:
        try:
            attachment.merge()
        except Exception as error:
            assert "cannot be merged" in str(error), _failure(
                technique,
                f'does not say that it "cannot be merged", but "{error}"',
                "say so in why_not_mergeable(), and why",
            )
        else:
            raise AssertionError(
                _failure(technique, "merges although it is not mergeable", "say mergeable = True, or write no fold()")
            )
        return
    try:
        attachment.merge()
    except RuntimeError as error:
        problem = f"cannot fold its change into a weight ({' '.join(str(error).split())[:200]})"
        remedy = "GPT-2 stores weights as (in, out): add to them with anatomy.add_to_weight (see Transposed weights)"
        raise AssertionError(_failure(technique, problem, remedy)) from error
    _check_bare(technique, base, "merged")
    difference = float((logits(attachment) - expected).abs().max() / expected.abs().max())
    assert difference <= 1e-4, _failure(
        technique,
        f"has other outputs when it is merged (by {difference:.1e} of the largest)",
        "put all that it changes into the base's own tensors in fold(), the biases of linears among them, or say "
        "mergeable = False",
    )
    attachment.detach()
    assert fingerprint(base) == before, _failure(
        technique,
        "leaves other weights behind when it is detached after merging",
        "remember a weight with self.keep before fold() changes it",
    )


def check_resume(technique: Technique, base: Base) -> None:
    """Check that a run that is stopped after a checkpoint and resumed ends with the same bits."""
    if not technique.trains:
        return
    import tempfile

    task, settings = tiny_task(), TrainSettings(max_steps=6, save_steps=2)
    attachment = attach(technique, base, task)
    sequences = _sequences(attachment, task)
    train(attachment, sequences, settings)
    expected = {name: tensor.clone() for name, tensor in attachment.state().items()}
    attachment.detach()
    with tempfile.TemporaryDirectory() as folder:
        stopped = attach(technique, base, task)

        def stop(step: int, value: float) -> None:
            if step == 5:
                raise KeyboardInterrupt

        try:
            train(stopped, sequences, settings, folder=Path(folder), on_step=stop)
        except KeyboardInterrupt:
            stopped.detach()
        resumed = attach(technique, base, task)
        train(resumed, sequences, settings, folder=Path(folder), resume=True)
    differing = [name for name, tensor in resumed.state().items() if not torch.equal(expected[name], tensor)]
    assert not differing, _failure(
        technique,
        f"ends with another {differing[0] if differing else ''} when it is stopped and resumed",
        "keep in training_state() what its steps depend on beside its parameters, and draw nothing from the global "
        "random state when it is attached",
    )


_WORSE_AFTER = 9  # the step from which `check_best_state` lets the validation loss rise


class _RisingLoss:
    """Plays the validation loss of a run: it falls up to a step and rises from there.

    States that are no adaptation yet, those of an earlier phase or before its size is final, get a loss of 0.
    """

    def __init__(self, attachment: Attachment, total: int, step: int = 0) -> None:
        self.attachment, self.step = attachment, step
        self.earlier_phases = -(-total * (attachment.phases - 1) // attachment.phases)
        self.state: dict[str, Tensor] = {}  # at the step with the lowest loss
        self.logits = torch.zeros(0)

    def __call__(self) -> float:
        """Return the loss after the next step."""
        self.step += 1
        if self.step == _WORSE_AFTER:
            self.state = {name: tensor.clone() for name, tensor in self.attachment.state().items()}
            self.logits = logits(self.attachment)
        counts = self.step > self.earlier_phases and self.attachment.complete
        return 1.0 + abs(self.step - _WORSE_AFTER) if counts else 0.0


def check_best_state(technique: Technique, base: Base) -> None:
    """Check that training stops early and leaves the state with the lowest validation loss, resumed or not."""
    if not technique.trains:
        return
    import tempfile

    settings = TrainSettings(max_steps=12, save_steps=2, eval_steps=1, early_stopping_patience=2)
    attachment = attach(technique, base)
    sequences = _sequences(attachment, tiny_task())
    played = _RisingLoss(attachment, settings.max_steps)
    trained = train(attachment, sequences, settings, evaluate=played)
    assert (trained.best_step, trained.steps, trained.stopped_early) == (_WORSE_AFTER, _WORSE_AFTER + 2, True), (
        _failure(
            technique,
            f"keeps the state of step {trained.best_step} and stops after {trained.steps}, where the loss rises from "
            f"step {_WORSE_AFTER} on and may rise twice",
            "let complete say True from the step on at which the adaptation has its size",
        )
    )
    _check_same_state(technique, attachment, played, "is not as it was at its best step")
    attachment.detach()
    with tempfile.TemporaryDirectory() as folder:
        stopped = attach(technique, base)

        def stop(step: int, value: float) -> None:
            if step == _WORSE_AFTER + 2:  # the newest checkpoint then holds the best state beside its own
                raise KeyboardInterrupt

        try:
            rising = _RisingLoss(stopped, settings.max_steps)
            train(stopped, sequences, settings, folder=Path(folder), on_step=stop, evaluate=rising)
        except KeyboardInterrupt:
            stopped.detach()
        resumed = attach(technique, base)
        rising = _RisingLoss(resumed, settings.max_steps, step=_WORSE_AFTER + 1)
        train(resumed, sequences, settings, folder=Path(folder), resume=True, evaluate=rising)
    _check_same_state(technique, resumed, played, "is not as at its best step when it is stopped and resumed")


def _check_same_state(technique: Technique, attachment: Attachment, best: _RisingLoss, fault: str) -> None:
    state = attachment.state()
    same = state.keys() == best.state.keys() and all(torch.equal(state[name], best.state[name]) for name in state)
    assert same and torch.equal(logits(attachment), best.logits), _failure(
        technique, fault, "let load_training_state() and load() set all that its outputs depend on, after training too"
    )


def check_cached_generation(technique: Technique, base: Base) -> None:
    """Check that greedy answers with a key/value cache in a padded batch equal those of full forward passes.

    The prompts share a prefix, which is computed once.
    """
    task = alike(tiny_task())
    attachment = attach(technique, base, task)
    fit(attachment, task=task)
    encoder = encoder_for(attachment, task)
    rendered = [attachment.render(example) for example in task.test]
    generated = generate(attachment.base, encoder, rendered, 6)
    for text, prompt in zip(generated.texts, generated.prompts, strict=True):
        ids = list(prompt.ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(base.model(input_ids=torch.tensor([ids], device=base.device)).logits[0, -1].argmax()))
            if ids[-1] in encoder.ends.stops:
                break
        expected = encoder.decode([i for i in ids[len(prompt.ids) :] if i not in encoder.ends.stops])
        assert text == expected, _failure(
            technique,
            f'answers "{text}" with a cache in a batch and "{expected}" alone without one',
            "let a hook depend on the tokens that it is given, not on their number or places",
        )


def check_gradients(technique: Technique, base: Base, tolerance: float = 1e-5) -> None:
    """Check that packed gradients equal those of Hugging Face's loss on padded rows, shared prefix or not."""
    for task in (tiny_task(), alike(tiny_task())) if technique.trains else ():
        _check_gradients(technique, base, tolerance, task)
        base.release()


def _check_gradients(technique: Technique, base: Base, tolerance: float, task: Task) -> None:
    attachment = attach(technique, base, task)
    sequences = _sequences(attachment, task)[:5]
    attachment.start_phase(0)
    attachment.before_step(0, 1)
    params = attachment.params()
    batch = batch_of(base, sequences)
    with layout(base, batch):
        mean = loss_sum(base, batch) / len(batch.targets)
        assert mean.requires_grad, _failure(
            attachment.recipe, "trains tensors that no output depends on", "use them in the forward pass"
        )
        mean.backward()
    packed_gradients = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
    for parameter in params.values():
        parameter.grad = None
    width = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [0] * (width - len(s.ids)) for s in sequences], device=base.device)
    mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in sequences], device=base.device)
    labels = torch.tensor(
        [
            [i if labelled else -100 for i, labelled in zip(s.ids, s.labelled, strict=True)]
            + [-100] * (width - len(s.ids))
            for s in sequences
        ],
        device=base.device,
    )
    # Hugging Face's loss function rounds logits to float32 first; the same loss without that allows fp64 to count.
    output = base.model(input_ids=ids, attention_mask=mask).logits
    flat, targets = output[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.nn.functional.cross_entropy(flat, targets, ignore_index=-100).backward()
    # A key bias without rotary positions has a zero gradient, of which only rounding is left: a floor for the scale.
    largest = max((float(p.grad.abs().max()) for p in params.values() if p.grad is not None), default=0.0)
    assert largest > 0, _failure(
        attachment.recipe, "gets no gradient but 0", "let a gradient reach one of its tensors at the first step"
    )
    floor = 1e-2 * largest
    for name, parameter in params.items():
        padded_gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        packed_gradient = packed_gradients.get(name, torch.zeros_like(parameter))
        scale = max(float(padded_gradient.abs().max()), floor)
        error = float((packed_gradient - padded_gradient).abs().max()) / scale
        assert error <= tolerance, _failure(
            attachment.recipe,
            f"gets another gradient of {name} in packed rows than in padded ones (relative error {error:.2g})",
            "let a hook treat each token by itself, as rows of several sequences lie in one",
        )
        parameter.grad = None


def check_scores_agree(technique: Technique, base: Base) -> None:
    """Check that scoring in batches gives the likelihoods of scoring each label alone through the plain model.

    The labels begin alike, and one is the beginning of others, so that a pass computes what they share once.
    """
    task = replace(alike(tiny_task()), labels=("old", "old mat", "old trees", "old trees and birds", "small"))
    attachment = attach(technique, base, task)
    fit(attachment, task=task)
    encoder = encoder_for(attachment, task)
    rendered = [attachment.render(example) for example in task.test]
    table = label_table(attachment, task, rendered)
    for example, row in zip(rendered, table.nll, strict=True):
        for label, nats in zip(task.labels, row, strict=True):
            alone = _plain_nll(base, encoder.encode([replace(example, answer=label)])[0])
            assert abs(nats - alone) < 1e-5, _failure(
                technique,
                f'scores "{label}" with {nats:.5f} nats side by side and {alone:.5f} alone',
                "let a hook treat each token by itself, and render() each example",
            )


@torch.no_grad()
def _plain_nll(base: Base, sequence: TokenSequence) -> float:
    """Return the negative log-likelihood (nats) of a sequence's answer, by the model's own forward pass."""
    logits = base.model(input_ids=torch.tensor([sequence.ids], device=base.device)).logits[0]  # (T, V)
    log_p = logits[sequence.prompt - 1 : -1].double().log_softmax(-1)
    answer = torch.tensor(sequence.ids[sequence.prompt :], device=base.device)
    return -float(log_p.gather(1, answer[:, None]).sum())


_ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def check_same_roles(technique: Technique, base: Base) -> None:
    """Check that the same roles are trained where projections are fused as where they are separate, or that it refuses.

    Roles are those that `target_modules` names, and those whose outputs training changes on a Llama. Where a label says
    that the technique is another one on this model, or where it chooses single entries by what it sees, the label and
    the entries say which roles those are.
    """
    if not technique.trains:
        return
    try:
        trained = _trained_roles(technique, base)
    except TunewiseError:  # in a sentence, before anything is trained
        return
    trained_on_llama = _trained_roles(technique, tiny_base("llama", base.model.dtype, str(base.device)))
    if trained.names_entries or trained_on_llama.label != trained.label:
        return
    targeted = {
        role
        for part in getattr(technique, "parts", (technique,))
        for role in getattr(part, "target_modules", ())
        if role in _ROLES
    }
    available = base.anatomy.output_roles
    missing = [
        role
        for role in _ROLES
        if role not in trained.roles and (role in targeted or (role in trained_on_llama.roles and role in available))
    ]
    extra = sorted(trained.roles - trained_on_llama.roles - targeted)
    assert not extra, _failure(
        technique,
        f"trains {', '.join(extra)} on {type(base.model).__name__}, which it leaves alone on a Llama",
        "change only the columns that base.anatomy.outputs names for a role",
    )
    fused_roles = [role for role in ("qkv", "gate_up") if role in base.anatomy.roles]
    where_fused = f", where {' and '.join(fused_roles)} are fused," if fused_roles else ""
    assert not missing, _failure(
        technique,
        f"should train {', '.join(missing)} but trains nothing there on {type(base.model).__name__}{where_fused} and "
        "does not refuse it",
        f"take the outputs of each role from base.anatomy.outputs({tuple(missing)!r}), or raise TechniqueError",
    )


@dataclass(frozen=True)
class _TrainedRoles:
    """Roles whose outputs training changed where their inputs are the same."""

    roles: frozenset[str]
    label: str
    names_entries: bool  # whether the technique names the entries that it changes


def _trained_roles(technique: Technique, base: Base) -> _TrainedRoles:
    anatomy = base.anatomy
    available = tuple(role for role in _ROLES if role in anatomy.output_roles)
    output_columns = {
        role: [(path, columns.cpu()) for path, _, columns in anatomy.outputs((role,))] for role in available
    }
    untrained = {
        path: (oriented(linear).detach().double().cpu(), None if linear.bias is None else linear.bias.double().cpu())
        for path, linear, _ in anatomy.outputs(available)
    }
    linears = {path: linear for path, linear, _ in anatomy.outputs(available)}
    attachment = attach(technique, base)
    changed_columns: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def compare(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            weight, bias = untrained[path]
            expected = torch.nn.functional.linear(args[0].double().cpu(), weight, bias)
            differs = (output.double().cpu() - expected).abs() > 1e-5 * expected.abs().max()
            columns = differs.flatten(0, -2).any(0)
            changed_columns[path] = changed_columns.get(path, torch.zeros_like(columns)) | columns

        return compare

    try:
        fit(attachment)
        current_modules = dict(
            base.model.named_modules()
        )  # a technique may have put another module there, or moved this one
        handles = [
            current_modules.get(path, linear).register_forward_hook(watch(path)) for path, linear in linears.items()
        ]
        logits(attachment)
        for handle in handles:
            handle.remove()
        roles = {
            role
            for role in available
            if any(bool(changed_columns[path][columns].any()) for path, columns in output_columns[role])
        }
        return _TrainedRoles(frozenset(roles), attachment.label, bool(attachment.changed_entries()))
    finally:
        base.release()


CHECKS: tuple[Callable[[Technique, Base], None], ...] = (
    check_documented,
    check_recipe,
    check_identity_at_start,
    check_only_its_own,
    check_learns,
    check_same_roles,
    check_same_seed_same_bits,
    check_detach,
    check_save_load,
    check_strict_load,
    check_merge,
    check_resume,
    check_best_state,
    check_cached_generation,
    check_gradients,
    check_scores_agree,
)
