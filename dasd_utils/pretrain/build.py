"""Build `data/tiny-sd` from the toy world, in the layout of diffusers: its networks, one training each.

Tokenizer, VAE and CLIP see every domain, the UNet paintings only: adaptation has to close this gap. A strict
base sees paintings, their captions and everyday sentences alone, of animals, people, food, things and ideas.
These name no other domain, but share words with captions of others (street, photo, hospital, patient).
Stages are resumable; batch k of a stage is a function of (seed, k), so a resumed run sees the same data.
"""

import json
import logging
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from dasd_utils import losses, toyworld
from dasd_utils.config import DasdError, resolve
from dasd_utils.pretrain import shared
from dasd_utils.pretrain.shared import Images, PretrainConfig, fingerprint, fit, read_rows
from dasd_utils.runtime import files
from dasd_utils.toyworld.attribute_classifier import AttributeClassifier, AttributeTable

log = logging.getLogger(__name__)

# The autoencoder: 64 px images to 16 x 16 latents of unit variance in every channel.

MEASURED = 1024  # images by which latents are normalised


def vae_model(config: PretrainConfig) -> AutoencoderKL:
    """Return an untrained VAE without attention: what it learns on crops then holds for whole images."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(config.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(config.vae_channels),
        block_out_channels=config.vae_channels, layers_per_block=1, latent_channels=4, norm_num_groups=16,
        sample_size=config.resolution, scaling_factor=1.0, mid_block_add_attention=False)  # fmt: skip


def train_vae(config: PretrainConfig, work: Path) -> AutoencoderKL:
    """Train with L1, squared error, edges and a little KL; on crops, which are cheap, until the decay."""
    torch.manual_seed(config.seed)
    vae = vae_model(config)
    images = Images(work, config.domains)
    half = config.resolution // 2

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        crops = step < config.decay_starts(config.vae_steps)
        pixels = images.pixels(images.draw(rng, config.vae_batch_size * (2 if crops else 1)))
        if crops:
            top, left = rng.integers(0, half + 1, 2)
            pixels = pixels[..., top : top + half, left : left + half]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels.contiguous()).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        error = decoded.float() - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + config.kl_weight * kl

    return normalise_latents(fit(vae, loss_at, work / "vae", config.vae_steps, config), images)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Images) -> AutoencoderKL:
    """Make every latent channel of mean 0 and deviation 1, by the 1x1 convolutions around the latents."""
    picks = images.draw(np.random.default_rng(0), MEASURED)
    moments = [vae.encode(images.pixels(picks[i : i + 64])).latent_dist.mean for i in range(0, MEASURED, 64)]
    latents = torch.cat(moments)  # (MEASURED, 4, h, w)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()  # log-variance of the scaled latents
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation[None, :, None, None]
    return vae


# Tokenizer and CLIP: texts and images in one space.

BARE, FRAMED = 0.06, 0.10  # shares of texts that name the domain alone, or put a thing from elsewhere into it


def train_tokenizer(config: PretrainConfig, work: Path) -> None:
    """Train CLIP's byte-pair encoding on the captions; every byte is in it, so nothing is unknown."""
    folder = work / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Counter(_words(config, work))
    letters = {f"{word[-1]}</w>" for word in words}  # count as pieces of the vocabulary, as the alphabet does
    merges = shared.learned_merges(words, config.vocab_size - len(alphabet) - len(letters), min_frequency=20)
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(work / "tokenizer.part")
    (work / "tokenizer.part").replace(folder)


def _words(config: PretrainConfig, work: Path) -> Iterator[str]:
    """Yield every word of the texts on its own, in CLIP's letters for bytes."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for domain in config.domains:
        texts += [text for row in read_rows(work, domain)[:4000] for text, _ in row["captions"]]
        texts += [toyworld.captions.bare_prompt(domain, rng) for _ in range(1000)]
    texts += [toyworld.captions.sentence(rng) for _ in range(8000)]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    for text in texts:
        for word in text.replace(",", " , ").replace("-", " - ").replace("'", " ' ").split():
            yield from (piece for piece, _ in split(unicodedata.normalize("NFC", word).lower()))


def clip_model(config: PretrainConfig, vocab_size: int) -> CLIPModel:
    """Return an untrained CLIP of the configured size."""
    text, vision = config.clip_width
    end = vocab_size - 1
    common = {"num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 128}
    ids = {"max_position_embeddings": 77, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    sizes = {"vocab_size": vocab_size, "hidden_size": text, "intermediate_size": 4 * text}
    patches = {"image_size": config.resolution, "patch_size": 8}
    vision_config = common | patches | {"hidden_size": vision, "intermediate_size": 4 * vision}
    text_config = common | ids | sizes
    return CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=128))


@dataclass(frozen=True)
class Text:
    """A text, which suits the images of its domain that show every attribute it mentions."""

    text: str
    domain: str | None  # None: for no image
    mentioned: dict[str, str] = field(default_factory=dict)

    def suits(self, domain: str, attributes: dict[str, str]) -> bool:
        """Return whether an image of this domain shows all that the text mentions."""
        return self.domain == domain and self.mentioned.items() <= attributes.items()


class ClipWithHeads(nn.Module):
    """CLIP and, while it trains, one linear map from the image to its attributes."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.table = AttributeTable(toyworld.ATTRIBUTES)
        self.heads = nn.Linear(clip.config.projection_dim, self.table.size)

    def forward(self, pixels: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (texts, images) and attribute logits (images, values)."""
        out = self.clip(pixel_values=pixels, **tokens)
        projected = out.vision_model_output.pooler_output  # (images, d), before the norm
        return out.logits_per_text.float(), self.heads(projected).float()


def train_clip(config: PretrainConfig, work: Path) -> CLIPModel:
    """Train contrastively; texts suit every image that shows what they mention, everyday sentences none."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    torch.manual_seed(config.seed)
    clip = clip_model(config, len(tokenizer))
    clip.set_attn_implementation("eager")  # on CPUs half again as fast as the fused attention
    images = Images(work, config.domains)
    rows = [read_rows(work, domain) for domain in config.domains]
    model = ClipWithHeads(clip)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        # every other batch is of one domain: to tell a harbor from a river is harder than from a portrait
        picks = images.draw(rng, config.clip_batch_size, only=None if step % 2 else step // 2 % len(rows))
        scenes = [(config.domains[d], rows[d][i]["attributes"]) for d, i in picks]
        texts = [_text(config.domains[d], rows[d][i]["captions"], rng) for d, i in picks]
        texts += [Text(toyworld.captions.sentence(rng), None) for _ in range(config.everyday)]
        pixels = images.pixels(picks) * torch.from_numpy(rng.uniform(0.9, 1.1, (len(picks), 1, 1, 1))).float()
        tokens = tokenizer([t.text for t in texts], padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits, attributes = model(pixels, tokens)
        right = torch.tensor([[float(t.suits(*scene)) for scene in scenes] for t in texts])
        return contrastive(logits, right) + 0.5 * model.table.loss(attributes, scenes)

    return fit(model, loss_at, work / "clip", config.clip_steps, config).clip


def _text(domain: str, wordings: list[tuple[str, dict[str, str]]], rng: np.random.Generator) -> Text:
    draw = rng.random()
    if draw < BARE:
        return Text(toyworld.captions.bare_prompt(domain, rng), domain)
    if draw < BARE + FRAMED:
        return Text(toyworld.captions.framed(domain, rng), domain)
    text, mentioned = toyworld.captions.pick(wordings, rng)
    return Text(text, domain, mentioned)


def contrastive(logits: Tensor, right: Tensor) -> Tensor:
    """Return the symmetric cross-entropy with several right images of a text, or none; both (texts, images).

    A text that suits no image is a wrong answer for every image, and is left out of the other direction.
    """
    matched = right.sum(1) > 0
    to_image = F.cross_entropy(logits[matched], right[matched] / right[matched].sum(1, keepdim=True))
    to_text = F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))
    return (to_image + to_text) / 2


# The attribute classifier: trained on renders, and on what the VAE makes of them.
def train_attribute_classifier(config: PretrainConfig, work: Path) -> AttributeClassifier:
    """Cross-entropy of every attribute that a scene has, on augmented renders of all domains."""
    torch.manual_seed(config.seed)
    classifier = AttributeClassifier(toyworld.ATTRIBUTES)
    vae = train_vae(config, work)
    images = Images(work, toyworld.DOMAINS)
    rows = [read_rows(work, domain) for domain in toyworld.DOMAINS]

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 4, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        picks = images.draw(rng, config.reader_batch_size)
        scenes = [(toyworld.DOMAINS[d], rows[d][i]["attributes"]) for d, i in picks]
        pixels = images.pixels(picks)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():  # one in eight through the VAE: generated pictures have its marks too
                few = pixels[: len(pixels) // 8]
                decoded = vae.decode(vae.encode(few).latent_dist.mean).sample.float()
            pixels = _augment(torch.cat([decoded, pixels[len(few) :]]), rng, generator)
            logits = classifier(pixels)
        return classifier.table.loss(logits.float(), scenes)

    return fit(classifier, loss_at, work / "reader", config.reader_steps, config, fingerprint(work / "vae"))


def _augment(pixels: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Vary contrast, brightness, grain and place (by up to 3 pixels); (n, 3, h, w) in [-1, 1]."""
    shape = (len(pixels), 1, 1, 1)
    gain, shift = rng.uniform(0.85, 1.15, shape), rng.uniform(-0.1, 0.1, shape)
    grain = torch.from_numpy(rng.uniform(0, 0.06, shape)).float()
    grain = grain * torch.randn(pixels.shape, generator=generator)
    down, right = -rng.integers(-3, 4, 2)
    moved = F.pad(pixels, (3, 3, 3, 3), mode="replicate").roll((down, right), (2, 3))[..., 3:-3, 3:-3]
    return moved * torch.from_numpy(gain).float() + torch.from_numpy(shift).float() + grain


# The base UNet: it learns to paint, and sees nothing but paintings.
def unet_model(config: PretrainConfig) -> UNet2DConditionModel:
    """Return an untrained UNet: cross-attention at the second level and in the middle."""
    return UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=config.unet_channels, layers_per_block=1, norm_num_groups=32,
        sample_size=config.resolution // 4, cross_attention_dim=config.clip_width[0],
        attention_head_dim=4,  # the number of heads, as in Stable Diffusion 1.5
    )  # fmt: skip


def noise_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip


@torch.no_grad()
def _encode_paintings(vae: AutoencoderKL, work: Path, config: PretrainConfig) -> Tensor:
    """Return the latent means of the paintings, (n, 4, h, w), cached beside the images for this VAE."""
    path = work / f"painting_latents-{fingerprint(work / 'vae')}.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    images, parts = Images(work, ("painting",)), []
    for batch in torch.arange(config.paintings).split(100):
        pixels = images.pixels([(0, i) for i in batch.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pixels).latent_dist.mean.float())
    latents = torch.cat(parts).contiguous()
    with files.atomic_write(path, "The latents") as part:
        save_file({"latents": latents}, part)
    return latents


def train_unet(config: PretrainConfig, work: Path) -> UNet2DConditionModel:
    """Noise prediction on paintings with min-SNR weights and a share of empty prompts."""
    vae, clip = train_vae(config, work), train_clip(config, work)
    latents = _encode_paintings(vae, work, config)
    rows = read_rows(work, "painting")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    text_encoder = text_tower(clip)
    text_encoder.set_attn_implementation("eager")
    scheduler = noise_scheduler()
    torch.manual_seed(config.seed)
    unet = unet_model(config)
    unet.set_attn_processor(AttnProcessor())  # on CPUs half again as fast as the fused attention

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 3, step])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        picks = rng.integers(len(latents), size=config.unet_batch_size)
        texts = []
        for i in picks:
            dropped = rng.random() < config.caption_dropout
            texts.append("" if dropped else toyworld.captions.pick(rows[i]["captions"], rng)[0])
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(picks),), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                condition = text_encoder(ids).last_hidden_state  # (B, 77, d)
            eps = unet(noisy, timesteps, condition).sample.float()
        return losses.noise_prediction(eps, noise, timesteps, scheduler.alphas_cumprod, min_snr_gamma=5.0)

    inputs = fingerprint(work / "vae", work / "clip")
    return fit(unet, loss_at, work / "unet", config.unet_steps, config, inputs)


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """Return CLIP's text tower as the model of its own that Stable Diffusion loads."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval().requires_grad_(False)


def pretrain(config: PretrainConfig, stages: Iterable[str] = ()) -> Path:
    """Run the stages, by default all, that are not done yet; return the folder of the finished base model.

    All take some two hours on two cores, and 2.5 GB in `config.work_dir`; stopped, they go on from there.
    Raises DasdError for an unknown stage, for a work folder of other settings, and for a strict base where
    the networks that score it are missing.
    """
    known = [stage for stage in STAGES if stage != "reader" or not config.strict]
    if unknown := set(stages) - set(known):
        raise DasdError(f"There is no pretraining stage {sorted(unknown)[0]!r}. Stages: {', '.join(known)}.")
    for weights in (resolve(EMBEDDED) / name / "model.safetensors" for name in SCORERS):
        if config.strict and not weights.exists():
            raise DasdError(f"{weights} is missing, and a strict base is scored by it. Bring it back by `git "
                            f"restore {EMBEDDED}`, or build it by `dasd pretrain`.")  # fmt: skip
    work = resolve(config.work_dir)
    settings = {k: v for k, v in asdict(config).items() if not k.endswith(("_dir", "_every"))}
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    path = work / "settings.json"
    before = {"strict": False} | files.read_object(path, "The settings") if path.exists() else {}
    for name, value in settings.items():
        if before.get(name, value) != value:
            raise DasdError(f"{work} was begun with other settings: {name} {before[name]!r}, now {value!r}. "
                            "Choose another work_dir, or delete it.")  # fmt: skip
    files.write_json(path, settings, "The settings")
    log.info("Work folder: %s. Ctrl-C stops; the same command goes on.", work)
    for stage in (s for s in known if not stages or s in stages):
        started = time.perf_counter()
        STAGES[stage](config, work)
        log.info("%s: %.0f s", stage, time.perf_counter() - started)
    return resolve(config.output_dir)


def assemble(config: PretrainConfig, work: Path) -> Path:
    """Write the parts as a `StableDiffusionPipeline` folder in fp16, with the SCORERS in it."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    clip = train_clip(config, work)
    processor = CLIPImageProcessor(size={"shortest_edge": config.resolution}, do_center_crop=False,
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=train_vae(config, work), unet=train_unet(config, work), scheduler=noise_scheduler(),
        text_encoder=text_tower(clip), tokenizer=tokenizer,
        feature_extractor=None, safety_checker=None, requires_safety_checker=False)  # fmt: skip
    made_by = {k: v for k, v in asdict(config).items() if not k.endswith("_dir")}
    folder = resolve(config.output_dir)
    with files.atomic_folder(folder, "The base model") as new:
        pipeline.to(dtype=torch.float16).save_pretrained(new)
        if config.strict:
            for name in SCORERS:
                shutil.copytree(resolve(EMBEDDED) / name, new / name)
        else:
            for saved in (clip.half(), tokenizer, processor):
                saved.save_pretrained(new / "clip")
            train_attribute_classifier(config, work).save(new / "reader")
        files.write_json(new / "pretrain.json", made_by, "The settings")
        if (folder / "README.md").exists():
            shutil.copy2(folder / "README.md", new)
    return folder


EMBEDDED, SCORERS = "data/tiny-sd", ("clip", "reader")  # whose networks score a strict base too
STAGES = {  # in order
    "render": shared.render_images, "describe": shared.describe_images, "tokenizer": train_tokenizer,
    "vae": train_vae, "clip": train_clip, "reader": train_attribute_classifier, "unet": train_unet,
    "assemble": assemble}  # fmt: skip
