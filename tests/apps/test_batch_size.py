"""The largest micro-batch that fits: which sizes come into question, what they take, which is chosen."""

from __future__ import annotations

import dataclasses
import types

import psutil
import pytest
import torch
from synthetic import make_parts

from dasd_utils import training
from dasd_utils.apps import batch_size
from dasd_utils.config import Config, DasdError


def sizes_of(config: Config) -> list[tuple[int, ...]]:
    return [tuple(sizes.values()) for sizes in batch_size.candidates(config)]


def test_candidates_keep_the_samples_of_a_step(tiny_config):
    config = Config.setup("sd15")  # 3 + 1 samples four times
    assert sizes_of(config) == [(12, 4, 1, 1), (6, 2, 1, 2), (3, 1, 1, 4), (1, 1, 3, 12)]
    assert (24, 8, 1, 1) in sizes_of(Config.setup("tiny"))
    alone = config.replace(lambda_align=0.0, source_batch_size=0)
    assert [each[0] for each in sizes_of(alone)] == [12, 6, 4, 3, 2, 1]


def test_the_config_s_own_sizes_are_always_a_candidate(tiny_config):
    odd = tiny_config.replace(target_batch_size=6, source_batch_size=3, source_every=2)
    assert sizes_of(odd)[0] == (6, 3, 2, 1)
    odd = tiny_config.replace(target_batch_size=2, source_batch_size=3, source_every=2)
    assert sizes_of(odd) == [(2, 3, 2, 1)]


def test_several_processes_are_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(batch_size.processes, "count", lambda: 2)
    with pytest.raises(DasdError, match="without the launcher"):
        batch_size.largest_batch(tiny_config, make_parts(tiny_config))


def test_candidates_leave_the_mmd_enough_samples():
    config = Config.setup("sd15", queue_size=0, target_batch_size=12, source_batch_size=4)
    assert sizes_of(config.replace(gradient_accumulation_steps=1)) == [(12, 4, 1, 1), (6, 2, 1, 2)]


def test_what_is_kept_is_a_line(tiny_config):
    """A prediction for 6 + 2 from steps of one or two samples is what a step of 6 + 2 keeps."""
    config = tiny_config.replace(unbiased=False)
    updater = training.Updater(config, make_parts(config))

    def kept(targets, sources):
        networks = updater.parts.unet, updater.parts.text_encoder
        with batch_size.Kept(*networks) as record:
            changed = config.replace(target_batch_size=targets, source_batch_size=sources)
            batch_size._pass(updater, changed)
        assert record.bytes == 0  # the backward pass has let all go
        return record.peak

    base = kept(1, 1)
    target, source = kept(2, 1) - base, kept(1, 2) - base
    assert target > source > 0
    assert kept(6, 2) == pytest.approx(base + 5 * target + source, rel=0.02)


def test_weights_do_not_count():
    layer, x, peaks = torch.nn.Linear(3, 5, bias=False), torch.ones(2, 3, requires_grad=True), []
    for networks, weights in (((), ()), ((layer,), ()), ((layer,), (x,))):
        with batch_size.Kept(*networks, weights=weights) as record:
            layer(x).sum().backward()
        peaks.append(record.peak)
    assert peaks == [4 * (2 * 3 + 3 * 5), 4 * 2 * 3, 0]


def test_a_domain_without_token_is_measured_by_its_words(tiny_config):
    bare = dataclasses.replace(tiny_config.domains[0], token=None)
    config = tiny_config.replace(domains=(bare, tiny_config.domains[1]))
    updater = training.Updater(config, make_parts(config))
    assert batch_size._batch(updater, config).target_prompts == ["a picture"] * 6
    assert batch_size._batch(updater, tiny_config).target_prompts == ["<satellite> a picture"] * 6


def test_recomputing_keeps_less(tiny_config):
    peaks = []
    for checkpointing in (False, True):
        config = tiny_config.replace(gradient_checkpointing=checkpointing)
        updater = training.Updater(config, make_parts(config))
        with batch_size.Kept(updater.parts.unet) as record:
            batch_size._pass(updater, config)
        peaks.append(record.peak)
    assert peaks[1] < 0.7 * peaks[0]


def with_memory(monkeypatch, free: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))


def test_the_largest_that_fits_is_chosen(tiny_config, monkeypatch):
    parts = make_parts(tiny_config)
    before = {name: value.clone() for name, value in parts.unet.state_dict().items()}
    with_memory(monkeypatch, 1e12)
    assert batch_size.largest_batch(tiny_config, parts) == tiny_config  # 6 + 2, once
    chosen, free = [], 1e9
    while free > 1e5:
        with_memory(monkeypatch, free)
        try:
            found = batch_size.largest_batch(tiny_config, parts).training
        except DasdError as error:
            assert "gradient_checkpointing" in str(error)
            break
        assert found.target_batch_size * found.gradient_accumulation_steps == 6
        chosen.append(found.target_batch_size)
        free *= 0.8
    assert sorted(set(chosen)) == [1, 3, 6] and chosen == sorted(chosen, reverse=True)
    assert all(torch.equal(value, before[name]) for name, value in parts.unet.state_dict().items())
    assert all(p.grad is None for p in parts.unet.parameters())
    assert not parts.unet.training


def test_on_a_gpu_sizes_are_tried(tiny_config, monkeypatch):
    """Without a GPU: the memory that is asked for is the CPU's, and runs out above three targets."""
    tried = []

    def run(_updater, config):
        tried.append(config.training.target_batch_size)
        if tried[-1] > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**7))
    monkeypatch.setattr(batch_size, "_foretold", lambda _updater: batch_size._tried)
    monkeypatch.setattr(batch_size, "_pass", run)
    config = tiny_config.replace(target_batch_size=12, source_batch_size=4)
    found = batch_size.largest_batch(config, make_parts(config)).training
    assert tried == [12, 6, 3]
    assert (found.target_batch_size, found.source_batch_size, found.gradient_accumulation_steps) == (3, 1, 4)


def test_other_errors_are_not_taken_for_memory(tiny_config, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**7))
    monkeypatch.setattr(batch_size, "_foretold", lambda _updater: batch_size._tried)
    monkeypatch.setattr(batch_size, "_pass", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        batch_size.largest_batch(tiny_config, make_parts(tiny_config))
