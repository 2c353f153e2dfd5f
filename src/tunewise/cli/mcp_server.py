"""A server of the Model Context Protocol whose tools are tunewise's own commands, each run with `--json`.

Every tool starts a process of its own, with the rights of whoever started the server; nothing goes through a shell. The
parameters of a tool are the options of its command, and so are their descriptions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from typer import Context, Typer
from typer.models import ArgumentInfo, ParameterInfo

from tunewise.core.errors import TunewiseError
from tunewise.core.version import __version__

if TYPE_CHECKING:
    from mcp.server import MCPServer

# What only reads or writes to the folder that it is told; nothing that listens, talks or sends data elsewhere.
COMMANDS = ("techniques", "check", "plan", "advise", "fit", "compare", "eval", "report", "export", "search")
_NOT_OFFERED = ("config", "as_json", "wide", "yes", "in_process", "html", "svg", "png")
_INSTRUCTIONS = (
    "tunewise compares ways to fine-tune a language model on the user's own data, and fits one. Begin with check and "
    "advise; plan says what a comparison will cost, and compare and fit can run for a long time. Data and models are "
    "paths or Hub ids; world and world:reviews are shipped."
)


@dataclass(frozen=True)
class OfferedOption:
    """Holds an option or an argument of a command, as a tool offers it.

    `word` is the option on the command line, and empty for an argument.
    `otherwise` says the opposite of the option, and is empty where nothing does.
    """

    name: str
    word: str
    otherwise: str
    kind: Any
    required: bool
    help: str


def server(app: Typer) -> MCPServer:
    """Make the server, with a tool for each command of the command line."""
    from mcp.server import MCPServer

    made: MCPServer = MCPServer("tunewise", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING")
    for name in COMMANDS:
        function = command(app, name)
        made.add_tool(tool(name, function), name=name, description=(function.__doc__ or name).strip())
    return made


def command(app: Typer, name: str) -> Callable[..., None]:
    """Return the function of a command."""
    functions = {each.name: each.callback for each in app.registered_commands if each.callback is not None}
    return functions[name]


def options_of(function: Callable[..., None]) -> dict[str, OfferedOption]:
    """Return what a tool offers of a command, by the names of the tool's parameters."""
    hints, offered = get_type_hints(function, include_extras=True), dict[str, OfferedOption]()
    for name, parameter in signature(function).parameters.items():
        kind, *marks = get_args(hints[name]) or (hints[name],)
        info = next((mark for mark in marks if isinstance(mark, ParameterInfo)), None)
        if name in _NOT_OFFERED or hints[name] is Context or info is None:
            continue
        # Typer takes what stands first for a default value, before it looks at how the option is annotated.
        words = [str(word) for word in (info.default, *(info.param_decls or ())) if str(word).startswith("--")]
        declared = "" if isinstance(info, ArgumentInfo) else words[0] if words else f"--{name.replace('_', '-')}"
        word, _, otherwise = declared.partition("/")
        key = word.lstrip("-").replace("-", "_") or name
        required = parameter.default is Parameter.empty
        offered[key] = OfferedOption(key, word, otherwise, _plain(kind), required, str(info.help or key))
    return offered


def _plain(kind: Any) -> Any:
    """Return a type that JSON has: a path is a text."""
    parts = tuple(str if part is Path else part for part in get_args(kind)) if type(None) in get_args(kind) else ()
    if parts:
        return Any if len(parts) < 2 else parts[0] | parts[1]
    return str if kind is Path else kind


def tool(name: str, function: Callable[..., None]) -> Callable[..., Any]:
    """Return a function that runs a command, with its options as keyword parameters."""
    from mcp.server.mcpserver.exceptions import ToolError
    from pydantic import Field

    options = options_of(function)
    parameters = []
    for option in options.values():
        kind = option.kind if option.required else option.kind | None
        default = Parameter.empty if option.required else None
        parameters.append(
            Parameter(
                option.name,
                Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, Field(description=option.help)],
            )
        )
    always = ["--json", *(["--yes"] if "yes" in signature(function).parameters else [])]  # nobody would answer

    def call(**values: Any) -> dict[str, Any]:
        try:
            return {"result": run([name, *words_of(options, values), *always])}
        except TunewiseError as error:
            raise ToolError(str(error)) from error

    vars(call)["__signature__"] = Signature(parameters, return_annotation=dict[str, Any])
    call.__name__, call.__doc__ = name, function.__doc__
    return call


def words_of(options: Mapping[str, OfferedOption], values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line; a value can never become an option.

    Raises:
        TunewiseError: an argument begins with a dash.
    """
    words: list[str] = []
    arguments: list[str] = []
    for name, value in values.items():
        word = options[name].otherwise if value is False else options[name].word
        given = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if value is None or (value is False and not word):
            continue
        if isinstance(value, bool):
            words.append(word)
        elif not word:
            arguments += given
        else:
            words += [f"{word}={each}" for each in given]
    for argument in arguments:
        if argument.startswith("-"):
            raise TunewiseError(f'"{argument[:80]}" begins with a dash and cannot be a name or a path here')
    return [*arguments, *words]


def run(words: list[str]) -> Any:
    """Run a command in a process of its own and return its JSON.

    Raises:
        TunewiseError: it failed; the message is its own.
    """
    whole = [sys.executable, "-m", "tunewise.cli", *words]
    done = subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        problem = lines[-1] if lines else f"tunewise {words[0]} ended with exit code {done.returncode}"
        raise TunewiseError(problem) from error
