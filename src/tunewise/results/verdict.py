"""Draws the conclusions of a comparison: the best row, its ties, and the recommended row under the user's needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tunewise.core.units import size
from tunewise.results.needs import KEPT, Measured, Need, retains
from tunewise.results.reference import MajorityScores
from tunewise.results.schema import ScoredRow, Verdict
from tunewise.results.statistics import LEVEL, Tables, against, needed_examples, seed_variance

_PROMPT = 1.5  # times the shortest prompt of the comparison; longer prompts count as long


def verdict(
    rows: Sequence[ScoredRow], tables: Tables, needs: Sequence[Need] = (), majority: MajorityScores | None = None
) -> Verdict:
    """Determine the best row, its ties, the recommended row, and the reasons.

    A row is tied with the best if the paired test, adjusted for the number of rows, finds no difference. The
    recommendation starts with the best of the rows that meet the needs and its ties. Of these it keeps the rows that
    retain what the base could do, if there are any; of those, the rows whose prompt is at most 1.5 times the shortest;
    of those, it takes the smallest artifact. The majority row is never recommended, but said to be as good where it is.

    Args:
        rows: rows of the comparison.
        tables: scores (seeds, examples) of the techniques that finished.
        needs: what the recommended row must satisfy.
        majority: the scores of always giving the most frequent label, on the same test examples.
    """
    scored = {row.technique: row for row in rows if row.technique in tables}
    if not scored:
        return Verdict(best=None, ties=(), recommended=None, reasons=("no technique finished",))
    best, ties = _best_and_ties(scored, tables)
    fitting = {name: row for name, row in scored.items() if all(need.holds(Measured.of(row)) for need in needs)}
    needed = _examples_to_separate(best, scored, tables)
    sentences = _describe_best(best, ties, scored, next(iter(tables.values())).shape[1], needed)
    better = majority.better({name: tables[name] for name in scored}) if majority is not None else set(scored)
    warning = _no_better_than_majority(majority, better, None)
    if not fitting:
        reasons = [
            *warning,
            *sentences,
            f"No row meets {', '.join(need.text for need in needs)}; " + _describe_nearest(scored, needs),
        ]
        return Verdict(
            best=best,
            ties=tuple(ties),
            recommended=None,
            needs=tuple(need.text for need in needs),
            needed_examples=needed,
            break_even=tuple(break_even(scored, best)),
            summary=" ".join([*warning, sentences[0], reasons[-1]]),
            reasons=tuple(reasons),
        )
    leader, leader_ties = _best_and_ties(fitting, tables)
    able = [name for name in (leader, *leader_ties) if _retains(fitting[name]) or not _probed(fitting[name])]
    able = able or [leader, *leader_ties]
    shortest = min(row.cost.prompt_tokens for row in scored.values())
    recommended = min(able, key=lambda name: _cost_rank(fitting[name], shortest))
    warning = warning or _no_better_than_majority(majority, better, recommended)
    reasons = warning + sentences + _reasons_for_choice(recommended, able, (leader, leader_ties), fitting, needs)
    reasons += _alternatives(recommended, (best, ties), scored, fitting)
    if recommended == best:
        head = f"Use {recommended}, which is also the best."
    elif recommended in ties:
        why = _why_not_the_best(recommended, best, scored, able, fitting, shortest, needs)
        head = f"Use {recommended}: it is statistically tied with the best, {best}{why}."
    else:
        head = f"Use {recommended}: it is the best that meets {', '.join(need.text for need in needs)}."
    return Verdict(
        best=best,
        ties=tuple(ties),
        recommended=recommended,
        needs=tuple(need.text for need in needs),
        needed_examples=needed,
        break_even=tuple(break_even(scored, recommended if _trained(scored[recommended]) else best)),
        summary=" ".join([*warning, head, sentences[0]]),
        reasons=tuple(reasons),
    )


def _best_and_ties(rows: Mapping[str, ScoredRow], tables: Tables) -> tuple[str, list[str]]:
    """Return the row with the best mean, and the rows that are statistically tied with it."""
    best = max(rows, key=lambda name: rows[name].score.mean)
    p_values = against(best, {name: tables[name] for name in rows})
    return best, [name for name in rows if name != best and p_values[name] > 1 - LEVEL]


def _trained(row: ScoredRow) -> bool:
    return bool(row.cost.optimised_parameters)


def _probed(row: ScoredRow) -> bool:
    return row.forgetting is not None and row.forgetting.probe is not None


def _retains(row: ScoredRow) -> bool:
    return retains(Measured.of(row))


def _cost_rank(row: ScoredRow, shortest: float) -> tuple[bool, int]:
    """Return what candidates are ordered by: whether the prompt is long, then bytes on disk."""
    cost = row.cost
    return cost.prompt_tokens > _PROMPT * shortest, 0 if row.technique == "base" else cost.artifact_bytes


def _no_better_than_majority(
    majority: MajorityScores | None, better: Collection[str], recommended: str | None
) -> list[str]:
    """Say that no technique beats the most frequent label, or that the recommended one does not; else say nothing."""
    if majority is None:
        return []
    answer = f"{majority.row.answer} ({majority.row.mean:.3f})"
    if not better:
        return [f"No technique was shown to be better than {answer}."]
    if recommended is not None and recommended not in better:
        return [f"{recommended} was not shown to be better than {answer}."]
    return []


def _why_not_the_best(
    recommended: str,
    best: str,
    rows: Mapping[str, ScoredRow],
    able: Collection[str],
    fitting: Collection[str],
    shortest: float,
    needs: Sequence[Need],
) -> str:
    """Say by what the recommended row was preferred to the best, with which it is tied: the first rule that decided."""
    one, other = rows[recommended], rows[best]
    if best not in fitting:
        return f", and meets {', '.join(need.text for need in needs)}, which {best} does not"
    if best not in able:
        return ", and keeps more of what the base could do"
    (long, disk), (other_long, other_disk) = _cost_rank(one, shortest), _cost_rank(other, shortest)
    if long != other_long:
        tokens, other_tokens = (f"{row.cost.prompt_tokens:,.0f}" for row in (one, other))
        return f", and its prompts are {tokens} tokens instead of {other_tokens}"
    if recommended == "base" and other_disk:
        return f", and needs no adaptation ({best}: {size(other_disk)})"
    if size(disk) != size(other_disk):
        return f", and its adaptation is {size(disk)} instead of {size(other_disk)}"
    return ""


def _describe_best(
    best: str, ties: list[str], rows: Mapping[str, ScoredRow], examples: int, needed: int | None
) -> list[str]:
    """Say how good the best is on so many test examples, and how many would separate it from the second."""
    top = rows[best].score
    sentences = [f"{best} has the best mean {top.metric}, {top.mean:.3f} [{top.low:.3f}, {top.high:.3f}]."]
    if ties:
        sentences.append(f"{best} is statistically tied with {', '.join(ties)}.")
    if len(rows) == 1:
        sentences.append(f"{best} is the only row that finished: there is not enough evidence for a choice.")
    elif ties:
        second = _second(best, rows)
        difference = rows[best].score.mean - rows[second].score.mean
        if needed is None and difference:
            sentences.append(f"No number of test examples would separate {best} from {second}; more seeds might.")
        elif needed is not None and needed > examples:
            sentences.append(
                f"About {needed:,} test examples would separate {best} from {second}, if their difference stays as it "
                f"is on these {examples:,}."
            )
    return sentences


def _second(best: str, rows: Mapping[str, ScoredRow]) -> str:
    return max((name for name in rows if name != best), key=lambda name: rows[name].score.mean)


def _examples_to_separate(best: str, rows: Mapping[str, ScoredRow], tables: Tables) -> int | None:
    return needed_examples(tables[best], tables[_second(best, rows)], seed_variance(tables)) if len(rows) > 1 else None


def _describe_nearest(rows: Mapping[str, ScoredRow], needs: Sequence[Need]) -> str:
    met = {name: [need.text for need in needs if need.holds(Measured.of(row))] for name, row in rows.items()}
    name = max(met, key=lambda name: (len(met[name]), rows[name].score.mean))
    return f"{name} comes closest, meeting {', '.join(met[name]) or 'none of them'}."


def _reasons_for_choice(
    recommended: str,
    able: list[str],
    best_and_ties: tuple[str, list[str]],
    rows: Mapping[str, ScoredRow],
    needs: Sequence[Need],
) -> list[str]:
    sentences = []
    best, ties = best_and_ties
    forgetful = [name for name in (best, *ties) if name not in able]
    if forgetful:
        sentences.append(
            f"Not recommended, because less than {KEPT:.0%} of what the base could do is kept: {', '.join(forgetful)}."
        )
    if needs:
        sentences.append(f"{recommended} meets {', '.join(need.text for need in needs)}.")
    if recommended == "base":
        sentences.append("The unadapted base is among the best, so nothing here shows that adapting is worth its cost.")
    elif len(able) > 1:
        cost, other = rows[recommended].cost, rows[best].cost
        disk, tokens = size(cost.artifact_bytes), f"{cost.prompt_tokens:.0f} prompt tokens"
        if recommended != best:
            disk, tokens = (
                f"{disk} ({best}: {size(other.artifact_bytes)})",
                f"{tokens} ({best}: {other.prompt_tokens:.0f})",
            )
        among = "the remaining rows" if forgetful else "these"
        sentences.append(f"Of {among} with short prompts, {recommended} is the smallest on disk: {disk}, {tokens}.")
    forgetting = rows[recommended].forgetting
    if forgetting is not None and recommended != "base":
        probe = forgetting.probe
        kept = f", and it keeps {probe:.1%} of what the base could do" if probe is not None else ""
        sentences.append(
            f"{recommended} changed the loss on retention text by {forgetting.nll_rise:+.3f} nats per token{kept}."
        )
    return sentences


def _alternatives(
    recommended: str,
    best_and_ties: tuple[str, list[str]],
    rows: Mapping[str, ScoredRow],
    fitting: Mapping[str, ScoredRow],
) -> list[str]:
    """Say under which other needs another row would be recommended."""
    best, ties = best_and_ties
    sentences = []
    if recommended not in (best, *ties):
        sentences.append(f"Without these needs, the best row is {best}.")
    others = [name for name in (best, *ties) if name != recommended and name in fitting]
    untrained = [name for name in others if not _trained(rows[name]) and name != "base"]
    if _trained(rows[recommended]) and untrained:
        sentences.append(f"If nothing may be trained, {untrained[0]} does as well here, with longer prompts.")
    if _probed(rows[recommended]) and not _retains(rows[recommended]):
        keeping = [name for name, row in fitting.items() if _retains(row) and name != "base"]
        if keeping:
            name = max(keeping, key=lambda name: rows[name].score.mean)
            sentences.append(f"If the base's abilities must be retained, {name} is the best that does (--need retain).")
    return sentences


def break_even(rows: Mapping[str, ScoredRow], best: str) -> list[str]:
    """Say after how many requests the time to train `best` is saved, against each row that only lengthens the prompt.

        requests = (train seconds of best - of the other) / (seconds per example of the other - of best)

    The list is empty if `best` is not trained.
    """
    sentences: list[str] = []
    for name, row in rows.items():
        if name == "base" or _trained(row) or not _trained(rows[best]):
            continue
        saved_per_request = row.cost.seconds_per_example - rows[best].cost.seconds_per_example
        extra_training = rows[best].cost.train_seconds - row.cost.train_seconds
        if saved_per_request > 0 and extra_training > 0:
            sentences.append(
                f"Training {best} saves time over {name} after {extra_training / saved_per_request:,.0f} requests."
            )
        elif saved_per_request <= 0:
            sentences.append(f"{name} answers as fast as {best}, so training never saves time over it.")
    return sentences
