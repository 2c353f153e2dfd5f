"""Turns texts into vectors with a sentence-transformers model: safetensors only, no remote code, fingerprinted.

A batch holds texts of similar length, up to a number of tokens, so that little of it is padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewise.core.addresses import path_at
from tunewise.core.errors import ModelError, SettingError
from tunewise.core.extras import require
from tunewise.core.text import one_line

if TYPE_CHECKING:
    from tunewise.core.progress import Progress

BATCH_TOKENS = 4096  # tokens per batch, with padding
DTYPES = ("float32", "bfloat16")
# The vectors of a model depend on these files; the others are documentation or the same in another format.
FINGERPRINTED = ("*.safetensors", "config.json", "tokenizer.json")
FINGERPRINTED_ONCE = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model"]
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# Modules that load no other modules and run no code that their files name.
MODULES = {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "StaticEmbedding"}


class Embedder:
    """Turns texts into vectors with a sentence-transformers model.

    Attributes:
        name: the model's Hub id or folder, as the user wrote it.
        size: the length of a vector.
    """

    def __init__(self, name: str | Path, dtype: str = "float32") -> None:
        """Load a model that computes in `dtype`.

        Vectors of both types are nearer to each other (mean cosine 0.9999) than to the int8 vectors of an index.
        Passages embedded in one may therefore be searched in the other, and the fingerprint is the same.

        Raises:
            ModelError: there is no such model, it needs its own code or pickled weights, or it cannot be loaded.
            SettingError: sentence-transformers is not installed, or the dtype is not one of `DTYPES`.
        """
        if dtype not in DTYPES:
            raise SettingError(f"embedder dtype {dtype}: give one of {', '.join(DTYPES)}")
        self.name = str(name)
        self._folder = _model_folder(self.name)
        self._module_folders = _module_folders(self._folder, self.name)
        self._model = _load(self._folder, self.name, dtype)
        self.size = int(self._encode_batch(["size"], "").shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 16 hex digits of a SHA-256 over weights, pooling, tokenizer and prompts."""
        files = [path for part in self._module_folders for pattern in FINGERPRINTED for path in part.glob(pattern)]
        files += [path for pattern in FINGERPRINTED_ONCE for path in self._folder.glob(pattern)]
        digest = hashlib.sha256()
        for path in sorted(set(files)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self._folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def tokenizer(self) -> Any:
        """Return the model's `tokenizers.Tokenizer`, which counts its tokens."""
        return _fast_tokenizer(self._model)

    def encode(self, texts: Sequence[str], report: Progress | None = None) -> np.ndarray:
        """Return the vectors of passages, in their order: (n, size) float32 of length 1."""
        prompts = [self._model.prompts.get(name) for name in DOCUMENT_PROMPTS]
        return self._encode_all(texts, next(filter(None, prompts), ""), report)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions, as `encode` does; some models have a prompt of their own for them."""
        return self._encode_all(texts, self._model.prompts.get("query") or "", None)

    def _encode_all(self, texts: Sequence[str], prompt: str, report: Progress | None) -> np.ndarray:
        """Encode texts in batches of similar length; `prompt` is put before each."""
        vectors, done = np.empty((len(texts), self.size), dtype=np.float32), 0
        for indices in batches(self._lengths(texts)):
            vectors[indices] = self._encode_batch([texts[index] for index in indices], prompt)
            done += len(indices)
            if report:
                report("embedding", done, len(texts))
        return vectors

    def _encode_batch(self, texts: list[str], prompt: str) -> np.ndarray:
        """Encode one batch into normalised vectors (n, size)."""
        encoded = self._model.encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)
        vectors = np.asarray(encoded, dtype=np.float32)  # normalised in float32: bfloat16 would round again
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, at most as many as the model reads."""
        tokenizer = _fast_tokenizer(self._model)
        limit = self._model.max_seq_length or BATCH_TOKENS
        lengths: list[int] = []
        for start in range(0, len(texts), 1000):  # the encodings of all texts would need too much memory
            encodings = tokenizer.encode_batch(list(texts[start : start + 1000]))
            lengths += [min(sum(encoding.attention_mask), limit) for encoding in encodings]
        return lengths


def batches(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yield indices of texts, longest first, in batches of at most `tokens` tokens with padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * max(lengths[batch[0]], 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _model_folder(name: str) -> Path:
    """Return the model's folder; a Hub model is downloaded without files that could hold code."""
    folder = path_at(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: there is no such folder; give a sentence-transformers folder or a Hub id (org/name)")
    from huggingface_hub import snapshot_download

    hub_id = name if "/" in name else f"sentence-transformers/{name}"
    try:
        snapshot = snapshot_download(hub_id, allow_patterns=DOWNLOADED, ignore_patterns=["onnx/*", "openvino/*"])
    except Exception as error:  # some ten types: no such model, network, permission or space
        raise ModelError(f"{name}: cannot be downloaded: {one_line(error)}") from error
    return Path(snapshot)


def _module_folders(folder: Path, name: str) -> list[Path]:
    """Return the folders of the model's modules, after checking that all are of known kinds without pickled weights."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds, paths = [str(module["type"]) for module in modules], [str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name}: is not a sentence-transformers model (its modules.json cannot be read)") from error
    # Older releases of the library import any other class from a local folder, whatever `trust_remote_code` says.
    for kind in kinds:
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in MODULES:
            raise ModelError(
                f"{name}: needs the module {kind}, which is not one that tunewise runs; choose another embedder"
            )
    module_folders = [path for path in (folder / path for path in paths) if path.is_dir()]
    for module_folder in module_folders:
        if not module_folder.resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                f"{name}: its modules.json names a folder outside of it; use an undamaged copy of the model"
            )
        pickled = [path.name for pattern in PICKLED for path in module_folder.glob(pattern)]
        if pickled and not any(module_folder.glob("*.safetensors")):
            raise ModelError(f"{name}: its weights are pickled ({pickled[0]}); convert them to safetensors")
    return module_folders


def _load(folder: Path, name: str, dtype: str) -> Any:
    """Load a `SentenceTransformer` from a checked folder."""
    require("an embedder", "sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        ).to(getattr(torch, dtype))
    except Exception as error:  # the library lets through whatever its modules raise
        raise ModelError(f"{name}: cannot be loaded as a sentence-transformers model: {one_line(error)}") from error
    if not hasattr(_fast_tokenizer(model), "encode_batch"):
        raise ModelError(f"{name}: its tokenizer has no fast version (tokenizer.json); convert it with transformers")
    return model


def _fast_tokenizer(model: Any) -> Any:
    """Return the `tokenizers.Tokenizer` of a model; static models hold it without a wrapper."""
    return getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)


@lru_cache(maxsize=2)
def loaded(name: str, dtype: str = "float32") -> Embedder:
    """Return an embedder, loaded once however many callers need it."""
    return Embedder(name, dtype)
