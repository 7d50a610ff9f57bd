"""What the UNet's bottleneck represents of a picture: a linear classifier on its features (h-space).

They are those of the base's mid block for a noised picture, averaged over space and draws of noise; arXiv
2210.10960 found directions in them to be linear in meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dasd_utils import models
from dasd_utils.papers import editing
from dasd_utils.papers.editing import DasdPipeline
from dasd_utils.runtime import processes

DECAY = 1e-2  # of the weights of a linear classifier, whose features have deviation 1


@torch.no_grad()
def features(
    pipeline: DasdPipeline, pictures: Sequence[Image.Image], timestep: int, draws: int = 4, seed: int = 0
) -> Tensor:
    """Return the base's features (n, C) of pictures noised to a timestep, the mean over draws of noise."""
    parts, size = pipeline.parts, pipeline.batch_size
    generator = torch.Generator().manual_seed(seed)
    computing = processes.autocast(pipeline.config.training.mixed_precision, parts.unet.device)
    found = []
    with models.lora_disabled(parts), computing:
        empty = models.encode_prompts(parts, [""]).to(parts.unet.dtype)
        for start in range(0, len(pictures), size):
            clean = editing.encode(parts, pictures[start : start + size])
            text = empty.expand(len(clean), -1, -1)
            times = torch.full((len(clean),), timestep, device=clean.device)
            rows = []
            for _ in range(draws):
                noise = torch.randn(clean.shape, generator=generator).to(clean)
                noisy = parts.noise_scheduler.add_noise(clean, noise, times)
                _, mid = models.unet_pass(parts.unet, noisy.to(text), times, text, num_target=0)
                rows.append(mid.float().mean(dim=(2, 3)))
            found.append(torch.stack(rows).mean(dim=0))
    return torch.cat(found).cpu()


@dataclass(frozen=True)
class Linear:
    """A linear classifier of features, normalised by the mean and deviation of its training set."""

    names: list[str]
    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)
    weights: Tensor  # (C + 1, classes), the last row is the bias

    def scores(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """Return logits (n, classes). mean: (C,) of x's own domain, to remove a shift of the domain."""
        normal = (x - (self.mean if mean is None else mean)) / self.deviation
        return F.pad(normal, (0, 1), value=1.0) @ self.weights

    def classify(self, x: Tensor, mean: Tensor | None = None) -> list[str]:
        """Return the most probable class of each row."""
        return [self.names[i] for i in self.scores(x, mean).argmax(dim=1).tolist()]


def fit(x: Tensor, labels: Sequence[str]) -> Linear:
    """Return the logistic regression of labels on features (n, C)."""
    names = sorted(set(labels))
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    rows = F.pad((x - mean) / deviation, (0, 1), value=1.0)
    target = torch.tensor([names.index(label) for label in labels])
    weights = torch.zeros(rows.shape[1], len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weights, target) + DECAY * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Linear(names, mean, deviation, weights.detach())


@dataclass(frozen=True)
class LabelledFeatures:
    """Features and labels of one domain, to train and to test on."""

    train: Tensor  # (n, C)
    train_labels: list[str]
    test: Tensor  # (m, C)
    test_labels: list[str]


def transfer(source: LabelledFeatures, target: LabelledFeatures) -> dict[str, Tensor]:
    """Return which test rows are classified right, 1 or 0, by the domain of training and of test.

    "centred": features of the target less their own training mean. "ceiling": trained on the target's labels.
    """
    fitted, ceiling = fit(source.train, source.train_labels), fit(target.train, target.train_labels)
    on_target = target.test_labels
    predicted = {
        "source, on source": (fitted.classify(source.test), source.test_labels),
        "source, on target": (fitted.classify(target.test), on_target),
        "source, on target, centred": (fitted.classify(target.test, target.train.mean(dim=0)), on_target),
        "ceiling, on target": (ceiling.classify(target.test), on_target),
    }
    pairs = {name: zip(own, labels, strict=True) for name, (own, labels) in predicted.items()}
    return {name: torch.tensor([float(a == b) for a, b in both]) for name, both in pairs.items()}
