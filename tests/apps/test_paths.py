"""One rule for paths: on the command line from the present folder, in a config from the repository."""

import itertools
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dasd_utils import sampling
from dasd_utils.apps import animation, verify
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options, runs, study
from dasd_utils.apps.cli.options import ChosenRun, Settings
from dasd_utils.config import ROOT, Config, DasdError, portable, resolve

COMMANDS = typer.main.get_command(cli.app).commands
SHIPPED = ROOT / "data/tiny-run"
METAVARS = ("FOLDER", "FILE", "RUN", "PICTURE...")
OPTIONS = [(command.callback.__name__, each) for command in cli.app.registered_commands
           for each in command.callback.__signature__.parameters.values()]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a folder that is the present one, with a run and a folder that the repository has too."""
    shutil.copytree(SHIPPED, tmp_path / "myrun")
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_path_of_a_command_is_read_by_one_rule():
    named = [(name, each) for name, each in OPTIONS if getattr(each.default, "metavar", None) in METAVARS]
    assert len(named) > 30
    for name, each in [*named, *((n, each) for n, each in OPTIONS if "Path" in str(each.annotation))]:
        assert each.default.parser is options.path, (name, each.name)


def given(command, *words):
    """Return what a command receives for these words."""
    return COMMANDS[command].make_context(command, [*words]).params


def test_paths_of_the_command_line_start_at_the_present_folder(here):
    assert options.path("data/prompts") == here / "data/prompts" and options.path(here) == here
    assert options.path("~/x") == Path.home() / "x"
    assert given("translate", "myrun", "/x")["pictures"] == [here / "myrun", Path("/x")]
    assert given("export", "myrun/../myrun", "out")["run"] == here / "myrun"
    assert options.folder_or_name("myrun") == str(here / "myrun") and options.folder_or_name("a/b") == "a/b"
    for words in (["train", "--output_dir", ""], ["verify", " "], ["generate", "--prompt", "x", "--config="]):
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 2 and "empty" in result.stderr


def test_paths_of_a_config_start_at_the_repository(here):
    assert resolve("data/prompts") == ROOT / "data/prompts"
    assert resolve(here / "myrun") == here / "myrun"
    assert portable(ROOT / "data/runs/x") == "data/runs/x" and portable(here) == str(here)
    with pytest.raises(DasdError, match="output_dir"):
        Config.setup("tiny", output_dir=" ")


def test_a_run_is_trained_and_found_in_the_same_folder(here, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "run_training", lambda config, *_: seen.append(config) or (Path("x"), []))
    context = COMMANDS["train"].make_context("train", ["--profile", "tiny", "--output_dir", "myrun"])
    COMMANDS["train"].invoke(context)
    assert seen[0].output_dir == str(here / "myrun")
    inside = Settings("tiny").read(output_dir=ROOT / "data/runs/mine")
    assert inside.output_dir == "data/runs/mine"  # no path of this machine in what is stored


@pytest.mark.parametrize("words", [
    "--checkpoint myrun", "--checkpoint myrun/adapter", "--output_dir myrun", "--checkpoint ../HERE/myrun",
])  # fmt: skip
def test_a_run_is_found_with_its_own_config_however_it_is_named(words, here, monkeypatch):
    own = Config.load("myrun/config.json").replace(seed=77)
    own.save("myrun/config.json")
    opened = []
    monkeypatch.setattr(sampling, "load_trained_pipeline", lambda *given: opened.append(given))
    words = words.replace("HERE", here.name).split()
    with pytest.raises(AttributeError):  # what was loaded is None here
        COMMANDS["classify"].main([*words, "--prompt", "x"], standalone_mode=False)
    ((folder, config),) = opened
    assert folder in (here / "myrun", here / "myrun/adapter")
    assert config == own.replace(output_dir=str(here / "myrun"))


def test_a_run_is_checked_and_animated_however_it_is_named(here, monkeypatch):
    taken = []
    monkeypatch.setattr(verify, "verify", lambda run, _: taken.append(run) or [])
    monkeypatch.setattr(animation, "of_run", lambda run: taken.append(run) or {})
    monkeypatch.setattr(animation, "save", lambda *_: here)
    for command, place in itertools.product(("verify", "animate"), ("myrun", "myrun/adapter")):
        assert CliRunner().invoke(cli.app, [command, place]).exit_code == 0
    assert taken == [here / "myrun"] * 4


def test_a_run_that_lost_its_config_is_not_read_with_another(here):
    (here / "myrun" / "config.json").unlink()
    folders = (here / "myrun", here / "myrun" / "adapter")
    for run in (*(ChosenRun(checkpoint=each) for each in folders), ChosenRun(output_dir=folders[0])):
        with pytest.raises(DasdError, match=r"myrun holds no config\.json.*--config"):
            run.find()
    for checkpoint in folders:
        _, named = ChosenRun("tiny", checkpoint=checkpoint).find()
        assert named.output_dir == str(here / "myrun")  # where pictures go


def test_local_copies_take_the_place_of_base_and_data(here, monkeypatch, sd15_layout_dir):
    seen = []
    monkeypatch.setattr(runs, "run_training", lambda config, *_: seen.append(config) or (Path("x"), []))
    (here / "photos").mkdir()
    words = ["--profile", "sd15", "--base", str(sd15_layout_dir), "--data", "satellite=photos"]
    COMMANDS["train"].main([*words, "--data", "painting=someone/paintings"], standalone_mode=False)
    (config,), profile = seen, Config.setup("sd15")
    assert config.model.base == str(sd15_layout_dir)
    assert (config.model.base_revision, config.model.base_variant) == (None, "fp16")  # it has those files
    assert config.source.data == "someone/paintings" and config.source.caption == "a painting"
    assert config.domain("satellite").data == str(here / "photos")
    assert config.domain("satellite").caption_column == "captions"
    assert config.domain("xray") == profile.domain("xray") and config.training == profile.training
    plain = Settings("sd15", base="myrun").read()
    assert (plain.model.base, plain.model.base_variant) == (str(here / "myrun"), None)


def test_local_copies_are_those_of_a_run_and_of_notebooks_too(here):
    own = Config.load("myrun/config.json")
    _, config = ChosenRun(checkpoint=here / "myrun", base="a/b", data=["xray=toyworld:sketch"]).find()
    assert (config.model.base, config.domain("xray").data) == ("a/b", "toyworld:sketch")
    assert config.replace(base=own.model.base, domains=own.domains, output_dir=own.output_dir) == own
    (here / "mine.json").write_text('{"rank": 3, "model": {"resolution": 32}}')
    course = study.Course("tiny", here / "mine.json", base="a/b", data=["xray=toyworld:sketch"])
    values = course.values()
    lesson = Config.setup(values["profile"], values["config"], method="domainstudio")
    assert (lesson.model.base, lesson.model.resolution, lesson.lora.rank) == ("a/b", 32, 3)
    assert lesson.domain("xray").data == "toyworld:sketch"
    assert lesson.training == Config.setup("tiny", method="domainstudio").training
    assert study.Course("tiny", here / "mine.json").values()["config"] == str(here / "mine.json")


def test_notebooks_on_a_gpu_take_the_sizes_that_auto_chooses(here, monkeypatch):
    monkeypatch.setattr(study.Course, "read", lambda _: Config.setup("sd15"))  # as "auto" does there
    (here / "mine.json").write_text('{"profile": "sd15"}')
    courses = (study.Course("auto"), study.Course("sd15"), study.Course("auto", here / "mine.json"))
    assert [course.values()["profile"] for course in courses] == ["auto", "sd15", "sd15"]


@pytest.mark.parametrize(("given", "said"), [
    ("satellite", "must be DOMAIN=FOLDER"), ("satellite= ", "must be DOMAIN=FOLDER"),
    ("satelite=photos", "Did you mean 'satellite'"),
])  # fmt: skip
def test_data_names_a_domain_of_the_config(given, said):
    with pytest.raises(DasdError, match=said):
        Settings("tiny", data=[given]).read()
