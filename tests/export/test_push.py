"""The model card, and what is sent to the Hub: a stand-in takes its place."""

import json

import huggingface_hub
import pytest
import yaml

from comparison_result import result
from tunewise.adaptation.artifact import save
from tunewise.core.artifact_writer import read
from tunewise.core.errors import ArtifactError, SettingError, TunewiseError
from tunewise.engine.tiny import tiny_base, tiny_task
from tunewise.export.export import export
from tunewise.export.push import prepare_upload, push
from tunewise.techniques.registry import make
from tunewise.testing import attach


class Hub:
    """What of HfApi is used, without a network."""

    calls: list = []  # noqa: RUF012 (one list for all that are made)

    def create_repo(self, repo, private=False, exist_ok=False):
        self.calls.append(("create", repo, private, exist_ok))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def create_commit(self, repo, operations, commit_message):
        self.calls.append(("commit", repo, [(o.path_in_repo, o.path_or_fileobj) for o in operations]))
        return type("Done", (), {"oid": "abc"})()


@pytest.fixture
def hub(monkeypatch):
    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_made")
    return Hub


@pytest.fixture(scope="module")
def adaptation(tmp_path_factory):
    """An adaptation that lies in a comparison."""
    root = tmp_path_factory.mktemp("runs")
    base = tiny_base()
    base.name = "org/tiny"
    attachment = attach(make("lora", {"lora": {"r": 2}}), base)
    folder = root / "trials" / "lora-seed0-0123456789ab" / "adaptation"
    save(attachment, tiny_task(), folder, {"validation_loss": 1.25, "validation_loss_before": 2.5})
    (root / "compare.json").write_text(json.dumps(result()), "utf-8")
    return folder


def front(text):
    assert text.startswith("---\n")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(head), body


def test_the_card_says_what_the_comparison_measured(adaptation):
    files, text = prepare_upload(adaptation, "me/tiny-lora", "apache-2.0")
    head, body = front(text)
    row = next(row for row in result()["rows"] if row["technique"] == "lora")
    assert head["base_model"] == "org/tiny" and head["base_model_relation"] == "adapter"
    assert head["license"] == "apache-2.0" and head["library_name"] == "tunewise"
    assert head["tags"] == ["tunewise", "lora"]
    (metric,) = head["model-index"][0]["results"][0]["metrics"]
    assert metric["type"] == "exact_match" and metric["value"] == row["score"]["mean"]
    score = row["score"]
    assert f"| lora | {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in body
    assert "| base | 0.900" in body and f"{row['forgetting']['nll_rise']:.3f}" in body and "| training | " in body
    assert {path.name for path in files} >= {"adaptation.json", "adapter_model.safetensors", "manifest.json"}


def test_without_a_comparison_the_validation_loss_is_told(adaptation, tmp_path):
    base = tiny_base()
    base.name = "/secret/place/model"
    attachment = attach(make("lora", {"lora": {"r": 2}}), base)
    save(attachment, tiny_task(), tmp_path / "a", {"validation_loss": 1.25, "validation_loss_before": 2.5})
    head, body = front(prepare_upload(tmp_path / "a", "me/x", None)[1])
    assert "2.5000 before and 1.2500" in body and "No other technique was tried" in body
    assert "base_model" not in head and "license" not in head and "model-index" not in head
    assert "secret" not in body and "| base | model |" in body


def test_the_card_of_an_export_says_what_was_proved(tmp_path, hub):
    base = tiny_base()
    save(attach(make("lora", {"lora": {"r": 2}}), base), tiny_task(), tmp_path / "a")
    base.release()
    export(tmp_path / "a", "merged", tmp_path / "half", base=base, task=tiny_task(), dtype="bfloat16")
    body = front(prepare_upload(tmp_path / "half", "me/x", None)[1])[1]
    assert "On 20 prompts its logits differ from the trained model's, rounded to bfloat16, by at most" in body
    assert "No difference in 20 prompts: at most 14 % of prompts differ (95 %)." in body
    assert "Rounding the merged weights to bfloat16 moved" in body

    export(tmp_path / "a", "merged", tmp_path / "unproved", base=base, parity_prompts=None)
    body = front(prepare_upload(tmp_path / "unproved", "me/x", None)[1])[1]
    assert "It was not compared with the trained model." in body and "logits differ" not in body
    assert push(tmp_path / "unproved", "me/x")["commit"] == "abc"


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    """It knows nothing of bounds, rounding and comparisons that were left out."""
    base = tiny_base()
    save(attach(make("lora", {"lora": {"r": 2}}), base), tiny_task(), tmp_path / "a")
    base.release()
    export(tmp_path / "a", "merged", tmp_path / "old", base=base, task=tiny_task())
    path = tmp_path / "old" / "parity.json"
    record = json.loads(path.read_text("utf-8"))
    for name in ("checked", "most_that_differ"):
        del record[name]
    path.write_text(json.dumps(record), "utf-8")
    body = front(prepare_upload(tmp_path / "old", "me/x", None)[1])[1]
    assert "On 20 prompts its logits differ from the trained model's by at most" in body and "95 %" not in body


def test_names_cannot_break_the_card(tmp_path):
    base = tiny_base()
    base.name = "a|b\n<script>`"
    attachment = attach(make("lora", {"lora": {"r": 2}}), base)
    save(attachment, tiny_task(), tmp_path / "a")
    head, body = front(prepare_upload(tmp_path / "a", "me/x", "other")[1])
    assert head["license"] == "other" and "<script" not in body
    assert any(line.startswith("| base | a\\|b &lt;script>'") for line in body.splitlines())


def test_push_sends_all_in_one_commit(adaptation, hub):
    pushed = push(adaptation, "me/tiny-lora", private=True, licence="mit")
    assert hub.calls[0] == ("create", "me/tiny-lora", True, True)
    (_, repo, files) = hub.calls[1]
    assert repo == "me/tiny-lora" and len(hub.calls) == 2
    sent = dict(files)
    assert set(sent) == {path.name for path in adaptation.iterdir()} | {"README.md"} == set(pushed["files"])
    assert b"license: mit" in sent["README.md"]
    assert pushed["url"].endswith("me/tiny-lora") and pushed["commit"] == "abc"


def test_what_comes_back_from_the_hub_loads(adaptation, tmp_path):
    """The card lies beside the adaptation there; that is no damage. Anything else is."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adaptation, copy)
    (copy / "README.md").write_text("card")
    (copy / ".gitattributes").write_text("x")
    assert "README.md" not in read(copy).names
    (copy / "more.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"more\.txt"):
        read(copy)


def test_what_is_not_pushed(adaptation, hub, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="no name"):
        push(adaptation, "not a name")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="neither"):
        push(tmp_path / "other", "me/x")
    (tmp_path / "other" / "parity.json").write_text('{"same": false}')
    with pytest.raises(ArtifactError, match="is not the model that was trained"):
        push(tmp_path / "other", "me/x")
    (tmp_path / "other" / "parity.json").write_text('{"same": true}')
    with pytest.raises(ArtifactError, match="not as tunewise writes"):
        push(tmp_path / "other", "me/x")

    def refuse(*arguments, **options):
        raise OSError("401\nno")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(TunewiseError, match="401 no"):
        push(adaptation, "me/x")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingError, match="HF_TOKEN"):
        push(adaptation, "me/x")
    assert not [call for call in hub.calls if call[0] == "commit"]
