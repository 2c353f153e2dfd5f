"""The result of an export's comparison, in words."""

from __future__ import annotations

from pathlib import Path

from tunewise.export.parity_record import ParityRecord, RoundingFigures, UnprovedRecord


def parity_summary(record: ParityRecord | UnprovedRecord, folder: Path) -> str:
    """Say in a few lines, for a terminal, whether the export in `folder` is the trained model."""
    if not record["checked"]:
        head = f"{folder} ({record['format']}, {record['dtype']}) is written, and not proved to be what was trained."
        return "\n".join([head, *record["notes"]])
    head = "is the model that was trained" if record["same"] else "is NOT the model that was trained"
    rounded = f", rounded to {record['dtype']}" if "rounding" in record else ""
    lines = [
        f"{folder} ({record['format']}, {record['dtype']}) {head}{rounded}.",
        f"{record['prompts']} prompts ({record['source']}): logits differ by at most "
        f"{record['max_logit_difference']:.2g} (allowed {record['tolerance']:.2g}; training moved them by up to "
        f"{record['moved_by_training']:.2g}); {100 * record['greedy_agreement']:.0f} % of the greedy continuations of "
        f"{record['greedy_tokens']} tokens are the same.",
    ]
    if "most_that_differ" in record:
        lines.append(bound_sentence(record["prompts"], record["most_that_differ"]))
    if "rounding" in record:
        lines.append(rounding_sentence(record["rounding"], record["dtype"]))
    if "score" in record:
        score = record["score"]
        examples = f" on {score['examples']} examples" if "examples" in score else ""
        lines.append(f"{score['metric']}{examples}: {score['trained']:.4f} trained, {score['exported']:.4f} exported.")
    if "on_the_unquantised_base" in record:
        lines.append(
            "Compared on the base in four bits, on which it was trained; on the base itself logits differ by up to "
            f"{record['on_the_unquantised_base']:.2g}."
        )
    if record.get("tokenizer", "same") != "same":
        lines.append(f"The tokenizer is not the model's: {record['tokenizer']}.")
    if record["differ"]:
        lines.append(
            f"They differ on prompts {', '.join(map(str, record['differ'][:10]))}; most on "
            f"{record['worst_prompt']}. The export is kept as it is."
        )
    return "\n".join([*lines, *record["notes"]])


def bound_sentence(prompts: int, most_that_differ: float) -> str:
    """Say what it proves that no prompt differed."""
    return f"No difference in {prompts} prompts: at most {100 * most_that_differ:.2g} % of prompts differ (95 %)."


def rounding_sentence(rounding: RoundingFigures, dtype: str) -> str:
    """Say how far rounding moved the trained model."""
    return (
        f"Rounding the merged weights to {dtype} moved the trained model's logits by up to "
        f"{rounding['max_logit_difference']:.2g} and left {100 * rounding['greedy_tokens_unchanged']:.1f} % of its "
        "greedy tokens unchanged; the export is compared with the rounded weights."
    )
