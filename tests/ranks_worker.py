"""Trains as one of several ranks, or alone.

`python ranks_worker.py OUT` trains every technique and writes what came of it; `python ranks_worker.py OUT UNTIL` takes
the steps of one training up to step UNTIL, from where it was stopped.
"""

import sys
from dataclasses import replace
from pathlib import Path

from rank_training import Form, Outcome, go_on, trained, write
from tunewise.core.errors import SettingError
from tunewise.engine.ranks import Ranks, joined_ranks
from tunewise.engine.tiny import tiny_base
from tunewise.techniques.registry import all_techniques
from tunewise.testing import attach

FORMS = {
    "full-adafactor": Form("full", {"optimizer": "adafactor"}),
    "full-lomo": Form("full", {"optimizer": "lomo"}),
    "lora-dora": Form("lora", {"use_dora": True}),
    "lora+prompt_tuning": Form("lora+prompt_tuning"),
    "bitfit+adapter": Form("bitfit+adapter"),
    **{name: Form(name) for name in ("peft:ia3", "peft:loha", "peft:randlora", "peft:oft", "peft:osf")},
}


def outcome(ranks: Ranks, name: str, out: Path) -> Outcome | dict[str, str]:
    """Train and score; or say why that is refused."""
    form, base = FORMS.get(name, Form(name)), tiny_base("llama")
    base.ranks = ranks
    attachment = attach(form.recipe, base)
    settings = form.settings_for(attachment)
    if not attachment.accumulates:
        settings = replace(settings, gradient_accumulation_steps=1)
    try:
        return trained(attachment, settings, out / f"run-{name}")
    except SettingError as error:
        return {"refused": str(error)}


def main() -> None:
    """Do what the command line says; of all techniques, each result is a line of `OUT/<rank>.jsonl`."""
    out = Path(sys.argv[1])
    with joined_ranks() as ranks:
        if len(sys.argv) > 2:
            base = tiny_base("llama")
            base.ranks = ranks
            go_on(base, Form("lora"), out, int(sys.argv[2]))
        else:
            write(ranks, out, (*all_techniques(), *FORMS), lambda name: outcome(ranks, name, out))


if __name__ == "__main__":
    main()
