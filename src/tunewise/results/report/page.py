"""A comparison as one HTML page that loads nothing: `report.html`.

Everything in it that comes from data is text: the template escapes it, and what scripts read is JSON without markup.
Fields that an older version did not write are left out of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunewise.core.units import count, size
from tunewise.results.report.charts import charts, words
from tunewise.results.report.plotly_charts import drawn, library
from tunewise.results.report.tables import COLUMNS, columns, heading, legend, notes, rows, verdict_lines

Row = Mapping[str, Any]

_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:(?P<unit> ?[kMGB]?)B?)?(?:–.*)?$")
_POWERS = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, " k": 1e3, " M": 1e6, " G": 1e9}
_MARKS = {"right": "✓ right", "wrong": "✗ wrong", "partly": "≈"}


def page(result: Mapping[str, Any]) -> str:
    """The content of `report.html`: verdict, table, charts, answers, search, and how to make each row again.

    Raises:
        KeyError, TypeError, ValueError: `result` is not the content of a `compare.json`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = charts(result)
    lead, rest = _verdict(result)
    text = environment.get_template("page.html").render(
        title=heading(result),
        created=result["created"],
        lead=lead,
        rest=rest,
        columns=[COLUMNS[place] for place in columns(result)],
        rows=_table(result),
        out=[row for row in result["rows"] if "score" not in row],
        families=list(dict.fromkeys(row["family"] for row in result["rows"])),
        further=_further(result),
        notes=notes(result),
        legend=legend(result),
        charts=shown,
        figures=drawn(shown),
        library=library() if shown else "",
        answers=_answers(result),
        searched=_searched(result),
        commands=_commands(result),
        facts=_facts(result),
    )
    # No browser reads a NUL or half of a surrogate pair, and no file in UTF-8 holds the latter.
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _verdict(result: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The verdict in two sentences, and what else speaks for it."""
    verdict = result["verdict"] or {}
    lines = verdict_lines(result)
    summary = verdict.get("summary")
    lead = [summary] if summary else lines[:2]
    rest = verdict.get("reasons", []) if summary else lines[2:]
    rest = [*rest, *(verdict.get("break_even") or [])]
    return lead, [line for line in dict.fromkeys(rest) if line not in (summary or "")]


def _table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scored rows as the terminal shows them, each cell with the number that it is sorted by."""
    verdict, by_name = result["verdict"] or {}, {row["technique"]: row for row in result["rows"]}
    found = []
    for name, cells in rows(result):
        if "score" not in by_name[name]:
            continue
        marks = ["recommended"] * (name == verdict.get("recommended")) + ["best"] * (name == verdict.get("best"))
        marks += ["tie"] * (name in verdict.get("ties", []))
        shown = [cells[place] for place in columns(result)]
        found.append(
            {
                "family": by_name[name]["family"],
                "label": shown[0],
                "marks": marks,
                "cells": [(cell, number(cell)) for cell in shown[1:]],
                "reason": by_name[name]["reason"],
            }
        )
    return found


def number(cell: str) -> float | None:
    """What a cell of the table is sorted by: 3.1M, 12.2 MB and 0.98–1.00 are numbers; None where it is none."""
    found = _NUMBER.match(cell)
    return float(found[1]) * _POWERS.get(found["unit"] or "", 1.0) if found else None


def _further(result: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that are not in the first table, where a row has them."""
    columns: dict[str, Any] = {
        "rank": lambda row: "–".join(str(place) for place in dict.fromkeys(row.get("rank") or [])),
        "p (against the best)": lambda row: _shown(row.get("p_value"), "{:.3g}"),
        "forgot, 95 %": lambda row: _ends(row["forgetting"] or {}),
        "KL on the task": lambda row: _shown((row["forgetting"] or {}).get("kl_task"), "{:.3f}"),
        "change of the weights": lambda row: _shown((row["forgetting"] or {}).get("weight_change"), "{:.3g}"),
        "training tokens/s": lambda row: _shown(row["cost"].get("tokens_per_second"), "{:,.0f}"),
        "merges": lambda row: {True: "yes", False: "no", None: ""}[row["cost"].get("merges")],
        "swappable": lambda row: {True: "yes", False: "no", None: ""}[row["cost"].get("swappable")],
        "USD per 1,000 requests": lambda row: _shown(row["cost"].get("usd_per_1000_requests"), "{:.3g}"),
    }
    scored = sorted((row for row in result["rows"] if "score" in row), key=lambda row: -row["score"]["mean"])
    cells = {name: [get(row) for row in scored] for name, get in columns.items()}
    kept = {name: column for name, column in cells.items() if any(column)}
    lines = zip(*kept.values(), strict=True)
    return {
        "head": list(kept),
        "rows": [(row["label"], list(line)) for row, line in zip(scored, lines, strict=False)],
    }


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _ends(forgot: Row) -> str:
    low, high = forgot.get("nll_rise_low"), forgot.get("nll_rise_high")
    return "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _answers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Examples with each technique's answer, in the order of the table, marked right, wrong or partly right."""
    order = [name for name, _ in rows(result)]
    found = []
    for example in result.get("answers") or []:
        given = [(name, example["rows"][name]) for name in order if name in example["rows"]]
        kinds = {name: _kind(own["score"]) for name, own in given}
        found.append(
            {
                "prompt": example["prompt"],
                "answer": example["answer"],
                "right": sum(kind == "right" for kind in kinds.values()),
                "given": [
                    {
                        "technique": name,
                        "text": own["text"],
                        "kind": kinds[name],
                        "mark": _MARKS[kinds[name]] + (f" {own['score']:.2f}" if kinds[name] == "partly" else ""),
                    }
                    for name, own in given
                ],
            }
        )
    return found


def _kind(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else "partly"


def _searched(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each technique: the trials of its search, its settings, and what both cost."""
    found = []
    for row in result["rows"]:
        trials = [
            {
                "words": words(trial),
                "loss": trial.get("validation_loss"),
                "rise": trial.get("nll_rise"),
                "reason": trial.get("reason"),
                "chosen": trial.get("won", trial["learning_rate"] == row["learning_rate"]),
            }
            for trial in row.get("search") or []
        ]
        spent, training = row.get("spent") or {}, row.get("training") or {}
        said = [
            f"{what}: {spent[f'{key}_seconds']:,.1f} s, {spent[f'{key}_tokens']:,} tokens."
            for what, key in (("Search", "search"), ("All trials", "trial"))
            if f"{key}_seconds" in spent and f"{key}_tokens" in spent
        ]
        if training and not spent:
            said.append(f"Trial: {training['steps']:,} steps, {training['tokens']:,} tokens.")
        settings = [(name, str(value)) for name, value in row["settings"].items()]
        found.append({"label": row["label"], "trials": trials, "spent": said, "settings": settings})
    return found


def _commands(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The command of the comparison, then that of each row."""
    given = result.get("command")
    if not given:
        return []
    each = [(row["label"], shlex.join(_only(given, row["technique"]))) for row in result["rows"]]
    return [("the comparison", shlex.join(given)), *each]


def _only(command: Sequence[str], technique: str) -> list[str]:
    """The same command for one row."""
    kept, skip = [], False
    for word in command:
        if not skip and word not in ("-t", "--techniques", "--all") and not word.startswith("--techniques="):
            kept.append(word)
        skip = word in ("-t", "--techniques")
    return [*kept, "-t", technique]


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, data and model, as names and values."""
    model, task, machine = result["model"], result["task"], result["machine"]
    processor = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "python"))
    counts = ", ".join(f"{task[split]:,} {split}" for split in ("train", "validation", "test"))
    facts = [
        ("versions", f"tunewise {result['tunewise']}, {versions}"),
        ("device", f"{machine['device']}; {processor}; {size(machine['memory_bytes'])}; {machine['platform']}"),
        ("model", f"{model['name']} ({model['architecture']}, {count(model['parameters'])}, {model['dtype']})"),
        ("model fingerprint", model["fingerprint"]),
        ("data", f"{task['source']} ({counts}), metric {task['metric']}"),
        ("data fingerprint", task["fingerprint"]),
        ("budget", _pairs(result["budget"])),
        ("settings", _pairs(result["settings"])),
        ("retention text", f"{result['retention']['source']}, {result['retention']['sequences']} sequences"),
        ("measured", result["created"]),
    ]
    if model["revision"]:
        facts.insert(3, ("model revision", str(model["revision"])))
    return [(name, str(value)) for name, value in facts]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
