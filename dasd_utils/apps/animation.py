"""Sample grids of a run while it trains, and all of them as one small moving picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from dasd_utils import figures
from dasd_utils.config import DasdError, resolve
from dasd_utils.runtime import files

if TYPE_CHECKING:
    from dasd_utils.data import DomainData
    from dasd_utils.sampling import DasdPipeline

# with the options of each; of a .png every viewer shows the first frame at least
FORMATS = {".webp": {"quality": 75, "method": 6}, ".gif": {"optimize": True}, ".png": {}}
FRAME, REST = 180, 2500  # milliseconds of a frame, and of the first and the last


def sample_grid(
    pipeline: DasdPipeline, targets: Mapping[str, DomainData]
) -> Callable[[int], dict[str, list[Image.Image]]]:
    """Return the `on_sample` of `training.train` that draws `samples/step-<step>.png` in the run folder."""
    # behind the token, as an image may have no caption
    prompts = {name: [data.prompt(i) for i in range(min(4, len(data)))] for name, data in targets.items()}

    def draw(step: int) -> dict[str, list[Image.Image]]:
        drawn = {name: pipeline.generate(own, name, seed=[*range(len(own))]) for name, own in prompts.items()}
        rows = {name: images for name, (images, *_) in drawn.items()}
        path = resolve(pipeline.config.output_dir) / "samples" / f"step-{step:06d}.png"
        figures.save(figures.comparison_grid(rows), path)
        return {f"samples/{name}": pictures for name, pictures in rows.items()}

    return draw


def of_run(run: str | Path) -> dict[int, Image.Image]:
    """Return the sample grids of a run, `samples/step-<step>.png`, by step; DasdError if it has none."""
    folder = resolve(run) / "samples"
    found = sorted(folder.glob("step-[0-9]*.png"))
    grids = {int(file.stem.removeprefix("step-")): Image.open(file).convert("RGB") for file in found}
    if not grids:
        raise DasdError(f"There are no sample grids in {folder}: train with sample_every above 0.")
    return grids


def save(
    pictures: Mapping[int, Image.Image | figures.Figure], path: str | Path, label: str = "", width: int = 640
) -> Path:
    """Write pictures or figures by step as an endless animation of the first's shape, each below its step."""
    path = Path(path)
    if len(pictures) < 2:
        raise DasdError(f"An animation needs two pictures or more, not {len(pictures)}.")
    if path.suffix not in FORMATS:
        raise DasdError(f"{path.name} is no animation: its name must end in {', '.join(FORMATS)}.")
    steps = sorted(pictures)
    given = (pictures[step] for step in steps)
    drawn = [each if isinstance(each, Image.Image) else Image.open(io.BytesIO(each.encode("png", dpi=150)))
             for each in given]  # fmt: skip
    size = width, round(width * drawn[0].height / drawn[0].width)
    frames = [_frame(each, step, size, steps[-1], label) for each, step in zip(drawn, steps, strict=True)]
    if path.suffix == ".gif":
        frames = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
    options = {"duration": [REST, *[FRAME] * (len(frames) - 2), REST], "loop": 0} | FORMATS[path.suffix]
    with files.atomic_write(path, "The animation") as part:
        frames[0].save(part, path.suffix[1:], save_all=True, append_images=frames[1:], **options)
    return path


def _frame(picture: Image.Image, step: int, size: tuple[int, int], last: int, label: str) -> Image.Image:
    """The picture below its step, the label, and a line as long as the share of the run that is done."""
    head, left, right = 30, 10, size[0] - 10  # pixels above the picture, ends of the line
    frame = Image.new("RGB", (size[0], size[1] + head), "white")
    frame.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (0, head))
    draw = ImageDraw.Draw(frame)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)
    draw.text((left, 3), f"step {step} of {last}", figures.INK, font)
    draw.text((right, 3), label, figures.INK, font, anchor="ra")
    draw.line((left, head - 3, right, head - 3), figures.LINE, 2)
    if step:
        draw.line((left, head - 3, left + (right - left) * step // last, head - 3), figures.PALETTE[0], 2)
    return frame
