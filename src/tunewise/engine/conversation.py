"""Knows how a model writes a conversation, and how a turn of it ends.

The model's own chat template writes the text; what is learnt of it follows from rendering it turn by turn, never from
searching for words. What a template can show (system messages, tools, calls, reasoning) is found once by rendering
short conversations, and what it cannot show is written into the text of a turn, with a note.

Control tokens that a text spells are hidden from the template (`tunewise.engine.control_tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tunewise.core.errors import DataError
from tunewise.data.examples import Example, Message
from tunewise.data.tool_calls import Call, TurnFields, read_fields, with_calls
from tunewise.engine.control_tokens import ControlTokens
from tunewise.engine.template_environment import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ANSWER, _THOUGHT, _TOOL = "Qsystem", "Quser", "Qanswer", "Qthought", "qtool"  # words of the trials
_RESERVED = frozenset({"conversation", "messages", "tools", "chat_template", "tokenize", "tokenizer", "self"})
_RESERVED_PREFIXES = ("return_", "add_", "continue_", "padding", "truncation", "max_length", "processor")
THOUGHT_END = "</think>"


@dataclass(frozen=True)
class Ends:
    """Says how an answer ends.

    Attributes:
        taught: the token that training puts at the end of every answer; None if the model has no such token.
        stops: the tokens that end a generated answer.
        note: what a user ought to know of it, or "".
    """

    taught: int | None
    stops: frozenset[int]
    note: str = ""

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, generation_ends: Sequence[int]) -> Ends:
        """Return the ends of text without a chat template: the tokenizer's end and those that generation stops at."""
        end = tokenizer.eos_token_id
        taught = end if isinstance(end, int) else next(iter(generation_ends), None)
        stops = frozenset(id_ for id_ in (taught, *generation_ends) if id_ is not None)
        note = "" if stops else "The model has no end-of-sequence token, so that no generated answer ends by itself."
        return cls(taught, stops, note)


@dataclass(frozen=True)
class Rendering:
    """Holds a conversation as text, in which control tokens of the data are hidden.

    Attributes:
        prompt: everything before the answer, with what the template writes before every answer.
        answer: the answer with its end.
        ended: whether the template wrote that end; if not, the taught token follows.
        spans: (start, end) of the prompt's characters that are learnt: the labelled turns before the answer.
        unlearnt: the indices of labelled turns that the template writes differently once others follow.
    """

    prompt: str
    answer: str
    ended: bool
    spans: tuple[tuple[int, int], ...] = ()
    unlearnt: tuple[int, ...] = ()


class ChatTemplate:
    """Renders conversations by a tokenizer's chat template.

    Attributes:
        control: the control tokens of the tokenizer and the template.
        ends: how an answer ends.
        prefix: what the template writes before every answer besides its beginning, such as an empty thought.
        told: what had to be changed for the template, one sentence each, in the order in which it happened.

    Raises:
        DataError: the template cannot show a question and its answer.
        ModelError: it takes more steps or memory than a conversation needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation_ends: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._as_parts = False
        self.told: dict[str, None] = {}
        question, whole = self._trial()
        start, _, after = whole.rpartition(_ANSWER)
        # Not what stands before an answer: the marks of a thought there may be a part of what an answer says.
        self.control = ControlTokens(
            tokenizer, [self._apply([self._turn(Message("user", _USER))], generate=False), after]
        )
        self._closing, mark_length = self._closing_token(after)
        self._mark = after[:mark_length] if self._closing else after.rstrip()
        prefix = start[len(question) :] if start.startswith(question) else ""
        self.prefix = prefix if prefix.strip(" ") else ""  # a space belongs to the first word of the answer
        self.ends = self._ends(generation_ends)

    def _trial(self) -> tuple[str, str]:
        """Render a question, and the question with its answer."""
        turns = [Message("user", _USER), Message("assistant", _ANSWER)]
        refusal: DataError | None = None
        for self._as_parts in (False, True):
            try:
                question = self._apply([self._turn(turns[0])], generate=True)
                whole = self._apply([self._turn(turn) for turn in turns], generate=False)
            except DataError as error:
                refusal = refusal or error
                continue
            if _USER in question and _ANSWER in whole:
                return question, whole
        if refusal is not None:
            raise refusal
        raise DataError(
            "the model's chat template leaves out what a conversation says",
            remedy="use a model whose chat template shows the content of user and assistant turns",
        )

    def _closing_token(self, after: str) -> tuple[str, int]:
        """Return the first added token in what follows an answer, and where it ends; "" and 0 if there is none."""
        tokens = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        found = [(after.find(token), -len(token), token) for token in tokens if not token.isspace() and token in after]
        if not found:
            return "", 0
        place, _, token = min(found)
        return token, place + len(token)

    def _ends(self, generation_ends: Sequence[int]) -> Ends:
        plain = Ends.of_tokenizer(self._tokenizer, generation_ends)
        if self._closing:
            taught = int(str(self._tokenizer.convert_tokens_to_ids(self._closing)))
            return Ends(taught, plain.stops | {taught})
        if plain.taught is None:
            return Ends(None, plain.stops, f"The chat template writes no end after an answer. {plain.note}".strip())
        token = self._tokenizer.convert_ids_to_tokens(plain.taught)
        note = f"The chat template writes no end after an answer; {token} is taught as the end of every answer."
        return Ends(plain.taught, plain.stops, note)

    # What the template can show.

    @cached_property
    def _shows_system(self) -> bool:
        return self._shows([Message("system", _SYSTEM), Message("user", _USER)], _SYSTEM)

    @cached_property
    def _shows_tool_turns(self) -> bool:
        turns = [Message("user", _USER), Message("assistant", _ANSWER), Message("tool", _TOOL)]
        return self._shows(turns, _TOOL)

    @cached_property
    def _shows_tools(self) -> bool:
        schema = {"type": "function", "function": {"name": _TOOL, "description": _TOOL, "parameters": _NO_PARAMETERS}}
        try:
            return _TOOL in self._apply([self._turn(Message("user", _USER))], generate=True, tools=[schema])
        except DataError:
            return False

    @cached_property
    def _shows_reasoning(self) -> bool:
        fields = json.dumps({"reasoning_content": _THOUGHT})
        return self._shows([Message("user", _USER), Message("assistant", _ANSWER, fields=fields)], _THOUGHT)

    @cached_property
    def _calls_as(self) -> str:
        """How the template takes the arguments of a call: "object", "text", or "" where it does not show calls."""
        for form in ("object", "text"):
            arguments: object = {_THOUGHT: 1} if form == "object" else json.dumps({_THOUGHT: 1})
            call = {"type": "function", "id": "call00000", "function": {"name": _TOOL, "arguments": arguments}}
            turn = {"role": "assistant", "content": self._content(""), "tool_calls": [call]}
            try:
                rendered = self._apply([self._turn(Message("user", _USER)), turn], generate=False)
            except DataError:
                continue
            if _TOOL in rendered and _THOUGHT in rendered:
                return form
        return ""

    def _shows(self, turns: Sequence[Message], word: str) -> bool:
        try:
            return word in self._apply([self._turn(turn, trial=True) for turn in turns], generate=False)
        except DataError:
            return False

    # Rendering.

    def render(self, example: Example, contents: Sequence[str], *, reasons: bool, answered: bool = True) -> Rendering:
        """Render an example.

        Args:
            example: the conversation.
            contents: the text of each of its messages, a user's in the task's template.
            reasons: whether the task's answers carry their own reasoning, so that the prompt does not open with an
                empty one.
            answered: whether the answer is rendered too.

        Raises:
            DataError: the template refuses the conversation.
            ModelError: the template takes more steps or memory than the conversation needs.
        """
        tools = self._tools(example.tools)
        options = self._options(example.template_kwargs)
        messages = self._prepared(example, contents, with_tools=bool(tools))
        turns = [self._turn(message) for message in messages]
        shift = len(example.messages) - len(messages)
        before = self._apply(turns, generate=True, tools=tools, options=options)
        prefix = "" if reasons else self.prefix
        if prefix and before.endswith(prefix):  # the row's own variables made the template open with it already
            prefix = ""
        spans, unlearnt = list[tuple[int, int]](), list[int]()
        for index, message in enumerate(messages):
            if answered and message.labelled:
                span = self._span(turns, index, before, prefix, tools, options)
                spans += [span] if span else []
                unlearnt += [] if span else [index + shift]
        if not answered:
            return Rendering(before + prefix, "", ended=True)
        turn = self._answer_turn(example)
        whole = self._apply([*turns, turn], generate=False, tools=tools, options=options)
        if whole.startswith(before):
            answer, ended = self._ending(whole[len(before) :])
        else:  # such as a template that leaves out reasoning and opens with it in prompts
            text = self.control.hide(reasoned_answer(example))
            overlap = _overlap(before, text)
            if not overlap:
                question = self._hide(contents[-1]).strip() if contents else ""
                opening = before.rpartition(question)[2] if question else before
                self._tell(
                    "The chat template does not write an answer after the prompt that it makes for one; answers are "
                    f"put after its {self.control.show(opening)[-60:]!r} as they are."
                )
            answer, ended = text[overlap:] + self._mark, bool(self._closing)
        return Rendering(before + prefix, answer.removeprefix(prefix), ended, tuple(spans), tuple(unlearnt))

    def _span(
        self,
        turns: list[dict[str, object]],
        index: int,
        before: str,
        prefix: str,
        tools: list[object] | None,
        options: Mapping[str, object],
    ) -> tuple[int, int] | None:
        """Return where a turn before the answer stands in the prompt, with its end; None if it is written otherwise."""
        start = self._apply(turns[:index], generate=True, tools=tools, options=options)
        through = self._apply(turns[: index + 1], generate=False, tools=tools, options=options)
        if not through.startswith(start):
            return None
        text = self._ending(through[len(start) :])[0]
        if prefix and text.startswith(prefix):
            start, text = start + prefix, text.removeprefix(prefix)
        return (len(start), len(start) + len(text)) if before.startswith(start + text) else None

    def _ending(self, text: str) -> tuple[str, bool]:
        """Cut what follows the end of a turn, and tell whether there is such an end."""
        if self._closing and self._closing in text:
            return text[: text.index(self._closing) + len(self._closing)], True
        text = text.rstrip()
        other = next((token for token in self._stop_texts if text.endswith(token)), "")
        return text, bool(other)

    @cached_property
    def _stop_texts(self) -> list[str]:
        return [str(self._tokenizer.convert_ids_to_tokens(stop)) for stop in self.ends.stops]

    def _prepared(self, example: Example, contents: Sequence[str], *, with_tools: bool) -> list[Message]:
        """Return the messages with their contents, in roles that the template takes."""
        messages = [
            Message(message.role, content, message.labelled, message.fields)
            for message, content in zip(example.messages, contents, strict=True)
        ]
        if example.tools and not with_tools:
            self._tell("The chat template shows no tools; they are written into the system message.")
            system = messages.pop(0).content if messages and messages[0].role == "system" else ""
            messages.insert(0, Message("system", "\n\n".join(part for part in (system, example.tools) if part)))
        if messages and messages[0].role == "system" and not self._shows_system:
            self._tell("The chat template takes no system message; it is put before the first user message.")
            system, messages = messages[0].content, messages[1:]
            first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
            if first is None:
                messages.insert(0, Message("user", system))
            else:
                messages[first] = Message("user", f"{system}\n\n{messages[first].content}")
        if any(message.role == "tool" for message in messages) and not self._shows_tool_turns:
            self._tell("The chat template takes no tool turns; they are written as user turns.")
            messages = [Message("user", m.content) if m.role == "tool" else m for m in messages]
        return messages

    def _turn(self, message: Message, *, trial: bool = False) -> dict[str, object]:
        """Return a turn as the template takes it; in a trial also with what it may not show."""
        fields = read_fields(self._hide(message.fields))
        content = self._hide(message.content)
        return self._as_shown(message.role, content, fields, keep=trial)

    def _answer_turn(self, example: Example) -> dict[str, object]:
        if not example.answer_fields:
            return self._turn(Message("assistant", example.answer))
        fields = read_fields(self._hide(example.answer_fields))
        return self._as_shown("assistant", fields.get("content", ""), fields)

    def _as_shown(self, role: str, content: str, fields: TurnFields, *, keep: bool = False) -> dict[str, object]:
        """Return a turn with its fields; those that the template does not show are written into the content."""
        shown: dict[str, object] = {key: value for key, value in fields.items() if key != "content"}
        thought, calls = fields.get("reasoning_content", ""), fields.get("tool_calls", [])
        if thought and not keep and not self._shows_reasoning:
            self._tell("The chat template shows no reasoning; it is written before the text as <think>...</think>.")
            content = with_thought(thought, content)
            del shown["reasoning_content"]
        if calls and not keep and self._calls_as == "":
            self._tell("The chat template shows no tool calls; they are written as <tool_call>...</tool_call>.")
            content = with_calls(content, calls)
            del shown["tool_calls"]
        elif calls and not keep and self._calls_as == "text":
            shown["tool_calls"] = [_with_text_arguments(call) for call in calls]
        return {"role": role, "content": self._content(content), **shown}

    def _content(self, text: str) -> object:
        return [{"type": "text", "text": text}] if self._as_parts else text

    def _hide(self, text: str) -> str:
        control = getattr(self, "control", None)  # there is none yet in the trial that finds it
        return control.hide(text) if control is not None else text

    def _tools(self, tools: str) -> list[object] | None:
        return json.loads(self._hide(tools)) if tools and self._shows_tools else None

    def _options(self, template_kwargs: str) -> dict[str, object]:
        options: dict[str, object] = json.loads(self._hide(template_kwargs)) if template_kwargs else {}
        for name in options:
            if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
                raise DataError(
                    f'chat_template_kwargs: "{name}" is not a variable of a chat template', remedy="leave it out"
                )
        return options

    def _tell(self, sentence: str) -> None:
        self.told[sentence] = None

    def _apply(
        self,
        turns: Sequence[Mapping[str, object]],
        *,
        generate: bool,
        tools: list[object] | None = None,
        options: Mapping[str, object] = {},
    ) -> str:
        return render(self._tokenizer, turns, tools=tools, generate=generate, options=options)


_NO_PARAMETERS = {"type": "object", "properties": {}}


def plain_text(message: Message) -> str:
    """Return a message as text for a model without a chat template: its reasoning, its content and its calls."""
    fields = read_fields(message.fields)
    return with_thought(fields.get("reasoning_content", ""), answer_of(message))


def answer_of(message: Message) -> str:
    """Return what a turn says as an answer: its content and its calls, without its reasoning."""
    return with_calls(message.content, read_fields(message.fields).get("tool_calls", []))


def reasoned_answer(example: Example) -> str:
    """Return the text of an answer with its reasoning before it."""
    return with_thought(read_fields(example.answer_fields).get("reasoning_content", ""), example.answer)


def with_thought(thought: str, text: str) -> str:
    """Return a text with the reasoning that leads to it, if there is any, before it."""
    return f"<think>\n{thought}\n{THOUGHT_END}\n\n{text}" if thought else text


def final_answer(text: str) -> str:
    """Return what an answer says after its reasoning; all of it where it has none."""
    return text.rpartition(THOUGHT_END)[2].strip()


def _with_text_arguments(call: Call) -> Call:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {"name": function["name"], "arguments": text}}


def _overlap(before: str, text: str) -> int:
    """Return how many characters of the text's beginning the prompt has written already, from its last line on."""
    sizes = (size for size in range(min(len(before), len(text), 64), 0, -1) if before.endswith(text[:size]))
    size = next(sizes, 0)
    return size if text[:size].strip() else 0
