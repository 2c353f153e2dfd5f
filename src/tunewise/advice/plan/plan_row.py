"""One row of a plan: the memory and time that a technique needs on a device, and whether it fits.

`tunewise plan --json` prints rows, and `tunewise advise --plan FILE` reads them back. Sizes are in bytes, times in
seconds. Figures that are not known are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError

# "fits with": with the settings in `changed`; "not possible": the technique cannot work on this model or task.
Verdict = Literal["fits", "fits with", "does not fit", "not possible"]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts the parameters that training optimises, and those that the adaptation stores."""

    optimised: int | None = None
    stored: int | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Splits the peak of memory into its parts; `technique` is what the technique keeps beside its parameters."""

    weights: float | None = None
    gradients: float | None = None
    optimizer: float | None = None
    runtime: float | None = None
    activations: float | None = None
    technique: float | None = None
    peak: float


@dataclass(frozen=True, kw_only=True)
class Time:
    """Says how long training takes: per step, per epoch, and for all steps of the budget."""

    seconds_per_step: float | None = None
    seconds_per_epoch: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Describes one request to the adapted model: mean tokens per prompt, and seconds to answer one alone."""

    prompt_tokens: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Holds what real steps took: peak bytes, mean seconds per step, steps per phase, and rows per micro-batch."""

    peak: int
    step: float
    steps: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Holds a probe with the planned figures that it replaced in a row."""

    probe: Probe
    planned_peak: float
    planned_time: Time

    def to_json(self) -> dict[str, object]:
        """Return it as `tunewise plan --probe --json` prints it."""
        replaced = {"foreseen_peak": self.planned_peak, "foreseen_time": asdict(self.planned_time)}
        return asdict(self.probe) | replaced

    @classmethod
    def from_json(cls, value: object) -> Calibration | None:
        """Read what `to_json` returns.

        Raises:
            ValueError: something is missing or of another type.
        """
        probe = _figures(Probe, value)
        if probe is None or not isinstance(value, Mapping):
            return None
        time = _figures(Time, value.get("foreseen_time"))
        if time is None or not _is_number(value.get("foreseen_peak")):
            raise ValueError("the planned peak or time that the probe replaced is missing")
        return cls(probe=probe, planned_peak=value["foreseen_peak"], planned_time=time)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """Says what one technique needs on a device.

    Attributes:
        technique: its name.
        verdict: whether it fits.
        changed: training settings that it fits with, if it does not fit with those of the plan.
        reason: why it does not fit or is not possible; None if it fits.
        parameters: how many parameters it optimises and stores.
        artifact_bytes: size of the adaptation on disk.
        memory: the peak of memory in training.
        time: how long training takes.
        request: the tokens and seconds of a request.
        run: seconds of the whole comparison of this row; None where the machine is not here.
        process: peak of memory of the whole process in that run.
        micro_batch: examples of the largest micro-batch that fits; None if it is not trained.
        calibration: the probe that `memory` and `time` come from; None if they are predicted.
        devices: the fewest devices that have room for it together, each with a part of the weights (`fit --shard`);
            None where one has, or no number of them.
    """

    technique: str
    verdict: Verdict
    changed: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None
    parameters: Parameters | None = None
    artifact_bytes: float | None = None
    memory: Memory | None = None
    time: Time | None = None
    request: Request | None = None
    run: float | None = None
    process: float | None = None
    micro_batch: int | None = None
    calibration: Calibration | None = None
    devices: int | None = None

    @property
    def peak(self) -> float | None:
        """Return the peak bytes of memory in training."""
        return self.memory.peak if self.memory is not None else None

    @property
    def train_seconds(self) -> float | None:
        """Return the seconds of the whole training."""
        return self.time.seconds if self.time is not None else None

    @property
    def prompt_tokens(self) -> float | None:
        """Return the tokens of a mean request."""
        return self.request.prompt_tokens if self.request is not None else None

    @property
    def optimised_parameters(self) -> int | None:
        """Return how many parameters training optimises."""
        return self.parameters.optimised if self.parameters is not None else None

    def calibrated(self, probe: Probe, max_steps: int, steps_per_epoch: int) -> PlanRow:
        """Return the row with measured memory and time; the predicted ones move to `calibration`.

        Args:
            probe: the measurement.
            max_steps: steps of the budget.
            steps_per_epoch: steps that go through the training examples once.

        Raises:
            ValueError: the row has no memory or no time.
        """
        if self.memory is None or self.time is None:
            raise ValueError(f"the plan of {self.technique} has no memory or no time to calibrate")
        return replace(
            self,
            memory=replace(self.memory, peak=probe.peak),
            time=Time(
                seconds_per_step=probe.step,
                seconds_per_epoch=probe.step * steps_per_epoch,
                seconds=max_steps * probe.step,
            ),
            calibration=Calibration(probe=probe, planned_peak=self.memory.peak, planned_time=self.time),
        )

    def to_json(self) -> dict[str, object]:
        """Return the row as `tunewise plan --json` prints it."""
        if self.verdict == "not possible":
            return {"technique": self.technique, "verdict": self.verdict, "reason": self.reason}
        row: dict[str, object] = {
            "technique": self.technique,
            "verdict": self.verdict,
            "with": dict(self.changed),
            "reason": self.reason,
            "parameters": asdict(self.parameters) if self.parameters is not None else None,
            "artifact_bytes": self.artifact_bytes,
            "memory": asdict(self.memory) if self.memory is not None else None,
            "time": asdict(self.time) if self.time is not None else None,
            "request": asdict(self.request) if self.request is not None else None,
            "micro_batch": self.micro_batch,
        }
        row |= {"run": self.run, "process": self.process} if self.run is not None else {}
        row |= {"devices": self.devices} if self.devices is not None else {}
        return row | ({"probe": self.calibration.to_json()} if self.calibration is not None else {})

    @classmethod
    def from_json(cls, value: object) -> PlanRow:
        """Read what `to_json` returns; missing figures become None, unknown keys are ignored.

        Raises:
            ValueError: the technique or the verdict is missing, or something is of another type.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("technique"), str):
            raise ValueError("a row has no technique")
        verdict, reason, changed = value.get("verdict"), value.get("reason"), value.get("with") or {}
        if verdict not in get_args(Verdict):
            raise ValueError(f"a verdict is {verdict!r} but must be one of {', '.join(get_args(Verdict))}")
        if not (isinstance(reason, str) or (reason is None and verdict in ("fits", "fits with"))):
            raise ValueError(f"there is no reason for the verdict {verdict}")
        if not isinstance(changed, Mapping) or not all(isinstance(number, int) for number in changed.values()):
            raise ValueError("the settings that it fits with are not whole numbers or true or false")
        artifact, micro_batch = value.get("artifact_bytes"), value.get("micro_batch")
        run, process, devices = value.get("run"), value.get("process"), value.get("devices")
        if not all(figure is None or _is_number(figure) for figure in (artifact, micro_batch, run, process, devices)):
            raise ValueError("a size or a time is no number")
        return cls(
            technique=value["technique"],
            verdict=value["verdict"],
            changed=dict(changed),
            reason=reason,
            parameters=_figures(Parameters, value.get("parameters")),
            artifact_bytes=artifact,
            memory=_figures(Memory, value.get("memory")),
            time=_figures(Time, value.get("time")),
            request=_figures(Request, value.get("request")),
            run=run,
            process=process,
            micro_batch=micro_batch,
            calibration=Calibration.from_json(value.get("probe")),
            devices=devices,
        )


Figures = TypeVar("Figures", Parameters, Memory, Time, Request, Probe)


def _figures(kind: type[Figures], value: object) -> Figures | None:
    """Read one group of figures; None if it is missing."""
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__.lower()} is no object")
    figures: dict[str, Any] = {part.name: value.get(part.name) for part in fields(kind)}
    required = {part.name for part in fields(kind) if part.default is MISSING}
    for name, figure in figures.items():
        if not _is_number(figure) and (figure is not None or name in required):
            raise ValueError(f"{name} is {figure!r} and no number")
    return kind(**figures)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_rows(path: Path) -> list[PlanRow]:
    """Read the rows of a plan from a file with the output of `tunewise plan --json`.

    Raises:
        ArtifactError: the file cannot be read, or is no plan.
    """
    rows = artifact_reader.read_json(path).get("rows")
    try:
        if not isinstance(rows, list):
            raise ValueError("it has no rows")
        return [PlanRow.from_json(row) for row in rows]
    except ValueError as error:
        raise ArtifactError(f"{path}: is no plan ({error}); give what tunewise plan --json printed") from error
