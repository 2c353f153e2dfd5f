"""What a comparison shows: intervals, ties, and the technique to take, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from tunewise.report import size

KEPT = 0.9  # of its score on what the base could do, a technique that can be recommended keeps at least this share

Row = Mapping[str, Any]


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over examples (2,000 resamples, fixed seed)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def verdict(rows: Sequence[Row], per_example: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Best mean, what is tied with it (the paired 95 % interval of the difference holds 0), and one of these to take.

    `rows` are the comparison's, `per_example` the scores (examples,) of those that finished. To take: what keeps at
    least `KEPT` of what the base could do on the probe, where there is one and any does; of these what does not
    lengthen the prompt by half or more; of these the smallest artifact.
    """
    scored = {row["technique"]: row for row in rows if row["technique"] in per_example}
    if not scored:
        return {"best": None, "ties": [], "recommended": None, "reasons": ["no technique finished"]}
    best = max(scored, key=lambda name: scored[name]["score"]["mean"])
    ties = [name for name in scored if name != best and _tied(per_example[best], per_example[name])]
    shortest = min(row["cost"]["prompt_tokens"] for row in scored.values())
    able = [name for name in (best, *ties) if _kept(scored[name]) >= KEPT] or [best, *ties]

    def price(name: str) -> tuple[bool, int]:
        cost = scored[name]["cost"]
        return cost["prompt_tokens"] > 1.5 * shortest, 0 if name == "base" else cost["artifact_bytes"]

    recommended = min(able, key=price)
    return {
        "best": best,
        "ties": ties,
        "recommended": recommended,
        "reasons": _reasons(best, ties, able, recommended, scored),
    }


def _kept(row: Row) -> float:
    """The score on what the base could do: 1 where nothing was asked."""
    return float((row.get("forgetting") or {}).get("probe", 1.0))


def _tied(best: np.ndarray, other: np.ndarray) -> bool:
    low, high = interval(best - other)
    return low <= 0 <= high


def _reasons(best: str, ties: list[str], able: list[str], recommended: str, rows: Mapping[str, Row]) -> list[str]:
    top = rows[best]["score"]
    said = [f"{best} has the best mean {top['metric']}, {top['mean']:.3f} [{top['low']:.3f}, {top['high']:.3f}]."]
    if ties:
        said.append(f"The test cannot tell it from {', '.join(ties)}: the interval of the difference holds 0.")
    lost = [name for name in (best, *ties) if name not in able]
    if lost:
        said.append(f"Less than {KEPT:.0%} of what the base could do is kept by {', '.join(lost)}: not recommended.")
    if recommended == "base":
        said.append("The unadapted base is among them, so nothing here shows that adapting is worth its cost.")
    elif len(able) > 1:
        cost, other = rows[recommended]["cost"], rows[best]["cost"]
        disk, tokens = size(cost["artifact_bytes"]), f"{cost['prompt_tokens']:.0f} prompt tokens"
        if recommended != best:
            disk, tokens = (
                f"{disk} ({best}: {size(other['artifact_bytes'])})",
                f"{tokens} ({best}: {other['prompt_tokens']:.0f})",
            )
        among = "those left" if lost else "these"
        said.append(f"Of {among} with short prompts, {recommended} is the smallest on disk: {disk}, {tokens}.")
    forgotten = rows[recommended].get("forgetting") or {}
    if forgotten and recommended != "base":
        kept = f", and it keeps {forgotten['probe']:.1%} of what the base could do" if "probe" in forgotten else ""
        rise = forgotten["nll_rise"]
        said.append(f"{recommended} changed the loss on what the base knew by {rise:+.3f} nats a token{kept}.")
    return said
