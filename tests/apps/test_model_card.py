"""model_card.py: the card says what is known and claims nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from huggingface_hub import ModelCard

from dasd_utils import adapters
from dasd_utils.apps import export, model_card, notebooks
from dasd_utils.apps.model_card import Exported

LORA = adapters.LORA_FILE
FILES = ("README.md", LORA, "samples.png", "satellite.safetensors")
ROW = {"domain": "satellite", "metric": "cmmd", "low": 0.1, "high": 0.4, "n": 60, "seed": 3}
ROWS = [ROW | {"method": "base", "value": 5.0}, ROW | {"method": "DASD", "value": 0.25}]


@pytest.fixture
def summary(adapted, tmp_path):
    adapters.save_adapter(adapted, tmp_path / "adapter")
    return adapters.read_summary(tmp_path / "adapter")


def exported(kind="diffusers", words=None, files=FILES):
    return Exported(kind, "far", files, {"<satellite>": "<satellite>"} if words is None else words)


def test_metadata_are_read_back_by_the_hubs_own_reader(summary, tiny_config, tmp_path):
    card = model_card.card(exported(), tiny_config, summary, ROWS)
    assert f"[DASD]({notebooks.repository()[0]})" in str(card)
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", "other")
    assert "lora" in data.tags
    assert "lora" not in model_card.card(exported(), tiny_config, summary | {"lora": None}).data.tags
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value) == ("cmmd", 0.25)
    assert result.metric_name == "cmmd, n = 60, seed 3"


def test_results_come_with_their_number_seed_and_interval(summary, tiny_config):
    text = str(model_card.card(exported(), tiny_config, summary, ROWS))
    assert "0.25 [0.10, 0.40]" in text and "60 images a method and domain, training seed 3" in text
    assert "Not measured" in str(model_card.card(exported(), tiny_config, summary))


@pytest.mark.parametrize(
    "base, known",
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("data/tiny-sd", "mit"),
        ("somebody/something", "other"),
    ],
)
def test_the_licence_is_the_bases(base, known):
    assert model_card.licence(base) == known


def test_stable_diffusions_licence_is_named_and_linked(summary, tiny_config):
    config = tiny_config.replace(base="stable-diffusion-v1-5/stable-diffusion-v1-5", base_revision="a" * 40)
    card = model_card.card(exported(), config, summary)
    assert card.data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert "CreativeML OpenRAIL-M" in str(card) and f'revision="{"a" * 40}"' in str(card)


def test_settings_are_those_of_the_adapter(summary, tiny_config):
    text = str(model_card.card(exported(), tiny_config.replace(rank=2, alpha=1.0), summary))
    assert "rank 4, alpha 16, convolutions: all" in text
    assert "| max_train_steps | 4 |" in text and "never for clinical use" in text
    assert "hf upload OWNER/NAME FOLDER" in text


@pytest.mark.parametrize("kind", ["a1111", "comfyui"])
@pytest.mark.parametrize(("lora", "word"), [(True, "far-satellite"), (True, None), (False, "far-satellite")])
def test_other_programs_are_told_of_the_files_that_there_are(summary, tiny_config, kind, lora, word):
    loras, embeddings = export.FOLDERS[kind]
    files = ["README.md"] + [f"{loras}/far.safetensors"] * lora
    files += [f"{embeddings}/{word}.safetensors"] if word else []
    called = f"embedding:{word}" if kind == "comfyui" else word
    given = exported(kind, {"<satellite>": called} if word else {}, tuple(files))
    use = str(model_card.card(given, tiny_config, summary)).split("## Use")[1].split("| domain")[0]
    for folder in ("models", "embeddings"):
        assert (f"`{folder}`" in use) == any(file.startswith(f"{folder}/") for file in files)
    assert ("<lora:far:1>" in use or "Load LoRA" in use) == lora
    prompt = use.split("```")[1].strip().removesuffix(" <lora:far:1>")
    assert prompt == f"{called} a small village near a river" if word else "a small village near a river"


def test_the_code_of_the_card_names_revision_variant_and_sampling(summary, tiny_config):
    config = tiny_config.replace(base="somebody/something", base_revision="b" * 40, base_variant="fp16")
    for files in (FILES, (*FILES, "unet/config.json"), FILES[2:]):
        text = str(model_card.card(exported(files=files), config, summary))
        code = text.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert f'"somebody/something", dtype=precision, revision="{"b" * 40}", variant="fp16"' in code
        assert "guidance_scale=2.0, num_inference_steps=2" in code
        assert ("subfolder" in code) == ("unet=unet" in code) == ("unet/config.json" in files)
        assert ("load_lora_weights(" in code) == (LORA in files)


def test_folders_of_this_machine_are_named_and_not_placed(summary, tiny_config, base_dir, tmp_path):
    source = dataclasses.replace(tiny_config.source, data=str(tmp_path))
    text = str(model_card.card(exported(), tiny_config.replace(source=source), summary))
    assert str(base_dir.parent) not in text and str(tmp_path) not in text
    assert f"{tmp_path.name} (a folder)" in text


def test_the_grid_is_shown_with_its_prompts(summary, tiny_config):
    text = str(model_card.card(exported(), tiny_config, summary, prompts=["a pier", "a road"]))
    assert "](samples.png)" in text and "“a pier”; “a road”" in text
    assert "samples.png" not in str(model_card.card(exported(files=(LORA,)), tiny_config, summary))
