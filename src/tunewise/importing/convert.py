"""Imports a configuration file: recognises the program, applies its rules to each setting, and checks the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from tunewise.core.errors import RequestError, SettingError
from tunewise.core.text import show
from tunewise.fitting.settings import TrainSettings
from tunewise.importing.programs.autotrain import AUTOTRAIN
from tunewise.importing.programs.axolotl import AXOLOTL
from tunewise.importing.programs.llama_factory import LLAMA_FACTORY
from tunewise.importing.programs.torchtune import TORCHTUNE
from tunewise.importing.programs.trl import TRL
from tunewise.importing.record import Command, Fate, Imported, Line, Outcome, same
from tunewise.importing.rules import Context, Program
from tunewise.importing.source import Entry, all_keys, entries_of, expanded, read_file, rule_key

PROGRAMS = {program.word: program for program in (LLAMA_FACTORY, AXOLOTL, TRL, TORCHTUNE, AUTOTRAIN)}
_UNKNOWN = Outcome(Fate.UNKNOWN, remark="not a setting that is known here; nothing was made of it")


def import_file(path: Path, word: str | None = None, command: Command = "fit", devices: int = 1) -> Imported:
    """Turn another program's configuration file into settings of ours.

    Args:
        path: the file.
        word: which program it is for, a key of `PROGRAMS`; None: its keys say it.
        command: the command that the configuration is for.
        devices: the number of devices that the file was run on; a step reads as many examples, however many devices.

    Raises:
        SettingError: the file cannot be read, its program is not clear, a value has the wrong type or is out of range,
            or it asks for something that cannot be done here.
    """
    if devices < 1:
        raise SettingError(f"devices is {devices} but must be at least 1")
    root = read_file(path)
    program = recognised(path, list(all_keys(root)), word)
    source = entries_of(path, root, program.rules, program.aliases)
    source = expanded(source) if program.refers else source
    if not any(rule_key(key, program.rules) for key in source.entries):
        raise SettingError(f"{path}: holds no setting of {program.name}; say with --from which program it is for")
    context = Context(source, program.technique(source), command, devices)
    imported = Imported(path, program.name, command, tuple(_lines(program, context)))
    check(imported, context.technique)
    return imported


def recognised(path: Path, keys: list[str], word: str | None) -> Program:
    """Return the program that a file is for: the one that is named, or the only one whose marks are among the keys.

    Raises:
        SettingError: there is no such program, or the keys do not say which it is.
    """
    names = ", ".join(PROGRAMS)
    if word is not None:
        if word not in PROGRAMS:
            raise SettingError(f"--from is {show(word)} but must be one of {names}")
        return PROGRAMS[word]
    found = {name: next(key for key in keys if key in p.marks) for name, p in PROGRAMS.items() if p.marks & {*keys}}
    if not found:
        raise SettingError(f"{path}: its keys do not say which program it is for; name it with --from ({names})")
    if len(found) > 1:
        parts = " and ".join(f"{key} of {PROGRAMS[name].name}" for name, key in found.items())
        raise SettingError(f"{path}: has {parts}; say with --from which program it is for")
    return PROGRAMS[next(iter(found))]


def _lines(program: Program, context: Context) -> Iterator[Line]:
    """Yield a line for each entry of the file, and for each default of the program that counts."""
    for key, entry in context.source.entries.items():
        rule = rule_key(key, program.rules)
        if rule is None:
            yield Line(entry, _UNKNOWN)
        elif entry.value is None:
            yield Line(entry, same("empty, as if it were not there"))
        else:
            yield Line(entry, program.rules[rule](entry, context))
    for key, default in program.defaults.items():
        if context.source.value(key) is None:
            entry = Entry(context.source.path, key, default, None)
            outcome = program.rules[key](entry, context)
            if outcome.fate in (Fate.TAKEN, Fate.LEFT):
                yield Line(entry, outcome)


def check(imported: Imported, technique: str) -> None:
    """Read the settings as the command does that they are for.

    Raises:
        SettingError: one of them is out of range; the message names its line.
    """
    from tunewise.resolve import TechniqueOptions, recipes_of

    configuration = imported.configuration()
    recipe = configuration.get("set", {})
    sets = [f"{name}={json.dumps(value)}" for name, value in recipe.items()] if isinstance(recipe, dict) else []
    known = {item.name for item in fields(TrainSettings)}
    settings = {name: value for name, value in imported.settings.items() if name in known}
    if "budget_steps" in imported.settings:
        settings["max_steps"] = imported.settings["budget_steps"]
    rate = imported.settings.get("learning_rate")
    try:
        recipes_of(technique, TechniqueOptions(sets=sets), learning_rate=rate if isinstance(rate, float) else None)
        checked = TrainSettings(**settings)  # type: ignore[arg-type]
        if isinstance(epochs := imported.settings.get("num_train_epochs"), float):
            checked.steps_for(epochs, examples=1)
    except RequestError as error:
        raise _placed(error, imported) from error


def _placed(error: RequestError, imported: Imported) -> SettingError:
    """Return the error with the line of the setting that its message begins with."""
    name = str(error).partition(" ")[0]
    names = (name, name.rpartition(".")[2], "budget_steps" if name == "max_steps" else name)
    line = next((line for name in names if (line := imported.line_of(name))), None)
    if line is None:
        return SettingError(f"{imported.path}: {error}")
    return SettingError(f"{line.entry.place}: {show(line.entry.key)}: {error}")
