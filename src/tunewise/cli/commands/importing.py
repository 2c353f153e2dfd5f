"""The command that turns another program's configuration file into one of tunewise's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.console import console, print_json
from tunewise.cli.options import Json
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError, TunewiseError


def import_configuration(
    file: Annotated[
        Path, typer.Argument(help="Configuration file of LLaMA-Factory, Axolotl, TRL, torchtune or AutoTrain.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="YAML file to write; default: it is shown.")] = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The program: llama-factory, axolotl, trl, torchtune or autotrain; default: what its keys say.",
        ),
    ] = None,
    command: Annotated[str, typer.Option("--for", help="The command that will read it: fit or compare.")] = "fit",
    devices: Annotated[
        int, typer.Option(help="Devices that it was run on; a step here reads as many examples on all together.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Turn another program's configuration file into one for fit or compare, and say what became of each setting."""
    from tunewise.importing.convert import import_file

    if command not in ("fit", "compare"):
        raise SettingError(f"--for is {command} but must be fit or compare")
    if out is not None:
        _check_free(out)
    imported = import_file(file, program, "compare" if command == "compare" else "fit", devices)
    if out is not None:
        artifact_writer.write_text(out, imported.to_yaml())
    if as_json:
        print_json(imported.to_json())
    else:
        from tunewise.cli.views.imported import imported_page

        console().print(imported_page(imported, out))
    if imported.missing:
        names = " and ".join(imported.missing)
        options = " and ".join(f"--{name}" for name in imported.missing)
        raise TunewiseError(f"{file}: {names} could not be taken, and {command} needs it; give {command} {options}")


def _check_free(out: Path) -> None:
    """Refuse to write over a file that an import did not make."""
    from tunewise.importing.record import HEADING

    try:
        with out.open(encoding="utf-8", errors="replace") as existing:
            is_ours = existing.read(len(HEADING)) == HEADING
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    if not is_ours:
        raise SettingError(f"{out}: is there already, and import did not make it; choose another --out")
