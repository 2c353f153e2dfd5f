"""Keeps the token ids of labels as they follow a prompt, so that they are not rendered and tokenized after every one.

Which tokens a label has depends on what the prompt ends with, and most templates end all prompts alike: what is kept
belongs to the prompt's last tokens. Labels after the first few prompts with such an ending are tokenized for themselves
and compared; where they differ, so they are after every further prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.core.errors import DataError
from tunewise.core.text import show
from tunewise.data.task import Example
from tunewise.engine.encoding import Encoder, TokenSequence, fit_window
from tunewise.engine.token_trie import TokenTrie

# Tokens of a prompt's end, such as "Label" and ":"; more would reach into the text before a plain template's end.
_ENDING = 2
_CHECKS = 3  # prompts with one ending after which labels are tokenized, at least
_MOST_ENDINGS = 64


@dataclass(frozen=True)
class _Ending:
    """Says what makes the tokens of labels; in `encoder` its own part: the labels, `chat` and `reasons`."""

    tokens: tuple[int, ...]
    template_kwargs: str
    encoder: tuple[tuple[str, ...], bool, bool]


@dataclass
class _Kept:
    """Holds labels as they follow one ending, after how many prompts that was found, and whether it always was so."""

    trie: TokenTrie
    checks: int = 1
    alike: bool = True


class LabelTokens:
    """Keeps the token ids of labels for one model, whatever is attached to it."""

    def __init__(self) -> None:
        self._kept: dict[_Ending, _Kept] = {}

    def prompts(self, encoder: Encoder, examples: Sequence[Example]) -> tuple[list[TokenSequence], list[TokenTrie]]:
        """Return the prompts of examples, and for each the encoder's labels as they follow it, both fit to the window.

        Raises:
            DataError: the chat template refuses an example, or a label has no tokens.
        """
        prompts = encoder.prompt_ids(examples)
        pairs = zip(examples, prompts, strict=True)
        tries = [_fitted(self._after(encoder, example, ids), len(ids), encoder.limit) for example, ids in pairs]
        room = max((len(ids) for trie in tries for ids in trie.answers), default=0)
        return encoder.fitted(prompts, room), tries

    def _after(self, encoder: Encoder, example: Example, prompt: list[int]) -> TokenTrie:
        ending = _Ending(
            tuple(prompt[-_ENDING:]), example.template_kwargs, (encoder.labels, encoder.chat, encoder.reasons)
        )
        kept = self._kept.get(ending)
        if kept is not None and kept.alike and kept.checks >= _CHECKS:
            return kept.trie
        trie = _trie(encoder, example)
        if kept is not None:
            kept.checks, kept.alike = kept.checks + 1, kept.alike and kept.trie.answers == trie.answers
        elif len(self._kept) < _MOST_ENDINGS:
            self._kept[ending] = _Kept(trie)
        return trie


def _trie(encoder: Encoder, example: Example) -> TokenTrie:
    answers = encoder.answers(example, encoder.labels)
    for label, ids in zip(encoder.labels, answers, strict=True):
        if not ids:
            raise DataError(
                f'the label "{show(label)}" has no tokens, so that no model can prefer it', remedy="write it otherwise"
            )
    return TokenTrie.of(answers)


def _fitted(trie: TokenTrie, prompt: int, limit: int) -> TokenTrie:
    """Truncate labels as they are after a prompt of so many tokens."""
    sizes = [fit_window(prompt, len(ids), limit)[1] for ids in trie.answers]
    if all(size == len(ids) for size, ids in zip(sizes, trie.answers, strict=True)):
        return trie
    return TokenTrie.of([ids[:size] for size, ids in zip(sizes, trie.answers, strict=True)])
