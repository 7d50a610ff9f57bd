"""A domain from hub id, folder or toy world: images, captions, splits by content, and a report on them."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from dasd_utils import toyworld
from dasd_utils.config import Config, DasdError, DataConfig, DomainConfig, resolve, with_token
from dasd_utils.runtime import files, folders, images

SPLITS = ("train", "validation", "test")
TOY_SEEDS = {"train": 1, "validation": 2, "test": 3}  # independent of Config.seed: one world for all runs
AT_ONCE = 2048  # prompts through the tokenizer, thumbnails compared with all others


@dataclass
class DomainData:
    """One split of a domain; `data[i]["image"]` is RGB, square, `config.model.resolution` pixels wide."""

    config: DomainConfig
    split: str  # "train", "validation" or "test"
    images: Sequence[Image.Image]  # read from disk, or drawn, at each access
    captions: list[list[str]]  # one or more an image; [""] where none was found
    ids: list[str]  # hash of each image's pixels before the crop
    sizes: list[tuple[int, int]]  # (width, height) before the crop, pixels
    thumbnails: np.ndarray  # (n, 32, 32) uint8 grey, compared to find near duplicates
    labels: list[str] | None = None
    attributes: list[dict[str, str]] | None = None  # ground truth of the toy world
    mentioned: list[list[dict[str, str]]] | None = None  # those of them that each caption names
    broken: list[str] = field(default_factory=list)  # rows left out because they cannot be read
    duplicates_of_test: int = 0  # images left out because the named test split has them too

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "captions": self.captions[index],
            "label": self.labels[index] if self.labels else None,
            "attributes": self.attributes[index] if self.attributes else None,
        }

    def prompt(self, index: int, choice: float = 0.0) -> str:
        """Return one caption of an image behind the domain's token; choice in [0, 1) picks among several."""
        captions = self.captions[index]
        return with_token(captions[int(choice * len(captions))], self.config.token)


def load_domain(domain: DomainConfig, config: Config, split: str = "train") -> DomainData:
    """Return one split of a domain in an order by content; DasdError for what is not there or unreadable.

    "train" holds at most `domain.num_images` images. "test" is the split that the domain names, or held out
    from the train split by content hash as "validation" always is; near duplicates stay in one split.
    """
    if split not in SPLITS:
        raise DasdError(f"There is no split {split!r}. Splits: {', '.join(SPLITS)}.")
    if domain.num_images < 1:
        raise DasdError(f"num_images of domain {domain.name} is {domain.num_images}; it must be at least 1.")
    load = _load_toyworld if domain.data.startswith("toyworld:") else _load_rows
    return load(domain, config, split)


def _load_toyworld(domain: DomainConfig, config: Config, split: str) -> DomainData:
    world, seed, size = domain.data.removeprefix("toyworld:"), TOY_SEEDS[split], config.model.resolution
    if world not in toyworld.DOMAINS:
        raise DasdError(f"The toy world has no domain {world!r}. Domains: {', '.join(toyworld.DOMAINS)}.")
    counts = (domain.num_images, config.training.validation_images, config.evaluation.num_heldout)
    count = counts[SPLITS.index(split)]
    if not count:
        raise DasdError(f"The {split} split is empty: set validation_images and num_heldout to 1 or more.")
    attributes = [toyworld.attributes(world, seed, i) for i in range(count)]
    variants = [toyworld.captions_with_mentions(world, seed, i) for i in range(count)]
    columns = {"captions": [[text for text, _ in each] for each in variants]}
    columns |= {name: [scene.get(name, "") for scene in attributes] for name in toyworld.ATTRIBUTES[world]}
    for name in filter(None, (domain.caption_column, domain.label_column)):
        if name not in columns:
            raise DasdError(f"{domain.data} has no column {name!r}. Columns: {', '.join(columns)}.")
    is_constant = domain.label_captions or domain.caption is not None
    column = domain.caption_column or (None if is_constant else "captions")
    labels = columns[domain.label_column or "scene"]
    pictures = images.LazyImages(functools.partial(toyworld.draw, world, seed, size=size), count)
    bar = files.short_bar(pictures, f"drawing {world}", unit="image")
    drawn = [(images.content_hash(picture), images.thumbnail(picture)) for picture in bar]
    return DomainData(
        domain, split, pictures,
        captions=_captions(domain, columns.get(column), labels, count),
        ids=[name for name, _ in drawn],
        sizes=[(size, size)] * count,
        thumbnails=np.stack([small for _, small in drawn]),
        labels=labels,
        attributes=attributes,
        mentioned=[[named for _, named in each] for each in variants] if column == "captions" else None,
    )  # fmt: skip


def _load_rows(domain: DomainConfig, config: Config, split: str) -> DomainData:
    """Check columns and captions of all splits in use before reading the pixels, which takes long."""
    is_test = split == "test" and domain.test_split is not None
    rows, captions, labels = _open(domain, domain.test_split if is_test else domain.train_split)
    test = _open(domain, domain.test_split) if domain.test_split and not is_test else None
    window = folders.find_window(domain, rows)
    found = _inspect(domain, config, rows, captions, window)
    picks, copies = found.readable(), 0
    if not is_test:
        test_images = _inspect(domain, config, *test[:2], window) if test else None
        picks, copies = _pick_split(domain, config.data, found, test_images, split)
    picks = sorted(picks, key=lambda i: found.ids[i])
    picks = picks[: domain.num_images] if split == "train" else picks
    column, size = domain.image_column, config.model.resolution
    return DomainData(
        domain, split, images.cropped_images(rows.select(picks), column, size, window),
        captions=[captions[i] for i in picks],
        ids=[found.ids[i] for i in picks],
        sizes=[found.sizes[i] for i in picks],
        thumbnails=found.thumbnails[picks],
        labels=[labels[i] for i in picks] if labels else None,
        broken=found.broken,
        duplicates_of_test=copies,
    )  # fmt: skip


def _open(domain: DomainConfig, split: str) -> tuple[datasets.Dataset, list[list[str]], list[str] | None]:
    """Return the rows of one split of a data set, their captions and labels, before any image is read."""
    rows = folders.open_rows(domain, split)
    columns = rows.remove_columns([domain.image_column])
    labels = label_names(columns, domain.label_column) if domain.label_column else None
    values = columns[domain.caption_column][:] if domain.caption_column else None
    if domain.caption_file:
        folder = resolve(domain.data)
        names = folders.files_of_rows(rows, domain.image_column, folder)
        found = folders.match_rows(folders.read_metadata(resolve(domain.caption_file), "text"), names, folder)
        values = folders.as_columns([found.get(name, [{"text": None}]) for name in names])["text"]
    return rows, _captions(domain, values, labels, len(rows)), labels


def label_names(rows: datasets.Dataset, column: str) -> list[str]:
    """Return the label of each row, "" where it has none; of a list of labels "one, two"."""
    kind = getattr(rows.features[column], "feature", rows.features[column])  # of a list
    is_class = isinstance(kind, datasets.ClassLabel)
    name = kind.int2str if is_class else str
    missing = (None, -1) if is_class else (None,)
    lists = [folders.as_list(value) for value in rows[column][:]]
    return [", ".join(name(each) for each in values if each not in missing) for values in lists]


def _captions(
    domain: DomainConfig, values: Sequence[Any] | None, labels: list[str] | None, count: int
) -> list[list[str]]:
    """Return the sentences of each row: of the caption column, else of its label, else the constant one."""
    table = domain.label_captions if labels else {}
    if values is None and not table and domain.caption is None:
        raise DasdError(f"Domain {domain.name} has no captions: set its caption_column or caption_file, its "
                        "label_column with label_captions, or one caption for all.")  # fmt: skip
    unknown = [label for label in labels if label not in table] if table else []
    if unknown:
        raise DasdError(f"The label {unknown[0]!r} of domain {domain.name} is not in its label_captions, "
                        f"which has {', '.join(table)}.")  # fmt: skip
    fallback = [[table[label]] for label in labels] if table else [[domain.caption or ""]] * count
    if values is None:
        return fallback
    place = f"The column or file {domain.caption_file or domain.caption_column!r} of domain {domain.name}"
    captions = [_sentences(place, value) or other for value, other in zip(values, fallback, strict=True)]
    if not any(any(sentences) for sentences in captions):
        raise DasdError(f"{place} has no caption.")
    return captions


def _sentences(place: str, value: Any) -> list[str]:
    values = folders.as_list(value)
    if not all(v is None or isinstance(v, str) for v in values):
        raise DasdError(f"{place} holds {value!r}; a caption is a sentence or a list of sentences.")
    texts = [v.strip().lstrip("\ufeff").strip() for v in values if v]  # a byte order mark is no text
    return [text for text in texts if text]


def _inspect(
    domain: DomainConfig, config: Config, rows: datasets.Dataset, captions: list[list[str]],
    window: images.Window | None,
) -> images.Inspection:  # fmt: skip
    """Read the images of rows; a table's further rows of one image only add their captions to its first."""
    found = images.inspect_rows(rows, domain.image_column, window)
    if found.broken and not config.data.skip_corrupt:
        raise DasdError(f"{len(found.broken)} of {len(found.ids)} images of {domain.data} cannot be read, "
                        f"like {found.broken[0]}. Repair or remove them, or set skip_corrupt.")  # fmt: skip
    first: dict[tuple[str, str], int] = {}
    for row in found.readable():
        place = first.setdefault((found.names[row], found.ids[row]), row)
        if place != row:
            captions[place] = captions[place] + [c for c in captions[row] if c not in captions[place]]
            found.ids[row] = ""
    return found


def _pick_split(
    domain: DomainConfig, settings: DataConfig, found: images.Inspection,
    test: images.Inspection | None, split: str,
) -> tuple[list[int], int]:  # fmt: skip
    """Return the readable rows of the split, and how many more the named test split has too."""
    rows = np.array(found.readable(), dtype=int)
    if len(rows) < 2:
        raise DasdError(f"{domain.data} (domain {domain.name}) has {len(rows)} image to train on; it takes "
                        f"two or more. Images that cannot be read: {len(found.broken)}.")  # fmt: skip
    copies = np.zeros(len(rows), dtype=bool)
    if test:
        others = test.readable()
        flat = _comparable(np.concatenate([found.thumbnails[rows], test.thumbnails[others]]))
        near = [(block @ flat[len(rows) :].T > settings.near_duplicate).any(axis=1)
                for block in np.array_split(flat[: len(rows)], len(rows) // AT_ONCE + 1)]  # fmt: skip
        known = {test.ids[i] for i in others}
        copies = np.concatenate(near) | [found.ids[i] in known for i in rows]
    rows = rows[~copies]
    ids = [found.ids[i] for i in rows]
    groups = duplicate_groups(ids, found.thumbnails[rows], settings.near_duplicate)
    test_fraction = 0.0 if test else settings.test_fraction
    parts = split_by_content(ids, groups, settings.validation_fraction, test_fraction)
    picked = [row for row, part in zip(rows.tolist(), parts, strict=True) if part == split]
    if not picked:
        raise DasdError(f"No {split} image of {domain.data} is left: {len(ids)} images in {len(set(groups))} "
                        f"groups of near copies, test_fraction {test_fraction}. If they are no copies, set "
                        f"near_duplicate ({settings.near_duplicate}) nearer to 1.")  # fmt: skip
    return picked, int(copies.sum())


def duplicate_groups(ids: Sequence[str], thumbnails: np.ndarray, threshold: float) -> np.ndarray:
    """Return a group number (n,) for each image; exact copies and near duplicates share one.

    A near duplicate correlates above the threshold with its group's first image by id: pairs do not chain.
    """
    _, first, inverse = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
    flat = _comparable(thumbnails)[first]
    groups = np.full(len(flat), -1)
    for start in range(0, len(flat), AT_ONCE):
        rest = groups[start:]
        for row, near in enumerate(flat[start : start + AT_ONCE] @ flat[start:].T > threshold):
            if rest[row] < 0:
                rest[near & (rest < 0)] = start + row
                rest[row] = start + row
    return groups[inverse]


def _comparable(thumbnails: np.ndarray) -> np.ndarray:
    """Return thumbnails (n, 32, 32) as rows (n, 1024) of norm 1, without most of what all of them share.

    Images of one framing (fundus, microscope, aligned faces) correlate by that alone. Few images do not show
    it yet, and without all of it copies would differ by their noise.
    """
    flat = _unit(thumbnails.reshape(-1, 32 * 32).astype(np.float32))
    return _unit(flat - 0.8 * len(flat) / (len(flat) + 4) * flat.mean(axis=0))


def _unit(flat: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and norm 1."""
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def split_by_content(
    ids: Sequence[str], groups: Sequence[int], validation_fraction: float, test_fraction: float
) -> list[str]:
    """Return "train", "validation" or "test" for each image, the same for all images of a group.

    The smallest id of a group decides, hashed once more because the smallest of several is not uniform; so
    images added later move no other. Only a split that chance leaves with less than three quarters of its
    share (training), one group (validation) or two of ten (tests) gets some of another's.
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


def audit(
    data: DomainData,
    tokenizer: PreTrainedTokenizerBase | None = None,
    near_duplicate: float = DataConfig.near_duplicate,
) -> dict[str, Any]:
    """Return a report on a domain: counts of images, captions, duplicates and classes, and sizes in pixels.

    `captions_cut` counts the captions that, behind the token, are longer than the tokenizer's limit.
    """
    prompts = (with_token(caption, data.config.token) for found in data.captions for caption in found)
    cut = 0 if tokenizer else None
    while tokenizer and (some := list(itertools.islice(prompts, AT_ONCE))):  # what it returns is large
        lengths = tokenizer(some, truncation=False, verbose=False)["input_ids"]
        cut += sum(len(ids) > tokenizer.model_max_length for ids in lengths)
    distinct = len(set(data.ids))
    missing = sum(not any(found) for found in data.captions)
    sides = zip(("width", "height"), np.array(data.sizes).T, strict=True)
    statistics = {"min": np.min, "median": np.median, "max": np.max}
    return {
        "domain": data.config.name,
        "split": data.split,
        "images": len(data),
        "captions_found": len(data) - missing,
        "captions_missing": missing,
        "captions_cut": cut,
        "exact_duplicates": len(data) - distinct,
        "near_duplicates": distinct - len(set(duplicate_groups(data.ids, data.thumbnails, near_duplicate))),
        "duplicates_of_test": data.duplicates_of_test,
        "skipped_corrupt": len(data.broken),
        "classes": dict(sorted(Counter(data.labels or ()).items())),
        **{f"{side}_{name}": int(f(pixels)) for side, pixels in sides for name, f in statistics.items()},
    }
