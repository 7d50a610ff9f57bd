"""Sample grids of a run while it trains, and all of them as one small moving picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from dasd_utils import figures, sampling
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.runtime import files

if TYPE_CHECKING:
    from dasd_utils.data import DomainData
    from dasd_utils.models import Parts

FORMATS = (".webp", ".gif", ".png")  # .png: every viewer shows its first frame at least
FRAME, REST = 180, 2500  # milliseconds of a frame, and of the first and the last


def sample_grid(
    config: Config, parts: Parts, targets: Mapping[str, DomainData]
) -> Callable[[int], dict[str, list[Image.Image]]]:
    """Return what draws `samples/step-<step>.png` in the run folder: a row for a domain's first captions.

    It is what `training.train` calls with a step as `on_sample`; it returns the images by tracker's name.
    """
    pipeline = sampling.DasdPipeline(parts, config)
    # behind the token, as an image may have no caption
    prompts = {name: [data.prompt(i) for i in range(min(4, len(data)))] for name, data in targets.items()}

    def draw(step: int) -> dict[str, list[Image.Image]]:
        rows = {}
        for name, texts in prompts.items():
            rows[name], *_ = pipeline.generate(texts, name, seed=list(range(len(texts))))
        path = resolve(config.output_dir) / "samples" / f"step-{step:06d}.png"
        figures.save(figures.comparison_grid(rows), path)
        return {f"samples/{name}": pictures for name, pictures in rows.items()}

    return draw


def of_run(run: str | Path) -> dict[int, Image.Image]:
    """Return the sample grids of a run, `samples/step-<step>.png`, by step; DasdError if it has none."""
    folder = resolve(run) / "samples"
    found = {file: file.stem.removeprefix("step-") for file in sorted(folder.glob("step-*.png"))}
    grids = {int(step): Image.open(file).convert("RGB") for file, step in found.items() if step.isdigit()}
    if not grids:
        raise DasdError(f"There are no sample grids in {folder}: train with sample_every above 0.")
    return grids


def save(
    pictures: Mapping[int, Image.Image | figures.Figure], path: str | Path, label: str = "", width: int = 640
) -> Path:
    """Write pictures or figures, by step, as an endless animation, each below its step and the label.

    Returns the path. All are brought to `width` pixels and the first one's shape. Equal pictures give equal
    files. Raises DasdError for fewer than two pictures, and for a file name that is none of FORMATS.
    """
    path = Path(path)
    if len(pictures) < 2:
        raise DasdError(f"An animation needs two pictures or more, not {len(pictures)}.")
    if path.suffix not in FORMATS:
        raise DasdError(f"{path.name} is no animation: its name must end in {', '.join(FORMATS)}.")
    steps = sorted(pictures)
    plain = [_picture(pictures[step]) for step in steps]
    size = width, round(width * plain[0].height / plain[0].width)
    drawn = [_frame(each, size, step, steps[-1], label) for each, step in zip(plain, steps, strict=True)]
    durations = [FRAME] * len(drawn)
    durations[0] = durations[-1] = REST
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path, "The animation") as temporary:
        temporary.write_bytes(_encoded(drawn, durations, path.suffix))
    return path


def _picture(given: Image.Image | figures.Figure) -> Image.Image:
    drawn = given if isinstance(given, Image.Image) else Image.open(io.BytesIO(given.encode("png", dpi=150)))
    return drawn.convert("RGB")


def _frame(picture: Image.Image, size: tuple[int, int], step: int, last: int, label: str) -> Image.Image:
    """The picture below its step, the label, and a line as long as the share of the run that is done."""
    head = 30  # pixels above the picture
    margin = 10
    frame = Image.new("RGB", (size[0], size[1] + head), "white")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    frame.paste(picture, (0, head))
    draw = ImageDraw.Draw(frame)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)
    draw.text((margin, 3), f"step {step} of {last}", figures.INK, font)
    draw.text((size[0] - margin, 3), label, figures.INK, font, anchor="ra")
    right = size[0] - margin
    draw.line((margin, head - 3, right, head - 3), figures.LINE, 2)
    if step:
        reached = margin + (right - margin) * step // last
        draw.line((margin, head - 3, reached, head - 3), figures.PALETTE[0], 2)
    return frame


def _encoded(frames: list[Image.Image], durations: list[int], suffix: str) -> bytes:
    options = {"save_all": True, "duration": durations, "loop": 0}
    if suffix == ".webp":
        options |= {"quality": 75, "method": 6}
    if suffix == ".gif":
        frames = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
        options |= {"optimize": True}
    buffer = io.BytesIO()
    frames[0].save(buffer, suffix[1:], append_images=frames[1:], **options)
    return buffer.getvalue()
