"""Reads a PEFT adapter's folder: its configuration as data only, its tensors strictly, and the tokens that it adds.

What PEFT's library would compute with the adapter is computed here, or the adapter is refused by the name of the
field. A plain LoRA and prompts become techniques of tunewise's own. Everything else goes through PEFT's own layers: a
LoRA that changes the base when it is loaded (PiSSA, OLoRA), or that trains biases, whole modules or single tokens.

An adapter that adds tokens has a larger tokenizer beside it, and the whole embeddings among its tensors. Then the base
is loaded with as many rows, and with that tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunewise.adaptation.finite_outputs import require_finite_outputs
from tunewise.adaptation.same_base import TextRecord, tell_of_other_base, tell_of_other_text
from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, ModelError, RequestError
from tunewise.core.json_record import JsonObject
from tunewise.core.seeds import generator
from tunewise.engine.configuration import readable, require_fast
from tunewise.engine.model import Base, load_base
from tunewise.engine.vocabulary import require_embeddings, tokens_without_embeddings
from tunewise.techniques import peft_bridge
from tunewise.techniques.building.peft_lora import CONVERSION, PEFT_PREFIX, adapted_paths, changes_base
from tunewise.techniques.registry import all_techniques

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG_FILE, _TOKENIZER_FILE = "adapter_config.json", "tokenizer.json"
_WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class PeftAdapter:
    """Holds what a PEFT adapter's folder holds."""

    folder: Path
    config: JsonObject
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> PeftAdapter:
        """Read configuration and tensors.

        Raises:
            ArtifactError: a file is missing or damaged, or a field is of another type or out of bounds.
        """
        config = read_config(folder)
        # The Hub's cache is a folder of links into its blob store, so links are followed here, for these two files.
        return cls(folder, config, artifact_writer.read_tensors((folder / _WEIGHTS_FILE).resolve()))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer beside the adapter, or None.

        Raises:
            ModelError: it cannot be read.
        """
        if not (self.folder / _TOKENIZER_FILE).is_file():
            return None
        with readable(self.folder):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=False, local_files_only=True
            )
        require_fast(self.folder, tokenizer)
        return tokenizer

    def load_base(self, model: str | None = None, device: str | None = None) -> Base:
        """Load the base that the adapter names, or `model` in its place, with the tokens that the adapter adds.

        Raises:
            ArtifactError: the adapter does not name its base, or adds tokens without their embeddings.
            ModelError: the base cannot be loaded.
        """
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if model is None and (not isinstance(name, str) or not name):
            raise ArtifactError(f"{self.folder}: the adapter does not name its base; give it with --model")
        # The rows that the base's own tokenizer may lack are the adapter's to bring.
        if model is not None:
            base = load_base(model, device=device, resize_embeddings=True)
        else:
            revision = revision if isinstance(revision, str) else None
            with base_of_record(self.folder):
                base = load_base(str(name), revision=revision, device=device, resize_embeddings=True, download=False)
        rows = self._rows(base)
        if rows is None and base.embedding_rows is not None:
            raise ArtifactError(
                f"{self.folder}: the tokenizer of {base.name} has tokens without an embedding, and the adapter saves "
                "none for them; name the base that it was made on with --model"
            )
        if rows is not None and rows != base.vocabulary:
            base.resize_embeddings(rows)
        if self.tokenizer is not None and self.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            self._require_same_rules(self.tokenizer, base)
            self._require_embeddings(self.tokenizer, base)
            return replace(base, tokenizer=self.tokenizer)
        require_embeddings(base.name, base.tokenizer, base.vocabulary)
        return base

    def attach(self, base: Base) -> Attachment:
        """Put the adapter on a base.

        Raises:
            ArtifactError: a field or a tensor that is not supported, or that does not fit the base.
        """
        tell_of_other_base(self.folder, self.config.get("base_model_name_or_path"), base)
        rows = self._rows(base)
        if rows is not None and rows != base.vocabulary:
            raise ArtifactError(
                f"{self.folder}: the adapter saves embeddings with {rows} rows, as it adds tokens, and {base.name} has "
                f"{base.vocabulary}; load it without a base of another, which reads the base with these rows"
            )
        if self.tokenizer is not None:
            self._require_embeddings(self.tokenizer, base)
            tell_of_other_text(self.folder, TextRecord.of(self.tokenizer), base)
        try:
            return self._attached(base)
        except (RequestError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.folder}: the PEFT adapter is refused: {error}") from error

    @torch.no_grad()
    def _attached(self, base: Base) -> Attachment:
        if not self.tensors:
            raise ArtifactError("it holds no tensors")
        changes = self.config.get("peft_type") == "LORA" and changes_base(self.config)
        try:
            with attached(self._recipe(base), base) as attachment:
                try:
                    attachment.load_peft(self.tensors)
                except ArtifactError as error:
                    raise ArtifactError(f"{_WEIGHTS_FILE}: {error}") from error
                require_finite_outputs(Path(_WEIGHTS_FILE), self.tensors, attachment)
        except (RequestError, RuntimeError) as error:
            if not changes:
                raise
            start, reason = self.config.get("init_lora_weights"), " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"init_lora_weights={start!r} changes the base, and PEFT cannot do so here ({reason}); {CONVERSION}"
            ) from error
        return attachment

    def _recipe(self, base: Base) -> Technique:
        """Return a technique of tunewise's own where one computes what PEFT does, and PEFT's otherwise."""
        ends = {base.anatomy.embedding_path, base.anatomy.head_path} & adapted_paths(self.tensors)
        # PEFT adapts each of two tied ends by itself, and has another DoRA for embeddings.
        if not (ends and (base.anatomy.tied or self.config.get("use_dora"))):
            recipes = (cls.from_peft(self.config, self.tensors) for cls in all_techniques().values())
            recipe = next((recipe for recipe in recipes if recipe is not None), None)
            if recipe is not None:
                return recipe
        return peft_bridge.from_peft(self.config, self.tensors)

    def _rows(self, base: Base) -> int | None:
        """Return the rows of the embeddings that the adapter saves or adds to; None where it does neither.

        Raises:
            ArtifactError: two of them differ.
        """
        rows = set()
        for path in (base.anatomy.embedding_path, base.anatomy.head_path):
            for name, tensor in self.tensors.items():
                if not name.startswith(f"{PEFT_PREFIX}{path}.") or tensor.dim() != 2:
                    continue
                if name.endswith("lora_embedding_A"):
                    rows.add(tensor.shape[1])
                elif name.endswith("lora_B.weight") or (name.endswith(".weight") and ".lora_" not in name):
                    rows.add(tensor.shape[0])
        if len(rows) > 1:
            raise ArtifactError(
                f"{self.folder}: the adapter saves embeddings with {' and '.join(map(str, sorted(rows)))} rows, but a "
                "model has one number of them"
            )
        return next(iter(rows), None)

    def _require_same_rules(self, tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
        """Refuse a tokenizer that splits text by other regular expressions than the base's, which are run."""
        if _expressions(_rules(tokenizer)) <= _expressions(_rules(base.tokenizer)):
            return
        raise ArtifactError(
            f"{self.folder}: the adapter's tokenizer has regular expressions that the tokenizer of {base.name} lacks, "
            "and none from an adapter is run; add its tokens to the base's own tokenizer, and save that"
        )

    def _require_embeddings(self, tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
        """Refuse a tokenizer beside the adapter whose tokens have embeddings neither in the base nor in the adapter."""
        beyond = tokens_without_embeddings(tokenizer, base.vocabulary)
        if beyond is not None:
            raise ArtifactError(
                f"{self.folder}: the adapter's tokenizer adds tokens that have no embedding, {beyond}; save the "
                "adapter with PEFT's save_embedding_layers=True"
            )


def _rules(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """Return what a tokenizer does with a text besides looking up its tokens, as JSON."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return [content.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]


def _expressions(rules: object) -> set[str]:
    """Return every regular expression in the rules of a tokenizer."""
    if isinstance(rules, dict):
        own = {str(rules["Regex"])} if "Regex" in rules else set()
        return own.union(*map(_expressions, rules.values()))
    return set[str]().union(*map(_expressions, rules)) if isinstance(rules, list) else set()


def read_config(folder: Path) -> JsonObject:
    """Read the configuration of a PEFT adapter.

    Raises:
        ArtifactError: it is missing or damaged, or a field is of another type or out of bounds; it is named.
    """
    config = artifact_writer.read_json((folder / _CONFIG_FILE).resolve())
    try:
        peft_bridge.check_config(config)
    except RequestError as error:
        raise ArtifactError(f"{folder}: the PEFT adapter is refused: {error}") from error
    return config


@contextmanager
def attached(recipe: Technique, base: Base) -> Iterator[Attachment]:
    """Attach the recipe to the base; where anything fails inside the block, detach it again."""
    attached_before = len(base.attached)
    try:
        yield recipe.attach(base, generator(0, "load"))
    except BaseException:
        base.release(attached_before)
        raise


@contextmanager
def base_of_record(folder: Path) -> Iterator[None]:
    """Say of an error in loading the base that a folder names how to name another one."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"{folder}: the base that it names cannot be loaded ({error}); say where the base is with --model"
        ) from error
