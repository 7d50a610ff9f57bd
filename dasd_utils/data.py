"""A domain from hub id, folder or toy world: images, captions, splits by content, and a report on them."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from dasd_utils import toyworld
from dasd_utils.config import Config, DasdError, DataConfig, DomainConfig, resolve
from dasd_utils.runtime import bars, images, splits

__all__ = [
]  # fmt: skip
SPLITS = ("train", "validation", "test")
TOY_SEEDS = {"train": 1, "validation": 2, "test": 3}  # independent of Config.seed: one world for all runs
TOKENISED = 4096  # prompts at once: what a tokenizer returns is large
log = logging.getLogger(__name__)


@dataclass
class DomainData:
    """One split of a domain; `data[i]["image"]` is RGB, square, `config.model.resolution` pixels wide."""

    config: DomainConfig
    split: str  # "train", "validation" or "test"
    images: Sequence[Image.Image]  # read from disk, or drawn, when asked for
    captions: list[list[str]]  # one or more an image; [""] where none was found
    ids: list[str]  # hash of each image's pixels before the crop
    sizes: list[tuple[int, int]]  # (width, height) before the crop, pixels
    thumbnails: np.ndarray  # (n, 32, 32) uint8, by which near duplicates are told
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

    def load_split(self, config: Config, split: str) -> DomainData:
        """Return another split of the same domain."""
        return load_domain(self.config, config, split)


def with_token(prompt: str, token: str | None) -> str:
    """Return the prompt with the token leading it; one that has the token anywhere keeps it as it is."""
    if not token or token.lower() in prompt.lower():  # tokenizers match added tokens in any case
        return prompt
    return f"{token} {prompt}" if prompt else token


def load_domain(domain: DomainConfig, config: Config, split: str = "train") -> DomainData:
    """Return one split of a domain, in an order that only the images' content decides.

    "train" holds at most `domain.num_images` images. "test" is the split that the domain names, or held out
    from the train split by content hash as "validation" always is; near duplicates are never parted.
    Raises DasdError for data, columns, labels or captions that are not there and for images that cannot be
    read; no other data ever takes their place.
    """
    if split not in SPLITS:
        raise DasdError(f"There is no split {split!r}. Splits: {', '.join(SPLITS)}.")
    if domain.num_images < 1:
        raise DasdError(f"num_images of domain {domain.name} is {domain.num_images}; it must be at least 1.")
    if domain.data.startswith("toyworld:"):
        return _load_toyworld(domain, config, split)
    return _load_rows(domain, config, split)


def _load_toyworld(domain: DomainConfig, config: Config, split: str) -> DomainData:
    world = domain.data.removeprefix("toyworld:")
    if world not in toyworld.DOMAINS:
        raise DasdError(f"The toy world has no domain {world!r} (domain {domain.name}). "
                        f"Domains: {', '.join(toyworld.DOMAINS)}.")  # fmt: skip
    counts = (domain.num_images, config.training.validation_images, config.evaluation.num_heldout)
    numbers, seed = range(dict(zip(SPLITS, counts, strict=True))[split]), TOY_SEEDS[split]
    if not numbers:
        name = "validation_images" if split == "validation" else "num_heldout"
        raise DasdError(f"The {split} split of {domain.data} is empty: set {name} to 1 or more.")
    names = ["captions", *toyworld.ATTRIBUTES[world]]
    for name in filter(None, (domain.caption_column, domain.label_column)):
        if name not in names:
            raise DasdError(f"{domain.data} has no column {name!r}. Columns: {', '.join(names)}.")
    size = config.model.resolution
    pictures = images.LazyImages(functools.partial(toyworld.draw, world, seed, size=size), len(numbers))
    ids, thumbnails = [], np.empty((len(numbers), images.THUMBNAIL, images.THUMBNAIL), dtype=np.uint8)
    for place, picture in enumerate(bars.short_bar(pictures, f"drawing {world}", unit="image")):
        ids.append(images.content_hash(picture))
        thumbnails[place] = images.thumbnail(picture)
    shown = [toyworld.attributes(world, seed, i) for i in numbers]
    columns = {name: [each.get(name, "") for each in shown] for name in names}
    wordings = [toyworld.told_variants(world, seed, i) for i in numbers]
    columns["captions"] = [[text for text, _ in variants] for variants in wordings]
    labels = columns[domain.label_column or "scene"]
    own = None if domain.label_captions or domain.caption is not None else "captions"
    column = domain.caption_column or own
    captions = _captions(domain, columns.get(column), labels, len(numbers))
    mentioned = [[named for _, named in variants] for variants in wordings] if column == "captions" else None
    sizes = [(size, size)] * len(numbers)
    return DomainData(domain, split, pictures, captions, ids, sizes, thumbnails, labels, shown, mentioned)


@dataclass(frozen=True)
class _Table:
    """The rows of one split of a data set, as they stand there."""

    rows: datasets.Dataset
    captions: list[list[str]]
    labels: list[str] | None


def _load_rows(domain: DomainConfig, config: Config, split: str) -> DomainData:
    """Check columns and captions of all the splits that matter first: reading the pixels takes long."""
    named = domain.test_split is not None and split == "test"
    table = _open_table(domain, domain.test_split if named else domain.train_split)
    test = _open_table(domain, domain.test_split) if domain.test_split and not named else None
    found = _inspect(domain, config, table)
    if named:
        picks, copies = [i for i, name in enumerate(found.ids) if name], 0
    else:
        heldout = _inspect(domain, config, test) if test else None
        picks, copies = _pick_split(domain, config.data, found, heldout, split)
    picks = sorted(picks, key=lambda i: found.ids[i])
    picks = picks[: domain.num_images] if split == "train" else picks
    cropped = images.cropped_images(table.rows.select(picks), domain.image_column, config.model.resolution)
    return DomainData(
        domain, split, cropped,
        captions=[table.captions[i] for i in picks],
        ids=[found.ids[i] for i in picks],
        labels=[table.labels[i] for i in picks] if table.labels else None,
        sizes=[found.sizes[i] for i in picks],
        thumbnails=found.thumbnails[picks],
        broken=found.broken,
        duplicates_of_test=copies,
    )  # fmt: skip


def _open_table(domain: DomainConfig, split: str) -> _Table:
    rows = images.open_rows(domain, split)
    columns = rows.remove_columns([domain.image_column])
    labels = _label_names(columns, domain.label_column) if domain.label_column else None
    values = columns[domain.caption_column][:] if domain.caption_column else None
    values = captions_of_rows(domain, rows) if domain.caption_file else values
    try:
        return _Table(rows, _captions(domain, values, labels, len(rows)), labels)
    except DasdError as error:
        raise DasdError(f"{error} Columns of {domain.data}: {', '.join(rows.column_names)}.") from None


def _label_names(columns: datasets.Dataset, column: str) -> list[str]:
    feature, values = columns.features[column], columns[column][:]
    if isinstance(feature, datasets.ClassLabel):
        return ["" if v is None or v < 0 else feature.int2str(v) for v in values]
    return ["" if v is None else str(v) for v in values]


def _captions(
    domain: DomainConfig, values: Sequence[Any] | None, labels: list[str] | None, count: int
) -> list[list[str]]:
    """Return the sentences of each row: of the caption column, else of its label, else the constant one."""
    table = domain.label_captions if labels else {}
    if values is None and not table and domain.caption is None:
        raise DasdError(
            f"Domain {domain.name} has no captions: set its caption_column or caption_file, its label_column "
            "with label_captions, or one caption for all, which may be empty."
        )
    unknown = [label for label in labels or () if label not in table] if table else []
    if unknown:
        raise DasdError(f"The label {unknown[0]!r} of domain {domain.name} is not in its label_captions, "
                        f"which has {', '.join(table)}.")  # fmt: skip
    other = [[table[label]] for label in labels] if table else [[domain.caption or ""]] * count
    captions = other
    if values is not None:
        captions = [_sentences(domain, value) or other[i] for i, value in enumerate(values)]
    if values is not None and not any(any(found) for found in captions):
        raise DasdError(f"The {_caption_place(domain)} has no caption.")
    return captions


def _caption_place(domain: DomainConfig) -> str:
    where = (
        f"caption file {domain.caption_file}" if domain.caption_file else f"column {domain.caption_column!r}"
    )
    return f"{where} of domain {domain.name}"


def _sentences(domain: DomainConfig, value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    if not all(v is None or isinstance(v, str) for v in values):
        raise DasdError(f"The {_caption_place(domain)} holds {value!r}; "
                        "a caption is a sentence or a list of sentences.")  # fmt: skip
    return [v.strip() for v in values if v and v.strip()]


def files_of_rows(rows: datasets.Dataset, column: str, folder: Path) -> list[str]:
    """Return each row's file relative to the folder; DasdError for images inside a table."""
    items = images.undecoded(rows, column)[column]
    if not all(item and item["path"] and item["bytes"] is None for item in items):
        raise DasdError(f"The images of {folder} are inside tables, so captions cannot be told by file.")
    return [Path(os.path.relpath(item["path"], folder)).as_posix() for item in items]


def read_caption_file(path: str | Path) -> dict[str, Any]:
    """Return file name -> caption (a sentence, or a list) of JSON lines {"file_name", "text"}.

    Raises DasdError, naming the line, for what is none.
    """
    path = resolve(path)
    try:
        lines = path.read_text(encoding="utf8").split("\n")  # a caption may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DasdError(f"The caption file {path} cannot be read: {reason}.") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[Path(row["file_name"]).as_posix()] = row["text"]
        except (ValueError, KeyError, TypeError):
            raise DasdError(
                f'{path}, line {number}: expected an object {{"file_name": ..., "text": ...}}.'
            ) from None
    return found


def captions_of_rows(domain: DomainConfig, rows: datasets.Dataset) -> list[Any]:
    """Return what the domain's caption file says of each row, None where nothing.

    Raises DasdError if it names none of the images.
    """
    known = read_caption_file(domain.caption_file)
    found = [known.get(name) for name in files_of_rows(rows, domain.image_column, resolve(domain.data))]
    if not any(value is not None for value in found):
        raise DasdError(f"The caption file {resolve(domain.caption_file)} names no image of {domain.data} "
                        f"(domain {domain.name}): its file_name starts at that folder.")  # fmt: skip
    return found


def _inspect(domain: DomainConfig, config: Config, table: _Table) -> images.Inspection:
    found = images.inspect_rows(table.rows, domain.image_column)
    if found.broken and not config.data.skip_corrupt:
        raise DasdError(f"{len(found.broken)} of {len(found.ids)} images of {domain.data} (domain "
                        f"{domain.name}) cannot be read, the first: {found.broken[0]}. Mend or remove them, "
                        "or set skip_corrupt to true to leave them out.")  # fmt: skip
    return found


def _pick_split(
    domain: DomainConfig, settings: DataConfig, found: images.Inspection,
    test: images.Inspection | None, split: str,
) -> tuple[list[int], int]:  # fmt: skip
    """Return the readable rows of the split, and how many more the named test split has too."""
    rows = [i for i, name in enumerate(found.ids) if name]
    if len(rows) < 2:
        raise DasdError(f"{domain.data} (domain {domain.name}) has {len(rows)} image to train on; it takes "
                        "two or more, one of them held out for validation.")  # fmt: skip
    ids, thumbnails = [found.ids[i] for i in rows], found.thumbnails[rows]
    fraction, copies = settings.test_fraction, np.zeros(len(rows), dtype=bool)
    if test is not None:
        fraction, kept = 0.0, [i for i, name in enumerate(test.ids) if name]
        groups = splits.duplicate_groups(
            ids + [test.ids[i] for i in kept], np.concatenate([thumbnails, test.thumbnails[kept]])
        )
        copies = np.isin(groups[: len(rows)], groups[len(rows) :])
        rows, ids, thumbnails = (np.asarray(x)[~copies] for x in (rows, ids, thumbnails))
    groups = splits.duplicate_groups(ids, thumbnails)
    parts = splits.split_by_content(ids, groups, settings.validation_fraction, fraction)
    picked = [int(row) for row, part in zip(rows, parts, strict=True) if part == split]
    if not picked:
        raise DasdError(f"No {split} image is left of {domain.data} (domain {domain.name}): {len(ids)} "
                        f"images in {len(set(groups))} groups of near duplicates, validation_fraction "
                        f"{settings.validation_fraction}, test_fraction {fraction}.")  # fmt: skip
    return picked, int(copies.sum())


def audit(data: DomainData, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """Return a report on a domain: counts of images, captions, duplicates and classes, and sizes in pixels.

    `captions_cut` counts the captions that, behind the token, are longer than the tokenizer's limit.
    """
    distinct = len(set(data.ids))
    missing = sum(not any(found) for found in data.captions)
    width, height = np.array(data.sizes).T
    return {
        "domain": data.config.name,
        "split": data.split,
        "images": len(data),
        "captions_found": len(data) - missing,
        "captions_missing": missing,
        "captions_cut": _count_cut(data, tokenizer) if tokenizer else None,
        "exact_duplicates": len(data) - distinct,
        "near_duplicates": distinct - len(set(splits.duplicate_groups(data.ids, data.thumbnails))),
        "duplicates_of_test": data.duplicates_of_test,
        "skipped_corrupt": len(data.broken),
        "classes": dict(sorted(Counter(data.labels or ()).items())),
        **{f"width_{name}": int(f(width)) for name, f in _SUMMARY.items()},
        **{f"height_{name}": int(f(height)) for name, f in _SUMMARY.items()},
    }


_SUMMARY = {"min": np.min, "median": np.median, "max": np.max}


def _count_cut(data: DomainData, tokenizer: PreTrainedTokenizerBase) -> int:
    prompts = (with_token(caption, data.config.token) for found in data.captions for caption in found)
    count = 0
    while some := list(itertools.islice(prompts, TOKENISED)):
        lengths = tokenizer(some, truncation=False, verbose=False)["input_ids"]
        count += sum(len(ids) > tokenizer.model_max_length for ids in lengths)
    return count
