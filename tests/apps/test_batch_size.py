"""The largest micro-batch that fits: which sizes come into question, what they take, which is chosen."""

import dataclasses

import pytest
import torch
from synthetic import make_parts

from dasd_utils import training
from dasd_utils.apps import batch_size
from dasd_utils.config import Config, DasdError

HAS_GPU = batch_size.has_gpu


def sizes_of(config: Config) -> list[tuple[int, ...]]:
    found = [config.training for config in batch_size.candidates(config)]
    return [tuple(getattr(each, name) for name in batch_size.SIZES) for each in found]


def test_candidates_keep_the_samples_of_a_step(tiny_config):
    config = Config.setup("sd15")  # 3 + 1 samples four times
    assert sizes_of(config) == [(12, 4, 1, 1), (6, 2, 1, 2), (3, 1, 1, 4), (1, 1, 3, 12)]
    assert (24, 8, 1, 1) in sizes_of(Config.setup("tiny"))
    alone = config.replace(lambda_align=0.0, source_batch_size=0)
    assert [each[0] for each in sizes_of(alone)] == [12, 6, 4, 3, 2, 1]
    short = config.replace(queue_size=0, target_batch_size=12, source_batch_size=4)
    short = short.replace(gradient_accumulation_steps=1)  # the MMD needs more than one of a domain
    assert sizes_of(short) == [(12, 4, 1, 1), (6, 2, 1, 2)]
    odd = tiny_config.replace(target_batch_size=6, source_batch_size=3, source_every=2)
    assert sizes_of(odd)[0] == (6, 3, 2, 1)  # the config's own sizes, whatever they are
    odd = odd.replace(target_batch_size=2)
    assert sizes_of(odd) == [(2, 3, 2, 1)]


def test_a_domain_without_token_is_tried_by_its_words(tiny_config):
    updater = training.Updater(tiny_config, make_parts(tiny_config))
    bare = tiny_config.replace(domains=(dataclasses.replace(tiny_config.domains[0], token=None),))
    assert batch_size._batch(updater, bare).target_prompts == ["a picture"] * 6
    assert batch_size._batch(updater, tiny_config).target_prompts == ["<satellite> a picture"] * 6


def test_a_trial_has_source_features_where_training_takes_them_from_a_bank(tiny_config):
    updater = training.Updater(tiny_config, make_parts(tiny_config))
    rows = batch_size._batch(updater, tiny_config).source_features
    assert len(rows) == tiny_config.training.source_batch_size and rows.ndim == 2
    assert batch_size._batch(updater, tiny_config.replace(source_features="frozen")).source_features is None


def test_trying_changes_nothing_and_takes_a_gpu(tiny_config, gpu, monkeypatch):
    parts = make_parts(tiny_config)
    before = {name: value.clone() for name, value in parts.unet.state_dict().items()}
    assert batch_size.largest_batch(tiny_config, parts) == tiny_config  # 6 + 2, once
    assert all(torch.equal(value, before[name]) for name, value in parts.unet.state_dict().items())
    assert all(p.grad is None for p in parts.unet.parameters())
    assert not parts.unet.training
    monkeypatch.setattr(batch_size, "has_gpu", HAS_GPU)
    monkeypatch.setattr(batch_size.processes, "default_device", lambda: torch.device("cuda", 0))
    assert batch_size.has_gpu()
    monkeypatch.setattr(batch_size.processes, "default_device", lambda: torch.device("cpu"))
    with pytest.raises(DasdError, match="set target_batch_size"):
        batch_size.largest_batch(tiny_config, parts)


@pytest.fixture
def gpu(monkeypatch):
    """Try sizes as on a GPU; the memory that counts is the CPU's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**7))
    monkeypatch.setattr(batch_size, "has_gpu", lambda: True)


@pytest.mark.parametrize(("most", "found"), [(12, (12, 4, 1)), (3, (3, 1, 4)), (0, None)])
def test_on_a_gpu_sizes_are_tried(tiny_config, monkeypatch, gpu, most, found):
    tried = []

    def run(_updater, _batch, config):
        tried.append(config.training.target_batch_size)
        if tried[-1] > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(batch_size, "_pass", run)
    config = tiny_config.replace(target_batch_size=12, source_batch_size=4, gradient_accumulation_steps=1)
    if found is None:
        with pytest.raises(DasdError, match=r"Not even 1 target samples.*gradient_checkpointing"):
            batch_size.largest_batch(config, make_parts(config))
        assert tried == [12, 6, 3, 1]
        return
    sizes = batch_size.largest_batch(config, make_parts(config)).training
    assert tried == [size for size in (12, 6, 3) if size >= found[0]]
    assert (sizes.target_batch_size, sizes.source_batch_size, sizes.gradient_accumulation_steps) == found


def test_other_errors_are_raised_and_several_processes_refused(tiny_config, monkeypatch, gpu):
    def fail(*_arguments):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(batch_size, "_pass", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        batch_size.largest_batch(tiny_config, make_parts(tiny_config))
    monkeypatch.setattr(batch_size.processes, "count", lambda: 2)
    with pytest.raises(DasdError, match="without the launcher"):
        batch_size.largest_batch(tiny_config, None)
