"""OpenAI's requests, as far as they are supported; an unknown field is refused.

A field that would change the answer and is not supported is refused rather than ignored. One that changes no answer
(a user's name) is accepted and not used.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, model_validator

STOPS = 4  # stop texts of a request at most
CHOICES = 16  # answers to one prompt at most
ALTERNATIVES = 20  # log-probabilities of other tokens per token at most

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class ContentPart(BaseModel):
    """A part of a message's content; only text is supported."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """Return the content as one text, its parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


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

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128)]
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
