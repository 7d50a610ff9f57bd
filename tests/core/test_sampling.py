"""Sampling on a narrow random base with a random adapter: equal to diffusers, counted noise, shapes."""

import contextlib
import dataclasses
import functools
import json

import diffusers
import numpy as np
import pytest
import torch
from conftest import plain_pipeline, refused
from diffusers import DDPMScheduler
from PIL import Image

from dasd_utils import guidance, models, sampling
from dasd_utils.config import Calibration, DasdError
from dasd_utils.runtime import processes

PROMPT = "a river near a forest"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.abs(pixels(one) - pixels(other)).max() <= 1  # rounding of a value between two integers


def test_the_base_alone_is_sampled_on_the_device_and_in_the_precision_of_a_run(tiny_config, monkeypatch):
    monkeypatch.setattr(processes, "default_device", lambda: torch.device("meta"))
    config = tiny_config.replace(mixed_precision="bf16", half_weights=True)
    for device, expected in ((None, "meta"), ("cpu", "cpu")):
        parts = sampling.load_base_pipeline(config, device).parts
        found = {parts[name].device.type for name in ("unet", "text_encoder", "vae")}
        assert found == {expected} and parts.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("name", sampling.SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_loop_equals_the_pipeline_of_diffusers(adapted, name, guidance_scale):
    prompts, shape = [f"<satellite> {PROMPT}", "a house"], (4, 8, 8)
    noise = torch.stack([sampling.initial_noise(shape, 3, i) for i in range(2)])
    reference, scheduler = (
        plain_pipeline(adapted, name),
        sampling.make_scheduler(name, adapted.noise_scheduler),
    )
    options = dict(guidance_scale=guidance_scale, num_inference_steps=5, output_type="latent")
    options |= {"generator": [sampling.step_generator(3, i) for i in range(2)]}
    expected = reference(prompts, latents=noise, negative_prompt=["dark", "dark"], **options).images
    with torch.no_grad():
        text, empty = models.encode_prompts(adapted, [*prompts, "dark", "dark"]).chunk(2)
    branches = [guidance.Branch(empty), guidance.Branch(text)]
    predict = guidance.guided_prediction(lambda model: adapted.unet, branches, lambda t: [guidance_scale])
    generators = [sampling.step_generator(3, i) for i in range(2)]
    latents = sampling.denoise(predict, scheduler, noise, 5, generators)
    assert latents.std() > 0.01
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
    decoded = adapted.vae.decode(latents / adapted.vae.config.scaling_factor).sample.detach()
    images = reference.image_processor.postprocess(decoded)
    for image, other in zip(sampling.decode_images(adapted.vae, latents), images, strict=True):
        assert same(image, other)


def test_generate_equals_the_pipeline_of_diffusers(pipeline, adapted):
    quick = Calibration(4.0, 3, "ddim")
    image, _, used = pipeline.generate(PROMPT, domain="xray", seed=7, settings=quick, negative_prompt="dark")
    assert used["negative_prompt"] == "dark"
    noise = sampling.initial_noise((4, 8, 8), 7, 0)[None]
    options = dict(latents=noise, guidance_scale=4.0, num_inference_steps=3, negative_prompt="dark")
    expected = plain_pipeline(adapted, "ddim")(f"<xray> {PROMPT}", **options).images[0]
    assert same(image, expected) and image.size == (32, 32) and image.mode == "RGB"


def test_dropout_is_off_while_sampling_and_on_again_after(pipeline, adapted):
    expected, _, _ = pipeline.generate(PROMPT, domain="xray", seed=7)
    adapted.unet.train()
    assert same(pipeline.generate(PROMPT, domain="xray", seed=7)[0], expected)
    assert all(module.training for module in adapted.unet.modules())


def test_sampling_computes_at_the_precision_of_the_config(adapted, tiny_config, monkeypatch):
    seen, narrowed, step = [], [], diffusers.DDIMScheduler.step

    def watched(*arguments, **options):
        narrowed.append(torch.is_autocast_enabled("cpu"))
        return step(*arguments, **options)

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", functools.wraps(step)(watched))
    adapted.unet.conv_out.register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    images = []
    for setting in ("no", "bf16"):
        pipeline = sampling.DasdPipeline(adapted, tiny_config.replace(mixed_precision=setting))
        images.append(pipeline.generate(PROMPT, domain="xray", seed=3)[0])
    steps = tiny_config.domains[1].calibration.num_inference_steps
    assert narrowed and not any(narrowed)  # UniPC solves a linear system in its step
    assert seen == [torch.float32] * steps + [torch.bfloat16] * steps
    assert 0 < np.abs(pixels(images[0]) - pixels(images[1])).max() < 30  # other digits, not another image


def test_a_base_kept_in_half_precision_gives_nearly_the_same_image(saved_run, tiny_config, monkeypatch):
    whole = sampling.load_trained_pipeline(saved_run, device="cpu")
    monkeypatch.setattr(processes, "frozen_dtype", lambda *a: torch.bfloat16)
    half = sampling.load_trained_pipeline(saved_run, device="cpu")
    kinds = {("lora" in name, p.dtype) for name, p in half.parts.unet.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    options = {"domain": "xray", "seed": 0}
    images = [pixels(pipe.generate(PROMPT, **options)[0]) for pipe in (whole, half)]
    assert 0 < np.abs(images[0] - images[1]).mean() < 4  # levels of 255


def by_hand(adapted, prompt: str, settings: Calibration, seed: int, base_uncond: bool) -> Image.Image:
    """Return the image that guidance leads to, the unconditional branch of the base model or not."""
    with torch.no_grad():
        text, empty = models.encode_prompts(adapted, [prompt, ""]).split(1)

    def predict(latents, timestep):
        cond = adapted.unet(latents, timestep, text).sample
        with models.lora_disabled(adapted) if base_uncond else contextlib.nullcontext():
            uncond = adapted.unet(latents, timestep, empty).sample
        return uncond + settings.guidance_scale * (cond - uncond)

    scheduler = sampling.make_scheduler(settings.scheduler, adapted.noise_scheduler)
    noise = sampling.initial_noise((4, 8, 8), seed, 0)[None]
    latents = sampling.denoise(predict, scheduler, noise, settings.num_inference_steps)
    return sampling.decode_images(adapted.vae, latents)[0]


def test_domain_guidance_leads_away_from_the_base_model(pipeline, adapted):
    def image(settings):
        found, _, used = pipeline.generate(PROMPT, domain="xray", seed=7, settings=settings)
        assert used["guidance"] == settings.guidance
        return found

    plain, guided = Calibration(3.0, 2, "ddim"), Calibration(3.0, 2, "ddim", "domain")
    assert same(image(guided), by_hand(adapted, f"<xray> {PROMPT}", guided, 7, base_uncond=True))
    assert not same(image(guided), image(plain))
    with pipeline.base():  # one model: the two kinds are one
        assert image(plain) == image(guided)
    plain, guided = (dataclasses.replace(each, guidance_scale=1.0) for each in (plain, guided))
    assert image(plain) == image(guided)


def test_the_adapter_is_on_where_there_is_a_domain_or_as_it_is_switched(pipeline, adapted, tiny_config):
    def image(of=pipeline, **options):
        found, domain, used = of.generate(PROMPT, seed=2, **options)
        assert domain == options.get("domain")
        learned = of is pipeline and of._use_adapter and domain == "satellite"
        assert used["token"] == ("<satellite>" if learned and options.get("adapter") is not False else None)
        return found

    fresh = sampling.DasdPipeline(models.load_parts(tiny_config), tiny_config)
    base = image(fresh, domain="satellite")
    on = by_hand(adapted, PROMPT, tiny_config.source.calibration, 2, base_uncond=False)
    assert not same(on, base)
    with pipeline.base():
        for adapter in (None, False, True):
            assert same(image(domain="satellite", adapter=adapter), base)
    for domain in (None, "painting"):
        assert same(image(domain=domain), base) and same(image(domain=domain, adapter=False), base)
        assert same(image(domain=domain, adapter=True), on)
    for given in (f"<satellite> {PROMPT}", f"{PROMPT} <xray>"):  # the base knows no learned token
        found, _, used = pipeline.generate(given, seed=2, adapter=False)
        assert same(found, base) and used["token"] is None
    adapted_image = image(domain="satellite")
    assert same(image(domain="satellite", adapter=True), adapted_image) and not same(adapted_image, base)
    assert same(image(domain="satellite", adapter=False), base)
    mixed, *_ = pipeline.generate([PROMPT, f"<satellite> {PROMPT}"], seed=2)
    assert same(mixed[0], base) and same(mixed[1], adapted_image)


def test_noise_is_counted():
    shape = (4, 8, 8)
    noise = sampling.initial_noise(shape, 1, 2)
    assert torch.equal(noise, sampling.initial_noise(shape, 1, 2))
    others = [sampling.initial_noise(shape, *pair) for pair in [(1, 3), (2, 2), (2, 1)]]
    others.append(torch.randn(shape, generator=sampling.step_generator(1, 2)))
    assert not any(torch.equal(noise, other) for other in others)
    many = torch.stack([sampling.initial_noise(shape, 0, i) for i in range(50)])
    assert abs(many.mean().item()) < 0.03 and abs(many.std().item() - 1) < 0.03


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_the_same_seed_gives_the_same_image_whatever_the_batch(pipeline, name):
    options, prompts = dict(domain="satellite", settings=Calibration(2.0, 3, name)), ["a house", PROMPT]
    alone, _, _ = pipeline.generate(PROMPT, seed=4, **options)
    lists, _, _ = pipeline.generate(prompts, num_images=3, seed=4, **options)
    assert same(alone, lists[1][0])
    pipeline.batch_size = 2
    chunked, _, _ = pipeline.generate(prompts, num_images=3, seed=4, **options)
    for one, other in zip([*lists[0], *lists[1]], [*chunked[0], *chunked[1]], strict=True):
        assert same(one, other)
    later, _, _ = pipeline.generate(PROMPT, seed=5, **options)
    for other in (lists[1][1], lists[0][0], later):  # another image, another prompt, another seed
        assert not same(alone, other)


def test_a_drawn_seed_is_recorded_and_leaves_the_global_generator(pipeline):
    state = torch.get_rng_state()
    image, _, settings = pipeline.generate(PROMPT)
    assert torch.equal(state, torch.get_rng_state())
    assert same(image, pipeline.generate(PROMPT, seed=settings["seed"])[0])
    assert settings["seed"] != pipeline.generate(PROMPT)[2]["seed"]
    images, _, settings = pipeline.generate([PROMPT, PROMPT], seed=[1, 2])  # one each
    assert [row["seed"] for row in settings] == [1, 2]
    assert same(images[1], pipeline.generate(PROMPT, seed=2)[0])


def test_any_number_of_images_comes_a_batch_at_a_time(pipeline, monkeypatch, caplog):
    pipeline.batch_size = 2
    expected, _, used = pipeline.generate(PROMPT, domain="xray", num_images=5, seed=3)
    sizes, latents = [], pipeline._latents
    monkeypatch.setattr(pipeline, "_latents", lambda jobs: sizes.append(len(jobs)) or latents(jobs))
    settings, images = pipeline.stream(PROMPT, domain="xray", num_images=5, seed=3)
    assert settings == used and sizes == []
    first = next(images)
    assert sizes == [2]  # the rest is not drawn before it is asked for
    assert all(same(a, b) for a, b in zip([first, *images], expected, strict=True)) and sizes == [2, 2, 1]
    expected = pipeline.generate([PROMPT, "a ship", PROMPT], domain="xray", seed=[3, 4, 5])[0]
    _, images = pipeline.stream([PROMPT, "a ship"], domain="xray", num_images=3, seed=3)  # taken in turn
    assert all(same(a, b) for a, b in zip(images, expected, strict=True))
    assert not caplog.records
    with pytest.raises(DasdError, match="num_images is 0"):
        pipeline.stream(PROMPT, num_images=0)
    with refused("`stream` takes one seed"):
        pipeline.stream([PROMPT, "a ship"], num_images=2, seed=[3, 100])
    with pytest.raises(DasdError, match=r"no option 'guidnce' of generate\. Did you mean 'guidance'"):
        pipeline.generate(PROMPT, guidnce=1)


def test_what_a_request_costs_is_said_before(pipeline, monkeypatch, caplog, tmp_path):
    pipeline.stream(PROMPT, tmp_path, num_images=10**6)
    assert "1000000 images of 32 pixels are up to 3.1 GB, where" in caplog.text and "free" in caplog.text
    monkeypatch.setattr(sampling, "LONG", 0)
    pipeline.batch_size = 1
    _, images = pipeline.stream(PROMPT, num_images=2)
    next(images)
    assert "hours" not in caplog.text and next(images) and "The other images take about" in caplog.text
    monkeypatch.setattr(sampling, "LARGE", 1)
    pipeline.generate(PROMPT)
    assert "1 images take 0.0 GB of memory" in caplog.text


def test_the_domain_is_found_in_the_prompt(pipeline, tiny_config):
    words = tiny_config.domains[1].descriptions[0]
    assert pipeline.classifier is pipeline.classifier and pipeline.classifier.threshold is not None
    pipeline.classifier.threshold = -1.0  # random weights give any score
    nearest = tiny_config.domains[pipeline.classifier.similarities([words])[0].argmax()].name
    image, domain, settings = pipeline.generate(words, auto_domain=True, seed=1)
    assert domain == settings["domain"] == nearest
    again, *rest = pipeline.generate_with_auto_domain(words, seed=1)
    assert rest == [nearest, settings, f"<{nearest}> {words}"] and same(again, image)
    pipeline.classifier.threshold = 1.1
    prompts = [words, "lungs <satellite>"]
    assert pipeline.generate_with_auto_domain(prompts)[1::2] == ([None, "satellite"], prompts)


def test_a_comparison_has_one_row_a_domain(pipeline):
    rows = pipeline.generate_comparison(f"<xray> {PROMPT}", seed=3)
    assert [row["domain"] for row in rows] == ["painting", "satellite", "xray"]
    assert [row["prompt"] for row in rows] == [PROMPT, f"<satellite> {PROMPT}", f"<xray> {PROMPT}"]
    for row in rows:
        assert row["settings"]["seed"] == 3
        assert same(row["image"], pipeline.generate(PROMPT, domain=row["domain"], seed=3)[0])


def test_schedulers_keep_the_base_noise_schedule(pipeline):
    silent = DDPMScheduler()
    assert silent.config.clip_sample  # its default, and latents are never clipped
    for name in sampling.SCHEDULERS:
        scheduler = pipeline.scheduler(name)
        torch.testing.assert_close(scheduler.alphas_cumprod, pipeline.parts.noise_scheduler.alphas_cumprod)
        assert scheduler.config.steps_offset == 1  # of the base
        assert not sampling.make_scheduler(name, silent).config.get("clip_sample", False)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("name", [name for name in sampling.SCHEDULERS if name != "ddpm"])
def test_the_true_noise_leads_to_the_picture_wherever_it_begins(adapted, name, steps):
    """`ddpm` adds noise that nobody predicts here; all others arrive, also where steps are left out."""
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for begin in range(min(steps, 6)):
        scheduler = sampling.make_scheduler(name, adapted.noise_scheduler)
        calls = []

        def latents_at(timestep, scheduler=scheduler):
            return clean if timestep is None else scheduler.add_noise(clean, noise, timestep[None])

        def predict(x, timestep, calls=calls):
            calls.append(float(timestep))
            return noise

        found = sampling.denoise(predict, scheduler, sampling.Start(begin, latents_at), steps)
        assert (found - clean).abs().max() < 0.15  # the last step of some leaves a little noise
        twice = name == "pndm" and steps - begin > 1  # its second step
        assert len(calls) == steps - begin + twice


@pytest.mark.parametrize("name", sampling.SCHEDULERS)
def test_steps_are_those_that_the_scheduler_can_take(pipeline, name):
    """The limit of most is 999 for a base of 1,000 timesteps: what passes the check is sampled."""
    for steps in (1, 2, 3, 1000, 1001):
        fits = steps < 1000 or (name == "euler" and steps == 1000)
        options = {"settings": Calibration(2.0, steps, name), "seed": 0}
        with contextlib.nullcontext() if fits else pytest.raises(DasdError, match=f"{name}.*set it lower"):
            pipeline.plan([PROMPT], **options)


REFUSED = {
    "blank": (dict(prompt=" \n\t"), "The prompt is empty"),
    "none": (dict(prompt=[]), "no prompt"),
    "empty in a list": (dict(prompt=["a", ""]), "Prompt 2 of 2 is empty"),
    "a number": (dict(prompt=[7]), "The prompt is 7, not a text"),
    "no Unicode": (dict(prompt="a \udcff"), "UTF-8"),
    "unknown domain": (dict(domain="satelite"), "Did you mean 'satellite'"),
    "a word": (dict(domain="Auto"), "leave it out for the base model"),
    "two tokens": (dict(prompt="<xray> <SATELLITE>"), "several domains, <satellite>, <xray>: leave one"),
    "two tokens, found": (dict(prompt="<xray> <satellite>", auto_domain=True), "several domains"),
    "two tokens, one named": (dict(prompt="<xray> <satellite>", domain="xray"), "several domains"),
    "two tokens, the other named": (dict(prompt="<xray> <satellite>", domain="satellite"), "several domains"),
    "token of another domain": (dict(prompt="<xray> lungs", domain="satellite"), "holds <xray>"),
    "no images": (dict(num_images=0), "num_images is 0"),
    "seeds": (dict(seed=[1, 2]), "2 seeds for 1 prompts"),
    "negative seed": (dict(seed=-1), "not -1"),
    "seed of many digits": (dict(seed=10**400), "below 2**128"),
    "seed of a text": (dict(seed="3"), ", not '3'"),
    "seed of a fraction": (dict(seed=1.5), ", not 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_any_work(pipeline, monkeypatch, name):
    monkeypatch.setattr(pipeline, "_latents", lambda *_: pytest.fail("the UNet ran"))
    options, words = REFUSED[name]
    with refused(words):
        pipeline.generate(**({"prompt": PROMPT, "seed": 0} | options))


def test_odd_prompts_give_pictures(pipeline):
    odd = ["<XRAY>", "a\x00\n\x1b[0m harbor", "river " * 10_000, "日本 🛰️", "."]
    found, domains, used = pipeline.generate(odd, seed=2**64)
    assert {image.size for image in found} == {(32, 32)} and used[0]["seed"] == 2**64
    assert domains == ["xray", None, None, None, None]
    with refused("lower guidance_scale"):  # than one beyond all numbers
        pipeline.generate("a harbor", settings=Calibration(1e38, 2, "ddim"))


def test_a_domain_the_adapter_has_not_learned_is_refused(parts, tiny_config):
    models.add_domain_tokens(parts, tiny_config.domains[:1])
    pipeline = sampling.DasdPipeline(parts, tiny_config)
    with pytest.raises(DasdError, match="has not learned <xray>"):
        pipeline.generate(PROMPT, domain="xray")


def test_a_run_is_found_from_its_folder_and_from_its_adapters(saved_run, tmp_path):
    places = saved_run, saved_run / "adapter"
    for place in (*places, str(saved_run), f"{saved_run}/adapter/"):
        assert sampling.run_places(place) == places
    (tmp_path / "linked").symlink_to(saved_run)
    assert sampling.run_places(tmp_path / "linked" / "adapter") == places
    alone = (saved_run / "adapter").rename(tmp_path / "alone")
    assert sampling.run_places(alone) == (alone, alone)  # whatever lies beside it
    assert sampling.run_places(saved_run) == places  # not there, and named so
    with pytest.raises(DasdError, match=r"alone holds no config\.json"):
        sampling.load_trained_pipeline(alone)
    kept = alone.rename(saved_run / "best")
    assert sampling.run_places(kept) == (saved_run, kept)


def test_a_run_is_loaded_from_its_folder_its_adapter_or_its_config(saved_run, pipeline, tiny_config):
    expected, _, _ = pipeline.generate(PROMPT, domain="xray", seed=6)
    here = dataclasses.replace(tiny_config, output_dir=str(saved_run))
    for source in (f"{saved_run}/adapter", here):
        loaded = sampling.load_trained_pipeline(source, device="cpu")
        assert same(loaded.generate(PROMPT, domain="xray", seed=6)[0], expected)
    assert sampling.load_trained_pipeline(saved_run, config=tiny_config, device="cpu").config is tiny_config


def test_unconditional_is_the_empty_prompts_answer_alone(pipeline):
    quick = Calibration(7.0, 2, "ddim", "unconditional")
    options = {"domain": "xray", "seed": 3}
    one, other = (pipeline.generate(text, settings=quick, **options)[0] for text in (PROMPT, "another one"))
    guided, *_ = pipeline.generate(PROMPT, settings=Calibration(7.0, 2, "ddim"), **options)
    base, *_ = pipeline.generate(PROMPT, settings=quick, adapter=False, **options)
    assert one == other and one not in (guided, base)
    with pytest.raises(DasdError, match="leave negative_prompt out"):
        pipeline.generate(PROMPT, domain="xray", settings=quick, negative_prompt="dark")


WRONG = {  # what a file of the run holds -> words of the error
    "calibration.json": {
        "[]": "JSON object", "{": "is no JSON", '{"xry": {}}': "xray", '{"xray": {"steps": 1}}': "steps",
        '{"xray": 5}': "calibration",
    },
    "manifest.json": dict.fromkeys(('{"files": 3}', '{"files": {}}', "{}"), "names no files"),
}  # fmt: skip


@pytest.mark.parametrize("file", WRONG)
def test_a_wrong_file_of_a_run_is_refused(saved_run, file):
    for content, words in WRONG[file].items():
        (saved_run / file).write_text(content)
        with refused(words, str(saved_run / file)):
            sampling.load_trained_pipeline(saved_run)


def test_calibrations_of_a_run_replace_those_of_the_config(saved_run):
    (saved_run / "calibration.json").write_text(json.dumps({"xray": {"guidance_scale": 1}, "painting": {}}))
    pipeline = sampling.load_trained_pipeline(saved_run, device="cpu")
    assert pipeline.generate(PROMPT, domain="xray")[2]["guidance_scale"] == 1.0
    assert pipeline.generate(PROMPT, domain="satellite")[2]["guidance_scale"] == 2.0
