"""The names and shapes that users of the published project know, one after the other as they use them."""

import pytest
from PIL import Image

import dasd_utils
from dasd_utils import (
    Config,
    DomainClassifier,
    create_datasets,
    load_trained_pipeline,
    plot_losses,
    save_training_results,
    setup_training,
    train,
)


@pytest.fixture(scope="module")
def published(base_dir, tmp_path_factory):
    """Run the published sequence once; return what its steps gave."""
    from conftest import on_narrow_base

    config = on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path_factory.mktemp("run"))
    models = setup_training(config)
    source_ds, target_ds, sampler = create_datasets(config, models["tokenizer"])
    losses = train(config, models, sampler, models["token_ids"])
    folder = save_training_results(config, models, losses)
    return config, source_ds, target_ds, losses, folder, load_trained_pipeline(folder)


def test_config_setup():
    assert Config.setup("tiny").training.max_train_steps > 0


def test_training(published):
    config, source_ds, target_ds, losses, folder, _ = published
    assert len(source_ds) > 0 and set(target_ds) == {"satellite", "xray"}
    assert [row["step"] for row in losses] == list(range(1, config.training.max_train_steps + 1))
    assert (folder / "adapter" / "pytorch_lora_weights.safetensors").exists()
    assert plot_losses(losses).axes


def test_generate(published):
    pipeline = published[-1]
    assert pipeline.domain_tokens == {"satellite": "<satellite>", "xray": "<xray>"}
    image, domain, settings = pipeline.generate("a harbor", domain="satellite", seed=1)
    assert isinstance(image, Image.Image) and domain == "satellite" and settings["seed"] == 1
    assert len(pipeline.generate("a harbor", auto_domain=True)) == 3
    assert len(pipeline.generate_with_auto_domain("a harbor")) == 4


def test_lists_of_prompts(published):
    pipeline = published[-1]
    images, domains, settings = pipeline.generate(["a harbor", "<xray> lungs"], seed=1)
    assert len(images) == len(settings) == 2 and domains == [None, "xray"]
    assert len(pipeline.classify_prompt(["a harbor", "lungs"])) == 2


def test_classify_prompt(published):
    found = published[-1].classify_prompt("a harbor")
    assert set(found) >= {"best_domain", "best_score", "all_similarities", "suggested_prompt"}
    assert isinstance(published[-1].classifier, DomainClassifier)


def test_comparison(published):
    rows = published[-1].generate_comparison("a harbor", seed=42)
    assert all({"domain", "image", "settings", "prompt"} <= set(row) for row in rows)
    assert {"satellite", "xray"} <= {row["domain"] for row in rows}


def test_every_published_name_is_there():
    assert all(getattr(dasd_utils, name) for name in dasd_utils.__all__)
