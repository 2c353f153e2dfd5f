"""Exports loaded back, each by its own format's reader: token ids to logits, likelihoods of answers, greedy answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import target_logits, why_not_packed
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, by_shared_prefix, by_tokens, packed_batch, padded_batch
from tunewise.engine.token_trie import TokenTrie
from tunewise.fitting.scoring import label_nll

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POSITIONS = 4  # last positions of a prompt whose logits are kept
_NO_TOKEN = 1 << 30  # an id that no vocabulary has
_MOST_LOGITS = 1 << 25  # numbers of a pass, at most: 128 MB in float32
_MOST_ROWS = 64  # rows of a batch that is continued


@dataclass(frozen=True)
class Passage:
    """A prompt with what follows it: a continuation that is read after it, and answers whose likelihoods are compared.

    All three are token ids; there are no virtual tokens among them.
    """

    ids: list[int]
    continuation: Sequence[int] = ()
    answers: Sequence[list[int]] = ()


@dataclass(frozen=True)
class Reading:
    """What a model computes for one passage.

    `logits` (positions, V) are those of the prompt's last positions. `continued` (tokens, V) are the logits from which
    each token of the continuation is predicted. `answer_nll` are the answers' negative log-likelihoods in nats.
    """

    logits: Tensor
    continued: Tensor
    answer_nll: list[float]


class Reader(ABC):
    """A model that computes logits and continues token ids; it reads every sequence from its beginning."""

    tokenizer: PreTrainedTokenizerBase | None = None  # the export's own, where it has one

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is computed once for all of its answers."""
        return False

    @abstractmethod
    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) of one sequence; those of virtual tokens before it are left out."""

    def read(self, passages: Sequence[Passage]) -> Iterator[tuple[int, Reading]]:
        """Read all passages; yield the index of each with what was computed."""
        for index, passage in enumerate(passages):
            size = len(passage.ids)
            logits = self.logits([*passage.ids, *passage.continuation[:-1]])
            continued = logits[size - 1 : size - 1 + len(passage.continuation)]
            nll = [self._answer_nll(passage.ids, answer) for answer in passage.answers]
            yield index, Reading(logits[max(size - POSITIONS, 0) : size], continued, nll)

    def _answer_nll(self, ids: list[int], answer: list[int]) -> float:
        """Return the negative log-likelihood of `answer` after `ids`, summed over its tokens."""
        logprobs = self.logits(ids + answer[:-1])[len(ids) - 1 :].log_softmax(-1)  # (answer tokens, V)
        return -float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum())

    def greedy(self, rows: Sequence[list[int]], count: int) -> list[list[int]]:
        """Continue each row by `count` tokens, each the likeliest."""
        continuations = []
        for ids in rows:
            continuation: list[int] = []
            for _ in range(count):
                continuation.append(int(self.logits(ids + continuation)[-1].argmax()))
            continuations.append(continuation)
        return continuations

    def close(self) -> None:  # noqa: B027 (most readers have nothing to undo)
        """Undo what reading did to the base."""


class CausalReader(Reader):
    """Reads with a model of transformers, as the evaluation does: many prompts in one pass, shared beginnings once.

    `virtual_tokens` are the ids that stand before every sequence.
    """

    def __init__(
        self, base: Base, virtual_tokens: Sequence[int] = (), tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.base, self.virtual_tokens, self.tokenizer = base, list(virtual_tokens), tokenizer
        self.model: Any = base.model

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        base: Base,
        model_options: Mapping[str, object] = {},
        tokenizer_options: Mapping[str, object] = {},
    ) -> CausalReader:
        """Load weights and tokenizer from a folder, to compute in the base's type and on its device.

        Args:
            folder: what transformers loads.
            base: the base, for its type and device.
            model_options: further arguments of `AutoModelForCausalLM.from_pretrained`.
            tokenizer_options: further arguments of `AutoTokenizer.from_pretrained`.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        local: dict[str, object] = {"trust_remote_code": False, "local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=base.model.dtype, **local, **model_options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local, **tokenizer_options)
        return cls(Base(model.to(base.device), tokenizer, str(folder)), tokenizer=tokenizer)

    @property
    def shares_prompts(self) -> bool:
        """Whether the architecture runs packed rows."""
        return why_not_packed(self.base) is None

    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) in one forward pass, in float32 or more."""
        row = self.virtual_tokens + ids
        start = len(self.virtual_tokens)
        labelled = [position > start for position in range(len(row) + 1)]
        batch = padded_batch([TokenSequence([*row, 0], labelled, len(row))], self.base.device)
        return target_logits(self.base, batch)

    def read(self, passages: Sequence[Passage]) -> Iterator[tuple[int, Reading]]:
        """Read several passages in a pass, each prompt once for its continuation and all of its answers."""
        prompts = [self._prompt(passage) for passage in passages]
        for group in self._passes(passages, prompts):
            chosen = [passages[index] for index in group]
            yield from zip(group, self._read_pass(chosen, [prompts[index] for index in group]), strict=True)

    def _prompt(self, passage: Passage) -> TokenSequence:
        """Return the prompt as it is read; tokens are labelled so that the last positions but one are predicted from.

        The last position is predicted from by what follows the prompt.
        """
        ids = self.virtual_tokens + passage.ids
        first = max(len(ids) - POSITIONS + 1, len(self.virtual_tokens) + 1)
        return TokenSequence(ids, [position >= first for position in range(len(ids))], len(ids))

    def _passes(self, passages: Sequence[Passage], prompts: list[TokenSequence]) -> Iterator[list[int]]:
        """Divide the passages into passes of bounded numbers of tokens and logits; yield the indices of each."""
        most = max(_MOST_LOGITS // self.base.anatomy.vocabulary, 1)
        for group in (by_shared_prefix if self.shares_prompts else by_tokens)(prompts, PASS_TOKENS):
            current: list[int] = []
            targets = 0
            for index in group:
                passage = passages[index]
                added = POSITIONS + len(passage.continuation) + sum(map(len, passage.answers))
                if current and targets + added > most:
                    yield current
                    current, targets = [], 0
                current.append(index)
                targets += added
            yield current

    def _read_pass(self, passages: list[Passage], prompts: list[TokenSequence]) -> Iterator[Reading]:
        # Where nothing follows a prompt, any token does: only the position before it is looked at.
        followed = [[*passage.continuation] or [0] for passage in passages]
        answers = [list(passage.answers) for passage in passages]
        if self.shares_prompts:
            branches = [TokenTrie.of([first, *others]) for first, others in zip(followed, answers, strict=True)]
            batch = packed_batch(prompts, self.base.device, branches)
        else:
            batch = padded_batch(
                [
                    TokenSequence(prompt.ids + ids, prompt.labelled + [True] * len(ids), prompt.prompt)
                    for prompt, ids in zip(prompts, followed, strict=True)
                ],
                self.base.device,
            )
        logits = target_logits(self.base, batch)
        nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").double()
        for index, passage in enumerate(passages):
            mine = batch.owner == index
            rows = logits[mine & (batch.branch == 0)]  # of the prompt's last positions, then of the continuation
            last = len(rows) - len(followed[index]) + 1
            if self.shares_prompts:
                chosen = mine & (batch.branch > 0)
                sums = torch.zeros(len(answers[index]), dtype=torch.float64, device=nll.device)
                sums.index_add_(0, batch.branch[chosen] - 1, nll[chosen])
                answer_nll = list(sums.tolist())
            else:
                answer_nll = self._nll_of_answers(prompts[index], answers[index])
            continued = rows[last - 1 : last - 1 + len(passage.continuation)]
            yield Reading(rows[:last].cpu(), continued.cpu(), answer_nll)

    def _nll_of_answers(self, prompt: TokenSequence, answers: list[list[int]]) -> list[float]:
        """Score answers on an architecture that cannot share a prompt."""
        unlabelled = TokenSequence(prompt.ids, [False] * len(prompt.ids), prompt.prompt)
        return label_nll(self.base, [unlabelled], [TokenTrie.of(answers)])[0] if answers else []

    @torch.no_grad()
    def greedy(self, rows: Sequence[list[int]], count: int) -> list[list[int]]:
        """Continue with Hugging Face's own generation, in batches with a key/value cache, also after an end."""
        from transformers import GenerationConfig

        # None would be replaced by the model's own end-of-sequence token.
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=_NO_TOKEN, pad_token_id=0)
        whole = [TokenSequence(self.virtual_tokens + ids, [], 0) for ids in rows]
        continuations: list[list[int]] = [[]] * len(rows)
        for group in by_tokens(whole, 2 * PASS_TOKENS):
            for start in range(0, len(group), _MOST_ROWS):
                members = group[start : start + _MOST_ROWS]
                width = max(len(whole[index].ids) for index in members)
                pads = [width - len(whole[index].ids) for index in members]
                ids = [[0] * pad + whole[index].ids for pad, index in zip(pads, members, strict=True)]
                mask = [[0] * pad + [1] * (width - pad) for pad in pads]
                output = self.base.generate(
                    input_ids=torch.tensor(ids, device=self.base.device),  # (rows, width)
                    attention_mask=torch.tensor(mask, device=self.base.device),
                    generation_config=config,
                )
                for index, row in zip(members, output[:, width:].tolist(), strict=True):
                    continuations[index] = row
        return continuations


class AdapterReader(CausalReader):
    """Reads with the layers that PEFT put into the base in memory; closing takes them out again."""

    def __init__(self, adapted: Any, base: Base) -> None:
        super().__init__(base)
        self.adapted = adapted

    def close(self) -> None:
        """Take PEFT's layers out of the base."""
        if hasattr(self.adapted.base_model, "unload"):
            self.adapted.base_model.unload()


class PromptAdapterReader(Reader):
    """Reads with PEFT's virtual tokens before each sequence, which only PEFT's own forward pass puts there."""

    def __init__(self, adapted: Any, base: Base) -> None:
        self.model, self.device = adapted, base.device

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Compute the logits (T, V) of the real tokens, in float32 or more."""
        input_ids = torch.tensor([ids], device=self.device)  # (1, T)
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
        logits = logits[-len(ids) :].cpu()
        return logits.float() if logits.dtype != torch.float64 else logits


def adapter_reader(folder: Path, base: Base) -> Reader:
    """Read a PEFT adapter, on the base in memory."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(base.model, str(folder)).eval()
    in_place = adapted.get_base_model() is base.model and not adapted.active_peft_config.is_prompt_learning
    return AdapterReader(adapted, base) if in_place else PromptAdapterReader(adapted, base)
