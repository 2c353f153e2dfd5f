"""What an export's comparison says, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def text(found: dict[str, Any], folder: Path) -> str:
    """A few lines for a terminal."""
    head = "is the model that was trained" if found["same"] else "is NOT the model that was trained"
    lines = [
        f"{folder} ({found['format']}, {found['dtype']}) {head}.",
        f"{found['prompts']} prompts ({found['source']}): logits differ by at most "
        f"{found['max_logit_difference']:.2g} (allowed {found['tolerance']:.2g}; training moved them by up to "
        f"{found['moved_by_training']:.2g}); {100 * found['greedy_agreement']:.0f} % of the greedy continuations of "
        f"{found['greedy_tokens']} tokens are the same.",
    ]
    if "score" in found:
        own = found["score"]
        lines.append(f"{own['metric']}: {own['trained']:.4f} trained, {own['exported']:.4f} exported.")
    if "on_the_unquantised_base" in found:
        lines.append(
            "Compared on the base in four bits, on which it was trained; on the base itself logits differ by up to "
            f"{found['on_the_unquantised_base']:.2g}."
        )
    if found.get("tokenizer", "same") != "same":
        lines.append(f"The tokenizer is not the model's: {found['tokenizer']}.")
    if found["differ"]:
        lines.append(
            f"They differ on prompts {', '.join(map(str, found['differ'][:10]))}; most on "
            f"{found['worst_prompt']}. The export is kept as it is."
        )
    return "\n".join([*lines, *found["notes"]])
