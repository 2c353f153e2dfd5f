"""Recognises the columns of a table as one of seven formats.

Column names are compared without case. A prompt may be made of several columns: those that the user joins, those that
a template names, or a pair that is known, such as premise and hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from tunewise.core.text import listed, show
from tunewise.data.prompt_template import PromptTemplate
from tunewise.data.table import Table

_PROMPT = ("prompt", "query", "instruction", "input", "question", "problem")
_COMPLETION = ("completion", "response", "answer", "output", "target", "targets", "solution")
_LABEL = ("label", "labels", "class", "category", "sentiment", "emotion", "intent", "gold_label")
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages",)},
    "sharegpt": {"conversations": ("conversations", "conversation")},
    "alpaca": {"instruction": ("instruction",), "output": ("output", "response", "answer", "completion")},
    "question-answer": {"question": ("question",), "answer": ("answers", "answer")},
    "prompt-completion": {"prompt": _PROMPT, "completion": _COMPLETION},
    "classification": {"text": ("text", "sentence"), "label": _LABEL},
    "text": {"text": ("text",)},
}
_TOOLS = {"tools": ("tools", "functions")}
_KWARGS = {"chat_template_kwargs": ("chat_template_kwargs",)}
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"system": ("system",), "loss_mask": ("loss_mask",), **_TOOLS, **_KWARGS},
    "sharegpt": {"system": ("system",), "loss_mask": ("loss_mask",), **_TOOLS, **_KWARGS},
    "alpaca": {"input": ("input", "context"), "system": ("system",), "history": ("history",)},
    "question-answer": {"context": ("context",), "system": ("system",), "passage": ("passage",)},
    "prompt-completion": {"system": ("system",), "passage": ("passage",), **_TOOLS, **_KWARGS},
}
_MAPPABLE = tuple(dict.fromkeys(slot for part in (_REQUIRED, _OPTIONAL) for slots in part.values() for slot in slots))
_TEXTS = ("text", "prompt", "question", "instruction", "input", "context", "system")  # can be made of several columns
_ANSWERS = {
    "alpaca": "output",
    "question-answer": "answer",
    "prompt-completion": "completion",
    "classification": "label",
}
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
)
_BESIDE = ("context", "input", "history")  # stand beside a prompt, unless a template says what it is made of
_LOOKED_AT = 200  # rows, to propose a mapping
_GOOD_OR_BAD = ("label", "kto_tag")  # says of each answer of KTO data whether it is good


@dataclass(frozen=True)
class ColumnLayout:
    """Holds a format, and for each standard column that it uses the file's own name.

    Attributes:
        format: the name of the format.
        columns: the file's column for each standard column.
        joined: the columns that one standard column is made of, where there are several.
        template: the user's template, where it names columns.
    """

    format: str
    columns: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    template: PromptTemplate | None = None

    @property
    def answer(self) -> str | None:
        """Return the column of the answer or label, or None where it is not a column of its own."""
        slot = _ANSWERS.get(self.format)
        return None if slot is None else self.columns[slot]

    @property
    def required(self) -> list[str]:
        """Return the columns that the format cannot do without."""
        slots = [slot for slot in _REQUIRED[self.format] if not self.joined.get(slot)]
        parts = [name for slot in _REQUIRED[self.format] for name in self.joined.get(slot, ())]
        return [*(self.columns[slot] for slot in slots), *parts]

    def used(self) -> set[str]:
        """Return every column that is read."""
        parts = {name for names in self.joined.values() for name in names}
        template = set(self.template.columns.values()) if self.template is not None else set()
        return set(self.columns.values()) | parts | template

    def with_names(self, names: Iterable[str]) -> ColumnLayout:
        """Return this layout for another table, whose names may differ in case."""
        by_lower = {name.lower(): name for name in names}
        here = set(names)

        def name_of(name: str) -> str:
            return name if name in here else by_lower.get(name.lower(), name)

        template = self.template
        if template is not None:
            template = replace(template, columns={key: name_of(name) for key, name in template.columns.items()})
        return ColumnLayout(
            self.format,
            {slot: name_of(name) for slot, name in self.columns.items()},
            {slot: tuple(map(name_of, parts)) for slot, parts in self.joined.items()},
            template,
        )


def recognise(
    table: Table,
    columns: Mapping[str, str] | None = None,
    kind: str | None = None,
    template: PromptTemplate | None = None,
) -> ColumnLayout:
    """Find the first format whose columns the table has.

    Args:
        table: the rows; columns that less than half of them have are optional ones.
        columns: standard names mapped to the table's own names, of which a text may join several by "+"; every column
            named here is used.
        kind: "text" allows only the format "text", and any other kind excludes it.
        template: the user's template, where it names columns.

    Raises:
        DataError: no format fits, several columns could play one part, `columns` names an unknown column, or the data
            is of a kind that cannot be trained on.
    """
    counts = table.name_counts
    names = list(counts)
    mapped, joined = _mapped(table, names, columns or {})
    if not mapped and (found := [name for name in names if name.strip().lower() in ("chosen", "rejected")]):
        raise table.error(
            f"preference data ({', '.join(map(show, found))}) is not supported",
            "map prompt and completion, as in columns prompt=prompt,completion=chosen",
        )
    pool = _pool(table, names, mapped, joined)
    pair = None if kind == "text" or template is not None else _pair(table, pool, mapped)
    if pair is not None:
        return pair
    if template is not None:
        _use_template(table, template, pool, mapped, joined)
    common = {key for key, name in pool.items() if counts.get(name, len(table.rows)) * 2 >= len(table.rows)}
    for format_, required in _REQUIRED.items():
        if kind is not None and (kind == "text") != (format_ == "text"):
            continue
        layout = _layout_of(format_, pool, common, mapped)
        if layout is not None and set(mapped.values()) <= set(layout.columns.values()):
            _refuse_ambiguity(table, required, pool, mapped)
            parts = {slot: joined[name] for slot, name in layout.columns.items() if name in joined}
            layout = replace(layout, joined=parts, template=template)
            _refuse_untrainable(table, layout, pool, columns or {})
            return layout
    for_kind = "" if kind is None else f' for the kind "{kind}"'
    raise table.error(
        f"the columns {listed(names)} are not one of the known formats{for_kind}",
        f"map them, as in columns {_proposal(table, names)} (names: {', '.join(_MAPPABLE)})",
    )


def _proposal(table: Table, names: Sequence[str]) -> str:
    """Propose a mapping of columns that no format has: a text and its label, if one column has few different values."""
    cells: dict[str, list[str]] = {name: [] for name in names if not set(name) & set(",=+")}
    for _, row in islice(table.rows, _LOOKED_AT):
        for name, column in cells.items():
            if isinstance(value := row.get(name), str | int) and str(value).strip():
                column.append(str(value))
    size = max(map(len, cells.values()), default=0)
    full = [name for name, column in cells.items() if size and len(column) * 2 >= size]
    if len(full) < 2:
        return "prompt=question,completion=reply"
    longest = max(full, key=lambda name: sum(map(len, cells[name])) / len(cells[name]))
    different = {name: len(set(cells[name])) for name in full if name != longest}
    labels = [name for name, count in different.items() if 2 <= count <= max(2, len(cells[name]) // 5)]
    if labels:
        return f"text={show(longest)},label={show(min(labels, key=different.__getitem__))}"
    return f"prompt={show(full[0])},completion={show(full[-1])}"


def _mapped(
    table: Table, names: Sequence[str], columns: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the user's mapping of columns, after checking both sides of it, and the parts of joined columns."""
    unknown = [name for name in columns if name not in _MAPPABLE]
    if unknown:
        raise table.error(f"{listed(unknown)} cannot be mapped to a column", f"use the names {', '.join(_MAPPABLE)}")
    joined = {
        name: tuple(part.strip() for part in name.split("+"))
        for slot, name in columns.items()
        if "+" in name and name not in names and slot in _TEXTS
    }
    wanted = [part for name in columns.values() for part in joined.get(name, (name,))]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise table.error(f"there is no column {listed(missing)}", f"map to one of the columns {listed(names)}")
    return dict(columns), joined


def _pool(
    table: Table, names: Sequence[str], mapped: Mapping[str, str], joined: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Map lower-case names to the table's own names; a mapped column has its standard name only."""
    taken = {part for name in mapped.values() for part in joined.get(name, (name,))}
    pool: dict[str, str] = {}
    for name in names:
        key = name.strip().lower()
        if name in taken or key in mapped:
            continue
        if key in pool:
            raise table.error(f"the columns {listed([pool[key], name])} differ only in case", "rename one of them")
        pool[key] = name
    return pool | dict(mapped)


def _pair(table: Table, pool: Mapping[str, str], mapped: Mapping[str, str]) -> ColumnLayout | None:
    """Return the layout of two texts and their label, or None; BoolQ calls its label `answer`."""
    label = next((name for name in _LABEL if name in pool), None)
    if label is None and "answer" in pool and _all_of(table, pool["answer"], (True, False)):
        label = "answer"
    pair = next((pair for pair in _PAIRS if set(pair) <= pool.keys()), None)
    if label is None or pair is None or "text" in pool or not mapped.keys() <= {"label"}:
        return None
    parts = tuple(pool[name] for name in pair)
    layout = ColumnLayout("classification", {"text": "+".join(parts), "label": pool[label]}, {"text": parts})
    _refuse_untrainable(table, layout, pool, mapped)
    return layout


def _use_template(
    table: Table,
    template: PromptTemplate,
    pool: dict[str, str],
    mapped: dict[str, str],
    joined: dict[str, tuple[str, ...]],
) -> None:
    """Let the columns that a template names take the place of the prompt, unless it holds the prompt beside them."""
    if template.has_prompt:
        return
    parts = tuple(dict.fromkeys(template.columns.values()))
    if mapped.keys() & set(_TEXTS) or {"messages", "conversations", "conversation"} & pool.keys():
        raise table.error(
            "the template names columns and leaves no place for the prompt",
            "write {prompt} where the prompt belongs",
        )
    for key in [key for key, name in pool.items() if (name in parts or key in _BESIDE) and key not in mapped]:
        del pool[key]
    slot = "prompt"
    if pool.keys() & {"answers", "answer"} and not pool.keys() & {"completion", "output", "response"}:
        slot = "question"
    elif pool.keys() & set(_LABEL) and not pool.keys() & set(_COMPLETION):
        slot = "text"
    pool[slot] = "+".join(parts)
    joined[pool[slot]] = parts
    mapped[slot] = pool[slot]


def _layout_of(
    format_: str, pool: Mapping[str, str], common: set[str], mapped: Mapping[str, str]
) -> ColumnLayout | None:
    """Choose a column for each slot of a format, or return None if a required one is missing."""
    chosen: dict[str, str] = {}
    for slot, synonyms in (_REQUIRED[format_] | _OPTIONAL.get(format_, {})).items():
        is_required = slot in _REQUIRED[format_]
        present = [name for name in synonyms if name in pool and (name in common or name in mapped or not is_required)]
        if present:
            chosen[slot] = pool[next((name for name in present if name in mapped), present[0])]
        elif is_required:
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


def _refuse_untrainable(table: Table, layout: ColumnLayout, pool: Mapping[str, str], mapped: Mapping[str, str]) -> None:
    """Refuse answers that are marked as good or bad, and rows with several labels."""
    if layout.format == "classification":
        label = layout.columns["label"]
        number = table.survey.lists.get(label)
        if number is not None:
            raise table.error(
                "multi-label data (a list of labels in a row) is not supported",
                "keep one label a row, or write the labels as one text and map the columns as prompt and completion",
                number=number,
                column=label,
            )
        return
    for name in _GOOD_OR_BAD:
        mark = pool.get(name)
        if mark is None or mapped or layout.format == "text":
            continue
        if _all_of(table, mark, (True, False, "true", "false")) and not _all_of(table, mark, (True, "true")):
            mapping = ",".join(f"{slot}={layout.columns[slot]}" for slot in _REQUIRED[layout.format])
            raise table.error(
                f'KTO data ("{show(mark)}" says whether each answer is good) is not supported',
                f"keep the rows whose {show(mark)} is true, and map the columns, as in columns {mapping}",
            )


def _all_of(table: Table, column: str, values: Sequence[object]) -> bool:
    """Tell whether a column holds only these values, in any case, where it holds any."""
    holds_any = False
    for _, row in table.rows:
        if (value := row.get(column)) is not None:
            if (value.strip().lower() if isinstance(value, str) else value) not in values:
                return False
            holds_any = True
    return holds_any
