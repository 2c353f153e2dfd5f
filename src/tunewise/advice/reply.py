"""Which technique to choose, why, on what evidence, and what would change the answer.

The order is that of the expected gain, which `recommend` draws from recorded comparisons; what is expected to gain
alike is ordered by what it costs. Only what is certain leaves a technique out: the plan says that it does not fit, the
model or the task lacks what it needs, or what was asked for forbids it.
"""

from __future__ import annotations

from typing import Any

from tunewise.advice import wording
from tunewise.advice.changes import changes
from tunewise.advice.features import Features
from tunewise.advice.forecast import Advisor, artifact, prompt_tokens, situation
from tunewise.advice.question import Asked
from tunewise.advice.ranking import Ranking, ranking

SCHEMA = 1


def advise(advisor: Advisor, features: Features, asked: Asked, *, model: str = "", task: str = "") -> dict[str, Any]:
    """Advice as JSON holds it: the ranking, each row with its sentences, and what would change it.

    Args:
        advisor: the evidence and the candidates.
        features: of the task and the model.
        asked: what else is needed.
        model: what the model is called.
        task: what the task is called.
    """
    now = situation(advisor, features, asked)
    ranked = ranking(advisor, now)
    chances = ranked.belief.only(ranked.order).chances() if ranked.order else {}
    rows = [_row(advisor, ranked, name, chances.get(name, 0.0)) for name in (*ranked.order, *ranked.refused)]
    others = [(change, ranking(advisor, change.situation)) for change in changes(advisor, now, asked)]
    return {
        "schema": SCHEMA,
        "model": model,
        "task": task,
        "features": features.to_json(),
        "request": asked.to_json(),
        "atlas": {
            "records": len(advisor.records),
            "tables": len(advisor.tables),
            "reach": advisor.model.reach,
            "share": advisor.model.share,
            "width": advisor.model.width,
        },
        "similarity": {f"{each.kind}:{each.ref}": near for each, near in advisor.model.neighbours(features)},
        "plan": list(now.plan.values()),
        "advised": ranked.top,
        "summary": [sentence.to_json() for sentence in wording.summary(advisor, ranked, chances)],
        "rows": rows,
        "changes": [
            {
                "change": change.name,
                "gain": other.belief.interval(other.top)[0] if other.top else None,
                "was": other.belief.interval(ranked.top)[0] if ranked.top else None,
                "advised": other.top,
                "same": other.top == ranked.top,
                "sentence": wording.changed(advisor, change.name, change.words, ranked, other).to_json(),
            }
            for change, other in others
        ],
    }


def _row(advisor: Advisor, ranked: Ranking, name: str, chance: float) -> dict[str, Any]:
    mean, low, high = ranked.belief.interval(name)
    out = name in ranked.refused
    return {
        "technique": name,
        "family": advisor.techniques[name].family,
        "verdict": "out" if out else "advised" if name == ranked.top else "possible",
        "rank": None if out else ranked.order.index(name) + 1,
        "gain": {"mean": mean, "low": low, "high": high},
        "chance": chance,
        "nll_rise": ranked.rises[name],
        "month_tokens": ranked.tokens[name],
        "prompt_tokens": prompt_tokens(advisor, ranked.situation, name),
        "artifact_bytes": artifact(advisor, ranked.situation, name),
        "with": dict((ranked.situation.plan.get(name) or {}).get("with") or {}),
        "why": [sentence.to_json() for sentence in wording.why(advisor, ranked, name)],
    }
