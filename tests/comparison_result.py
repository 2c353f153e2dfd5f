"""A made-up result of a comparison, with every field that `compare.json` can have, and the same made hostile.

`timeless` is what two runs of the same comparison have in common.
"""

import copy
import math

from tunewise.results.schema import Comparison

HOSTILE = (
    "</script><script>window.hit=1</script><!--<img src=x onerror=window.hit=1><a href=https://x.invalid>a</a>"
    "\u2028\u2029\0\ud800{{7*7}}$x$"
)
FAMILIES = {
    "base": "nonparametric",
    "icl": "nonparametric",
    "rag": "nonparametric",
    "full": "full",
    "bitfit": "partial",
    "last_layers": "partial",
    "prompt_tuning": "additive",
    "lora": "reparametrized",
    "krona": "reparametrized",
    "peft:ia3": "peft",
}
TRAINED = set(FAMILIES) - {"base", "icl", "rag"}
NEVER_ENDED = {"lora": (7, 5)}  # answers that were cut, for each seed; of the others, none


def row(name, place):
    trains = name in TRAINED
    score = 0.9 - 0.07 * place
    found = {
        "technique": name,
        "family": FAMILIES[name],
        "label": name if name != "bitfit" else "bitfit-add (adaptation: zero biases added)",
        "status": "ok",
        "reason": None,
        "learning_rate": 1e-3 if trains else None,
        "settings": {"r": 8, "optimizer": "adamw", "init_text": ""} if trains else {},
        "search": [],
        "seeds": [0, 1],
        "rank": [max(1, place - 1), place + 2],
        "p_value": None if place == 0 else 0.02 * place,
        "score": {
            "metric": "exact_match",
            "mean": score,
            "low": score - 0.06,
            "high": score + 0.05,
            "per_seed": [score],
        },
        "others": {"f1": score},
        "nll": 1.0 + 0.1 * place,
        "validation_loss": 1.0 + 0.1 * place,
        "forgetting": {
            "nll_rise": 0.04 * place * trains,
            "kl": 0.05 * place * trains,
            "probe": 1 - 0.05 * place * trains,
            "nll_rise_low": 0.03 * place * trains,
            "nll_rise_high": 0.06 * place * trains,
            "kl_task": 0.2 * trains,
            "weight_change": 0.01 * trains,
        },
        "cost": {
            "train_seconds": 1.0 + 2.5 * place * trains if name != "base" else 0.0,
            "peak_memory_bytes": 340_000_000 + 11_000_000 * place,
            "optimised_parameters": 350_000 * trains,
            "stored_parameters": 350_000 * trains,
            "artifact_bytes": 900 * 3**place,
            "seconds_per_example": 0.0012 * (1 + place % 3),
            "prompt_tokens": 288.0 if name == "icl" else 15.0 + place,
            "tokens_per_second": 12000.0 - 500 * place,
            "merges": trains,
            "swappable": name != "full",
            "usd_per_1000_requests": 0.001 * (place + 1),
        },
        "training": {
            "steps": 100 * trains,
            "tokens": 11000 * trains,
            "final_loss": 0.4,
            "cut": 0,
            **({"preparing_tokens": 15_400} if name == "icl" else {}),
        },
        "spent": {"search_tokens": 5000, "search_seconds": 4.5, "trial_tokens": 22000, "trial_seconds": 9.0},
        "curve": [[step, 3 * math.exp(-step / (20 + 5 * place)) + 0.2] for step in range(1, 101)] if trains else [],
        "findings": {},
        "test_cut": 0,
        "adaptation": f"trials/{name}-seed0-0123456789ab/adaptation",
        "lengths": [
            {"answers": 161, "mean": 3.25, "longest": 9, "reference_mean": 2.5, "never_ended": cut, "limit": 12}
            for cut in NEVER_ENDED.get(name, (0, 0))
        ],
        "export_format": "merged" if trains else None,
    }
    if found["export_format"] is None:
        del found["export_format"]
    if trains:
        found["search"] = [
            {
                "learning_rate": 1e-3 * 3**power,
                "settings": {"r": 16} if power == 1 else {},
                "steps": 25 if power else 100,
                "validation_loss": 1.0 + 0.1 * place + 0.15 * abs(power),
                "nll_rise": 0.04 * place + 0.02 * power,
                "reason": None,
                "won": power == 0,
            }
            for power in (-1, 0, 1)
        ]
        found["search"].append({"learning_rate": 0.1, "settings": {}, "validation_loss": None, "reason": "diverged"})
    return found


def result():
    rows = [row(name, place) for place, name in enumerate(FAMILIES)]
    out = [
        {
            "technique": name,
            "family": "additive",
            "label": name,
            "status": status,
            "reason": reason,
            "learning_rate": None,
            "settings": {},
            "search": [],
            "seeds": [0],
        }
        for name, status, reason in (
            ("adapter", "failed", "the loss stopped being finite at step 12; give a lower learning rate"),
            ("mpt", "skipped", "it needs data of related tasks; give them with --sources"),
        )
    ]
    answers = [
        {
            "prompt": f"Question {number}: who keeps the tavern at the north gate of the town?",
            "answer": "Mira Oxley",
            "rows": {
                name: {"text": "Mira Oxley" if good else "Tom Hale of the mill", "score": float(good)}
                for place, name in enumerate(FAMILIES)
                for good in [(number + place) % 3 > 0]
            },
        }
        for number in range(10)
    ]
    answers[0]["rows"]["lora"]["score"] = 0.4
    return {
        "schema": 1,
        "tunewise": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "command": [
            "tunewise",
            "compare",
            "--model",
            "world",
            "--data",
            "my data.jsonl",
            "-t",
            "all",
            "--out",
            "runs/x",
        ],
        "model": {
            "name": "world",
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "parameters": 3049920,
            "dtype": "float32",
            "fingerprint": "e9" * 32,
        },
        "task": {
            "name": "town",
            "source": "world:town",
            "kind": "generation",
            "format": "prompt-completion",
            "metric": "exact_match",
            "labels": [],
            "train": 240,
            "validation": 60,
            "test": 161,
            "available": {"validation": 60, "test": 161},
            "window": 512,
            "fingerprint": "a1" * 32,
            "notes": ["3 rows were empty."],
        },
        "retention": {
            "source": "given text",
            "sequences": 48,
            "kl_positions": 12036,
            "base_nll": 1.8,
            "probe": "memory",
        },
        "budget": {
            "steps": 100,
            "tokens": None,
            "search": 3,
            "seeds": 2,
            "validation_examples": 128,
            "test_examples": None,
        },
        "settings": {"per_device_train_batch_size": 16, "bf16": False},
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "processor": "x86_64",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 25276510208,
            "device": "cpu",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "packing": "padding-free",
        },
        "rows": rows + out,
        "answers": answers,
        "verdict": {
            "best": "base",
            "ties": ["icl"],
            "recommended": "icl",
            "summary": "Use icl: it is statistically tied with the best, base, and costs less. "
            "base has the best mean exact_match, 0.900 [0.840, 0.950].",
            "reasons": [
                "base has the best mean exact_match, 0.900 [0.840, 0.950].",
                "base is statistically tied with icl.",
                "About 2,400 test examples would separate base from icl.",
            ],
            "needed_examples": 2400,
            "break_even": ["icl costs less than lora up to 1,200 requests."],
        },
    }


def classification():
    """The same of a task with three labels, in which krona predicts one of them and full some wrong ones."""
    found = result()
    found["task"] |= {"kind": "classification", "metric": "accuracy", "labels": ["anger", "joy", "sad|ness"]}
    found["majority"] = {"label": "joy", "share": 0.5, "mean": 0.45, "low": 0.4, "high": 0.5}
    right = {"anger": {"anger": 40}, "joy": {"joy": 80}, "sad|ness": {"sad|ness": 41}}
    wrong = {"anger": {"anger": 30, "joy": 10}, "joy": {"joy": 80}, "sad|ness": {"anger": 1, "sad|ness": 40}}
    collapsed = {label: {"joy": sum(row.values())} for label, row in right.items()}
    for row in found["rows"]:
        if "lengths" in row:
            del row["lengths"]
            counts = {"krona": collapsed, "full": wrong}.get(row["technique"], right)
            row["confusions"] = [{"counts": counts}, {"counts": right if row["technique"] == "krona" else counts}]
    return found


def comparison(value=None):
    """The same, read; or another value."""
    return Comparison.from_json(result() if value is None else value)


def poisoned(value):
    """Every text of a result made hostile, but not the names that rows are found by."""
    if isinstance(value, dict):
        return {name: item if name in ("status", "created") else poisoned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def hostile():
    """Every text of it made hostile: names and labels, prompts and answers, settings and reasons."""
    found = poisoned(result())
    for example in found["answers"]:
        example["rows"] = {name + HOSTILE: own for name, own in example["rows"].items()}
    found["rows"][3]["search"][0]["settings"] = {HOSTILE: HOSTILE}
    found["rows"][3]["findings"] = {HOSTILE: {HOSTILE: 1.0}}
    return found


def timeless(result):
    """Without what no two runs share: times, memory, and the words made of them."""
    varying = ("seconds", "tokens_per_second", "seconds_per_example", "peak_memory_bytes", "timed_alone", "timed_on")
    result = copy.deepcopy(result)
    for row in result["rows"]:
        if row["status"] == "skipped":
            continue
        row["cost"] = {k: v for k, v in row["cost"].items() if not k.endswith(varying)}
        row["spent"] = {k: v for k, v in row["spent"].items() if not k.endswith("seconds")}
        row["search"] = [{k: v for k, v in tried.items() if not k.endswith("seconds")} for tried in row["search"]]
    result["verdict"].pop("break_even")
    result.pop("estimate", None)  # of what was left to do
    return {**result, "created": None, "command": None, "seconds": None, "process_peak_bytes": None}


def differences(one, other, where=""):
    """Where two results differ, as paths with both values; a comparison of the whole would not show which."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{where}/{i}")
        ]
    return [] if one == other else [f"{where}: {one!r} is not {other!r}"]
