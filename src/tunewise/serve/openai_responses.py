"""Answers as OpenAI's responses: whole, or as a stream of chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NotRequired, TypedDict

from tunewise.contract.attachment import CitedText
from tunewise.engine.decoding import Token
from tunewise.fitting.structured_answers import Call, calls_of, text_before_calls
from tunewise.serve.openai_schema import Usage, usage


class _Function(TypedDict):
    name: str
    arguments: str


class _ToolCall(TypedDict):
    index: NotRequired[int]
    id: str
    type: str
    function: _Function


class _Message(TypedDict, total=False):
    """The message of a chat's choice; a chunk's delta holds a part of it."""

    role: str
    content: str | None
    refusal: None
    tool_calls: list[_ToolCall]


class _Content(TypedDict, total=False):
    """What a choice says: `message` of a whole chat answer, `delta` of a chunk, `text` of a plain completion.

    `sources` are the documents that the technique cites, and `passages` what it quotes of each.
    """

    message: _Message
    delta: _Message
    text: str
    sources: list[str]
    passages: list[str]


class _TokenLogprob(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int]


class _ChatTokenLogprob(_TokenLogprob):
    top_logprobs: list[_TokenLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's tokens."""

    content: list[_ChatTokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log-probabilities of a plain completion's tokens, one list per property."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ResponseChoice(_Content):
    """One of a response's answers, or a chunk's part of it."""

    index: int
    finish_reason: str | None
    logprobs: ChatLogprobs | TextLogprobs | None


class CompletionResponse(TypedDict):
    """A response, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ResponseChoice]
    usage: NotRequired[Usage]


@dataclass
class Choice:
    """One answer as far as it has been generated."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    citations: list[CitedText] = field(default_factory=list)


def _number(value: object) -> int | float:
    """Return a decimal of a call's arguments as JSON writes it."""
    if not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is not a JSON value")
    return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)


class Form:
    """The form of one request's responses: that of chats, or of plain completions."""

    def __init__(
        self, chat: bool, model: str, spell: Callable[[int], str], *, calls: bool = False, passages: bool = False
    ) -> None:
        """Begin the responses to one request.

        Args:
            chat: whether it is a chat, or else a plain completion.
            model: the adaptation that answers.
            spell: decodes one token.
            calls: whether tools were offered, which an answer may call.
            passages: whether the passages that the prompt quotes are returned with their sources.
        """
        self.chat, self.model, self.spell, self.calls, self.passages = chat, model, spell, calls, passages
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, choices: list[Choice], answers_per_prompt: int, logprobs: bool) -> CompletionResponse:
        """Build the response of a request that is not streamed.

        Args:
            choices: the complete answers, those to one prompt side by side.
            answers_per_prompt: the number of answers to each prompt; a prompt's tokens are counted once.
            logprobs: whether log-probabilities are included.
        """
        response = self._response("chat.completion", [])
        for index, choice in enumerate(choices):
            content: _Content = {"text": choice.text}
            if self.chat:
                content = {"message": {"role": "assistant", "refusal": None, **self._said(choice)}}
            token_logprobs = self.logprobs(choice.tokens, 0) if logprobs else None
            content |= self._cited(choice)
            response["choices"].append(_choice(index, content, self._reason(choice), token_logprobs))
        response["usage"] = self.usage(choices, answers_per_prompt)
        return response

    def usage(self, choices: list[Choice], answers_per_prompt: int) -> Usage:
        """Count the tokens; those of a prompt with `answers_per_prompt` answers once."""
        return usage(
            sum(choice.prompt_tokens for choice in choices[::answers_per_prompt]),
            sum(c.completion_tokens for c in choices),
        )

    def first(self, index: int, choice: Choice) -> CompletionResponse:
        """Build the chunk that opens an answer, with the sources that it cites."""
        content: _Content = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}
        return self._chunk(_choice(index, content | self._cited(choice)))

    def piece(self, index: int, text: str, logprobs: ChatLogprobs | TextLogprobs | None) -> CompletionResponse:
        """Build a chunk with more text of an answer."""
        content: _Content = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk(_choice(index, content, logprobs=logprobs))

    def last(self, index: int, choice: Choice) -> list[CompletionResponse]:
        """Build the chunk that says why an answer ended, after all of the answer where it was held back."""
        content: _Content = {"delta": {}} if self.chat else {"text": ""}
        chunks = [self._chunk(_choice(index, {"delta": self._said(choice, streamed=True)}))] if self.calls else []
        return [*chunks, self._chunk(_choice(index, content, self._reason(choice)))]

    def _cited(self, choice: Choice) -> _Content:
        """Return the sources of what the prompt quotes, and the passages where they are asked for."""
        if not choice.citations:
            return {}
        cited: _Content = {"sources": [each.source for each in choice.citations]}
        if self.passages:
            cited["passages"] = [each.text for each in choice.citations]
        return cited

    def _tool_calls(self, choice: Choice) -> list[Call]:
        """Return the calls that an answer makes; none where no tools were offered or it cannot be read as calls."""
        return (calls_of(choice.text) or []) if self.calls else []

    def _reason(self, choice: Choice) -> str | None:
        return "tool_calls" if choice.reason == "stop" and self._tool_calls(choice) else choice.reason

    def _said(self, choice: Choice, *, streamed: bool = False) -> _Message:
        """Return the text and the calls of an answer."""
        calls = self._tool_calls(choice)
        if not calls:
            return {"content": choice.text}
        written: list[_ToolCall] = []
        for place, call in enumerate(calls):
            arguments = json.dumps(call.arguments, ensure_ascii=False, default=_number)
            entry: _ToolCall = {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": arguments},
            }
            written.append({"index": place, **entry} if streamed else entry)
        return {"content": text_before_calls(choice.text) or None, "tool_calls": written}

    def numbers(self, choices: list[Choice], answers_per_prompt: int) -> CompletionResponse:
        """Build the chunk with the numbers of tokens, which ends a stream."""
        response = self._response("chat.completion.chunk", [])
        response["usage"] = self.usage(choices, answers_per_prompt)
        return response

    def logprobs(self, tokens: list[Token], offset: int) -> ChatLogprobs | TextLogprobs:
        """Spell out log-probabilities of tokens, before which the answer has `offset` characters."""
        if self.chat:
            return {"content": [self._chat_logprob(token) for token in tokens], "refusal": None}
        texts = [self.spell(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.spell(i): value for i, value in token.top} for token in tokens],
            "text_offset": [offset + sum(map(len, texts[:position])) for position in range(len(texts))],
        }

    def _chat_logprob(self, token: Token) -> _ChatTokenLogprob:
        alternatives = [self._token_logprob(i, value) for i, value in token.top]
        return {**self._token_logprob(token.id, token.logprob), "top_logprobs": alternatives}

    def _token_logprob(self, token: int, logprob: float | None) -> _TokenLogprob:
        text = self.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _chunk(self, choice: ResponseChoice) -> CompletionResponse:
        return self._response("chat.completion.chunk", [choice])

    def _response(self, chat_object: str, choices: list[ResponseChoice]) -> CompletionResponse:
        """Build a response; a plain completion and its chunks have one name, chats are called `chat_object`."""
        return {
            "id": self.id,
            "object": chat_object if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def _choice(
    index: int,
    content: _Content,
    finish_reason: str | None = None,
    logprobs: ChatLogprobs | TextLogprobs | None = None,
) -> ResponseChoice:
    return {"index": index, **content, "finish_reason": finish_reason, "logprobs": logprobs}
