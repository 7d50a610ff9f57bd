"""Tokenizer and CLIP: texts and images of all domains in one space."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dasd_utils import toyworld
from dasd_utils.pretrain.loop import fit
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.pretrain.world import Images, read_rows
from dasd_utils.toyworld import captions, everyday
from dasd_utils.toyworld.attribute_classifier import AttributeTable

BARE, FRAMED = 0.06, 0.10  # shares of texts that tell a domain alone, or put a thing from elsewhere into it


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
    tokenizer.save_pretrained(work / "tokenizer.part")
    (work / "tokenizer.part").replace(folder)


def _words(work: Path) -> Iterator[str]:
    """Yield every word of the texts on its own, as CLIP's pre-tokenizer splits them."""
    rng = np.random.default_rng(0)
    for domain in toyworld.DOMAINS:
        for row in read_rows(work, domain)[:4000]:
            for text, _ in row["captions"]:
                yield from _split(text)
        for _ in range(1000):
            yield from _split(captions.bare_prompt(domain, rng))
    for _ in range(8000):
        yield from _split(everyday.sentence(rng))


def _split(text: str) -> list[str]:
    return text.replace(",", " , ").replace("-", " - ").replace("'", " ' ").split()


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


@dataclass(frozen=True)
class Text:
    """What a text says: it is right for the images of its domain that show all it tells.

    What it merely rules out, such as one ship by "ships", does not count.
    """

    text: str
    domain: str | None  # None: for no image
    told: dict[str, str] = field(default_factory=dict)

    def suits(self, domain: str, attributes: dict[str, str]) -> bool:
        """Return whether an image of this domain with these attributes shows what the text says."""
        return self.domain == domain and self.told.items() <= attributes.items()


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


def train_clip(config: PretrainConfig, work: Path, progress: bool = True) -> CLIPModel:
    """Contrastive training on all domains; a text is right for every image that shows what it tells.

    Everyday sentences stand beside the captions and suit no image. A linear map that reads the attributes
    from the image tower shortens the training and is thrown away.
    """
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    torch.manual_seed(config.seed)
    clip = clip_model(config, len(tokenizer))
    clip.set_attn_implementation("eager")  # on CPUs half again as fast as the fused attention
    images = Images(work, toyworld.DOMAINS)
    rows = [read_rows(work, domain) for domain in toyworld.DOMAINS]
    model = ClipWithHeads(clip)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        # every other batch is of one domain: to tell a harbor from a river is harder than from a portrait
        picks = images.draw(rng, config.clip_batch_size, only=None if step % 2 else step // 2 % len(rows))
        scenes = [(toyworld.DOMAINS[d], rows[d][i]["attributes"]) for d, i in picks]
        texts = [_text(toyworld.DOMAINS[d], rows[d][i]["captions"], rng) for d, i in picks]
        texts += [Text(everyday.sentence(rng), None) for _ in range(config.everyday)]
        pixels = images.pixels(picks)
        pixels = pixels * torch.from_numpy(rng.uniform(0.9, 1.1, (len(picks), 1, 1, 1))).float()
        tokens = tokenizer([t.text for t in texts], padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits, attributes = model(pixels, tokens)
        right = torch.tensor([[float(t.suits(*scene)) for scene in scenes] for t in texts])
        return contrastive(logits, right) + 0.5 * model.table.loss(attributes, scenes)

    return fit(model, loss_at, config.clip_steps, config, work / "clip", progress).clip


def _text(domain: str, wordings: list[tuple[str, dict[str, str]]], rng: np.random.Generator) -> Text:
    draw = rng.random()
    if draw < BARE:
        return Text(captions.bare_prompt(domain, rng), domain)
    if draw < BARE + FRAMED:
        return Text(everyday.framed(domain, rng), domain)
    text, told = wordings[rng.integers(len(wordings))]
    return Text(text, domain, told)


def contrastive(logits: Tensor, right: Tensor) -> Tensor:
    """Symmetric cross-entropy with several right answers or none; both (texts, images).

    A text that suits no image is a wrong answer for every image, and asks for none itself.
    """
    asks = right.sum(1) > 0
    to_image = F.cross_entropy(logits[asks], right[asks] / right[asks].sum(1, keepdim=True))
    to_text = F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))
    return (to_image + to_text) / 2
