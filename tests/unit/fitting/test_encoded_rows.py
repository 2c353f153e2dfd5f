"""Training from a file of rows: the losses of a list, bit for bit."""

import json

import pytest

from tunewise.comparison.context import ComparisonContext
from tunewise.core.seeds import generator
from tunewise.engine import row_file
from tunewise.engine.row_file import RowFile
from tunewise.fitting.encoded_rows import encoded_rows, remove_rows
from tunewise.fitting.loop import train
from tunewise.fitting.row_order import order
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

SETTINGS = TrainSettings(max_steps=6, per_device_train_batch_size=4, save_steps=3)


@pytest.fixture
def in_a_file(monkeypatch):
    """From now on, more than ten rows are kept in a file."""
    monkeypatch.setattr(row_file, "MOST_IN_MEMORY", 10)
    monkeypatch.setattr(row_file, "CHUNK", 7)


def losses(name, folder, rows_folder):
    base, task = tiny_base(), tiny_task()
    attachment = make(name).resolved(base).attach(base, generator(0, "attach"))
    rows, seen = encoded_rows(attachment, task, rows_folder), []
    train(attachment, rows, SETTINGS, folder=folder, on_step=lambda step, loss: seen.append(loss))
    assert isinstance(rows, RowFile) == (rows_folder is not None)
    state = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
    return seen, state["tokens_sha256"]


@pytest.mark.parametrize("name", ["lora", "prompt_tuning", "last_layers"])
def test_losses_and_checkpoints_are_those_of_a_list(name, tmp_path, in_a_file):
    from_list = losses(name, tmp_path / "list", None)
    assert losses(name, tmp_path / "file", tmp_path / "rows") == from_list
    (path,) = (tmp_path / "rows").glob("rows-*.bin")
    before = path.stat().st_mtime_ns
    assert losses(name, tmp_path / "again", tmp_path / "rows") == from_list and path.stat().st_mtime_ns == before


def test_trials_share_a_file_and_other_data_has_another(tmp_path, in_a_file):
    for window in (64, 48):
        base = tiny_base()
        base.max_length = window
        for _ in range(2):
            context = ComparisonContext(base, tiny_task(), validation=4, test=4, retention=None, rows=tmp_path)
            attachment = make("lora").resolved(base).attach(base, generator(0, "attach"))
            assert isinstance(context.train_sequences(attachment), RowFile)
            base.release()
    assert len(list(tmp_path.glob("rows-*.bin"))) == 2
    remove_rows(tmp_path.parent)
    assert len(list(tmp_path.glob("rows-*.bin"))) == 2, "only those in a folder of rows"


def test_the_order_of_an_epoch_is_what_it_was():
    """As trials on disk were trained in it."""
    assert order(7, 0, 0, 16) == order(7, 0, 0, 7) + order(7, 0, 7, 7) + order(7, 0, 14, 2)
    assert sorted(order(7, 3, 7, 7)) == list(range(7)) and all(type(index) is int for index in order(5, 0, 2, 9))
