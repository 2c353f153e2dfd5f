"""What is chosen on the page, and the command lines that it stands for: those that the page runs, and shows to copy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewise.core.errors import SettingError
from tunewise.core.json_record import JsonRecord
from tunewise.resolve import COMPARED

EXAMPLES = 1000  # training examples that the page shows as the model sees them, at most
FORMATS = ("peft", "merged", "lora", "sparse", "onnx", "gguf", "ollama")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDER = re.compile(r"[^\W_][\w.+-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class Choices(JsonRecord):
    """Holds what was chosen on the page last, so that a page that is opened again begins there.

    Empty texts and zeros are choices that the command line makes by itself.
    """

    model: str = "world"
    data: str = "world:reviews"
    columns: str = ""
    skip_bad_rows: bool = False
    memory: str = ""
    time: str = ""
    artifact: str = ""
    requests_per_day: float = 1000
    tenants: int = 1
    forget_nothing: bool = False
    retain: bool = False
    mergeable: bool = False
    documents_change: bool = False
    knowledge: str = ""
    techniques: tuple[str, ...] = tuple(COMPARED.split(","))
    budget_kind: Literal["chosen", "steps", "epochs", "minutes"] = "chosen"
    budget: float = 100
    test_examples: int = 0
    search: int = 1
    seeds: int = 1
    advised: bool = False
    long: bool = False
    name: str = ""
    run: str = ""
    beside: str = ""

    @property
    def needs(self) -> list[str]:
        """Return what the technique must meet, as `--need` takes it."""
        flags = [name for name, chosen in (("retain", self.retain), ("mergeable", self.mergeable)) if chosen]
        return flags + ([f"artifact<{self.artifact}"] if self.artifact else [])


def shown(words: Sequence[str]) -> str:
    """Return a command as it is typed in a shell; what the page adds to read its result is left out."""
    return shlex.join(["tunewise", *(word for word in words if word != "--json")])


def check(choices: Choices) -> list[str]:
    """Return the words of the command that checks the data."""
    return ["check", "--examples", str(EXAMPLES), *_task(choices), "--json"]


def advise(choices: Choices) -> list[str]:
    """Return the words of the command that advises."""
    return ["advise", *_task(choices), *_question(choices), *_needs(choices), "--json"]


def plan(choices: Choices) -> list[str]:
    """Return the words of the command that plans the chosen techniques for this machine, or for a device's memory."""
    device = ["--device", choices.memory] if choices.memory else []
    return ["plan", *_task(choices), "--techniques", ",".join(choices.techniques), *device]


def compare(choices: Choices, out: Path, searching: Collection[str]) -> list[str]:
    """Return the words of the command that compares.

    Args:
        choices: what was chosen.
        out: the folder of the comparison.
        searching: the techniques that search documents, without which the command takes none.

    Raises:
        SettingError: no technique is chosen.
    """
    if not choices.techniques and not choices.advised:
        raise SettingError("choose at least one technique")
    techniques = "all" if choices.advised else ",".join(choices.techniques)
    words = ["compare", *_task(choices), "--out", str(out), "--techniques", techniques]
    amount = f"{choices.budget:g}"
    limits = {"steps": "--budget-steps", "epochs": "--epochs", "minutes": "--budget-minutes"}
    if choices.budget_kind != "chosen":
        words += [limits[choices.budget_kind], amount]
    for option, value, default in (
        ("--search", choices.search, 1),
        ("--seeds", choices.seeds, 1),
        ("--test-examples", choices.test_examples, 0),
    ):
        words += [option, str(value)] if value != default else []
    words += _needs(choices)
    searches = choices.advised or not set(searching).isdisjoint(choices.techniques)
    words += ["--knowledge", choices.knowledge] if choices.knowledge and searches else []
    words += ["--advised"] if choices.advised else []
    return words + (["--yes"] if choices.long else [])


def serve(adaptations: Mapping[str, Path], port: int) -> list[str]:
    """Return the words of the command that serves adaptations by these names."""
    return ["serve", *(f"{name}={folder}" for name, folder in adaptations.items()), "--port", str(port)]


def export(adaptation: Path, to: str, out: Path, data: Sequence[str]) -> list[str]:
    """Return the words of the command that exports an adaptation, and compares it on data if these words name some."""
    return ["export", _argument(adaptation), "--to", to, *data, "--out", str(out), "--json"]


def push(folder: Path, repository: str, *, private: bool, card_only: bool) -> list[str]:
    """Return the words of the command that pushes a folder to the Hub.

    Raises:
        SettingError: the repository is no owner/name.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise SettingError(f'the repository is "{repository[:100]}" but must look like owner/name')
    options = (["--private"] if private else []) + (["--card-only"] if card_only else [])
    return ["push", _argument(folder), repository, *options, "--json"]


def folder_name(name: str) -> str:
    """Return the name of a comparison's folder.

    Raises:
        SettingError: it could leave the folder of comparisons, or is no plain name.
    """
    if not _FOLDER.fullmatch(name) or ".." in name:
        raise SettingError(f'the name is "{name[:100]}" but must be letters, digits, dots, dashes and underscores')
    return name


def plain_name(text: str) -> str:
    """Make a name for a folder from the name of data."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(text.partition("#")[0]).stem).strip("-")[:60] or "comparison"


def _task(choices: Choices) -> list[str]:
    """Return model and data, as every command takes them.

    Raises:
        SettingError: one is missing.
    """
    for what, value in (("model", choices.model), ("data", choices.data)):
        if not value.strip():
            raise SettingError(f"choose a {what} first" if what == "model" else "choose data first")
    words = ["--model", choices.model.strip(), "--data", choices.data.strip()]
    words += ["--columns", choices.columns.strip()] if choices.columns.strip() else []
    return words + (["--skip-bad-rows"] if choices.skip_bad_rows else [])


def _question(choices: Choices) -> list[str]:
    words = ["--memory", choices.memory] if choices.memory else []
    words += ["--time", choices.time] if choices.time else []
    words += ["--requests-per-day", f"{choices.requests_per_day:g}"] if choices.requests_per_day != 1000 else []
    words += ["--tenants", str(choices.tenants)] if choices.tenants != 1 else []
    words += ["--forget-nothing"] if choices.forget_nothing else []
    words += ["--knowledge", choices.knowledge] if choices.knowledge else []
    return words + (["--documents-change"] if choices.documents_change else [])


def _needs(choices: Choices) -> list[str]:
    return [word for need in choices.needs for word in ("--need", need)]


def _argument(path: Path) -> str:
    """Return a path that no command can take for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text
