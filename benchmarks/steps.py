"""Three training steps to compare, on equal weights: this project's, the published one, plain LoRA.

Each factory returns its operations, by name, for a `common.Worker`. All three train the same LoRA with
AdamW and clipping, at the same precision, from prompts of the same length.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import common
import diffusers
import torch
import torch.nn.functional as F
import transformers
from common import Operations
from PIL import Image
from torch import Tensor

from dasd_utils import latents, losses, models, training
from dasd_utils.config import ROOT, Config
from dasd_utils.papers import text_free
from dasd_utils.runtime import latent_cache
from dasd_utils.runtime.processes import DTYPES, autocast, choose_precision, default_device, frozen_dtype

PROMPT = "a dense forest beside a winding river with a bridge and a few houses"
IMAGES = 300 + 2 * 400  # of the published study, source and both targets: what a cache has to hold
PUBLISHED_SAMPLES = 1500 * 4  # target samples of the published run, over which the cache is spread
PLAIN_BATCH = 4  # images to an optimiser step
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def base(model: str, config: Config) -> models.Parts:
    """Return the tiny base, or Stable Diffusion 1.5 in true shapes with random weights; LoRA and tokens in.

    Only the vocabulary of the latter is that of the tiny base: its size costs no time.
    """
    torch.manual_seed(0)
    if model == "tiny":
        return training.setup_training(config)
    folder = ROOT / "data" / "tiny-sd" / "tokenizer"
    kept = None if config.training.whole_unet else frozen_dtype(config)  # what learns is kept in fp32
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)  # nosec B615  # a folder
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    parts = models.Parts(
        tokenizer=tokenizer,
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=2, **text)
        ),
        unet=sd15_unet(kept or torch.float32),
        vae=diffusers.AutoencoderKL(**VAE),
        noise_scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        config=config,
    )
    for module in (parts.text_encoder, parts.unet, parts.vae):
        module.requires_grad_(False).eval()
    if config.training.whole_unet:
        models.unfreeze_unet(parts)
        if config.training.text_free:
            text_free.open_text_free(parts.to(default_device()))
    else:
        models.add_lora(parts.unet, config.lora)
    models.add_domain_tokens(parts, config.domains)
    models.trainable_parameters(parts)
    return parts


def sd15_unet(dtype: torch.dtype) -> diffusers.UNet2DConditionModel:
    """Return the UNet of Stable Diffusion 1.5 with random weights of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made as it is kept, so that the peak of memory is that of training
    try:
        return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    finally:
        torch.set_default_dtype(before)


def settings(model: str, resolution: int, precision: str, method: str = "dasd", **changes: Any) -> Config:
    """Return the config of one measurement: the model's own domains, LoRA and batch, no accumulation."""
    checkpointing = {} if model == "tiny" else {"gradient_checkpointing": False}
    sizes = {"resolution": resolution, "mixed_precision": precision, "output_dir": tempfile.mkdtemp()}
    defaults = {"gradient_accumulation_steps": 1, **checkpointing}
    if method == "indomain":  # one domain, and no token
        defaults["domains"] = (dataclasses.replace(Config.setup(model).domains[0], token=None),)
    return Config.setup(model, method=method, **sizes, **(defaults | changes))


class RandomSampler:
    """Batches as training sees them, of random latents: what they hold costs no time."""

    fingerprint = "random"

    def __init__(self, config: Config, side: int) -> None:
        self.config, self.side = config, side

        self.bank: Tensor | None = None  # (1, d), the features of every source sample

    def encode(self, *_arguments: Any) -> None:
        """Nothing is to be encoded."""

    def open_bank(self, features: Callable[[latents.Batch], Tensor], *_arguments: Any) -> None:
        """Compute the features of one sample: what the others hold costs no time."""
        self.bank = features(self.sources(1)).cpu()

    def sources(self, count: int) -> latents.Batch:
        """Return so many source samples, and no target."""
        targets, samples = torch.zeros(0, dtype=torch.long), torch.randn(2, count, 4, self.side, self.side)
        return latents.Batch(
            samples[0, :0], samples[0], [], [PROMPT] * count, targets, targets,
            torch.randint(0, 1000, (count,)), samples[1, :0], samples[1],
        )  # fmt: skip

    def source_prompts(self) -> list[str]:
        """Return the prompt that all source samples have."""
        return [PROMPT]

    def batch(self, step: int, micro: int = 0) -> latents.Batch:
        """Return Bt targets, the domains in turns, and Bs sources where it is their turn."""
        domains, training_ = self.config.domains, self.config.training
        targets = training_.target_batch_size
        number = step * training_.gradient_accumulation_steps + micro
        sources = 0 if number % training_.source_every else training_.source_batch_size
        rows = [i % len(domains) for i in range(targets)]
        reads = training_.caption_dropout < 1
        timesteps = torch.randint(0, 1000, (targets,))

        def draw(count: int) -> Tensor:
            return torch.randn(count, 4, self.side, self.side)

        return latents.Batch(
            target_latents=draw(targets),
            source_latents=draw(sources),
            target_prompts=[f"{domains[row].token} {PROMPT}" if reads else "" for row in rows],
            source_prompts=[PROMPT] * sources,
            target_domains=torch.tensor(rows),
            target_timesteps=timesteps,
            source_timesteps=timesteps[:sources],
            target_noise=draw(targets),
            source_noise=draw(sources),
            sample_ids=["-"] * (targets + sources),
            source_features=None if self.bank is None or not sources else self.bank.expand(sources, -1),
        )


def ours(model: str, resolution: int, precision: str, **changes: Any) -> Operations:
    """`step`: one optimiser step of this project; `encode`: one image into the latent cache.

    `bank`: as many samples as pass at once into the bank of source features.
    """
    config = settings(model, resolution, precision, **changes)
    parts = base(model, config)
    side = resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    image = Image.new("RGB", (resolution, resolution), "gray")

    def encode() -> None:  # as the cache does
        device = default_device()
        latent_cache._encode(parts.vae.to(device), [image], frozen_dtype(config, device) or torch.float32)

    run = training.Run(
        config,
        parts,
        RandomSampler(config, side),
        losses.make_objective(config),
        training.Callbacks(progress=False),
    )
    run.encode()
    numbers = itertools.count(1)

    def step() -> None:
        run.optimise(next(numbers))

    def parts_of_step() -> dict[str, float]:
        with common.Stopwatch() as watch:
            watch.watch(models, "encode_prompts", "text")
            watch.watch(models, "unet_pass", "UNet")
            watch.watch(run.updater, "backward", "backward")
            watch.watch(run.updater, "update", "optimiser")
            step()
        with common.Stopwatch() as alone, run.updater.autocast():
            alone.watch(models, "unet_pass", "target")
            for micro in range(config.training.gradient_accumulation_steps):
                batch = run.sampler.batch(0, micro).to(run.updater.device)
                losses.predict_noise(parts, batch, with_source=False)
        source = max(watch.seconds.pop("UNet") - alone.seconds["target"], 0.0)
        return {**watch.seconds, **alone.seconds, "source": source}

    def bank() -> None:
        with run.updater.autocast():
            run._bank_features(run.sampler.sources(latent_cache.images_at_once(resolution, resolution)))

    return {"step": step, "encode": encode, "bank": bank, "parts": parts_of_step}


def plain(
    model: str, resolution: int, precision: str, at_once: int = PLAIN_BATCH, **changes: Any
) -> Operations:
    """`step`: a LoRA step as diffusers' text-to-image script does it, four images, no alignment.

    at_once: how many of them are in a micro-batch.
    """
    if PLAIN_BATCH % at_once:
        raise ValueError(f"{PLAIN_BATCH} images are no whole number of micro-batches of {at_once}.")
    config = settings(model, resolution, precision, **changes)
    parts = base(model, config)
    loss = _noise_loss(parts, resolution, precision, at_once)

    def step() -> None:
        for _ in range(PLAIN_BATCH // at_once):
            (loss()[0] * at_once / PLAIN_BATCH).backward()
        update()

    update = _updater(parts, config)
    return {"step": step}


def published(model: str, resolution: int, precision: str, **changes: Any) -> Operations:
    """`sample`: one of four accumulated pairs of the published step; `update`: what ends the four.

    VAE encode, text and a whole UNet pass for one target and one source, both with gradient, and the biased
    Gaussian MMD of two flattened mid-block features.
    """
    config = settings(model, resolution, precision, **({"dropout": 0.1, "half_weights": False} | changes))
    parts = base(model, config)
    loss, update = _noise_loss(parts, resolution, precision, 1), _updater(parts, config)

    def sample() -> None:
        (noise, target), (_, source) = loss(), loss()
        align = losses.mmd(source.flatten(1), target.flatten(1), "gaussian", unbiased=False)
        ((noise + config.alignment.lambda_align * align) / 4).backward()

    def parts_of_step() -> dict[str, float]:
        with common.Stopwatch() as watch:
            watch.watch(parts.vae, "encode", "VAE")
            watch.watch(models, "encode_prompts", "text")
            watch.watch(models, "unet_pass", "target", "source")
            watch.watch(torch.Tensor, "backward", "backward")
            sample()
            started = time.perf_counter()
            update()
            common.synchronise()
        return {**watch.seconds, "optimiser": (time.perf_counter() - started) / 4}

    return {"sample": sample, "update": update, "parts": parts_of_step}


def _encoder(parts: models.Parts, resolution: int, precision: str, count: int) -> Callable[[], Tensor]:
    parts.vae.to(default_device())
    pixels = torch.rand(count, 3, resolution, resolution, device=default_device()) * 2 - 1

    @torch.no_grad()
    def encode() -> Tensor:
        with autocast(precision, default_device()):
            return parts.vae.encode(pixels).latent_dist.sample().float() * parts.vae.config.scaling_factor

    return encode


def _noise_loss(
    parts: models.Parts, resolution: int, precision: str, count: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a function of nothing: (noise prediction loss, mid-block features), everything computed anew."""
    encode = _encoder(parts, resolution, precision, count)
    parts.unet.to(default_device())
    parts.text_encoder.to(default_device())
    parts.tokens.to(default_device())
    parts.unet.train()

    def loss() -> tuple[Tensor, Tensor]:
        latent = encode()
        noise = torch.randn_like(latent)
        timesteps = torch.randint(0, 1000, (count,), device=latent.device)
        with autocast(precision, default_device()):
            text = models.encode_prompts(parts, [f"{parts.config.domains[0].token} {PROMPT}"] * count)
            noisy = parts.noise_scheduler.add_noise(latent, noise, timesteps)
            eps, mid = models.unet_pass(parts.unet, noisy, timesteps, text)
        return F.mse_loss(eps.float(), noise), mid.float()

    return loss


def _updater(parts: models.Parts, config: Config) -> Callable[[], None]:
    groups = models.trainable_parameters(parts)
    parameters = [p for group in groups.values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=config.training.learning_rate, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def dtype_of(precision: str) -> torch.dtype:
    """Return the type in which products are computed at this setting."""
    return DTYPES.get(choose_precision(precision, default_device()), torch.float32)


FACTORIES = {"published": published, "plain": plain}  # and all others are `ours`
