"""What help prints as a default is what happens where the option is left out."""

import dataclasses
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dasd_utils.apps import animation, export, new_domain, notebooks
from dasd_utils.apps import workers as pool
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options, runs, study
from dasd_utils.apps.playground import form
from dasd_utils.config import ROOT, Config, DasdError
from dasd_utils.evaluation import load_prompts
from dasd_utils.papers.diffusionclip import adaptation, translation
from dasd_utils.pretrain import build
from dasd_utils.pretrain.shared import PretrainConfig
from dasd_utils.runtime import small_cnn
from dasd_utils.study import calibration, ladder, tradeoff

TINY_RUN = ROOT / "data/tiny-run"
PRINTED = {
    (command.name or command.callback.__name__, name): each.default.show_default
    for command in cli.app.registered_commands
    for name, each in command.callback.__signature__.parameters.items()
    if isinstance(getattr(each.default, "show_default", None), str)
}
ABOUT = {}  # (command, option) -> the test of what is printed for it


def shows(text, *places):
    """Mark a test as that of a printed default, at "command option" each."""

    def mark(test):
        for place in places:
            command, name = place.split()
            assert PRINTED[command, name] == text, place
            ABOUT[command, name] = test
        return test

    return mark


class StoppedError(Exception):
    """What follows is of no interest."""


@pytest.fixture
def handed(monkeypatch):
    """Return `handed(module, name, command, ...)`: the arguments that a command gives to that function."""

    def run(module, name, command, /, **options):
        stop = Mock(side_effect=StoppedError)
        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(module, name, stop)
            command(**options)
        return stop.call_args

    return run


@pytest.fixture
def given(tiny_config, tmp_path):
    """Return the file of a config in which nothing is as the profile has it."""
    config = tiny_config.replace(seed=9, tracking="none", max_train_steps=7)
    return config.save(tmp_path / "given.json")


OF_RUNS = ("evaluate", "generate", "translate", "classify", "calibrate")
STUDIES = ("ladder", "front", "adapt", "notebooks")
OF_SETTINGS = (*OF_RUNS, *STUDIES, "train", "encode", "clean", "playground", "export")
OF_CONFIG = ("method", "seed", "output_dir", "max_steps", "tracking")


@shows("the config's", *(f"train {name}" for name in OF_CONFIG))
@shows("the config's", "evaluate seed", "evaluate tracking")
@shows("the config's", *(f"{command} {name}" for command in OF_SETTINGS for name in ("base", "data")))
def test_a_config_says_what_is_left_out(given, tmp_path):
    (tmp_path / "other.json").write_text('{"profile": "tiny", "method": "domainstudio"}')
    assert runs.Training(config=tmp_path / "other.json").settings().method == "domainstudio"
    config = Config.load(given)
    assert runs.Training(config=given).settings() == config
    _, found = options.ChosenRun(config=given).find(seed=None, tracking=None)
    assert found == dataclasses.replace(config, output_dir=str(given.parent / "run"))


@shows("the config's", "adapt num_images")
def test_as_many_labelled_images_as_the_config_has(given):
    config = Config.load(given)
    assert adaptation.Study(config, "toyworld:sketch", None).source.num_images == config.domains[0].num_images


@shows("the run's, else auto", *(f"{command} profile" for command in (*OF_RUNS, "playground", "export")))
@shows("--output_dir", *(f"{command} checkpoint" for command in OF_RUNS))
@shows("that of --checkpoint, else the config's", *(f"{command} output_dir" for command in OF_RUNS))
def test_a_run_says_its_profile_and_its_folder(tmp_path, given):
    run = options.ChosenRun(checkpoint=TINY_RUN)
    assert run.find()[1].profile == "tiny" and run.find()[1].output_dir == "data/tiny-run"
    assert options.ChosenRun(output_dir=TINY_RUN).find()[0] == TINY_RUN
    assert options.ChosenRun(config=given).find()[0] == given.parent / "run"
    assert options.ChosenRun(output_dir=tmp_path).find()[1].profile in ("tiny", "sd15")  # by this machine
    with pytest.raises(DasdError, match="is of the profile tiny"):
        options.ChosenRun("sd15", checkpoint=TINY_RUN).find()


@shows("a random one", "generate seed")
@shows("that of the prompt's token, else the base model", "generate domain")
@shows("as calibrated", "generate guidance")
def test_a_picture_of_a_prompt_alone(pipeline, monkeypatch, handed):
    monkeypatch.setattr(options.ChosenRun, "open", lambda self: pipeline)
    given = handed(pipeline, "stream", runs.generate, prompt="<xray> a chest").kwargs
    assert {given[name] for name in ("domain", "seed", "guidance")} == {None}
    one, other = (pipeline.generate("<xray> a chest")[1:] for _ in range(2))
    assert one[0] == "xray" and one[1]["seed"] != other[1]["seed"]
    assert one[1]["guidance"] == pipeline.config.domains[1].calibration.guidance
    assert pipeline.generate("a chest")[1] is None


@shows("the evaluation prompts of --domain, in turn", "generate prompt")
def test_without_a_prompt_a_domain_draws_its_own(pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(options.ChosenRun, "open", lambda self: pipeline)
    monkeypatch.setattr(runs, "save_image", lambda image, path: str(path.name))
    words, seeds = [], []

    def sample(jobs):
        assert len(jobs) <= pipeline.batch_size
        words.extend(job.plain for job in jobs)
        seeds.extend(job.seed for job in jobs)
        return ["image"] * len(jobs)

    monkeypatch.setattr(pipeline, "_sample", sample)
    runs.generate(domain="xray", num_images=22, seed=3)
    prompts = load_prompts(pipeline.config, "xray")
    assert (words, seeds) == ([*prompts, *prompts[:2]], [*range(3, 25)])
    seeds.clear()
    runs.generate(domain="xray", num_images=22)
    assert len({*seeds}) == 22  # else a prompt that comes again is drawn again
    with pytest.raises(DasdError, match="There is no prompt"):
        runs.generate()


@shows("as the run chooses", "translate strength")
def test_a_translation_is_as_strong_as_the_run_chooses(pipeline, monkeypatch, handed):
    monkeypatch.setattr(translation, "run_config", lambda *_: None)
    monkeypatch.setattr(translation.objective, "settings", lambda _: SimpleNamespace(
        return_step=1, forward_steps=1, generation_steps=1))  # fmt: skip
    monkeypatch.setattr(translation, "strength", lambda *_: 0.7)
    made = translation.by_settings(pipeline, [ROOT / "figures/method.png"])
    assert handed(translation, "translate", made.__next__).args[-1] == 0.7


@shows("<run>/samples.webp", "animate output")
@shows("the run's profile", "animate label")
def test_an_animation_is_named_by_its_run(tmp_path, monkeypatch, handed):
    Config.setup("tiny").save(tmp_path / "config.json")
    monkeypatch.setattr(animation, "of_run", lambda run: {})
    _, *named = handed(animation, "save", runs.animate, run=tmp_path).args
    assert named[:2] == [tmp_path / "samples.webp", "tiny profile"]


@shows("the config's run, else the shipped one", "playground checkpoint")
@shows("8866 or a free one", "playground port")
def test_the_playground_is_of_the_shipped_run(tmp_path, monkeypatch, handed):
    config = Config.setup("tiny", output_dir=tmp_path)
    monkeypatch.setattr(runs.Settings, "read", lambda self: config)
    run, _, port, *_ = handed(form, "serve", runs.playground).args
    assert run == TINY_RUN and port is None
    (tmp_path / "adapter").mkdir()
    config.replace(max_train_steps=3).save(tmp_path / "config.json")
    assert handed(form, "serve", runs.playground).args[0] == tmp_path  # of any length, as in a lesson
    assert form.PORT == 8866 and form.choose_port(None) > 0


@shows("the run's", "export name")
def test_an_export_is_named_as_its_run(tmp_path, handed):
    checked = handed(export, "check_export", runs.export, run=TINY_RUN / "adapter", out=tmp_path)
    assert checked.args[-1] == "tiny-run"


@shows("NAME.json", "new-domain out")
def test_a_new_config_is_named_by_its_domain(tmp_path, monkeypatch, handed):
    monkeypatch.chdir(tmp_path)
    checked = handed(new_domain, "check_place", runs.new_domain, name="sketch", folder=tmp_path)
    assert checked.args[0] == tmp_path / "sketch.json"


@shows(
    "that of --config, else data/runs/<command>", "ladder output_dir", "front output_dir", "adapt output_dir"
)
@shows("DASD's", "ladder only")
@shows("all", "front only", "pretrain stage")
@shows("DASD", "ladder against")
def test_a_study_is_whole_and_has_its_folder(given, monkeypatch, handed):
    for name in ("ladder", "front", "adapt"):
        assert study.Study("tiny").settings(name).output_dir == f"data/runs/{name}"
        assert study.Study(config=given).settings(name).output_dir == str(given.parent / "run")
    assert study.find_methods(None) == [*ladder.METHODS] and tradeoff.find_curves(None) == [*tradeoff.CURVES]
    assert not handed(build, "pretrain", study.pretrain, force=True).args[1]  # it makes all
    monkeypatch.setattr(ladder, "Scoring", lambda settings: None)
    monkeypatch.setattr(study, "run_methods", lambda *_: [])
    assert handed(ladder, "ladder_rows", study.ladder, profile="tiny").args[-1] == "DASD"


@shows("data/runs/sweep", "sweep output_dir")
@shows("data/runs/course", "notebooks output_dir")
@shows("data/tiny-sd; with --strict data/cache/tiny-strict", "pretrain output_dir")
@shows("the notebooks'", "notebooks seed")
def test_places_of_the_repository(monkeypatch, tmp_path, handed):
    monkeypatch.chdir(tmp_path)
    words = {"context": SimpleNamespace(args=[]), "profile": "tiny", "only": "03", "force": True}
    _, place, given, *_ = handed(notebooks, "run_notebooks", study.notebooks, **words).args
    assert place == ROOT / "data/runs/course" and given == {"profile": "tiny"}
    monkeypatch.setattr(pool, "read_sweep", lambda path: [])
    swept = handed(pool, "sweep_cells", study.sweep, parameters="x", notebook="03")
    assert swept.args[-1] == ROOT / "data/runs/sweep"
    assert handed(build, "pretrain", study.pretrain, force=True).args[0] == PretrainConfig()
    made = handed(build, "pretrain", study.pretrain, strict=True, force=True).args[0]
    assert made.strict and made.output_dir == "data/cache/tiny-strict" and "strict" in made.work_dir


def test_numbers_that_help_prints_are_those_of_the_library():
    callbacks = [command.callback for command in cli.app.registered_commands]
    options_of = {each.__name__: each.__signature__.parameters for each in callbacks}
    assert options_of["adapt"]["epochs"].default.default == small_cnn.EPOCHS
    assert options_of["calibrate"]["budget"].default.default == calibration.BUDGET
    assert options_of["calibrate"]["num_images"].default.default == calibration.IMAGES


def test_every_default_in_words_is_tested():
    assert PRINTED.keys() == ABOUT.keys(), PRINTED.keys() - ABOUT.keys()


def test_an_option_whose_default_is_in_words_is_left_out():
    for command in cli.app.registered_commands:
        for name, each in command.callback.__signature__.parameters.items():
            words = getattr(each.default, "show_default", None)
            if isinstance(words, str):  # "auto" asks for a run's profile, a path may be the value itself
                value = each.default.default
                assert value in (None, ROOT / words) or (name, value) == ("profile", "auto"), (command, name)
