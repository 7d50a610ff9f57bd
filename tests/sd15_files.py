"""A narrow random base, file by file as the SD 1.5 repository has it: old keys, old names, fp16 variants."""

import json
from pathlib import Path

import narrow
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf8")


def write_weights(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    """Write fp32 and fp16 safetensors, and a .bin in the same folder that nothing may read."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, folder / f"{name}.safetensors", {"format": "pt"})
    save_file(half, folder / f"{name}.fp16.safetensors", {"format": "pt"})
    stem = "pytorch_model" if name == "model" else name
    (folder / f"{stem}.bin").write_bytes(b"no pickle is read")


def old_unet(folder: Path) -> None:
    """Write the UNet with the config keys of SD 1.5: four levels, attention at the first three."""
    config = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0"}
    config |= {"block_out_channels": (16, 16, 32, 32), "cross_attention_dim": narrow.HIDDEN}
    config |= {"attention_head_dim": 8, "norm_num_groups": 8, "layers_per_block": 2, "sample_size": 64}
    config |= {"down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]}
    config |= {"up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]}
    write_json(folder / "config.json", config)
    weights = UNet2DConditionModel.from_config(config).state_dict()
    write_weights(folder, "diffusion_pytorch_model", weights)


def old_vae(folder: Path) -> None:
    """Write the VAE with SD 1.5's config keys (no scaling factor) and its old names of attention."""
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "sample_size": 512}
    config |= {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 2, "norm_num_groups": 8}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    write_json(folder / "config.json", config)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, value in AutoencoderKL.from_config(config).state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = value
    write_weights(folder, "diffusion_pytorch_model", state)


def old_text_encoder(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write the text encoder as transformers 4.22 did: prefixed keys, position ids, eos_token_id 2."""
    settings = narrow.text_settings(tokenizer, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    settings |= {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    settings |= {"hidden_act": "quick_gelu", "torch_dtype": "float32", "transformers_version": "4.22.0.dev0"}
    write_json(folder / "config.json", settings)
    model = CLIPTextModel(CLIPTextConfig(**settings))
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write_weights(folder, "model", state)


def old_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the two small files of special tokens; no tokenizer.json."""
    merges = narrow.word_merges()
    write_json(folder / "vocab.json", narrow.vocabulary(merges))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    marks = {"bos_token": narrow.START, "eos_token": narrow.END, "unk_token": narrow.END}
    special = {name: {"content": text} | plain for name, text in marks.items()}
    write_json(folder / "special_tokens_map.json", special | {"pad_token": narrow.END})
    typed = {name: {"__type": "AddedToken"} | token for name, token in special.items()}
    rest = {"pad_token": narrow.END, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    names = {"name_or_path": "openai/clip-vit-large-patch14", "tokenizer_class": "CLIPTokenizer"}
    limits = {"model_max_length": 77, "special_tokens_map_file": "./special_tokens_map.json"}
    write_json(folder / "tokenizer_config.json", typed | rest | names | limits)
    return narrow.make_tokenizer()


def old_safety_checker(folder: Path) -> None:
    """Write a safety checker whose weights cannot be read: nothing here may load it."""
    kind = {"architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": 768}
    write_json(folder / "config.json", kind)
    for name in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"nobody reads this")


def old_small_files(folder: Path) -> None:
    """Write what the SD 1.5 repository says of its parts, its noise schedule and its image processor."""
    parts = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    version = {"_diffusers_version": "0.6.0"}
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"} | version | parts)
    schedule = {"_class_name": "PNDMScheduler"} | version | narrow.NOISE
    schedule |= {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
    write_json(folder / "scheduler" / "scheduler_config.json", schedule | {"trained_betas": None})
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")


def make_sd15(folder: Path) -> Path:
    """Write a narrow random base in the layout of the SD 1.5 repository; VAE factor 8, 64 px are 8 x 8."""
    with torch.random.fork_rng():
        torch.manual_seed(15)
        old_small_files(folder)
        old_safety_checker(folder / "safety_checker")
        old_unet(folder / "unet")
        old_vae(folder / "vae")
        tokenizer = old_tokenizer(folder / "tokenizer")
        old_text_encoder(folder / "text_encoder", tokenizer)
        narrow.save_clip(folder / "clip", tokenizer)
    return folder
