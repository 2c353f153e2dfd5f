"""OpenAI's requests, as far as they are supported; an unknown field is refused.

A field that would change the answer and is not supported is refused rather than ignored. One that changes no answer
(a user's name) is accepted and not used.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

STOPS = 4  # stop texts of a request at most
CHOICES = 16  # answers to one prompt at most
TOOLS = 128  # tools of a request, and calls of a turn, at most
ALTERNATIVES = 20  # log-probabilities of other tokens per token at most


def _encodable(text: str) -> str:
    """Refuse halves of surrogate pairs, which JSON can spell and no tokenizer can read."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds half of a surrogate pair") from None
    return text


Content = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[Content, Field(min_length=1, max_length=256)]


class ContentPart(BaseModel):
    """A part of a message's content; only text is supported."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Content


class CalledFunction(BaseModel):
    """What an assistant's turn calls; `arguments` is the JSON text of an object."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = "{}"

    @model_validator(mode="after")
    def _check_arguments(self) -> CalledFunction:
        try:
            is_object = isinstance(json.loads(_encodable(self.arguments)), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ValueError("arguments is not the JSON text of an object")
        return self


class ToolCall(BaseModel):
    """A call in an assistant's turn."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionSchema(BaseModel):
    """What a tool is called, what it does, and its parameters as a JSON schema."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: Literal[False] | None = None


class Tool(BaseModel):
    """A tool that an answer may call."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: FunctionSchema


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | list[ContentPart] | None = None
    name: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Turn:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if self.content is None and self.tool_calls is None:
            raise ValueError("the message has no content")
        return self

    @property
    def text(self) -> str:
        """Return the content as one text, its parts joined; "" where there is none."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)

    @property
    def fields(self) -> str:
        """Return what else a chat template may read of the turn, as `Message.fields` holds it."""
        fields: dict[str, object] = {}
        if self.tool_calls is not None:
            fields["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        if self.name is not None and self.role == "tool":
            fields["name"] = self.name
        return json.dumps(fields, ensure_ascii=False) if fields else ""


class StreamOptions(BaseModel):
    """What a stream contains besides the answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(BaseModel):
    """The fields that chat requests and plain completion requests share."""

    model_config = ConfigDict(extra="forbid")
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    return_passages: bool = False  # not OpenAI's: with the sources of an answer, what its prompt quotes of them

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Tell whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(CompletionRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=2048)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=ALTERNATIVES)
    tools: Annotated[list[Tool], Field(max_length=TOOLS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None

    @property
    def offered(self) -> str:
        """Return the tools that the answer may call, as a JSON list; "" where it may call none."""
        if not self.tools or self.tool_choice == "none":
            return ""
        return json.dumps([tool.model_dump(exclude_none=True) for tool in self.tools], ensure_ascii=False)

    @property
    def template_kwargs(self) -> str:
        """Return the variables of the chat template, as a JSON object; "" where there are none."""
        return json.dumps(self.chat_template_kwargs) if self.chat_template_kwargs else ""

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is an assistant's; end with a user's")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def room(self) -> int | None:
        """Return the largest number of tokens of an answer; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Return how many alternatives are listed with each token; None: no log-probabilities at all."""
        return self.top_logprobs if self.logprobs else None


class TextRequest(CompletionRequest):
    """The body of POST /v1/completions."""

    prompt: Content | Annotated[list[Content], Field(min_length=1, max_length=128)]
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def prompts(self) -> list[str]:
        """Return the texts to continue."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def room(self) -> int:
        """Return the largest number of tokens of an answer; OpenAI's default is 16."""
        return self.max_tokens or 16

    @property
    def alternatives(self) -> int | None:
        """Return how many alternatives are listed with each token; None: no log-probabilities at all."""
        return self.logprobs


class Usage(TypedDict):
    """The numbers of tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(TypedDict):
    """OpenAI's form of an error."""

    error: _Error


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Build the `usage` of a response."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> ErrorResponse:
    """Build the body of a response that is an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: object) -> str:
    """Write a value as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
