"""What CMMD a perfect model gets where each prompt is the caption of one held-out image; see README.md.

python benchmarks/paired_prompts.py
"""

from __future__ import annotations

from typing import Annotated

import common
import numpy as np
import torch
import typer
from torch import Tensor

from dasd_utils import evaluation, metrics, toyworld
from dasd_utils.config import Config

WORLD_SEED = 300  # no training and no other evaluation sees these renders
ESTIMATES = ("all pairs", "without a sample's own image")


def pairs(domain: str, count: int, scorer: evaluation.Scorer) -> tuple[Tensor, Tensor]:
    """Return CLIP features (n, d) of renders, and of another of each, which shows what its caption tells."""
    scenes = [(domain, WORLD_SEED, i) for i in range(count)]
    shown = [toyworld.attributes(*scene) for scene in scenes]
    told = [toyworld.captions_with_mentions(*scene, 1)[0][1].items() for scene in scenes]
    others = [next((j for j in (*range(i + 1, count), *range(i)) if told[i] <= shown[j].items()), None)
              for i in range(count)]  # fmt: skip
    features = scorer.embed([toyworld.draw(*scene) for scene in scenes])
    found = [i for i in range(count) if others[i] is not None]
    return features[found], features[[others[i] for i in found]]


def estimates(samples: Tensor, heldout: Tensor) -> tuple[float, float]:
    """Return the CMMD of n pairs by all cross terms, and without those of a sample and its own image."""
    own = metrics.cmmd_kernel(samples, heldout).diagonal().mean().item()
    across, n = metrics.cmmd_kernel(samples, heldout).mean().item(), len(samples)
    every = metrics.cmmd(samples, heldout)
    return every, every + 2 * (own - across) / (n - 1)


def main(
    renders: Annotated[int, typer.Option(help="of a domain, of which each draw takes some")] = 2000,
    draws: Annotated[int, typer.Option(min=2)] = 200,
    threads: int = 1,
) -> None:
    """Print a table and write data/results/bench_paired_prompts.json."""
    torch.set_num_threads(threads)
    scorer, rows = evaluation.load_scorer(Config.setup("tiny"), "cpu"), []
    for domain in ("satellite", "xray"):
        samples, heldout = pairs(domain, renders, scorer)
        for n in (64, 200):
            chosen = [np.random.default_rng([i, n]).permutation(len(samples))[:n] for i in range(draws)]
            found = np.array([estimates(samples[rows], heldout[rows]) for rows in chosen])
            for name, values in zip(ESTIMATES, found.T, strict=True):
                half = 1.96 * values.std(ddof=1) / draws**0.5
                mean = common.Measure(values.mean(), values.mean() - half, values.mean() + half)
                rows.append({"domain": domain, "images": n, "estimate": name, "n": draws, "cmmd": mean})
    print(common.table(rows, {"domain": "", "images": "", "estimate": "", "cmmd": ".3f"}))
    print(common.save("paired_prompts", {"machine": common.machine(threads), "renders": renders}, rows))


if __name__ == "__main__":
    typer.run(main)
