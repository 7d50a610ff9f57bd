"""Pretraining: every stage runs, resumes, and writes a base that diffusers and transformers load."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from dasd_utils import pretrain
from dasd_utils.config import DasdError

SMALL = dict(
    paintings=40, others=40, vae_channels=(16, 16, 16), vae_crop_steps=2, vae_steps=4, vae_batch_size=4,
    clip_width=(32, 32), clip_steps=3, clip_batch_size=8, vocab_size=700, unet_channels=(32, 32, 32),
    unet_steps=4, unet_batch_size=4, checkpoint_every=2, log_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    config = pretrain.PretrainConfig(output_dir=str(folder / "base"), work_dir=str(folder / "work"), **SMALL)
    return config, pretrain.pretrain(config, progress=False)


def test_diffusers_loads_and_samples(base):
    pipe = StableDiffusionPipeline.from_pretrained(base[1], dtype=torch.float32)
    image = pipe("a bowl of fruit", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()


def test_text_encoder_is_the_tower_of_clip(base):
    encoder = load_file(base[1] / "text_encoder" / "model.safetensors")
    tower = CLIPModel.from_pretrained(base[1] / "clip").text_model.state_dict()
    assert all(torch.equal(value, tower[name.removeprefix("text_model.")].to(value.dtype))
               for name, value in encoder.items() if "position_ids" not in name)  # fmt: skip


def test_tokenizer_knows_every_byte(base):
    tokenizer = CLIPTokenizer.from_pretrained(base[1] / "tokenizer")
    for text in ("zebra 42", "Ünïcode €", "x-ray"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids.index(tokenizer.eos_token_id) == len(ids) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
            " ", ""
        )


def test_latents_have_unit_variance(base):
    config, _ = base
    work = pretrain.resolve(config.work_dir)
    vae = pretrain.train_vae(config, work, progress=False)
    images = pretrain._Images(work, pretrain.toyworld.DOMAINS)
    picks = images.draw(np.random.default_rng(0), 1024)
    latents = vae.encode(images.pixels(picks)).latent_dist.mean
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_normalising_leaves_reconstructions_alone(base):
    config, _ = base
    work = pretrain.resolve(config.work_dir)
    images = pretrain._Images(work, pretrain.toyworld.DOMAINS)
    vae = pretrain.train_vae(config, work, progress=False)
    pixels = images.pixels([(0, 1), (1, 2)])
    before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    again = pretrain.normalise_latents(vae, images)
    after = again.decode(again.encode(pixels).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


def test_resumed_stage_equals_an_uninterrupted_one(base, tmp_path, monkeypatch):
    config, _ = base
    work = pretrain.resolve(config.work_dir)
    fresh = tmp_path / "work"
    fresh.mkdir()
    for path in (*work.glob("*.npy"), *work.glob("*.json"), work / "tokenizer"):
        (fresh / path.name).symlink_to(path)
    half = dataclasses.replace(config, work_dir=str(fresh))
    whole = load_file(work / "vae" / "last.safetensors")

    fit = pretrain._fit

    def interrupted(model, loss_at, *rest):
        def loss_then_stop(step):
            if step == 2:  # the third step never comes, as after a kill
                raise KeyboardInterrupt
            return loss_at(step)

        return fit(model, loss_then_stop, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "_fit", interrupted)
        pretrain.train_vae(half, fresh, progress=False)
    pretrain.train_vae(half, fresh, progress=False)
    resumed = load_file(fresh / "vae" / "last.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_unknown_stage():
    with pytest.raises(DasdError, match="stage"):
        pretrain.pretrain(pretrain.PretrainConfig(), ("vea",))
