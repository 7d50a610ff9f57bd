"""adapters.py: files that plain diffusers loads with the same effect, and what is refused."""

import json

import narrow
import pytest
import torch
from conftest import as_if_trained, assert_diffusers_agrees
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dasd_utils import adapters, models
from dasd_utils.config import DasdError

PROMPTS = ["<satellite> a village near a river", "<xray> lungs", "lungs, <xray>", "a still life", ""]


def condition(parts):
    with torch.no_grad():
        return models.encode_prompts(parts, PROMPTS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def folder(adapted, tmp_path):
    adapters.save_adapter(adapted, tmp_path / "adapter")
    return tmp_path / "adapter"


def assert_same(parts, adapted):
    assert torch.equal(condition(parts), condition(adapted))
    text = condition(adapted)
    assert torch.equal(narrow.predicted_noise(parts.unet, text), narrow.predicted_noise(adapted.unet, text))


@pytest.mark.parametrize("convolutions", ["all", "mid", "none"])
def test_plain_diffusers_loads_what_is_saved(tiny_config, base_dir, tmp_path, convolutions):
    parts = as_if_trained(models.load_parts(tiny_config.replace(convolutions=convolutions)))
    adapters.save_adapter(parts, tmp_path / "adapter")
    assert_diffusers_agrees(parts, tmp_path / "adapter", base_dir, PROMPTS)


def test_files_are_safetensors_and_json_with_the_true_alpha(folder, adapted):
    wanted = {"adapter.json", "pytorch_lora_weights.safetensors", "satellite.safetensors", "xray.safetensors"}
    assert set(contents(folder)) == wanted and [p.name for p in folder.parent.iterdir()] == ["adapter"]
    summary = json.loads((folder / "adapter.json").read_text())
    assert summary["lora"] == {"rank": 4, "alpha": 16.0, "dropout": 0.0, "convolutions": "all"}
    assert summary["tokens"] == {"<satellite>": "satellite.safetensors", "<xray>": "xray.safetensors"}
    assert summary["base"] == adapted.config.model.base
    assert summary["base_fingerprint"] == adapters.base_fingerprint(adapted)
    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        (value,) = file.metadata().values()  # of several keys the order would not be the same each time
    assert (json.loads(value)["unet.r"], json.loads(value)["unet.lora_alpha"]) == (4, 16.0)


def test_loading_gives_the_same_model_whatever_the_config_says(folder, adapted, tiny_config, tmp_path):
    parts = models.load_parts(tiny_config.replace(rank=2, alpha=1.0, convolutions="none"))
    adapters.load_adapter(parts, folder)
    assert parts.token_ids == adapted.token_ids
    assert_same(parts, adapted)
    assert not any(m.training for m in parts.unet.modules())
    groups = models.trainable_parameters(parts)
    assert {p.dtype for group in groups.values() for p in group} == {torch.float32}
    adapters.save_adapter(parts, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_where_nothing_can_be_saved_nothing_is_written(adapted, tmp_path):
    notes = tmp_path / "mine" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("keep")
    for place, match in ((notes.parent, "holds other files"), (notes / "adapter", "cannot be written")):
        with pytest.raises(DasdError, match=match):
            adapters.save_adapter(adapted, place)
    assert [*tmp_path.rglob("*")] == [notes.parent, notes]


def test_saving_replaces_an_adapter_and_a_failed_save_leaves_the_old_one(folder, adapted, monkeypatch):
    models.trainable_parameters(adapted)["tokens"][0].data.zero_()
    old = (folder / "xray.safetensors").read_bytes()
    adapters.save_adapter(adapted, folder)
    before = contents(folder)
    assert before["xray.safetensors"] != old

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters, "save_file", disk_full)
    with pytest.raises(DasdError, match=r"No space left.*Make room"):
        adapters.save_adapter(adapted, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"] and contents(folder) == before


def refused(config, folder, match):
    """Assert that loading says why not, and leaves the parts as they were."""
    parts = models.load_parts(config)
    size = len(parts.tokenizer)
    with pytest.raises(DasdError, match=match):
        adapters.load_adapter(parts, folder)
    assert parts.tokens is None and len(parts.tokenizer) == size
    assert not any("lora_" in name for name, _ in parts.unet.named_parameters())


def test_another_base_and_a_second_adapter_are_refused(folder, adapted, tiny_config, tiny_base):
    refused(tiny_config.replace(base=tiny_base(1)), folder, "belongs to the base")
    refused(tiny_config.replace(base=tiny_base(layers_per_block=2)), folder, "belongs to the base")
    path = folder / "adapter.json"  # an earlier version read a few values of each weight
    known = {"base_fingerprint": adapters.base_fingerprint(adapted, adapters.FEW)}
    path.write_text(json.dumps(json.loads(path.read_text()) | known))
    adapters.load_adapter(models.load_parts(tiny_config), folder)
    with pytest.raises(DasdError, match="already have an adapter"):
        adapters.load_adapter(adapted, folder)


def test_a_missing_folder_or_file_is_named(folder, tiny_config, tmp_path):
    refused(tiny_config, tmp_path / "nowhere", "There is no adapter in")
    (folder / "xray.safetensors").write_bytes((folder / "satellite.safetensors").read_bytes())
    refused(tiny_config, folder, "no row of <xray>")
    (folder / "xray.safetensors").unlink()
    refused(tiny_config, folder, "lacks xray.safetensors")
    (folder / "adapter.json").unlink()
    refused(tiny_config, folder, "has no adapter.json")


SUMMARIES = {
    "no tokens": {"tokens": []},
    "a rank of text": {"lora": {"rank": "4"}},
    "unknown convolutions": {"lora": {"rank": 4, "convolutions": "some"}},
    "unknown field": {"lora": {"rank": 4, "beta": 16.0}},
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_changed_summary_is_refused(folder, tiny_config, name):
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SUMMARIES[name]))
    refused(tiny_config, folder, str(folder))


def test_a_lora_of_another_rank_than_its_summary_says_is_refused(folder, tiny_config):
    path = folder / "adapter.json"
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 2'))
    with pytest.raises(DasdError, match="does not fit the settings"):
        adapters.load_adapter(models.load_parts(tiny_config), folder)


def test_state_is_a_copy_of_all_that_trains_and_goes_back(adapted):
    groups = models.trainable_parameters(adapted)
    state = adapters.adapter_state(adapted)
    kept = [p for group in groups.values() for p in group]
    assert len(state) == len(kept) and "tokens.weight" in state
    before = [p.detach().clone() for p in kept]
    narrow.randomise(groups, seed=9)
    assert not any(torch.equal(p, old) for p, old in zip(kept, before, strict=True))
    adapters.load_adapter_state(adapted, state)
    now = [p for group in models.trainable_parameters(adapted).values() for p in group]
    assert all(a is b for a, b in zip(kept, now, strict=True))  # an optimiser still holds them
    bad = {name: torch.zeros_like(value) for name, value in state.items()}
    rows = bad.pop("tokens.weight")
    for change in ({"tokens.weight": rows[:1]}, {"tokens.weight": rows, "unet.other": rows}, {}):
        with pytest.raises(DasdError, match="another LoRA or of other tokens"):
            adapters.load_adapter_state(adapted, bad | change)
    assert all(torch.equal(p, old) for p, old in zip(kept, before, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["xray.safetensors", "pytorch_lora_weights.safetensors"])
def test_an_adapter_that_is_not_finite_is_named(folder, tiny_config, name, value):
    tensors = load_file(folder / name)
    last = sorted(tensors)[-1]
    tensors[last].view(-1)[-1] = value
    save_file(tensors, folder / name)
    refused(tiny_config, folder, f"{name} holds NaN or infinity in {last}")


def test_a_base_that_was_changed_in_any_weight_is_another_one(adapted):
    """Beyond the first values of a weight, and, for a run that goes on, in size alone."""
    signs, few = adapters.base_fingerprint(adapted), adapters.base_fingerprint(adapted, adapters.FEW)
    exact = adapters.exact_fingerprint(adapted)
    long = next(p for p in adapted.unet.parameters() if p.numel() > adapters.FEW and not p.requires_grad)
    with torch.no_grad():
        long.view(-1)[-1] *= -1
        assert adapters.base_fingerprint(adapted, adapters.FEW) == few
        assert adapters.base_fingerprint(adapted) != signs
        long.view(-1)[-1] *= -1
        assert adapters.exact_fingerprint(adapted) == exact
        adapted.vae.decoder.conv_in.weight[0] *= 1.01
    assert adapters.base_fingerprint(adapted) == signs
    assert adapters.exact_fingerprint(adapted) != exact and adapters.exact_fingerprint(adapted)[0] == exact[0]


def test_fingerprint_tells_bases_apart_whatever_their_precision(tiny_config, tiny_base, adapted):
    same = {adapters.base_fingerprint(adapted)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        parts = models.load_parts(tiny_config, unet_dtype=dtype)
        parts.text_encoder.to(dtype)
        assert adapters.base_fingerprint(parts) in same
    assert adapters.base_fingerprint(models.load_parts(tiny_config.replace(base=tiny_base(1)))) not in same
    weights = {name: p for name, p in adapted.unet.named_parameters() if "lora_" not in name}
    found = set()
    for changed in (
        weights,
        {f"other.{name}": p for name, p in weights.items()},
        {name: p.flatten() for name, p in weights.items()},
    ):
        adapted.base_weights = changed
        found.add(adapters.base_fingerprint(adapted))
    assert len(found) == 3 and same < found  # equal signs under other names, in other shapes
