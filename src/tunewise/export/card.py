"""Writes the model card of an adaptation or an export: what it is and was made of, how good it is, at what cost.

The YAML at its head is what the Hub reads. Scores come from the comparison that the adaptation lies in, with their
intervals, beside the base's; without one, the validation loss of its own fit is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunewise.core.text import inert_markdown
from tunewise.export.provenance import Compared, Provenance
from tunewise.export.summary import bound_sentence, rounding_sentence

_LIBRARIES = {
    "peft": "peft",
    "lora": "peft",
    "merged": "transformers",
    "gguf": "gguf",
    "onnx": "onnx",
    "ollama": "gguf",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def card(facts: Provenance, parity: Mapping[str, Any] | None, name: str, licence: str | None) -> str:
    """Write the text of README.md for a repository called `name`."""
    head = _metadata(facts, parity, name, licence)
    return f"---\n{head}\n---\n\n" + "\n".join(_body(facts, parity, name, licence)).rstrip() + "\n"


def _metadata(facts: Provenance, parity: Mapping[str, Any] | None, name: str, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    compared = facts.comparison
    form = parity["format"] if parity else "tunewise"
    base, source = hub_id(facts.base.get("name")), hub_id(_source(facts))
    results = None
    if compared is not None:
        task, score = compared.task, compared.row.score
        kind = "text-classification" if task.kind == "classification" else "text-generation"
        results = [EvalResult(kind, source or task.name, task.name, score.metric, score.mean)]
    data = ModelCardData(
        base_model=base,
        library_name=_LIBRARIES.get(form, "tunewise"),
        license=licence,
        datasets=[source] if source else None,
        tags=["tunewise", *dict.fromkeys(facts.technique.split("+"))],
        pipeline_tag="text-generation",
        model_name=name.rpartition("/")[2],
        eval_results=results,
        base_model_relation=(
            ("finetune" if form in ("merged", "onnx", "gguf", "ollama") else "adapter") if base else None
        ),
    )
    return data.to_yaml().rstrip()


def _body(facts: Provenance, parity: Mapping[str, Any] | None, name: str, licence: str | None) -> Iterator[str]:
    base, technique = facts.base, facts.technique
    base_name = inert_markdown(hub_id(base.get("name")) or plain_name(base.get("name")))
    yield f"# {name.rpartition('/')[2]}\n"
    what = f"exported as {parity['format']} in {parity['dtype']}" if parity else "an adaptation that tunewise loads"
    yield f"{base_name} fine-tuned with {inert_markdown(facts.label or technique)}, {what}.\n"
    yield "| | |\n|---|---|"
    revision = f" at revision {base['revision']}" if base.get("revision") else ""
    yield f"| base | {base_name}{inert_markdown(revision)} |"
    if base.get("fingerprint"):
        yield f"| fingerprint of the base's weights | `{inert_markdown(str(base['fingerprint'])[:16])}` |"
    if _source(facts):
        yield f"| data | {inert_markdown(hub_id(_source(facts)) or plain_name(_source(facts)))} |"
    yield f"| technique | {inert_markdown(technique)} |"
    yield f"| settings | `{inert_markdown(json.dumps(facts.settings, ensure_ascii=False))}` |"
    no_licence = "not given; the base's licence applies to what comes from the base"
    yield f"| licence | {inert_markdown(licence) if licence else no_licence} |"
    before, after = facts.record.get("validation_loss_before"), facts.record.get("validation_loss")
    if facts.comparison is not None:
        yield from _scores(facts.comparison)
    elif isinstance(after, (int, float)):
        yield "\n## How good it is\n"
        start = f"{before:.4f} before and " if isinstance(before, float) else ""
        yield f"Validation loss: {start}{after:.4f} nats per answer token after. No other technique was tried."
    if parity:
        yield "\n## Is this the model that was trained?\n"
        yield from _proof(parity)
    if facts.style.get("template"):
        lines = [f"    {line}" for line in str(facts.style["template"]).splitlines()]
        yield "\n## Prompt\n\n" + "\n".join(lines)


def _proof(parity: Mapping[str, Any]) -> Iterator[str]:
    """Say what the comparison with the trained model showed; the notes say so where there was none."""
    if parity["same"] is not None:
        rounding = parity.get("rounding")
        trained = f"trained model's, rounded to {parity['dtype']}," if rounding else "trained model's"
        yield (
            f"On {parity['prompts']} prompts its logits differ from the {trained} by at most "
            f"{parity['max_logit_difference']:.2g}; training moved them by up to {parity['moved_by_training']:.2g}; "
            f"{100 * parity['greedy_agreement']:.0f} % of the greedy continuations are the same."
        )
        if parity.get("most_that_differ") is not None:
            yield f"\n{bound_sentence(parity['prompts'], parity['most_that_differ'])}"
        if rounding:
            yield f"\n{rounding_sentence(rounding, parity['dtype'])}"
    for note in parity["notes"]:
        yield f"\n{inert_markdown(note)}"


def _scores(compared: Compared) -> Iterator[str]:
    row, task, budget = compared.row, compared.task, compared.budget
    yield "\n## How good it is\n"
    metric = inert_markdown(row.score.metric)
    yield f"| | {metric} (95 % interval) | forgetting, nats per token | KL from the base | seeds |"
    yield "|---|---|---|---|---|"
    for standing in (row,) if compared.base in (None, row) else (compared.base, row):
        score, forgetting = standing.score, standing.forgetting
        rise, kl = (forgetting.nll_rise, forgetting.kl) if forgetting is not None else (None, None)
        interval = f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"
        technique, seeds = inert_markdown(standing.technique), len(score.per_seed)
        yield f"| {technique} | {interval} | {_decimals(rise)} | {_decimals(kl)} | {seeds} |"
    yield (
        f"\nMeasured on {task.test} test examples of {inert_markdown(plain_name(task.name))}, beside "
        f"{compared.rows - 1} other techniques, each with {budget.steps} steps, {budget.search} trials of its "
        f"search and {budget.seeds} seeds, on {compared.created[:10]}."
    )
    yield "\n## What it cost\n\n| | |\n|---|---|"
    if row.cost is not None:
        for value, what, scale, unit in (
            (row.cost.train_seconds, "training", 1, "s"),
            (row.cost.peak_memory_bytes, "peak memory", 1e-6, "MB"),
            (row.cost.optimised_parameters, "parameters optimised", 1, ""),
            (row.cost.artifact_bytes, "adaptation on disk", 1e-6, "MB"),
            (row.cost.seconds_per_example, "answering one example", 1e3, "ms"),
        ):
            yield f"| {what} | {value * scale:,.4g} {unit} |".replace("  |", " |")
    yield f"| device | {inert_markdown(compared.device)} |"


def _decimals(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else ""


def _source(facts: Provenance) -> str:
    return str((facts.comparison.task.source if facts.comparison is not None else facts.style.get("source")) or "")


def hub_id(name: object) -> str | None:
    """The name of a repository, or None where it is a path of this machine or no name at all."""
    text = str(name or "").partition("#")[0].removeprefix("hf://datasets/")
    return text if _HUB_ID.fullmatch(text) and not Path(text).exists() else None


def plain_name(name: object) -> str:
    """The last part of a path: no folder of this machine is told."""
    return str(name or "unknown").rstrip("/").rpartition("/")[2]
