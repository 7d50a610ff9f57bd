"""publish.py: nothing goes that was not planned, and every refusal is a sentence."""

from __future__ import annotations

from unittest.mock import create_autospec

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from typer.testing import CliRunner

from dasd_utils.apps import export
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "out"
    (folder / "models").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "models/a.safetensors").write_bytes(b"1234")
    files = [folder / "README.md", folder / "models/a.safetensors"]
    checkpoints.write_manifest(folder, files, export="a1111", name="a", base="b", words={})
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The hub's client with its own signatures, which goes nowhere."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = "https://huggingface.co/me/far"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    return api


def test_what_would_go_is_the_export_and_its_manifest(exported):
    (exported / "private.txt").write_text("not of the export")
    rows = export.planned_files(exported, "me/far")
    assert [row["file"] for row in rows] == ["README.md", "manifest.json", "models/a.safetensors"]
    assert rows[2]["bytes"] == 4


def test_what_goes_is_what_was_planned(exported, hub):
    (exported / "private.txt").write_text("not of the export")
    assert export.push(exported, "me/far", private=False, revision="next") == "https://huggingface.co/me/far"
    hub.create_repo.assert_called_once_with("me/far", private=False, exist_ok=True)
    sent = hub.upload_folder.call_args.kwargs
    assert sent["allow_patterns"] == ["README.md", "manifest.json", "models/a.safetensors"]
    assert (sent["repo_id"], sent["revision"]) == ("me/far", "next")


def test_a_dry_run_asks_nothing_of_the_hub(exported, hub):
    done = CliRunner().invoke(cli.app, ["push", str(exported), "me/far", "--dry-run"])
    assert (
        done.exit_code == 0 and "would go to me/far" in done.output and "models/a.safetensors" in done.output
    )
    assert not hub.mock_calls


def test_a_changed_or_missing_export_is_refused(exported, hub, tmp_path):
    (exported / "models/a.safetensors").write_bytes(b"5678")
    with pytest.raises(DasdError, match="not what was written"):
        export.push(exported, "me/far")
    with pytest.raises(DasdError, match="no export in"):
        export.push(tmp_path, "me/far")
    assert not hub.mock_calls


@pytest.mark.parametrize("name", ["far", "me/far/away", "me/f ar", "../far"])
def test_names_that_are_no_repository_are_refused(exported, name):
    with pytest.raises(DasdError, match="owner/name"):
        export.planned_files(exported, name)


REQUEST = httpx.Request("POST", "https://huggingface.co/api")


@pytest.mark.parametrize(
    "error, said",
    [
        (LocalTokenNotFoundError("token"), "hf auth login"),
        (
            HfHubHTTPError("403 Forbidden", response=httpx.Response(403, request=REQUEST)),
            "refused me/far: 403",
        ),
        (OfflineModeIsEnabled("offline mode is enabled."), "cannot be reached: offline mode"),
        (httpx.ConnectError("no route to host."), "cannot be reached: no route"),
        (httpx.ConnectTimeout(""), "cannot be reached: ConnectTimeout"),
    ],
)
def test_a_refusal_is_a_sentence(exported, hub, error, said):
    hub.create_repo.side_effect = error
    with pytest.raises(DasdError, match=said):
        export.push(exported, "me/far")
