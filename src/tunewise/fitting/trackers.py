"""Sends what a trial measures to TensorBoard, Weights & Biases, MLflow or Trackio, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewise.core.errors import SettingError

PROJECT = "tunewise"


# What names one run in each service; the first argument names the project, or for TensorBoard the run.
_RUN = {"tensorboard": None, "wandb": "name", "mlflow": "run_name", "trackio": "name"}


def check(names: Sequence[str]) -> None:
    """Refuse services that are not known or whose library is missing.

    Raises:
        SettingError: names the service and what to install.
    """
    from accelerate.tracking import get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in _RUN:
            raise SettingError(f'--report-to names "{name}" but must name {", ".join(_RUN)}')
        if name not in available:
            raise SettingError(f"--report-to {name} needs its library: pip install {name}")


class Trackers:
    """One run for each trial at each of the named services; those that keep files keep them in `folder`."""

    def __init__(self, names: Sequence[str], folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        classes = {str(getattr(kind, "value", kind)): found for kind, found in LOGGER_TYPE_TO_CLASS.items()}
        self._open: list[Any] = []
        for name in names:
            word = _RUN[name]
            tracker = classes[name](PROJECT, **{word: run}) if word else classes[name](run, logging_dir=str(folder))
            tracker.start()
            tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})
            self._open.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        for tracker in self._open:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Close the runs."""
        for tracker in self._open:
            tracker.finish()


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
