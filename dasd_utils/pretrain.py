"""Build `data/tiny-sd` from the toy world: tokenizer, VAE, CLIP, UNet, in the layout of diffusers.

The VAE and CLIP see every domain, the UNet sees paintings only: the gap that adaptation has to close.
Stages are resumable; batch k of a stage is a function of (seed, k), so a resumed run sees the same data.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
)

from dasd_utils import losses, toyworld
from dasd_utils.config import DasdError, resolve
from dasd_utils.toyworld import captions

log = logging.getLogger(__name__)
WORLD_SEED = 100  # data sets of the course use other seeds, so their images are new to every part
STAGES = ("render", "describe", "tokenizer", "vae", "clip", "unet", "assemble")


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and budgets; the values are those that made the shipped weights."""

    seed: int = 0
    output_dir: str = "data/tiny-sd"
    work_dir: str = "data/cache/pretrain"
    resolution: int = 64  # pixels
    paintings: int = 40_000  # rendered images, a domain
    others: int = 8_000
    vae_channels: tuple[int, ...] = (32, 64, 96)
    vae_crop_steps: int = 3_000  # on 32 px crops first: a quarter of the cost, the same local lesson
    vae_steps: int = 3_300  # in all
    vae_batch_size: int = 8
    kl_weight: float = 2e-4
    clip_width: tuple[int, int] = (128, 160)  # channels of the text and the vision tower
    clip_steps: int = 1_000
    clip_batch_size: int = 96
    vocab_size: int = 1_200
    unet_channels: tuple[int, ...] = (64, 128, 160)
    unet_steps: int = 1_800
    unet_batch_size: int = 64
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    log_every: int = 50  # steps
    checkpoint_every: int = 250  # steps


def pretrain(config: PretrainConfig, stages: tuple[str, ...] = STAGES, progress: bool = True) -> Path:
    """Run the stages that are not done yet and return the folder of the finished base model."""
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise DasdError(f"There is no pretraining stage {sorted(unknown)[0]!r}. Stages: {', '.join(STAGES)}.")
    work = resolve(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    run = {
        "render": render_images,
        "describe": describe_images,
        "tokenizer": train_tokenizer,
        "vae": train_vae,
        "clip": train_clip,
        "unet": train_unet,
        "assemble": assemble,
    }
    for stage in (s for s in STAGES if s in stages):
        started = time.perf_counter()
        run[stage](config, work, progress)
        log.info("%s: %.0f s", stage, time.perf_counter() - started)
    return resolve(config.output_dir)


# --- images and captions ---------------------------------------------------------------------------------


def _render_chunk(job: tuple[str, int, int, int]) -> np.ndarray:
    domain, start, stop, size = job
    return np.stack([np.asarray(toyworld.draw(domain, WORLD_SEED, i, size)) for i in range(start, stop)])


def _describe_chunk(job: tuple[str, int, int]) -> list[dict]:
    domain, start, stop = job
    scenes = [(domain, WORLD_SEED, i) for i in range(start, stop)]
    return [
        {"captions": toyworld.caption_variants(*s, 4), "attributes": toyworld.attributes(*s)} for s in scenes
    ]


def _in_parallel(work: Callable, domain: str, count: int, *extra: int, progress: bool = True) -> list:
    """Return the results of chunks of 250 scenes, in order, made on all cores."""
    jobs = [(domain, i, min(i + 250, count), *extra) for i in range(0, count, 250)]
    with get_context("fork").Pool() as pool:
        return list(tqdm(pool.imap(work, jobs), domain, len(jobs), disable=not progress))


def render_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.npy, uint8 (n, size, size, 3)."""
    for domain in toyworld.DOMAINS:
        path, count = work / f"{domain}.npy", config.paintings if domain == "painting" else config.others
        if not path.exists():
            chunks = _in_parallel(_render_chunk, domain, count, config.resolution, progress=progress)
            np.save(work / "part.npy", np.concatenate(chunks))
            (work / "part.npy").rename(path)


def describe_images(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Write <domain>.json, the wordings and attributes of every image."""
    for domain in toyworld.DOMAINS:
        path, count = work / f"{domain}.json", config.paintings if domain == "painting" else config.others
        if not path.exists():
            chunks = _in_parallel(_describe_chunk, domain, count, progress=progress)
            (work / "part.json").write_text(json.dumps([row for chunk in chunks for row in chunk]))
            (work / "part.json").rename(path)


class _Images:
    """The rendered images and captions of some domains, as one indexed set."""

    def __init__(self, work: Path, domains: tuple[str, ...]) -> None:
        self.arrays = [np.load(work / f"{d}.npy", mmap_mode="r") for d in domains]
        self.domains = domains

    def draw(self, rng: np.random.Generator, count: int, only: int | None = None) -> list[tuple[int, int]]:
        """Return (domain number, index) pairs, every domain equally often, or those of one domain."""
        which = (
            rng.permutation(np.arange(count) % len(self.domains)) if only is None else np.full(count, only)
        )
        return [(int(d), int(rng.integers(len(self.arrays[d])))) for d in which]

    def pixels(self, picks: list[tuple[int, int]]) -> Tensor:
        """Return the images as float32 (B, 3, size, size) in [-1, 1]."""
        images = np.stack([self.arrays[d][i] for d, i in picks])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


# --- one loop for every stage ----------------------------------------------------------------------------


def _fit(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    config: PretrainConfig,
    folder: Path,
    progress: bool = True,
) -> nn.Module:
    """AdamW with warm-up and cosine decay, EMA weights, a log and checkpoints; resumes; returns the EMA."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    start = _resume(folder, model, optimizer, ema)
    bar = tqdm(range(start, steps), folder.name, steps, initial=start, disable=not progress, mininterval=5)
    for step in bar:
        rate = learning_rate * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, learning_rate * 0.01)
        loss = loss_at(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise DasdError(f"{folder.name}: gradient {norm} at step {step}; lower the learning rate.")
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if (step + 1) % config.log_every == 0:
            _append(folder / "log.jsonl", {"step": step + 1, "loss": loss.item(), "time": time.time()})
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
            _checkpoint(folder, step + 1, model, optimizer, ema)
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False)


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(row) + "\n")


def _checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.AdamW, ema: EMAModel
) -> None:
    """Write one safetensors file and rename it: a broken write leaves the old one."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for i, (shadow, parameter) in enumerate(zip(ema.shadow_params, model.parameters(), strict=True)):
        tensors[f"ema.{i}"] = shadow.contiguous()
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "part.safetensors", metadata={"step": str(step)})
    (folder / "part.safetensors").rename(folder / "last.safetensors")
    (folder / "step.json").write_text(json.dumps({"step": step}))


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.AdamW, ema: EMAModel) -> int:
    """Load the last checkpoint if there is one; return the number of steps done."""
    path = folder / "last.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, parameter in enumerate(model.parameters()):
        ema.shadow_params[i] = tensors[f"ema.{i}"]
        prefix = f"optimizer.{i}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state[parameter] = state
    ema.optimization_step = int(tensors["optimizer.0.step"].item())
    return ema.optimization_step


# --- tokenizer and CLIP ----------------------------------------------------------------------------------


def train_tokenizer(config: PretrainConfig, work: Path, progress: bool = True) -> None:
    """Train CLIP's byte-pair encoding on the captions; every byte is in it, so nothing is unknown."""
    folder = work / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=config.vocab_size, initial_alphabet=alphabet, min_frequency=20,
                                  end_of_word_suffix="</w>", show_progress=False)  # fmt: skip
    bpe.train_from_iterator(_words(work), trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m.split()) if isinstance(m, str) else tuple(m) for m in learned["merges"]]
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)


def _words(work: Path) -> Iterator[str]:
    """Yield every word of the captions on its own, as CLIP's pre-tokenizer splits them."""
    for domain in toyworld.DOMAINS:
        for row in json.loads((work / f"{domain}.json").read_text())[:4000]:
            for caption in row["captions"]:
                yield from caption.replace(",", " , ").replace("-", " - ").replace("'", " ' ").split()
        rng = np.random.default_rng(0)
        for _ in range(200):
            yield from captions.bare_prompt(domain, rng).replace("-", " - ").split()


def clip_model(config: PretrainConfig, vocab_size: int) -> CLIPModel:
    """Return an untrained CLIP of the configured size."""
    text, vision = config.clip_width
    end = vocab_size - 1
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": vocab_size, "hidden_size": text, "intermediate_size": 4 * text,
                "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 77,
                "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, "projection_dim": 128,
            },
            vision_config={
                "hidden_size": vision, "intermediate_size": 4 * vision, "num_hidden_layers": 4,
                "num_attention_heads": 4, "image_size": config.resolution, "patch_size": 8,
                "projection_dim": 128,
            },
            projection_dim=128,
        )
    )  # fmt: skip


def train_clip(config: PretrainConfig, work: Path, progress: bool = True) -> CLIPModel:
    """Contrastive training on all domains; a text is right for every image with its attributes."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(config.seed)
    model = clip_model(config, len(tokenizer))
    images = _Images(work, toyworld.DOMAINS)
    rows = [json.loads((work / f"{d}.json").read_text()) for d in toyworld.DOMAINS]

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        # every other batch is of one domain: to tell a harbor from a river is harder than from a portrait
        picks = images.draw(rng, config.clip_batch_size, only=None if step % 2 else step // 2 % len(rows))
        texts, keys, bare = zip(*(_text(toyworld.DOMAINS[d], rows[d][i], rng) for d, i in picks), strict=True)
        pixels = images.pixels(picks)
        pixels = pixels * torch.from_numpy(rng.uniform(0.9, 1.1, (len(picks), 1, 1, 1))).float()
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            out = model(pixel_values=pixels, **tokens)
        return _contrastive(out.logits_per_text.float(), keys, bare)

    return _fit(model, loss_at, config.clip_steps, 1e-3, config, work / "clip", progress)


def _text(domain: str, row: dict, rng: np.random.Generator) -> tuple[str, tuple, bool]:
    """Return (text, what makes two images the same to it, whether it names the domain only)."""
    key = (domain, *sorted(row["attributes"].items()))
    if rng.random() < 0.08:
        return captions.bare_prompt(domain, rng), key, True
    return str(rng.choice(row["captions"])), key, False


def _contrastive(logits: Tensor, keys: tuple, bare: tuple) -> Tensor:
    """Symmetric cross-entropy with several right answers; logits (texts, images)."""
    same = torch.tensor([[a == b for b in keys] for a in keys])
    domain = torch.tensor([[a[0] == b[0] for b in keys] for a in keys])
    right = torch.where(torch.tensor(bare)[:, None], domain, same).float()
    to_image = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
    to_text = F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))
    return (to_image + to_text) / 2


# --- VAE -------------------------------------------------------------------------------------------------


def train_vae(config: PretrainConfig, work: Path, progress: bool = True) -> AutoencoderKL:
    """L1 + MSE + edges + a little KL, on crops first; latents are then scaled to unit variance a channel."""
    torch.manual_seed(config.seed)
    levels = len(config.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=config.resolution,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)
    images = _Images(work, toyworld.DOMAINS)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        crops = step < config.vae_crop_steps
        picks = images.draw(rng, config.vae_batch_size * (2 if crops else 1))
        pixels = images.pixels(picks)
        if crops:
            top, left = rng.integers(0, config.resolution // 2 + 1, 2)
            pixels = pixels[..., top : top + config.resolution // 2, left : left + config.resolution // 2]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return reconstruction_loss(decoded.float(), pixels) + config.kl_weight * kl

    vae = _fit(vae, loss_at, config.vae_steps, 1e-3, config, work / "vae", progress)
    return normalise_latents(vae, images)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1, squared error and L1 of the image gradients; (B, 3, h, w) in [-1, 1]."""
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: _Images) -> AutoencoderKL:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions around the latents.

    Latents then have mean 0 and deviation 1 in every channel, and `scaling_factor` is 1.
    """
    picks = images.draw(np.random.default_rng(0), 1024)
    moments = [vae.encode(images.pixels(picks[i : i + 64])).latent_dist.mean for i in range(0, 1024, 64)]
    latents = torch.cat(moments)  # (1024, 4, h, w)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()  # log-variance of the scaled latents
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[None, :, None, None]
    return vae


# --- UNet ------------------------------------------------------------------------------------------------


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
def _encode_paintings(config: PretrainConfig, work: Path, progress: bool) -> Tensor:
    """Return the latent means of the paintings, (n, 4, h, w), cached beside the images."""
    path = work / "painting_latents.safetensors"
    if not path.exists():
        vae = train_vae(config, work, progress).to(memory_format=torch.channels_last)
        images = _Images(work, ("painting",))
        count, parts = len(images.arrays[0]), []
        for start in tqdm(range(0, count, 100), "latents", disable=not progress):
            pixels = images.pixels([(0, i) for i in range(start, min(start + 100, count))])
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encode(pixels).latent_dist.mean.float())
        save_file({"latents": torch.cat(parts).contiguous()}, work / "part.latents")
        (work / "part.latents").rename(path)
    return load_file(path)["latents"]


def train_unet(config: PretrainConfig, work: Path, progress: bool = True) -> UNet2DConditionModel:
    """Noise prediction on paintings with min-SNR weights and 10 % empty prompts."""
    latents = _encode_paintings(config, work, progress)
    rows = json.loads((work / "painting.json").read_text())
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text_encoder = _text_encoder(train_clip(config, work, progress))
    alphas = noise_scheduler().alphas_cumprod
    torch.manual_seed(config.seed)
    unet = unet_model(config).to(memory_format=torch.channels_last)

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

    return _fit(unet, loss_at, config.unet_steps, 1e-3, config, work / "unet", progress)


def _caption_or_none(texts: list[str], rng: np.random.Generator, dropout: float) -> str:
    return "" if rng.random() < dropout else str(rng.choice(texts))


def _text_encoder(clip: CLIPModel) -> CLIPTextModel:
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


# --- assembly --------------------------------------------------------------------------------------------


def assemble(config: PretrainConfig, work: Path, progress: bool = True) -> Path:
    """Write the parts as a `StableDiffusionPipeline` folder with fp16 weights, and CLIP beside it."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    clip = train_clip(config, work, progress)
    processor = CLIPImageProcessor(size={"shortest_edge": config.resolution}, do_center_crop=False,
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=train_vae(config, work, progress),
        text_encoder=_text_encoder(clip),
        tokenizer=tokenizer,
        unet=train_unet(config, work, progress),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder, part = resolve(config.output_dir), work / "assembled"
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(part)
    for saved in (clip.half(), tokenizer, processor):
        saved.save_pretrained(part / "clip")
    (part / "pretrain.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(part, folder, dirs_exist_ok=True)
    return folder
