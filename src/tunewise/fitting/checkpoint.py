"""Writes and reads checkpoints: everything that continues a training run to the same bits, written all or nothing.

A folder `checkpoint-<step>` holds:

    trainer_state.json       the run's request, and its position
    weights.safetensors      the attachment's `state()`
    training.safetensors     the attachment's `training_state()`
    optimizer.safetensors    the optimiser's state, under keys "parameter|slot"

and, where the lowest validation loss so far was that of an earlier step, that step's state:

    best.safetensors, best_training.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, DivergedError
from tunewise.engine.ranks import Ranks
from tunewise.engine.shards import Parked, collected, is_finite, is_shard, scattered
from tunewise.fitting.run_request import STATE, RunRequest

_BEST_FILES = ("best.safetensors", "best_training.safetensors")


@dataclass(frozen=True)
class BestLoss:
    """Holds the lowest validation loss of a run so far, and the step after which it was measured."""

    step: int
    loss: float


@dataclass(frozen=True)
class Position:
    """Says how far a run is.

    `phase` is the current one. The other numbers count from the start of the run, and `seconds` is training time.
    `threads` is the number of torch's CPU threads, which the bits of sums depend on. `best` is the lowest validation
    loss so far, `without_improvement` the number of evaluations since then, and `evaluation_seconds` the time of all
    evaluations. `loss` is that of the last step; None in checkpoints of older versions.
    """

    phase: int
    step: int
    tokens: int
    labelled_tokens: int
    seconds: float
    threads: int
    best: BestLoss | None = None
    without_improvement: int = 0
    evaluation_seconds: float = 0.0
    loss: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Holds copies of an attachment's tensors at one step; large ones are kept on disk, not in memory."""

    weights: dict[str, Parked]
    training: dict[str, Parked]

    @classmethod
    def of(cls, attachment: Attachment) -> Snapshot:
        """Copy the attachment's tensors as they are now."""
        return cls(_parked(attachment.state()), _parked(attachment.training_state()))

    @classmethod
    def stored(cls, stored: artifact_writer.Stored) -> Snapshot:
        """Read the best state from a checkpoint: that of an earlier step, or else the checkpoint's own."""
        state = stored.json(STATE)
        earlier = state["best_step"] < state["step"]
        weights, training = _BEST_FILES if earlier else ("weights.safetensors", "training.safetensors")
        return cls(_parked(stored.tensors(weights)), _parked(stored.tensors(training)))

    def restore(self, attachment: Attachment) -> None:
        """Set the attachment to this state."""
        attachment.load_training_state(_copies(self.training))
        attachment.load(_copies(self.weights))


def _parked(tensors: Mapping[str, Tensor]) -> dict[str, Parked]:
    return {name: Parked(tensor) for name, tensor in tensors.items()}


def _copies(parked: Mapping[str, Parked]) -> dict[str, Tensor]:
    return {name: copy.tensor() for name, copy in parked.items()}


def save(
    folder: Path,
    request: RunRequest,
    position: Position,
    attachment: Attachment,
    optimizer: torch.optim.Optimizer,
    best: Snapshot | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write `folder/checkpoint-<step>`, of whole tensors; where there are several ranks, the first one writes.

    Args:
        folder: the run's folder.
        request: what the run was asked for; a run that resumes must be asked for the same.
        position: how far the run is.
        attachment: the attachment that is trained.
        optimizer: the optimiser of its parameters.
        best: the state at the step of `position.best`, where that is an earlier one.
        ranks: who takes part; where weights are sharded, all must call this, as each gives its parts.

    Raises:
        DivergedError: a weight is not finite; the older checkpoints stay.
    """
    weights = attachment.state()
    require_finite(weights, position.step)
    state = {
        **request.to_json(),
        "phase": position.phase,
        "step": position.step,
        "tokens": position.tokens,
        "labelled_tokens": position.labelled_tokens,
        "seconds": position.seconds,
        "threads": position.threads,
        "loss": position.loss,
    }
    if position.best is not None:
        state |= {"best_step": position.best.step, "best_loss": position.best.loss}
        state["without_improvement"] = position.without_improvement
    if position.evaluation_seconds:
        state["evaluation_seconds"] = position.evaluation_seconds
    files = {
        "weights.safetensors": weights,
        "optimizer.safetensors": _optimizer_state(attachment, optimizer),
        "training.safetensors": attachment.training_state(),
    }
    if best is not None:
        files |= dict(zip(_BEST_FILES, map(_copies, (best.weights, best.training)), strict=True))
    writes = ranks is None or ranks.writes
    whole = {name: collected(tensors, writes) for name, tensors in files.items()}
    if writes:
        artifact_writer.commit(
            folder / f"checkpoint-{position.step}", texts={STATE: json.dumps(state, indent=2)}, tensors=whole
        )


def require_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse weights that an update has made infinite or NaN, which the loss of the next step would tell too late.

    Raises:
        DivergedError: names the tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise DivergedError(f'step {step}: "{name}" holds a value that is not finite; lower the learning rate')


def position_of(stored: artifact_writer.Stored, request: RunRequest) -> Position:
    """Read how far the run of a checkpoint was.

    Raises:
        ArtifactError: the checkpoint was written by a run with another request.
    """
    request.require_same(stored)
    state = stored.json(STATE)
    return Position(
        phase=int(state["phase"]),
        step=int(state["step"]),
        tokens=int(state["tokens"]),
        labelled_tokens=int(state["labelled_tokens"]),
        seconds=float(state.get("seconds", 0.0)),
        threads=int(state["threads"]),
        best=BestLoss(int(state["best_step"]), float(state["best_loss"])) if "best_step" in state else None,
        without_improvement=int(state.get("without_improvement", 0)),
        evaluation_seconds=float(state.get("evaluation_seconds", 0.0)),
        loss=state.get("loss"),
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
        like = parameters[name]
        if is_shard(like) and value.shape == like.shape:  # a moment, and not the number of steps
            value = scattered(value, like)
        slots.setdefault(number[id(like)], {})[slot] = value
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
