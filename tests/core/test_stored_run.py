"""A run folder written before the package had rooms is loaded, resumed, sampled and exported."""

import shutil
from pathlib import Path

import pytest
from conftest import picture_files
from typer.testing import CliRunner

from dasd_utils import Config, create_datasets, load_trained_pipeline, setup_training, training
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import ROOT
from dasd_utils.runtime import checkpoints

STORED = Path(__file__).with_name("stored_run")  # 4 steps on the narrow base, by version 0.1.0 (d6ef244)
KEYS = {"tiny": "54ca2a20ede9", "sd15": "a784e5f56d69", "real": "93188c7120b6", "ten_shots": "af6132fe72a4",
        "diffusionclip": "7076aa391377", "indomain_sd15": "4356e8f2b4f7"}  # fmt: skip


@pytest.fixture
def folder(base_dir, tmp_path, monkeypatch, own_datasets_cache):
    """Return a copy of the run beside its base and its images: all its paths are relative."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dasd_utils.runtime.checks.ROOT", tmp_path)  # where relative paths of a config start
    shutil.copytree(STORED, "run")
    shutil.copytree(base_dir, "base")
    Path("cache").mkdir()
    for name, first in (("source", 0), ("satellite", 100), ("xray", 200)):
        picture_files(Path("images", name), [f"{i:02}.png" for i in range(24)], first=first)
    return Path("run")


def test_its_config_loads_with_the_values_it_had(folder):
    config = Config.load(folder / "config.json")
    assert (config.training.max_train_steps, config.lora.rank, config.method) == (4, 1, "dasd")
    assert [d.token for d in config.domains] == ["<satellite>", "<xray>"]
    # the queue weakened the alignment in version 1: such a run never stands for one of today
    assert checkpoints.run_key(config) != "fc71172e6818"
    assert checkpoints.run_key(config.replace(lambda_align=0.0)) == "1f3b87953d32"
    assert checkpoints.run_key(config.replace(queue_size=0, unbiased=False)) == "e848363c9522"


def test_it_is_resumed_from_its_checkpoint(folder, caplog):
    config = Config.load(folder / "config.json").replace(max_train_steps=6)
    parts = setup_training(config)
    *_, sampler = create_datasets(config, parts.tokenizer)
    history = training.train(config, parts, sampler, parts.token_ids, resume=True, progress=False)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history[:4] == training.load_history(STORED)
    assert "an earlier version, in which the queue weakened the alignment" in caplog.text
    training.save_training_results(config, parts, history)
    assert checkpoints.is_complete(config)


def test_it_is_sampled_and_exported(folder, tmp_path):
    pipeline = load_trained_pipeline(folder)
    image, domain, settings = pipeline.generate("<xray> a chest", seed=1)
    assert (domain, image.size, settings["token"]) == ("xray", (32, 32), "<xray>")
    done = CliRunner().invoke(cli.app, ["export", "--format", "diffusers", "run", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found >= {"pytorch_lora_weights.safetensors", "xray.safetensors"}


def test_runs_are_found_under_the_names_they_had():
    for name, key in KEYS.items():
        file = ROOT / f"data/configs/{name}.json"
        config = Config.load(file) if file.exists() else Config.setup(name)
        config = config.replace(source_features="adapted")  # the default then
        assert checkpoints.run_key(config) == key, name
