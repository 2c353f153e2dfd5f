"""Scores and continues text as it stands, with an adaptation on its base: no template is put around it.

Other programs' evaluations write their prompts themselves and need likelihoods of what follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunewise.adaptation.artifact import Adaptation
from tunewise.core.errors import TechniqueError
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import batch_of, nll, target_logits
from tunewise.engine.packing import PASS_TOKENS, by_tokens
from tunewise.fitting.scoring import encoder_for

_SCORED_TOKENS = 512  # positions whose logits exist at once, unless one sequence has more


class RawText:
    """Holds an adaptation whose technique changes weights or adds virtual tokens, but no words of the prompt."""

    def __init__(self, loaded: Adaptation, *, as_given: bool = False) -> None:
        """Take a loaded adaptation.

        With `as_given`, what a technique would write into the prompt is left out.

        Raises:
            TechniqueError: the technique writes into the prompt, which others write here.
        """
        attachment = loaded.attachment
        if "prompt" in attachment.recipe.sides and not as_given:
            raise TechniqueError(
                f"{attachment.recipe.name} writes into the prompt, and here the prompts are another program's; "
                "score it with tunewise eval, or without icl and rag"
            )
        self.base = attachment.base
        self.encoder = encoder_for(attachment, loaded.style)

    def ids(self, text: str, *, start: bool = True) -> list[int]:
        """Tokenize text, with the token that begins a sequence where the tokenizer has one and the text has not."""
        tokenizer = self.encoder.tokenizer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        first = self.encoder.start
        return first + ids if start and first and ids[:1] != first else ids

    @torch.no_grad()
    def likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood in nats, and whether it is the greedy one.

        A context that is too long for the window loses its start.
        """
        sequences = [self._sequence(context, continuation) for context, continuation in pairs]
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for group in self._groups(sequences):
            batch = batch_of(self.base, [sequences[index] for index in group])
            logits = target_logits(self.base, batch)  # (N, V)
            losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").double()
            hits = logits.argmax(-1) == batch.targets
            for place, index in enumerate(group):
                mine = batch.owner == place
                results[index] = -float(losses[mine].sum()), bool(hits[mine].all())
        return results

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Return the log-likelihood in nats alone, in less memory for long continuations."""
        sequences = [self._sequence(context, continuation) for context, continuation in pairs]
        results = [0.0] * len(pairs)
        for group in by_tokens(sequences, PASS_TOKENS):
            batch = batch_of(self.base, [sequences[index] for index in group])
            losses = nll(self.base, batch).double()
            for place, index in enumerate(group):
                results[index] = -float(losses[batch.owner == place].sum())
        return results

    @torch.no_grad()
    def continued(self, prompt: list[int], until: Sequence[str], room: int) -> str:
        """Continue a prompt greedily, up to one of these texts, an end that the model knows, or `room` tokens."""
        from transformers import GenerationConfig

        room = max(min(room, self.encoder.limit - 1), 1)
        ids = self.encoder.fitted([prompt], room)[0].ids
        config = GenerationConfig(
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=sorted(self.encoder.ends.stops) or None,
            pad_token_id=self.encoder.ends.taught or 0,
        )
        row = torch.tensor([ids], device=self.base.device)  # (1, T)
        output = self.base.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            generation_config=config,
            stopping_criteria=[_StopAtTexts(self, until, len(ids))] if until else [],
        )
        answer = output[0, len(ids) :].tolist()
        text = self.encoder.tokenizer.decode(answer[: self.encoder.until_stop(answer)], skip_special_tokens=True)
        return self.before(str(text), until)

    @staticmethod
    def before(text: str, until: Sequence[str]) -> str:
        """Return the text up to the first of these texts."""
        ends = [place for stop in until if stop and (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _sequence(self, context: list[int], continuation: list[int]) -> TokenSequence:
        continuation = continuation[-(self.encoder.limit - 1) :]
        [prompt] = self.encoder.fitted([context], len(continuation))
        before = len(prompt.ids)
        labelled = [False] * before + [True] * len(continuation)
        return TokenSequence(prompt.ids + continuation, labelled, before)

    def _groups(self, sequences: Sequence[TokenSequence]) -> list[list[int]]:
        """Group sequences into passes, none of which has many more scored tokens than `_SCORED_TOKENS`."""
        groups: list[list[int]] = []
        for group in by_tokens(sequences, PASS_TOKENS):
            scored = _SCORED_TOKENS
            for index in group:
                count = len(sequences[index].ids) - sequences[index].prompt
                if scored + count > _SCORED_TOKENS:
                    groups.append([])
                    scored = 0
                groups[-1].append(index)
                scored += count
        return groups


class _StopAtTexts:  # called as one of Hugging Face's stopping criteria
    def __init__(self, raw: RawText, until: Sequence[str], width: int) -> None:
        self.raw, self.until, self.width = raw, until, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        text = self.raw.encoder.tokenizer.decode(input_ids[0, self.width :].tolist())
        return torch.tensor([any(stop in text for stop in self.until)], device=input_ids.device)
