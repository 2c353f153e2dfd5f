"""What a comparison shows, in words: the best, its ties, and the one to take under the user's needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewise.core.units import size
from tunewise.results.needs import KEPT, Measured, Need, retains
from tunewise.results.schema import ScoredRow, Verdict
from tunewise.results.statistics import LEVEL, Tables, against, needed_examples, seed_variance

_PROMPT = 1.5  # times the shortest prompt of the comparison: longer ones are said to be long


def verdict(rows: Sequence[ScoredRow], tables: Tables, needs: Sequence[Need] = ()) -> Verdict:
    """Best mean, its ties, one of them to take, and the reasons.

    `rows` are the comparison's, `tables` the scores (seeds, examples) of those that finished. A tie is what the paired
    test, adjusted for the number of rows, cannot tell from the best. To take: of those that meet the needs, the best
    and its ties; of these what keeps what the base could do, where any does; of these what does not lengthen the prompt
    by half or more; of these the smallest artifact.
    """
    scored = {row.technique: row for row in rows if row.technique in tables}
    if not scored:
        return Verdict(best=None, ties=(), recommended=None, reasons=("no technique finished",))
    best, ties = _leaders(scored, tables)
    fitting = {name: row for name, row in scored.items() if all(need.holds(Measured.of(row)) for need in needs)}
    more = _needed(best, scored, tables)
    said = _standing(best, ties, scored, next(iter(tables.values())).shape[1], more)
    if not fitting:
        reasons = [*said, f"Nothing here meets {', '.join(need.text for need in needs)}; " + _nearest(scored, needs)]
        return Verdict(
            best=best,
            ties=tuple(ties),
            recommended=None,
            needs=tuple(need.text for need in needs),
            needed_examples=more,
            break_even=tuple(break_even(scored, best)),
            summary=" ".join(reasons[:2]),
            reasons=tuple(reasons),
        )
    leader, equals = _leaders(fitting, tables)
    able = [name for name in (leader, *equals) if _retains(fitting[name]) or not _probed(fitting[name])]
    able = able or [leader, *equals]
    shortest = min(row.cost.prompt_tokens for row in scored.values())
    taken = min(able, key=lambda name: _price(fitting[name], shortest))
    reasons = said + _choice(taken, able, (leader, equals), fitting, needs)
    reasons += _alternatives(taken, (best, ties), scored, fitting)
    if taken == best or not ties:
        head = f"{taken} is the one to take" + (", and the best." if taken == best else ".")
    else:
        head = f"{taken} is the one to take: the test cannot tell it from the best, {best}, and it costs less."
    if taken not in (best, *ties):
        head = f"{taken} is the one to take: the best of what meets {', '.join(need.text for need in needs)}."
    return Verdict(
        best=best,
        ties=tuple(ties),
        recommended=taken,
        needs=tuple(need.text for need in needs),
        needed_examples=more,
        break_even=tuple(break_even(scored, taken if _trained(scored[taken]) else best)),
        summary=f"{head} {said[0]}",
        reasons=tuple(reasons),
    )


def _leaders(rows: Mapping[str, ScoredRow], tables: Tables) -> tuple[str, list[str]]:
    """The best mean, and what cannot be told from it."""
    best = max(rows, key=lambda name: rows[name].score.mean)
    values = against(best, {name: tables[name] for name in rows})
    return best, [name for name in rows if name != best and values[name] > 1 - LEVEL]


def _trained(row: ScoredRow) -> bool:
    return bool(row.cost.optimised_parameters)


def _probed(row: ScoredRow) -> bool:
    return row.forgetting is not None and row.forgetting.probe is not None


def _retains(row: ScoredRow) -> bool:
    return retains(Measured.of(row))


def _price(row: ScoredRow, shortest: float) -> tuple[bool, int]:
    cost = row.cost
    return cost.prompt_tokens > _PROMPT * shortest, 0 if row.technique == "base" else cost.artifact_bytes


def _standing(best: str, ties: list[str], rows: Mapping[str, ScoredRow], have: int, more: int | None) -> list[str]:
    """What the figures say of the best, on `have` test examples; `more` would separate it from the second."""
    top = rows[best].score
    said = [f"{best} has the best mean {top.metric}, {top.mean:.3f} [{top.low:.3f}, {top.high:.3f}]."]
    if ties:
        said.append(f"The test cannot tell it from {', '.join(ties)}.")
    if len(rows) == 1:
        said.append("There is nothing else to compare it with: not enough evidence for a choice.")
    elif ties:
        second = _second(best, rows)
        apart = rows[best].score.mean - rows[second].score.mean
        if more is None and apart:
            said.append(f"No number of test examples would separate {best} from {second}; more seeds might.")
        elif more is not None and more > have:
            said.append(
                f"About {more:,} test examples would separate {best} from {second}, if their difference is what it "
                f"was on these {have:,}."
            )
    return said


def _second(best: str, rows: Mapping[str, ScoredRow]) -> str:
    return max((name for name in rows if name != best), key=lambda name: rows[name].score.mean)


def _needed(best: str, rows: Mapping[str, ScoredRow], tables: Tables) -> int | None:
    return needed_examples(tables[best], tables[_second(best, rows)], seed_variance(tables)) if len(rows) > 1 else None


def _nearest(rows: Mapping[str, ScoredRow], needs: Sequence[Need]) -> str:
    met = {name: [need.text for need in needs if need.holds(Measured.of(row))] for name, row in rows.items()}
    name = max(met, key=lambda name: (len(met[name]), rows[name].score.mean))
    return f"{name} comes nearest, meeting {', '.join(met[name]) or 'none of them'}."


def _choice(
    taken: str, able: list[str], leaders: tuple[str, list[str]], rows: Mapping[str, ScoredRow], needs: Sequence[Need]
) -> list[str]:
    said = []
    best, ties = leaders
    lost = [name for name in (best, *ties) if name not in able]
    if lost:
        said.append(f"Less than {KEPT:.0%} of what the base could do is kept by {', '.join(lost)}: not recommended.")
    if needs:
        said.append(f"{taken} meets {', '.join(need.text for need in needs)}.")
    if taken == "base":
        said.append("The unadapted base is among them, so nothing here shows that adapting is worth its cost.")
    elif len(able) > 1:
        cost, other = rows[taken].cost, rows[best].cost
        disk, tokens = size(cost.artifact_bytes), f"{cost.prompt_tokens:.0f} prompt tokens"
        if taken != best:
            disk, tokens = (
                f"{disk} ({best}: {size(other.artifact_bytes)})",
                f"{tokens} ({best}: {other.prompt_tokens:.0f})",
            )
        among = "those left" if lost else "these"
        said.append(f"Of {among} with short prompts, {taken} is the smallest on disk: {disk}, {tokens}.")
    forgotten = rows[taken].forgetting
    if forgotten is not None and taken != "base":
        probe = forgotten.probe
        kept = f", and it keeps {probe:.1%} of what the base could do" if probe is not None else ""
        said.append(f"{taken} changed the loss on what the base knew by {forgotten.nll_rise:+.3f} nats a token{kept}.")
    return said


def _alternatives(
    taken: str, leaders: tuple[str, list[str]], rows: Mapping[str, ScoredRow], fitting: Mapping[str, ScoredRow]
) -> list[str]:
    """What would change the choice."""
    best, ties = leaders
    said = []
    if taken not in (best, *ties):
        said.append(f"Without these needs it would be {best}.")
    longer = [name for name in (best, *ties) if name != taken and name in fitting]
    shown = [name for name in longer if not _trained(rows[name]) and name != "base"]
    if _trained(rows[taken]) and shown:
        said.append(f"If nothing may be trained, {shown[0]} does as well here, with longer prompts.")
    if _probed(rows[taken]) and not _retains(rows[taken]):
        keeping = [name for name, row in fitting.items() if _retains(row) and name != "base"]
        if keeping:
            name = max(keeping, key=lambda name: rows[name].score.mean)
            said.append(f"If the base's abilities must stay, {name} is the best that keeps them (--need retain).")
    return said


def break_even(rows: Mapping[str, ScoredRow], best: str) -> list[str]:
    """After how many requests training `best` has paid for itself against what only lengthens the prompt, in seconds.

    Nothing where it is not trained.
    """
    said: list[str] = []
    for name, row in rows.items():
        if name == "base" or _trained(row) or not _trained(rows[best]):
            continue
        saved = row.cost.seconds_per_example - rows[best].cost.seconds_per_example
        spent = rows[best].cost.train_seconds - row.cost.train_seconds
        if saved > 0 and spent > 0:
            said.append(f"{best} has paid for its training after {spent / saved:,.0f} requests answered by {name}.")
        elif saved <= 0:
            said.append(f"{name} answers as fast as {best}: training never pays in time.")
    return said
