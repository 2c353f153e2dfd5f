"""Turns the names of optimisers into the settings of the techniques that have a choice of them."""

from __future__ import annotations

from tunewise.importing import values
from tunewise.importing.record import Outcome, left, same, took
from tunewise.importing.rules import Context
from tunewise.importing.source import Entry

_EIGHT_BIT = {"adamw_8bit": "adamw8bit", "adamw_bnb_8bit": "adamw8bit", "paged_adamw_8bit": "paged_adamw8bit"}
_PAGED = {"paged_adamw": "paged_adamw", "paged_adamw_32bit": "paged_adamw"}
_CHOICES = {
    "full": {**_EIGHT_BIT, "adafactor": "adafactor", "galore_adamw": "galore", "lomo": "lomo", "adalomo": "adalomo"},
    "qlora": {**_EIGHT_BIT, **_PAGED},
}
_ADAMW = (
    "adamw",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adamw_torch_xla",
    "optimi_adamw",
)
# Names of classes, as torchtune has them.
_CLASSES = {
    "torch.optim.AdamW": "adamw",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "torch.optim.Adafactor": "adafactor",
}


def optimizer(entry: Entry, context: Context) -> Outcome:
    """Take the optimiser where the technique has the same, and AdamW elsewhere."""
    name = values.text(entry)
    name = _CLASSES.get(name, name)
    choices = _CHOICES.get(context.technique, {})
    if name in choices:
        needs = "needs pip install 'tunewise[bitsandbytes]'" if name in (*_EIGHT_BIT, *_PAGED) else ""
        return took({f"{context.technique}.optimizer": choices[name]}, needs)
    if name in _ADAMW:
        return same("AdamW here too")
    if name in (*_EIGHT_BIT, *_PAGED):
        return same("AdamW with moments in 32 bits here; they differ in memory only")
    others = f"; {context.technique}.optimizer can be {', '.join(choices.values())}" if choices else ""
    return left(f"AdamW moves {context.technique} here{others}")
