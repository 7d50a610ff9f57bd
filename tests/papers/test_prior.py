"""The source images that the base generates: once, for the source's captions, and stored."""

import dataclasses
import shutil
import threading

import pytest
from synthetic import make_parts

from dasd_utils import data, latents, models, sampling
from dasd_utils.config import Config
from dasd_utils.papers import prior_images
from dasd_utils.runtime import files, images


@pytest.fixture
def config(tiny_config) -> Config:
    source = dataclasses.replace(tiny_config.source, num_images=5)
    return tiny_config.replace(source=source, source_images="generated")


def test_the_base_draws_the_sources_captions_once(config, monkeypatch):
    real, found = data.load_domain(config.source, config), prior_images.source_images(config)
    assert [captions[0] for captions in real.captions] == [captions[0] for captions in found.captions]
    assert len(found) == 5 and found[0]["image"].size == (32, 32) and found.split == "train"
    assert not set(found.ids) & set(real.ids)
    pipeline = sampling.DasdPipeline(models.load_parts(config), config)
    image, *_ = pipeline.generate(found.captions[3][0], seed=3, settings=config.source.calibration)
    assert image.tobytes() == found[3]["image"].tobytes()
    (file,) = prior_images.resolve(config.data.cache_dir).iterdir()
    assert file.suffix == ".parquet" and file.name.startswith("generated-painting-")
    monkeypatch.setattr(sampling.DasdPipeline, "generate", lambda *a, **k: pytest.fail("drawn again"))
    assert prior_images.source_images(config).ids == found.ids


def test_another_base_or_other_settings_generate_anew(config, tiny_base, tmp_path):
    first = prior_images.source_images(config).ids
    slow = dataclasses.replace(config.source.calibration, num_inference_steps=3)
    slow = config.replace(source=dataclasses.replace(config.source, calibration=slow))
    folder = tmp_path / "base"
    shutil.copytree(config.model.base, folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.02"))
    other_schedule = prior_images.source_images(config.replace(base=folder)).ids
    shutil.copytree(config.model.base, folder, dirs_exist_ok=True)
    shutil.copytree(tiny_base(3) / "vae", folder / "vae", dirs_exist_ok=True)
    other_vae = prior_images.source_images(config.replace(base=folder)).ids
    others = [
        prior_images.source_images(other).ids
        for other in (config.replace(base=tiny_base(3)), slow, config.replace(mixed_precision="bf16"))
    ]
    assert len({tuple(ids) for ids in (first, other_schedule, other_vae, *others)}) == 6
    assert prior_images.source_images(config.replace(seed=5, images_per_prompt=7)).ids == first


def test_ids_stay_where_another_machine_rounds_otherwise(config):
    first = prior_images.source_images(config)
    path = next(prior_images.resolve(config.data.cache_dir).glob("*.parquet"))
    kept = images.load_samples(path)
    brighter = [image.point(lambda value: min(value + 1, 255)) for image in kept]
    images.save_samples(path, brighter, [captions[0] for captions in first.captions], range(5))
    again = prior_images.source_images(config)
    assert again.ids == first.ids and again[0]["image"].tobytes() != first[0]["image"].tobytes()


def test_create_datasets_takes_them_for_training(config):
    parts = make_parts(config)
    source, _, sampler = latents.create_datasets(config, parts.tokenizer)
    assert source.ids == prior_images.source_images(config).ids
    sampler.encode(parts.vae, progress=False)
    assert set(sampler.batch(0).sample_ids[6:]) <= set(source.ids)
    real, *_ = latents.create_datasets(config.replace(source_images="real"), parts.tokenizer)
    assert not set(real.ids) & set(source.ids)


def test_an_interrupted_drawing_leaves_nothing(config, monkeypatch):
    monkeypatch.setattr(sampling.DasdPipeline, "generate", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prior_images.source_images(config)
    assert list(prior_images.resolve(config.data.cache_dir).iterdir()) == []


def test_one_process_draws_and_the_other_waits(config, monkeypatch):
    finished = prior_images.source_images(config)
    path = next(prior_images.resolve(config.data.cache_dir).glob("*.parquet"))
    kept, prompts = images.load_samples(path), [captions[0] for captions in finished.captions]
    path.unlink()
    monkeypatch.setattr(prior_images.latent_cache, "POLL", 0.01)
    monkeypatch.setattr(sampling.DasdPipeline, "generate", lambda *a, **k: pytest.fail("drawn here too"))
    with files.try_lock(path.with_suffix(".lock")) as mine:
        assert mine
        timer = threading.Timer(0.3, lambda: images.save_samples(path, kept, prompts, range(5)))
        timer.start()
        assert prior_images.source_images(config).ids == finished.ids
        timer.join()
