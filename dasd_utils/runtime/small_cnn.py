"""A small classifier of images, trained from nothing in seconds, to see what pictures teach."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dasd_utils.runtime.images import to_pixels

SIZE = 32  # pixels: enough to tell scenes, a quarter of the work of 64
EPOCHS = 20


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return images as (n, 3, 32, 32) in [-1, 1]."""
    size = (SIZE, SIZE)
    return to_pixels([image.convert("RGB").resize(size, Image.Resampling.BOX) for image in images])


class SmallCNN(nn.Module):
    """Three convolutions, each with max pooling, and two fully connected layers."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        pairs = ((3, 32), (32, 64), (64, 128))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.hidden = nn.Linear(128 * (SIZE // 8) ** 2, 128)
        self.head = nn.Linear(128, len(self.names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of pixels (n, 3, 32, 32)."""
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))

    @torch.no_grad()
    def classify(self, x: Tensor) -> list[str]:
        """Return the likeliest class of each image."""
        return [self.names[i] for part in x.split(256) for i in self(part).argmax(dim=1).tolist()]


def train(
    x: Tensor, labels: Sequence[str], seed: int = 0, epochs: int = EPOCHS,
    watch: Callable[[int, SmallCNN], None] = lambda epoch, network: None,
) -> SmallCNN:  # fmt: skip
    """Return a network trained on pixels (n, 3, 32, 32) and labels; `watch` gets it after each epoch."""
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"A classifier needs two classes, not {len(names)}.")
    target = torch.tensor([names.index(label) for label in labels])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the global generator stays untouched
        torch.manual_seed(seed)
        network = SmallCNN(names)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(len(x), generator=generator).split(32):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), target[rows]).backward()
                optimizer.step()
            watch(epoch, network)
    return network.eval().requires_grad_(False)


def synthetic_to_real(
    x: Tensor, labels: Sequence[str], real: Tensor, real_labels: Sequence[str], seed: int = 0
) -> Tensor:
    """Return which real images a network trained on x gets right; (m,) 1 or 0."""
    found = train(x, labels, seed).classify(real)
    return torch.tensor([float(a == b) for a, b in zip(found, real_labels, strict=True)])
