"""Examples to token sequences.

A prompt is rendered by the tokenizer's own chat template where it has one, else by a plain template. Only answer
tokens are labelled. A user's text never becomes a control token. What exceeds the window is cut as `fit_window`
says, and every cut sequence is marked, so that it can be counted and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message, Task
from tunewise.engine.model import Base

_CHAT_CLASSIFY = "{prompt}\n\nAnswer with one of: {labels}."
_PLAIN = {"classification": "{prompt}\nLabel:", "question-answer": "Question: {prompt}\nAnswer:"}
_PLAIN_TALK = "User: {prompt}\nAssistant:"
TURN = "\n\n"


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of one example; `labelled[i]` says whether token i is to be predicted; `prompt` tokens come first."""

    ids: list[int]
    labelled: list[bool]
    prompt: int
    cut: bool = False


class Encoder:
    """Turns the examples of one task into sequences for one base.

    `limit` is the largest number of real tokens of a sequence. Placeholders, whose ids lie beyond the vocabulary, take
    their share of the base's window: `virtual_tokens` before the prompt, `virtual_suffix` between prompt and answer.
    """

    def __init__(self, base: Base, task: Task, virtual_tokens: int = 0, virtual_suffix: int = 0) -> None:
        self.tokenizer: PreTrainedTokenizerBase = base.tokenizer
        self.chat = bool(base.tokenizer.chat_template)
        self.labels = task.labels
        self.limit = base.window - virtual_tokens - virtual_suffix
        first = base.anatomy.vocabulary
        self.placeholders = list(range(first, first + virtual_tokens))
        self.suffix = list(range(first + virtual_tokens, first + virtual_tokens + virtual_suffix))
        self.template = task.template or self._default_template(task)
        if self.limit < 8:
            raise DataError(f"the window of {self.limit} tokens leaves no room for examples", remedy="use --max-length")
        own = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bos, self.eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.start = [bos] if bos is not None and own[:1] == [bos] else []

    def _default_template(self, task: Task) -> str:
        if self.chat:
            return _CHAT_CLASSIFY if task.kind == "classification" else "{prompt}"
        talk = task.format in ("messages", "sharegpt", "alpaca")
        return _PLAIN.get(task.kind) or _PLAIN.get(task.format) or (_PLAIN_TALK if talk else "{prompt}\n")

    def fill(self, content: str) -> str:
        """A user's message in the template."""
        return self.template.replace("{labels}", ", ".join(self.labels)).replace("{prompt}", content)

    def text(self, example: Example) -> tuple[str, str]:
        """The rendered (prompt, answer), as text, for people to look at."""
        before, after, _ = self._render(example.messages, example.answer)
        return before, after

    def encode(self, examples: Sequence[Example]) -> list[TokenSequence]:
        """Sequences of whole examples, cut to the window."""
        rendered = [self._render(example.messages, example.answer) for example in examples]
        prompts = self._tokens([before for before, _, _ in rendered])
        wholes = self._tokens([before + after for before, after, _ in rendered])
        sequences = []
        for example, (before, after, spans), prompt, whole in zip(examples, rendered, prompts, wholes, strict=True):
            if self.chat and self._hostile(example):
                prompt, answer = self._guarded(example)
            else:
                answer = self._continuation(prompt, whole, after)
            marks = self._marks(before, spans, len(prompt))
            sequences.append(self._fit(prompt, marks, answer if self.chat else self._ended(answer)))
        return sequences

    def answers(self, prompt: Example, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of several answers to one prompt, each with its end mark."""
        before = self._render(prompt.messages, "")[0]
        own = self._tokens([before])[0]
        afters = [self._render(prompt.messages, answer)[1] for answer in answers]
        wholes = self._tokens([before + after for after in afters])
        found = [self._continuation(own, whole, after) for whole, after in zip(wholes, afters, strict=True)]
        return found if self.chat else [self._ended(answer) for answer in found]

    def prompts(self, examples: Sequence[Example], room: int) -> list[TokenSequence]:
        """Sequences of prompts alone, cut so that `room` tokens can follow."""
        empty = [Example(example.messages, "") for example in examples]
        found = []
        for example, ids in zip(examples, self._tokens([self._render(e.messages, "")[0] for e in empty]), strict=True):
            if self.chat and self._hostile(example):
                ids = self._guarded(Example(example.messages, ""))[0]
            kept = self._keep_end(ids, max(self.limit - room, 1))
            whole = self.placeholders + kept + self.suffix
            found.append(TokenSequence(whole, [False] * len(whole), len(whole), len(kept) < len(ids)))
        return found

    def decode(self, ids: list[int], stop: str | None = None) -> str:
        """The text of generated ids up to `stop`, without control tokens."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(stop)[0] if stop else text).strip()

    # Rendering.

    def _render(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        """(prompt text, answer text, spans of the prompt text that are labelled)."""
        return self._render_chat(messages, answer) if self.chat else self._render_plain(messages, answer)

    def _render_plain(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        text, spans = "", []
        for message in messages:
            if message.role == "assistant":
                start = len(text)
                text += _join(text, message.content) + message.content
                spans += [(start, len(text))] if message.labelled else []
            else:
                text += TURN if text else ""
                text += self.fill(message.content) if message.role == "user" else message.content
        return text, (_join(text, answer) + answer) if answer else "", spans

    def _render_chat(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        talk = [{"role": m.role, "content": self.fill(m.content) if m.role == "user" else m.content} for m in messages]
        before = self._apply(talk, generate=True)
        spans = []
        for index, message in enumerate(messages):
            if message.labelled:
                start, end = (
                    self._apply(talk[:index], generate=True),
                    self._apply(talk[: index + 1], generate=False),
                )
                if before.startswith(start) and before.startswith(end):
                    spans.append((len(start), len(end)))
        whole = self._apply([*talk, {"role": "assistant", "content": answer}], generate=False)
        end_mark = self.tokenizer.eos_token or ""
        after = whole[len(before) :] if whole.startswith(before) else answer + end_mark
        if end_mark and end_mark in after:
            after = after[: after.rindex(end_mark) + len(end_mark)]
        return before, after, spans

    def _apply(self, talk: list[dict[str, str]], *, generate: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=generate))
        except Exception as error:  # the template is the model's own code and raises what it likes
            raise DataError(
                f"the model's chat template refuses a conversation: {' '.join(str(error).split())}",
                remedy="check the roles and their order",
            ) from error

    # Tokens.

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Ids of rendered texts; in the plain form nothing in them is read as a control token."""
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=not self.chat)["input_ids"]
        return [self.start + ids for ids in found] if not self.chat else list(found)

    def _continuation(self, prompt: list[int], whole: list[int], after: str) -> list[int]:
        """The answer's ids as they follow the prompt, or alone where a merge would cross the boundary."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return list(self.tokenizer(after, add_special_tokens=False, split_special_tokens=not self.chat)["input_ids"])

    def _ended(self, answer: list[int]) -> list[int]:
        return answer + ([self.eos] if self.eos is not None else [])

    def _hostile(self, example: Example) -> bool:
        """Whether a text of this example spells a control token."""
        texts = [message.content for message in example.messages] + [example.answer]
        return any(token in text for token in self.tokenizer.all_special_tokens for text in texts)

    def _guarded(self, example: Example) -> tuple[list[int], list[int]]:
        """Ids with every text tokenised apart from the chat template, so that it cannot spell a control token."""
        texts = [self.fill(m.content) if m.role == "user" else m.content for m in example.messages]
        marks = [f"\ue000{index}\ue001" for index in range(len(texts) + 1)]
        talk = [{"role": m.role, "content": mark} for m, mark in zip(example.messages, marks, strict=False)]
        before = self._apply(talk, generate=True)
        whole = self._apply([*talk, {"role": "assistant", "content": marks[-1]}], generate=False)
        after = whole[len(before) :] if whole.startswith(before) else marks[-1] + (self.tokenizer.eos_token or "")
        return self._spliced(before, marks, [*texts, example.answer]), self._spliced(
            after.rstrip("\n"), marks, [*texts, example.answer]
        )

    def _spliced(self, rendered: str, marks: list[str], texts: list[str]) -> list[int]:
        ids: list[int] = []
        for mark, text in zip(marks, texts, strict=True):
            frame, found, rest = rendered.partition(mark)
            if found:
                ids += self.tokenizer(frame, add_special_tokens=False)["input_ids"]
                ids += self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                rendered = rest
        return ids + list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _marks(self, before: str, spans: list[tuple[int, int]], length: int) -> list[bool]:
        if not spans:
            return [False] * length
        offsets = self.tokenizer(
            before, add_special_tokens=False, split_special_tokens=not self.chat, return_offsets_mapping=True
        )["offset_mapping"]
        marks = [any(a <= start and end <= b and start < end for a, b in spans) for start, end in offsets]
        return [False] * (length - len(marks)) + marks[:length]

    def _fit(self, prompt: list[int], marks: list[bool], answer: list[int]) -> TokenSequence:
        kept, tail = fit_window(len(prompt), len(answer), self.limit)
        ids = self._keep_end(prompt, kept)
        labels = ([False] * kept + marks)[-kept:] if kept else []
        cut = kept < len(prompt) or tail < len(answer)
        head, foot = len(self.placeholders), len(self.suffix)
        return TokenSequence(
            self.placeholders + ids + self.suffix + answer[:tail],
            [False] * head + labels + [False] * foot + [True] * tail,
            head + len(ids) + foot,
            cut,
        )

    def _keep_end(self, ids: list[int], count: int) -> list[int]:
        """The last `count` ids, the start mark kept."""
        if len(ids) <= count:
            return ids
        head = len(self.start) if count > len(self.start) else 0
        return ids[:head] + ids[len(ids) - count + head :]


def fit_window(prompt: int, answer: int, limit: int) -> tuple[int, int]:
    """How many tokens of prompt (its end) and answer (its beginning) are kept in `limit` tokens.

    The prompt gives way first, down to half of the window; then the answer loses its end.
    """
    if prompt + answer <= limit:
        return prompt, answer
    kept = min(prompt, max(limit - answer, limit // 2))
    return kept, min(answer, limit - kept)


def _join(before: str, after: str) -> str:
    """A space between prompt and answer unless one of them brings white space."""
    return "" if not before or before[-1].isspace() or after[:1].isspace() else " "
