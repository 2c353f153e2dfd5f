"""The model card of an adaptation or an export: what it is, of what, how good, at what cost; nothing that is not known.

The YAML at its head is what the Hub reads. Scores come from the comparison that the adaptation lies in, with their
intervals, beside the base's; without one, the validation loss of its own fit is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LIBRARIES = {
    "peft": "peft",
    "lora": "peft",
    "merged": "transformers",
    "gguf": "gguf",
    "onnx": "onnx",
    "ollama": "gguf",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def card(facts: Mapping[str, Any], parity: Mapping[str, Any] | None, name: str, licence: str | None) -> str:
    """The text of README.md, for a repository called `name`."""
    head = _metadata(facts, parity, name, licence)
    return f"---\n{head}\n---\n\n" + "\n".join(_body(facts, parity, name, licence)).rstrip() + "\n"


def _metadata(facts: Mapping[str, Any], parity: Mapping[str, Any] | None, name: str, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    compared = facts["comparison"]
    form = parity["format"] if parity else "tunewise"
    base, source = hub_id(facts["base"].get("name")), hub_id(_source(facts))
    results = None
    if compared:
        task, score = compared["task"], compared["row"]["score"]
        kind = "text-classification" if task["kind"] == "classification" else "text-generation"
        results = [
            EvalResult(kind, source or str(task["name"]), str(task["name"]), str(score["metric"]), score["mean"])
        ]
    data = ModelCardData(
        base_model=base,
        library_name=_LIBRARIES.get(form, "tunewise"),
        license=licence,
        datasets=[source] if source else None,
        tags=["tunewise", *dict.fromkeys(str(facts["technique"]).split("+"))],
        pipeline_tag="text-generation",
        model_name=name.rpartition("/")[2],
        eval_results=results,
        base_model_relation=(
            ("finetune" if form in ("merged", "onnx", "gguf", "ollama") else "adapter") if base else None
        ),
    )
    return data.to_yaml().rstrip()


def _body(facts: Mapping[str, Any], parity: Mapping[str, Any] | None, name: str, licence: str | None) -> Iterator[str]:
    base, technique = facts["base"], str(facts["technique"])
    shown = _cell(hub_id(base.get("name")) or plain_name(base.get("name")))
    yield f"# {name.rpartition('/')[2]}\n"
    what = f"exported as {parity['format']} in {parity['dtype']}" if parity else "an adaptation that tunewise loads"
    yield f"{shown} fine-tuned with {_cell(facts.get('label') or technique)}, {what}.\n"
    yield "| | |\n|---|---|"
    revision = f" at revision {base['revision']}" if base.get("revision") else ""
    yield f"| base | {shown}{_cell(revision)} |"
    if base.get("fingerprint"):
        yield f"| fingerprint of the base's weights | `{_cell(base['fingerprint'][:16])}` |"
    if _source(facts):
        yield f"| data | {_cell(hub_id(_source(facts)) or plain_name(_source(facts)))} |"
    yield f"| technique | {_cell(technique)} |"
    yield f"| settings | `{_cell(json.dumps(facts['settings'], ensure_ascii=False))}` |"
    unsaid = "not given; what is of the base stays under the base's"
    yield f"| licence | {_cell(licence) if licence else unsaid} |"
    if facts["comparison"]:
        yield from _scores(facts["comparison"])
    elif "validation_loss" in facts["record"]:
        yield "\n## How good it is\n"
        before, after = facts["record"].get("validation_loss_before"), facts["record"]["validation_loss"]
        start = f"{before:.4f} before and " if isinstance(before, float) else ""
        yield f"Validation loss: {start}{after:.4f} nats per answer token after. It was compared with nothing else."
    if parity:
        yield "\n## Whether it is the model that was trained\n"
        yield (
            f"On {parity['prompts']} prompts its logits differ from the trained model's by at most "
            f"{parity['max_logit_difference']:.2g}; training moved them by up to {parity['moved_by_training']:.2g}; "
            f"{100 * parity['greedy_agreement']:.0f} % of the greedy continuations are the same."
        )
        for note in parity["notes"]:
            yield f"\n{_cell(note)}"
    style = facts["style"]
    if style.get("template"):
        lines = [f"    {line}" for line in str(style["template"]).splitlines()]
        yield "\n## Prompt\n\n" + "\n".join(lines)


def _scores(compared: Mapping[str, Any]) -> Iterator[str]:
    row, task, budget = compared["row"], compared["task"], compared["budget"]
    yield "\n## How good it is\n"
    metric = _cell(row["score"]["metric"])
    yield f"| | {metric} (95 % interval) | forgetting, nats a token | KL from the base | seeds |\n|---|---|---|---|---|"
    for own in filter(None, (compared["base"], row)):
        score, lost = own["score"], own.get("forgetting") or {}
        rise, kl = (f"{lost[key]:.3f}" if isinstance(lost.get(key), float) else "" for key in ("nll_rise", "kl"))
        interval = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        yield f"| {_cell(own['technique'])} | {interval} | {rise} | {kl} | {len(score['per_seed'])} |"
        if own is row:
            break
    yield (
        f"\nMeasured on {task['test']} test examples of {_cell(plain_name(task['name']))}, beside "
        f"{compared['rows'] - 1} other techniques, each with {budget['steps']} steps, {budget['search']} trials of its "
        f"search and {budget['seeds']} seeds, on {compared['created'][:10]}."
    )
    cost = row.get("cost") or {}
    yield "\n## What it cost\n\n| | |\n|---|---|"
    for key, what, scale, unit in (
        ("train_seconds", "training", 1, "s"),
        ("peak_memory_bytes", "peak memory", 1e-6, "MB"),
        ("optimised_parameters", "parameters optimised", 1, ""),
        ("artifact_bytes", "adaptation on disk", 1e-6, "MB"),
        ("seconds_per_example", "answering one example", 1e3, "ms"),
    ):
        if isinstance(cost.get(key), (int, float)):
            yield f"| {what} | {cost[key] * scale:,.4g} {unit} |".replace("  |", " |")
    yield f"| device | {_cell(compared['device'])} |"


def _source(facts: Mapping[str, Any]) -> str:
    compared = facts["comparison"]
    return str((compared["task"] if compared else facts["style"]).get("source") or "")


def hub_id(name: object) -> str | None:
    """The name of a repository, or None where it is a path of this machine or no name at all."""
    text = str(name or "").partition("#")[0].removeprefix("hf://datasets/")
    return text if _HUB_ID.fullmatch(text) and not Path(text).exists() else None


def plain_name(name: object) -> str:
    """The last part of a path: no folder of this machine is told."""
    return str(name or "unknown").rstrip("/").rpartition("/")[2]


def _cell(value: object) -> str:
    """Text that cannot break a table or become markup."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
