"""Narrow random models: every part of a Stable Diffusion base, small enough to train in a test."""

from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from dasd_utils.pretrain.shared import learned_merges

HIDDEN = 32
SIZES = dict(
    hidden_size=HIDDEN,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=HIDDEN,
)
UNCHECKED = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
NOISE = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
START, END = "<|startoftext|>", "<|endoftext|>"
# Whole words are one token; "radiograph" is two, as in CLIP's own vocabulary.
WORDS = """
aerial view overhead satellite image photograph top down remote sensing above airport harbor river farmland
residential parking lot forest beach stadium highway interchange village small near chest radio graph medical
scan lungs thorax ribs frontal normal pneumonia heart effusion left right both painting landscape portrait
still life mountain house sun tree table fruit vase bottle style impressionist line drawing sketch a an the
of with and in from on at under beside large blue red green yellow dark bright
"""


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Return pieces -> ids in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    return {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}


def word_merges() -> list[tuple[str, str]]:
    """Return merges that make each of WORDS one piece; `core/stored_run` was trained with their number."""
    return learned_merges(Counter(WORDS.split()), count=1000)


def make_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer with `word_merges`."""
    merges = word_merges()
    return CLIPTokenizer(vocab=vocabulary(merges), merges=merges, model_max_length=77)


def make_unet(**changes) -> UNet2DConditionModel:
    """Return a UNet with cross-attention at the second level and the middle only."""
    settings = dict(sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
    settings |= dict(cross_attention_dim=HIDDEN, attention_head_dim=4)
    settings |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"))
    settings |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    return UNet2DConditionModel(**(settings | changes))


def make_vae() -> AutoencoderKL:
    """Return a VAE of three levels: factor 4."""
    types = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    settings = dict(sample_size=64, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=8)
    return AutoencoderKL(**types, **settings)


def text_settings(tokenizer: CLIPTokenizer, **changes) -> dict:
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    ids |= dict(pad_token_id=tokenizer.eos_token_id)
    return SIZES | dict(vocab_size=len(tokenizer), max_position_embeddings=77) | ids | changes


def save_clip(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Save a narrow CLIP with its image processor and tokenizer."""
    vision = SIZES | dict(image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text_settings(tokenizer), vision_config=vision, projection_dim=HIDDEN)
    CLIPModel(config).save_pretrained(folder)
    sizes = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_base(folder: Path, seed: int = 0, **unet_changes) -> Path:
    """Save a narrow random base: VAE factor 4, so that 32 px are 8 x 8 latents."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer()
        pipeline = StableDiffusionPipeline(
            vae=make_vae(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer))),
            tokenizer=tokenizer,
            unet=make_unet(**unet_changes),
            scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            **UNCHECKED,
        )
        pipeline.save_pretrained(folder)
        save_clip(folder / "clip", tokenizer)
    return folder


def randomise(parameters: dict[str, list[torch.nn.Parameter]], seed: int = 1, scale: float = 0.1) -> None:
    """Move what `models.trainable_parameters` returned away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for group in parameters.values() for p in group):
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def predicted_noise(unet: UNet2DConditionModel, text: torch.Tensor) -> torch.Tensor:
    """Return what a UNet predicts for fixed latents of 8 x 8, one row a text condition."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(len(text), 4, 8, 8, generator=generator)
    timesteps = torch.randint(0, 1000, (len(text),), generator=generator)
    return unet(latents, timesteps, text).sample
