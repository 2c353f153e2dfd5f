"""Turns texts into vectors with a sentence-transformers model: safetensors only, no remote code, fingerprinted.

A batch holds about as many tokens as fit, texts of like length together, so that little of it is padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewise.core.errors import ModelError, SettingError

if TYPE_CHECKING:
    from tunewise.core.progress import Progress

BATCH_TOKENS = 4096
DTYPES = ("float32", "bfloat16")
# What a model's vectors depend on; all else in its folder is documentation or another format of the same.
WEIGHED = ("*.safetensors", "config.json", "tokenizer.json")
WEIGHED_ONCE = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model"]
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# Modules that load no other modules and run nothing that their files name.
MODULES = {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "StaticEmbedding"}


class Embedder:
    """A sentence-transformers model.

    Attributes:
        name: the model's Hub id or folder, as it was given.
        size: the length of a vector.
    """

    def __init__(self, name: str | Path, dtype: str = "float32") -> None:
        """Load a model and compute in `dtype`.

        Vectors of both types are nearer to each other (mean cosine 0.9999) than to what an index keeps of them, so that
        passages embedded in one may be searched in the other, and the fingerprint is the same.

        Raises:
            ModelError: there is no such model, it needs code or pickled weights of its own, or it cannot be loaded.
            SettingError: sentence-transformers is not installed, or the dtype is none of `DTYPES`.
        """
        if dtype not in DTYPES:
            raise SettingError(f"embedder dtype {dtype}: give one of {', '.join(DTYPES)}")
        self.name = str(name)
        self._folder = _folder(self.name)
        self._parts = _parts(self._folder, self.name)
        self._model = _loaded(self._folder, self.name, dtype)
        self.size = int(self._encoded(["size"], "").shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 over weights, pooling, tokenizer and prompts."""
        own = [path for part in self._parts for pattern in WEIGHED for path in part.glob(pattern)]
        own += [path for pattern in WEIGHED_ONCE for path in self._folder.glob(pattern)]
        digest = hashlib.sha256()
        for path in sorted(set(own)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self._folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def tokenizer(self) -> Any:
        """What counts the model's tokens, a `tokenizers.Tokenizer`."""
        return _fast(self._model)

    def encode(self, texts: Sequence[str], report: Progress | None = None) -> np.ndarray:
        """The vectors of passages, in their order: (n, size) float32 of length 1."""
        known = [self._model.prompts.get(name) for name in DOCUMENT_PROMPTS]
        return self._batched(texts, next(filter(None, known), ""), report)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of questions, which some models want introduced by a prompt of their own."""
        return self._batched(texts, self._model.prompts.get("query") or "", None)

    def _batched(self, texts: Sequence[str], prompt: str, report: Progress | None) -> np.ndarray:
        vectors, done = np.empty((len(texts), self.size), dtype=np.float32), 0
        for places in batches(self._lengths(texts)):
            vectors[places] = self._encoded([texts[place] for place in places], prompt)
            done += len(places)
            if report:
                report("embedding", done, len(texts))
        return vectors

    def _encoded(self, texts: list[str], prompt: str) -> np.ndarray:
        found = self._model.encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)
        vectors = np.asarray(found, dtype=np.float32)  # normalised here: a model in half precision would round again
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, at most as many as the model reads."""
        tokenizer = _fast(self._model)
        limit = self._model.max_seq_length or BATCH_TOKENS
        lengths: list[int] = []
        for start in range(0, len(texts), 1000):  # the encodings of all texts at once would fill the memory
            found = tokenizer.encode_batch(list(texts[start : start + 1000]))
            lengths += [min(sum(encoding.attention_mask), limit) for encoding in found]
        return lengths


def batches(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Places of texts by length, longest first, in batches that hold at most `tokens` with their padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * max(lengths[batch[0]], 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _folder(name: str) -> Path:
    """The model's folder; a Hub model is downloaded without what could hold code."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: there is no such folder; give a sentence-transformers folder or a Hub id (org/name)")
    from huggingface_hub import snapshot_download

    hub_id = name if "/" in name else f"sentence-transformers/{name}"
    try:
        found = snapshot_download(hub_id, allow_patterns=DOWNLOADED, ignore_patterns=["onnx/*", "openvino/*"])
    except Exception as error:  # some ten types: no such model, no network, no permission, no space
        raise ModelError(f"{name}: cannot be downloaded: {_reason(error)}") from error
    return Path(found)


def _parts(folder: Path, name: str) -> list[Path]:
    """The folders of the model's modules, which are all of known kinds and without pickled weights."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds, paths = [str(module["type"]) for module in modules], [str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name}: is no sentence-transformers model (its modules.json cannot be read)") from error
    # Older releases of the library import any other class from a local folder, whatever `trust_remote_code` says.
    for kind in kinds:
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in MODULES:
            raise ModelError(f"{name}: needs a module that is never run here ({kind}); choose another embedder")
    parts = [part for part in (folder / path for path in paths) if part.is_dir()]
    for part in parts:
        if not part.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{name}: its modules.json names a folder outside of it; use a good copy of the model")
        pickled = [path.name for pattern in PICKLED for path in part.glob(pattern)]
        if pickled and not any(part.glob("*.safetensors")):
            raise ModelError(f"{name}: its weights are pickled ({pickled[0]}); convert them to safetensors")
    return parts


def _loaded(folder: Path, name: str, dtype: str) -> Any:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SettingError("embedding needs sentence-transformers: pip install tunewise[rag]") from error
    try:
        model = SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        ).to(getattr(torch, dtype))
    except Exception as error:  # the library passes on what its modules raise
        raise ModelError(f"{name}: cannot be loaded as a sentence-transformers model: {_reason(error)}") from error
    if not hasattr(_fast(model), "encode_batch"):
        raise ModelError(f"{name}: its tokenizer has no fast version (tokenizer.json); convert it with transformers")
    return model


def _fast(model: Any) -> Any:
    """The tokenizer that counts; static models hold it bare."""
    return getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@lru_cache(maxsize=2)
def loaded(name: str, dtype: str = "float32") -> Embedder:
    """An embedder that several ask for, loaded once."""
    return Embedder(name, dtype)
