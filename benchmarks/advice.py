"""How good advice is on tasks and sizes that it knows nothing of, and what a comparison that follows it saves.

    python benchmarks/advice.py [--learn] [--iterations N]

Leave one task out: every record of the package's atlas is asked for in turn with all records of its task left out,
whatever their models. Leave one size out: records of models above 100 million parameters are asked for with smaller
models' records alone, and published comparisons at 3 to 13 billion with all that is known of models below a billion.
With `--iterations N` the variances are learned again each time without what is left out, in N steps from the package's;
without it those that were learned from everything are used, which is quicker. Regret is how far the advised technique's
score stays behind the record's best, as a share of best minus base. Beside it stand those who always take lora, or
full, or one at random (the mean over techniques). `compare --advised` is replayed with the recorded scores and seconds:
it should end with the record's best or with what the record's own test cannot tell from it. Everything is written to
results/advice.json, and the tables to docs/advice.md. `--learn` learns the package's variances first, which is to be
done whenever records or publications are added.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunewise.advice.atlas.records import shipped
from tunewise.advice.atlas.schema import Record
from tunewise.advice.evidence import Evidence
from tunewise.advice.features import Conditions
from tunewise.advice.forecast import Forecast
from tunewise.advice.gains import Belief, Recommender, Variances, keep, learned
from tunewise.advice.learning import learn
from tunewise.advice.observations import PublishedComparison, observed_gains, published_comparisons
from tunewise.advice.plan.plan_row import Parameters, PlanRow, Request
from tunewise.advice.question import Question, Situation
from tunewise.advice.ranking import Ranking, rank
from tunewise.advice.stopping import Seen, move
from tunewise.techniques.registry import all_techniques

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "advice.json", HERE.parent / "docs" / "advice.md"
ALWAYS = ("lora", "full")
REAL = 1e8  # parameters from which a model is a real one
SMALL, LARGE = 1e9, (2.9e9, 1.4e10)  # parameters of what is known, and of what is asked for, in publications


def evidence_of(records: Iterable[Record], comparisons: Iterable[PublishedComparison], iterations: int) -> Evidence:
    """The evidence of these records and publications, with variances that are learned from it in so many steps."""
    known = {record.name: record for record in records}
    published = {comparison.ref: comparison for comparison in comparisons}
    variances = learned()
    if iterations:
        variances = learn(observed_gains(known.values(), published.values()), variances, iterations)
    return Evidence.collect(all_techniques(), records=known, comparisons=published, variances=variances)


def advised_for(evidence: Evidence, record: Record) -> Ranking:
    """The ranking of a record's techniques; sizes and lengths, which a plan would count, are the record's own."""
    candidates = {name: technique for name, technique in all_techniques().items() if name in record.scored}
    candidates.pop("base", None)
    plan = {
        name: PlanRow(
            technique=name,
            verdict="fits",
            parameters=Parameters(optimised=row.cost.optimised_parameters, stored=row.cost.stored_parameters),
            artifact_bytes=row.cost.artifact_bytes,
            request=Request(prompt_tokens=row.cost.prompt_tokens),
        )
        for name, row in record.scored.items()
        if row.cost is not None
    }
    return rank(replace(evidence, candidates=candidates), Situation(record.features.features(), Question(), plan))


def asked_for(record: Record, evidence: Evidence) -> dict[str, Any]:
    """What advice would have said of a record that it does not know, and what became of that."""
    ranking = advised_for(evidence, record)
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
        "replay": replay(record, ranking.belief, ranking.forecasts),
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


def published_for(comparison: PublishedComparison, evidence: Evidence) -> dict[str, Any]:
    """Which technique of a published comparison is expected to be best, and what it scored there."""
    observed = comparison.observed()
    belief = evidence.recommender.predict(comparison.conditions, tuple(observed.gains))
    advised = belief.names[int(belief.mean.argmax())]
    regrets = {name: 1 - gain for name, gain in observed.gains.items()}
    return {
        "comparison": comparison.ref,
        "table": observed.task,
        "advised": advised,
        "regret": regrets[advised],
        **{f"regret_{name}": regrets.get(name) for name in ALWAYS},
    }


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


def over_published(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean regrets over tables, beside those of always taking one technique where a comparison has it."""
    means: dict[str, Any] = {"comparisons": len(rows), "regret": _mean_of_tables(rows, "regret")}
    for name in ALWAYS:
        having = [row for row in rows if row[f"regret_{name}"] is not None]
        means[name] = {
            "comparisons": len(having),
            "regret": _mean_of_tables(having, "regret"),
            "always": _mean_of_tables(having, f"regret_{name}"),
        }
    return means


def _mean_of_tables(rows: list[dict[str, Any]], name: str) -> float:
    tables = {row["table"] for row in rows}
    return float(np.mean([np.mean([row[name] for row in rows if row["table"] == table]) for table in sorted(tables)]))


def main() -> None:
    """Ask, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", action="store_true", help="learn the package's variances first")
    parser.add_argument("--iterations", type=int, default=0, help="steps of learning without what is left out")
    options = parser.parse_args()
    began, comparisons = time.perf_counter(), list(published_comparisons().values())
    records = list(shipped().values())
    if options.learn:
        keep(learn(observed_gains(records, comparisons)))
        learned.cache_clear()
    asked = [record for record in records if record.best[1] > record.base]
    rows = []
    for task in sorted({record.task.name for record in asked}):
        others = [record for record in records if record.task.name != task]
        evidence = evidence_of(others, comparisons, options.iterations)
        rows += [asked_for(record, evidence) for record in asked if record.task.name == task]
        print(f"without {task}", file=sys.stderr, flush=True)
    by_name = {record.name: place for place, record in enumerate(records)}
    rows.sort(key=lambda row: by_name[row["record"]])
    small = [record for record in records if record.model.parameters < REAL]
    evidence = evidence_of(small, (), options.iterations)
    sizes = [asked_for(record, evidence) for record in asked if record.model.parameters >= REAL]
    smaller = [record for record in records if record.model.parameters < SMALL]
    evidence = evidence_of(smaller, [each for each in comparisons if each.parameters < SMALL], options.iterations)
    large = [published_for(each, evidence) for each in comparisons if LARGE[0] <= each.parameters <= LARGE[1]]
    result = {
        "variances": learned().to_json(),
        "iterations": options.iterations,
        "tasks": over(rows),
        "sizes": over(sizes) if sizes else None,
        "published": over_published(large),
        "records": rows,
        "records_by_size": sizes,
        "published_comparisons": large,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    parts = {"variances": variances(learned()), "measured": tables(result)}
    page = PAGE.read_text("utf-8")
    for name, text in parts.items():
        page = re.sub(
            rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", lambda _, text=text: text, page, count=1, flags=re.S
        )
    PAGE.write_text(page, "utf-8")
    print(*parts.values())
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


WORDS = {
    "overall": "variance of what holds of a technique everywhere",
    "size": "of what holds with models of a size",
    "kind": "of what holds with a kind of task, at a size",
    "data": "of what holds with a number of examples, at a size",
    "model": "of what holds with one model alone",
    "rest": "of what nothing explains",
    "size_reach": "decades of size after which a third of the parts at a size is left",
    "data_reach": "decades of examples after which a third of that part is left",
    "family": "correlation of two techniques of one family",
    "mean": "gain of a technique of which nothing is known",
    "width": "factor on variances, so that left-out tasks are as far off as expected",
}


def variances(values: Variances) -> str:
    """What was learned, and what it means for the sizes that matter."""
    here = Conditions(3e6, 2000.0, "a choice of labels")
    recommender = Recommender((), values)
    lines = ["", "| | learned |", "|---|---|"]
    lines += [f"| {words} | {getattr(values, name):.3g} |" for name, words in WORDS.items()]
    shares = [
        f"{recommender.similarity(replace(here, parameters=known), replace(here, parameters=asked)):.2f} from {words}"
        for known, asked, words in ((3e6, 1.35e8, "3M to 135M"), (3e6, 7e9, "3M to 7B"), (1.35e8, 7e9, "135M to 7B"))
    ]
    return "\n".join([*lines, "", f"So the similarity, all else equal, is {', '.join(shares)}.", "", ""])


def tables(result: Mapping[str, Any]) -> str:
    """The figures for people."""
    whole, sizes, published = result["tasks"], result["sizes"], result["published"]
    lines = [
        "",
        f"| one task left out: {whole['records']} records of {whole['tasks']} tasks | mean regret | median |",
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
        "| a size left out | comparisons | advised | always `lora` | always `full` |",
        "|---|---|---|---|---|",
    ]
    if sizes is not None:
        lines.append(
            f"| records above 100M parameters, from smaller records | {sizes['records']} | {sizes['regret']:.3f} | "
            f"{sizes['regret_lora']:.3f} | {sizes['regret_full']:.3f} |"
        )
    lora, full = published["lora"], published["full"]
    lines += [
        f"| publications at 3B to 13B that have `lora`, from below 1B | {lora['comparisons']} | {lora['regret']:.3f} | "
        f"{lora['always']:.3f} | |",
        f"| publications at 3B to 13B that have `full`, from below 1B | {full['comparisons']} | {full['regret']:.3f} | "
        f"| {full['always']:.3f} |",
        "",
        "| record | best | advised | regret | `lora` | `full` | `--advised` ends with | rows | cost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["records"]:
        again = row["replay"]
        lines.append(
            f"| {row['record']} | {row['best']} | {row['advised']} | {row['regret']:.2f} | {row['regret_lora']:.2f} | "
            f"{row['regret_full']:.2f} | {again['winner']}{'' if again['tied'] else ' (worse)'} | "
            f"{len(again['order'])} | {again['share']:.0%} |"
        )
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    main()
