"""Upload an export to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx  # what huggingface_hub asks with
import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from dasd_utils.apps import export
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints


def planned(folder: str | Path, repo_id: str) -> list[dict[str, Any]]:
    """Return what would go, {"file", "bytes"} each; DasdError for no or a changed export, or an odd name."""
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
        named = repo_id.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise DasdError(f"{repo_id!r} is no repository of the hub: name it owner/name.")
    export.read_facts(folder)
    folder = Path(folder)
    files = [*checkpoints.verify(folder), checkpoints.MANIFEST]
    return [{"file": name, "bytes": (folder / name).stat().st_size} for name in sorted(files)]


def push(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload the files that `planned` names in one commit and return the repository's address.

    The repository is made if it is not there. Raises DasdError where `planned` does, without a token, and
    with the hub's reason where it refuses or cannot be reached.
    """
    files = [row["file"] for row in planned(folder, repo_id)]
    try:
        return _upload(Path(folder), repo_id, files, private, revision)
    except LocalTokenNotFoundError:
        raise DasdError(
            "The hub wants to know who uploads: log in with `hf auth login`, or set HF_TOKEN."
        ) from None
    except HfHubHTTPError as error:
        said = error.server_message or str(error).split("\n")[0]
        raise DasdError(
            f"The hub refused {repo_id}: {said} Check the name, and that your token may write."
        ) from None
    except (OSError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise DasdError(
            f"The hub cannot be reached: {said} Files go in one commit, so none is there."
        ) from None


def _upload(folder: Path, repo_id: str, files: Sequence[str], private: bool, revision: str | None) -> str:
    api = huggingface_hub.HfApi(library_name="dasd-utils")
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=list(files),
        revision=revision,
        commit_message=f"Adapter as {export.read_facts(folder)['export']} files",
    )
    return str(address)
