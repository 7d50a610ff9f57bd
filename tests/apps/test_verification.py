"""A run that is whole and true passes; one whose files or history were changed does not."""

import json

import pytest

from dasd_utils import training
from dasd_utils.apps import verify
from dasd_utils.apps.cli import runs
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints


def test_a_true_run_passes_to_the_bit_and_a_changed_one_does_not(tiny_config, tmp_path):
    run, _ = runs.run_training(tiny_config, resume=False, auto_batch_size=False)

    def wrong() -> list[str]:
        return [row["what"] for row in verify.verify(run) if not row["ok"]]

    rows = verify.verify(run)
    names = ["the run's files", "step-000002", "step-000004", "step 1", "step 2", "step 3"]
    assert [row["what"] for row in rows if row["ok"]] == names
    assert [row["found"] for row in rows[3:]] == ["the same bits"] * 3

    file = run / "adapter" / "xray.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    assert wrong() == ["the run's files"]

    history = training.load_history(run)
    history[1]["loss"] *= 1.01
    checkpoints.write_rows(run / "history.jsonl", history)
    files = json.loads((run / "manifest.json").read_text())["files"]
    checkpoints.write_manifest(run, [run / name for name in files])  # the forger knows of hashes too
    assert wrong() == ["step 2"]
    with pytest.raises(DasdError, match="no finished run"):
        verify.verify(tmp_path)
