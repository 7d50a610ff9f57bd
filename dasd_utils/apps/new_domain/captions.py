"""Captions for a folder of images: from its metadata, texts beside them, labels, or their file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from dasd_utils import data
from dasd_utils.config import DasdError, DomainConfig, resolve
from dasd_utils.runtime import bars, images, precision, pretrained

FILE = "metadata.jsonl"  # of a caption file: the layout `imagefolder` of datasets
COLUMNS = ("text", "caption", "captions", "sentence", "sentences", "description", "prompt")
LABELS = ("label", "labels", "class", "category")
SIDECARS = (".txt", ".caption")
CAPTIONER = "Salesforce/blip-image-captioning-base@9cfcdbcaccbcadb2b53b36d4b50042c4eeaa0c25"  # safetensors
MOST_LABELS = 200  # more are no classes
# what cameras, scanners and programs write into file names: no caption starts or ends with it
CAMERA = set(re.findall(r"\w+", """
    img dsc dscn dscf dji pxl mvimg gopr image images photo picture pic scan scanned screenshot screen
    shot frame file untitled unnamed download copy crop cropped final new tmp sample whatsapp wa jpg
    jpeg png of and
"""))  # fmt: skip


@dataclass(frozen=True)
class Album:
    """A folder's rows by split, the column that holds the images, and their files."""

    folder: Path
    splits: dict[str, datasets.Dataset]
    column: str

    @property
    def features(self) -> dict[str, Any]:
        """Return name -> kind of the columns beside the image."""
        rows = next(iter(self.splits.values()))
        return {name: kind for name, kind in rows.features.items() if name != self.column}

    def values(self, column: str) -> list[Any]:
        """Return what stands in a column, of all splits."""
        return [value for rows in self.splits.values() for value in rows[column]]

    def files(self) -> list[str]:
        """Return the file of every image relative to the folder; DasdError where they are no files."""
        return [
            name
            for rows in self.splits.values()
            for name in data.files_of_rows(rows, self.column, self.folder)
        ]


@dataclass(frozen=True)
class Captions:
    """Where the captions of a domain come from."""

    source: str  # in words
    entry: dict[str, Any]  # the fields of the domain that say so
    texts: dict[str, str] = field(default_factory=dict)  # file -> caption, for a caption file


def open_album(folder: str | Path, name: str = "new") -> Album:
    """Return a folder's rows; DasdError if it is none, or holds no images."""
    place = resolve(folder)
    if not place.is_dir():
        raise DasdError(f"There is no folder {place}: name the one that holds the images.")
    splits = dict(images.open_folder(DomainConfig(name, str(place)), place))
    features = next(iter(splits.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DasdError(f"{place} has no column of images. Columns: {', '.join(features)}.")
    return Album(place, splits, columns[0])


def words_of(name: str) -> str:
    """Return what a file or class name says in lower-case words, "" for a number, a hash or a camera's name.

    >>> words_of("red-house_by the sea-003"), words_of("IMG_0032")
    ('red house by the sea', '')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z]{2})(?=\d+(?:$|[\W_]))", " ", name)  # aB, dog01
    words = re.sub(r"[^\w']|_", " ", spaced).lower().split()
    words = [w for w in words if w.isdigit() or not re.search(r"\d", w)]  # both kinds mixed: a hash
    words = [w for w in words if not re.fullmatch(r"[0-9a-f]{8,}", w)]
    said = [place for place, w in enumerate(words) if not w.isdigit() and w not in CAMERA]
    if not any(len(words[place]) > 1 for place in said):
        return ""
    return " ".join(words[said[0] : said[-1] + 1])


def from_metadata(album: Album) -> Captions:
    """Return the caption column of the folder's metadata; DasdError if it has none."""
    texts = {name.lower(): name for name, kind in album.features.items() if _is_text(kind)}
    column = next((texts[name] for name in COLUMNS if name in texts), None)
    if column is None or not any(album.values(column)):
        known = ", ".join(album.features) or "none"
        raise DasdError(f"no metadata with a column {', '.join(COLUMNS)} (columns: {known})")
    return Captions(f"the column {column!r} of its metadata", {"caption_column": column})


def _is_text(kind: Any) -> bool:
    kind = getattr(kind, "feature", kind)  # of a list
    return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")


def from_sidecars(album: Album) -> Captions:
    """Return the texts beside the images (`house.png`, `house.txt`); DasdError unless most have one."""
    names, texts = album.files(), {}
    for name in names:
        path = album.folder / name
        places = [path.with_name(stem + suffix) for stem in (path.stem, path.name) for suffix in SIDECARS]
        beside = next((place for place in places if place.is_file()), None)
        if beside and (text := _read_text(beside)):
            texts[name] = text
    return _for_file("text files beside the images", names, texts, f"text files ({', '.join(SIDECARS)})")


def _read_text(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf8").split())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DasdError(f"The caption {path} cannot be read: {reason}.") from None


def from_labels(album: Album, sentence: str | None = None) -> Captions:
    """Return a table from each label, or subfolder, to a caption: "a dog", or the sentence for its {label}.

    Raises DasdError for labels that say nothing.
    """
    column = next((name for name in album.features if name.lower() in LABELS), None)
    labels = _labels(album, column) if column else []
    if len(labels) < 2:  # a folder of splits alone may have one, its own name
        raise DasdError("no subfolders and no label column with two or more labels")
    mute = [label for label in labels if not words_of(label)]
    if mute or len(labels) > MOST_LABELS:
        raise DasdError(
            f"the label {mute[0]!r} is no word" if mute else f"{len(labels)} labels are no classes"
        )
    table = {label: _with_label(sentence, words_of(label)) for label in labels}
    if {None, -1} & set(album.values(column)):
        table[""] = ""  # no label, no caption
    where = f"{len(labels)} labels of the column or subfolders {column!r}"
    return Captions(where, {"label_column": column, "label_captions": table})


def _labels(album: Album, column: str) -> list[str]:
    kind, values = album.features[column], set(album.values(column)) - {None, -1}
    return sorted(kind.int2str(v) if isinstance(kind, datasets.ClassLabel) else str(v) for v in values)


def _with_label(sentence: str | None, word: str) -> str:
    plural = word.endswith("s") and not word.endswith("ss")
    sentence = sentence or ("{label}" if plural else "a {label}")
    if word[0] in "aeiou":
        sentence = re.sub(r"\ba(?= \{label\})", "an", sentence)
    return sentence.replace("{label}", word)


def from_names(album: Album) -> Captions:
    """Return what the file names say; DasdError unless most say something."""
    names = album.files()
    said = {name: text for name in names if (text := words_of(Path(name).stem))}
    return _for_file("the file names", names, said, f"file names with words (like {Path(names[0]).name!r})")


def _for_file(source: str, names: list[str], texts: dict[str, str], what: str) -> Captions:
    if 2 * len(texts) < len(names):
        raise DasdError(f"{what} for {len(texts)} of {len(names)} images only")
    return Captions(source, {}, texts)


SOURCES: dict[str, Callable[[Album], Captions]] = {  # in the order of `auto`
    "metadata": from_metadata,
    "sidecars": from_sidecars,
    "labels": from_labels,
    "names": from_names,
}


def first(album: Album, names: Iterable[str] = SOURCES) -> Captions:
    """Return the captions of the first of these sources that has some; DasdError says what each lacks."""
    missing = []
    for name in names:
        try:
            return SOURCES[name](album)
        except DasdError as error:
            missing.append(f"{name}: {str(error).rstrip('.')}")
    raise DasdError(
        f"{album.folder} has no captions ({'; '.join(missing)}). Give one sentence for all (--captions "
        f'"a pencil sketch"), a captioning model (--captions {CAPTIONER}), or write '
        f'{FILE} beside the images, a line an image: {{"file_name": "1.png", "text": "..."}}.'
    )


# Captions by a model that sees the images: BLIP, GIT and others of its kind, by folder or hub id.


LONGEST = 40  # new tokens of a caption
BATCH = 8


def from_model(album: Album, name: str, device: str | None = None, progress: bool = False) -> Captions:
    """Return a caption of each readable image by the model `name`, or `name@revision` of the hub.

    Raises DasdError where the model is not reachable, or is not one that captions.
    """
    names = album.files()
    device = device or precision.default_device()
    processor, model = _load(name)
    model.to(device).eval()
    texts, starts = {}, range(0, len(names), BATCH)
    for start in bars.bar(starts, "captions", shown=progress, unit="batch"):
        texts |= _caption(album, names[start : start + BATCH], processor, model)
    if not texts:
        raise DasdError(f"The model {name!r} gave no caption for any of {len(names)} images.")
    return Captions(f"the model {name}", {}, texts)


def _load(name: str) -> tuple[Any, Any]:
    base, _, revision = name.partition("@")
    source = pretrained.find_weights(base, revision or None)
    model = source.load(transformers.AutoModelForImageTextToText, use_safetensors=True)
    return source.load(transformers.AutoProcessor), model


@torch.no_grad()
def _caption(album: Album, names: list[str], processor: Any, model: Any) -> dict[str, str]:
    pictures = {}
    for name in names:
        try:
            pictures[name] = images.open_file(album.folder / name)
        except DasdError:
            continue  # the audit counts it
    if not pictures:
        return {}
    try:
        inputs = processor(images=list(pictures.values()), return_tensors="pt").to(model.device)
        found = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        texts = processor.batch_decode(found, skip_special_tokens=True)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # it wants a chat, or other inputs
        raise DasdError(
            f"The model {type(model).__name__} does not caption images by themselves: {error}. Name one that "
            f"does, like {CAPTIONER}."
        ) from error
    said = zip(pictures, (" ".join(text.split()) for text in texts), strict=True)
    return {name: text for name, text in said if text}
