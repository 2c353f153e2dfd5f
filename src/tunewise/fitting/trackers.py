"""Sends what a trial measures to TensorBoard, Weights & Biases, MLflow or Trackio, through accelerate's trackers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.text import first_line

PROJECT = "tunewise"
_log = logging.getLogger("tunewise")

# The keyword that names a run in each service, after the project; None: TensorBoard takes the run's name alone.
_RUN_KEYWORD = {"tensorboard": None, "wandb": "name", "mlflow": "run_name", "trackio": "name"}


def check(names: Sequence[str]) -> None:
    """Refuse services that are unknown or whose library is not installed.

    Raises:
        SettingError: the message names the service and what to install.
    """
    from accelerate.tracking import get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in _RUN_KEYWORD:
            raise SettingError(f'--report-to names "{name}" but must name {", ".join(_RUN_KEYWORD)}')
        if name not in available:
            raise SettingError(f"--report-to {name} needs its library: pip install {name}")


class Trackers:
    """Logs one trial as a run at each of the named services; services that write files write them to `folder`.

    Raises:
        TunewiseError: a service does not take the run; the message names it.
    """

    def __init__(self, names: Sequence[str], folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        classes = {str(getattr(kind, "value", kind)): tracker for kind, tracker in LOGGER_TYPE_TO_CLASS.items()}
        self._names, self._run = tuple(names), run
        self._trackers: list[Any] = []
        for name in names:
            keyword, make = _RUN_KEYWORD[name], classes[name]
            try:
                tracker = make(PROJECT, **{keyword: run}) if keyword else make(run, logging_dir=str(folder))
                tracker.start()
                tracker.store_init_configuration({key: _config_value(value) for key, value in config.items()})
            except Exception as error:  # of whatever kind the service's client raises
                raise TunewiseError(
                    f"--report-to {name}: the run could not be begun there ({first_line(error)}); check how {name} is "
                    "set up, or leave it out"
                ) from error
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of one step."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def keep(self, folder: Path) -> None:
        """Keep a folder as an artifact of the run, at the services that have artifacts here: MLflow and Trackio.

        One that fails is told in a warning: what was trained is on disk, and only its copy is missing.
        """
        for name, tracker in zip(self._names, self._trackers, strict=True):
            try:
                if name == "mlflow":
                    tracker.log_artifacts(str(folder), folder.name)
                elif name == "trackio":
                    tracker.tracker.log_artifact(str(folder), name=self._run, type="model")
            except Exception as error:  # of whatever kind the service's client raises
                _log.warning("%s: could not be kept at %s (%s)", folder, name, first_line(error))

    def finish(self) -> None:
        """Close the runs at all services."""
        for tracker in self._trackers:
            tracker.finish()


def _config_value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
