"""Defines the errors of the package and their exit codes.

    TunewiseError                exit 1: the work started and failed
    ├── DivergedError            a loss, gradient or weight is no longer finite
    └── RequestError             exit 2: the request was wrong; nothing was started
        ├── DataError            a data file cannot be read as a task
        ├── SettingError         a setting is unknown, mistyped or out of range
        ├── ModelError           a base model cannot be loaded or lacks what the request needs
        ├── TechniqueError       a technique cannot work on this model, this task or beside another one
        └── ArtifactError        a saved file is damaged, altered, unknown or belongs to another base

A message is one sentence that says what is wrong, where, and what to do.
"""

from __future__ import annotations

from pathlib import Path


class TunewiseError(Exception):
    """The work started and failed; base class of all errors of the package."""

    exit_code = 1


class DivergedError(TunewiseError):
    """A loss, gradient or weight is no longer finite."""


class RequestError(TunewiseError):
    """The request cannot be carried out as it stands."""

    exit_code = 2


class DataError(RequestError):
    """A data file cannot be read as a task.

    `path`, `line` (from 1) and `column` say where; `remedy` says what to do.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        column: str | None = None,
        remedy: str | None = None,
    ) -> None:
        where = str(path) if path is not None else ""
        if line is not None:
            where += f" line {line}"
        if column is not None:
            where += f' column "{column}"'
        message = f"{where.strip()}: {problem}" if where else problem
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.path, self.line, self.column, self.remedy = path, line, column, remedy


class SettingError(RequestError):
    """A setting is unknown, mistyped or out of range."""


class ModelError(RequestError):
    """A base model cannot be loaded or lacks what the request needs."""


class TechniqueError(RequestError):
    """A technique cannot work on this model, on this task or beside another technique."""


class ArtifactError(RequestError):
    """A saved file is damaged, altered, of an unknown format or belongs to another base."""
