"""Turns what other programs say of LoRA's targets, patterns and starts into the settings of `lora` and `qlora`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunewise.core.text import show
from tunewise.importing import values
from tunewise.importing.record import Outcome, Setting, left, same, took
from tunewise.importing.rules import Context, Rule, not_low_rank
from tunewise.importing.source import Entry

ALL_LINEAR = "all-linear"
_ALL = ("all", ALL_LINEAR, "all_linear")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_STARTS = {"gaussian": "gaussian", "orthogonal": "orthogonal", "pissa": "pissa", "olora": "olora"}
_WHOLE_MODULES = (
    "no module is trained whole beside LoRA; embed_tokens and lm_head can be among lora.target_modules, which gives "
    "them low-rank updates"
)


def targets(entry: Entry, context: Context) -> Outcome:
    """Take the names of modules; a word for all linears is `all-linear` here."""
    if outcome := not_low_rank(context):
        return outcome
    modules = values.names(entry)
    if any(name in _ALL for name in modules):
        modules = [ALL_LINEAR, *(name for name in modules if name not in _ALL)]
    if patterns := [name for name in modules if name != ALL_LINEAR and not _MODULE.fullmatch(name)]:
        return left(
            f"a pattern of names ({show(patterns[0])}) is not read; list the modules in "
            f"{context.technique}.target_modules"
        )
    return took({f"{context.technique}.target_modules": modules})


def modules_to_save(entry: Entry, context: Context) -> Outcome:
    """Say that no module is trained whole beside LoRA."""
    if entry.value in ("", []):
        return same()
    return not_low_rank(context) or left(_WHOLE_MODULES)


def pattern(name: str) -> Rule:
    """Make the rule that takes a mapping of modules to numbers as `rank_pattern` or `alpha_pattern`."""

    def rule(entry: Entry, context: Context) -> Outcome:
        if outcome := not_low_rank(context):
            return outcome
        if not isinstance(entry.value, dict):
            raise entry.error("modules with a number each")
        pairs: list[str] = []
        for module, count in entry.value.items():
            if not isinstance(module, str) or not _MODULE.fullmatch(module):
                return left(f"patterns of names are not read; list modules in {context.technique}.{name}")
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise entry.error("modules with a whole number each")
            pairs.append(f"{module}={count}")
        setting: dict[str, Setting] = {f"{context.technique}.{name}": pairs} if pairs else {}
        return took(setting) if setting else same()

    return rule


def start(entry: Entry, context: Context) -> Outcome:
    """Take how A and B start; true and the word default are Kaiming's start, as here."""
    if outcome := not_low_rank(context):
        return outcome
    if entry.value in (True, "true", "default"):
        return same("A starts Kaiming-uniform and B at zero here too")
    word = str(entry.value).lower().partition("_niter")[0]
    if word in _STARTS:
        return took({f"{context.technique}.init_lora_weights": _STARTS[word]})
    return left(f"there is no such start here; {context.technique}.init_lora_weights can be {_listed([*_STARTS])}")


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
