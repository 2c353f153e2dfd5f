"""Adaptations of every technique and adapters of PEFT's, with one JSON value or one tensor exchanged for a hostile one.

Each loads and answers with finite numbers, or is refused in one sentence; nothing else happens, and not for long. Which
mutants are tried is drawn by the name of the technique, and the same in each run; at night there are more.
"""

import hashlib
import json
import random
import shutil
import signal
from contextlib import contextmanager

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import figures
from tunewise.adaptation.artifact import PEFT_WEIGHTS, WEIGHTS, load, save
from tunewise.core import artifact_writer
from tunewise.core.artifact_reader import MANIFEST, manifest_bytes
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, encoder_for, example_settings, fingerprint, tiny_base, tiny_task

# PEFT warns with texts of the mutants, which no report of a test process can carry where they are no UTF-8.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.figure("M3"),
    pytest.mark.timeout(figures.of(300, 36_000)),
]

VALUES_CHANGED, TENSORS_CHANGED = figures.of(16, 200), figures.of(6, 100)  # mutants of an adaptation
SECONDS = 30  # after which a mutant counts as one that hangs
RAW = "@raw "  # what follows stands in the file as it is, quotes taken off

SETTINGS = example_settings()
FORMS = {name: (name, SETTINGS) for name in all_techniques()} | {
    "icl+lora": ("icl+lora", {}),
    "lora by patterns": ("lora", {"lora": {"rank_pattern": ["q=2"], "alpha_pattern": ["v=3"], "use_dora": True}}),
    "icl by volume": ("icl", {"icl": {"selection": "dpp", "k": 3, "instruction": "Say it.", "calibrate": "batch"}}),
    "icl for all": ("icl", {"icl": {"selection": "balanced", "order": "validation", "k": 3}}),
    "rag quoted": ("rag", {"rag": {"k": 2, "floor": 0.0, "style": "quoted"}}),
    "last_layers by number": ("last_layers", {"last_layers": {"layers": ["1"]}}),
    "peft:ia3": ("peft:ia3", {}),
    "peft:loha": ("peft:loha", {"peft:loha": {"r": 2, "rank_pattern": {"q_proj": 3}}}),
    "peft:lora": ("peft:lora", {"peft:lora": {"r": 2, "modules_to_save": ["lm_head"]}}),
}
ADAPTERS = {
    "lora": peft.LoraConfig(r=2, rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 4}, task_type="CAUSAL_LM"),
    "lora with more": peft.LoraConfig(r=2, bias="all", modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(r=4, task_type="CAUSAL_LM"),
    "oft": peft.OFTConfig(task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}
DEEP = RAW + "[" * 30_000 + "]" * 30_000
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 0.5, 10**7, -(10**12), 2**63, 1e300, -1e-300, "", "x", "lora", "qdrant://x:1/y"),
    *(
        "(a+)+$",
        "{prompt}" * 50,
        "%s%n{0}{x.__class__}",
        "\x00",
        "\x1b[2J",
        "~nobody/x",
        "/proc/self/fd/0",
        "//x//y",
        "long " * 2_000,
        "é\u2028\U0010ffff",
    ),
    *([], {}, [None], [[]], ["x"], [0], [1e300], {"a": 1}, {"": None}, [[[[[[[[]]]]]]]], ["a"] * 2000),
    *(RAW + text for text in ("NaN", "-Infinity", "1e999", "1" + "0" * 400, '{"a": 1, "a": 2}', '"\\ud800"', "")),
    DEEP,
]
MISSING, TWICE, UNKNOWN = "is missing", "stands twice", "has one more"


@contextmanager
def time_limit():
    """Fail where the block takes too long."""

    def late(number, frame):
        pytest.fail(f"still at work after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def places(value, path=()):
    """The path of every value in a parsed file."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*path, key))


def mutated(content, path, change):
    """The text of the content with another value at a path."""
    content = json.loads(json.dumps(content))
    if not path:
        return written(content if isinstance(change, str) and change in (MISSING, TWICE, UNKNOWN) else change)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if change is MISSING:
        del holder[path[-1]]
    elif change is UNKNOWN and isinstance(holder, dict):
        holder["more"] = holder[path[-1]]
    elif change is TWICE and isinstance(holder, dict):
        holder["@twice"] = RAW + json.dumps(holder[path[-1]])
        return written(content).replace('"@twice"', json.dumps(path[-1]))
    elif change not in (UNKNOWN, TWICE):
        holder[path[-1]] = change
    return written(content)


def written(content):
    """The content as JSON, raw parts as they are."""
    text = json.dumps(content)
    while (start := text.find(f'"{RAW}')) >= 0:
        raw, end = json.JSONDecoder().raw_decode(text, start)
        text = text[:start] + raw.removeprefix(RAW) + text[end:]
    return text


def mutants(name, content):
    """Pairs of a path and a change, drawn by the name."""
    pairs = [(path, change) for path in places(content) for change in (*VALUES, MISSING, TWICE, UNKNOWN)]
    return random.Random(name).sample(pairs, min(VALUES_CHANGED, len(pairs)))


def outcome(folder, base):
    """Load a folder and use it; return the error, if it is refused."""
    with time_limit():
        try:
            loaded = load(folder, base=base)
            example = loaded.attachment.render(tiny_task().test[0])
            (sequence,) = encoder_for(loaded.attachment, loaded.style).prompts([example], 2)
            assert base.model(input_ids=torch.tensor([sequence.ids])).logits.isfinite().all()
        except TunewiseError as error:
            message = str(error)
            assert isinstance(error, RequestError) and "\n" not in message and len(message) < 2500, message
            assert message.isprintable(), message
            return message
        finally:
            base.release()
    return None


def rewrite(folder, texts, others=()):
    """Write other texts into an adaptation, and a manifest that fits them and other files."""
    entries = json.loads((folder / MANIFEST).read_text())["files"]
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    for name in (*texts, *others):
        raw = (folder / name).read_bytes()
        entries[name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / MANIFEST).write_bytes(manifest_bytes(entries))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that saves an adaptation of a form once and returns its folder."""
    root, done = tmp_path_factory.mktemp("adaptations"), {}

    def save_once(form):
        if form not in done:
            name, settings = FORMS[form]
            base = tiny_base()
            save(attach(make(name, settings), base), tiny_task(), root / str(len(done)))
            done[form] = root / str(len(done))
        return done[form]

    return save_once


@pytest.mark.parametrize("form", FORMS)
def test_adaptations(form, saved, tmp_path, cases):
    shutil.copytree(saved(form), tmp_path / "a")
    stored, base = artifact_writer.read(saved(form)), tiny_base()
    before = fingerprint(base)
    texts = {name: stored.text(name) for name in stored.names if name in ("adaptation.json", "rows.jsonl")}
    rows = [json.loads(line) for line in texts.get("rows.jsonl", "").splitlines()[:3]]
    content = {"adaptation": json.loads(texts["adaptation.json"]), "rows": rows}
    wrong, refusals = [], 0
    for path, change in mutants(form, content):
        if path in ((), ("rows",)):
            continue
        new = dict(texts)
        if path[0] == "adaptation":
            new["adaptation.json"] = mutated(content["adaptation"], path[1:], change)
        else:
            lines = [*map(json.dumps, rows), *texts["rows.jsonl"].splitlines()[3:]]
            lines[path[1]] = mutated(rows[path[1]], path[2:], change)
            new["rows.jsonl"] = "\n".join(lines) + "\n"
        rewrite(tmp_path / "a", new)
        try:
            refusals += outcome(tmp_path / "a", base) is not None
            cases.passed()
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{path} {str(change)[:60]!r}: {type(error).__name__} {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
    assert refusals
    assert fingerprint(base) == before and not any(module._forward_hooks for module in base.model.modules())


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, tmp_path, cases):
    peft.get_peft_model(tiny_base().model, ADAPTERS[name]).save_pretrained(tmp_path / "good")
    content, base = json.loads((tmp_path / "good" / "adapter_config.json").read_text()), tiny_base()
    before, wrong = fingerprint(base), []
    folder = shutil.copytree(tmp_path / "good", tmp_path / "bad")
    for path, change in mutants(name, content):
        (folder / "adapter_config.json").write_text(mutated(content, path, change))
        try:
            outcome(folder, base)
            cases.passed()
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{path} {str(change)[:60]!r}: {type(error).__name__} {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
    assert fingerprint(base) == before and not any(module._forward_hooks for module in base.model.modules())


def shapes(tensor):
    """The tensor in other shapes."""
    flat = tensor.flatten()
    yield from (
        flat[:1].reshape(()),
        flat,
        flat[:0],
        tensor[None],
        tensor[:0],
        torch.cat([tensor, tensor]),
        tensor[:-1],
    )
    if tensor.dim() > 1:
        yield from (tensor.transpose(0, 1).contiguous(), tensor[:, :0], tensor[:, :-1].contiguous())


def types(tensor):
    """The tensor in other types; integers hold its bits or zeros."""
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.uint8, torch.bool):
        yield tensor.to(dtype)
    yield tensor.to(torch.float32).to(torch.float8_e4m3fn)


def filled(tensor):
    """The tensor with other values."""
    for value in (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e30, 1e19, 1e9, 1e7, 1e-45):
        if tensor.is_floating_point():
            yield torch.full_like(tensor, value)
            yield tensor.clone().index_fill_(0, torch.zeros(1, dtype=torch.long), value) if tensor.dim() else tensor * 2
    if not tensor.is_floating_point():
        yield from (tensor + 10**6, tensor - 10**6, torch.full_like(tensor, torch.iinfo(tensor.dtype).max))


def tensor_mutants(name, tensors):
    """Other tensors, with what was changed, drawn by the name."""
    base = {f"model.{key}": value for key, value in tiny_base().model.state_dict().items()}
    some = random.Random(name).sample(sorted(base), 4)
    changes = [("no tensors", lambda: {})]
    for key in ("x", "", "../x", "(a+)+$", "\x1b[2J", *some, *(f"base_model.{key}" for key in some)):
        changes.append((f"more: {key}", lambda key=key: {**tensors, key: base.get(key, torch.zeros(2, 2)) + 1}))
    for key, tensor in tensors.items():
        changes.append((f"less: {key}", lambda key=key: {n: v for n, v in tensors.items() if n != key}))
        changes.append(
            (f"named otherwise: {key}", lambda key=key: {n + "x" * (n == key): v for n, v in tensors.items()})
        )
        for make_others in (shapes, types, filled):
            for number, other in enumerate(make_others(tensor) if tensor.dim() else ()):
                what = f"{make_others.__name__} {number} {other.dtype}: {key}"
                changes.append((what, lambda key=key, other=other: {**tensors, key: other}))
    return random.Random(name).sample(changes, min(TENSORS_CHANGED, len(changes)))


def wrong_outcomes(name, tensors, write, folder, cases):
    """What is neither refused nor loads with finite outputs, or is taken in spite of its type."""
    base, wrong = tiny_base(), []
    before = fingerprint(base)
    for what, make_tensors in tensor_mutants(name, tensors):
        write(make_tensors())
        try:
            refusal = outcome(folder, base)
            if any(
                f" torch.{kind}: " in what and what.startswith("types") for kind in ("int8", "bool", "float8_e4m3fn")
            ):
                assert refusal is not None
            cases.passed()
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{what}: {type(error).__name__} {str(error)[:200]}")
    assert fingerprint(base) == before and not any(module._forward_hooks for module in base.model.modules())
    return wrong


@pytest.mark.figure("S3")
@pytest.mark.parametrize("name", ADAPTERS)
def test_tensors_of_adapters(name, tmp_path, cases):
    theirs = peft.get_peft_model(tiny_base().model, ADAPTERS[name])
    theirs.save_pretrained(tmp_path, save_embedding_layers=name == "lora with more")
    file = tmp_path / "adapter_model.safetensors"
    wrong = wrong_outcomes(name, load_file(file), lambda tensors: save_file(tensors, file), tmp_path, cases)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_adaptations(form, saved, tmp_path, cases):
    """Those of its own file, and those that lie where PEFT reads them too."""
    wrong = []
    for file in (WEIGHTS, PEFT_WEIGHTS):
        if not (saved(form) / file).is_file():
            continue
        folder = shutil.copytree(saved(form), tmp_path / file)

        def write(changed, folder=folder, file=file):
            save_file(changed, folder / file)
            rewrite(folder, {}, (file,))

        wrong += wrong_outcomes(form, load_file(folder / file), write, folder, cases)
    assert not wrong, "\n".join(wrong)


def test_what_is_not_changed_loads_and_answers(saved):
    for form in FORMS:
        assert outcome(saved(form), tiny_base()) is None, form
