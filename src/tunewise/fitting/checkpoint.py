"""Checkpoints: everything that continues a training run to the same bits, written all or nothing.

checkpoint-<step>/trainer_state.json       the request that the run serves, and where it is
weights.safetensors      the attachment's `state()`
training.safetensors     its `training_state()`
optimizer.safetensors    the optimiser's state, as "parameter|slot"
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
    """Where a run is: counts so far, seconds of training so far, and the number of threads, which bits depend on."""

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
    """Write `folder/checkpoint-<step>`; older checkpoints are removed when it is whole.

    Args:
        folder: the run's.
        request: what a run that resumes must have asked for too, in JSON's types.
        position: where the run is.
        attachment: what is trained.
        optimizer: what moves its parameters.
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
    """Where the run of a checkpoint was.

    Raises:
        ArtifactError: the checkpoint was written by a run that was asked for something else.
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
    """Give the optimiser the state that a checkpoint holds.

    Raises:
        ArtifactError: it is the state of a parameter that this technique does not train.
    """
    parameters, saved = attachment.params(), dict[int, dict[str, Tensor]]()
    groups = optimizer.state_dict()["param_groups"]
    places = {id(p): place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for key, value in stored.tensors("optimizer.safetensors").items():
        name, _, slot = key.rpartition("|")
        if name not in parameters:
            raise ArtifactError(f'{stored.folder}: the optimizer holds "{name}", which this technique does not train')
        saved.setdefault(places[id(parameters[name])], {})[slot] = value
    optimizer.load_state_dict({"state": saved, "param_groups": groups})


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after this one from a `metrics.jsonl`; they are about to be written again."""
    kept = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the line that was being written when the run was killed
    artifact_writer.write_text(path, "".join(line + "\n" for line in kept))
