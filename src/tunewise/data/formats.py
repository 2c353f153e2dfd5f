"""Recognises the columns of a table as one of seven formats and turns its rows into examples.

Column names are compared without case. Values are never converted: a value that is not text where text is needed
is an error with its line and column, except that a label may be a whole number or true/false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunewise.core.errors import DataError
from tunewise.core.text import listed, show
from tunewise.data.readers import Table, kind_of


@dataclass(frozen=True)
class Message:
    """Holds one turn of a conversation.

    `role` is "system", "user", "assistant" or "tool". `labelled` marks an assistant turn before the
    answer whose tokens are trained on.
    """

    role: str
    content: str
    labelled: bool = False


@dataclass(frozen=True)
class Example:
    """Holds what the model sees (`messages`) and must write (`answer`; in a classification the label).

    `messages` is empty for plain text. `references` holds every acceptable answer, the first being
    `answer`; only question-answer data fills it. `passage` names the document that holds the answer, where the data
    says so; it is used to judge retrieval, which never sees it.
    """

    messages: tuple[Message, ...]
    answer: str
    references: tuple[str, ...] = ()
    passage: str = ""

    @property
    def prompt(self) -> str:
        """Return the content of the last user message, or "" if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


_PROMPT = ("prompt", "query", "instruction", "input", "question", "problem")
_COMPLETION = ("completion", "response", "answer", "output", "target", "targets", "solution")
_LABEL = ("label", "class", "category", "sentiment", "emotion", "intent")
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages",)},
    "sharegpt": {"conversations": ("conversations", "conversation")},
    "alpaca": {"instruction": ("instruction",), "output": ("output", "response", "answer", "completion")},
    "question-answer": {"question": ("question",), "answer": ("answers", "answer")},
    "prompt-completion": {"prompt": _PROMPT, "completion": _COMPLETION},
    "classification": {"text": ("text", "sentence"), "label": _LABEL},
    "text": {"text": ("text",)},
}
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"system": ("system",), "tools": ("tools",)},
    "sharegpt": {"system": ("system",), "tools": ("tools",)},
    "alpaca": {"input": ("input", "context"), "system": ("system",), "history": ("history",)},
    "question-answer": {"context": ("context",), "system": ("system",), "passage": ("passage",)},
    "prompt-completion": {"system": ("system",), "passage": ("passage",)},
}
_MAPPABLE = tuple(dict.fromkeys(slot for part in (_REQUIRED, _OPTIONAL) for slots in part.values() for slot in slots))
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class ColumnLayout:
    """Holds a format, and for each standard column that it uses the file's own name."""

    format: str
    columns: Mapping[str, str]


def recognise(table: Table, columns: Mapping[str, str] | None = None, kind: str | None = None) -> ColumnLayout:
    """Find the first format whose columns the table has.

    Args:
        table: the rows; the first one says which columns there are.
        columns: standard names mapped to the table's own names; every column named here is used.
        kind: "text" allows only the format "text", and any other kind excludes it.

    Raises:
        DataError: no format fits, several columns could play one part, or `columns` names an unknown column.
    """
    names = list(table.rows[0][1])
    mapped = _mapped(table, names, columns or {})
    if not mapped and {"chosen", "rejected"} & {name.strip().lower() for name in names}:
        raise table.error("preference data (chosen, rejected) is not supported", "map prompt and completion")
    pool = _pool(table, names, mapped)
    for format_, required in _REQUIRED.items():
        if kind is not None and (kind == "text") != (format_ == "text"):
            continue
        layout = _layout_of(format_, pool, mapped)
        if layout is not None and set(mapped.values()) <= set(layout.columns.values()):
            _refuse_ambiguity(table, required, pool, mapped)
            return layout
    for_kind = "" if kind is None else f' for the kind "{kind}"'
    raise table.error(
        f"the columns {listed(names)} are not one of the known formats{for_kind}",
        f"map them, as in columns prompt=question,completion=reply (names: {', '.join(_MAPPABLE)})",
    )


def _mapped(table: Table, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the user's mapping of columns, after checking both sides of it."""
    unknown = [name for name in columns if name not in _MAPPABLE]
    if unknown:
        raise table.error(f"{listed(unknown)} cannot be mapped to a column", f"use the names {', '.join(_MAPPABLE)}")
    missing = [name for name in columns.values() if name not in names]
    if missing:
        raise table.error(f"there is no column {listed(missing)}", f"map to one of the columns {listed(names)}")
    return dict(columns)


def _pool(table: Table, names: Sequence[str], mapped: Mapping[str, str]) -> dict[str, str]:
    """Map lower-case names to the table's own names; a mapped column has its standard name only."""
    pool: dict[str, str] = {}
    for name in names:
        key = name.strip().lower()
        if name in mapped.values() or key in mapped:
            continue
        if key in pool:
            raise table.error(f"the columns {listed([pool[key], name])} differ only in case", "rename one of them")
        pool[key] = name
    return pool | dict(mapped)


def _layout_of(format_: str, pool: Mapping[str, str], mapped: Mapping[str, str]) -> ColumnLayout | None:
    """Choose a column for each slot of a format, or return None if a required one is missing."""
    chosen: dict[str, str] = {}
    for slot, synonyms in (_REQUIRED[format_] | _OPTIONAL.get(format_, {})).items():
        present = [name for name in synonyms if name in pool]
        if present:
            chosen[slot] = pool[next((name for name in present if name in mapped), present[0])]
        elif slot in _REQUIRED[format_]:
            return None
    return ColumnLayout(format_, chosen)


def _refuse_ambiguity(
    table: Table, required: Mapping[str, tuple[str, ...]], pool: Mapping[str, str], mapped: Mapping[str, str]
) -> None:
    """Refuse to choose among synonyms if the table has neither the standard name nor a mapped one."""
    for slot, synonyms in required.items():
        present = [name for name in synonyms if name in pool]
        if len(present) > 1 and present[0] != synonyms[0] and not mapped.keys() & set(present):
            raise table.error(
                f"the columns {listed(pool[name] for name in present)} could each be the {slot}",
                f"say which, as in columns {slot}={show(pool[present[0]])}",
            )


@dataclass(frozen=True)
class _Cells:
    """Reads the cells of one row under a layout; its methods refuse what is missing, blank or not text."""

    table: Table
    layout: ColumnLayout
    number: int
    row: Mapping[str, object]

    def error(self, slot: str, problem: str, remedy: str, inside: str = "") -> DataError:
        name = self.layout.columns[slot] + inside
        return self.table.error(problem, remedy, number=self.number, column=name)

    def value(self, slot: str) -> object:
        """Return the raw value, or None if the layout has no such column."""
        name = self.layout.columns.get(slot)
        return None if name is None else self.row[name]

    def text(self, slot: str) -> str:
        """Return the text of a column that must have some."""
        return self.check(slot, self.value(slot))

    def optional(self, slot: str) -> str:
        """Return the text of a column that may be absent, null or blank, which all give ""."""
        value = self.value(slot)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        return self.check(slot, value)

    def check(self, slot: str, value: object, inside: str = "") -> str:
        """Return the value if it is text that can be used; `inside` is its place in the cell, as in "[0].content"."""
        if not isinstance(value, str):
            raise self.error(slot, f"{kind_of(value)} where text is needed", "write it as text", inside)
        if not value or value.isspace():
            raise self.error(slot, "the text is empty", "fill it in or remove the row", inside)
        if "\0" in value:
            raise self.error(slot, "the text holds a NUL character", "remove it", inside)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.error(slot, "the text holds half of a surrogate pair", "remove it", inside) from None
        return value

    def name(self, slot: str) -> str:
        """Return the name or number in a column that may be absent; anything else gives ""."""
        value = self.value(slot)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def items(self, slot: str, value: object, inside: str = "") -> list[object]:
        if not isinstance(value, list):
            raise self.error(slot, f"{kind_of(value)} where a list is needed", "write it as a list", inside)
        return value

    def system(self) -> list[Message]:
        """Return the row's system message, with its tools, as a list of one or none."""
        parts = [part for part in (self.optional("system"), self.optional("tools")) if part]
        return [Message("system", "\n\n".join(parts))] if parts else []


def convert(table: Table, layout: ColumnLayout) -> list[Example]:
    """Turn every row into an example, in order.

    Raises:
        DataError: a value is missing, blank or of the wrong type; the message names the line and the column.
    """
    build = _BUILDERS[layout.format]
    return [build(_Cells(table, layout, number, row)) for number, row in table.rows]


def unused(table: Table, layout: ColumnLayout) -> list[str]:
    """List the columns of a table that its layout does not use."""
    return [name for name in table.rows[0][1] if name not in layout.columns.values()]


def _turn(cells: _Cells, slot: str, turn: object, inside: str) -> Message:
    if not isinstance(turn, dict):
        raise cells.error(
            slot, f"{kind_of(turn)} where a turn is needed", 'write {"role": ..., "content": ...}', inside
        )
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    name = turn.get(role_key)
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        subject = f'the role "{show(name)}"' if isinstance(name, str) else f"a role that is {kind_of(name)}"
        raise cells.error(slot, f"{subject} is not known", f"use one of {', '.join(_ROLES)}", f"{inside}.{role_key}")
    text = cells.check(slot, turn.get(content_key), f"{inside}.{content_key}")
    return Message(role, text, labelled=role == "assistant")


def _conversation(slot: str) -> Callable[[_Cells], Example]:
    def build(cells: _Cells) -> Example:
        turns = [_turn(cells, slot, turn, f"[{i}]") for i, turn in enumerate(cells.items(slot, cells.value(slot)))]
        if not turns or turns[-1].role != "assistant":
            problem = f"ends with a {turns[-1].role} turn" if turns else "is empty"
            raise cells.error(slot, f"the conversation {problem}", "end it with an assistant turn")
        if len(turns) == 1:
            raise cells.error(slot, "nothing comes before the answer", "add the user's turn")
        system = cells.system()
        # Chat templates take one system message, so the conversation's own is appended to the column's.
        if system and turns[0].role == "system":
            system = [Message("system", f"{system[0].content}\n\n{turns.pop(0).content}")]
        return Example((*system, *turns[:-1]), turns[-1].content)

    return build


def _alpaca(cells: _Cells) -> Example:
    messages = cells.system()
    history = cells.value("history")
    for i, pair in enumerate(cells.items("history", history) if history is not None else []):
        texts = cells.items("history", pair, f"[{i}]")
        if len(texts) != 2:
            raise cells.error("history", "the entry is not a pair", "write [question, answer] pairs", f"[{i}]")
        question, answer = (cells.check("history", text, f"[{i}][{j}]") for j, text in enumerate(texts))
        messages += [Message("user", question), Message("assistant", answer, labelled=True)]
    prompt = "\n\n".join(part for part in (cells.text("instruction"), cells.optional("input")) if part)
    return Example((*messages, Message("user", prompt)), cells.text("output"))


def _question_answer(cells: _Cells) -> Example:
    prompt = "\n\n".join(part for part in (cells.optional("context"), cells.text("question")) if part)
    answers = cells.value("answer")
    inside = ""
    if isinstance(answers, dict):  # SQuAD: {"text": [...], "answer_start": [...]}
        answers, inside = answers.get("text"), ".text"
    if isinstance(answers, list):
        texts = [cells.check("answer", text, f"{inside}[{i}]") for i, text in enumerate(answers)]
    else:
        texts = [cells.check("answer", answers, inside)]
    if not texts:
        raise cells.error("answer", "there is no answer", "remove the row or write what the model should say", inside)
    references = tuple(dict.fromkeys(texts))
    return Example((*cells.system(), Message("user", prompt)), texts[0], references, cells.name("passage"))


def _prompt_completion(cells: _Cells) -> Example:
    messages = (*cells.system(), Message("user", cells.text("prompt")))
    return Example(messages, cells.text("completion"), (), cells.name("passage"))


def _classification(cells: _Cells) -> Example:
    label = cells.value("label")
    if isinstance(label, bool):
        label = "true" if label else "false"
    elif isinstance(label, int):
        label = str(label)
    return Example((Message("user", cells.text("text")),), cells.check("label", label))


def _text(cells: _Cells) -> Example:
    return Example((), cells.text("text"))


_BUILDERS: dict[str, Callable[[_Cells], Example]] = {
    "messages": _conversation("messages"),
    "sharegpt": _conversation("conversations"),
    "alpaca": _alpaca,
    "question-answer": _question_answer,
    "prompt-completion": _prompt_completion,
    "classification": _classification,
    "text": _text,
}
