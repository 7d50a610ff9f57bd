"""Which precision a device gets, and that sampling uses it."""

import pytest
import torch

from dasd_utils.config import DasdError
from dasd_utils.runtime import processes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_precision_by_device(monkeypatch):
    assert processes.choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(DasdError, match="fp16"):
        processes.choose_precision("fp16", CPU)
    for native, expected in ((True, "bf16"), (False, "fp16")):

        def supported(including_emulation=True, native=native):
            return native or including_emulation  # a T4 emulates bfloat16 and says so unless asked

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert processes.choose_precision("auto", CUDA) == expected


def test_a_cpu_gets_bf16_only_where_it_is_native(monkeypatch):
    for found, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "no"),
        ({}, "no"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert processes.choose_precision("auto", CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert processes.choose_precision("auto", CPU) == "no"


def test_the_frozen_unet_is_kept_in_the_precision_of_computing(tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for setting, device, expected in (
        ("auto", CUDA, torch.bfloat16),
        ("fp16", CUDA, torch.float16),
        ("no", CUDA, None),
        ("bf16", CPU, torch.bfloat16),
        ("auto", CPU, None),
        ("fp16", CPU, None),  # a run trained in fp16 is sampled anywhere
    ):
        config = tiny_config.replace(mixed_precision=setting, half_weights=True)
        assert processes.frozen_dtype(config, device) is expected
        assert processes.frozen_dtype(config.replace(half_weights=False), device) is None


def test_autocast_computes_at_the_chosen_precision():
    x = torch.ones(2, 2)
    for setting, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        with processes.autocast(setting, CPU):
            assert (x @ x).dtype == dtype
    with processes.autocast("fp16", CPU):  # trained on a GPU, sampled here
        assert (x @ x).dtype in (torch.float32, torch.bfloat16)
