"""Several processes are one: the same batch, loss, weights and files, whatever their number."""

import dataclasses
import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import on_narrow_base
from forked import Command
from PIL import Image
from safetensors.torch import load_file
from synthetic import make_batch, make_parts

from dasd_utils import losses as objectives
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints, processes

LAUNCH = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "dasd_utils.apps.cli.main"]


def trained(config: Config, count: int, *options: object) -> tuple[dict, list[dict]]:
    """Return (adapter, history) of a run in `count` processes."""
    folder = Path(config.output_dir)
    path = config.save(folder.parent / f"{count}.json")
    command = Command(["train", "--config", path, "--json", *options], folder.parent / f"said-{count}", count)
    assert command.finish() == [0] * count, command.text("err")[-3000:]
    assert json.loads(command.text())["step"] == config.training.max_train_steps
    assert not any(command.text(index=other) for other in range(1, count))  # printed once
    adapter = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    for domain in config.domains:
        adapter |= load_file(folder / "adapter" / f"{domain.name}.safetensors")
    return adapter, rows(config)


def rows(config: Config) -> list[dict]:
    return checkpoints.load_rows(Path(config.output_dir) / "history.jsonl")


def uneven(base: Path, folder: Path) -> Config:
    """Return a config whose batches no two or four processes share evenly, with queue and accumulation."""
    changes = dict(max_train_steps=4, target_batch_size=7, source_batch_size=3, queue_size=12)
    changes |= dict(validation_every=2, checkpoint_every=2, dropout=0.0, gradient_accumulation_steps=2)
    changes |= dict(lambda_align=1.0, learning_rate=1e-3, images_per_prompt=1, prompts_dir=folder)
    changes |= dict(lr_scheduler="constant_with_warmup", lr_warmup_steps=3)  # not of the last step
    for domain in ("satellite", "xray"):
        prompts = [f"a {thing}" for thing in ("harbor", "river", "forest", "beach", "road")]
        (folder / f"{domain}.json").write_text(json.dumps({"prompts": prompts}))
    return on_narrow_base("tiny", base, base / "clip", folder, **changes)


@pytest.fixture
def config(base_dir, tmp_path):
    return uneven(base_dir, tmp_path)


@pytest.fixture(scope="module")
def alone(base_dir, tmp_path_factory):
    """Return (folder, adapter, history) of the run of one process."""
    config = uneven(base_dir, tmp_path_factory.mktemp("alone"))
    return Path(config.output_dir), *trained(config, 1)


def assert_close(one: tuple, two: tuple) -> None:
    """Weights agree to 1e-5 in relative norm, numbers of the history to 1e-5.

    Sums in another order round otherwise, and Adam may move a weight whose gradient is nearly 0 by a part of
    the learning rate of 1e-3.
    """
    assert max((two[0][name] - value).abs().max().item() for name, value in one[0].items()) < 2e-4
    first, second = (torch.cat([weights[0][name].flatten() for name in one[0]]) for weights in (one, two))
    assert (second - first).norm() < 1e-5 * first.norm()
    assert [row["step"] for row in two[1]] == [row["step"] for row in one[1]]
    for first, second in zip(one[1], two[1], strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_are_the_run_of_one(config, alone, count):
    folder, *expected = alone
    assert any(abs(row["mmd"]) > 1e-3 for row in expected[1])  # alignment counts
    before, after = map(load_file, sorted(folder.glob("checkpoints/*/adapter.safetensors")))
    assert any(not torch.allclose(before[name], after[name], rtol=1e-3) for name in before)
    assert_close(expected, trained(config, count))


def test_a_run_is_resumed_by_another_number_of_processes(config, alone):
    trained(config.replace(max_train_steps=2), 2)
    assert_close(alone[1:], trained(config, 1, "--resume"))


def test_two_processes_make_the_bank_of_one(config, tmp_path):
    """To the bit, and train with it as one process does."""
    config = config.replace(source_features="bank", bank_size=600)
    own = config.replace(output_dir=tmp_path / "own", cache_dir=tmp_path / "own-cache")
    runs = trained(own, 1), trained(config, 2)
    banks = [sorted(Path(each.data.cache_dir).glob("*-features-*")) for each in (own, config)]
    assert len(banks[0]) == len(banks[1]) == 3 and all(map(filecmp.cmp, *banks))
    assert_close(*runs)


def test_two_processes_compare_the_same_samples_as_one(config, tmp_path):
    """DomainStudio: distances between samples that different processes passed through the network."""
    changes = dict(method="domainstudio", lambda_align=0.0, prior_loss_weight=1.0)
    config = config.replace(max_train_steps=2, **changes)
    runs = [trained(config.replace(output_dir=tmp_path / str(count)), count) for count in (1, 2)]
    assert runs[0][1][-1]["loss_img"] > 0
    assert_close(*runs)


def newest_step(config: Config) -> int:
    path = checkpoints.newest_checkpoint(Path(config.output_dir) / "checkpoints")
    return checkpoints.checkpoint_step(path)


def wait_for_checkpoint(config: Config, is_running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 400
    while not newest_step(config):
        assert time.monotonic() < deadline and is_running()
        time.sleep(0.1)


def test_a_killed_process_ends_the_others(config, tmp_path):
    config = config.replace(max_train_steps=2000, checkpoint_every=1)
    command = Command(["train", "--config", config.save(tmp_path / "config.json")], tmp_path / "said", 2)
    first, second = command.processes
    try:
        wait_for_checkpoint(config, first.is_alive)
        second.kill()
    finally:
        statuses = command.finish(60)
    assert statuses == [1, -signal.SIGKILL]
    assert "--resume" in command.text("err")
    adapter, history = trained(config.replace(max_train_steps=len(rows(config)) + 3), 1, "--resume")
    assert [row["step"] for row in history] == list(range(1, len(history) + 1))
    assert all(value.isfinite().all() for value in adapter.values())


def test_sigterm_stops_all_after_a_step_and_saves(config, tmp_path):
    """Here `accelerate launch` starts the two, and passes the signal on."""
    config = config.replace(max_train_steps=2000, checkpoint_every=1)
    words = ["train", "--config", str(config.save(tmp_path / "config.json"))]
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_for_checkpoint(config, lambda: process.poll() is None)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    last = rows(config)[-1]["step"]
    assert f"Stopped after step {last} of 2000" in err
    assert newest_step(config) == last


def test_two_processes_make_the_images_and_the_table_that_one_makes(alone, tmp_path):
    prompt = ("--prompt", "a harbor", "--domain", "satellite", "--num_images", 3, "--seed", 4)
    made = []
    for count in (1, 2):
        place = tmp_path / f"made-{count}"
        common = ("--checkpoint", alone[0], "--output_dir", place)
        for words in (("generate", *common, *prompt), ("evaluate", *common)):
            command = Command(words, place / words[0], count)
            assert command.finish() == [0] * count, command.text("err")[-3000:]
        pictures = [Image.open(path) for path in sorted((place / "generated").glob("*.png"))]
        table = json.loads((place / "evaluation.json").read_text())["rows"]
        made.append((np.stack([np.asarray(p, np.int16) for p in pictures]), table))
    (pictures, table), (shared, other) = made
    assert len(pictures) == 3 and np.abs(pictures - shared).max() <= 1  # rounding of other batches
    assert [(r["method"], r["metric"]) for r in other] == [(r["method"], r["metric"]) for r in table]
    for one, two in zip(table, other, strict=True):
        assert two["value"] == pytest.approx(one["value"], rel=0.02, abs=0.02)


def test_shares_are_whole_and_even(monkeypatch):
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(processes, "count", lambda count=count: count)
        for total in (1, 4, 7, 24):
            end = 0
            for index in range(count):
                monkeypatch.setattr(processes, "index", lambda index=index: index)
                share = processes.share(total)
                assert share.start == end and abs(share.stop - end - total / count) < 1
                end = share.stop
            assert end == total


@pytest.mark.parametrize("source_features", ["adapted", "frozen", "bank"])
@pytest.mark.parametrize("targets, sources", [(6, 2), (5, 3), (5, 1)])  # (5, 1): 2 + 0 and 3 + 1
def test_the_mean_of_shares_is_the_whole(tiny_config, monkeypatch, targets, sources, source_features):
    """Two processes in one: features of the other are put where an exchange would put them."""
    changes = dict(source_features=source_features, lambda_align=100.0)
    changes |= dict(prior_loss_weight=0.0 if source_features == "bank" else 1.0)
    config = tiny_config.replace(queue_size=0, dropout=0.0, **changes)
    parts = make_parts(config)
    batch = make_batch(config, domains=(0, 1, 0, 1, 0, 1)[:targets], sources=sources)
    parameters = [p for p in parts.unet.parameters() if p.requires_grad]
    if source_features == "bank":
        kept = objectives.bank_features(parts, make_batch(config, seed=1, sources=sources), config)
        batch = dataclasses.replace(batch, source_features=kept)
    alone, _ = objectives.DasdObjective(config)(parts, batch, config)
    expected = torch.autograd.grad(alone, parameters)
    mid = objectives.predict_batch(parts, batch, config)[1].detach()
    whole = objectives.alignment_features(mid, batch, parts, config)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "_reduce", lambda rows, how: whole.clone())
    gradients, losses = [], []
    for index in (0, 1):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        loss, _ = objectives.DasdObjective(config)(parts, batch, config)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, parameters))
    # rounding of an MMD near 0.01, times 100, where the loss comes near 0
    assert sum(losses) / 2 == pytest.approx(alone.item(), rel=1e-5, abs=2e-5)
    for one, two, both in zip(*gradients, expected, strict=True):
        assert ((one + two) / 2 - both).norm() < 1e-4 * both.norm() + 1e-7


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: x")]
)
def test_an_error_of_this_gpu_is_not_called_the_end_of_another_process(monkeypatch, error):
    def fails(_tensor, _how):
        raise error

    monkeypatch.setattr(processes, "reduce", fails)
    with pytest.raises(type(error)):
        processes._reduce(torch.ones(1), "sum")
    error.args = ("Connection closed by peer",)
    if type(error) is RuntimeError:
        with pytest.raises(DasdError, match="another process"):
            processes._reduce(torch.ones(1), "sum")
