"""Send an adaptation or an export to the Hugging Face Hub, with its model card, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError, TunewiseError
from tunewise.export.card import card
from tunewise.export.provenance import Provenance, facts_of

CARD = "README.md"
_NOT_SENT = {CARD, ".gitattributes", ".lock", ".lock-holder"}


class PushResult(TypedDict):
    """Where a push went, and which files it sent."""

    repository: str
    url: str
    commit: str
    files: list[str]


def prepare_upload(folder: Path, repo: str, licence: str | None) -> tuple[list[Path], str]:
    """Check a folder and collect what is sent: its files and the text of the model card.

    Raises:
        SettingError: the repository's name is not of the form `owner/name`.
        ArtifactError: the folder is neither an adaptation nor an export, or the export is not the trained model.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError(f'the repository "{repo}" has no name that the Hub accepts ({error})') from error
    parity = artifact_writer.read_json(folder / "parity.json") if (folder / "parity.json").is_file() else None
    if parity is not None:
        unproved = parity.get("checked") is False and parity.get("same") is None
        if not parity.get("same") and not unproved:
            raise ArtifactError(
                f"{folder}: is not the model that was trained, as its parity.json says; export it again, or to another "
                "format"
            )
        facts = Provenance.from_json(parity.get("adaptation"), folder / "parity.json")
    elif (folder / "adaptation.json").is_file():
        artifact_writer.read(folder)  # refuses what is damaged or altered
        facts = facts_of(folder)
    else:
        raise ArtifactError(f"{folder}: is neither an adaptation nor an export (no adaptation.json, no parity.json)")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _NOT_SENT)
    if any(path.is_symlink() for path in files):
        raise ArtifactError(f"{folder}: contains links; push a folder of plain files")
    try:
        return files, card(facts, parity, repo, licence)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder}: its records are not as tunewise writes them ({error!r})") from error


def push(folder: Path, repo: str, *, private: bool = False, licence: str | None = None) -> PushResult:
    """Send a folder's files and a model card in one commit; the repository is created if it does not exist.

    Raises:
        TunewiseError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    files, text = prepare_upload(folder, repo, licence)
    if get_token() is None:
        raise SettingError("there is no token for the Hub; set HF_TOKEN, or look at the card alone with --card-only")
    operations = [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in files]
    operations.append(CommitOperationAdd(CARD, text.encode()))
    try:
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(url.repo_id, operations, commit_message="Add the model and its card")
    except Exception as error:  # the Hub's client raises errors of many kinds, those of the connection included
        raise TunewiseError(
            f"{folder} could not be pushed to {repo}: {' '.join(str(error).split())[:300]}; nothing here was changed"
        ) from error
    return {
        "repository": url.repo_id,
        "url": str(url),
        "commit": commit.oid,
        "files": [operation.path_in_repo for operation in operations],
    }
