"""What `auto` picks on CPU, small cards, T4, L4 and A100; and that it fits, by the counted memory."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from dasd_utils import profiles, sampling
from dasd_utils.apps.cli.study import Course
from dasd_utils.config import ROOT, Config
from dasd_utils.runtime import processes

SIZES = ("target_batch_size", "source_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
CARDS = [  # name, memory in GiB as CUDA reports it, bf16, profile, sizes, precision
    ("NVIDIA GeForce GTX 1060 6GB", 5.9, False, "tiny", (24, 8, 1, False), None),
    ("NVIDIA GeForce RTX 3070", 7.8, True, "sd15", (3, 1, 4, True), "bf16"),
    ("Tesla T4", 14.74, False, "sd15", (6, 2, 2, False), "fp16"),
    ("NVIDIA L4", 22.03, True, "sd15", (12, 4, 1, False), "bf16"),
    ("NVIDIA A100-SXM4-80GB", 79.32, True, "sd15", (12, 4, 1, False), "bf16"),
]


def put_card(monkeypatch, name, gib, bf16):
    """Let torch report one CUDA device."""
    memory = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: memory)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
    )


def sizes(config):
    return tuple(getattr(config.training, name) for name in SIZES)


@pytest.mark.parametrize(("name", "gib", "bf16", "profile", "fitting", "computed"), CARDS)
def test_a_card_gets_a_profile_that_fits(monkeypatch, caplog, name, gib, bf16, profile, fitting, computed):
    put_card(monkeypatch, name, gib, bf16)
    with caplog.at_level(logging.INFO, "dasd_utils"):
        config = Config.setup("auto")
    assert config.profile == profile and sizes(config) == fitting
    assert name in caplog.text
    plain = Config.setup(profile)
    for part in ("target_batch_size", "source_batch_size"):  # to an optimiser step, as in the profile
        count = config.training.gradient_accumulation_steps * getattr(config.training, part)
        assert count == plain.training.gradient_accumulation_steps * getattr(plain.training, part)
    if computed:
        found = processes.choose_precision(config.training.mixed_precision, torch.device("cuda"))
        assert found == computed and f"computes in {computed}" in caplog.text
        assert counted_gb(*fitting[:2], fitting[3]) <= 0.9 * gib * 2**30 / 1e9


def counted_gb(*wanted):
    """Return the upper end of the peak memory of training with these sizes, in any notebook of the course.

    The solutions keep more beside it: 0.9 of an L4 as counted (test_benchmarks), 0.92 at the upper end.
    """
    rows = json.loads((ROOT / "data/results/notebook_memory.json").read_text())["rows"]
    text = "train {} + {}{}".format(*wanted[:2], ", recomputed" * wanted[2])
    rows = [row for row in rows if row["metric"] == "peak_gb" and row.get("largest") == text]
    return max(row["high"] for row in rows if row["notebook"] != "solutions")


def test_rows_fit_the_least_card_that_they_are_for():
    rows = profiles.FITTED_SIZES
    assert [least for least, _ in rows] == sorted((least for least, _ in rows), reverse=True)
    for least, changes in rows:
        targets, sources, _, checkpointing = (changes[name] for name in SIZES)
        assert counted_gb(targets, sources, checkpointing) <= 0.9 * least


def test_without_cuda_it_is_tiny_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profiles.choose_profile() == profiles.AutoChoice("tiny", {}, "no CUDA device here")
    assert Config.setup("auto") == Config.setup("tiny")


@pytest.mark.parametrize(
    "given", [{"target_batch_size": 2}, {"resolution": 256}, {"method": "domainstudio"}, {"whole_unet": True}]
)
def test_who_sets_a_size_or_a_method_sets_all_sizes(monkeypatch, given):
    put_card(monkeypatch, "NVIDIA L4", 22.03, True)
    assert Config.setup("auto", **given) == Config.setup("sd15", **given)
    assert next(iter(given)) in profiles.choose_profile(given).reason


def test_a_file_that_names_sizes_keeps_them(monkeypatch, tmp_path):
    put_card(monkeypatch, "NVIDIA L4", 22.03, True)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"training": {"target_batch_size": 2}}))
    assert sizes(Config.load(path)) == (2, 1, 4, True)
    path.write_text(json.dumps({"training": {"learning_rate": 1e-5}}))
    assert sizes(Config.load(path)) == (12, 4, 1, False)
    named = Config.setup("sd15")
    assert Config.load(named.save(path)) == named  # what was saved is what is read, on any machine


def test_pictures_are_decoded_a_few_at_a_time():
    seen = []

    def decode(latents):
        seen.append(len(latents))
        return SimpleNamespace(sample=latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))

    config = SimpleNamespace(scaling_factor=1.0, block_out_channels=(1, 1, 1, 1))
    vae = SimpleNamespace(config=config, device="cpu", dtype=torch.float32, decode=decode)
    latents = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 4, 64, 64)
    pictures = sampling.decode_images(vae, latents)
    assert seen == [2, 2, 1] and [p.size for p in pictures] == [(512, 512)] * 5
    assert [p.getpixel((0, 0))[0] for p in pictures] == [0, 64, 128, 191, 255]
    seen.clear()
    sampling.decode_images(vae, latents[:, :, :8, :8])
    assert seen == [5]


def test_the_notebooks_get_auto_where_it_fits_sizes_to_a_card(monkeypatch, tmp_path):
    def profile(**options):
        return Course(**({"only": None, "seed": None, "config": None, "profile": "auto"} | options)).values()[
            "profile"
        ]

    named, sizes = tmp_path / "named.json", tmp_path / "sizes.json"
    named.write_text('{"profile": "sd15"}')
    sizes.write_text('{"seed": 3}')
    assert profile() == "tiny" and profile(profile="sd15") == "sd15"
    put_card(monkeypatch, "NVIDIA L4", 22.03, True)
    assert profile() == "auto" and profile(config=sizes) == "auto"
    assert profile(profile="tiny") == "tiny" and profile(config=named) == "sd15"
