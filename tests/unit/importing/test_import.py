"""Other programs' configuration files, as `fit --config` and `compare --config` then read them."""

import string
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from tunewise.cli import main
from tunewise.core.errors import SettingError
from tunewise.importing.convert import PROGRAMS, import_file
from tunewise.importing.programs.trainer import TRAINER, TRAINER_ALIASES, TRAINER_DEFAULTS
from tunewise.importing.record import Fate
from tunewise.importing.source import HIDDEN, rule_key
from tunewise.resolve import TechniqueOptions, recipes_of

FILES = Path(__file__).parent / "files"
EXPECTED = yaml.safe_load((FILES / "expected.yaml").read_text("utf-8"))
NAMES = sorted(EXPECTED)
COMMANDS = typer.main.get_command(main.app).commands
WITHOUT_DATA = ("trl/dora.yaml",)  # its data is a split that cannot be chosen


@pytest.fixture
def read(tmp_path):
    """A function that reads a configuration as a command does, and returns the values of its options."""

    def call(text, command="fit"):
        path = tmp_path / "config.yaml"
        path.write_text(text, "utf-8")
        return COMMANDS[command].make_context(command, ["--config", str(path)]).params

    return call


@pytest.fixture
def imported(tmp_path):
    """A function that imports a text."""

    def call(text, **options):
        path = tmp_path / "theirs.yaml"
        path.write_text(text, "utf-8")
        return import_file(path, **options)

    return call


@pytest.fixture
def of_file(monkeypatch):
    """A function that imports one of the files, from its folder, as its program is run there."""

    def call(name, **options):
        monkeypatch.chdir((FILES / name).parent)
        return import_file(Path(Path(name).name), **options)

    return call


def fates(result):
    return {line.entry.key: line.outcome.fate for line in result.lines}


def plain(values):
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def test_every_file_has_expected_values():
    assert sorted(str(path.relative_to(FILES)) for path in FILES.glob("*/*.yaml")) == NAMES
    assert {Path(name).parent.name for name in NAMES} == {word.replace("-", "_") for word in PROGRAMS}


@pytest.mark.parametrize("name", NAMES)
def test_fit_reads_what_a_file_becomes(of_file, read, name):
    result = of_file(name)
    assert result.missing == (["data"] if name in WITHOUT_DATA else [])
    given_data = "".join(f"{option}: somewhere\n" for option in result.missing)
    values = plain(read(result.to_yaml() + given_data))
    expected = dict(EXPECTED[name])
    recipe, technique = expected.pop("recipe"), expected["technique"]
    options = {"technique": technique, "model": "m", "data": "somewhere", "out": "o"}
    defaults = plain(read(yaml.safe_dump(options)))
    changed = {
        option: value
        for option, value in values.items()
        if option not in ("config", "sets") and (option == "technique" or value != defaults[option])
    }
    assert changed == expected
    made = recipes_of(technique, TechniqueOptions(sets=values["sets"]))[0].to_json()["settings"]
    usual = recipes_of(technique)[0].to_json()["settings"]
    assert {setting: value for setting, value in made.items() if value != usual.get(setting)} == recipe


@pytest.mark.parametrize("name", NAMES)
def test_compare_reads_what_a_file_becomes(of_file, read, name):
    fit, compare = of_file(name), of_file(name, command="compare")
    given_data = "".join(f"{option}: somewhere\n" for option in compare.missing)
    values = read(compare.to_yaml() + given_data, "compare")
    one = read(fit.to_yaml() + given_data)
    technique = one["technique"]
    assert values["techniques"] == f"base,{technique}"
    assert (values["budget_steps"], values["epochs"]) == (one["max_steps"], one["epochs"])
    recipe = recipes_of(technique, TechniqueOptions(sets=values["sets"]))[0]
    assert recipe == recipes_of(technique, TechniqueOptions(sets=one["sets"]), learning_rate=one["learning_rate"])[0]
    shared = one.keys() & values.keys() - {"config", "sets"}
    assert {name: values[name] for name in shared} == {name: one[name] for name in shared}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_file_has_a_line(of_file, name):
    """Each line of the file that gives a value is covered by a line of the report, in its order."""

    def leaves(value, prefix=""):
        for key, part in value.items():
            while isinstance(part, list) and len(part) == 1 and isinstance(part[0], dict):
                part = part[0]
            yield from leaves(part, f"{prefix}{key}.") if isinstance(part, dict) else [prefix + key]

    result = of_file(name)
    assert all(line.outcome.remark for line in result.lines if line.outcome.fate in (Fate.LEFT, Fate.UNKNOWN))
    lines = [line.entry for line in result.lines if line.entry.line is not None]
    told = {entry.key for entry in lines}
    for leaf in leaves(yaml.safe_load((FILES / name).read_text("utf-8"))):
        assert any(leaf == key or leaf.startswith(f"{key}.") for key in told), leaf
    assert [entry.line for entry in lines] == sorted(entry.line for entry in lines)
    text = (FILES / name).read_text("utf-8").splitlines()
    assert all(entry.key.rpartition(".")[2] in text[entry.line - 1] for entry in lines)


@pytest.mark.parametrize("word", PROGRAMS)
def test_what_a_table_names_is_known(word):
    program = PROGRAMS[word]
    assert not [key for key in program.defaults if rule_key(key, program.rules) != key]
    assert not [
        key
        for key in program.marks
        if rule_key(program.aliases.get(key, key), program.rules) is None
        and not any(known.startswith(f"{key}.") for known in program.rules)
    ]
    assert not [key for key in program.aliases.values() if key not in program.rules]
    assert not [key for key in program.aliases if key in program.rules]
    others = [other for name, other in PROGRAMS.items() if name != word]
    assert not [key for other in others for key in other.marks & program.marks]


def test_every_training_argument_is_known_with_its_default():
    """The table is held against transformers itself."""
    names = {name: TRAINER_ALIASES.get(name, name) for name in TrainingArguments.__dataclass_fields__}
    assert not [name for name, known in names.items() if rule_key(known, TRAINER) is None]
    ours = {name: value for name, value in TRAINER_DEFAULTS.items() if name != "output_dir"}
    theirs = {name: TrainingArguments.__dataclass_fields__[name].default for name in ours}
    assert ours == {name: getattr(value, "value", value) for name, value in theirs.items()}


LLAMA_FACTORY = "model_name_or_path: m\nstage: sft\noutput_dir: o\ndataset: org/x\ndataset_dir: ONLINE\n"
AXOLOTL = "base_model: m\nsequence_len: 64\noutput_dir: o\ndatasets:\n  - path: org/x\n    type: alpaca\n"
TRL = "model_name_or_path: m\ndataset_name: org/x\noutput_dir: o\n"
TORCHTUNE = (
    "output_dir: o\nmodel:\n  _component_: torchtune.models.llama2.lora_llama2_7b\n  lora_attn_modules: [q_proj]\n"
    "checkpointer:\n  checkpoint_dir: m\ndataset:\n  _component_: torchtune.datasets.alpaca_dataset\n"
)
AUTOTRAIN = "task: llm-sft\nbase_model: m\nproject_name: o\ndata:\n  path: org/x\n"
LEAST = {
    "llama-factory": LLAMA_FACTORY,
    "axolotl": AXOLOTL,
    "trl": TRL,
    "torchtune": TORCHTUNE,
    "autotrain": AUTOTRAIN,
}


@pytest.mark.parametrize("word", LEAST)
def test_a_program_is_recognised_and_can_be_named(imported, word):
    result = imported(LEAST[word])
    assert result == imported(LEAST[word], word=word)
    assert (result.program, result.missing) == (PROGRAMS[word].name, [])


def test_steps_read_as_many_examples_on_one_device(imported):
    text = LLAMA_FACTORY + "per_device_train_batch_size: 2\ngradient_accumulation_steps: 3\n"
    settings = imported(text, devices=4).settings
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 2 * 3 * 4
    settings = imported(AXOLOTL + "micro_batch_size: 4\nbatch_size: 24\n", devices=2).settings
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 24 * 2


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (LLAMA_FACTORY + "max_steps: 9\nnum_train_epochs: 4\n", {"max_steps": 9}),
        (LLAMA_FACTORY + "max_steps: -1\nnum_train_epochs: 4\n", {"num_train_epochs": 4.0}),
        (AXOLOTL + "max_steps: 9\nnum_epochs: 4\n", {"max_steps": 9}),
        (AXOLOTL, {"num_train_epochs": 1.0}),
        (TRL, {"num_train_epochs": 3.0}),
        (TORCHTUNE + "epochs: 3\nmax_steps_per_epoch: 7\n", {"max_steps": 21}),
        (TORCHTUNE + "epochs: 3\nmax_steps_per_epoch: null\n", {"num_train_epochs": 3.0}),
    ],
)
def test_steps_win_over_epochs(imported, text, length):
    settings = imported(text).settings
    assert {name: settings[name] for name in ("max_steps", "num_train_epochs") if name in settings} == length


@pytest.mark.parametrize(
    ("text", "became"),
    [
        ("warmup_ratio: 0.1", {"warmup_ratio": 0.1}),
        ("warmup_steps: 0.05", {"warmup_ratio": 0.05}),
        ("warmup_steps: 6", {"warmup_steps": 6}),
    ],
)
def test_a_warm_up_is_steps_or_a_share_of_them(imported, text, became):
    """Transformers reads steps below 1 as a share."""
    result = imported(TRL + text)
    (line,) = [line for line in result.lines if line.entry.key.startswith("warmup")]
    assert line.outcome.fate is Fate.TAKEN
    assert line.outcome.settings == became


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        (LLAMA_FACTORY + "lora_target: all", ["all-linear"]),
        (LLAMA_FACTORY + "lora_target: [q_proj, mlp.up_proj]", ["q_proj", "mlp.up_proj"]),
        (TRL + "use_peft: true", ["q_proj", "v_proj"]),
        (TRL + "use_peft: true\nlora_target_modules: '.*_proj'", None),
        (AXOLOTL + "adapter: lora\nlora_target_linear: true", ["all-linear"]),
        (AXOLOTL + "adapter: qlora", ["q_proj", "v_proj"]),
        (TORCHTUNE.replace("[q_proj]", "[output_proj]\n  apply_lora_to_mlp: true"), ["o", "gate", "up", "down"]),
    ],
)
def test_targets(imported, text, targets):
    settings = imported(text).settings
    technique = settings["technique"]
    assert settings.get(f"{technique}.target_modules") == targets


def test_oft_and_the_lowest_blocks(imported):
    settings = imported(LLAMA_FACTORY + "finetuning_type: oft\noft_target: [q_proj]\n").settings
    assert (settings["technique"], settings["peft:oft.target_modules"]) == ("peft:oft", ["q_proj"])
    settings = imported(LLAMA_FACTORY + "finetuning_type: freeze\nfreeze_trainable_layers: -2\n").settings
    assert settings["last_layers.layers"] == ["0", "1"]


def test_secrets_are_never_shown(imported):
    secret = "hf_" + string.ascii_letters[:30]
    text = TRL + f"hub_token: {secret}\nnotes: see {secret}\napi_key: short\nenv:\n  ANY: hidden too\n"
    result = imported(text + "eos_token: <end>\nmodel_init_kwargs: {token: short, revision: 1}\n")
    shown = {line.entry.key: line.entry.shown for line in result.lines}
    assert [shown[key] for key in ("hub_token", "notes", "api_key", "env", "model_init_kwargs")] == [HIDDEN] * 5
    assert shown["eos_token"] == "<end>"
    assert secret not in str(result.to_json()) + result.to_yaml()


@pytest.mark.parametrize(
    ("split", "data"),
    [
        ("train", "org/x"),
        ("train[:95%]", "org/x"),
        ("train[:300]", "org/x#300"),
        ("train[:5%]", None),
        ("train[95%:]", None),
        ("train_sft", None),
    ],
)
def test_splits(imported, split, data):
    result = imported(AXOLOTL + f"    split: {split}\n")
    assert result.settings.get("data") == data
    assert result.missing == ([] if data else ["data"])


@pytest.mark.parametrize(
    ("extra", "data"),
    [
        ("    data_files: part.jsonl\n", "hf://datasets/org/x/part.jsonl"),
        ("    data_files: [part.jsonl]\n", "hf://datasets/org/x/part.jsonl"),
        ("    data_files: [a.jsonl, b.jsonl]\n", None),
        ("    name: small\n", "org/x:small"),
        ("    shards: 4\n", None),
    ],
)
def test_files_and_configurations_of_the_hub(imported, extra, data):
    assert imported(AXOLOTL + extra).settings.get("data") == data


def test_several_data_sets_are_not_mixed(imported):
    result = imported(AXOLOTL + "  - path: org/y\n    type: alpaca\n")
    assert fates(result)["datasets"] is Fate.LEFT and result.missing == ["data"]


def test_what_is_unknown_is_listed(imported):
    result = imported(LLAMA_FACTORY + "lora_rnak: 8\nnested:\n  deep: {a: 1}\nempty:\n")
    unknown = [line for line in result.lines if line.outcome.fate is Fate.UNKNOWN]
    assert [(line.entry.key, line.entry.line) for line in unknown] == [
        ("lora_rnak", 6),
        ("nested.deep.a", 8),
        ("empty", 9),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\n", "do not say which program"),
        ("sequence_len: 8\ncutoff_len: 8\n", "has cutoff_len of LLaMA-Factory and sequence_len of Axolotl"),
        ("just words", "must hold settings"),
        ("- a\n- b\n", "must hold settings"),
        ("", "must hold settings"),
        ("a: [\n", "cannot be read as YAML"),
        ("a: &x 1\nb: *x\n", "aliases"),
        (LLAMA_FACTORY + "stage: pt\n", 'line 6: "stage" is given a second time'),
        (LLAMA_FACTORY.replace("sft", "dpo"), "line 2: stage is dpo, and tunewise trains on right answers"),
        (
            LLAMA_FACTORY + "finetuning_type: magic\n",
            "line 6: finetuning_type is magic, and there is no such technique",
        ),
        (LLAMA_FACTORY + "lora_rank: eight\n", "line 6: lora_rank is eight but must be a number"),
        (LLAMA_FACTORY + "lora_rank: 8.5\n", "line 6: lora_rank is 8.5 but must be a whole number"),
        (LLAMA_FACTORY + "lora_rank: 0\n", "line 6: lora_rank: lora.r is 0 but must be between 1 and 4096"),
        (LLAMA_FACTORY + "lora_dropout: 2\n", "line 6: lora_dropout: lora.lora_dropout is 2.0 but must be between"),
        (LLAMA_FACTORY + "num_train_epochs: 0\n", "line 6: num_train_epochs: num_train_epochs is 0 but must be more"),
        (LLAMA_FACTORY + "per_device_train_batch_size: 0\n", "line 6: per_device_train_batch_size: per_device"),
        (LLAMA_FACTORY + "learning_rate: -1\n", "line 6: learning_rate: lora.learning_rate is -1.0 but must be"),
        (LLAMA_FACTORY + "learning_rate: .nan\n", "line 6: learning_rate is nan but must be a number"),
        (LLAMA_FACTORY + "bf16: maybe\n", "line 6: bf16 is maybe but must be true or false"),
        (LLAMA_FACTORY + "lora_target: {a: b}\n", "line 6: lora_target is {'a': 'b'} but must be names"),
        (
            LLAMA_FACTORY + "evaluation_strategy: no\neval_strategy: no\n",
            "says the same as evaluation_strategy in line 6",
        ),
        (AXOLOTL + "rl: dpo\n", "line 7: rl is dpo, and tunewise trains on right answers only"),
        (AXOLOTL + "adapter: mora\n", "line 7: adapter is mora, and there is no such technique"),
        (AXOLOTL + "bf16: true\nbfloat16: 1\n", "line 8: bfloat16 is 1 but must be true or false"),
        (TRL + "beta: 0.1\n", "line 4: beta is 0.1, and tunewise trains on right answers only"),
        (TRL + "reward_funcs: [a]\n", "line 4: reward_funcs"),
        (TORCHTUNE + "teacher_model:\n  _component_: torchtune.models.llama2.llama2_7b\n", "another one's outputs"),
        (TORCHTUNE + "loss:\n  _component_: torchtune.rlhf.loss.DPOLoss\n", "not on preferences"),
        (TORCHTUNE.replace("torchtune.models.llama2.lora_llama2_7b", "my.builder"), "must be a component such as"),
        (TORCHTUNE + "seed: ${a}\na: ${seed}\n", "refers to itself"),
        (AUTOTRAIN.replace("llm-sft", "llm-dpo"), "line 1: task is llm-dpo, and tunewise trains language models"),
        (AUTOTRAIN.replace("llm-sft", "text-classification"), "line 1: task is text-classification"),
    ],
)
def test_what_is_refused(imported, text, message):
    with pytest.raises(SettingError) as refused:
        imported(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value) and "theirs.yaml" in str(refused.value)


def test_a_program_must_fit_the_file(imported):
    with pytest.raises(SettingError, match="holds no setting of Axolotl"):
        imported("dpo: 1\n", word="axolotl")
    with pytest.raises(SettingError, match="must be one of llama-factory"):
        imported(TRL, word="unsloth")
    with pytest.raises(SettingError, match="devices is 0"):
        imported(TRL, devices=0)


def test_references_grow_within_bounds(imported):
    text = TORCHTUNE + "a: " + "x" * 300 + "\n"
    text += "".join(f"{new}: {f'${{{old}}}' * 9}\n" for old, new in zip("abcdefg", "bcdefgh", strict=True))
    with pytest.raises(SettingError, match="grows too long"):
        imported(text)


@pytest.mark.parametrize(
    ("name", "data", "remark"),
    [
        ("chosen", None, "preferences"),
        ("odd", None, "cannot be named here"),
        ("absent", None, "is not in data/dataset_info.json"),
        ("faults,talks", None, "one data set is read here"),
        ("talks", "data/talks.json", ""),
    ],
)
def test_data_of_llama_factory_is_found_by_its_description(imported, monkeypatch, name, data, remark):
    monkeypatch.chdir(FILES / "llama_factory")
    result = imported(f"model_name_or_path: m\nstage: sft\noutput_dir: o\ndataset: {name}\n")
    line = next(line for line in result.lines if line.entry.key == "dataset")
    assert (result.settings.get("data"), line.outcome.fate is Fate.LEFT) == (data, data is None)
    assert remark in line.outcome.remark
    assert result.missing == ([] if data else ["data"])


def test_a_description_of_data_may_be_broken(imported, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for text in ("[", '{"rows": 3}', '{"rows": {"file_name": 3}}', '{"rows": {"columns": []}}'):
        (tmp_path / "data" / "dataset_info.json").write_text(text)
        assert imported("model_name_or_path: m\nstage: sft\noutput_dir: o\ndataset: rows\n").missing == ["data"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "none", "no", "steps", "all", "1e-4", "0", "8", "q_proj,v_proj", "${seed}", "a=b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize("word", LEAST)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_values_are_taken_or_refused_in_one_sentence(tmp_path_factory, read_any, word, data):
    """No value of any setting leads to anything but a configuration that loads, or one line."""
    known = sorted(key for key in PROGRAMS[word].rules if "*" not in key)
    document = yaml.safe_load(LEAST[word])
    for key in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)):
        *outer, last = key.split(".")
        place = document
        for name in outer:
            inner = place[name][0] if isinstance(place.get(name), list) and place[name] else place.get(name)
            if not isinstance(inner, dict):
                inner = place[name] = {}
            place = inner
        place[last] = data.draw(VALUES)
    path = tmp_path_factory.mktemp("any") / "theirs.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
    try:
        result = import_file(path, word, command=data.draw(st.sampled_from(["fit", "compare"])))
    except SettingError as error:
        assert "\n" not in str(error)
        return
    read_any(result)


@pytest.fixture(scope="module")
def read_any(tmp_path_factory):
    """A function that has the command read what was imported, with what is missing beside it."""
    path = tmp_path_factory.mktemp("ours") / "config.yaml"

    def call(result):
        path.write_text(result.to_yaml() + "".join(f"{name}: m\n" for name in result.missing), "utf-8")
        COMMANDS[result.command].make_context(result.command, ["--config", str(path)])

    return call
