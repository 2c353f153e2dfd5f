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

import errno
import os
from pathlib import Path

from tunewise.core.text import show

_START, _END = 1500, 500  # characters of a long message that are kept


class TunewiseError(Exception):
    """The work started and failed; base class of all errors of the package.

    Messages quote names and values from files. Characters that are not printable are spelled out, and of a message of
    more than 2,000 characters the middle is left out, so that it stays one readable line.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(_readable(message))


class DivergedError(TunewiseError):
    """A loss, gradient or weight is no longer finite."""


class RequestError(TunewiseError):
    """The request cannot be carried out as it stands."""

    exit_code = 2


class DataError(RequestError):
    """A data file cannot be read as a task.

    `problem` says what is wrong; `path`, `line` (from 1) and `column` say where; `remedy` says what to do.
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
        self.problem, self.remedy = problem, remedy
        self.path, self.line, self.column = path, line, column


class SettingError(RequestError):
    """A setting is unknown, mistyped or out of range."""


class ModelError(RequestError):
    """A base model cannot be loaded or lacks what the request needs."""


class TechniqueError(RequestError):
    """A technique cannot work on this model, on this task or beside another technique."""


class ArtifactError(RequestError):
    """A saved file is damaged, altered, of an unknown format or belongs to another base."""


def _readable(message: str) -> str:
    """Return a message as one printable line of bounded length."""
    if len(message) > _START + _END:
        message = f"{message[:_START]} ... {message[-_END:]}"
    return show(message, len(message))


def out_of_space(error: BaseException) -> bool:
    """Return whether an error of any library says that the disk is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in full
    return any(os.strerror(number) in str(error) for number in full)  # native libraries give the text alone


def unwritable(what: str, error: OSError, remedy: str) -> TunewiseError:
    """Return the error for a place that cannot be written; that a disk is full is no mistake of the request's.

    Args:
        what: the place, and what cannot be done there.
        error: why.
        remedy: what to do instead, unless the disk is full.
    """
    reason = error.strerror or type(error).__name__
    if out_of_space(error):
        return TunewiseError(f"{what} ({reason}); free some space there, or choose another place")
    return RequestError(f"{what} ({reason}); {remedy}")
