"""Captions for a folder of images: from metadata, texts beside them, labels, file names, or a model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from dasd_utils import data
from dasd_utils.config import DasdError, DomainConfig, nearest, resolve
from dasd_utils.runtime import files, folders, images, processes

FILE = "metadata.jsonl"  # of a caption file: the layout `imagefolder` of datasets
COLUMNS = ("text", "caption", "captions", "sentence", "sentences", "description", "prompt")
LABELS = ("label", "labels", "class", "category")
SIDECARS = (".txt", ".caption")
CAPTIONER = "Salesforce/blip-image-captioning-base@9cfcdbcaccbcadb2b53b36d4b50042c4eeaa0c25"  # safetensors
LONGEST = 40  # new tokens of a model's caption
BATCH = 8  # images at once through a model
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

    def files(self) -> list[str]:
        """Return the file of every image relative to the folder; DasdError where they are no files."""
        named = (folders.files_of_rows(rows, self.column, self.folder) for rows in self.splits.values())
        return [name for names in named for name in names]


@dataclass(frozen=True)
class Captions:
    """Where the captions of a domain come from."""

    source: str  # in words
    entry: dict[str, Any]  # the fields of the domain that say so
    texts: dict[str, str | list[str]] = field(default_factory=dict)  # file -> captions, for a caption file


def open_album(folder: str | Path, name: str = "new") -> Album:
    """Return a folder's rows; DasdError if it is none, or holds no images."""
    place = resolve(folder)
    if not place.is_dir():
        raise DasdError(f"There is no folder {place}: name the one that holds the images.")
    splits = dict(folders.open_folder(DomainConfig(name, str(place)), place))
    features = next(iter(splits.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DasdError(f"{place} has no column of images. Columns: {', '.join(features)}. "
                        "One named image, with file names or the files' bytes, would be read.")  # fmt: skip
    return Album(place, splits, columns[0])


def find_captions(album: Album, how: str = "auto", progress: bool = False) -> Captions:
    """Return the captions of a folder from what `how` names.

    how: "auto", one of SOURCES, a captioning model (hub id or folder), a sentence for all images, or one with
    {label}. Raises DasdError where that gives no captions.
    """
    if how == "auto" or how in SOURCES:
        missing = []
        for name in SOURCES if how == "auto" else [how]:
            try:
                return SOURCES[name](album)
            except DasdError as error:
                missing.append(f"{name}: {str(error).rstrip('.')}")
        raise DasdError(
            f"{album.folder} has no captions ({'; '.join(missing)}). Give one sentence for all (--captions "
            f'"a pencil sketch"), a captioning model (--captions {CAPTIONER}), or write '
            f'{FILE} beside the images, a line an image: {{"file_name": "1.png", "text": "..."}}.'
        )
    if "{label}" in how:
        try:
            return from_labels(album, how)
        except DasdError as error:
            raise DasdError(f"{album.folder} has no labels for {how!r}: {error}.") from None
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(@\w+)?", how) or (how and resolve(how).is_dir()):
        return from_model(album, how, progress=progress)
    if " " not in how.strip():
        known = nearest(how, ("auto", *SOURCES))
        raise DasdError(f"--captions is {how!r}. {known} Or give a sentence, one with {{label}}, or the hub "
                        "id or folder of a captioning model.")  # fmt: skip
    return Captions("one sentence for all", {"caption": how.strip()})


def from_metadata(album: Album) -> Captions:
    """Return the caption column of the folder's metadata; DasdError if it has none."""
    names = {name.lower(): name for name in album.features}
    columns = [names[name] for name in COLUMNS if name in names]
    kinds = [
        getattr(album.features[name], "feature", album.features[name]) for name in columns
    ]  # also of lists
    kinds = [getattr(kind, "dtype", type(kind).__name__) for kind in kinds]
    for column, kind in zip(columns, kinds, strict=True):
        if kind.endswith("string") and any(any(rows[column]) for rows in album.splits.values()):
            return Captions(f"the column {column!r} of its metadata", {"caption_column": column})
    if columns:
        raise DasdError(f"the column {columns[0]!r} of its metadata holds no sentences ({kinds[0]})")
    known = ", ".join(album.features) or "none"
    raise DasdError(f"no metadata with a column {', '.join(COLUMNS)} (columns: {known})")


def from_sidecars(album: Album) -> Captions:
    """Return the texts beside the images (`house.png`, `house.txt`), a caption a line.

    Raises DasdError unless most have one.
    """
    texts, inside = {}, {}
    for name in album.files():
        image = album.folder / name
        if image.parent not in inside:  # in any letter case
            inside[image.parent] = {path.name.casefold(): path for path in image.parent.iterdir()}
        places = [stem + suffix for stem in (image.stem, image.name) for suffix in SIDECARS]
        beside = next(filter(None, (inside[image.parent].get(place.casefold()) for place in places)), None)
        lines = files.read_text(beside, "The caption").splitlines() if beside else []
        found = [" ".join(line.split()) for line in lines if line.strip()]
        texts[name] = found if len(found) > 1 else "".join(found)
    return _caption_most("text files beside the images", texts, f"text files ({', '.join(SIDECARS)})")


def from_names(album: Album) -> Captions:
    """Return what the file names say; DasdError unless most say something."""
    texts = {name: words_of(Path(name).stem) for name in album.files()}
    example = Path(next(iter(texts))).name
    return _caption_most("the file names", texts, f"file names with words (like {example!r})")


def _caption_most(source: str, texts: dict[str, str | list[str]], what: str) -> Captions:
    found = {name: text for name, text in texts.items() if text}
    if 2 * len(found) < len(texts):
        raise DasdError(f"{what} for {len(found)} of {len(texts)} images only")
    return Captions(source, {}, found)


def words_of(name: str) -> str:
    """Return what a file or class name says in lower-case words, "" for a number, a hash or a camera's name.

    >>> words_of("red-house_by the sea-003"), words_of("IMG_0032")
    ('red house by the sea', '')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z]{2})(?=\d+(?:$|[\W_]))", " ", name)  # aB, dog01
    words = re.sub(r"[^\w']|_", " ", spaced).lower().split()
    words = [w for w in words if w.isdigit() or not re.search(r"\d", w)]  # both kinds mixed: a hash
    words = [w for w in words if not re.fullmatch(r"[0-9a-f]{8,}", w)]
    meaningful = [place for place, w in enumerate(words) if not w.isdigit() and w not in CAMERA]
    if not any(len(words[place]) > 1 for place in meaningful):
        return ""
    return " ".join(words[meaningful[0] : meaningful[-1] + 1])


def from_labels(album: Album, sentence: str | None = None) -> Captions:
    """Return a table from each label, or subfolder, to a caption: "a dog", or the sentence for its {label}.

    Raises DasdError for labels that say nothing.
    """
    column = next((name for name in album.features if name.lower() in LABELS), None)
    found = (
        {label for rows in album.splits.values() for label in data.label_names(rows, column)}
        if column
        else ()
    )
    labels = sorted({*found} - {""})
    if len(labels) < 2:  # a folder of splits alone may have one, its own name
        raise DasdError("no subfolders and no label column with two or more labels")
    wordless = [label for label in labels if not words_of(label)]
    if wordless:
        raise DasdError(f"the label {wordless[0]!r} is no word: write label_captions for it into a config")
    table = {label: _with_label(sentence, label) for label in labels}
    table |= {label: "" for label in found if not label}  # no label, no caption
    where = f"{len(labels)} labels of the column or subfolders {column!r}"
    return Captions(where, {"label_column": column, "label_captions": table})


def _with_label(sentence: str | None, label: str) -> str:
    """Return the sentence, or "a dog", for a label, or for several in one text ("dog, cat" or "dog|cat")."""
    word = " and ".join(filter(None, map(words_of, re.split("[,;|]", label))))
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is"))
    sentence = sentence or ("{label}" if plural else "a {label}")
    if word[0] in "aeiou":
        sentence = re.sub(r"\ba(?= \{label\})", "an", sentence)
    return sentence.replace("{label}", word)


SOURCES: dict[str, Callable[[Album], Captions]] = {  # in the order of `auto`
    "metadata": from_metadata,
    "sidecars": from_sidecars,
    "labels": from_labels,
    "names": from_names,
}


@torch.no_grad()
def from_model(album: Album, name: str, device: str | None = None, progress: bool = False) -> Captions:
    """Return a caption of each readable image by the model `name`, or `name@revision` of the hub.

    Models that see images, such as BLIP and GIT. Raises DasdError where the model is not reachable, or is not
    one that captions.
    """
    names, texts = album.files(), {}
    base, _, revision = name.partition("@")
    source = files.find_weights(base, revision or None)
    model = source.load(transformers.AutoModelForImageTextToText, use_safetensors=True, dtype=torch.float32)
    processor = source.load(transformers.AutoProcessor)
    model.to(device or processes.default_device()).eval()
    for start in files.bar(range(0, len(names), BATCH), "captions", shown=progress, unit="batch"):
        pictures = {}
        for file in names[start : start + BATCH]:
            with contextlib.suppress(DasdError):  # the audit counts what cannot be read
                pictures[file] = images.open_file(album.folder / file)
        if not pictures:
            continue
        try:
            inputs = processor(images=list(pictures.values()), return_tensors="pt").to(model.device)
            tokens = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            found = processor.batch_decode(tokens, skip_special_tokens=True)
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # it wants a chat, or other inputs
            raise DasdError(f"The model {name!r} does not caption images by themselves: {error}. Name one "
                            f"that does, like {CAPTIONER}.") from error  # fmt: skip
        texts |= dict(zip(pictures, (" ".join(text.split()) for text in found), strict=True))
    texts = {file: text for file, text in texts.items() if text}
    if not texts:
        raise DasdError(f"The model {name!r} gave no caption for any of {len(names)} images.")
    return Captions(f"the model {name}", {}, texts)
