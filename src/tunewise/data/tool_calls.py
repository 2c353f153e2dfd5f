"""Reads calls of tools and the tools that may be called, and writes both in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from tunewise.data.cells import Cells


class Function(TypedDict):
    """Names a function that is called; the arguments are an object, or text that is none as JSON."""

    name: str
    arguments: object


class Call(TypedDict):
    """Holds a call in OpenAI's form."""

    id: NotRequired[str]
    type: str
    function: Function


class TurnFields(TypedDict, total=False):
    """Holds what a chat template may read of a turn besides its role: what `Message.fields` and `answer_fields` say."""

    content: str
    reasoning_content: str
    tool_calls: list[Call]
    tool_call_id: str
    name: str


def read_fields(text: str) -> TurnFields:
    """Return the fields of a turn that are stored as text; none where the text is empty."""
    fields: TurnFields = json.loads(text) if text else {}
    return fields


def are_fields(text: str) -> bool:
    """Tell whether a text is the fields of a turn as JSON, as a file from anybody may hold them."""
    fields = json_or_none(text)
    if not isinstance(fields, dict) or not fields.keys() <= TurnFields.__annotations__.keys():
        return False
    calls = fields.get("tool_calls", [])
    texts = (value for name, value in fields.items() if name != "tool_calls")
    return isinstance(calls, list) and all(map(_is_call, calls)) and all(isinstance(value, str) for value in texts)


def _is_call(value: object) -> bool:
    """Tell whether a value is a call in OpenAI's form."""
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def are_tools(text: str) -> bool:
    """Tell whether a text is a JSON list of tools in OpenAI's form."""
    tools = json_or_none(text)
    return isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)


def with_calls(text: str, calls: Sequence[Call]) -> str:
    """Return a turn's text followed by its calls, each as `<tool_call>`, a JSON object and `</tool_call>` on lines."""
    written = (f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls)
    return "\n".join(part for part in (text, *written) if part)


def calls_of_turn(cells: Cells, slot: str, turn: Mapping[str, object], inside: str) -> list[Call]:
    """Return a turn's calls in OpenAI's form, with their arguments as objects."""
    value = turn.get("tool_calls")
    inside = f"{inside}.tool_calls"
    if value is None and turn.get("function_call") is not None:
        value, inside = [turn["function_call"]], inside.replace("tool_calls", "function_call")
    if isinstance(value, str):
        value = (json_or_none(value) or value) if value.strip() else None
    if value is None:
        return []
    calls = []
    for i, item in enumerate(cells.items(slot, value, inside)):
        call = _call(item)
        if call is None:
            raise cells.error(
                slot,
                "the call names no function",
                'write {"function": {"name": ..., "arguments": ...}}',
                f"{inside}[{i}]",
            )
        calls.append(call)
    return calls


def _call(value: object) -> Call | None:
    """Return a call in OpenAI's form, or None if it names no function."""
    if not isinstance(value, dict):
        return None
    function = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, str):
        arguments = _object_of_text(arguments)
    function_call = Function(name=name, arguments={} if arguments is None else arguments)
    if isinstance(value.get("id"), str):
        return Call(id=value["id"], type="function", function=function_call)
    return Call(type="function", function=function_call)


def _object_of_text(text: str) -> object:
    """Return the object that a text is as JSON, or the text."""
    value = json_or_none(text) if text.strip() else {}
    return value if isinstance(value, dict) else text


def calls_of_text(text: str) -> list[Call]:
    """Return the calls that a text is as JSON, or none."""
    value = json_or_none(text)
    items = value if isinstance(value, list) else [value]
    calls = [call for item in items if (call := _call(item)) is not None]
    return calls if len(calls) == len(items) else []


def tools_of_row(cells: Cells) -> tuple[str, str]:
    """Return the column of tools as a JSON list of schemas, or its free text, which belongs to the system message."""
    value = cells.value("tools")
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", ""
    if isinstance(value, str):
        schemas = _schemas(json_or_none(value))
        return ("", cells.check("tools", value)) if schemas is None else (_listed_tools(cells, schemas), "")
    schemas = _schemas([json_or_none(item) if isinstance(item, str) else item for item in cells.items("tools", value)])
    if schemas is None:
        raise cells.error("tools", "the list holds what is no tool", 'write {"name": ..., "parameters": ...} for each')
    return _listed_tools(cells, schemas), ""


def _listed_tools(cells: Cells, schemas: Sequence[object]) -> str:
    return cells.json_text("tools", schemas) if schemas else ""


def json_or_none(text: str) -> object:
    """Return the value that a text is as JSON, or None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _schemas(value: object) -> list[object] | None:
    """Return tools in OpenAI's form, or None if the value is not a list of tools."""
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return None
    return [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in tools]


def _is_bare(tool: Mapping[str, object]) -> bool:
    """Tell whether a tool is a function's schema without OpenAI's object around it."""
    return "name" in tool and "function" not in tool
