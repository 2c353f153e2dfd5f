"""Renders examples as text and tokenizes the text.

A prompt is rendered by the tokenizer's own chat template where it has one, and by a plain template otherwise. Only
answer tokens are labelled. A user's text never becomes a control token. A sequence that is longer than the window is
truncated as `fit_window` says, and marked as `truncated`, so that truncated examples can be counted and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message, Task
from tunewise.engine.model import Base

_CHAT_CLASSIFICATION = "{prompt}\n\nAnswer with one of: {labels}."
_PLAIN_TEMPLATES = {"classification": "{prompt}\nLabel:", "question-answer": "Question: {prompt}\nAnswer:"}
_PLAIN_CONVERSATION = "User: {prompt}\nAssistant:"
TURN = "\n\n"  # between the turns of a plain conversation


@dataclass(frozen=True)
class TokenSequence:
    """Holds the token ids of one example.

    `labelled[i]` says whether token i is a target of the loss. The first `prompt` tokens are the prompt. `truncated`
    says whether the example was shortened to fit the window.
    """

    ids: list[int]
    labelled: list[bool]
    prompt: int
    truncated: bool = False


class Encoder:
    """Turns the examples of one task into token sequences for one base.

    `limit` is the largest number of real tokens in a sequence. The placeholders of virtual tokens have ids beyond the
    vocabulary and take up part of the base's window: `virtual_tokens` of them stand before the prompt and
    `virtual_suffix` between prompt and answer.
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
        with_special = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bos, self.eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.start = [bos] if bos is not None and with_special[:1] == [bos] else []

    def _default_template(self, task: Task) -> str:
        if self.chat:
            return _CHAT_CLASSIFICATION if task.kind == "classification" else "{prompt}"
        conversation = task.format in ("messages", "sharegpt", "alpaca")
        fallback = _PLAIN_CONVERSATION if conversation else "{prompt}\n"
        return _PLAIN_TEMPLATES.get(task.kind) or _PLAIN_TEMPLATES.get(task.format) or fallback

    def fill(self, content: str) -> str:
        """Put a user's message into the template."""
        return self.template.replace("{labels}", ", ".join(self.labels)).replace("{prompt}", content)

    def text(self, example: Example) -> tuple[str, str]:
        """Return the rendered (prompt, answer) as text, for people to look at."""
        prompt, answer, _ = self._render(example.messages, example.answer)
        return prompt, answer

    def encode(self, examples: Sequence[Example]) -> list[TokenSequence]:
        """Tokenize examples with their answers, each truncated to the window."""
        rendered = [self._render(example.messages, example.answer) for example in examples]
        prompts = self._tokenize([before for before, _, _ in rendered])
        wholes = self._tokenize([before + after for before, after, _ in rendered])
        sequences = []
        for example, (before, after, spans), prompt, whole in zip(examples, rendered, prompts, wholes, strict=True):
            if self.chat and self._spells_control_token(example):
                prompt, answer = self._tokenize_apart(example)
            else:
                answer = self._continuation(prompt, whole, after)
            labelled = self._labelled_mask(before, spans, len(prompt))
            sequences.append(self._truncate(prompt, labelled, answer if self.chat else self._with_eos(answer)))
        return sequences

    def answers(self, prompt: Example, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of several answers to one prompt, each with its end-of-sequence token."""
        before = self._render(prompt.messages, "")[0]
        prompt_ids = self._tokenize([before])[0]
        afters = [self._render(prompt.messages, answer)[1] for answer in answers]
        wholes = self._tokenize([before + after for after in afters])
        ids = [self._continuation(prompt_ids, whole, after) for whole, after in zip(wholes, afters, strict=True)]
        return ids if self.chat else [self._with_eos(answer) for answer in ids]

    def prompts(self, examples: Sequence[Example], room: int) -> list[TokenSequence]:
        """Tokenize prompts without answers, each truncated so that `room` tokens can follow."""
        unanswered = [Example(example.messages, "") for example in examples]
        rendered = self._tokenize([self._render(example.messages, "")[0] for example in unanswered])
        sequences = []
        for example, ids in zip(examples, rendered, strict=True):
            if self.chat and self._spells_control_token(example):
                ids = self._tokenize_apart(Example(example.messages, ""))[0]
            truncated = self._truncate_start(ids, max(self.limit - room, 1))
            whole = self.placeholders + truncated + self.suffix
            sequences.append(TokenSequence(whole, [False] * len(whole), len(whole), len(truncated) < len(ids)))
        return sequences

    def decode(self, ids: list[int], stop: str | None = None) -> str:
        """Return the text of generated ids up to `stop`, without control tokens."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(stop)[0] if stop else text).strip()

    # Rendering.

    def _render(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        """Return (prompt text, answer text, spans of the prompt's characters that are labelled)."""
        return self._render_chat(messages, answer) if self.chat else self._render_plain(messages, answer)

    def _render_plain(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        text, spans = "", []
        for message in messages:
            if message.role == "assistant":
                start = len(text)
                text += _separator(text, message.content) + message.content
                spans += [(start, len(text))] if message.labelled else []
            else:
                text += TURN if text else ""
                text += self.fill(message.content) if message.role == "user" else message.content
        return text, (_separator(text, answer) + answer) if answer else "", spans

    def _render_chat(self, messages: tuple[Message, ...], answer: str) -> tuple[str, str, list[tuple[int, int]]]:
        turns = [{"role": m.role, "content": self.fill(m.content) if m.role == "user" else m.content} for m in messages]
        before = self._apply_template(turns, generate=True)
        spans = []
        for index, message in enumerate(messages):
            if message.labelled:
                start, end = (
                    self._apply_template(turns[:index], generate=True),
                    self._apply_template(turns[: index + 1], generate=False),
                )
                if before.startswith(start) and before.startswith(end):
                    spans.append((len(start), len(end)))
        whole = self._apply_template([*turns, {"role": "assistant", "content": answer}], generate=False)
        eos = self.tokenizer.eos_token or ""
        after = whole[len(before) :] if whole.startswith(before) else answer + eos
        if eos and eos in after:  # some templates go on after it, with a line feed for example
            after = after[: after.rindex(eos) + len(eos)]
        return before, after, spans

    def _apply_template(self, turns: list[dict[str, str]], *, generate: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
        except Exception as error:  # the template is the model's own code and may raise anything
            raise DataError(
                f"the model's chat template refuses a conversation: {' '.join(str(error).split())}",
                remedy="check the roles and their order",
            ) from error

    # Tokens.

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenize rendered texts; nothing in a plain text is read as a control token."""
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=not self.chat)["input_ids"]
        return [self.start + row for row in ids] if not self.chat else list(ids)

    def _continuation(self, prompt: list[int], whole: list[int], after: str) -> list[int]:
        """Return the answer's ids as they follow the prompt, or alone where a merge would cross the boundary."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return list(self.tokenizer(after, add_special_tokens=False, split_special_tokens=not self.chat)["input_ids"])

    def _with_eos(self, answer: list[int]) -> list[int]:
        return answer + ([self.eos] if self.eos is not None else [])

    def _spells_control_token(self, example: Example) -> bool:
        texts = [message.content for message in example.messages] + [example.answer]
        return any(token in text for token in self.tokenizer.all_special_tokens for text in texts)

    def _tokenize_apart(self, example: Example) -> tuple[list[int], list[int]]:
        """Return the ids of prompt and answer, each message tokenized by itself so that it spells no control token.

        The chat template is applied to markers (private-use characters), which the messages' ids then replace.
        """
        texts = [self.fill(m.content) if m.role == "user" else m.content for m in example.messages]
        markers = [f"\ue000{index}\ue001" for index in range(len(texts) + 1)]
        turns = [{"role": m.role, "content": marker} for m, marker in zip(example.messages, markers, strict=False)]
        before = self._apply_template(turns, generate=True)
        whole = self._apply_template([*turns, {"role": "assistant", "content": markers[-1]}], generate=False)
        after = whole[len(before) :] if whole.startswith(before) else markers[-1] + (self.tokenizer.eos_token or "")
        return self._replace_markers(before, markers, [*texts, example.answer]), self._replace_markers(
            after.rstrip("\n"), markers, [*texts, example.answer]
        )

    def _replace_markers(self, rendered: str, markers: list[str], texts: list[str]) -> list[int]:
        ids: list[int] = []
        for marker, text in zip(markers, texts, strict=True):
            frame, match, rest = rendered.partition(marker)
            if match:
                ids += self.tokenizer(frame, add_special_tokens=False)["input_ids"]
                ids += self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                rendered = rest
        return ids + list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _labelled_mask(self, before: str, spans: list[tuple[int, int]], length: int) -> list[bool]:
        """Return for each of the prompt's `length` tokens whether it lies within a labelled span of its text."""
        if not spans:
            return [False] * length
        offsets = self.tokenizer(
            before, add_special_tokens=False, split_special_tokens=not self.chat, return_offsets_mapping=True
        )["offset_mapping"]
        mask = [any(a <= start and end <= b and start < end for a, b in spans) for start, end in offsets]
        return [False] * (length - len(mask)) + mask[:length]

    def _truncate(self, prompt: list[int], labelled: list[bool], answer: list[int]) -> TokenSequence:
        prompt_size, answer_size = fit_window(len(prompt), len(answer), self.limit)
        ids = self._truncate_start(prompt, prompt_size)
        prompt_labels = ([False] * prompt_size + labelled)[-prompt_size:] if prompt_size else []
        truncated = prompt_size < len(prompt) or answer_size < len(answer)
        before, after = len(self.placeholders), len(self.suffix)
        return TokenSequence(
            self.placeholders + ids + self.suffix + answer[:answer_size],
            [False] * before + prompt_labels + [False] * after + [True] * answer_size,
            before + len(ids) + after,
            truncated,
        )

    def _truncate_start(self, ids: list[int], count: int) -> list[int]:
        """Return the last `count` ids; the beginning-of-sequence token stays and counts as one of them."""
        if len(ids) <= count:
            return ids
        head = len(self.start) if count > len(self.start) else 0
        return ids[:head] + ids[len(ids) - count + head :]


def fit_window(prompt: int, answer: int, limit: int) -> tuple[int, int]:
    """Return how many tokens of a prompt and of its answer fit into `limit` tokens.

    The prompt is truncated at its start first, down to half of the window; then the answer is truncated at its end.
    """
    if prompt + answer <= limit:
        return prompt, answer
    prompt_size = min(prompt, max(limit - answer, limit // 2))
    return prompt_size, min(answer, limit - prompt_size)


def _separator(before: str, after: str) -> str:
    """Return a space, or nothing where the text before or after brings white space itself."""
    return "" if not before or before[-1].isspace() or after[:1].isspace() else " "
