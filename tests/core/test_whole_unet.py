"""A UNet all of whose weights learn: trained, saved, loaded and exchanged for the base as a LoRA is."""

import json

import narrow
import pytest
import torch
from diffusers import UNet2DConditionModel
from synthetic import NoiseSampler

from dasd_utils import adapters, models, sampling, training
from dasd_utils.config import DasdError


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(whole_unet=True, lambda_align=0.0, learning_rate=1e-3)


@pytest.fixture
def learned(config):
    """Return parts whose UNet and tokens are as if trained."""
    parts = training.setup_training(config)
    narrow.randomise(models.trainable_parameters(parts), scale=0.02)
    return parts


def weights(parts) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parts.unet.named_parameters()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_every_weight_of_the_unet_trains_and_no_other(config):
    parts = training.setup_training(config)
    groups = models.trainable_parameters(parts)
    assert set(groups) == {"unet", "tokens"} and not hasattr(parts.unet, "peft_config")
    assert {id(p) for p in groups["unet"]} == {id(p) for p in parts.unet.parameters()}
    assert all(p.requires_grad for p in groups["unet"])
    assert not any(p.requires_grad for p in (*parts.text_encoder.parameters(), *parts.vae.parameters()))
    rates = training.Updater(config, parts).set_rates(0)
    assert list(rates) == ["learning_rate", "token_learning_rate"]
    before = weights(parts)
    training.train(config.replace(max_train_steps=2), parts, NoiseSampler(config), progress=False)
    after = weights(parts)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    with models.lora_disabled(parts):
        assert same(weights(parts), before)
    assert same(weights(parts), after)
    assert all(p.requires_grad for p in parts.unet.parameters())


def test_base_and_learned_weights_change_places(learned, config):
    fresh, own = weights(models.load_parts(config)), weights(learned)
    with models.lora_merged(learned) as switch:
        assert same(weights(learned), own)
        for adapted, expected in ((False, fresh), (True, own), (False, fresh)):
            switch(adapted)
            assert same(weights(learned), expected)
    assert same(weights(learned), own)
    with pytest.raises(RuntimeError), models.lora_disabled(learned):
        raise RuntimeError
    assert same(weights(learned), own)


def test_it_is_saved_for_diffusers_and_comes_back(learned, config, tmp_path):
    adapters.save_adapter(learned, tmp_path / "adapter")
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "adapter", subfolder="unet")
    assert same(dict(plain.named_parameters()), weights(learned))
    text = (tmp_path / "adapter" / "unet" / "config.json").read_text()
    assert "_name_or_path" not in json.loads(text) and str(tmp_path) not in text
    again = models.load_parts(config)
    adapters.load_adapter(again, tmp_path / "adapter")
    assert same(weights(again), weights(learned)) and torch.equal(again.tokens.weight, learned.tokens.weight)
    assert adapters.base_fingerprint(again) == adapters.base_fingerprint(models.load_parts(config))
    with models.lora_disabled(again):
        assert same(weights(again), weights(models.load_parts(config)))
    with pytest.raises(DasdError, match="already have an adapter"):
        adapters.load_adapter(again, tmp_path / "adapter")


def test_a_damaged_unet_is_refused_and_nothing_changed(learned, config, tmp_path):
    adapters.save_adapter(learned, tmp_path / "adapter")
    file = tmp_path / "adapter" / "unet" / "diffusion_pytorch_model.safetensors"
    fresh = models.load_parts(config)
    before = weights(fresh)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DasdError, match="cannot be read"):
        adapters.load_adapter(fresh, tmp_path / "adapter")
    file.unlink()
    with pytest.raises(DasdError, match="lacks unet/diffusion_pytorch_model"):
        adapters.load_adapter(fresh, tmp_path / "adapter")
    assert same(weights(fresh), before) and not fresh.base_weights and fresh.tokens is None


def test_the_pipeline_of_a_run_samples_with_its_unet_or_the_bases(config, learned):
    run = training.save_training_results(config, learned, [])
    names = json.loads((run / "manifest.json").read_text())["files"]
    assert "adapter/unet/diffusion_pytorch_model.safetensors" in names
    pipeline = sampling.load_trained_pipeline(run)
    adapted, *_ = pipeline.generate("a village", domain="satellite", seed=1)
    plain, *_ = pipeline.generate("a village", seed=1, settings=config.domains[0].calibration)
    with pipeline.base():
        base, *_ = pipeline.generate("a village", domain="satellite", seed=1)
    assert adapted.tobytes() != base.tobytes() and plain.tobytes() == base.tobytes()
