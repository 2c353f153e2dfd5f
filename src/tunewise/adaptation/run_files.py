"""Writes what other programs expect in the folder of a run: Hugging Face's `trainer_state.json`, and the tokenizer.

The names and meanings are those of `transformers.TrainerState`, whose `load_from_json` reads the file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tunewise.core import artifact_writer
from tunewise.core.json_record import JsonObject
from tunewise.fitting.loop import Trained
from tunewise.fitting.run_request import STATE
from tunewise.fitting.settings import TrainSettings

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"),
)
_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate", "validation_loss": "eval_loss"}


def write_trainer_state(folder: Path, trained: Trained, settings: TrainSettings, examples: int) -> None:
    """Write `trainer_state.json` of a finished run from its `metrics.jsonl`.

    Args:
        folder: the folder of the run.
        trained: what the run did.
        settings: how it was trained.
        examples: the number of training examples, which epochs are counted in.
    """
    history = list(_history(folder / "metrics.jsonl", settings.rows / examples))
    losses = [line["loss"] for line in history if "loss" in line]
    best = min((line for line in history if line.get("eval_loss") is not None), key=_loss, default=None)
    epoch = trained.steps * settings.rows / examples
    history.append(
        {
            "epoch": epoch,
            "step": trained.steps,
            "train_loss": sum(losses) / len(losses) if losses else None,
            "train_runtime": trained.seconds,
            "train_samples_per_second": trained.steps * settings.rows / max(trained.seconds, 1e-9),
            "train_steps_per_second": trained.steps / max(trained.seconds, 1e-9),
            "total_flos": 0.0,
        }
    )
    state: JsonObject = {
        "best_global_step": best["step"] if best is not None else None,
        "best_metric": best["eval_loss"] if best is not None else None,
        "best_model_checkpoint": None,
        "epoch": epoch,
        "eval_steps": settings.evaluation_interval or settings.max_steps,
        "global_step": trained.steps,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": history,
        "logging_steps": settings.logging_steps,
        "max_steps": settings.max_steps,
        "num_input_tokens_seen": trained.tokens,
        "num_train_epochs": -(-settings.max_steps * settings.rows // examples),
        "save_steps": settings.save_steps,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": settings.per_device_train_batch_size,
        "trial_name": None,
        "trial_params": None,
    }
    artifact_writer.write_json(folder / STATE, state)


def _history(metrics: Path, epochs_per_step: float) -> Iterator[JsonObject]:
    """Yield the lines of `metrics.jsonl` with Hugging Face's names, each with its epoch."""
    for line in metrics.read_text("utf-8").splitlines():
        values = json.loads(line)
        named = {_NAMES[name]: value for name, value in values.items() if name in _NAMES}
        yield {"epoch": values["step"] * epochs_per_step, **named, "step": values["step"]}


def _loss(line: JsonObject) -> float:
    return float(line["eval_loss"])


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer's files beside the run's others, each whole or not at all."""
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        for path in sorted(Path(made).iterdir()):
            if path.name in TOKENIZER_FILES:
                artifact_writer.write_bytes(folder / path.name, path.read_bytes())
