"""A domain from hub id, folder or toy world: images, captions, splits by content, and a report on them."""

import functools
import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from dasd_utils import toyworld
from dasd_utils.config import Config, DasdError, DataConfig, DomainConfig, resolve, with_token
from dasd_utils.runtime import files, folders, images, splits

SPLITS = ("train", "validation", "test")
TOY_SEEDS = {"train": 1, "validation": 2, "test": 3}  # independent of Config.seed: one world for all runs
AT_ONCE = 1024  # prompts through the tokenizer


@dataclass
class DomainData:
    """One split of a domain; `data[i]["image"]` is RGB, square, `config.model.resolution` pixels wide."""

    config: DomainConfig
    split: str  # "train", "validation" or "test"
    images: Sequence[Image.Image]  # read from disk, or drawn, at each access
    captions: Sequence[list[str]]  # on disk: one or more an image; [""] where none was found
    ids: Sequence[str]  # on disk: hash of each image's pixels before the crop
    sizes: Sequence[tuple[int, int]]  # (width, height) before the crop, pixels
    thumbnails: files.DiskArray | np.ndarray  # (n, 32, 32) uint8 grey, compared to find near duplicates
    labels: list[str] | None = None
    attributes: Sequence[dict[str, str]] | None = None  # ground truth of the toy world
    mentioned: Sequence[list[dict[str, str]]] | None = None  # those of them that each caption names
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
    attributes = files.Lazy(functools.partial(toyworld.attributes, world, seed), count)
    wordings = files.Lazy(functools.partial(toyworld.captions_with_mentions, world, seed), count)
    columns = {"captions": ([text for text, _ in each] for each in wordings)}
    for name in toyworld.ATTRIBUTES[world]:
        columns[name] = map(operator.methodcaller("get", name, ""), attributes)
    for name in filter(None, (domain.caption_column, domain.label_column)):
        if name not in columns:
            raise DasdError(f"{domain.data} has no column {name!r}. Columns: {', '.join(columns)}.")
    is_constant = domain.label_captions or domain.caption is not None
    column = domain.caption_column or (None if is_constant else "captions")
    labels = [scene.get(domain.label_column or "scene", "") for scene in attributes]
    pictures = files.Lazy(functools.partial(toyworld.draw, world, seed, size=size), count)
    bar = files.short_bar(pictures, f"drawing {world}", unit="image")
    small = files.DiskArray((images.THUMBNAIL, images.THUMBNAIL))
    drawn = ((small.append(images.thumbnail(picture)), images.content_hash(picture)) for picture in bar)
    return DomainData(
        domain, split, pictures,
        captions=_captions(domain, columns.get(column), labels, count),
        ids=files.on_disk(name for _, name in drawn),
        sizes=[(size, size)] * count,
        thumbnails=small,
        labels=labels,
        attributes=attributes,
        mentioned=files.Lazy(lambda i: [named for _, named in wordings[i]], count)
        if column == "captions" else None,
    )  # fmt: skip


def _load_rows(domain: DomainConfig, config: Config, split: str) -> DomainData:
    """Check columns and captions of all splits in use before reading the pixels, which takes long."""
    is_test = split == "test" and domain.test_split is not None
    rows, captions, labels = _open(domain, domain.test_split if is_test else domain.train_split)
    test = _open(domain, domain.test_split) if domain.test_split and not is_test else None
    window = folders.find_window(domain, rows)
    found, merged = _inspect(domain, config, rows, captions, window)
    picks, copies = found.readable(), 0
    if not is_test:
        test_images = _inspect(domain, config, *test[:2], window)[0] if test else None
        picks, copies = _pick_split(domain, config.data, found, test_images, split)
    picks = picks[np.argsort(found.ids[picks], kind="stable")]
    picks = picks[: domain.num_images] if split == "train" else picks
    sizes = found.sizes[picks]
    column, size = domain.image_column, config.model.resolution
    return DomainData(
        domain, split, images.cropped_images(rows.select(picks), column, size, window),
        captions=files.on_disk(merged.get(i) or captions[i] for i in picks.tolist()),
        ids=files.on_disk(name.decode() for name in found.ids[picks]),
        sizes=files.Lazy(lambda i: tuple(sizes[i].tolist()), len(picks)),
        thumbnails=found.thumbnails.take(picks),
        labels=[labels[i] for i in picks] if labels else None,
        broken=found.broken,
        duplicates_of_test=copies,
    )  # fmt: skip


def _open(domain: DomainConfig, split: str) -> tuple[datasets.Dataset, files.Lazy, list[str] | None]:
    """Return the rows of one split of a data set, their captions and labels, before any image is read."""
    rows = folders.open_rows(domain, split)
    columns = rows.remove_columns([domain.image_column])
    labels = label_names(columns, domain.label_column) if domain.label_column else None
    values = columns[domain.caption_column] if domain.caption_column else None
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
    domain: DomainConfig, values: Iterable[Any] | None, labels: list[str] | None, count: int
) -> files.Lazy:
    """Return the sentences of each row: of the caption column, else of its label, else the constant one."""
    table = domain.label_captions if labels else {}
    if values is None and not table and domain.caption is None:
        raise DasdError(f"Domain {domain.name} has no captions: set its caption_column or caption_file, its "
                        "label_column with label_captions, or one caption for all.")  # fmt: skip
    unknown = [label for label in labels if label not in table] if table else []
    if unknown:
        raise DasdError(f"The label {unknown[0]!r} of domain {domain.name} is not in its label_captions, "
                        f"which has {', '.join(table)}.")  # fmt: skip
    fallback = files.Lazy(lambda i: [table[labels[i]] if table else domain.caption or ""], count)
    if values is None:
        return fallback
    place = f"The column or file {domain.caption_file or domain.caption_column!r} of domain {domain.name}"
    captions = files.on_disk(_sentences(place, value) or fallback[i] for i, value in enumerate(values))
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
    domain: DomainConfig, config: Config, rows: datasets.Dataset, captions: Sequence[list[str]],
    window: images.Window | None,
) -> tuple[images.Inspection, dict[int, list[str]]]:  # fmt: skip
    """Read the images of rows; return what is known of them, and the captions of those with several rows."""
    found = images.inspect_rows(rows, domain.image_column, window)
    if found.broken and not config.data.skip_corrupt:
        raise DasdError(f"{len(found.broken)} of {len(found.ids)} images of {domain.data} cannot be read, "
                        f"like {found.broken[0]}. Repair or remove them, or set skip_corrupt.")  # fmt: skip
    _, inverse, counts = np.unique(found.ids, return_inverse=True, return_counts=True)
    first: dict[tuple[str, bytes], int] = {}
    merged: dict[int, list[str]] = {}
    for row in np.flatnonzero((found.ids != b"") & (counts[inverse] > 1)).tolist():
        place = first.setdefault((found.names[row], found.ids[row]), row)
        if place != row:
            known = merged.setdefault(place, captions[place])  # a further row only adds its captions
            known += [caption for caption in captions[row] if caption not in known]
            found.ids[row] = b""
    return found, merged


def _pick_split(
    domain: DomainConfig, settings: DataConfig, found: images.Inspection,
    test: images.Inspection | None, split: str,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Return the readable rows of the split, and how many more the named test split has too."""
    rows = found.readable()
    if len(rows) < 2:
        raise DasdError(f"{domain.data} (domain {domain.name}) has {len(rows)} image to train on; it takes "
                        f"two or more. Images that cannot be read: {len(found.broken)}.")  # fmt: skip
    copies = np.zeros(len(rows), dtype=bool)
    if test:
        others = test.readable()
        thumbnails = found.thumbnails.take(rows), test.thumbnails.take(others)
        copies = splits.near_copies(*thumbnails, settings.near_duplicate)
        copies |= np.isin(found.ids[rows], test.ids[others])
    rows = rows[~copies]
    ids = [name.decode() for name in found.ids[rows]]
    groups = splits.duplicate_groups(ids, found.thumbnails.take(rows), settings.near_duplicate)
    shares = settings.validation_fraction, 0.0 if test else settings.test_fraction
    parts = splits.split_by_content(ids, groups, *shares)
    picked = rows[[part == split for part in parts]]
    if not len(picked):
        raise DasdError(f"No {split} image of {domain.data} is left: {len(ids)} images in {len(set(groups))} "
                        f"groups of near copies; (validation_fraction, test_fraction): {shares}. If these "
                        f"are none, set near_duplicate ({settings.near_duplicate}) nearer to 1.")  # fmt: skip
    return picked, int(copies.sum())


def audit(
    data: DomainData,
    tokenizer: PreTrainedTokenizerBase | None = None,
    near_duplicate: float = DataConfig.near_duplicate,
) -> dict[str, Any]:
    """Return counts of a domain's images, captions, duplicates and classes, and sizes in pixels."""
    prompts = (with_token(caption, data.config.token) for found in data.captions for caption in found)
    cut = 0 if tokenizer else None  # captions that, behind the token, are longer than its limit
    while tokenizer and (some := list(itertools.islice(prompts, AT_ONCE))):  # what it returns is large
        lengths = tokenizer(some, truncation=False, verbose=False)["input_ids"]
        cut += sum(len(ids) > tokenizer.model_max_length for ids in lengths)
    groups = splits.duplicate_groups(data.ids, data.thumbnails, near_duplicate)
    distinct = len(np.unique(splits.as_array(data.ids)))
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
        "near_duplicates": distinct - len(set(groups)),
        "duplicates_of_test": data.duplicates_of_test,
        "skipped_corrupt": len(data.broken),
        "classes": dict(sorted(Counter(data.labels or ()).items())),
        **{f"{side}_{name}": int(f(pixels)) for side, pixels in sides for name, f in statistics.items()},
    }
