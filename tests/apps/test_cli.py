"""The command: published options, JSON on standard output, one line for an error of the user."""

import json
import os
import subprocess
import sys

import pytest
import typer
from conftest import dasd, on_narrow_base
from typer.testing import CliRunner

from dasd_utils.apps import batch_size, workers
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options, runs
from dasd_utils.config import Config, DasdError

runner = CliRunner()


@pytest.fixture(scope="module")
def trained(base_dir, tmp_path_factory):
    """Return (config file, run folder) of a run that `dasd train` made."""
    folder = tmp_path_factory.mktemp("cli")
    config = on_narrow_base("tiny", base_dir, base_dir / "clip", folder, images_per_prompt=1)
    path = config.save(folder / "config.json")
    printed = dasd("train", "--config", path, "--max_steps", 2, "--seed", 5)
    assert printed["step"] == 2
    return path, folder / "run"


def test_train_writes_the_run_and_resumes(trained):
    path, folder = trained
    saved = Config.load(folder / "config.json")
    assert (saved.seed, saved.training.max_train_steps) == (5, 2)
    assert (folder / "history.jsonl").read_text().count("\n") == 2
    assert dasd("train", "--config", path, "--max_steps", 3, "--seed", 5, "--resume")["step"] == 3
    assert (folder / "history.jsonl").read_text().count("\n") == 3


def test_no_training_takes_the_place_of_a_run_unasked(trained):
    path, folder = trained
    (folder / "evaluation.json").write_text("{}")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for words, said in (
        (["train"], f"{folder} holds a run: go on with resume=True (`--resume`)"),
        (["evaluate"], "evaluation.json is there already: replace it by --force"),
    ):
        error = runner.invoke(cli.app, [*words, "--config", str(path)]).exception
        assert isinstance(error, DasdError) and said in str(error)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    (folder / "evaluation.json").unlink()


def test_a_run_by_auto_is_resumed_with_its_own_sizes(tiny_config):
    first = tiny_config.replace(target_batch_size=3, source_batch_size=1, gradient_accumulation_steps=2)
    runs.run_training(first.replace(max_train_steps=1), False)
    other = tiny_config.replace(max_train_steps=2, gradient_checkpointing=True)  # as on another GPU
    with pytest.raises(DasdError, match="target_batch_size"):
        runs.run_training(other, True)
    folder, history = runs.run_training(other, True, fitted=True)
    assert [row["step"] for row in history] == [1, 2]
    assert Config.load(folder / "config.json").training.target_batch_size == 3


def test_auto_is_known_from_the_command_line_or_the_file(tmp_path):
    assert runs.Training("auto").by_auto() and not runs.Training("tiny").by_auto()
    for text, found in (
        ("{}", True), ('{"profile": "auto"}', True), ('{"profile": "sd15"}', False),
        ('{"target_batch_size": 6}', False), ('{"training": {"target_batch_size": 6}}', False),
        ('{"model": {"resolution": 256}}', False), ('{"training": {"max_train_steps": 6}}', True),
    ):  # fmt: skip
        (tmp_path / "a.json").write_text(text)
        assert runs.Training("auto", tmp_path / "a.json").by_auto() == found, text
    (tmp_path / "a.json").write_text("{}")
    assert not runs.Training("tiny", tmp_path / "a.json").by_auto()


def test_a_run_keeps_how_it_was_trained_whatever_file_is_named(trained):
    path, folder = trained
    stored, file = Config.load(folder / "config.json"), Config.load(path)
    assert (stored.seed, file.seed) == (5, 0) and stored.training != file.training
    _, found = options.ChosenRun(config=path).find(seed=None)
    assert (found.seed, found.training, found.evaluation) == (5, stored.training, file.evaluation)
    assert options.ChosenRun(config=path).find(seed=7)[1].seed == 7


def test_a_profile_is_that_of_a_file_which_names_none(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"seed": 3}')
    assert options.Settings("sd15", path).read().profile == "sd15"
    path.write_text('{"profile": "tiny"}')
    assert options.Settings("tiny", path).read().profile == "tiny"
    with pytest.raises(DasdError, match=r"a\.json is of the profile tiny: leave out --profile"):
        options.Settings("sd15", path).read()


def test_workers_encode_by_the_same_command(tiny_config, tmp_path, monkeypatch):
    path, ran = tiny_config.save(tmp_path / "config.json"), []
    monkeypatch.setattr(workers, "execute", lambda words, threads: ran.append(words))
    assert dasd("encode", "--config", path, "--workers", 2)["shards"] == 5
    (name, option, file), other = ran
    assert other == ran[0] and (name, option) == ("encode", "--config")
    assert Config.load(file) == tiny_config


def test_encode_fills_the_cache_and_clean_empties_it(tiny_config, tmp_path):
    path = tiny_config.save(tmp_path / "config.json")
    kept = tmp_path / "cache" / "mine" / "painting-train-1.npy"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"0")
    filled = dasd("encode", "--config", path)
    files = list((tmp_path / "cache").glob("*.npy"))
    assert filled["shards"] == len(files) == 5  # three domains for training, two for validation
    assert filled["bytes"] == sum(file.stat().st_size for file in files)
    before = {file: file.stat().st_mtime_ns for file in files}
    dasd("train", "--config", path, "--max_steps", 1)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    files[0].with_suffix(".tmp").write_bytes(b"left by a process that was killed")
    assert dasd("clean", "--config", path)["shards"] == 6  # and source features
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [kept]
    assert dasd("clean", "--config", path)["shards"] == 0


def test_auto_batch_size_is_found_once(tiny_config, tmp_path, monkeypatch):
    path = tiny_config.save(tmp_path / "config.json")
    limit = [3]

    def largest(config, _parts):
        found = batch_size.candidates(config)
        return next(each for each in found if each.training.target_batch_size <= limit[0])

    monkeypatch.setattr(batch_size, "largest_batch", largest)

    def trained_with(*more):
        dasd("train", "--config", path, "--auto_batch_size", *more)
        used = Config.load(tmp_path / "run" / "config.json").training
        return used.target_batch_size, used.gradient_accumulation_steps

    assert trained_with("--max_steps", 2) == (3, 2)
    limit[0] = 6
    assert trained_with("--max_steps", 3, "--resume") == (3, 2)  # as the run was begun
    assert trained_with("--max_steps", 1, "--force") == (6, 1)


def test_generate_writes_pictures_with_the_guidance_and_the_domain_it_finds(trained, tmp_path):
    def generate(*words):
        place = ("--checkpoint", trained[1], "--output_dir", tmp_path)
        result = dasd("generate", *place, "--seed", 3, *words)
        return result["domain"], result["settings"], result["images"]

    harbor = ("--prompt", "a harbor", "--domain", "satellite")
    domain, used, images = generate(*harbor, "--num_images", 2)
    assert domain == "satellite" and used["seed"] == 3
    assert len(list((tmp_path / "generated").glob("satellite_3_*.png"))) == len(images) == 2
    _, used, _ = generate(*harbor, "--guidance", "decoupled")
    assert used["guidance"] == "decoupled" and used["domain_scale"] == 2.5
    assert generate("--prompt", "<xray> lungs", "--auto-domain")[0] == "xray"
    result = dasd("classify", "--checkpoint", trained[1], "--prompt", "<xray> lungs")
    assert result["best_domain"] == "xray" and result["suggested_prompt"] == "<xray> lungs"


def test_evaluate_writes_rows(trained):
    result = dasd("evaluate", "--checkpoint", trained[1])
    rows = json.loads((trained[1] / "evaluation.json").read_text())["rows"]
    assert rows == result["rows"]
    assert {row["method"] for row in rows} == {"base", "base + style words", "DASD"}
    assert {row["metric"] for row in rows} >= {"clip_score", "clip_floor", "cmmd"}
    assert all(row["low"] <= row["high"] and row["n"] > 0 for row in rows)


def test_export_writes_the_files_a_card_and_samples(trained, tmp_path):
    out = tmp_path / "out"
    printed = dasd("export", trained[1], out, "--format", "a1111", "--name", "mine")
    assert {"README.md", "samples.png", "models/Lora/mine.safetensors"} <= set(printed["files"])
    assert all((out / file).is_file() for file in printed["files"])
    assert printed["upload"] == f"hf upload OWNER/NAME {out}"
    assert "max_train_steps" in (out / "README.md").read_text()


@pytest.mark.parametrize(("name", "command"), typer.main.get_command(cli.app).commands.items())
def test_every_option_is_explained_in_80_columns(name, command, monkeypatch):
    words = [word for param in command.params for word in param.opts if word.startswith("--")]
    bare = [param.name for param in command.params if not getattr(param, "help", "x")]
    assert command.help and bare == []
    assert "--json" in words or name == "playground"  # which has no result
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", False)  # True by GITHUB_ACTIONS and FORCE_COLOR
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", None)
    printed = runner.invoke(cli.app, [name, "--help"]).stdout
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed


def test_underscores_and_hyphens_are_the_same():
    for spelling in ("--output-dir", "--output_dir"):
        result = runner.invoke(cli.app, ["train", spelling, "x", "--max-steps", "0", "--profile", "tiny"])
        assert "max_train_steps" in str(result.exception)


COMPLETED = {
    "dasd train --method d": ["dasd", "diffusionclip", "domainstudio"],
    "dasd train --profile ": ["auto", "tiny", "sd15"],
    "dasd train --tracking t": ["tensorboard", "trackio"],
    "dasd generate --domain x": ["xray"],
    "dasd generate --guidance d": ["domain", "decoupled"],
    "dasd sweep list.json --notebook 04": ["04"],
    "dasd verify ": ["data/runs/deep/new", "data/runs/old"],  # newest first
    "dasd generate --checkpoint data/runs/o": ["data/runs/old"],
    "dasd export data/runs/d": ["data/runs/deep/new"],
}


@pytest.mark.parametrize("words", COMPLETED)
def test_the_tab_key_offers_values(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("old", "deep/new")):
        file = tmp_path / "data/runs" / name / "config.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        os.utime(file.parent, (age, age))
    count = str(len(words.split(" ")) - 1)
    asked = {"_DASD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    assert runner.invoke(cli.app, [], env=asked, prog_name="dasd").stdout.split() == COMPLETED[words]


def test_help_loads_no_torch():
    code = "import sys, dasd_utils.apps.cli.main; assert not {'torch', 'diffusers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_image_loads_no_more_than_it_needs(trained):
    """Each of these takes a quarter of a second or more, and so do collections among what was loaded."""
    unneeded = {"datasets", "pandas", "pyarrow", "matplotlib", "torchmetrics", "dasd_utils.evaluation"}
    code = f"""import gc, os, sys, dasd_utils.apps.cli.main as cli
try:
    cli.main()
except SystemExit:
    print(sorted({unneeded} & set(sys.modules)), gc.isenabled(), gc.get_freeze_count() > 100_000)
    print(os.environ["GOMP_SPINCOUNT"])"""
    words = ["generate", "--checkpoint", trained[1], "--prompt", "a city", "--domain", "satellite"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["[] True True", "3000"], done.stderr
