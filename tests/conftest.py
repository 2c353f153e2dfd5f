"""One thread and no network: the same bits on every machine of a kind, and no surprise downloads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TUNEWISE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real models and tasks."""
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real models and tasks at {SHARED} (set TUNEWISE_REAL_DATA)")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def save_tiny():
    """A function that saves a tiny Llama and its tokenizer to a folder, as a Hugging Face model."""
    from tunewise.testing import tiny_base

    def save(folder: Path) -> Path:
        base = tiny_base("llama")
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return folder

    return save
