"""A label that is rare in the source and common in a target without labels: does drawing anew help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dasd_utils.papers.diffusionclip import adaptation, hspace
from dasd_utils.papers.diffusionclip.adaptation import Labelled
from dasd_utils.papers.diffusionclip.hspace import Known

AS_IT_IS, ESTIMATED, TRUE = "as it is", "balanced by the bottleneck", "balanced by true labels"
SHARE = "estimated share"


def trial(
    source: Known,
    target: Known,
    teach: Labelled,
    real: Labelled,
    shares: Mapping[str, Sequence[float]],
    seed: int,
) -> dict[str, float]:
    """Return how often classifiers are right on the target, by how their training set was drawn.

    teach: what `source.train` became, picture by picture; real: the pictures of `target.test`. shares: of the
    classes in alphabetical order, "source" for training and "target" for the test, where the drawing does not
    know them: a line through features of the source says them. Also what it says of the last class.
    """
    names = sorted(set(source.train_labels))
    wanted = {where: torch.tensor(values) for where, values in shares.items()}
    mine = hspace.resample(source.train_labels, names, wanted["source"], seed)
    asked = hspace.resample(target.test_labels, names, wanted["target"], 100 + seed)
    small, where = _of(teach, mine), _of(real, asked)
    line = hspace.fit(source.train[mine], small.labels)
    told, here = line.classify(source.test), line.classify(target.test[asked])
    found = hspace.label_shares(here, told, source.test_labels, names)
    train = {
        AS_IT_IS: small,
        ESTIMATED: _of(small, hspace.resample(small.labels, names, found, seed)),
        TRUE: _of(small, hspace.resample(small.labels, names, wanted["target"], seed)),
    }
    right = adaptation.answers(train, {"target": where}, seed)
    return {name: right[name, "target"][-1].mean().item() for name in train} | {SHARE: found[-1].item()}


def estimates(trials: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
    """Return (S,) of each number of S trials."""
    return {name: torch.tensor([each[name] for each in trials]) for name in trials[0]}


def _of(images: Labelled, rows: Sequence[int]) -> Labelled:
    return Labelled(images.pixels[rows], [images.labels[row] for row in rows])
