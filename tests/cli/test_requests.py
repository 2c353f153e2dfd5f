"""Settings, models and data that cannot be used: one line, exit code 2."""

import pickle  # noqa: TID251 (to make what must never be opened)
from pathlib import Path

import pytest

from tunewise.cli import main


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora.r=0", "lora.r is 0 but must be between 1 and 4096"),
        ("lora.r=1.5", "must be a whole number"),
        ("lora.r=many", "must be a whole number"),
        ("lora.lora_dropout=2", "must be between 0 and 0.95"),
        ("lora.rank=8", 'lora has no setting "rank"'),
        ("lora.lora_alfa=8", 'did you mean "lora_alpha"?'),
        ("lora.target_modules=[1,2]", "must be a list of names"),
        ("lora.r", "must look like lora.r=8"),
        ("r=8", "must look like lora.r=8"),
        ("lora.=8", "must look like lora.r=8"),
        ("lora.r=[1", "cannot be read"),
        ("bitfit.source=add", '--set names "bitfit", which is not among lora'),
    ],
)
def test_wrong_technique_settings(refused, labels, tmp_path, setting, message):
    words = ["--model", tmp_path / "no-model", "--data", labels, "--out", tmp_path / "out"]
    assert message in refused("fit", "lora", *words, "--set", setting)
    assert not (tmp_path / "out").exists()


def test_wrong_technique_names(refused, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out"]
    assert 'did you mean "bitfit"?' in refused("compare", *words, "--techniques", "base,bitfitt")
    assert "cannot compose" in refused("compare", *words, "--techniques", "lora+full")
    assert "each only once" in refused("compare", *words, "--techniques", "lora,lora")
    assert "at least one" in refused("compare", *words, "--techniques", ",")


def test_wrong_workers(refused, labels, tmp_path, monkeypatch):
    from tunewise.core import extras

    words = ["compare", "--model", tmp_path / "no-model", "--data", labels, "--out", tmp_path / "out"]
    assert "--workers is 0 but must be at least 1" in refused(*words, "--workers", 0)
    assert '--workers is "two" but must be a number' in refused(*words, "--workers", "two")
    assert "--workers runs trials in processes of their own, and --in-process in this one" in refused(
        *words, "--workers", 2
    )
    assert "--mixed is for the devices of several workers" in refused(*words, "--mixed")
    monkeypatch.setattr(extras, "installed", lambda package: package != "ray")
    for address in ("auto", "ray://head:10001"):
        said = refused(*words, "--workers", address)
        assert f"--workers {address} needs ray, not installed here: pip install 'tunewise[ray]'" in said
    assert not (tmp_path / "out").exists()


def test_config_file(run, model, labels, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model}\ndata: {labels}\nout: {tmp_path / 'out'}\ntechniques: [base, lora]\nbudget_steps: 5\n"
        "batch-size: 4\ntemplate: 'Text: {prompt} Kind:'\nset:\n  lora.r: 3\n  lora.learning_rate: 1e-3\n"
    )
    result = run("compare", "--config", config, "--budget-steps", 2, "--json").json()
    assert result["budget"]["steps"] == 2, "words win over the file"
    assert result["settings"]["per_device_train_batch_size"] == 4
    row = result["rows"][1]
    assert (row["settings"]["r"], row["learning_rate"]) == (3, 1e-3)


@pytest.mark.parametrize("command", ["check", "fit", "compare", "eval"])
def test_config_knows_every_option(refused, tmp_path, command):
    """Every long option is a name for the file; the error of an unknown one lists them."""
    import typer

    config = tmp_path / "run.yaml"
    config.write_text("bogus: 1\n")
    message = refused(command, "--config", config)
    assert 'there is no setting "bogus"' in message
    options = typer.main.get_command(main.app).commands[command].params
    names = {name[2:] for option in options for name in option.opts if name.startswith("--")} - {"config", "help"}
    unknown = []
    for name in sorted(names):
        config.write_text(f"{name}: 1\nbogus: 1\n")
        if f'"{name}"' in refused(command, "--config", config):
            unknown.append(name)
    assert not unknown


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [\n", "just words"])
def test_config_that_is_none(refused, tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    assert "run.yaml" in refused("check", "--config", tmp_path / "run.yaml")
    assert "absent.yaml" in refused("check", "--config", tmp_path / "absent.yaml")


def test_wrong_models(refused, labels, tmp_path):
    words = ["fit", "lora", "--data", labels, "--out", tmp_path / "out", "--model"]
    assert "there is no such folder" in refused(*words, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(*words, tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no such type"}')
    assert "cannot be loaded" in refused(*words, tmp_path / "broken")
    assert not (tmp_path / "out").exists()


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_pickled_weights_are_never_opened(refused, model, labels, tmp_path):
    folder, canary = tmp_path / "pickled", tmp_path / "executed"
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    message = refused("fit", "lora", "--model", folder, "--data", labels, "--out", tmp_path / "out")
    assert "safetensors" in message
    assert not canary.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists(), "the canary itself works"


def test_data_errors_come_before_the_model(refused, tmp_path):
    """The model does not exist, and nothing says so: no model was looked for."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label"\n')
    for command in (["fit", "lora"], ["compare"], ["check"]):
        rest = ["--model", tmp_path / "no-model", *(["--out", tmp_path / "out"] if command != ["check"] else [])]
        message = refused(*command, "--data", tmp_path / "none.jsonl", *rest)
        assert "none.jsonl" in message and "no-model" not in message
        message = refused(*command, "--data", broken, *rest)
        assert "broken.jsonl line 2" in message and "no-model" not in message
    assert not (tmp_path / "out").exists()


def test_columns(run, refused, tmp_path):
    data = tmp_path / "own.csv"
    data.write_text("ask,reply\n" + "".join(f"question {i},reply {i}\n" for i in range(20)))
    assert "ask" in refused("check", "--data", data)
    assert "must look like" in refused("check", "--data", data, "--columns", "prompt")
    facts = run("check", "--data", data, "--columns", "prompt=ask,completion=reply", "--json").json()
    assert facts["format"] == "prompt-completion"
    assert run("check", "--data", f"{data}#10", "--columns", "prompt=ask,completion=reply").code == 0
