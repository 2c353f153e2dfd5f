"""The result of an export's comparison, in words."""

from __future__ import annotations

from pathlib import Path

from tunewise.export.parity_record import ParityRecord


def parity_summary(record: ParityRecord, folder: Path) -> str:
    """Say in a few lines, for a terminal, whether the export in `folder` is the trained model."""
    head = "is the model that was trained" if record["same"] else "is NOT the model that was trained"
    lines = [
        f"{folder} ({record['format']}, {record['dtype']}) {head}.",
        f"{record['prompts']} prompts ({record['source']}): logits differ by at most "
        f"{record['max_logit_difference']:.2g} (allowed {record['tolerance']:.2g}; training moved them by up to "
        f"{record['moved_by_training']:.2g}); {100 * record['greedy_agreement']:.0f} % of the greedy continuations of "
        f"{record['greedy_tokens']} tokens are the same.",
    ]
    if "score" in record:
        score = record["score"]
        lines.append(f"{score['metric']}: {score['trained']:.4f} trained, {score['exported']:.4f} exported.")
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
