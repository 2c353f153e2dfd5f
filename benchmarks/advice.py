"""How good advice is on tasks that it knows nothing of, and what a comparison that follows it saves.

    python benchmarks/advice.py

Every record of the package's atlas is asked for in turn with all records of its task, whatever their models, and all
published tables of it left out; how far similarity reaches is chosen again without them. Regret is how far the advised
technique's score stays behind the record's best, as a share of best minus base. Beside it stand those who always take
lora, or full, or one at random (the mean over techniques). `compare --advised` is replayed with the recorded scores and
seconds: it should end with the record's best or with what the record's own test cannot tell from it. Everything is
written to results/advice.json, and the tables to docs/advice.md.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunewise.advice.atlas.records import shipped
from tunewise.advice.atlas.schema import Record
from tunewise.advice.evidence import Evidence
from tunewise.advice.forecast import Forecast
from tunewise.advice.gains import Belief
from tunewise.advice.question import Question, Situation
from tunewise.advice.ranking import rank
from tunewise.advice.stopping import Seen, move
from tunewise.techniques.registry import all_techniques

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "advice.json", HERE.parent / "docs" / "advice.md"
ALWAYS = ("lora", "full")


def asked_for(record: Record, records: Mapping[str, Record]) -> dict[str, Any]:
    """What advice would have said of a record that it does not know, and what became of that."""
    candidates = {name: technique for name, technique in all_techniques().items() if name in record.scored}
    evidence = Evidence.collect(candidates, records=records, without=record.task.name)
    features = record.features.features()
    ranking = rank(evidence, Situation(features, Question()))
    assert ranking.top is not None
    advised = ranking.top.technique
    regrets = {name: 1 - record.gain(name) for name in record.scored if name != "base"}
    inside = [ranking.forecasts[name].low <= record.gain(name) <= ranking.forecasts[name].high for name in regrets]
    return {
        "record": record.name,
        "task": record.task.name,
        "model": record.model.name,
        "best": record.best[0],
        "advised": advised,
        "tied": advised in record.ties(),
        "regret": regrets[advised],
        **{f"regret_{name}": regrets.get(name, 1.0) for name in ALWAYS},
        "regret_random": float(np.mean(list(regrets.values()))),
        "inside": float(np.mean(inside)),
        "replay": replay(record, evidence.recommender.predict(features), ranking.forecasts),
    }


def replay(record: Record, belief: Belief, forecasts: Mapping[str, Forecast]) -> dict[str, Any]:
    """Replay a comparison that follows advice, with the scores and seconds that were recorded."""
    costs = {name: forecast.seconds for name, forecast in forecasts.items()}
    rows, order = record.scored, ["base"]
    while True:
        seen = {name: _seen(record, name) for name in order}
        step = move(belief, costs, seen, [name for name in forecasts if name not in order])
        if step.next is None:
            break
        order.append(step.next)
    winner = max(order, key=lambda name: seen[name].mean)
    seconds = {name: row.cost.seconds for name, row in rows.items() if row.cost is not None}
    return {
        "order": order,
        "winner": winner,
        "tied": winner in record.ties(),
        "share": sum(seconds[name] for name in order) / sum(seconds.values()),
        "chance": step.chance,
    }


def _seen(record: Record, name: str) -> Seen:
    score = record.scored[name].score
    assert score is not None
    return Seen(score.mean, score.low, score.high)


def over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, each task counted once; the share of records whose replay ends with the best or a tie."""
    names = ("regret", *(f"regret_{name}" for name in ALWAYS), "regret_random")
    tasks = sorted({row["task"] for row in rows})
    means = {
        name: float(np.mean([np.mean([row[name] for row in rows if row["task"] == task]) for task in tasks]))
        for name in names
    }
    return {
        "records": len(rows),
        "tasks": len(tasks),
        **means,
        "median": {name: float(np.median([row[name] for row in rows])) for name in names},
        "advised_tied": float(np.mean([row["tied"] for row in rows])),
        "inside": float(np.mean([row["inside"] for row in rows])),
        "replay_tied": float(np.mean([row["replay"]["tied"] for row in rows])),
        "replay_share": float(np.mean([row["replay"]["share"] for row in rows])),
        "replay_worst": float(max(row["replay"]["share"] for row in rows)),
    }


def main() -> None:
    """Ask, write and print."""
    began, records = time.perf_counter(), shipped()
    rows = [asked_for(record, records) for record in records.values() if record.best[1] > record.base]
    whole = over(rows)
    RESULT.write_text(json.dumps({"whole": whole, "records": rows}, indent=1) + "\n", "utf-8")
    text = tables(whole, rows)
    if PAGE.is_file():
        page = PAGE.read_text("utf-8")
        PAGE.write_text(
            re.sub(r"(?<=<!-- measured -->\n).*?(?=<!-- end -->)", lambda _: text, page, flags=re.S), "utf-8"
        )
    print(text)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


def tables(whole: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [
        "",
        f"| {whole['records']} records of {whole['tasks']} tasks | mean regret | median |",
        "|---|---|---|",
    ]
    for name, words in (
        ("regret", "the advised technique"),
        ("regret_lora", "always `lora`"),
        ("regret_full", "always `full`"),
        ("regret_random", "one at random"),
    ):
        lines.append(f"| {words} | {whole[name]:.3f} | {whole['median'][name]:.3f} |")
    lines += [
        "",
        f"The advised technique is the best or cannot be told from it in {whole['advised_tied']:.0%} of the records; "
        f"{whole['inside']:.0%} of the recorded gains lie inside the 95 % intervals. `compare --advised` ends with the "
        f"best or a tie in {whole['replay_tied']:.0%}, for {whole['replay_share']:.0%} of the whole comparison's "
        f"seconds ({whole['replay_worst']:.0%} in the dearest).",
        "",
        "| record | best | advised | regret | `lora` | `full` | `--advised` ends with | rows | cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        again = row["replay"]
        lines.append(
            f"| {row['record']} | {row['best']} | {row['advised']} | {row['regret']:.2f} | {row['regret_lora']:.2f} | "
            f"{row['regret_full']:.2f} | {again['winner']}{'' if again['tied'] else ' (worse)'} | "
            f"{len(again['order'])} | {again['share']:.0%} |"
        )
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    main()
