"""Examples to token sequences, and sequences to batches: packed rows without padding, or padded where a model cannot.

A prompt is rendered by the tokenizer's own chat template where it has one, else by a plain template. Only answer
tokens are labelled. A user's text never becomes a control token. What exceeds the window is cut as `fit_window`
says, and every cut sequence is marked, so that it can be counted and told.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from heapq import heapreplace
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunewise.attention import Segment
from tunewise.errors import DataError
from tunewise.model import Base
from tunewise.task import Example, Message, Task

_CHAT_CLASSIFY = "{prompt}\n\nAnswer with one of: {labels}."
_PLAIN = {"classification": "{prompt}\nLabel:", "question-answer": "Question: {prompt}\nAnswer:"}
_PLAIN_TALK = "User: {prompt}\nAssistant:"
TURN = "\n\n"
_WORTH = 16  # tokens in common from which on a beginning is shared
_AGAIN = 20  # tokens of a pass for each that it reads again: a twentieth more work


@dataclass(frozen=True)
class Sequence:
    """Token ids of one example; `labelled[i]` says whether token i is to be predicted; `prompt` tokens come first."""

    ids: list[int]
    labelled: list[bool]
    prompt: int
    cut: bool = False


@dataclass(frozen=True)
class Batch:
    """Sequences ready for one forward pass.

    ids and position_ids (rows, T); `positions` (N,) index the flattened (rows * T) hidden states from which
    `targets` (N,) are predicted; `owner` (N,) says to which sequence (and `branch` to which answer) each belongs, in
    the order of the sequences; `tokens` counts these, padding left out and what they share once for each.
    """

    ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...]
    positions: Tensor
    targets: Tensor
    owner: Tensor
    branch: Tensor
    tokens: int


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

    def encode(self, examples: Many[Example]) -> list[Sequence]:
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

    def answers(self, prompt: Example, answers: Many[str]) -> list[list[int]]:
        """Token ids of several answers to one prompt, each with its end mark."""
        before = self._render(prompt.messages, "")[0]
        own = self._tokens([before])[0]
        afters = [self._render(prompt.messages, answer)[1] for answer in answers]
        wholes = self._tokens([before + after for after in afters])
        found = [self._continuation(own, whole, after) for whole, after in zip(wholes, afters, strict=True)]
        return found if self.chat else [self._ended(answer) for answer in found]

    def prompts(self, examples: Many[Example], room: int) -> list[Sequence]:
        """Sequences of prompts alone, cut so that `room` tokens can follow."""
        empty = [Example(example.messages, "") for example in examples]
        found = []
        for example, ids in zip(examples, self._tokens([self._render(e.messages, "")[0] for e in empty]), strict=True):
            if self.chat and self._hostile(example):
                ids = self._guarded(Example(example.messages, ""))[0]
            kept = self._keep_end(ids, max(self.limit - room, 1))
            whole = self.placeholders + kept + self.suffix
            found.append(Sequence(whole, [False] * len(whole), len(whole), len(kept) < len(ids)))
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

    def _fit(self, prompt: list[int], marks: list[bool], answer: list[int]) -> Sequence:
        kept, tail = fit_window(len(prompt), len(answer), self.limit)
        ids = self._keep_end(prompt, kept)
        labels = ([False] * kept + marks)[-kept:] if kept else []
        cut = kept < len(prompt) or tail < len(answer)
        head, foot = len(self.placeholders), len(self.suffix)
        return Sequence(
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


def packed_batch(
    sequences: Many[Sequence],
    device: torch.device,
    answers: Many[Many[list[int]]] = (),
    *,
    share: bool = True,
) -> Batch:
    """All sequences in one row; labels are predicted within their own sequence.

    With `answers`, each sequence is a prompt that stands before all of its answers, for scoring them against each
    other; the last token of an answer is only predicted, never read, so it is left out of the row. What sequences begin
    with alike stands in the row once too, unless `share` is off.
    """
    row = _Row([], [], [[] for _ in sequences])
    rows, unlabelled = [sequence.ids for sequence in sequences], [_unlabelled(sequence) for sequence in sequences]
    groups = beginnings(rows, unlabelled) if share else [(0, [index]) for index in range(len(rows))]
    segments = []
    for shared, members in groups:
        start = row.put(rows[members[0]][:shared], 0)
        branches = []
        for index in members:
            own, sequence = row.put(rows[index][shared:], shared) - shared, sequences[index]
            for place, labelled in enumerate(sequence.labelled[1:]):
                if labelled:
                    row.predict(index, 0, place + (start if place < shared else own), sequence.ids[place + 1])
            last, continued = own + len(sequence.ids) - 1, []
            for number, answer in enumerate(answers[index] if answers else ()):
                at = row.put(answer[:-1], len(sequence.ids))
                for place, target in zip((last, *range(at, at + len(answer))), answer, strict=False):
                    row.predict(index, number, place, target)
                continued += [Segment(len(answer) - 1)] if len(answer) > 1 else []
            branches.append(Segment(len(sequence.ids) - shared, tuple(continued)))
        segments += [Segment(shared, tuple(branches))] if shared else branches
    return row.batch(tuple(segments), sum(map(len, rows)), device)


@dataclass(frozen=True)
class _Row:
    """A packed row while it is filled; `targets[i]` are (branch, position, target) of sequence i."""

    ids: list[int]
    places: list[int]
    targets: list[list[tuple[int, int, int]]]

    def put(self, ids: list[int], place: int) -> int:
        """Append tokens, the first of which is the `place`th of its sequence; where they begin."""
        self.ids.extend(ids)
        self.places.extend(range(place, place + len(ids)))
        return len(self.ids) - len(ids)

    def predict(self, sequence: int, branch: int, position: int, target: int) -> None:
        """Predict `target` from the row's token at `position`."""
        self.targets[sequence].append((branch, position, target))

    def batch(self, segments: tuple[Segment, ...], tokens: int, device: torch.device) -> Batch:
        flat = [(index, *found) for index, own in enumerate(self.targets) for found in own]
        owner, branch, positions, targets = torch.tensor(flat, dtype=torch.long, device=device).reshape(-1, 4).unbind(1)
        ids, places = (torch.tensor([values], device=device) for values in (self.ids, self.places))
        return Batch(ids, places, None, segments, positions, targets, owner, branch, tokens)


def _unlabelled(sequence: Sequence) -> int:
    """Tokens at the head of a sequence before its first label, and before its last token."""
    labelled = sequence.labelled
    return min(labelled.index(True, 1) if True in labelled[1:] else len(labelled), len(labelled) - 1)


def beginnings(rows: Many[list[int]], most: Many[int]) -> list[tuple[int, list[int]]]:
    """Rows that begin alike, in their order: (tokens that they share, their indices), 0 tokens where one is alone.

    Of row i at most `most[i]` tokens are shared. Greedy over the sorted rows: one more joins the last group, or makes
    one with that group's last row, or stands alone, whichever saves most tokens.
    """
    found: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(rows)), key=rows.__getitem__):
        if found:
            shared, members = found[-1]
            last = members[-1]
            pair = min(_common(rows[last], rows[index]), most[last], most[index])
            group = min(pair, shared) if shared else pair
            if group >= _WORTH and group * len(members) - shared * (len(members) - 1) >= max(pair - shared, 1):
                found[-1] = group, [*members, index]
                continue
            if pair >= _WORTH and pair > shared:
                found[-1] = (shared, members[:-1]) if len(members) > 2 else (0, members[:-1])
                found.append((pair, [last, index]))
                continue
        found.append((0, [index]))
    return sorted(((shared, sorted(members)) for shared, members in found), key=lambda group: group[1][0])


def _common(first: list[int], second: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def padded_batch(sequences: Many[Sequence], device: torch.device) -> Batch:
    """One row a sequence, padded on the right: for architectures whose attention cannot be packed."""
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    positions, targets, owner = [], [], []
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        for place, labelled in enumerate(sequence.labelled):
            if labelled and place > 0:
                positions.append(row * width + place - 1)
                targets.append(sequence.ids[place])
                owner.append(row)
    return Batch(
        ids.to(device),
        torch.arange(width).expand(len(sequences), width).contiguous().to(device),
        mask.to(device),
        (),
        torch.tensor(positions, dtype=torch.long, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.zeros(len(owner), dtype=torch.long, device=device),
        int(mask.sum()),
    )


def beginning(sequences: Many[Sequence]) -> int:
    """Tokens that all of these begin with, fewer than the shortest has; 0 where sharing them is not worth it."""
    rows = [sequence.ids for sequence in sequences]
    shared = min(_common(min(rows), max(rows)), min(map(len, rows)) - 1)
    return shared if shared >= _WORTH and len(sequences) > 1 else 0


def in_passes(sequences: Many[Sequence], budget: int) -> list[list[int]]:
    """Indices in groups of about `budget` tokens, as equal as can be: the longest first, each to the least group.

    What all begin with is read again by each group; where that is much, groups are larger.
    """
    sizes = [len(sequence.ids) for sequence in sequences]
    groups = max(round(sum(sizes) / max(budget, _AGAIN * beginning(sequences))), 1)
    heap = [(0, group, list[int]()) for group in range(groups)]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        tokens, group, members = heap[0]
        heapreplace(heap, (tokens + sizes[index], group, [*members, index]))
    return [sorted(members) for _, _, members in sorted(heap, key=lambda own: own[1]) if members]


def by_tokens(sequences: Many[Sequence], budget: int) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, similar lengths together; a longer one stands alone."""
    groups: list[list[int]] = []
    total = 0
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        size = len(sequences[index].ids)
        if not groups or total + size > budget:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


def by_beginning(sequences: Many[Sequence], budget: int) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens; what begins alike is together, its beginning counted once."""
    groups: list[list[int]] = []
    total = 0
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i].ids):
        ids = sequences[index].ids
        shared = _common(sequences[groups[-1][-1]].ids, ids) if groups else 0
        size = len(ids) - (shared if shared >= _WORTH else 0)
        if not groups or total + size > budget:
            groups.append([])
            size, total = len(ids), 0
        groups[-1].append(index)
        total += size
    return groups
