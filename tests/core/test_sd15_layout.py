"""The sd15 profile on a narrow random base in the layout of the SD 1.5 repository."""

import narrow
import pytest
import torch
from conftest import as_if_trained, assert_diffusers_agrees
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dasd_utils import adapters, models

PROMPTS = ["<satellite> many buildings", "<xray> a chest x-ray", "a painting", ""]


def condition(parts):
    with torch.no_grad():
        return models.encode_prompts(parts, PROMPTS)


def test_weights_come_from_the_fp16_files_as_float32_and_under_their_old_names(sd15_config, sd15_layout_dir):
    halves = models.load_parts(sd15_config).unet.state_dict()
    parts = models.load_parts(sd15_config.replace(base_variant=None))
    whole = parts.unet.state_dict()
    assert {v.dtype for v in halves.values()} == {torch.float32}
    assert all(torch.equal(halves[n], whole[n].half().float()) for n in whole)
    assert not all(torch.equal(halves[n], whole[n]) for n in whole)
    text = load_file(sd15_layout_dir / "text_encoder" / "model.safetensors")
    state = {n.removeprefix("text_model."): v for n, v in parts.text_encoder.state_dict().items()}
    for name in ("embeddings.token_embedding.weight", "encoder.layers.1.mlp.fc1.weight"):
        assert torch.equal(state[name], text[f"text_model.{name}"])
    vae = load_file(sd15_layout_dir / "vae" / "diffusion_pytorch_model.safetensors")
    attention = parts.vae.decoder.mid_block.attentions[0]
    assert torch.equal(attention.to_q.weight, vae["decoder.mid_block.attentions.0.query.weight"])
    assert parts.vae.config.scaling_factor == 0.18215
    schedule = parts.noise_scheduler.config
    found = (schedule.beta_start, schedule.beta_end, schedule.beta_schedule, schedule.prediction_type)
    assert found == (0.00085, 0.012, "scaled_linear", "epsilon") and not schedule.clip_sample
    assert parts.text_encoder.config.eos_token_id == 2 != parts.tokenizer.eos_token_id
    assert parts.tokenizer.model_max_length == 77
    assert len(parts.tokenizer("a village").input_ids) == 4


def test_the_safety_checker_is_neither_loaded_nor_needed(sd15_config, sd15_layout_dir):
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):  # whoever loads it, sees it
        StableDiffusionPipeline.from_pretrained(sd15_layout_dir, variant="fp16")
    assert models.load_parts(sd15_config).unet.config.cross_attention_dim == narrow.HIDDEN


def test_an_adapter_is_that_of_plain_diffusers_and_reloaded_whatever_the_variant(
    sd15_config, sd15_layout_dir, tmp_path
):
    parts = as_if_trained(models.load_parts(sd15_config))
    adapters.save_adapter(parts, tmp_path / "adapter")
    options = dict(variant="fp16", use_safetensors=True)
    assert_diffusers_agrees(parts, tmp_path / "adapter", sd15_layout_dir, PROMPTS, **options)
    text = condition(parts)
    noise = narrow.predicted_noise(parts.unet, text)
    again = models.load_parts(sd15_config)
    adapters.load_adapter(again, tmp_path / "adapter")
    assert torch.equal(condition(again), text)
    assert torch.equal(narrow.predicted_noise(again.unet, text), noise)
    full = models.load_parts(sd15_config.replace(base_variant=None))
    adapters.load_adapter(full, tmp_path / "adapter")
    assert torch.allclose(narrow.predicted_noise(full.unet, text), noise, atol=0.02)
