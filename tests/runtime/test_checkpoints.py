"""Checkpoints: complete or not there, exact, and clear about what is wrong; and the history."""

import json
import logging
import math

import pytest
import torch

from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints, files


def tensors(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"adapter": {"w": torch.full((3, 2), value)}, "optimizer": {"0.step": torch.tensor(value)}}


def steps(folder) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.iterdir())


def test_read_returns_what_was_written_as_safetensors_and_json(tmp_path):
    matrix = torch.randn(4, 3)
    groups = {"adapter": {"view": matrix.T, "half": matrix.bfloat16()}, "objective": {}}
    path = checkpoints.write_checkpoint(tmp_path, 12, groups, {"step": 12, "note": None})
    found, state = checkpoints.read_checkpoint(path)
    assert path.name == "step-000012" and state == {"step": 12, "note": None}
    assert list(found) == ["adapter"]  # an empty group leaves no file
    assert torch.equal(found["adapter"]["view"], matrix.T)
    assert found["adapter"]["half"].dtype == torch.bfloat16
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_a_manifest_follows_its_files_to_the_disk(tmp_path, monkeypatch):
    """A power cut leaves no manifest without the files that it names, and no name without its content."""
    kept, sync = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: sync(path) or kept.append((path.name, path.is_dir())))
    checkpoints.write_checkpoint(tmp_path, 1, tensors(), {})
    each = {("adapter.safetensors", False), ("optimizer.safetensors", False), ("state.json", False)}
    assert {*kept[:4]} == {*each, ("new", True)}
    assert kept[4:] == [("new", False), ("new", True), (tmp_path.name, True)]


def test_newest_ones_are_kept_and_a_given_up_future_goes(tmp_path):
    for step in (1, 2, 3, 9):
        checkpoints.write_checkpoint(tmp_path, step, tensors(), {"step": step}, keep=2)
    assert steps(tmp_path) == [3, 9]
    checkpoints.write_checkpoint(tmp_path, 4, tensors(), {"step": 4}, keep=2)
    assert steps(tmp_path) == [3, 4]


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing", "no manifest"])
def test_a_broken_checkpoint_is_passed_over(tmp_path, caplog, damage):
    good = checkpoints.write_checkpoint(tmp_path, 1, tensors(), {"step": 1})
    bad = checkpoints.write_checkpoint(tmp_path, 2, tensors(), {"step": 2})
    file = bad / ("manifest.json" if damage == "no manifest" else "adapter.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage in ("changed", "shortened"):
        file.write_bytes(content[:-1] + (b"\7" if damage == "changed" else b""))
    with pytest.raises(DasdError, match="step-000002"):
        checkpoints.read_checkpoint(bad)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_checkpoint(tmp_path) == good
    assert "step-000002" in caplog.text


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_tensors_are_named(tmp_path, content):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    with pytest.raises(DasdError, match=r"adapter\.safetensors cannot be read.*Remove it"):
        checkpoints.read_tensors(path)


def test_newest_says_so_if_none_is_complete(tmp_path):
    assert checkpoints.newest_checkpoint(tmp_path / "never") is None
    (tmp_path / ".step-000005-x").mkdir()  # a crash left it behind
    assert checkpoints.newest_checkpoint(tmp_path) is None
    path = checkpoints.write_checkpoint(tmp_path, 1, tensors(), {"step": 1})
    assert steps(tmp_path) == [1]
    (path / "manifest.json").write_text("{", encoding="utf8")
    with pytest.raises(DasdError, match="broken"):
        checkpoints.newest_checkpoint(tmp_path)


def test_on_a_full_disk_the_last_checkpoint_stays(tmp_path, full_disk):
    last = checkpoints.write_checkpoint(tmp_path, 1, tensors(), {"step": 1}, keep=1)
    large = {"adapter": {"w": torch.zeros(9000)}}
    message = r"The checkpoint cannot be written to .*step-000002: "
    with full_disk(10_000), pytest.raises(DasdError, match=message):
        checkpoints.write_checkpoint(tmp_path, 2, large, {"step": 2}, keep=1)
    assert list(tmp_path.iterdir()) == [last] == [checkpoints.newest_checkpoint(tmp_path)]


def trained(optimizer_class, seed: int, steps: int, state=None) -> tuple[list, torch.optim.Optimizer]:
    """Return (weights, optimiser) after some steps with gradients that the seed draws."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((64, 128), (2, 8))]
    optimizer = optimizer_class([{"params": w, "lr": lr} for w, lr in zip(weights, (0.1, 0.2), strict=True)])
    if state is not None:
        checkpoints.load_optimizer(optimizer, state)
    draw.manual_seed(seed)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draw)
        optimizer.step()
    return weights, optimizer


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit"])
def test_the_optimiser_goes_on_to_the_bit_after_a_checkpoint(tmp_path, name):
    eight_bit = name == "AdamW8bit"
    kind = pytest.importorskip("bitsandbytes").optim.AdamW8bit if eight_bit else torch.optim.AdamW
    before, optimizer = trained(kind, 0, steps=3)
    tensors = {"optimizer": checkpoints.optimizer_tensors(optimizer)}
    assert not eight_bit or tensors["optimizer"]["0.state1"].dtype == torch.uint8
    path = checkpoints.write_checkpoint(tmp_path, 3, tensors, {"step": 3})
    saved = checkpoints.read_checkpoint(path)[0]["optimizer"]
    after, restored = trained(kind, 1, steps=0, state=saved)
    for weight, value in zip(after, before, strict=True):
        weight.data.copy_(value.data)
        value.grad = weight.grad = torch.ones_like(weight)
    optimizer.step()
    restored.step()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert [g["lr"] for g in restored.param_groups] == [0.1, 0.2]


def test_differences_name_the_field_and_forgive_what_training_never_reads():
    saved = Config.setup("tiny").to_dict()
    free = Config.setup("tiny", max_train_steps=9, output_dir="x", sample_every=3, num_heldout=5, clip="c",
                        shipped_run="data/other")  # fmt: skip
    assert checkpoints.differences(saved, free.to_dict()) == []
    taught, other = ({"method": "diffusionclip", "model": {"clip": clip}} for clip in "ab")
    assert checkpoints.differences(taught, other) == ["model.clip: 'a' -> 'b'"]  # half of a run each
    changed = Config.setup("tiny", rank=4, seed=1).to_dict()
    changed["domains"][0]["num_images"] = 7
    found = checkpoints.differences(saved, changed)
    assert sorted(d.split(":")[0] for d in found) == ["domains.0.num_images", "lora.rank", "seed"]
    assert "lora.rank: 32 -> 4" in found


def test_rows_hold_each_step_once_after_a_resume(tmp_path):
    path = tmp_path / "history.jsonl"
    for step in (1, 2, 3, 4):
        checkpoints.append_row(path, {"step": step, "loss": step / 2})
    with path.open("a", encoding="utf8") as file:
        file.write('{"step": 5, "lo')  # the process died here
    assert [r["step"] for r in checkpoints.load_rows(path)] == [1, 2, 3, 4]
    checkpoints.write_rows(path, checkpoints.rows_until(path, 2))
    checkpoints.append_row(path, {"step": 3, "loss": math.nan, "grad_norm": math.inf, "skipped": True})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("utf8").splitlines()]
    spoilt = {"step": 3, "loss": None, "grad_norm": None, "skipped": True}  # JSON knows no nan
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, spoilt]
    for tail in ("\0" * 9, '{"step": 2, "l\0\0'):  # of a power cut
        path.write_text('{"step": 1}\n' + tail, encoding="utf8")
        assert checkpoints.load_rows(path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n', encoding="utf8")
    with pytest.raises(DasdError, match="Line 2"):
        checkpoints.load_rows(path)


def test_an_output_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DasdError, match="output_dir"):
            files.output_folder(path)
    assert files.output_folder(tmp_path / "new" / "run").is_dir()
