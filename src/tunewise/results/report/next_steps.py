"""Writes the commands that use the recommended row: to chat with it, serve it, export it and push it to the Hub."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tunewise.results.schema import Comparison, ScoredRow

_ADAPTATION = re.compile(r"trials/\w[\w:+.,-]*/adaptation")
_OWNER = "YOUR-NAME"


@dataclass(frozen=True)
class NextStep:
    """Holds a command, and what it is for."""

    purpose: str
    command: str


def next_steps(result: Comparison, folder: str | Path) -> list[NextStep]:
    """Return the commands for the recommended row that work for it; none without a recommendation.

    The base needs no export and no repository of its own. What no format expresses is pushed as it is.

    Args:
        result: the comparison.
        folder: where it lies, as the user names it; the commands name it in the same way.
    """
    row = next((row for row in result.scored if row.technique == result.recommended), None)
    if row is None or row.adaptation is None or not _ADAPTATION.fullmatch(row.adaptation):
        return []
    root = Path(folder)
    adaptation = _argument(root / row.adaptation)
    named = f"{_plain(row.technique)}={adaptation}" if "=" in adaptation else adaptation  # chat and serve read NAME=
    steps = [
        NextStep("chat with it", shlex.join(["tunewise", "chat", named])),
        NextStep("serve it with OpenAI's API", shlex.join(["tunewise", "serve", named])),
    ]
    if row.technique == "base":
        return steps
    to = _export_format(row)
    if to is not None:
        out = _argument(root / "exports" / f"{_plain(row.technique)}-{to}")
        command = ["tunewise", "export", adaptation, "--to", to, "--out", out]
        steps.append(NextStep("export it for other programs", shlex.join(command)))
    parts = (result.model.short_name.rpartition("/")[2], result.task.name, row.technique)
    repository = f"{_OWNER}/{_plain('-'.join(parts))[:80].strip('-')}"
    command = ["tunewise", "push", adaptation, repository]
    steps.append(NextStep(f"push it to the Hugging Face Hub as {_OWNER}", shlex.join(command)))
    return steps


def _export_format(row: ScoredRow) -> str | None:
    """Return the format of the row's export; older files only say whether it merges."""
    if row.export_format is not None:
        return row.export_format if re.fullmatch(r"[a-z]+", row.export_format) else None
    return "merged" if row.cost.merges else None


def _argument(path: Path) -> str:
    """Return a path that no command can take for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _plain(name: str) -> str:
    """Return a name of letters, digits and single hyphens, which folders and the Hub accept."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
