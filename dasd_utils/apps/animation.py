"""Sample grids of a run while it trains, all of them as one moving picture, and figures behind a slider."""

from __future__ import annotations

import base64
import html
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
    # behind the token, as an image may have no caption; the domain's name where there is neither
    prompts = {name: [d.prompt(i) or name for i in range(min(4, len(d)))] for name, d in targets.items()}

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


class Slider:
    """Figures of equal size of which a slider shows one, {name: figure}; it works in a page without a kernel.

    Raises ValueError for figures of several sizes, and for fewer than two.
    """

    def __init__(self, shown: Mapping[str, figures.Figure], dpi: int = 72) -> None:
        pngs = [io.BytesIO(figure.encode("png", dpi)) for figure in shown.values()]
        frames = [Image.open(png).convert("RGB") for png in pngs]
        if len(frames) < 2 or len({frame.size for frame in frames}) != 1:
            raise ValueError("A slider shows two figures or more, all of one size.")
        self.names, (self.width, self.height) = list(shown), frames[0].size
        sheet = Image.new("RGB", (self.width, self.height * len(frames)))  # one below the other
        for i, frame in enumerate(frames):
            sheet.paste(frame, (0, i * self.height))
        buffer = io.BytesIO()
        sheet.save(buffer, format="webp", quality=60)
        self.sheet = base64.b64encode(buffer.getvalue()).decode()

    def __repr__(self) -> str:
        return f"<Slider: {', '.join(self.names)}>"

    def _repr_html_(self) -> str:
        last, names = len(self.names) - 1, html.escape("|".join(self.names))
        # JupyterLab shows an untrusted notebook without the input: then the first figure stands alone
        picture = (f"padding-bottom:{100 * self.height / self.width:.4g}%;"
                   f"background:url(data:image/webp;base64,{self.sheet}) 0 0/100%")  # fmt: skip
        show = (f"this.previousElementSibling.style.backgroundPositionY=100*this.value/{last}+'%';"
                "this.nextElementSibling.value=this.dataset.names.split('|')[this.value]")  # fmt: skip
        return (f'<div style="max-width:{self.width}px"><div role="img" style="{picture}"></div>'
                f'<input type="range" style="width:50%" min="0" max="{last}" value="0" data-names="{names}" '
                f'oninput="{show}"> <output>{html.escape(self.names[0])}</output></div>')  # fmt: skip


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
