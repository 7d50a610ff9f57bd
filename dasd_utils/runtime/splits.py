"""Groups of duplicate images, and splits by content that keep each group together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix, csgraph

NEAR_DUPLICATE = 0.97  # correlation of thumbnails: copies that were recompressed, resized or relit are above
TILE = 2048  # thumbnails compared with as many others at once


def duplicate_groups(ids: Sequence[str], thumbnails: np.ndarray) -> np.ndarray:
    """Return a group number (n,) for each image; exact copies and near duplicates share one.

    Near duplicates are thumbnails (n, 32, 32) that correlate above NEAR_DUPLICATE, and all that such pairs
    connect. (A 64-bit difference hash, the usual way, takes different chest x-rays for duplicates.)
    """
    _, first, inverse = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
    near = first[_near_pairs(thumbnails[first])]
    row, column = np.concatenate([np.stack([np.arange(len(ids)), first[inverse]]), near], axis=1)
    graph = coo_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(len(ids), len(ids)))
    return csgraph.connected_components(graph, directed=False)[1]


def _near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Return (2, p): the pairs of thumbnails (n, 32, 32) that correlate above NEAR_DUPLICATE.

    Most pairs are ruled out by a bound that costs a sixteenth: <a, b> <= <Pa, Pb> + r_a r_b, with P the means
    over 4 x 4 pixels and r the norm of what they leave out.
    """
    parts = range(0, len(thumbnails), TILE)
    bound = np.concatenate([_bound(_unit(thumbnails[start : start + TILE])) for start in parts])
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for start in parts:
        for across in range(start, len(thumbnails), TILE):
            possible = bound[start : start + TILE] @ bound[across : across + TILE].T > NEAR_DUPLICATE - 1e-5
            row, column = np.divmod(np.flatnonzero(possible), possible.shape[1])
            row, column = row + start, column + across
            for some in np.array_split(np.flatnonzero(row < column), len(row) // TILE + 1):
                one, two = _unit(thumbnails[row[some]]), _unit(thumbnails[column[some]])
                exact = (one * two).sum(axis=1) > NEAR_DUPLICATE
                pairs.append(np.stack([row[some][exact], column[some][exact]]))
    return np.concatenate(pairs, axis=1)


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """Return thumbnails (n, 32, 32) as rows (n, 1024) of mean 0 and norm 1, float32."""
    flat = thumbnails.reshape(-1, 32 * 32).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _bound(flat: np.ndarray) -> np.ndarray:
    """Return P and r of `_near_pairs` as (n, 65): products of these rows are at least those of `flat`."""
    coarse = flat.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4)).reshape(-1, 64) / 4  # orthonormal
    missed = np.sqrt(np.maximum((flat**2).sum(axis=1) - (coarse**2).sum(axis=1), 0))
    return np.concatenate([coarse, missed[:, None]], axis=1)


def split_by_content(
    ids: Sequence[str], groups: Sequence[int], validation_fraction: float, test_fraction: float
) -> list[str]:
    """Return "train", "validation" or "test" for each image, the same for all images of a group.

    The smallest id (hash) of a group decides, hashed once more because the smallest of several is not
    uniform; so images added later move no other image to another split. Only a split that would stay empty,
    though its fraction is not 0, gets a group of the largest split.
    """
    leaders: dict[int, str] = {}
    for group, name in zip(groups, ids, strict=True):
        leaders[group] = min(name, leaders.get(group, name))
    parts = {}
    for group in sorted(leaders, key=leaders.__getitem__):
        place = int(hashlib.sha256(leaders[group].encode()).hexdigest()[:13], 16) / 16**13  # in [0, 1)
        heldout = "test" if place < test_fraction else "validation"
        parts[group] = heldout if place < test_fraction + validation_fraction else "train"
    for part, fraction in (("train", 1.0), ("validation", validation_fraction), ("test", test_fraction)):
        largest, size = Counter(parts.values()).most_common(1)[0]
        if fraction > 0 and part not in parts.values() and size > 1:
            parts[next(group for group in parts if parts[group] == largest)] = part
    return [parts[group] for group in groups]
