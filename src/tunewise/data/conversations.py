"""Turns the turns of a conversation, in the forms of OpenAI, ShareGPT, TRL and axolotl, into messages and an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tunewise.core.text import show
from tunewise.data.cells import Cells
from tunewise.data.examples import Example, Message
from tunewise.data.table import kind_of
from tunewise.data.tool_calls import Call, calls_of_text, calls_of_turn, json_or_none, tools_of_row, with_calls

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # roles of turns that are a call, as JSON text
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TRAINED = ("weight", "train", "loss_mask", "loss")
_TEXT_PARTS = ("text", "input_text", "output_text")


class Turn(NamedTuple):
    """Holds a turn, its calls, and other text that a chat template may read of it.

    `is_trained` says of an assistant turn whether it is learnt.
    """

    role: str
    text: str
    calls: Sequence[Call] = ()
    texts: Mapping[str, str] = {}
    is_trained: bool = True

    def fields(self, *names: str) -> dict[str, object]:
        """Return what the turn has of these fields of a chat template."""
        fields = ({"tool_calls": self.calls} if self.calls else {}) | dict(self.texts)
        return {name: fields[name] for name in names if name in fields}


def conversation(cells: Cells, slot: str) -> Example:
    """Build the example of a list of turns, the last learnt one being the answer."""
    mask = cells.value("loss_mask")
    turns = read_turns(cells, slot, cells.value(slot), None if mask is None else cells.items("loss_mask", mask))
    if not turns or turns[-1].role != "assistant":
        problem = f"ends with a {turns[-1].role} turn" if turns else "is empty"
        raise cells.error(slot, f"the conversation {problem}", "end it with an assistant turn")
    return _example(cells, slot, turns, len(turns))


def prompt_and_completion(cells: Cells) -> Example:
    """Build the example of a prompt and a completion of which one is, or both are, a list of turns.

    As in TRL, no turn of the prompt is learnt.
    """
    prompt, completion = cells.value("prompt"), cells.value("completion")
    before = read_turns(cells, "prompt", prompt) if _holds_turns(prompt) else [Turn("user", cells.text("prompt"))]
    if _holds_turns(completion):
        after = read_turns(cells, "completion", [completion] if isinstance(completion, dict) else completion)
    else:
        after = [Turn("assistant", cells.answer("completion", completion))]
    if before and after and after[0].role == "user" and after[0].text == before[-1].text:
        before = before[:-1]  # some completions repeat the prompt, such as the chosen answers of preference data
    if not after or after[-1].role != "assistant":
        raise cells.error("completion", "the completion does not end with an assistant turn", "end it with one")
    turns = [*(turn._replace(is_trained=False) for turn in before), *after]
    return replace(_example(cells, "completion", turns, len(after)), passage=cells.name("passage"))


def _example(cells: Cells, slot: str, turns: Sequence[Turn], learnable: int) -> Example:
    """Build an example whose answer is the last learnt assistant turn of the last `learnable` ones."""
    first = len(turns) - learnable
    trained = [i for i in range(first, len(turns)) if turns[i].role == "assistant" and turns[i].is_trained]
    if not trained:
        raise cells.error(slot, "no assistant turn is trained on", "let one be, or remove the row")
    last = trained[-1]
    if dropped := len(turns) - last - 1:
        cells.told["turns after the last one that is trained on were left out"] += dropped
    if last == 0:
        raise cells.error(slot, "nothing comes before the answer", "add the user's turn")
    messages = [_message(cells, slot, turn) for turn in turns[:last]]
    tools, described = tools_of_row(cells)
    parts = [part for part in (cells.optional("system"), described) if part]
    # Chat templates take one system message, so the conversation's own is appended to the column's.
    if parts and messages[0].role == "system":
        parts.append(messages.pop(0).content)
    if parts:
        messages.insert(0, Message("system", "\n\n".join(parts)))
    fields = turns[last].fields("tool_calls", "reasoning_content")
    answer_fields = cells.json_text(slot, {"content": turns[last].text, **fields}) if fields else ""
    return Example(
        tuple(messages),
        with_calls(turns[last].text, turns[last].calls),
        answer_fields=answer_fields,
        tools=tools,
        template_kwargs=_template_kwargs(cells),
        row=cells.number,
    )


def _message(cells: Cells, slot: str, turn: Turn) -> Message:
    """Return the message of a turn before the answer."""
    role, text, calls, texts, is_trained = turn
    fields = ""
    if calls or texts:
        fields = cells.json_text(slot, turn.fields("tool_calls", "reasoning_content", "name", "tool_call_id"))
    return Message(role, text, role == "assistant" and is_trained, fields)


def read_turns(cells: Cells, slot: str, value: object, mask: Sequence[object] | None = None) -> list[Turn]:
    """Read a list of turns; empty system turns are left out.

    Args:
        cells: the row.
        slot: the column of the list.
        value: the list.
        mask: for each turn whether it is learnt, where the row says so.
    """
    items = cells.items(slot, value)
    if mask is not None and len(mask) != len(items):
        raise cells.error(
            "loss_mask", f"{len(mask)} values for {len(items)} turns", "write one value, 0 or 1, for each turn"
        )
    turns = []
    for i, item in enumerate(items):
        turn = _turn(cells, slot, item, f"[{i}]")
        if mask is not None and not _flag(cells, "loss_mask", mask[i], f"[{i}]"):
            turn = turn._replace(is_trained=False)
        if turn.role == "system" and not turn.text:
            cells.told["empty system turns were left out"] += 1
        else:
            turns.append(turn)
    return turns


def _turn(cells: Cells, slot: str, turn: object, inside: str) -> Turn:
    if not isinstance(turn, dict):
        raise cells.error(
            slot, f"{kind_of(turn)} where a turn is needed", 'write {"role": ..., "content": ...}', inside
        )
    role_key = "from" if turn.get("role") is None and "from" in turn else "role"
    content_key = "value" if turn.get("content") is None and "value" in turn else "content"
    name = turn.get(role_key)
    lower = name.lower() if isinstance(name, str) else ""
    role = _ROLES.get(lower)
    if role is None:
        subject = f'the role "{show(name)}"' if isinstance(name, str) else f"a role that is {kind_of(name)}"
        roles = "system, developer, user, assistant, model or tool"
        raise cells.error(slot, f"{subject} is not known", f"use one of {roles}", f"{inside}.{role_key}")
    content = turn.get(content_key)
    if len(turn) == 2 and role in ("user", "assistant") and isinstance(content, str) and lower not in _CALLS:
        return Turn(role, cells.check(slot, content, f"{inside}.{content_key}"))  # as most turns are
    calls = calls_of_turn(cells, slot, turn, inside) if role == "assistant" else []
    if not calls and lower in _CALLS and isinstance(content, str) and (parsed := calls_of_text(content)):
        calls, content = parsed, ""
    texts = _reasoning(cells, slot, turn, inside) if role == "assistant" else {}
    texts |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str) and turn[key]}
    text = _content(cells, slot, content, f"{inside}.{content_key}", role, is_needed=role != "system" and not calls)
    return Turn(role, text, calls, texts, _is_trained(cells, slot, turn, inside))


def _content(cells: Cells, slot: str, value: object, inside: str, role: str, *, is_needed: bool) -> str:
    """Return the text of a turn; a tool's result may be empty, or an object, which is written as JSON."""
    if isinstance(value, list) and not (role == "tool" and not _are_parts(value)):
        value = "\n".join(_part_text(cells, slot, part, f"{inside}[{i}]") for i, part in enumerate(value))
    elif role == "tool" and not isinstance(value, str) and value is not None:
        return cells.json_text(slot, value, inside)
    is_blank = value is None or (isinstance(value, str) and not value.strip())
    if is_blank and (role == "tool" or not is_needed):
        return ""
    return cells.check(slot, value, inside)


def _are_parts(value: Sequence[object]) -> bool:
    return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)


def _part_text(cells: Cells, slot: str, part: object, inside: str) -> str:
    """Return the text of a part of a content, such as {"type": "text", "text": "..."}."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _TEXT_PARTS:
        subject = f'a part of the type "{show(str(kind))}"' if isinstance(part, dict) else kind_of(part)
        raise cells.error(slot, f"{subject} where text is needed", "keep parts of the type text only", inside)
    text = part.get("text")
    return text if isinstance(text, str) else cells.check(slot, text, f"{inside}.text")


def _reasoning(cells: Cells, slot: str, turn: Mapping[str, object], inside: str) -> dict[str, str]:
    """Return what an assistant thinks before its answer, under the name that chat templates use."""
    for key in _REASONING:
        value = turn.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        return {"reasoning_content": cells.check(slot, value, f"{inside}.{key}")}
    return {}


def _is_trained(cells: Cells, slot: str, turn: Mapping[str, object], inside: str) -> bool:
    return all(_flag(cells, slot, turn[key], f"{inside}.{key}") for key in _TRAINED if turn.get(key) is not None)


def _flag(cells: Cells, slot: str, value: object, inside: str) -> bool:
    """Read a weight of 0 or 1, or true or false."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    shown = f"the weight {show(str(value))}" if isinstance(value, str | int | float) else kind_of(value)
    raise cells.error(slot, f"{shown} where 0 or 1 is needed", "write 1 for a turn that is learnt, and else 0", inside)


def _template_kwargs(cells: Cells) -> str:
    """Return the variables of the chat template as a JSON object; null stands for a variable that is not given."""
    value = cells.value("chat_template_kwargs")
    if isinstance(value, str):
        value = (json_or_none(value) or value) if value.strip() else None
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise cells.error("chat_template_kwargs", "not an object", 'write it as {"name": value}')
    given = {key: item for key, item in value.items() if item is not None}
    return cells.json_text("chat_template_kwargs", given) if given else ""


def is_conversational(cells: Cells) -> bool:
    """Tell whether a prompt or a completion is given as turns, or has what only a chat template uses."""
    further = cells.value("tools") is not None or cells.value("chat_template_kwargs") is not None
    return further or _holds_turns(cells.value("prompt")) or _holds_turns(cells.value("completion"))


def _holds_turns(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)
