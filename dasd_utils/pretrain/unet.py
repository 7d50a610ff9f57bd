"""The base UNet: it learns to paint, and sees nothing but paintings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from dasd_utils import losses
from dasd_utils.pretrain.clip import train_clip
from dasd_utils.pretrain.loop import fingerprint, fit
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.pretrain.vae import train_vae
from dasd_utils.pretrain.world import Images, grid, read_rows
from dasd_utils.runtime import bars

PREVIEW_PROMPTS = (
    "a lighthouse at night",
    "a portrait of a man with a beard and a hat",
    "a bowl of oranges",
    "two sailing boats at sunset",
    "a village in winter",
    "red flowers in a vase",
    "a mountain with a house in autumn",
    "a watercolour of a house in summer",
)


def unet_model(config: PretrainConfig) -> UNet2DConditionModel:
    """Return an untrained UNet: cross-attention at the second level and in the middle."""
    return UNet2DConditionModel(
        sample_size=config.resolution // 4,
        block_out_channels=config.unet_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=config.clip_width[0],
        attention_head_dim=4,  # the number of heads, as in Stable Diffusion 1.5
        norm_num_groups=32,
    )


def noise_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip


@torch.no_grad()
def _encode_paintings(vae: AutoencoderKL, work: Path, progress: bool) -> Tensor:
    """Return the latent means of the paintings, (n, 4, h, w), cached beside the images for this VAE."""
    path, key = work / "painting_latents.safetensors", fingerprint(work / "vae")
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("vae") == key:
                return file.get_tensor("latents")
    images, parts = Images(work, ("painting",)), []
    count = len(images.arrays[0])
    for start in bars.bar(range(0, count, 100), "latents", shown=progress, unit="batch"):
        pixels = images.pixels([(0, i) for i in range(start, min(start + 100, count))])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pixels).latent_dist.mean.float())
    latents = torch.cat(parts).contiguous()
    save_file({"latents": latents}, work / "part.latents", metadata={"vae": key})
    (work / "part.latents").replace(path)
    return latents


def train_unet(config: PretrainConfig, work: Path, progress: bool = True) -> UNet2DConditionModel:
    """Noise prediction on paintings with min-SNR weights and a share of empty prompts."""
    vae, clip = train_vae(config, work, progress), train_clip(config, work, progress)
    latents = _encode_paintings(vae, work, progress)
    rows = read_rows(work, "painting")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    text_encoder = text_tower(clip)
    text_encoder.set_attn_implementation("eager")
    alphas = noise_scheduler().alphas_cumprod
    torch.manual_seed(config.seed)
    unet = unet_model(config)
    unet.set_attn_processor(AttnProcessor())  # on CPUs half again as fast as the fused attention

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 3, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        picks = rng.integers(len(latents), size=config.unet_batch_size)
        texts = [_caption_or_none(rows[i]["captions"], rng, config.caption_dropout) for i in picks]
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(picks),), generator=generator)
        level = alphas[timesteps][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            eps = unet(noisy, timesteps, _encode(tokenizer, text_encoder, texts)).sample
        return losses.noise_prediction(eps.float(), noise, timesteps, alphas, min_snr_gamma=5.0)

    def preview(unet: nn.Module, path: Path) -> None:
        context = _encode(tokenizer, text_encoder, [*PREVIEW_PROMPTS, *[""] * len(PREVIEW_PROMPTS)])
        grid(_sample(unet, vae, context), path, columns=len(PREVIEW_PROMPTS))

    inputs = fingerprint(work / "vae", work / "clip")
    return fit(unet, loss_at, config.unet_steps, config, work / "unet", progress, preview, inputs)


@torch.no_grad()
def _sample(unet: nn.Module, vae: nn.Module, context: Tensor, guidance_scale: float = 3.0) -> Tensor:
    """Return images (n, 3, h, w) of the first half of `context`, (2n, 77, d); the second half is empty."""
    scheduler = noise_scheduler()
    scheduler.set_timesteps(25)
    size = unet.config.sample_size
    latents = torch.randn(len(context) // 2, 4, size, size, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        conditional, empty = unet(torch.cat([latents] * 2), t, context).sample.chunk(2)
        eps = empty + guidance_scale * (conditional - empty)
        latents = scheduler.step(eps, t, latents).prev_sample
    return vae.decode(latents).sample


def _caption_or_none(texts: list[tuple[str, dict]], rng: np.random.Generator, dropout: float) -> str:
    return "" if rng.random() < dropout else texts[rng.integers(len(texts))][0]


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """Return CLIP's text tower as the model of its own that Stable Diffusion loads."""
    encoder = CLIPTextModel(clip.config.text_config)
    tower = {
        k.removeprefix("text_model."): v for k, v in clip.state_dict().items() if k.startswith("text_model.")
    }
    encoder.load_state_dict(tower)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def _encode(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, texts: list[str]) -> Tensor:
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids).last_hidden_state  # (B, 77, d)
