"""Putting an adaptation or an export on the Hugging Face Hub, with its model card, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError, TunewiseError
from tunewise.export.card import card
from tunewise.export.provenance import Provenance, facts_of

CARD = "README.md"
_LEFT = {CARD, ".gitattributes", ".lock", ".lock-holder"}


def prepared(folder: Path, repo: str, licence: str | None) -> tuple[list[Path], str]:
    """The files to send and the card.

    Raises:
        SettingError: the name is no `owner/name`.
        ArtifactError: the folder is neither an adaptation nor an export, or the export is not the trained model.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError(f'the repository "{repo}" has no name that the Hub takes ({error})') from error
    parity: dict[str, Any] | None = None
    if (folder / "parity.json").is_file():
        parity = artifact_writer.read_json(folder / "parity.json")
        if not parity.get("same"):
            raise ArtifactError(
                f"{folder}: is not the model that was trained, as its parity.json says; export it again, or to another "
                "format"
            )
        facts = Provenance.from_json(parity.get("adaptation"), folder / "parity.json")
    elif (folder / "adaptation.json").is_file():
        artifact_writer.read(folder)  # whole and unaltered
        facts = facts_of(folder)
    else:
        raise ArtifactError(f"{folder}: is neither an adaptation nor an export (no adaptation.json, no parity.json)")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _LEFT)
    if any(path.is_symlink() for path in files):
        raise ArtifactError(f"{folder}: holds links; push a folder of plain files")
    try:
        return files, card(facts, parity, repo, licence)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder}: its records are not as tunewise writes them ({error!r})") from error


def push(folder: Path, repo: str, *, private: bool = False, licence: str | None = None) -> dict[str, Any]:
    """Send the folder's files and a card, in one commit; the repository is made where there is none.

    Raises:
        TunewiseError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    files, text = prepared(folder, repo, licence)
    if get_token() is None:
        raise SettingError("there is no token for the Hub; set HF_TOKEN, or look at the card alone with --card-only")
    operations = [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in files]
    operations.append(CommitOperationAdd(CARD, text.encode()))
    try:
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(url.repo_id, operations, commit_message="Add the model and its card")
    except Exception as error:  # what the Hub's client raises is of many kinds, those of the connection among them
        raise TunewiseError(
            f"{folder} could not be pushed to {repo}: {' '.join(str(error).split())[:300]}; nothing here was changed"
        ) from error
    return {
        "repository": url.repo_id,
        "url": str(url),
        "commit": done.oid,
        "files": [operation.path_in_repo for operation in operations],
    }
