"""Where torchrun has started several processes, only what they do together runs."""

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "adaptation", "--data", "world:town"],
        ["compare", "--model", "world", "--data", "world:town", "--out", "out"],
        ["plan", "--model", "world", "--data", "world:town"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_each_would_do_the_whole_of_is_refused(run, monkeypatch, rank, words):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = run(*words)
    assert refused.code == 2 and not refused.out
    assert f"{words[0]} runs in one process, but 2 were started" in refused.err


def test_one_process_is_no_launcher_s_affair(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run("techniques", "lora").code == 0
