"""Latents are cached by what they are made of, in shards that are each encoded once."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from synthetic import make_sampler, same_batch

from dasd_utils import data
from dasd_utils.config import DasdError
from dasd_utils.runtime import latent_cache


@pytest.fixture
def config(tiny_config):
    """Return 24 images a domain, 16 x 16 px."""
    return tiny_config.replace(resolution=16)


@pytest.fixture
def make(config, vae):
    """Return `make(**changes) -> encoded Sampler`."""

    return lambda **changes: make_sampler(config.replace(**changes), vae)


def cache_of(config) -> Path:
    return Path(config.data.cache_dir)


def test_cache_spares_the_vae(make, config, vae, monkeypatch):
    before = make().batch(0)
    files = {path: path.stat().st_mtime_ns for path in cache_of(config).iterdir()}
    assert len(files) == 6
    monkeypatch.setattr(AutoencoderKL, "encode", lambda *a, **k: pytest.fail("the VAE ran again"))
    assert same_batch(make().batch(0), before)
    assert {path: path.stat().st_mtime_ns for path in cache_of(config).iterdir()} == files


@pytest.mark.parametrize("change", ["weights", "scaling", "images", "resolution"])
def test_cache_is_never_stale(make, config, vae, change):
    sampler = make()
    other = AutoencoderKL.from_config(vae.config)
    other.load_state_dict(vae.state_dict())
    settings = config
    if change == "weights":
        with torch.no_grad():
            other.quant_conv.bias[0] += 0.001
    if change == "scaling":
        other.register_to_config(scaling_factor=1.5)
    if change == "images":
        settings = config.replace(source=dataclasses.replace(config.source, num_images=23))
    if change == "resolution":
        settings = config.replace(resolution=24)
    source = data.load_domain(settings.source, settings)
    source.ids = source.ids if change == "images" else sampler._members["train"][0].ids
    before = set(cache_of(config).iterdir())
    latent_cache.cached_latents(source, settings, other, latent_cache.vae_fingerprint(other), progress=False)
    assert len(set(cache_of(config).iterdir()) - before) == 1


def test_interrupted_encoding_leaves_nothing(make, config, monkeypatch):
    calls = []

    def fail(vae, images, dtype):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((len(images), 2, 4, 4, 4), np.float32)

    monkeypatch.setattr(latent_cache, "_encode", fail)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert list(cache_of(config).iterdir()) == []


def test_cache_that_cannot_be_written(make, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DasdError, match="cache_dir"):
        make(cache_dir=tmp_path / "file")


def test_latents_that_are_not_finite(make, vae, monkeypatch):
    bad = AutoencoderKL.from_config(vae.config)
    with torch.no_grad():
        bad.encoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(DasdError, match="not finite"):
        make().encode(bad, progress=False)


@pytest.fixture
def shards(config, vae, monkeypatch):
    """Return `shards() -> Latents` of 24 source images in shards of 10."""
    monkeypatch.setattr(latent_cache, "SHARD", 10)
    source = data.load_domain(config.source, config)
    mark = latent_cache.vae_fingerprint(vae)
    return lambda: latent_cache.cached_latents(source, config, vae, mark, progress=False)


def test_shards_are_one_array(shards, config, vae, monkeypatch):
    many = shards()
    assert [len(shard) for shard in many.shards] == [10, 10, 4]
    monkeypatch.setattr(latent_cache, "SHARD", 1024)
    source = data.load_domain(config.source, config)
    (whole,) = latent_cache.cached_latents(
        source, config, vae, latent_cache.vae_fingerprint(vae), progress=False
    ).shards
    assert many.shape == whole.shape == (24, 2, 4, 4, 4)
    assert many.dtype == whole.dtype and many.nbytes == whole.nbytes
    for key in (0, 10, -1, slice(None), slice(8, 12), (slice(3, 21, 5), 0), (19, 1), slice(0, 0)):
        np.testing.assert_allclose(many[key], whole[key], rtol=1e-4, atol=1e-5)
    assert all(isinstance(shard.base, np.memmap) for shard in many.shards)
    with pytest.raises(IndexError):
        many[24]


def test_cached_moments_are_those_of_the_vae(shards, config, vae):
    source = data.load_domain(config.source, config)
    for index in (0, 9, 10, 23):
        pixels = torch.from_numpy(np.asarray(source.images[index], np.float32)).permute(2, 0, 1) / 127.5 - 1
        with torch.no_grad():
            posterior = vae.encode(pixels[None]).latent_dist
        expected = torch.cat([posterior.mean, posterior.std]).numpy() * vae.config.scaling_factor
        np.testing.assert_allclose(shards()[index], expected, rtol=1e-4, atol=1e-5)


def test_a_full_cache_shows_no_bar(shards, config, vae, capsys):
    shards()
    source = data.load_domain(config.source, config)
    latent_cache.cached_latents(source, config, vae, latent_cache.vae_fingerprint(vae), progress=True)
    assert capsys.readouterr() == ("", "")


def test_large_images_go_through_the_vae_a_few_at_a_time(shards, monkeypatch):
    encode, sizes = latent_cache._encode, []
    monkeypatch.setattr(latent_cache, "ENCODE_PIXELS", 3 * 16 * 16)
    monkeypatch.setattr(
        latent_cache, "_encode", lambda vae, some, dtype: sizes.append(len(some)) or encode(vae, some, dtype)
    )
    assert len(shards()) == 24
    assert sizes == [3, 3, 3, 1, 3, 3, 3, 1, 3, 1]


def test_an_interrupted_encoding_goes_on_where_it_stopped(shards, config, monkeypatch):
    encode, calls = latent_cache._encode, []

    def fail(vae, images, dtype):
        calls.append(len(images))
        if len(calls) == 4:  # 8 and 2 of the first shard, then 8 of the second
            raise KeyboardInterrupt
        return encode(vae, images, dtype)

    monkeypatch.setattr(latent_cache, "_encode", fail)
    with pytest.raises(KeyboardInterrupt):
        shards()
    assert len(list(cache_of(config).iterdir())) == 1
    calls.clear()
    calls.extend([0] * 4)
    assert len(shards()) == 24
    assert calls[4:] == [8, 2, 4]


def test_several_workers_encode_each_shard_once(shards, config, monkeypatch):
    encode, encoded, both = latent_cache._encode, [], threading.Barrier(2, timeout=30)

    def count(vae, images, dtype):
        if len(encoded) < 2:
            both.wait()  # both are at work, on different shards
        encoded.append(len(images))
        return encode(vae, images, dtype)

    monkeypatch.setattr(latent_cache, "_encode", count)
    monkeypatch.setattr(latent_cache, "POLL", 0.01)
    results = []
    workers = [threading.Thread(target=lambda: results.append(shards()[:])) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(encoded) == [2, 2, 4, 8, 8]
    assert len(results) == 2 and np.array_equal(*results)
    assert sorted(path.suffix for path in cache_of(config).iterdir()) == [".npy"] * 3


def test_a_changed_image_costs_its_shard_alone(shards, config, vae):
    shards()
    before = set(cache_of(config).iterdir())
    source = data.load_domain(config.source, config)
    source.ids[-1] = "another image"
    latent_cache.cached_latents(source, config, vae, latent_cache.vae_fingerprint(vae), progress=False)
    assert len(set(cache_of(config).iterdir()) - before) == 1


def test_half_precision_is_another_cache_of_half_the_size(make, config, vae):
    full = make()._latents["train"][0]
    names = set(cache_of(config).iterdir())
    sampler = make(half_weights=True, mixed_precision="bf16")
    half = sampler._latents["train"][0]
    assert len(set(cache_of(config).iterdir()) - names) == len(names)
    assert (full.dtype, half.dtype, half.nbytes) == (np.float32, np.float16, full.nbytes // 2)
    assert 0 < np.abs(half[:] - full[:]).max() < 0.02 * np.abs(full[:]).max()  # bfloat16 has 8 bits
    assert sampler.batch(0).target_latents.dtype == torch.float32
