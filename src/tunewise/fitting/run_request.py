"""Says what a training run was asked for; a run that resumes must be asked for the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunewise.contract.attachment import Attachment
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import Count, JsonRecord
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.row_file import fingerprint_of
from tunewise.engine.run_text import RunText
from tunewise.fitting.settings import TrainSettings

STATE = "trainer_state.json"  # the file of a checkpoint that holds the request

_log = logging.getLogger("tunewise")
_LEARNED = ("train", "validation")  # the splits that a training reads


@dataclass(frozen=True, kw_only=True)
class RunRequest(JsonRecord):
    """Records what the bits of a run depend on, besides its position.

    Attributes:
        technique: the recipe.
        base: the fingerprint of the base's weights.
        seed: everything random follows from it.
        settings: how it is trained.
        sequences: the number of training sequences.
        tokens_sha256: of the training sequences in their order; checkpoints of older versions have none.
        rehearsed_sha256: of the sequences that are rehearsed; absent where none are.
        text: what the sequences were made of, to name what differs; absent where the caller does not say.
    """

    technique: dict[str, object]
    base: str
    seed: int
    settings: dict[str, object]
    sequences: Count
    tokens_sha256: str | None = None
    rehearsed_sha256: str | None = None
    text: RunText | None = None

    @classmethod
    def of(
        cls,
        attachment: Attachment,
        sequences: Sequence[TokenSequence],
        settings: TrainSettings,
        seed: int,
        rehearsed: Sequence[TokenSequence] | None,
        text: RunText | None,
    ) -> Self:
        """Record a run that trains this attachment on these sequences."""
        return cls(
            technique=json.loads(json.dumps(attachment.recipe.to_json())),  # tuples become lists, as in a file
            base=attachment.base.fingerprint,
            seed=seed,
            settings=json.loads(json.dumps(settings.to_json())),
            sequences=len(sequences),
            tokens_sha256=fingerprint_of(sequences),
            rehearsed_sha256=fingerprint_of(rehearsed) if rehearsed is not None else None,
            text=text,
        )

    @classmethod
    def stored(cls, checkpoint: artifact_writer.Stored) -> Self:
        """Read the request of the run that wrote a checkpoint.

        Raises:
            ArtifactError: the checkpoint does not hold one.
        """
        return cls._of_state(checkpoint.json(STATE), checkpoint.folder / STATE)

    @classmethod
    def newest(cls, folder: Path) -> Self | None:
        """Read the request of the stopped run in a folder, before anything is done there; None if none can be read.

        Nothing is verified but the form; resuming verifies the checkpoint.
        """
        for checkpoint in artifact_writer.checkpoint_folders(folder):
            path = checkpoint / STATE
            with suppress(ArtifactError):
                return cls._of_state(artifact_writer.read_json(path), path)
        return None

    @classmethod
    def _of_state(cls, state: Mapping[str, object], path: Path) -> Self:
        return cls.from_json({name: state[name] for name in cls.names() if name in state}, path)

    @property
    def max_steps(self) -> int | None:
        """The optimiser steps of the run; None if it does not say."""
        steps = self.settings.get("max_steps")
        return steps if isinstance(steps, int) else None

    def refuse_other_text(self, text: RunText, folder: Path) -> None:
        """Refuse to resume this run, of a folder, with other data, before the list of labels is chosen.

        Raises:
            ArtifactError: names what differs, and what to do.
        """
        if self.text is not None:
            refuse_other_run(str(folder), text.with_label_list_of(self.text).differences(self.text, _LEARNED))

    def require_same(self, checkpoint: artifact_writer.Stored) -> None:
        """Refuse a checkpoint of a run that was asked for something else; one that does not say is told in a warning.

        Raises:
            ArtifactError: names what differs, and what to do.
        """
        earlier = self.stored(checkpoint)
        refuse_other_run(str(checkpoint.folder), self._differences(earlier))
        if earlier.tokens_sha256 is None:
            _log.warning(
                "%s: was written by an earlier version of tunewise, which kept no fingerprints of the data; it is "
                "continued, but whether data, order, template and window are the same cannot be checked",
                checkpoint.folder,
            )

    def _differences(self, earlier: RunRequest) -> list[str]:
        other = list[str]()
        if self.technique != earlier.technique:
            other.append(_other_technique(earlier.technique, self.technique))
        if self.base != earlier.base:
            other.append("another model")
        if self.seed != earlier.seed:
            other.append(f"the seed {earlier.seed} (now {self.seed})")
        other += _other_settings(earlier.settings, self.settings)
        if self.text is not None and earlier.text is not None:
            other += self.text.differences(earlier.text, _LEARNED)
        if self.sequences != earlier.sequences and not other:
            other.append(f"{earlier.sequences} training rows (now {self.sequences})")
        if earlier.tokens_sha256 is not None and self.tokens_sha256 != earlier.tokens_sha256 and not other:
            other.append("training rows that had other tokens")
        if earlier.tokens_sha256 is not None and self.rehearsed_sha256 != earlier.rehearsed_sha256 and not other:
            other.append("other text to remember")
        return other


def refuse_other_run(place: str, other: Sequence[str]) -> None:
    """Refuse to continue a run that was begun with something else.

    Args:
        place: where the run is.
        other: what it was begun with; empty if it was the same.

    Raises:
        ArtifactError: names all of it, and what to do.
    """
    if other:
        begun = f"{', '.join(other[:-1])} and {other[-1]}" if len(other) > 1 else other[0]
        raise ArtifactError(
            f"{place}: was begun with {begun}; give the same again to continue it, or choose another --out"
        )


def _other_technique(earlier: Mapping[str, object], now: Mapping[str, object]) -> str:
    if earlier.get("technique") != now.get("technique"):
        return f"the technique {earlier.get('technique')}"
    return f"other settings of {now.get('technique')}"


def _other_settings(earlier: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    return [f"{name} {earlier.get(name, 'unset')} (now {now.get(name, 'unset')})" for name in names]
