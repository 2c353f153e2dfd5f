"""Answers in the making as OpenAI's responses: whole, or as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunewise.serve.decoding import Token
from tunewise.serve.openai_schema import usage


@dataclass
class Choice:
    """What is known of one answer."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sources: list[str] = field(default_factory=list)


class Form:
    """How a response looks: of chat or of plain completions."""

    def __init__(self, chat: bool, model: str, spell: Callable[[int], str]) -> None:
        self.chat, self.model, self.spell = chat, model, spell
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, choices: list[Choice], each: int, logprobs: bool) -> dict[str, Any]:
        """The response; `each` choices belong to one prompt, whose tokens count once."""
        found = []
        for index, choice in enumerate(choices):
            said = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            found.append(
                {
                    "index": index,
                    **(said if self.chat else {"text": choice.text}),
                    "finish_reason": choice.reason,
                    "logprobs": self.logprobs(choice.tokens, 0) if logprobs else None,
                    **({"sources": choice.sources} if choice.sources else {}),
                }
            )
        return {**self._head(chunk=False), "choices": found, "usage": self.usage(choices, each)}

    def usage(self, choices: list[Choice], each: int) -> dict[str, int]:
        """The numbers of tokens; those of a prompt with several answers once."""
        return usage(sum(choice.prompt_tokens for choice in choices[::each]), sum(c.completion_tokens for c in choices))

    def first(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk that opens an answer, with what it cites."""
        said = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}
        cited = {"sources": choice.sources} if choice.sources else {}
        return self._chunk({"index": index, **said, "finish_reason": None, "logprobs": None, **cited})

    def piece(self, index: int, text: str, told: dict[str, Any] | None) -> dict[str, Any]:
        """A chunk with more of the answer."""
        said = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk({"index": index, **said, "finish_reason": None, "logprobs": told})

    def last(self, index: int, reason: str) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk({"index": index, **said, "finish_reason": reason, "logprobs": None})

    def numbers(self, choices: list[Choice], each: int) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        return {**self._head(chunk=True), "choices": [], "usage": self.usage(choices, each)}

    def logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any]:
        """Log-probabilities of the tokens; `offset` counts the characters of the answer before them."""
        if self.chat:
            return {"content": [self._told(token) for token in tokens], "refusal": None}
        spelt = [self.spell(token.id) for token in tokens]
        return {
            "tokens": spelt,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.spell(i): value for i, value in token.top} for token in tokens],
            "text_offset": [offset + sum(map(len, spelt[:place])) for place in range(len(spelt))],
        }

    def _told(self, token: Token) -> dict[str, Any]:
        own = self._spelt(token.id, token.logprob)
        return {**own, "top_logprobs": [self._spelt(i, value) for i, value in token.top]}

    def _spelt(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(chunk=True), "choices": [choice]}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        name = f"chat.completion{'.chunk' if chunk else ''}" if self.chat else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}
