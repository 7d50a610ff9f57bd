"""The seam of the methods: one field of the config decides whose objective trains."""

import dataclasses
import json

import pytest
from conftest import dasd
from typer.testing import CliRunner

from dasd_utils import evaluation, losses
from dasd_utils.apps import verify
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import study as cli_study
from dasd_utils.apps.cli.options import ChosenRun, Settings
from dasd_utils.config import Calibration, Config, DasdError, resolve
from dasd_utils.papers import domainstudio
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.runtime import checkpoints


@pytest.mark.parametrize("profile", ["tiny", "sd15"])
def test_a_method_brings_its_defaults_and_yields_to_what_is_asked(profile):
    assert isinstance(losses.make_objective(Config.setup(profile)), losses.DasdObjective)
    config = Config.setup(profile, method="domainstudio")
    assert config.alignment.lambda_align == 0 and config.training.prior_loss_weight == 1.0
    assert config.data.source_images == "generated"
    assert isinstance(losses.make_objective(config), domainstudio.DomainStudioObjective)
    other = Config.setup(profile, method="domainstudio", prior_loss_weight=0.5)
    assert other.training.prior_loss_weight == 0.5 and other.alignment.lambda_align == 0
    asked = Config.from_dict({"profile": profile, "method": "domainstudio", "max_train_steps": 7})
    assert asked.alignment.lambda_align == 0 and asked.training.max_train_steps == 7
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_command_line_takes_the_place_of_the_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"profile": "tiny", "training": {"max_train_steps": 9, "target_batch_size": 6}})
    )
    config = Settings("tiny", path).read("domainstudio", seed=3)
    assert (config.method, config.seed, config.training.max_train_steps) == ("domainstudio", 3, 9)
    assert config.alignment.lambda_align == 0
    settings = {"method": "domainstudio", "method_settings": {"space": "latents"}}
    for written in ({"method_settings": settings["method_settings"]}, settings):  # they can be no other's
        path.write_text(json.dumps({"profile": "tiny", **written}))
        assert Config.load(path, "domainstudio").method_settings == {"space": "latents"}
    back = Config.load(path, "dasd")
    assert back.method_settings == {} and back.alignment.lambda_align == 0.01
    assert Settings("tiny").read("domainstudio").method == "domainstudio"


def test_names_of_runs_are_what_they_were():
    """Runs that were trained before the fields of methods joined are found again."""
    before = {"source_features": "adapted"}  # the default then
    assert checkpoints.run_key(Config.setup("tiny", **before)) == "54ca2a20ede9"
    known = checkpoints.run_key(Config.setup("tiny", lambda_align=0.0))
    changes = ({"method": "domainstudio"}, {"source_images": "generated"}, {"whole_unet": True})
    others = [checkpoints.run_key(Config.setup("tiny", lambda_align=0.0).replace(**each)) for each in changes]
    assert len({known, *others}) == 4
    assert checkpoints.run_key(Config.setup("tiny", method="domainstudio", **before)) == "56580bc629e5"


def test_a_method_trains_by_the_command_and_its_run_is_verified(tiny_config, tmp_path):
    path = tiny_config.replace(validation_every=0).save(tmp_path / "mine.json")
    values = json.loads(path.read_text())
    for section, name in (("alignment", "lambda_align"), ("training", "prior_loss_weight")):
        del values[section][name]  # the method's own, then
    del values["data"]["source_images"], values["method"], values["method_settings"]
    path.write_text(json.dumps(values))
    words = ["train", "--config", str(path), "--method", "domainstudio"]
    said = dasd(*words)
    assert said["step"] == 4 and said["loss_img"] >= 0 and "loss_prior" in said
    stored = Config.load(tmp_path / "run" / "config.json")
    assert stored.method == "domainstudio" and stored.alignment.lambda_align == 0
    assert all(row["ok"] for row in verify.verify(tmp_path / "run", 2))
    pipeline = ChosenRun("tiny", path).open()  # the file does not name the method, the run does
    assert pipeline.config.method == "domainstudio"
    assert evaluation.compared_methods(pipeline.config) == ("base", "base + style words", "domainstudio")
    refused = CliRunner().invoke(cli.app, [*words, "--force", "--auto_batch_size"])
    assert isinstance(refused.exception, DasdError) and "made for DASD's step" in str(refused.exception)


def test_the_configs_in_the_repository_are_whole():
    folder = resolve("data/configs")
    found = {path.stem: Config.load(path) for path in folder.glob("*.json") if "sweep" not in path.stem}
    for config in found.values():
        if config.profile == "tiny" and config.method != "diffusionclip":  # which answers no prompt
            assert all(evaluation.read_prompts(config, domain.name) for domain in config.domains)
    assert found.keys() >= {"ten_shots", "many_shots", "ten_sketches", "ten_xrays", "domainstudio_sd15"}
    learner = found["indomain_sd15"]  # with the scales of the paper's demonstration
    assert learner.domains[0].calibration == Calibration(2.5, 25, "dpm++", "decoupled", 2.5)
    assert learner.training.caption_dropout == 1 and learner.domains[0].token is None
    few, many = found["ten_shots"], found["many_shots"]  # they differ in the number of images alone
    domain = dataclasses.replace(few.domains[0], num_images=400)
    assert few.replace(domains=(domain,), output_dir=many.output_dir) == many
    translated = found["diffusionclip_sd15"]
    assert translated.training.whole_unet and 2e-6 <= translated.training.learning_rate <= 8e-6
    own = diffusionclip.settings(translated)
    assert (own.return_step, own.forward_steps, own.generation_steps) == (500, 40, 6)
    assert diffusionclip.settings(found["diffusionclip_published"]).form == "released" == own.form
    published = found["domainstudio_sd15"]
    training = published.training
    assert published.method == "domainstudio" and published.data.source_images == "generated"
    assert (training.learning_rate, training.max_train_steps, training.target_batch_size) == (5e-6, 800, 4)
    assert training.whole_unet and training.prior_loss_weight == 1.0 and published.source.num_images == 200
    own = domainstudio.settings(published)
    assert (own.image_weight, own.detail_weight, own.detail_mse_weight, own.samples) == (100, 100, 0.1, 4)


def test_the_methods_of_a_ladder_are_compared_with_the_one_that_is_named():
    with pytest.raises(DasdError, match="Did you mean 'DomainStudio'"):
        cli_study.ladder(profile="tiny", against="Domainstudio", seeds="0")
    with pytest.raises(DasdError, match="none of the compared methods"):
        cli_study.ladder(profile="tiny", only=["base"], against="DomainStudio", seeds="0")
