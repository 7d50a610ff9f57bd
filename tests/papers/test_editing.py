"""Images edited under guidance: how much, where, and from which noise."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import plain_pipeline
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from synthetic import pictures

from dasd_utils import data, models, sampling
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.papers import editing

PROMPTS = ["a river near a forest", "a house"]
QUICK = Calibration(2.0, 6, "ddim")
PICTURES = pictures(2)


@pytest.fixture
def latents(pipeline, undecoded):
    """Return `latents(...)`: what `edit` decodes."""

    def found(*arguments, **options):
        given = {"seed": 3, "settings": QUICK, "domain": "xray"} | options
        return undecoded(editing.edit, pipeline, PICTURES, PROMPTS, *arguments, **given)

    return found


def test_pictures_are_encoded_a_few_at_a_time(pipeline, monkeypatch):
    together = editing.encode(pipeline.parts, pictures(5))
    side, seen = pipeline.config.model.resolution, []
    pipeline.parts.vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(sampling, "DECODED_PIXELS", 2 * side**2)
    torch.testing.assert_close(editing.encode(pipeline.parts, pictures(5)), together)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "unipc", "euler"])
def test_it_is_the_loop_of_diffusers_begun_later(adapted, latents, scheduler):
    reference = plain_pipeline(adapted, scheduler, StableDiffusionImg2ImgPipeline)
    clean = editing.encode(adapted, PICTURES)  # diffusers takes latents as they are
    noise = torch.stack([sampling.initial_noise((4, 8, 8), 3, 0)] * 2)
    add_noise = reference.scheduler.add_noise
    reference.scheduler.add_noise = lambda x, _noise, timesteps: add_noise(x, noise, timesteps)
    options = {"strength": 0.5, "guidance_scale": 2.0, "num_inference_steps": 6, "output_type": "latent"}
    expected = reference([f"<xray> {prompt}" for prompt in PROMPTS], image=clean, **options).images
    found = latents(strength=0.5, settings=dataclasses.replace(QUICK, scheduler=scheduler))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
def test_what_the_mask_keeps_stays(adapted, latents, scheduler):
    settings = dataclasses.replace(QUICK, scheduler=scheduler)
    clean = editing.encode(adapted, PICTURES)
    nothing = latents(mask=np.zeros((32, 32), np.uint8), settings=settings)
    torch.testing.assert_close(nothing, clean, atol=1e-5, rtol=0)
    plain = latents(settings=settings)
    everything = latents(mask=np.full((32, 32), 255, np.uint8), settings=settings)
    torch.testing.assert_close(everything, plain, atol=1e-5, rtol=0)
    half = np.zeros((32, 32), np.uint8)
    half[:, 16:] = 255
    left, right = latents(mask=Image.fromarray(half), settings=settings).chunk(2, dim=3)
    torch.testing.assert_close(left, clean[..., :4], atol=1e-5, rtol=0)
    assert (right - clean[..., 4:]).abs().mean() > 0.01


def test_a_mask_is_cut_as_its_picture_is(pipeline, caplog):
    """Of a picture twice as wide as high the centre square is seen: the middle of the mask."""
    wide = [picture.resize((128, 64)) for picture in PICTURES]
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 64:96] = 255  # the right half of the centre square
    found = editing._square_mask(mask, wide)[0, 0]
    assert found.shape == (64, 64) and found[:, :32].eq(0).all() and found[:, 32:].eq(1).all()
    tall = editing._square_mask(mask.T, [picture.rotate(90, expand=True) for picture in wide])[0, 0]
    assert torch.equal(tall, found.T)
    assert torch.equal(editing._square_mask(mask[:, 32:96], wide)[0, 0], found)
    assert not caplog.records
    assert not editing._square_mask(mask[:, ::-1] * (np.arange(128) > 96), wide).any()
    assert "nothing changes" in caplog.text  # white beside what is seen
    with pytest.raises(DasdError, match="128 x 64 pixels and a picture 32 x 32: give one of"):
        editing.edit(pipeline, PICTURES, PROMPTS, mask=mask, settings=QUICK, domain="xray")


HALF = np.repeat([[False] * 4 + [True] * 4], 8, axis=0)
MASKS = {
    "truth": HALF,
    "0 and 1": HALF.astype(np.uint8),
    "0 and 1, float": HALF.astype(np.float64),
    "eight bits": HALF * np.uint8(255),
    "sixteen bits": HALF * np.uint16(65535),
    "one channel": HALF[..., None] * np.uint8(255),
    "three channels": np.repeat(HALF[..., None], 3, axis=2) * 255,
    "bits": Image.fromarray(HALF),
    "an image of 0 and 1": Image.fromarray(HALF.astype(np.uint8)),
    "a float image": Image.fromarray(HALF.astype(np.float32)),
    "an image of sixteen bits": Image.fromarray(HALF * np.uint16(65535)),
    "colours": Image.fromarray(HALF * np.uint8(255)).convert("RGBA"),
}


@pytest.mark.parametrize("name", MASKS)
def test_white_is_white_in_every_kind_of_mask(name):
    found = editing._square_mask(MASKS[name], PICTURES)[0, 0]
    assert torch.equal(found, torch.from_numpy(HALF).float())


def test_a_mask_of_no_picture_is_refused():
    for mask in (HALF * -1.0, HALF * float("nan"), HALF * 70000.0, np.zeros(8), np.zeros((0, 8))):
        with pytest.raises(DasdError, match="values from 0 to 65535"):
            editing._square_mask(mask, PICTURES)


def test_more_strength_goes_further(adapted, latents):
    clean = editing.encode(adapted, PICTURES)
    away = [(latents(strength=s) - clean).norm().item() for s in (0.2, 0.6, 1.0)]
    assert 0 < away[0] < away[1] < away[2]


def test_inverted_noise_leads_back_to_the_picture():
    """By the same prediction, denoising undoes the inversion; a trained base is smooth enough to see it."""
    config = Config.setup("tiny", num_heldout=2)
    trained = sampling.DasdPipeline(models.load_parts(config), config)
    paintings = list(data.load_domain(config.source, config, "test").images)
    clean = editing.encode(trained.parts, paintings)
    errors = []
    for steps in (10, 40):
        settings = Calibration(1.0, steps, "ddim", "unconditional")
        (jobs,) = zip(*trained.plan(["nothing"] * 2, seed=0, settings=settings), strict=True)
        found = editing._edited(trained, list(jobs), clean, 0.5, None, True, None)
        errors.append(((found - clean).norm() / clean.norm()).item())
    assert errors[0] < 0.15 and errors[1] < errors[0] / 2


@pytest.mark.parametrize("adapter", [True, False])
def test_inversion_is_given_what_is_shown(latents, adapter):
    options = {"invert": True, "strength": 0.5, "adapter": adapter}
    plain, *shown = (
        latents(shown=texts, **options) for texts in (None, ["a tree", "a hill"], ["a boat", "a moon"])
    )
    assert not torch.allclose(shown[0], plain, atol=1e-3)
    assert not torch.allclose(*shown, atol=1e-3)
    assert torch.equal(plain, latents(seed=8, **options))  # no noise is drawn


@pytest.mark.parametrize("guidance", ["cfg", "domain", "decoupled", "unconditional"])
def test_any_guidance_changes_pictures(pipeline, guidance):
    options = {"seed": 1, "settings": QUICK, "domain": "xray", "guidance": guidance}
    large = [picture.resize((64, 48), Image.Resampling.NEAREST) for picture in PICTURES]
    found = editing.edit(pipeline, large, PROMPTS, **options)
    assert [image.size for image in found] == [(32, 32)] * 2  # cut to the centre square
    pipeline.batch_size = 1
    for alone, beside in zip(editing.edit(pipeline, large, PROMPTS, **options), found, strict=True):
        difference = np.abs(np.asarray(alone, int) - np.asarray(beside, int))
        assert difference.max() <= 1  # whatever else is in the batch


def test_what_does_not_fit_is_refused(pipeline):
    for changes, said in (
        ({"prompts": PROMPTS[:1]}, "2 pictures, 1 prompts and no texts"),
        ({"shown": ["one"]}, "2 pictures, 2 prompts and 1 texts"),
        ({"strength": 0.0}, "strength is 0.0; it must be above 0"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"invert": True, "settings": Calibration(2.0, 4, "dpm++")}, "set scheduler to 'ddim'"),
    ):
        options = {"prompts": PROMPTS, "settings": QUICK, "domain": "xray", "seed": 0} | changes
        with pytest.raises(DasdError, match=said):
            editing.edit(pipeline, PICTURES, **options)
    first, second = pipeline.config.domains
    other = dataclasses.replace(first, calibration=Calibration(9.0, 3, "ddim"))
    pipeline.config = pipeline.config.replace(domains=(other, second))
    with pytest.raises(DasdError, match="need one domain"):
        editing.edit(pipeline, PICTURES, ["<xray> lungs", "<satellite> a harbor"], seed=0)
