"""Captions by a model that sees the images: BLIP, GIT and others of its kind, by folder or hub id."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from dasd_utils.apps.new_domain.captions import CAPTIONER, Album, Captions
from dasd_utils.config import DasdError
from dasd_utils.runtime import bars, images, precision, pretrained

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
    source = pretrained.find(base, revision or None)
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
