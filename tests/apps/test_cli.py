"""The command: published options, JSON on standard output, one line for an error of the user."""

import json
import sys

import pytest
import typer
from conftest import on_narrow_base
from typer.testing import CliRunner

from dasd_utils.apps import batch_size
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options
from dasd_utils.apps.cli import train as cli_train
from dasd_utils.config import Config, DasdError

runner = CliRunner()


def run(*words):
    """Run a command that must succeed and return what it printed on standard output."""
    result = runner.invoke(cli.app, [str(w) for w in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def trained(base_dir, tmp_path_factory):
    """Return (config file, run folder) of a run that `dasd train` made."""
    folder = tmp_path_factory.mktemp("cli")
    config = on_narrow_base("tiny", base_dir, base_dir / "clip", folder, num_heldout=8)
    path = config.save(folder / "config.json")
    printed = json.loads(run("train", "--config", path, "--max_steps", 2, "--seed", 5, "--json"))
    assert printed["step"] == 2
    return path, folder / "run"


def test_train_wrote_the_run(trained):
    _, folder = trained
    saved = Config.load(folder / "config.json")
    assert (saved.seed, saved.training.max_train_steps) == (5, 2)
    assert (folder / "history.jsonl").read_text().count("\n") == 2


def test_train_resumes(trained):
    path, folder = trained
    printed = run("train", "--config", path, "--max_steps", 3, "--seed", 5, "--resume", "--json")
    assert json.loads(printed)["step"] == 3
    assert (folder / "history.jsonl").read_text().count("\n") == 3


def test_a_run_by_auto_is_resumed_with_its_own_sizes(base_dir, tmp_path):
    config = on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path)
    first = config.replace(target_batch_size=3, source_batch_size=1, gradient_accumulation_steps=2)
    cli_train.run_training(first.replace(max_train_steps=1), False, False)
    other = config.replace(max_train_steps=2, gradient_checkpointing=True)  # as on another GPU
    with pytest.raises(DasdError, match="target_batch_size"):
        cli_train.run_training(other, True, False)
    folder, history = cli_train.run_training(other, True, False, fitted=True)
    assert [row["step"] for row in history] == [1, 2]
    assert Config.load(folder / "config.json").training.target_batch_size == 3


def test_auto_is_known_from_the_command_line_or_the_file(tmp_path):
    assert cli_train.by_auto("auto", None) and not cli_train.by_auto("tiny", None)
    for text, found in (("{}", True), ('{"profile": "auto"}', True), ('{"profile": "sd15"}', False)):
        (tmp_path / "a.json").write_text(text)
        assert cli_train.by_auto("auto", tmp_path / "a.json") == found


def test_encode_fills_the_cache_and_clean_empties_it(base_dir, tmp_path):
    config = on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path)
    path = config.save(tmp_path / "config.json")
    kept = tmp_path / "cache" / "mine" / "painting-train-1.npy"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"0")
    filled = json.loads(run("encode", "--config", path, "--json"))
    files = list((tmp_path / "cache").glob("*.npy"))
    assert filled["shards"] == len(files) == 6  # three domains, training and validation
    assert filled["bytes"] == sum(file.stat().st_size for file in files)
    before = {file: file.stat().st_mtime_ns for file in files}
    run("train", "--config", path, "--max_steps", 1)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    (tmp_path / "cache" / "xray-train-1.tmp").write_bytes(b"left by a process that was killed")
    assert json.loads(run("clean", "--config", path, "--json"))["shards"] == 6
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [kept]
    assert json.loads(run("clean", "--config", path, "--json"))["shards"] == 0


def test_auto_batch_size_is_found_once(base_dir, tmp_path, monkeypatch):
    config = on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path)
    path = config.save(tmp_path / "config.json")
    limit = [3]

    def fits(_updater, sizes):
        return sizes.training.target_batch_size <= limit[0]

    monkeypatch.setattr(batch_size, "_foretold", lambda _updater: fits)

    def trained_with(*more):
        run("train", "--config", path, "--auto_batch_size", *more)
        used = Config.load(tmp_path / "run" / "config.json").training
        return used.target_batch_size, used.gradient_accumulation_steps

    assert trained_with("--max_steps", 2) == (3, 2)
    limit[0] = 6
    assert trained_with("--max_steps", 3, "--resume") == (3, 2)  # as the run was begun
    assert trained_with("--max_steps", 1) == (6, 1)


def test_generate_writes_pictures(trained, tmp_path):
    options = ("--domain", "satellite", "--num_images", 2, "--seed", 3, "--output_dir", tmp_path)
    printed = run("generate", "--checkpoint", trained[1], "--prompt", "a harbor", *options, "--json")
    result = json.loads(printed)
    assert result["domain"] == "satellite" and result["settings"]["seed"] == 3
    assert len(list((tmp_path / "generated").glob("satellite_3_*.png"))) == len(result["images"]) == 2


def test_generate_takes_another_guidance(trained, tmp_path):
    options = ("--domain", "satellite", "--seed", 3, "--output_dir", tmp_path, "--guidance", "decoupled")
    printed = run("generate", "--checkpoint", trained[1], "--prompt", "a harbor", *options, "--json")
    used = json.loads(printed)["settings"]
    assert used["guidance"] == "decoupled" and used["domain_scale"] == 2.5


def test_generate_finds_the_domain(trained, tmp_path):
    printed = run("generate", "--checkpoint", trained[1], "--prompt", "<xray> lungs", "--auto-domain",
                  "--output_dir", tmp_path, "--json")  # fmt: skip
    assert json.loads(printed)["domain"] == "xray"


def test_classify_prints_the_dictionary(trained):
    printed = run("classify", "--checkpoint", trained[1], "--prompt", "<xray> lungs", "--json")
    result = json.loads(printed)
    assert result["best_domain"] == "xray" and result["suggested_prompt"] == "<xray> lungs"


def test_evaluate_writes_rows(trained):
    result = json.loads(run("evaluate", "--checkpoint", trained[1], "--json"))
    rows = json.loads((trained[1] / "evaluation.json").read_text())["rows"]
    assert rows == result["rows"]
    assert {row["method"] for row in rows} == {"base", "base + style words", "DASD"}
    assert {row["metric"] for row in rows} >= {"clip_score", "clip_floor", "cmmd"}
    assert all(row["low"] <= row["high"] and row["n"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("kind", "lora"), [("diffusers", "pytorch_lora_weights"), ("a1111", "models/Lora/mine")]
)
def test_export_writes_the_files_a_card_and_samples(trained, tmp_path, kind, lora):
    out = tmp_path / "out"
    told = json.loads(run("export", trained[1], out, "--format", kind, "--name", "mine", "--json"))
    assert {"README.md", "samples.png", f"{lora}.safetensors"} <= set(told["files"])
    assert all((out / file).is_file() for file in told["files"])
    assert "max_train_steps" in (out / "README.md").read_text()


def test_export_refuses_a_name_that_no_prompt_can_hold(trained, tmp_path):
    result = runner.invoke(cli.app, ["export", str(trained[1]), str(tmp_path / "out"), "--name", "a/b"])
    assert isinstance(result.exception, DasdError) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--profile", "tny"], "profile"),
        (["train", "--profile", "tiny", "--max_steps", "0"], "max_train_steps"),
        (["train", "--config", "missing.json"], "missing.json"),
        (["generate", "--profile", "tiny", "--prompt", "x", "--checkpoint", "nowhere"], "nowhere"),
        (["notebooks", "--only", "99"], "99"),
        (["notebooks", "-p", "sead", "3", "--only", "00"], "sead"),
    ],
)
def test_error_is_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dasd", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1 and error.startswith("dasd:") and message in error


def ended(monkeypatch, *words):
    """Return the exit status of a command line."""
    monkeypatch.setattr(sys, "argv", ["dasd", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize("words", [["trian"], ["train", "--sead", "3"], ["verify"], ["train", "--seed", "x"]])
def test_words_that_are_not_understood_are_the_users_error(words, monkeypatch, capsys):
    assert ended(monkeypatch, *words) == 1
    assert "Usage" in capsys.readouterr().err


def test_exit_status_of_help_a_stop_and_a_fault(monkeypatch, capsys):
    assert ended(monkeypatch, "train", "--help") == 0

    def raising(error):
        def read(*_, **__):
            raise error

        monkeypatch.setattr(options, "read_config", read)

    raising(KeyboardInterrupt())
    assert ended(monkeypatch, "train") == 130
    raising(ZeroDivisionError("no"))
    assert ended(monkeypatch, "train") == 2
    raising(DasdError("yours"))
    assert ended(monkeypatch, "train") == 1 and "dasd: yours" in capsys.readouterr().err


def commands():
    return typer.main.get_command(cli.app).commands.items()


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_option_is_explained(name):
    command = dict(commands())[name]
    words = [word for param in command.params for word in param.opts if word.startswith("--")]
    bare = [param.name for param in command.params if not getattr(param, "help", "x")]
    assert command.help and bare == []
    assert "--json" in words or name == "playground"  # which has no result


def test_underscores_and_hyphens_are_alike():
    for spelling in ("--output-dir", "--output_dir"):
        result = runner.invoke(cli.app, ["train", spelling, "x", "--max-steps", "0", "--profile", "tiny"])
        assert "max_train_steps" in str(result.exception)


def test_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, _ in commands():
        printed = run(name, "--help")
        assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed, name
