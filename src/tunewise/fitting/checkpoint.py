"""Writes and reads checkpoints: everything that continues a training run to the same bits, written all or nothing.

A folder `checkpoint-<step>` holds:

    trainer_state.json       the run's request, and its position
    weights.safetensors      the attachment's `state()`
    training.safetensors     the attachment's `training_state()`
    optimizer.safetensors    the optimiser's state, under keys "parameter|slot"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError


@dataclass(frozen=True)
class Position:
    """Says how far a run is.

    `phase` is the current one. The other numbers count from the start of the run, and `seconds` is training time.
    `threads` is the number of torch's CPU threads, which the bits of sums depend on.
    """

    phase: int
    step: int
    tokens: int
    labelled_tokens: int
    seconds: float
    threads: int


def save(
    folder: Path,
    request: Mapping[str, Any],
    position: Position,
    attachment: Attachment,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `folder/checkpoint-<step>`, then remove older checkpoints.

    Args:
        folder: the run's folder.
        request: technique, base, seed and settings, in JSON's types; a run that resumes must have the same.
        position: how far the run is.
        attachment: the attachment that is trained.
        optimizer: the optimiser of its parameters.
    """
    state = {
        **request,
        "phase": position.phase,
        "step": position.step,
        "tokens": position.tokens,
        "labelled_tokens": position.labelled_tokens,
        "seconds": position.seconds,
        "threads": position.threads,
    }
    artifact_writer.commit(
        folder / f"checkpoint-{position.step}",
        texts={"trainer_state.json": json.dumps(state, indent=2)},
        tensors={
            "weights.safetensors": attachment.state(),
            "optimizer.safetensors": _optimizer_state(attachment, optimizer),
            "training.safetensors": attachment.training_state(),
        },
    )
    artifact_writer.prune(folder)


def position_of(stored: artifact_writer.Stored, request: Mapping[str, Any]) -> Position:
    """Read how far the run of a checkpoint was.

    Raises:
        ArtifactError: the checkpoint was written by a run with another request.
    """
    state = stored.json("trainer_state.json")
    for key, value in request.items():
        if state.get(key) != value:
            raise ArtifactError(
                f"{stored.folder}: was written by another run (its {key} differs); resume with the same request "
                "or choose another output folder"
            )
    return Position(
        phase=int(state["phase"]),
        step=int(state["step"]),
        tokens=int(state["tokens"]),
        labelled_tokens=int(state["labelled_tokens"]),
        seconds=float(state.get("seconds", 0.0)),
        threads=int(state["threads"]),
    )


def _optimizer_state(attachment: Attachment, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in attachment.params().items()}
    return {
        f"{names[id(parameter)]}|{slot}": torch.as_tensor(value)
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimizer(stored: artifact_writer.Stored, attachment: Attachment, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser's state from a checkpoint.

    Raises:
        ArtifactError: the state names a parameter that this technique does not train.
    """
    parameters, slots = attachment.params(), dict[int, dict[str, Tensor]]()
    groups = optimizer.state_dict()["param_groups"]
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    number = {id(p): index for index, p in enumerate(ordered)}  # how torch's state dicts name parameters
    for key, value in stored.tensors("optimizer.safetensors").items():
        name, _, slot = key.rpartition("|")
        if name not in parameters:
            raise ArtifactError(f'{stored.folder}: the optimizer holds "{name}", which this technique does not train')
        slots.setdefault(number[id(parameters[name])], {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines of later steps from a `metrics.jsonl`, since those steps are run again."""
    lines = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the line that was being written when the run was killed
    artifact_writer.write_text(path, "".join(line + "\n" for line in lines))
