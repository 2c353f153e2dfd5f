"""A trial as a line of JSON: what one process asks of another one that has the same base and the same data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from tunewise.comparison.trial_identity import Trial
from tunewise.core.json_record import Count, JsonObject, JsonRecord
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make

Kind = Literal["whole", "stage", "timing"]


@dataclass(frozen=True, kw_only=True)
class TrialOrder(JsonRecord):
    """Says what to do with which trial.

    Attributes:
        kind: run a whole trial, or a stage of a search, or time a finished trial alone.
        row: the name of its row, for reports.
        folder: the name of its folder, by which both processes know that they mean the same trial.
        maker: the folder of the first trial of the row with the same preparation, which its cost is laid to.
        searches: whether the row has trials that share a preparation.
        label_list: whether prompts list the labels, as the comparison has chosen.
        technique: the recipe's name.
        settings: the recipe's settings.
        seed: the trial's seed.
        training: the training settings, all of them.
        tokens: training tokens, where the budget is in tokens.
        share: the share of the steps that is trained.
    """

    kind: Kind
    row: str
    folder: str
    maker: str
    searches: bool
    label_list: bool | None
    technique: str
    settings: dict[str, object]
    seed: Count
    training: dict[str, object]
    tokens: Count | None = None
    share: float = 1.0

    @classmethod
    def of(
        cls,
        kind: Kind,
        trial: Trial,
        folder: str,
        maker: str,
        *,
        row: str,
        searches: bool,
        label_list: bool | None,
    ) -> TrialOrder:
        """Write the order of a trial."""
        return cls(
            kind=kind,
            row=row,
            folder=folder,
            maker=maker,
            searches=searches,
            label_list=label_list,
            **trial.technique.to_json(),
            seed=trial.seed,
            training=asdict(trial.settings),
            tokens=trial.tokens,
            share=trial.share,
        )

    def trial(self) -> Trial:
        """Make the trial that is meant.

        Raises:
            SettingError: there is no such technique here, or no such setting.
        """
        settings = self.settings if "+" in self.technique else {self.technique: self.settings}
        recipe = make(self.technique, cast("JsonObject", settings))
        return Trial(recipe, self.seed, TrainSettings(**cast("Any", self.training)), self.tokens, self.share)
