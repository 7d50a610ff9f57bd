"""Near duplicates of images, found by their thumbnails, and splits that part no such group."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from dasd_utils.runtime.files import DiskArray

AT_ONCE = 1024  # thumbnails compared with as many others
AXES, SAMPLE = 47, 128  # along which thumbnails are compared first, and from how many of them they come


def duplicate_groups(ids: Sequence[str], thumbnails: DiskArray | np.ndarray, threshold: float) -> np.ndarray:
    """Return a group number (n,) for each image; exact copies and near duplicates share one.

    A near duplicate correlates above the threshold with its group's first image by id: pairs do not chain.
    """
    first, inverse = np.unique(as_array(ids), return_index=True, return_inverse=True)[1:]
    if threshold >= 1:  # rounding takes products of equal vectors beyond it
        return inverse
    likeness = Likeness(thumbnails)
    groups = np.full(len(first), -1)
    for block in blocks(len(first)):
        rows = block[groups[block] < 0]
        whole = likeness.vectors(first[rows])
        for row, near in zip(rows, whole @ whole.T > threshold, strict=True):
            if groups[row] < 0:
                groups[rows[near & (groups[rows] < 0)]] = row
                groups[row] = row
        leaders = rows[groups[rows] == rows]
        free = np.flatnonzero(groups < 0)  # all of them come later
        match = likeness.first_match(first[leaders], first[free], threshold)
        groups[free[match >= 0]] = leaders[match[match >= 0]]
    return groups[inverse]


def near_copies(own: DiskArray, others: DiskArray, threshold: float) -> np.ndarray:
    """Return which thumbnails of `own` (n,) correlate above the threshold with one of the others."""
    parts = (part[some] for part in (own, others) for some in blocks(len(part)))
    seen = Likeness(DiskArray(own.shape[1:], parts))
    copies = np.zeros(len(own), dtype=bool)
    if threshold >= 1:
        return copies
    for block in blocks(len(own), len(own) + len(others)):
        copies |= seen.first_match(block, np.arange(len(own)), threshold) >= 0
    return copies


def as_array(ids: Sequence[str]) -> np.ndarray:
    """Return content hashes as an array of bytes, a quarter of what texts take."""
    return np.fromiter((name.encode() for name in ids), "S64", len(ids))


def blocks(*limits: int) -> Iterator[np.ndarray]:
    """Yield the numbers of a range in arrays of AT_ONCE or fewer."""
    numbers = range(*limits)
    return (np.array(numbers[start : start + AT_ONCE]) for start in range(0, len(numbers), AT_ONCE))


class Likeness:
    """How thumbnails (n, 32, 32) correlate without most of what all of them share.

    Images of one framing (fundus, microscope, aligned faces) correlate by that alone. Few images do not show
    it yet, and without all of it copies would differ by their noise.

    In memory are short vectors (n, AXES + 1) of norm 1: the coordinates along the first principal axes of a
    sample, and the length of the rest. Their product is never less than the correlation, by the inequality
    of Cauchy and Schwarz for the rest; only where it is above the threshold are whole thumbnails compared.
    """

    def __init__(self, thumbnails: DiskArray | np.ndarray) -> None:
        self._thumbnails = thumbnails
        self._shared = np.zeros(1, np.float32)
        count = len(thumbnails)
        total = sum(self.vectors(rows).sum(axis=0, dtype=float) for rows in blocks(count))
        self._shared = np.float32(0.8 / (count + 4) * total)
        sample = self.vectors(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
        axes = np.linalg.svd(sample, full_matrices=False)[2][:AXES].T
        self._short = np.zeros((count, axes.shape[1] + 1), np.float32)
        for rows in blocks(count):
            short = self.vectors(rows) @ axes
            rest = np.sqrt(np.maximum(1 - (short**2).sum(axis=1, keepdims=True), 0))
            self._short[rows] = np.hstack([short, rest])

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return some thumbnails as vectors (rows, 1024) of norm 1; their products are correlations."""
        flat = self._thumbnails[rows].reshape(len(rows), math.prod(self._thumbnails.shape[1:]))
        flat = _unit(flat.astype(np.float32))
        return _unit(flat - self._shared)

    def first_match(self, rows: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
        """Return (others,): the place in rows of the first that correlates above the threshold, or -1."""
        found = np.full(len(others), -1)
        short = self._short[rows]
        whole = self.vectors(rows)
        for block in blocks(len(others)):
            part = others[block]
            possible = np.flatnonzero(short @ self._short[part].T > threshold - 1e-4)  # rounding takes less
            some = np.unique(possible // len(part))
            few = np.unique(possible % len(part))
            near = whole[some] @ self.vectors(part[few]).T > threshold
            is_match = near.any(axis=0)
            found[block[few[is_match]]] = some[near[:, is_match].argmax(axis=0)] if is_match.any() else -1
        return found


def _unit(flat: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and norm 1."""
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def split_by_content(
    ids: Sequence[str], groups: Sequence[int], validation_fraction: float, test_fraction: float
) -> list[str]:
    """Return "train", "validation" or "test" for each image, the same for all images of a group.

    The smallest id of a group decides, hashed once more as it is not uniform; so images added later move no
    other. Only a split that chance leaves with too little gets some of another's: see `least`.
    """
    leaders: dict[int, str] = {}
    for group, name in zip(groups, ids, strict=True):
        leaders[group] = min(name, leaders.get(group, name))
    parts = {}
    for group in sorted(leaders, key=leaders.__getitem__):
        place = int(hashlib.sha256(leaders[group].encode()).hexdigest()[:13], 16) / 16**13  # in [0, 1)
        heldout = "test" if place < test_fraction else "validation"
        parts[group] = heldout if place < test_fraction + validation_fraction else "train"
    share = (1 - validation_fraction - test_fraction) * len(parts)
    train, test = (int(0.75 * share), 2) if len(parts) >= 10 else (1, 1)
    least = {"train": train, "validation": int(validation_fraction > 0), "test": test * (test_fraction > 0)}
    for part in least:
        while (counts := Counter(parts.values()))[part] < least[part]:
            donor = max(least, key=lambda each: counts[each] - least[each])
            if counts[donor] <= least[donor]:
                break
            parts[next(group for group in parts if parts[group] == donor)] = part
    return [parts[group] for group in groups]
