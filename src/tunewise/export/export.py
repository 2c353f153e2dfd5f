"""Export an adaptation: write it, read it back and compare; an export that differs is reported and left in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunewise.adaptation.artifact import Adaptation, load
from tunewise.adaptation.record import require_used
from tunewise.contract.places import Places
from tunewise.core import artifact_writer
from tunewise.core.addresses import shipped
from tunewise.core.errors import RequestError, SettingError, TunewiseError, out_of_space
from tunewise.core.progress import Progress, silent
from tunewise.core.text import one_line, show
from tunewise.core.version import __version__
from tunewise.data.task import Task
from tunewise.engine.model import DTYPES, Base
from tunewise.export.format import ExportOptions, Format, Written, format_for, format_named
from tunewise.export.parity import (
    PROMPTS,
    TOLERANCE,
    Allowance,
    Prompts,
    ReaderOutputs,
    Reporter,
    bound,
    collect_logits,
    collect_outputs,
    collect_trained,
    compare_outputs,
    rounding_figures,
    tokenizer_problem,
)
from tunewise.export.parity_record import (
    ExportFacts,
    ParityFigures,
    ParityRecord,
    RoundingFigures,
    TokenizerDifference,
    UnprovedRecord,
)
from tunewise.export.provenance import Provenance, facts_of
from tunewise.export.readers import CausalReader

NOT_COMPARED = "It was not compared with the trained model."


def export(
    path: str | Path,
    to: str,
    out: str | Path,
    *,
    base: Base | None = None,
    model: str | None = None,
    task: Task | None = None,
    dtype: str | None = None,
    error: float = 0.01,
    rank: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    places: Places | None = None,
    parity_prompts: int | None = PROMPTS,
    progress: Progress = silent,
) -> ParityRecord | UnprovedRecord:
    """Export an adaptation to a folder, read it back, and compare it with what was trained.

    Example:
        `export("runs/mine", "merged", "export/merged", dtype="bfloat16")["same"]`

    Args:
        path: the adaptation's folder.
        to: the format: see `tunewise.export.format.formats`.
        out: a folder that is empty or does not exist yet.
        base: the loaded base, bare.
        model: where to load the base from, if not the name that the adaptation records.
        task: data whose prompts are compared; default: the shipped task that it was fitted on, else text that the
            model writes.
        dtype: type of the stored weights, also "q8_0" for gguf and ollama; default: for a whole model that of the
            base's checkpoint, for what is read on the base that of the loaded base.
        error: for an approximation, the relative Frobenius error allowed to each weight's change.
        rank: for an approximation, its rank, whatever the error; 0: by `error`.
        settings: settings[technique][setting] that can still be changed after training (dylora's rank).
        places: what the adaptation uses besides its base, as for `tunewise.load`.
        parity_prompts: how many prompts are compared; None: the export is not read back, and recorded as unproved.
        progress: called as progress(what, done, total).

    Returns:
        What `parity.json` holds; `same` tells whether the export agrees with the trained model, and is None where they
        were not compared.

    Raises:
        SettingError: there is no such format or type, the folder is not empty, or no prompts are to be compared.
        TechniqueError: the format cannot express the technique; the message names those that can.
    """
    quantised = format_named(to).quantised
    if dtype is not None and dtype not in (*DTYPES, *quantised):
        raise SettingError(f'dtype "{dtype}" is not one of {", ".join((*DTYPES, *quantised))}')
    if not 0 <= error < 1 or rank < 0:
        raise SettingError(f"error is {error:g} and rank {rank}, but must be from 0 to below 1, and at least 0")
    if parity_prompts is not None and parity_prompts < 1:
        raise SettingError(
            f"parity_prompts is {parity_prompts}, but a comparison needs at least one prompt; leave the comparison out "
            "with --no-parity, which marks the export as unproved"
        )
    folder = Path(out)
    with artifact_writer.staged_folder(folder) as stage, ExitStack() as stack:
        progress("loading", 0, 0)
        loaded = load(path, base=base, model=model, settings=settings, places=places)
        loaded_base = loaded.attachment.base
        try:
            stack.enter_context(_in_float32(loaded_base))
            require_used(places or Places(), [loaded.attachment.recipe])
            provenance = facts_of(Path(path))
            chosen = format_for(to, loaded.attachment)
            if dtype in chosen.quantised:
                options = ExportOptions(torch.float16, error, rank, dtype)
            else:
                options = ExportOptions(DTYPES[dtype] if dtype else chosen.default_dtype(loaded_base), error, rank)
            exporting = _Export(loaded, provenance, chosen, stage, options, progress)
            return exporting.unproved() if parity_prompts is None else exporting.compared(task, parity_prompts)
        except _UnreadableError as unreadable:
            refusal = TunewiseError(
                f"{folder}: was written as {to}, but cannot be read back: {unreadable}; the folder is kept for "
                "inspection and must not be used"
            )
        except Exception as full:  # of many types: each library that writes raises its own
            if not out_of_space(full):
                raise
            raise TunewiseError(
                f"{folder}: could not be written ({one_line(full)}); free some space there or choose another place"
            ) from full
        finally:
            loaded_base.release()
    raise refusal


@contextmanager
def _in_float32(base: Base) -> Iterator[None]:
    """Hold half-precision weights in float32, so that no rounding of the arithmetic hides a fault of an export."""
    before = [(p, p.dtype) for p in base.model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _ in before:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in before:  # bare again, so that no value is rounded
            parameter.data = parameter.data.to(dtype)


class _UnreadableError(Exception):
    """An export that cannot be read back."""


@dataclass(frozen=True)
class _Export:
    """One adaptation on its way into one folder, which gets its name when everything is in it."""

    loaded: Adaptation
    provenance: Provenance
    chosen: Format
    folder: Path
    options: ExportOptions
    progress: Progress

    @property
    def base(self) -> Base:
        """The base, with whatever is attached to it."""
        return self.loaded.attachment.base

    def unproved(self) -> UnprovedRecord:
        """Write the export and record that nothing was compared."""
        written = self._write()
        unproved: UnprovedRecord = {**self._facts(written, [NOT_COMPARED]), "checked": False, "same": None}
        artifact_writer.write_json(self.folder / "parity.json", unproved)
        return unproved

    def compared(self, task: Task | None, count: int) -> ParityRecord:
        """Write the export, read it back and compare it with the trained model on so many prompts."""
        attachment, base = self.loaded.attachment, self.base
        compared_task, why_no_task = (task, None) if task is not None else _recorded_task(self.loaded)
        if compared_task is not None and self.loaded.record is not None:
            compared_task = compared_task.in_style_of(self.loaded.style)
        prompts = Prompts.of(self.loaded, compared_task, count)
        trained = collect_trained(
            CausalReader(base, prompts.placeholders), prompts, self._reporter("running the trained model")
        )
        replaced_weights = {name: tensor.detach().clone() for name, tensor in attachment.replaced_weights().items()}
        written = self._write()
        reference, rounding = trained, None
        if not self.chosen.on_base and (coarser := self._coarser_weights()):
            reference, rounding = self._rounded(coarser, prompts, trained)
        base.release()
        bare = collect_logits(CausalReader(base), prompts, self._reporter("running the base"))

        def compare() -> ParityFigures:
            exported, tokenizer = self._read_back(prompts, trained, reference)
            figures = compare_outputs(
                reference, exported, trained, bare, prompts, self._allowance(written, rounding is not None)
            )
            return _with_tokenizer(figures, tokenizer)

        with _with_weights(base, replaced_weights), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reading libraries' warnings: nothing that a user can mend
            figures = compare()
        if replaced_weights and self.chosen.on_base:
            figures["on_the_unquantised_base"] = compare()["max_logit_difference"]
        if rounding is not None:
            figures["rounding"] = rounding
            figures["same"] &= rounding["merging_logit_difference"] <= figures["tolerance"]
        if figures["same"]:
            figures["most_that_differ"] = bound(figures["prompts"])
        notes = [_fewer_prompts(figures["prompts"], count), why_no_task]
        facts = self._facts(written, [note for note in notes if note])
        record: ParityRecord = {**facts, **figures, "checked": True}
        artifact_writer.write_json(self.folder / "parity.json", record)
        return record

    def _reporter(self, what: str) -> Reporter:
        return Reporter(self.progress, what)

    def _write(self) -> Written:
        self.progress(f"writing {self.chosen.name}", 0, 0)
        return self.chosen.write(self.loaded, self.folder, self.options)

    def _facts(self, written: Written, notes: list[str]) -> ExportFacts:
        return {
            "schema": 1,
            "tunewise": __version__,
            "format": self.chosen.name,
            "dtype": self.options.type_name,
            "adaptation": self.provenance.to_json(),
            "notes": [*written.notes, *notes],
            **written.figures,
        }

    def _allowance(self, written: Written, rounded: bool) -> Allowance:
        """Return what may differ: the reference is rounded already, or the adapter's type counts too."""
        dtype = self.base.model.dtype
        share = TOLERANCE[dtype] if rounded else max(TOLERANCE[self.options.dtype], TOLERANCE[dtype])
        return Allowance(share, written.slack)

    def _coarser_weights(self) -> dict[str, Tensor]:
        """Round the merged weights to the types that they are stored in; return those that this changes, by name."""
        rounded = {}
        for name, parameter in self.base.model.named_parameters():
            values = self.chosen.as_stored(self.base, name, self.options)
            if not values.equal(parameter):
                rounded[name] = values
        return rounded

    def _rounded(
        self, weights: Mapping[str, Tensor], prompts: Prompts, trained: ReaderOutputs
    ) -> tuple[ReaderOutputs, RoundingFigures]:
        """Let the merged model read the prompts, then the merged model with these weights, which is the reference."""
        reader = CausalReader(self.base)
        merged = collect_logits(reader, prompts, self._reporter("running the merged model"))
        with _with_weights(self.base, weights):
            rounded = collect_outputs(reader, prompts, trained, self._reporter("running the rounded model"))
        return rounded, rounding_figures(trained, merged, rounded)

    def _read_back(
        self, prompts: Prompts, trained: ReaderOutputs, reference: ReaderOutputs
    ) -> tuple[ReaderOutputs, TokenizerDifference | Literal["same"] | None]:
        """Read the export back; return its outputs, and how its tokenizer compares, if it has one.

        Raises:
            _UnreadableError: it cannot be read back.
        """
        try:
            reader = self.chosen.read(self.folder, self.base)
        except Exception as error:  # every library that reads raises its own errors; all of them mean the same here
            raise _UnreadableError(one_line(error)) from error
        try:
            report = self._reporter("running the export")
            exported = collect_outputs(reader, prompts, trained, report, reference=reference)
            if reader.tokenizer is None:
                return exported, None
            return exported, tokenizer_problem(self.base.tokenizer, reader.tokenizer, prompts) or "same"
        finally:
            reader.close()


def _with_tokenizer(figures: ParityFigures, tokenizer: TokenizerDifference | Literal["same"] | None) -> ParityFigures:
    if tokenizer is not None:
        figures["tokenizer"] = tokenizer
        figures["same"] = figures["same"] and tokenizer == "same"
    return figures


def _fewer_prompts(compared: int, wanted: int) -> str | None:
    """Say that the data has fewer prompts than were to be compared."""
    return (
        f"The data has {compared} examples, so fewer than {wanted} prompts were compared."
        if compared < wanted
        else None
    )


@contextmanager
def _with_weights(base: Base, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the base these weights inside the block, and its own back after it."""
    originals = {name: base.model.get_parameter(name).detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, tensor in weights.items():
                base.model.get_parameter(name).copy_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in originals.items():
                base.model.get_parameter(name).copy_(tensor)


def _recorded_task(loaded: Adaptation) -> tuple[Task | None, str | None]:
    """Read the shipped task that the adaptation was fitted on, or say why no task is read."""
    source = loaded.record.style.source if loaded.record is not None else ""
    if not source:
        return None, None
    if shipped(source) is None:  # a path or a Hub id that only a file names
        return (
            None,
            f"no --data was given ({show(source)} is what it was fitted on), so text that the model writes is compared",
        )
    try:
        return Task.read(source), None
    except RequestError as error:
        return None, f"the data it was fitted on cannot be read ({error}), so text that the model writes is compared"
