"""Exports and pushes on the command line."""

import json


def test_export_says_that_it_is_the_same(run, refused, fitted, labels, tmp_path):
    result = run("export", fitted, "--to", "merged", "--out", tmp_path / "out", "--data", labels)
    assert result.code == 0 and "is the model that was trained" in result.out
    assert f"60 prompts ({labels})" in result.out and "accuracy" in result.out
    assert not result.err
    record = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    assert record["same"] and record["adaptation"]["technique"] == "lora"
    assert "not empty" in refused("export", fitted, "--to", "merged", "--out", tmp_path / "out")

    record = run("export", fitted, "--to", "peft", "--out", tmp_path / "peft", "--data", labels, "--json").json()
    assert record["format"] == "peft" and record["greedy_agreement"] == 1


def test_the_number_of_prompts_is_chosen_or_the_proof_left_out(run, refused, fitted, tmp_path):
    few = run("export", fitted, "--to", "merged", "--out", tmp_path / "few", "--parity-prompts", 14)
    assert few.code == 0 and "No difference in 14 prompts: at most 19 % of prompts differ (95 %)." in few.out
    message = refused("export", fitted, "--to", "merged", "--out", tmp_path / "o", "--parity-prompts", 0)
    assert "--no-parity" in message
    message = refused("export", fitted, "--to", "merged", "--out", tmp_path / "o", "--no-parity", "--parity-prompts", 9)
    assert "give one of the two" in message
    assert not (tmp_path / "o").exists()
    for place, more in (("one", ()), ("two", ("--parity-prompts", 0))):
        result = run("export", fitted, "--to", "merged", "--out", tmp_path / place, "--no-parity", *more)
        assert result.code == 0 and "not compared with the trained model" in result.out
        record = json.loads((tmp_path / place / "parity.json").read_text("utf-8"))
        assert record["same"] is None and record["checked"] is False
    assert "not compared" in run("push", tmp_path / "one", "me/x", "--card-only").out


def test_export_refuses_in_one_line(refused, fitted, labels, tmp_path):
    message = refused("export", fitted, "--to", "sparse", "--out", tmp_path / "o")
    assert "merged" in message
    assert "gguf" in refused("export", fitted, "--to", "ggml", "--out", tmp_path / "o")
    assert "--data" in refused("export", fitted, "--to", "peft", "--out", tmp_path / "o", "--metric", "f1")
    assert "there is no such folder" in refused("export", tmp_path / "no", "--to", "peft", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_export_that_differs_exits_with_1(run, refused, fitted, tmp_path, monkeypatch):
    from tunewise.export import parity

    monkeypatch.setattr(parity, "TOLERANCE", dict.fromkeys(parity.TOLERANCE, -1.0))
    monkeypatch.setattr("tunewise.export.export.TOLERANCE", parity.TOLERANCE)
    result = run("export", fitted, "--to", "merged", "--out", tmp_path / "out")
    assert result.code == 1 and "is NOT the model" in result.out and "They differ on prompts 0, 1" in result.out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "not the model" in refused("push", tmp_path / "out", "me/x", "--card-only")


def test_push_shows_the_card_alone(run, refused, fitted, monkeypatch):
    result = run("push", fitted, "me/tiny", "--card-only", "--license", "mit")
    assert result.code == 0 and result.out.startswith("---\n") and "license: mit" in result.out
    listed = run("push", fitted, "me/tiny", "--card-only", "--json").json()
    assert "adaptation.json" in listed["files"] and listed["card"].startswith("---")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere/token")
    assert "no name" in refused("push", fitted, "not a name", "--card-only")
