"""Generated images as one parquet file: image, prompt, seed. `datasets`, pandas and others read it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from PIL import Image

from dasd_utils.config import DasdError
from dasd_utils.runtime import files

FEATURES = datasets.Features(
    {"image": datasets.Image(), "prompt": datasets.Value("string"), "seed": datasets.Value("int64")}
)


def save(
    path: str | Path, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Write the images as PNG bytes with prompt and seed, whole or not at all; return the path."""
    path = Path(path)
    columns = {"image": list(images), "prompt": list(prompts), "seed": list(seeds)}
    with files.whole(path, "The samples") as temporary:
        table = datasets.Dataset.from_dict(columns, features=FEATURES).data.table
        pq.write_table(table.cast(FEATURES.arrow_schema), temporary)  # `to_parquet` would draw a progress bar
    return path


def load(path: str | Path) -> list[Image.Image]:
    """Return the images of a file that `save` wrote, RGB; DasdError if it cannot be read."""
    try:
        column = pq.read_table(path, columns=["image"]).column("image").to_pylist()
        return [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in column]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DasdError(
            f"The samples {path} cannot be read: {error}. Remove the file to make them again."
        ) from None
