"""What a picture shows: a small network that reads scene and attributes, trained on renders of the toy world.

A CLIP score asks whether text and image are near; this asks whether the picture has two ships.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

Attributes = dict[str, str]
SIZE = 64  # pixels
ABSENT = -100  # the label, ignored by `F.cross_entropy`, of an attribute that a scene does not have


class AttributeTable:
    """The attributes of all domains as columns of one matrix of logits (n, size)."""

    def __init__(self, attributes: dict[str, dict[str, Sequence[str]]]) -> None:
        self.columns: dict[str, dict[str, slice]] = {}
        self.values = {d: {name: list(v) for name, v in t.items()} for d, t in attributes.items()}
        self.size = 0
        for domain, table in self.values.items():
            self.columns[domain] = {}
            for name, values in table.items():
                self.columns[domain][name] = slice(self.size, self.size + len(values))
                self.size += len(values)

    def loss(self, logits: Tensor, scenes: Sequence[tuple[str, Attributes]]) -> Tensor:
        """Return the mean cross-entropy over the attributes that the scenes (domain, shown) have."""
        total, count = logits.new_zeros(()), 0
        for domain, table in self.values.items():
            for name, values in table.items():
                labels = torch.tensor(
                    [values.index(a[name]) if d == domain and name in a else ABSENT for d, a in scenes]
                )
                part = logits[:, self.columns[domain][name]]
                total = total + F.cross_entropy(part, labels, reduction="sum")
                count += int((labels != ABSENT).sum())
        return total / max(count, 1)

    def read(self, logits: Tensor, domain: str) -> list[Attributes]:
        """Return the likeliest value of every attribute of the domain, for each row."""
        best = {
            name: [self.values[domain][name][i] for i in logits[:, where].argmax(dim=1).tolist()]
            for name, where in self.columns[domain].items()
        }
        return [{name: values[i] for name, values in best.items()} for i in range(len(logits))]


class AttributeClassifier(nn.Module):
    """A small residual network: images (n, 3, 64, 64) in [-1, 1] to attribute logits (n, size)."""

    def __init__(self, attributes: dict[str, dict[str, Sequence[str]]], width: int = 16) -> None:
        super().__init__()
        self.width, self.table = width, AttributeTable(attributes)
        channels = [width, 2 * width, 4 * width, 5 * width, 5 * width]
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        stages: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            stages += [_Block(before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(channels[-1] * 4)
        self.head = nn.Linear(channels[-1] * 4, self.table.size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (n, size)."""
        features = self.stages(self.stem(pixels))  # (n, c, 2, 2): left and right stay apart
        return self.head(self.norm(features.flatten(1)))

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], domain: str) -> list[Attributes]:
        """Return a value of every attribute of the domain, also of those that the scene does not have."""
        squares = [im.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for im in images]
        rows = np.stack([np.asarray(square) for square in squares])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1
        logits = torch.cat([self(part) for part in pixels.split(256)])
        return self.table.read(logits, domain)

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"width": self.width, "attributes": self.table.values}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Return the classifier of a folder, None if the folder has none (a base of another world)."""
        path = Path(folder)
        if not (path / "config.json").exists():
            return None
        classifier = cls(**json.loads((path / "config.json").read_text()))
        classifier.load_state_dict({k: v.float() for k, v in load_file(path / "model.safetensors").items()})
        return classifier.eval().requires_grad_(False)


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(4, channels), nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x, (n, channels, h, w)."""
        inner = self.conv1(F.silu(self.first(x)))
        return x + self.conv2(F.silu(self.second(inner)))
