"""The bank of source features: what the base computes for "frozen", kept, drawn by seed and step alone."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from pathlib import Path

import narrow
import numpy as np
import pytest
import torch
from conftest import refused
from synthetic import make_parts, make_sampler, same_batch

from dasd_utils import data, latents, losses, models, training
from dasd_utils.apps import batch_size
from dasd_utils.runtime import files, latent_cache

SMALL = dict(source_features="bank", bank_size=50, lambda_align=1.0, dropout=0.0, resolution=16)


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(**SMALL, validation_every=0)


@pytest.fixture
def parts(config):
    """Return parts whose LoRA is as if trained: the base's features are others than the adapted ones."""
    made = make_parts(config)
    narrow.randomise({"lora": models.trainable_parameters(made)["lora"]}, scale=0.02)
    return made


@pytest.fixture
def open_run(config, parts):
    """Return `open_run(**changes) -> Run` whose images are encoded and whose bank is open."""

    def make(**changes) -> training.Run:
        settings = config.replace(**changes)
        source, *targets = (data.load_domain(d, settings) for d in (settings.source, *settings.domains))
        sampler = latents.Sampler(settings, source, targets)
        run = training.Run(settings, parts, sampler, callbacks=training.Callbacks(progress=False))
        run.encode()
        return run

    return make


def banks(config) -> list[Path]:
    return sorted(Path(config.data.cache_dir).glob("painting-features-*"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"queue_size": 0, "layer": "down.1", "pooling": "flat"},
        {"match_timesteps": True},
        {"source_every": 2},
        {"mixed_precision": "bf16", "half_weights": True},
    ],
)
def test_mmd_and_gradients_are_those_of_frozen_features(open_run, changes):
    """Three batches, so that the queue, and a batch without source, count too."""
    run = open_run(**changes)
    frozen = run.config.replace(source_features="frozen")
    weights = models.trainable_parameters(run.parts)["lora"]
    relative = 1e-2 if "mixed_precision" in changes else 1e-5
    ours, theirs = losses.DasdObjective(run.config), losses.DasdObjective(frozen)
    for step in range(3):
        batch, found = run.sampler.batch(step).to("cpu", torch.float32), []
        assert (batch.source_features is None) == (not batch.source_prompts)
        for objective, settings in ((ours, run.config), (theirs, frozen)):
            with run.updater.autocast():
                loss, logs = objective(run.parts, batch, settings)
            gradient = torch.autograd.grad(loss, weights, materialize_grads=True)
            found.append((logs, torch.cat([g.flatten() for g in gradient])))
        (logs, gradient), (expected, other) = found
        assert logs == pytest.approx(expected, rel=relative, abs=relative / 10)
        assert (gradient - other).norm() <= relative * other.norm()
    assert logs["mmd"] > 0.01


def test_no_source_sample_passes_through_the_network_while_training(open_run):
    run, rows = open_run(), []
    run.parts.unet.conv_in.register_forward_hook(lambda _m, args, _out: rows.append(len(args[0])))
    run.optimise(1)
    assert rows == [6]
    plain = losses.DasdObjective(run.config)
    batch = dataclasses.replace(run.sampler.batch(0), source_features=None)
    plain(run.parts, batch, run.config)  # without a bank the base computes them
    assert rows == [6, 6, 2]


def test_a_bank_is_spread_over_timesteps_and_images(open_run):
    sampler = open_run().sampler
    picks = [sampler._bank_pick(number) for number in range(50)]
    assert [pick.timestep // 20 for pick in picks] == list(range(50))
    assert set(np.bincount([pick.index for pick in picks])) == {2, 3}  # 24 images
    assert len({pick.prompt for pick in picks}) > 10
    assert sampler._bank[7].shape == (sampler._bank[0].size,) and sampler._bank[0].dtype == np.float32


def test_a_step_draws_near_its_targets_by_seed_and_step_alone(open_run):
    changes = dict(bank_size=200, source_batch_size=3, gradient_accumulation_steps=2)
    run, again, other = open_run(**changes), open_run(**changes), open_run(seed=1)
    places = [(step, micro) for step in range(20) for micro in range(2)]
    ahead = {place: run.sampler.batch(*place) for place in places}
    assert all(same_batch(again.sampler.batch(*place), ahead[place]) for place in reversed(places))
    assert not torch.equal(ahead[0, 0].source_features, ahead[0, 1].source_features)
    assert not torch.equal(other.sampler.batch(0).source_noise[:2], ahead[0, 0].source_noise[:2])
    gaps = [batch.source_timesteps - batch.target_timesteps[[0, 2, 4]] for batch in ahead.values()]
    assert torch.cat(gaps).abs().max() <= latents.NEAR and len(set(torch.cat(gaps).tolist())) > 10
    for timestep in (0, 500, 999):
        picks = [dataclasses.replace(run.sampler._bank_pick(k), timestep=timestep) for k in range(100)]
        found = {run.sampler._place_in_bank(pick) for pick in picks}
        assert found == {0: {0, 1, 2, 3}, 500: {98, 99, 100, 101}, 999: {196, 197, 198, 199}}[timestep]
    frozen = open_run(**changes, source_features="frozen")
    for place in places[:3]:
        assert torch.equal(frozen.sampler.batch(*place).target_noise, ahead[place].target_noise)
        assert frozen.sampler.batch(*place).source_features is None


def test_a_bank_is_computed_once_and_never_stale(config, open_run, parts, monkeypatch):
    compute, sizes = losses.bank_features, []
    monkeypatch.setattr(losses, "bank_features", lambda p, b, c: sizes.append(len(b)) or compute(p, b, c))
    open_run()
    assert sum(sizes) == 50 and len(banks(config)) == 1
    narrow.randomise(models.trainable_parameters(parts), scale=0.05)  # LoRA and tokens decide nothing
    open_run(learning_rate=1.0, queue_size=5, kernel="linear", match_timesteps=False)
    assert sum(sizes) == 50
    others = ({"seed": 1}, {"bank_size": 49}, {"layer": "down.1"}, {"pooling": "flat"}, {"resolution": 32})
    others += ({"caption_dropout": 0.9}, {"mixed_precision": "bf16", "half_weights": False})
    others += ({"mixed_precision": "bf16", "half_weights": True},)  # the latents alone differ here
    others += ({"source": dataclasses.replace(config.source, num_images=23)},)
    for number, changes in enumerate(others, start=2):
        open_run(**changes)
        assert len(banks(config)) == number, changes
    with torch.no_grad():
        parts.unet.conv_in.bias[0] += 1e-3  # another base
    open_run()
    assert len(banks(config)) == number + 1
    found, count = latent_cache.stored(config)[0], len(banks(config))
    assert latent_cache.clear(config)[0] == found > count and not banks(config)


def test_an_interrupted_bank_goes_on_and_workers_share_it(config, open_run, monkeypatch, capsys):
    monkeypatch.setattr(latents, "BANK_SHARD", 20)
    monkeypatch.setattr(latent_cache, "POLL", 0.01)
    monkeypatch.setattr(files, "is_watched", lambda: True)
    sampler, calls = open_run(bank_size=1).sampler, []
    sampler.config = config

    def features(batch) -> torch.Tensor:
        calls.append(len(batch))
        if calls == [8, 8, 4, 8]:
            raise KeyboardInterrupt
        return batch.source_latents.mean(dim=(2, 3))

    with pytest.raises(KeyboardInterrupt):
        sampler.open_bank(features, "mark", progress=True)
    assert "features of painting" in capsys.readouterr().err
    assert len(banks(config)) == 2  # that of one sample, and the first of three
    copies = [latents.Sampler(config, *_members(sampler)) for _ in range(2)]
    for copy in copies:
        copy._latents, copy._vae = sampler._latents, sampler._vae
    threads = [threading.Thread(target=copy.open_bank, args=(features, "mark", False)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(calls[4:]) == [2, 4, 8, 8, 8]
    rows = [np.stack(list(copy._bank)) for copy in copies]
    assert np.array_equal(*rows) and len(rows[0]) == 50
    with refused("not finite", "mixed_precision"):
        sampler.open_bank(lambda batch: features(batch) * float("nan"), "other")


def _members(sampler):
    source, *targets = sampler._members["train"]
    return source, targets


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, vae, tmp_path):
    config = config.replace(max_train_steps=4, gradient_accumulation_steps=2, queue_size=5, dropout=0.2)

    def start(settings, **options):
        parts = make_parts(settings)
        sampler = make_sampler(settings, vae)
        history = training.train(settings, parts, sampler, progress=False, **options)
        return history, [p.detach().clone() for p in parts.unet.parameters() if p.requires_grad]

    def stop(row) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    expected, weights = start(config.replace(output_dir=tmp_path / "straight"))
    with pytest.raises(KeyboardInterrupt):
        start(config, on_step=stop)
    history, found = start(config, resume=True)
    assert history == expected and all(itertools.starmap(torch.equal, zip(found, weights, strict=True)))
    assert all("mmd" in row for row in history)


def test_the_largest_micro_batch_is_found(config, parts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**7))
    monkeypatch.setattr(batch_size, "has_gpu", lambda: True)
    parts.vae = make_parts(config).vae
    chosen = batch_size.largest_batch(config.replace(gradient_accumulation_steps=2), parts)
    assert chosen.training.target_batch_size == 12 and chosen.alignment.source_features == "bank"


def test_prior_preservation_needs_no_bank(tiny_config):
    config = tiny_config.replace(prior_loss_weight=1.0)
    assert config.alignment.source_features == "bank"
    assert not losses.uses_bank(config) and losses.needs_source(config)


def test_a_method_that_aligns_nothing_keeps_its_own_source(tiny_config):
    """DomainStudio draws and passes its source images whatever `source_features` says."""
    config = tiny_config.replace(
        method="domainstudio", lambda_align=0.0, prior_loss_weight=1.0, source_features="bank"
    )
    assert not losses.uses_bank(config) and losses.needs_source(config)
