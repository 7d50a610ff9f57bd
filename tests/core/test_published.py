"""The names and shapes that users of the published project know, one after the other as they use them."""

import pytest
from conftest import refused
from PIL import Image

import dasd_utils
from dasd_utils import (
    Config,
    DasdError,
    DomainClassifier,
    create_datasets,
    load_trained_pipeline,
    plot_losses,
    save_training_results,
    setup_training,
    train,
)
from dasd_utils.config import resolve


@pytest.fixture(scope="module")
def published(make_config):
    """Run the published sequence once; return what its steps gave."""
    config = make_config()
    models = setup_training(config)
    source_ds, target_ds, sampler = create_datasets(config, models["tokenizer"])
    losses = train(config, models, sampler, models["token_ids"])
    folder = save_training_results(config, models, losses)
    return config, source_ds, target_ds, losses, folder, load_trained_pipeline(folder)


def test_a_config_of_nothing_is_that_of_this_machine():
    assert Config() == Config.setup("auto") and Config().replace(rank=3).lora.rank == 3
    with pytest.raises(DasdError, match="source is missing"):
        Config(profile="tiny")


def test_training(published):
    config, source_ds, target_ds, losses, folder, _ = published
    assert len(source_ds) > 0 and set(target_ds) == {"satellite", "xray"}
    assert [row["step"] for row in losses] == list(range(1, config.training.max_train_steps + 1))
    assert (folder / "adapter" / "pytorch_lora_weights.safetensors").exists()
    assert sum(row["loss"] for row in losses) > 0 and plot_losses(losses).axes
    assert all(getattr(dasd_utils, name) for name in dasd_utils.__all__)


def test_generate(published):
    pipeline = published[-1]
    assert pipeline.domain_tokens == {"satellite": "<satellite>", "xray": "<xray>"}
    image, domain, settings = pipeline.generate("a harbor", seed=0)
    assert isinstance(image, Image.Image) and domain is None
    plain = {"domain": None, "token": None, "seed": 0, "guidance": "cfg"}
    assert settings == plain | {"guidance_scale": 2.0, "num_inference_steps": 2, "scheduler": "ddim"}
    images, domain, settings = pipeline.generate("a harbor", domain="satellite", num_images=2, seed=1)
    assert len(images) == 2 and domain == settings["domain"] == "satellite"
    assert (settings["token"], settings["seed"]) == ("<satellite>", 1)
    assert len(pipeline.generate("a harbor", auto_domain=True)) == 3
    assert len(pipeline.generate_with_auto_domain("a harbor")) == 4
    images, domains, settings = pipeline.generate(["a harbor", "<xray> lungs"], seed=1)
    assert len(images) == 2 and domains == [None, "xray"]
    assert [row["token"] for row in settings] == [None, "<xray>"]
    rows = pipeline.generate_comparison("a harbor", seed=42)
    assert all({"domain", "image", "settings", "prompt"} <= set(row) for row in rows)
    assert {"satellite", "xray"} <= {row["domain"] for row in rows}


def test_classify_prompt(published):
    pipeline = published[-1]
    found = pipeline.classify_prompt("a harbor")
    assert set(found) >= {"best_domain", "best_score", "all_similarities", "suggested_prompt"}
    assert isinstance(pipeline.classifier, DomainClassifier)
    assert len(pipeline.classify_prompt(["a harbor", "lungs"])) == 2


def test_long_texts_are_cut_in_warnings_and_errors(published, caplog):
    published[-1].generate("a harbor at night " * 5000, "xray")
    assert "is cut to" in caplog.text and len(caplog.text) < 2000
    for wrong in ("\ud800" * 9999, b"x" * 9999, [None]):
        with refused("no"):
            published[-1].generate(wrong)


@pytest.mark.parametrize("wrong", [None, 5, [None], b"x"], ids=repr)
def test_what_is_no_argument_is_named(wrong, tiny_config, parts, pipeline):
    calls = [
        lambda: Config.load(wrong), lambda: tiny_config.save(wrong), lambda: resolve(wrong),
        lambda: load_trained_pipeline(wrong), lambda: setup_training(wrong),
        lambda: create_datasets(wrong, parts.tokenizer), lambda: create_datasets(tiny_config, wrong),
        lambda: train(wrong, parts, None), lambda: train(tiny_config, wrong, None),
        lambda: train(tiny_config, parts, wrong), lambda: save_training_results(wrong, parts, []),
        lambda: save_training_results(tiny_config, wrong, []), lambda: pipeline.generate(wrong),
        lambda: pipeline.classify_prompt(wrong), lambda: pipeline.generate_comparison(wrong),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises(DasdError, match=r"must be|not a text"):
            pytest.fail(f"call {number} returned {call()}")
    if wrong != b"x":  # numbers, to a computer
        with pytest.raises(ValueError, match="The history"):
            plot_losses(wrong)


def test_an_empty_path_is_refused():
    with pytest.raises(DasdError, match="A path is empty"):
        resolve(" ")
