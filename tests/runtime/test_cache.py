"""Latents are cached by what they are made of, in shards that are each encoded once."""

import copy
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
    return tiny_config.replace(resolution=16)  # 24 images a domain


@pytest.fixture
def make(config, vae):
    return lambda **changes: make_sampler(config.replace(**changes), vae)


@pytest.fixture
def cached(config, vae):
    """Return `cached(...) -> latents` of the source's images by this VAE, at this resolution."""

    def build(vae=vae, resolution=16, last_id=None, source=None):
        source = source or data.load_domain(config.source, config)
        source.ids = [*source.ids[:-1], last_id or source.ids[-1]]
        settings, mark = config.replace(resolution=resolution), latent_cache.vae_fingerprint(vae)
        return latent_cache.cached_latents(source, settings, vae, mark, progress=False)

    return build


@pytest.fixture
def in_tens(monkeypatch):
    """Let a shard hold 10 images."""
    monkeypatch.setattr(latent_cache, "SHARD", 10)


def shards_of(config) -> set[Path]:
    return set(Path(config.data.cache_dir).iterdir())


def encodings(monkeypatch, stop_at=None, both=None) -> list[int]:
    """Return the numbers of images of all encodings to come; number `stop_at` is interrupted, two wait."""
    encode, sizes = latent_cache._encode, []

    def noting(vae, images, dtype):
        sizes.append(len(images))
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        if both and len(sizes) <= 2:
            both.wait()  # both are at work, on different shards
        return encode(vae, images, dtype)

    monkeypatch.setattr(latent_cache, "_encode", noting)
    return sizes


def test_cache_spares_the_vae(make, config, monkeypatch):
    before = make().batch(0)
    files = {path: path.stat().st_mtime_ns for path in shards_of(config)}
    assert len(files) == 5  # of the source no image is validated
    monkeypatch.setattr(AutoencoderKL, "encode", lambda *a, **k: pytest.fail("the VAE ran again"))
    assert same_batch(make().batch(0), before)
    assert {path: path.stat().st_mtime_ns for path in shards_of(config)} == files


def test_cache_is_never_stale(cached, config, vae):
    cached()
    other, scaled = copy.deepcopy(vae), copy.deepcopy(vae)
    with torch.no_grad():
        other.quant_conv.bias[0] += 0.001
    scaled.register_to_config(scaling_factor=1.5)
    for change in ({"vae": other}, {"vae": scaled}, {"resolution": 24}, {"last_id": "another image"}):
        before = shards_of(config)
        cached(**change)
        assert len(shards_of(config) - before) == 1, change


def test_only_latents_are_cleaned(cached, config):
    cached()
    (shard,) = shards_of(config)
    others = {shard.with_name(name) for name in ("scan-2021-03.npy", "a-b-c.tmp", "x-y-z.lock")}
    for path in (*others, shard.with_suffix(".tmp"), shard.with_suffix(".lock")):
        path.write_text("x")
    assert latent_cache.stored(config) == latent_cache.clear(config) and shards_of(config) == others
    assert latent_cache.stored(config) == (0, 0)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "NaN", "fewer rows"])
def test_a_damaged_shard_is_named_and_made_again(cached, config, caplog, damage):
    before = np.stack(list(cached()))
    (path,) = shards_of(config)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    written = {"flipped": content, "cut": content[:-99], "empty": b"", "garbage": b"x" * 5000}
    if damage in written:
        path.write_bytes(written[damage])
    else:
        with path.open("wb") as file:
            np.save(file, before[:9] if damage == "fewer rows" else before * np.nan)
    assert np.array_equal(np.stack(list(cached())), before)
    assert path.name in caplog.text and "damaged" in caplog.text
    caplog.clear()
    cached()
    assert not caplog.text


def test_a_cache_that_cannot_be_written_is_named(cached, make, config, tmp_path, full_disk):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DasdError, match="cache_dir"):
        make(cache_dir=tmp_path / "file")
    source = data.load_domain(config.source, config)
    with full_disk(1000), pytest.raises(DasdError, match=r"File too large.* Set cache_dir"):
        cached(source=source)
    with full_disk(1000), pytest.raises(DasdError, match=r"temporary folder .*File too large.* Set TMPDIR"):
        cached()
    assert not shards_of(config)


def test_latents_that_are_not_finite(config, vae):
    bad = AutoencoderKL.from_config(vae.config)
    with torch.no_grad():
        bad.encoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(DasdError, match="not finite"):
        make_sampler(config, bad)


def test_shards_are_one_array_of_the_moments_of_the_vae(cached, config, vae, monkeypatch):
    (complete,) = cached().datasets
    monkeypatch.setattr(latent_cache, "SHARD", 10)
    many, images = cached(), data.load_domain(config.source, config).images
    assert [len(shard) for shard in many.datasets] == [10, 10, 4] and complete.shape == (24, 2, 4, 4, 4)
    assert many[0].dtype == complete.dtype and len(many) == 24
    for key in (0, 9, 10, 23, -1):
        np.testing.assert_allclose(many[key], complete[key], rtol=1e-4, atol=1e-5)
        pixels = torch.from_numpy(np.asarray(images[key], np.float32)).permute(2, 0, 1) / 127.5 - 1
        with torch.no_grad():
            posterior = vae.encode(pixels[None]).latent_dist
        expected = torch.cat([posterior.mean, posterior.std]).numpy() * vae.config.scaling_factor
        np.testing.assert_allclose(many[key], expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(shard.base, np.memmap) for shard in many.datasets)


@pytest.mark.parametrize(("stop_at", "left", "count", "sizes"), [
    (2, 0, 8, [8, 2, 8, 2, 4]),  # in the first shard
    (4, 1, 8, [8, 2, 4]),  # after it
    (1, 0, 3, [3, 3, 3, 1, 3, 3, 3, 1, 3, 1]),  # large images go through the VAE a few at a time
])  # fmt: skip
@pytest.mark.usefixtures("in_tens")
def test_an_interrupted_encoding_goes_on(cached, config, monkeypatch, stop_at, left, count, sizes):
    monkeypatch.setattr(latent_cache, "ENCODE_PIXELS", count * 16 * 16)
    found = encodings(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt):
        cached()
    assert len(shards_of(config)) == left  # and nothing unfinished
    assert len(cached()) == 24 and found[stop_at:] == sizes


def test_several_workers_encode_each_shard_once_and_a_changed_one_again(cached, in_tens, config, monkeypatch):
    encoded = encodings(monkeypatch, both=threading.Barrier(2, timeout=30))
    monkeypatch.setattr(latent_cache, "POLL", 0.01)
    results = []
    workers = [threading.Thread(target=lambda: results.append(np.stack(list(cached())))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(encoded) == [2, 2, 4, 8, 8]
    assert len(results) == 2 and np.array_equal(*results)
    before = shards_of(config)
    assert sorted(path.suffix for path in before) == [".npy"] * 3
    cached(last_id="another image")  # costs its shard alone
    assert len(shards_of(config) - before) == 1


def test_half_precision_is_another_cache_of_half_the_size(make, config):
    full = make()._latents["train"][0]
    names = shards_of(config)
    sampler = make(half_weights=True, mixed_precision="bf16")
    half = sampler._latents["train"][0]
    assert len(shards_of(config) - names) == len(names)
    full, half = (np.stack(list(each)) for each in (full, half))
    assert (full.dtype, half.dtype) == (np.float32, np.float16)
    assert 0 < np.abs(half - full).max() < 0.02 * np.abs(full).max()  # bfloat16 has 8 bits
    assert sampler.batch(0).target_latents.dtype == torch.float32
