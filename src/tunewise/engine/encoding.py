"""Renders examples as text and tokenizes the text.

A prompt is rendered by the tokenizer's own chat template where it has one, and by a plain template otherwise. Only
answer tokens are labelled. A user's text never becomes a control token. A sequence that is longer than the window is
truncated as `fit_window` says, and marked as `truncated`, so that truncated examples can be counted and reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from tunewise.core.errors import DataError
from tunewise.core.text import show
from tunewise.data.task import Example, Message, Task
from tunewise.data.tool_calls import read_fields
from tunewise.engine.configuration import TextModel
from tunewise.engine.conversation import ChatTemplate, Ends, Rendering, answer_of, plain_text, reasoned_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LABEL_LIST = "\n\nAnswer with one of: {labels}."
_PLAIN_TEMPLATES = {"classification": "{prompt}\nLabel:", "question-answer": "Question: {prompt}\nAnswer:"}
_PLAIN_CONVERSATION = "User: {prompt}\nAssistant:"
TURN = "\n\n"  # between the turns of a plain conversation

_AT_ONCE = 2_000  # examples whose texts are in memory at once


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


class Untruncated(NamedTuple):
    """Holds the token ids of one example before truncation, without placeholders.

    `labelled[i]` says whether token i of the prompt is a target of the loss; those of the answer all are.
    """

    prompt: list[int]
    labelled: list[bool]
    answer: list[int]


class Encoder:
    """Turns the examples of one task into token sequences for one model, whose weights it does not need.

    Attributes:
        chat: whether prompts are rendered by the model's chat template; plain text never is.
        ends: how an answer ends.
        limit: the largest number of real tokens in a sequence.
        placeholders, suffix: ids beyond the vocabulary that stand for virtual tokens, before the prompt and between
            prompt and answer; they take up part of the base's window.
    """

    def __init__(
        self,
        model: TextModel,
        task: Task,
        virtual_tokens: int = 0,
        virtual_suffix: int = 0,
        *,
        chat: bool | None = None,
    ) -> None:
        """Find out how the model writes conversations.

        Args:
            model: its tokenizer, its window and the tokens that its generation stops at.
            task: gives the template, the labels and whether answers carry their own reasoning.
            virtual_tokens: placeholders before the prompt.
            virtual_suffix: placeholders between prompt and answer.
            chat: False: the chat template is not used; None: it is where there is one and the task is not plain text.

        Raises:
            DataError: the window has no room for examples, or the chat template cannot show a conversation.
        """
        self.tokenizer: PreTrainedTokenizerBase = model.tokenizer
        self.chat = bool(model.tokenizer.chat_template) and task.kind != "text" if chat is None else chat
        self._chat_template = ChatTemplate(self.tokenizer, model.generation_ends) if self.chat else None
        self.ends = (
            self._chat_template.ends
            if self._chat_template is not None
            else Ends.of_tokenizer(self.tokenizer, model.generation_ends)
        )
        self.reasons = task.has_reasoning
        self.labels = task.labels
        self.limit = model.window - virtual_tokens - virtual_suffix
        first = model.vocabulary
        self.placeholders = list(range(first, first + virtual_tokens))
        self.suffix = list(range(first + virtual_tokens, first + virtual_tokens + virtual_suffix))
        self.template = task.template or self._default_template(task, with_list=lists_labels(task, chat=self.chat))
        # A list that was chosen stands once, in the last question. Adaptations from before there was a choice repeat
        # it in the question of each worked example, and must go on doing so.
        repeats = task.template is not None or task.label_list is None
        self.earlier_template = self.template if repeats else self._default_template(task, with_list=False)
        if self.limit < 8:
            raise DataError(f"the window of {self.limit} tokens leaves no room for examples", remedy="use --max-length")
        with_special = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bos = self.tokenizer.bos_token_id
        self.start = [bos] if bos is not None and with_special[:1] == [bos] else []

    @property
    def opening(self) -> str:
        """Return what a prompt ends with after what the chat template writes there, such as an empty thought."""
        return self._chat_template.prefix if self._chat_template is not None and not self.reasons else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a user ought to know of the conversations that were rendered so far, one sentence each."""
        told = self._chat_template.told if self._chat_template is not None else {}
        return (*([self.ends.note] if self.ends.note else []), *told)

    def _default_template(self, task: Task, *, with_list: bool) -> str:
        if task.kind == "classification":
            template = "{prompt}" if self.chat else _PLAIN_TEMPLATES["classification"]
            return template.replace("{prompt}", "{prompt}" + _LABEL_LIST) if with_list else template
        if self.chat:
            return "{prompt}"
        conversation = task.format in ("messages", "sharegpt", "alpaca")
        fallback = _PLAIN_CONVERSATION if conversation else "{prompt}\n"
        return _PLAIN_TEMPLATES.get(task.format) or fallback

    def fill(self, content: str, *, earlier: bool = False) -> str:
        """Put a user's message into the template; `earlier` says that another user's message follows."""
        template = self.earlier_template if earlier else self.template
        return template.replace("{labels}", ", ".join(self.labels)).replace("{prompt}", content)

    def text(self, example: Example) -> tuple[str, str]:
        """Return the rendered (prompt, answer) as text, for people to look at."""
        rendering = self._render(example)
        return self._shown(rendering.prompt), self._shown(rendering.answer)

    def marked(self, example: Example) -> list[tuple[str, bool]]:
        """Return the rendered example as stretches of text, each with whether it is learnt, for people to look at."""
        rendering = self._render(example)
        stretches, end = list[tuple[str, bool]](), 0
        for start, stop in rendering.spans:
            stretches += [(rendering.prompt[end:start], False), (rendering.prompt[start:stop], True)]
            end = stop
        taught = "" if rendering.ended or self.ends.taught is None else self.spell(self.ends.taught)
        stretches += [(rendering.prompt[end:], False), (rendering.answer + taught, True)]
        return [(self._shown(text), learnt) for text, learnt in stretches if text]

    def one_answer_each(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples, with rows of their own for turns that are learnt and that the template would rewrite.

        Some templates write a turn differently once others follow it, without its reasoning for example. Such a turn
        is learnt in a row that ends with it, as the model writes it when it answers.
        """
        rows = list[Example]()
        for example in examples:
            unlearnt = self._unlearnt(example)
            for index in unlearnt:
                message = example.messages[index]
                fields = {**read_fields(message.fields), "content": message.content} if message.fields else {}
                earlier = tuple(replace(before, labelled=False) for before in example.messages[:index])
                text, shown = answer_of(message), json.dumps(fields) if fields else ""
                rows.append(replace(example, messages=earlier, answer=text, references=(), answer_fields=shown))
            rows.append(_with_unlabelled(example, unlearnt) if unlearnt else example)
        return rows

    def _unlearnt(self, example: Example) -> tuple[int, ...]:
        if not self.chat or not any(message.labelled for message in example.messages):
            return ()
        return self._render(example).unlearnt

    def encode(self, examples: Sequence[Example], before: int = 0) -> list[TokenSequence]:
        """Tokenize examples with their answers, each truncated to the window; errors count those `before` them too.

        Raises:
            DataError: the chat template refuses an example; the message says which.
        """
        return self.truncated(self.untruncated(examples, before))

    def truncated(self, examples: Iterable[Untruncated]) -> list[TokenSequence]:
        """Return examples between their placeholders, each truncated to the window."""
        return [self._truncate(*example) for example in examples]

    def sizes(self, examples: Sequence[Example]) -> list[tuple[int, int]]:
        """Return the numbers of tokens of each prompt and of its answer, before truncation."""
        return list(self.each_size(examples))

    def each_size(self, examples: Sequence[Example]) -> Iterator[tuple[int, int]]:
        """Yield what `sizes` returns, for more examples than a list should hold."""
        return ((len(prompt), len(answer)) for prompt, _, answer in self.untruncated(examples))

    def untruncated(self, examples: Sequence[Example], before: int = 0) -> Iterator[Untruncated]:
        """Yield each example before truncation, without placeholders; errors count those `before` them too."""
        for start in range(0, len(examples), _AT_ONCE):
            yield from self._some(examples[start : start + _AT_ONCE], before + start)

    def _some(self, examples: Sequence[Example], before: int) -> Iterator[Untruncated]:
        renderings = self._render_all(examples, before=before)
        prompts = self._tokenize([rendering.prompt for rendering in renderings])
        wholes = self._wholes(renderings, prompts)
        for example, rendering, prompt, whole in zip(examples, renderings, prompts, wholes, strict=True):
            answer = self._continuation(prompt, whole, rendering.answer)
            labelled = self._labelled_mask(rendering.prompt, rendering.spans, len(prompt))
            ended = rendering.ended or example.continues
            yield Untruncated(prompt, labelled, answer if ended else self._with_end(answer))

    def answers(self, prompt: Example, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of several answers to one prompt, each with its end."""
        renderings = [self._render(replace(prompt, answer=answer, answer_fields="")) for answer in answers]
        prompt_ids = self._tokenize([renderings[0].prompt])[0] if renderings else []
        wholes = self._wholes(renderings, [prompt_ids] * len(renderings))
        rows = []
        for rendering, whole in zip(renderings, wholes, strict=True):
            ids = self._continuation(prompt_ids, whole, rendering.answer)
            rows.append(ids if rendering.ended else self._with_end(ids))
        return rows

    def prompts(self, examples: Sequence[Example], room: int) -> list[TokenSequence]:
        """Tokenize prompts without answers, each truncated so that `room` tokens can follow."""
        return self.fitted(self.prompt_ids(examples), room)

    def prompt_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """Tokenize prompts without answers, before truncation and without placeholders."""
        return self._tokenize([rendering.prompt for rendering in self._render_all(examples, answered=False)])

    def fitted(self, prompts: Sequence[list[int]], room: int) -> list[TokenSequence]:
        """Return prompts between their placeholders, each truncated so that `room` tokens can follow."""
        sequences = []
        for ids in prompts:
            truncated = self._truncate_start(ids, max(self.limit - room, 1))
            whole = self.placeholders + truncated + self.suffix
            sequences.append(TokenSequence(whole, [False] * len(whole), len(whole), len(truncated) < len(ids)))
        return sequences

    def decode(self, ids: list[int], stop: str | None = None) -> str:
        """Return the text of generated ids up to `stop`, without control tokens."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(stop)[0] if stop else text).strip()

    def places(self, text: str) -> list[int]:
        """Return where each token of a plain text begins, in characters."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return [start for start, _ in encoded["offset_mapping"]]

    def spell(self, token: int) -> str:
        """Return one token as text, also a control token."""
        return str(self.tokenizer.decode([token]))

    def until_stop(self, ids: Sequence[int]) -> int:
        """Return how many generated ids stand before the first that ends an answer; all of them where none does."""
        return next((place for place, id_ in enumerate(ids) if id_ in self.ends.stops), len(ids))

    # Rendering.

    def _render_all(self, examples: Sequence[Example], *, answered: bool = True, before: int = 0) -> list[Rendering]:
        renderings = list[Rendering]()
        for number, example in enumerate(examples, before + 1):
            try:
                renderings.append(self._render(example, answered=answered))
            except DataError as error:
                where = (
                    f"example {number} ({show(example.prompt)})"
                    if before or len(examples) > 1
                    else show(example.prompt)
                )
                raise DataError(f"{where}: {error.problem}", remedy=error.remedy) from error
        return renderings

    def _render(self, example: Example, *, answered: bool = True) -> Rendering:
        contents = self._contents(example.messages)
        if self._chat_template is not None:
            return self._chat_template.render(example, contents, reasons=self.reasons, answered=answered)
        return self._render_plain(example, contents, answered=answered)

    def _contents(self, messages: tuple[Message, ...]) -> list[str]:
        """Return the text of each message, a user's in the template."""
        last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
        return [
            self.fill(message.content, earlier=index < last) if message.role == "user" else message.content
            for index, message in enumerate(messages)
        ]

    @staticmethod
    def _render_plain(example: Example, contents: Sequence[str], *, answered: bool) -> Rendering:
        text, spans = example.tools, list[tuple[int, int]]()
        for message, content in zip(example.messages, contents, strict=True):
            if message.role == "assistant":
                start, content = len(text), plain_text(message) if message.fields else content
                text += _separator(text, content) + content
                spans += [(start, len(text))] if message.labelled else []
            else:
                text += TURN if text else ""
                text += content
        answer = reasoned_answer(example) if answered else ""
        return Rendering(text, (_separator(text, answer) + answer) if answer else "", False, tuple(spans))

    def _shown(self, text: str) -> str:
        return self._chat_template.control.show(text) if self._chat_template is not None else text

    # Tokens.

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenize rendered texts; nothing in a plain text is read as a control token."""
        if self._chat_template is None:
            return [self.start + row for row in self._ids(texts, plain=True)]
        control = self._chat_template.control
        rows = self._ids(texts, plain=False)
        return [self._spelled_out(text) if control.hides(text) else ids for text, ids in zip(texts, rows, strict=True)]

    def _wholes(self, renderings: Sequence[Rendering], prompts: Sequence[list[int]]) -> list[list[int]]:
        """Tokenize prompts with their answers, given the prompts' own ids.

        From a prompt's last control token on, where that splits the text, as nothing before it depends on the answer.
        """
        places = [self._last_split(rendering) for rendering in renderings]
        tails = {
            text: list[int]()
            for rendering, place in zip(renderings, places, strict=True)
            if place is not None
            for text in (rendering.prompt[place:], rendering.prompt[place:] + rendering.answer)
        }
        tails = dict(zip(tails, self._tokenize(list(tails)), strict=True))
        wholes, texts = list[list[int] | None](), list[str]()
        for rendering, prompt, place in zip(renderings, prompts, places, strict=True):
            tail = tails[rendering.prompt[place:]] if place is not None else []
            if tail and prompt[-len(tail) :] == tail:
                wholes.append(prompt[: -len(tail)] + tails[rendering.prompt[place:] + rendering.answer])
            else:
                wholes.append(None)
                texts.append(rendering.prompt + rendering.answer)
        rest = iter(self._tokenize(texts))
        return [whole if whole is not None else next(rest) for whole in wholes]

    def _last_split(self, rendering: Rendering) -> int | None:
        if self._chat_template is None or self._chat_template.control.hides(rendering.answer):
            return None
        return self._chat_template.control.last(rendering.prompt)

    def _ids(self, texts: list[str], *, plain: bool) -> list[list[int]]:
        return list(
            self.tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"] if texts else []
        )

    def _spelled_out(self, text: str) -> list[int]:
        """Tokenize a text with hidden control tokens, each as the text that it is."""
        return [id_ for piece, plain in self._pieces(text) for id_ in self._ids([piece], plain=plain)[0]]

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        return self._chat_template.control.pieces(text) if self._chat_template is not None else [(text, True)]

    def _continuation(self, prompt: list[int], whole: list[int], after: str) -> list[int]:
        """Return the answer's ids as they follow the prompt, or alone where a merge would cross the boundary."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return self._spelled_out(after)

    def _with_end(self, answer: list[int]) -> list[int]:
        return answer + ([self.ends.taught] if self.ends.taught is not None else [])

    def _labelled_mask(self, before: str, spans: Sequence[tuple[int, int]], length: int) -> list[bool]:
        """Return for each of the prompt's `length` tokens whether it lies within a labelled span of its text."""
        if not spans:
            return [False] * length
        offsets, place = list[tuple[int, int]](), 0
        for piece, plain in self._pieces(before):
            encoded = self.tokenizer(
                piece, add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True
            )
            offsets += [(place + start, place + end) for start, end in encoded["offset_mapping"]]
            place += len(piece)
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


def _with_unlabelled(example: Example, indices: Sequence[int]) -> Example:
    messages = tuple(
        replace(message, labelled=False) if index in indices else message
        for index, message in enumerate(example.messages)
    )
    return replace(example, messages=messages)


def lists_labels(task: Task, *, chat: bool) -> bool:
    """Return whether the default template lists the labels: as was chosen, else where the model is a chat model."""
    return task.kind == "classification" and (chat if task.label_list is None else task.label_list)


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
