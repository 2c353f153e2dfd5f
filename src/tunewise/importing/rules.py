"""Rules: what a setting of another program becomes here. Each program's module is a table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tunewise.importing import values
from tunewise.importing.record import Command, Outcome, Setting, left, same, took
from tunewise.importing.source import Entry, Source

LOW_RANK = ("lora", "qlora")
SEVERAL_DEVICES = "fit takes --devices, --shard and --context on the command line (docs/scale.md)"
NO_CODE = "code that comes with a model or data is never run; choose an architecture that transformers has"


@dataclass(frozen=True)
class Context:
    """What a rule may look at besides its own entry.

    Attributes:
        source: the whole file.
        technique: the technique that the file asks for.
        command: the command that the configuration is for.
        devices: the number of devices that the file was run on; a step reads as many batches.
    """

    source: Source
    technique: str
    command: Command
    devices: int

    @property
    def is_low_rank(self) -> bool:
        """Whether the technique is LoRA or a form of it."""
        return self.technique in LOW_RANK


Rule: TypeAlias = Callable[[Entry, Context], Outcome]
Read: TypeAlias = Callable[[Entry], Setting]


@dataclass(frozen=True, kw_only=True)
class Program:
    """Holds what is known of a program's configuration files.

    Attributes:
        name: the program's name, as its authors write it.
        word: how the command line calls it.
        marks: keys by which its files are recognised; no other program has them.
        rules: what becomes of each key. A key may be a pattern, such as `vllm_*`.
        technique: says which technique a file asks for; it refuses what cannot be done here.
        defaults: values of keys that a file does not have, where they count and are not those here.
        aliases: other names of keys.
        refers: whether values may refer to others by OmegaConf's `${name}`.
    """

    name: str
    word: str
    marks: frozenset[str]
    rules: Mapping[str, Rule]
    technique: Callable[[Source], str]
    defaults: Mapping[str, object]
    aliases: Mapping[str, str] = field(default_factory=dict)
    refers: bool = False


def takes(name: str, read: Read = values.text, remark: str = "") -> Rule:
    """Take a value as the option `name`."""
    return lambda entry, context: took({name: read(entry)}, remark)


def switches_on(name: str, remark: str = "") -> Rule:
    """Take true as the option `name`; false is what it is anyway."""
    return lambda entry, context: took({name: True}, remark) if values.yes_no(entry) else same()


def not_low_rank(context: Context) -> Outcome | None:
    """Return the outcome of a setting of LoRA where the technique is another, or None."""
    return None if context.is_low_rank else same(f"belongs to LoRA, and this file trains with {context.technique}")


def lora(name: str, read: Read) -> Rule:
    """Take a value as a setting of LoRA or QLoRA; other techniques have none."""

    def rule(entry: Entry, context: Context) -> Outcome:
        return not_low_rank(context) or took({f"{context.technique}.{name}": read(entry)})

    return rule


def lora_switch(name: str) -> Rule:
    """Take true as a setting of LoRA or QLoRA."""
    take = lora(name, values.yes_no)
    return lambda entry, context: take(entry, context) if values.yes_no(entry) else same()


def needless(remark: str = "") -> Rule:
    """Leave out what nothing depends on here."""
    return lambda entry, context: same(remark)


def leaves(remark: str, *but: object) -> Rule:
    """Leave out what has no equivalent, with what to do instead.

    Nothing is asked for by false, by what is empty, and by the values `but`.
    """

    def rule(entry: Entry, context: Context) -> Outcome:
        asks = entry.value is not False and entry.value not in ("", [], {}) and entry.value not in but
        return left(remark) if asks else same()

    return rule


def decides(remark: str = "") -> Rule:
    """Say that a key decided the technique."""

    def rule(entry: Entry, context: Context) -> Outcome:
        if context.command == "fit":
            return took({"technique": context.technique}, remark)
        return took({"techniques": ["base", context.technique]}, remark)

    return rule


def steps(context: Context, count: int, remark: str = "") -> Outcome:
    """Take a number of optimiser steps."""
    return took({"max_steps" if context.command == "fit" else "budget_steps": count}, remark)


def learning_rate(entry: Entry, context: Context) -> Outcome:
    """Take the learning rate; a comparison has one for each technique."""
    name = "learning_rate" if context.command == "fit" else f"{context.technique}.learning_rate"
    return took({name: values.number(entry)})


def seed(entry: Entry, context: Context) -> Outcome:
    """Take the random seed."""
    if context.command == "compare":
        return left("a comparison runs the seeds 0, 1, ...; seeds says how many")
    return took({"seed": values.whole(entry)}, "draws and the order of the data are not those of the other program")


def accumulation(entry: Entry, context: Context) -> Outcome:
    """Take the passes of a step, times the devices, so that a step reads as many examples."""
    passes, devices = values.whole(entry), context.devices
    remark = "of one device; import with --devices N where it ran on N, so that a step reads as many examples"
    if devices > 1:
        remark = f"{passes} on each of {devices} devices"
    return took({"gradient_accumulation_steps": passes * devices}, remark)


def trackers(entry: Entry, context: Context) -> Outcome:
    """Take the trackers that a comparison logs to; a fit logs to its own folder only."""
    known = ("tensorboard", "wandb", "mlflow", "trackio")
    if entry.value in (False, "", "none", []):
        return same()
    taken = [name for name in values.names(entry) if name in known]
    if context.command == "fit":
        return left("fit logs to metrics.jsonl in its folder; compare takes report_to")
    if not taken:
        return left(f"a comparison logs to {', '.join(known)}")
    return took({"report_to": ",".join(taken)})


def packing(entry: Entry, context: Context) -> Outcome:
    """Say that rows are always packed, and what that means for the examples of a step."""
    if not values.yes_no(entry):
        return same()
    return same(
        "rows are always packed here, and sequences in a row do not see one another; a batch counts examples, not "
        "rows: where N of them filled a row there, multiply per_device_train_batch_size by N"
    )


def eight_bits(entry: Entry, context: Context) -> Outcome:
    """Say that no base is kept in eight bits."""
    if not (values.yes_no(entry) and context.is_low_rank):
        return same()
    return left("the base stays in 16 or 32 bits; qlora keeps it in four")


def quantisation_type(entry: Entry, context: Context) -> Outcome:
    """Compare the four-bit type with the one here."""
    if context.technique != "qlora" or values.text(entry) == "nf4":
        return same()
    return left("the four bits are NF4 here")


def double_quantisation(entry: Entry, context: Context) -> Outcome:
    """Take whether the scales of the four bits are quantised too."""
    if context.technique != "qlora":
        return same()
    return took({"qlora.bnb_4bit_use_double_quant": values.yes_no(entry)})
