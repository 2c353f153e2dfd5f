"""What `ranks_worker.py`, `shards_worker.py` and `context_worker.py` have in common: one small training.

Every process writes what came of it as lines of JSON, `[name, figures]`, which `rank_processes.outcomes` reads.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.engine.model import Base
from tunewise.engine.ranks import Ranks
from tunewise.engine.tiny import tiny_task
from tunewise.fitting.loop import train
from tunewise.fitting.rehearsal import Rehearsal
from tunewise.fitting.scoring import encoder_for, loss, score
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, example_settings

# Rows that do not divide evenly, and with them a micro-batch of a single row, which only one of two ranks computes.
SETTINGS = TrainSettings(max_steps=4, per_device_train_batch_size=3, gradient_accumulation_steps=2)
ROWS, LONG = 7, 6  # training rows; steps of a training that is stopped and goes on
# Which rows dropout falls on depends on how they are shared out.
_GIVEN = {**example_settings(), "qlora": {"lora_dropout": 0.0}}


@dataclass(frozen=True)
class Form:
    """A technique with its settings and those of its training, on a tiny model."""

    technique: str
    given: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = "llama"

    @property
    def recipe(self) -> Technique:
        """The technique with these settings."""
        return make(self.technique, {**_GIVEN, **({self.technique: self.given} if self.given else {})})

    def settings_for(self, attachment: Attachment) -> TrainSettings:
        """The settings of its training, with a step for each phase at least."""
        steps = max(SETTINGS.max_steps, attachment.phases)
        return replace(SETTINGS, **{"max_steps": steps, **self.training})


@dataclass
class Outcome:
    """What a training came to: losses and gradient norms by step, then scores and answers."""

    losses: list[float]
    norms: list[float]
    validation: float
    nll: float
    predictions: list[str]
    answers: list[str]


def trained(attachment: Attachment, settings: TrainSettings, folder: Path) -> Outcome:
    """Train an attachment, if it trains, and score it."""
    base, task, generation = attachment.base, tiny_task(), tiny_task("generation")
    losses: list[float] = []
    if attachment.recipe.trains:
        rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train[:ROWS]])
        remembered = ["the cat sat on a mat", "small birds sing in old trees by day"]
        train(
            attachment,
            rows,
            settings,
            folder=folder,
            on_step=lambda step, value: losses.append(value),
            evaluate=(lambda: loss(attachment, task, task.validation)) if settings.load_best_model_at_end else None,
            rehearsal=Rehearsal.of(base, remembered) if settings.rehearses else None,
        )
    base.ranks.wait()
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    scores = score(attachment, task, task.test)
    return Outcome(
        losses,
        [line["grad_norm"] for line in lines if "grad_norm" in line],
        loss(attachment, task, task.validation),
        scores.nll,
        scores.predictions,
        score(attachment, generation, generation.test[:3]).predictions,
    )


def go_on(base: Base, form: Form, folder: Path, until: int) -> None:
    """Continue one training to a step; all of it has six."""
    task = tiny_task()
    attachment = attach(form.recipe, base, task)
    rows = encoder_for(attachment, task).encode(list(task.train))
    settings = replace(form.settings_for(attachment), max_steps=LONG)
    evaluate = (lambda: loss(attachment, task, task.validation)) if settings.load_best_model_at_end else None
    train(attachment, rows, settings, folder=folder, resume=True, until=until, evaluate=evaluate)
    base.ranks.wait()


def write(ranks: Ranks, out: Path, names: Iterable[str], outcome: Callable[[str], Outcome | Mapping[str, Any]]) -> None:
    """Write what comes of each name as a line of `out/<rank>.jsonl`."""
    with (out / f"{ranks.rank}.jsonl").open("w") as file:
        for name in names:
            found = outcome(name)
            file.write(json.dumps([name, asdict(found) if isinstance(found, Outcome) else found]) + "\n")
            file.flush()
    ranks.wait()
